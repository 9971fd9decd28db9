"""Store the points of learning curves in a folder, continue them, and write them as a table, a plot and pictures."""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from typing import Any, Self, TypeVar

import numpy as np
from torch import Tensor

from inst.errors import InstError, UsageError
from inst.evaluation.bootstrap import mean_intervals
from inst.evaluation.collection import CURVES, SEPARATOR
from inst.evaluation.compare import SETTINGS, read_settings
from inst.evaluation.learning_curves.measure import VARIANTS, CurveControl, CurvePoint
from inst.evaluation.results import PAINTING, PHOTO, Score
from inst.files.listing import readable_name
from inst.files.provenance import SourceFile, describe
from inst.files.writing import make_folder, write_bytes_atomically
from inst.pictures.lettering import plot_fonts
from inst.pictures.reading import Photo
from inst.pictures.writing import save_picture
from inst.texts import cut, markdown, one_line

_Point = TypeVar("_Point", CurvePoint, CurveControl)


def learning_name(variant: str, seed: int) -> str:
    """Return the name of the picture folder of a variant and a seed, which is also their name on sheets."""
    return f"{variant}-{seed}"


@dataclass(frozen=True)
class CurveRow:
    """The means of a variant after `step` steps over `count` learnings, or of a control over `count` paintings.

    Values that do not apply are None.
    """

    label: str
    step: int | None
    count: int
    seconds: float | None
    loss: Score | None
    gram: Score | None
    wrong_gram: Score | None
    accuracy: Score | None


class Curves:
    """The points of learning curves, stored in a folder as `curves.json`, from which an interrupted run continues."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], photos: Sequence[Photo] = ()) -> None:
        self.folder, self.settings, self.photos = folder, settings, photos
        self.points: dict[tuple[str, str, int, int], CurvePoint] = {}
        self.controls: dict[tuple[str, str], CurveControl] = {}

    @classmethod
    def open(
        cls,
        folder: Path,
        settings: Mapping[str, Any],
        paintings: Sequence[Photo] = (),
        photos: Sequence[Photo] = (),
    ) -> Self:
        """Start in a folder, which is created if it is missing, or continue the curves in it.

        Args:
            folder: a folder only for these curves.
            settings: the settings that all points depend on, as plain JSON values; they include "steps" (of each
                learning) and "similarity" (the name of the encoder of the accuracy).
            paintings: paintings to learn. Points belong to paintings by name; there may be points of other paintings.
            photos: photos to transfer with each style.

        Raises:
            UsageError: the curves were made with other settings, or a curve is of another painting with the same name;
                or the folder contains a comparison.
            InstError: the folder cannot be used.
        """
        curves = cls(folder, settings, photos)
        place = folder / CURVES
        if os.path.lexists(folder / SETTINGS):
            raise UsageError(f"{folder} holds a comparison and cannot hold learning curves too", "give another folder")
        make_folder(folder)
        if not os.path.lexists(place):
            return curves
        stored = read_settings(place)
        try:
            former: dict[str, Any] = stored["settings"]
            changed = sorted(key for key in {*former, *settings} if former.get(key) != settings.get(key))
            points = [_entry(CurvePoint, entry) for entry in stored["points"]]
            controls = [_entry(CurveControl, entry) for entry in stored["controls"]]
            if unknown := {point.variant for point in points} - set(VARIANTS):
                raise ValueError(f"it contains the unknown variant {cut(unknown.pop(), 60)}")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InstError(f"{place} cannot be used ({error})", "give another folder") from None
        if changed:
            raise UsageError(
                f"{place} has curves made with other settings ({', '.join(changed)})", "give another folder"
            )
        hashes = {Path(painting.name).stem: painting.sha256 for painting in paintings}
        entries: list[CurvePoint | CurveControl] = [*points, *controls]
        for entry in entries:
            if hashes.get(name := Path(entry.painting).stem, entry.sha256) != entry.sha256:
                raise UsageError(
                    f"{place} has curves of another painting called {cut(name, 60)}",
                    "give another folder, or rename the painting",
                )
        curves.points = {(point.painting, point.variant, point.seed, point.step): point for point in points}
        curves.controls = {(control.painting, control.control): control for control in controls}
        return curves

    def has(self, painting: str, variant: str, seed: int) -> bool:
        """Return whether a learning is finished and its pictures exist."""
        pictures = (self._picture(painting, variant, seed, photo) for photo in self.photos)
        return self._finished(painting, variant, seed) and all(picture.is_file() for picture in pictures)

    def _finished(self, painting: str, variant: str, seed: int) -> bool:
        return (painting, variant, seed, self.settings["steps"]) in self.points

    def _picture(self, painting: str, variant: str, seed: int, photo: Photo) -> Path:
        name = f"{Path(photo.name).stem}{SEPARATOR}{Path(painting).stem}.png"
        return self.folder / learning_name(variant, seed) / name

    def has_controls(self, painting: str) -> bool:
        """Return whether the controls of a painting are stored."""
        return (painting, PHOTO) in self.controls and (painting, PAINTING) in self.controls

    def add(self, point: CurvePoint | CurveControl) -> None:
        """Add a point or a control, and write all to the file. Raises InstError if the folder cannot be written to."""
        if isinstance(point, CurvePoint):
            self.points[point.painting, point.variant, point.seed, point.step] = point
        else:
            self.controls[point.painting, point.control] = point
        content = {
            "settings": dict(self.settings),
            "points": [_plain(stored) for stored in self.points.values()],
            "controls": [_plain(stored) for stored in self.controls.values()],
        }
        text = json.dumps(content, indent=1, allow_nan=False)
        write_bytes_atomically(self.folder / CURVES, f"{text}\n".encode())

    def save(self, point: CurvePoint, pictures: Sequence[Tensor]) -> None:
        """Save the photos transferred at the end of a learning as VARIANT-SEED/PHOTO__PAINTING.png.

        Args:
            point: the point with the style of the pictures; only the last point of a learning is saved.
            pictures: the transferred photos, each [1, 3, H, W] in [-1, 1].

        Raises:
            InstError: the folder cannot be written to.
        """
        if point.step != self.settings["steps"]:
            return
        make_folder(self.folder / learning_name(point.variant, point.seed))
        for photo, picture in zip(self.photos, pictures, strict=True):
            origin = {
                "settings": self.settings,
                "point": _plain(point),
                "photo": asdict(SourceFile(photo.name, photo.sha256)),
            }
            texts = describe("photo transferred at the end of a learning curve", "inst ablate", **origin)
            path = self._picture(point.painting, point.variant, point.seed, photo)
            save_picture(picture[0], path, None, texts)

    def rows(self) -> list[CurveRow]:
        """Return rows of the variants, step by step, and then of the controls. Unfinished learnings do not count."""
        grouped: dict[tuple[str, int], list[CurvePoint]] = {}
        for point in self.points.values():
            if self._finished(point.painting, point.variant, point.seed):
                grouped.setdefault((point.variant, point.step), []).append(point)
        rows = []
        for variant, step in sorted(grouped, key=lambda key: (list(VARIANTS).index(key[0]), key[1])):
            same = grouped[variant, step]
            rows.append(_row(variant, step, fmean(one.seconds for one in same), same))
        for name in (PHOTO, PAINTING):
            if controls := [one for one in self.controls.values() if one.control == name]:
                rows.append(_row(name, None, None, controls))
        return rows

    @property
    def _similarity(self) -> str:
        return f"{self.settings['similarity']} image similarity"

    def _wrong_painting_note(self) -> list[str]:
        wrong = {point.painting: point.wrong for point in self.points.values()}
        names = ", ".join(f"{markdown(wrong_name)} for {markdown(painting)}" for painting, wrong_name in wrong.items())
        return ["", f"The wrong painting is {names}."] if names else []

    def write(self) -> list[Path]:
        """Write the table as `curves.md`, and the curves as `curves.png` if matplotlib is installed."""
        rows = self.rows()
        text = "\n".join([*_table(rows, self._similarity), *self._wrong_painting_note()]) + "\n"
        files = [write_bytes_atomically(self.folder / "curves.md", readable_name(text).encode())]
        if find_spec("matplotlib") is not None:
            files.append(write_bytes_atomically(self.folder / "curves.png", self._plot(rows)))
        return files

    @plot_fonts()
    def _plot(self, rows: Sequence[CurveRow]) -> bytes:
        """Return the curves as a PNG file."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(11, 6.5), layout="constrained")
        panels = figure.subplots(2, 3)
        measures = ("loss", "validation loss"), ("gram", "Gram distance"), ("accuracy", self._similarity)
        for x_name, x_label, line in (("step", "steps", panels[0]), ("seconds", "seconds", panels[1])):
            for panel, (name, title) in zip(line, measures, strict=True):
                for variant in dict.fromkeys(row.label for row in rows if row.step is not None):
                    own = [row for row in rows if row.label == variant]
                    values = [getattr(row, name).value for row in own]
                    panel.plot([getattr(row, x_name) for row in own], values, marker=".", label=variant)
                for control in (row for row in rows if row.label == PHOTO and name != "loss"):
                    panel.axhline(getattr(control, name).value, color="grey", linestyle="--", label=PHOTO)
                panel.set(xlabel=x_label)
                panel.set_title(cut(one_line(readable_name(title)), 60), parse_math=False)  # "$" is no formula here
        panels[0][1].legend()
        encoded = io.BytesIO()
        paintings = dict.fromkeys(SourceFile(point.painting, point.sha256) for point in self.points.values())
        texts = describe(
            "plot of learning curves",
            "inst ablate",
            settings=self.settings,
            paintings=[asdict(painting) for painting in paintings],
        )
        figure.savefig(encoded, format="png", dpi=110, metadata=texts)
        return encoded.getvalue()


def _plain(point: CurvePoint | CurveControl) -> dict[str, Any]:
    """Return the values of a point for JSON, which has no number that is not finite: None stands for it."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in asdict(point).items()
    }


def _entry(kind: type[_Point], stored: Any) -> _Point:
    """Return the point of values that `_plain` returned. Raises ValueError or TypeError for other values."""
    named = {one.name: str(one.type) for one in fields(kind)}
    if not isinstance(stored, dict) or stored.keys() != named.keys():
        raise ValueError("it has a point without some values, or with others")
    values: Any = {
        name: math.nan if value is None and named[name] == "float" else value for name, value in stored.items()
    }
    for name, value in values.items():
        types = {"str": str, "int": int, "float": float | int}[named[name]]
        if not isinstance(value, types) or isinstance(value, bool):
            raise ValueError(f"{name} has the value {cut(repr(value), 60)}")
        if not isinstance(value, str) and abs(value) >= 2**63:  # False for NaN
            raise ValueError(f"{name} is too large")
    return kind(**values)


def _row(label: str, step: int | None, seconds: float | None, entries: Sequence[CurvePoint | CurveControl]) -> CurveRow:
    means = (_mean(entries, name) for name in ("loss", "gram", "wrong_gram", "accuracy"))
    return CurveRow(label, step, len(entries), seconds, *means)


def _mean(entries: Sequence[CurvePoint | CurveControl], name: str) -> Score | None:
    """Return the mean of a score; None if the entries do not have it. The bootstrap draws only paintings."""
    if not hasattr(entries[0], name):
        return None
    values = np.array([[getattr(entry, name)] for entry in entries], dtype=np.float64)
    paintings = np.unique([entry.painting for entry in entries], return_inverse=True)[1]
    intervals = mean_intervals(values, np.zeros(len(entries), dtype=np.int64), paintings)
    return Score(float(values.mean()), *(intervals[0] if intervals else ()))


def _table(rows: Sequence[CurveRow], similarity: str) -> list[str]:
    """Return the lines of a Markdown table; the cells of missing values are empty."""
    lines = [
        "| start | steps | learnings | seconds | validation loss | Gram distance | to a wrong painting "
        f"| {markdown(similarity)} |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        run = ["", ""] if row.step is None else [f"{row.step}", f"{row.count}"]
        seconds = "" if row.seconds is None else f"{row.seconds:.1f}"
        others = (row.gram, row.wrong_gram, row.accuracy)
        scores = [_format_score(row.loss, 5), *(_format_score(score, 3) for score in others)]
        label = f"*{row.label}*" if row.step is None else row.label
        lines.append(f"| {' | '.join([label, *run, seconds, *scores])} |")
    if any(score and score.low is not None for row in rows for score in (row.gram, row.accuracy)):
        lines += ["", "In brackets: 95 % intervals by bootstrap over paintings."]
    return lines


def _format_score(score: Score | None, digits: int) -> str:
    if score is None:
        return ""
    interval = "" if score.low is None else f" [{score.low:.{digits}f}, {score.high:.{digits}f}]"
    return f"{score.value:.{digits}f}{interval}"
