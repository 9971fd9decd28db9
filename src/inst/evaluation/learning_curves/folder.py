"""The points of learning curves in a folder: kept, gone on with, and told as a table, a plot and pictures."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Self

import numpy as np
from torch import Tensor

from inst.errors import InstError, UsageError
from inst.evaluation.bootstrap import mean_intervals
from inst.evaluation.collection import CURVES, SEPARATOR
from inst.evaluation.compare import SETTINGS
from inst.evaluation.evaluate import PAINTING, PHOTO
from inst.evaluation.learning_curves.measure import VARIANTS, CurveControl, CurvePoint
from inst.evaluation.results import Figure
from inst.files.provenance import SourceFile, describe
from inst.files.writing import make_folder, write_bytes_atomically
from inst.pictures.io import Photo, save_picture


def column(variant: str, seed: int) -> str:
    """The folder of the pictures of a start and a seed, and what they are called on sheets."""
    return f"{variant}-{seed}"


@dataclass(frozen=True)
class CurveRow:
    """The means of a start after so many steps over `count` learnings, or of a control over as many paintings.

    What does not apply to it is None.
    """

    label: str
    step: int | None
    count: int
    seconds: float | None
    loss: Figure | None
    gram: Figure | None
    wrong_gram: Figure | None
    accuracy: Figure | None


class Curves:
    """The points of learning curves, kept in a folder as `curves.json`: an interrupted run goes on from it."""

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
        """Begin in a folder, which is made where it is missing, or go on with what it has.

        Args:
            folder: of the curves alone.
            settings: what all points depend on, as plain JSON values; among them "steps", of each learning, and
                "similarity", the name of what the accuracy is by.
            paintings: what is to be learned; points are told apart by their names, and there may be points of others.
            photos: what is to be transferred with each style.

        Raises:
            UsageError: its curves were made with other settings, or one of another painting of the same name; or it is
                the folder of a comparison.
            InstError: the folder cannot be used.
        """
        curves = cls(folder, settings, photos)
        place = folder / CURVES
        if (folder / SETTINGS).exists():
            raise UsageError(f"{folder} holds a comparison, whose methods the curves would join", "give another folder")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not place.is_file():
                return curves
            stored = json.loads(place.read_text())
            there: dict[str, Any] = stored["settings"]
            changed = sorted(key for key in {*there, *settings} if there.get(key) != settings.get(key))
            if changed:
                raise UsageError(
                    f"{place} has curves made with other settings ({', '.join(changed)})", "give another folder"
                )
            points = [CurvePoint(**entry) for entry in stored["points"]]
            controls = [CurveControl(**entry) for entry in stored["controls"]]
            if strange := {point.variant for point in points} - set(VARIANTS):
                raise ValueError(f"{strange.pop()} is no start of a learning")
        except UsageError:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InstError(f"{place} cannot be used ({error})", "give another folder") from None
        known = {Path(painting.name).stem: painting.sha256 for painting in paintings}
        entries: list[CurvePoint | CurveControl] = [*points, *controls]
        for point in entries:
            if known.get(name := Path(point.painting).stem, point.sha256) != point.sha256:
                raise UsageError(
                    f"{place} has curves of another painting called {name}",
                    "give another folder, or rename the painting",
                )
        curves.points = {(one.painting, one.variant, one.seed, one.step): one for one in points}
        curves.controls = {(one.painting, one.control): one for one in controls}
        return curves

    def has(self, painting: str, variant: str, seed: int) -> bool:
        """Whether a learning is known to its end, and its pictures are there."""
        pictures = (self._picture(painting, variant, seed, photo) for photo in self.photos)
        return self._finished(painting, variant, seed) and all(picture.is_file() for picture in pictures)

    def _finished(self, painting: str, variant: str, seed: int) -> bool:
        return (painting, variant, seed, self.settings["steps"]) in self.points

    def _picture(self, painting: str, variant: str, seed: int, photo: Photo) -> Path:
        name = f"{Path(photo.name).stem}{SEPARATOR}{Path(painting).stem}.png"
        return self.folder / column(variant, seed) / name

    def has_controls(self, painting: str) -> bool:
        """Whether a painting's controls are known."""
        return (painting, PHOTO) in self.controls and (painting, PAINTING) in self.controls

    def add(self, point: CurvePoint | CurveControl) -> None:
        """Keep a point or a control, and write them all. Raises InstError where the folder cannot be written to."""
        if isinstance(point, CurvePoint):
            self.points[point.painting, point.variant, point.seed, point.step] = point
        else:
            self.controls[point.painting, point.control] = point
        content = {
            "settings": dict(self.settings),
            "points": [asdict(one) for one in self.points.values()],
            "controls": [asdict(one) for one in self.controls.values()],
        }
        write_bytes_atomically(self.folder / CURVES, (json.dumps(content, indent=1) + "\n").encode())

    def save(self, point: CurvePoint, pictures: Sequence[Tensor]) -> None:
        """Save the photos transferred at a learning's end as VARIANT-SEED/PHOTO__PAINTING.png.

        Args:
            point: whose style they have; nothing is done with those before the last.
            pictures: of each photo, [1, 3, H, W] in [-1, 1].

        Raises:
            InstError: the folder cannot be written to.
        """
        if point.step != self.settings["steps"]:
            return
        make_folder(self.folder / column(point.variant, point.seed))
        for photo, picture in zip(self.photos, pictures, strict=True):
            made_of = {
                "settings": self.settings,
                "point": asdict(point),
                "photo": asdict(SourceFile(photo.name, photo.sha256)),
            }
            texts = describe("photo transferred at the end of a learning curve", "inst ablate", **made_of)
            path = self._picture(point.painting, point.variant, point.seed, photo)
            save_picture(picture[0], path, None, texts)

    def rows(self) -> list[CurveRow]:
        """The starts, step by step, and then the controls. Learnings that were broken off do not count."""
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

    def _about_wrong(self) -> list[str]:
        wrong = {one.painting: one.wrong for one in self.points.values()}
        named = ", ".join(f"{stranger} for {painting}" for painting, stranger in wrong.items())
        return ["", f"The wrong painting is {named}."] if named else []

    def write(self) -> list[Path]:
        """Write the table as `curves.md`, and where matplotlib is installed the curves as `curves.png`."""
        rows = self.rows()
        text = "\n".join([*_table(rows, self._similarity), *self._about_wrong()]) + "\n"
        files = [write_bytes_atomically(self.folder / "curves.md", text.encode())]
        try:
            from matplotlib.figure import Figure as Drawing
        except ImportError:
            return files
        figure = Drawing(figsize=(11, 6.5), layout="constrained")
        panels = figure.subplots(2, 3)
        measures = ("loss", "validation loss"), ("gram", "Gram distance"), ("accuracy", self._similarity)
        for across, label, line in (("step", "steps", panels[0]), ("seconds", "seconds", panels[1])):
            for panel, (name, title) in zip(line, measures, strict=True):
                for variant in dict.fromkeys(row.label for row in rows if row.step is not None):
                    own = [row for row in rows if row.label == variant]
                    heights = [getattr(row, name).value for row in own]
                    panel.plot([getattr(row, across) for row in own], heights, marker=".", label=variant)
                for control in (row for row in rows if row.label == PHOTO and name != "loss"):
                    panel.axhline(getattr(control, name).value, color="grey", linestyle="--", label=PHOTO)
                panel.set(xlabel=label, title=title)
        panels[0][1].legend()
        drawn = io.BytesIO()
        paintings = dict.fromkeys(SourceFile(one.painting, one.sha256) for one in self.points.values())
        texts = describe(
            "plot of learning curves",
            "inst ablate",
            settings=self.settings,
            paintings=[asdict(one) for one in paintings],
        )
        figure.savefig(drawn, format="png", dpi=110, metadata=texts)
        return [*files, write_bytes_atomically(self.folder / "curves.png", drawn.getvalue())]


def _row(label: str, step: int | None, seconds: float | None, of: Sequence[CurvePoint | CurveControl]) -> CurveRow:
    return CurveRow(
        label, step, len(of), seconds, *(_mean(of, name) for name in ("loss", "gram", "wrong_gram", "accuracy"))
    )


def _mean(of: Sequence[CurvePoint | CurveControl], name: str) -> Figure | None:
    """The mean, where they have the figure. The paintings alone are drawn for its interval: seeds go with theirs."""
    if not hasattr(of[0], name):
        return None
    values = np.array([[getattr(one, name)] for one in of], dtype=np.float64)
    paintings = np.unique([one.painting for one in of], return_inverse=True)[1]
    ends = mean_intervals(values, np.zeros(len(of), dtype=np.int64), paintings)
    return Figure(float(values.mean()), *(ends[0] if ends else ()))


def _table(rows: Sequence[CurveRow], similarity: str) -> list[str]:
    """The lines of a Markdown table; what is not known stays empty."""
    lines = [
        "| start | steps | learnings | seconds | validation loss | Gram distance | to a wrong painting "
        f"| {similarity} |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        run = ["", ""] if row.step is None else [f"{row.step}", f"{row.count}"]
        seconds = "" if row.seconds is None else f"{row.seconds:.1f}"
        figures = [_spell(row.loss, 5), *(_spell(one, 3) for one in (row.gram, row.wrong_gram, row.accuracy))]
        label = f"*{row.label}*" if row.step is None else row.label
        lines.append(f"| {' | '.join([label, *run, seconds, *figures])} |")
    if any(one and one.low is not None for row in rows for one in (row.gram, row.accuracy)):
        lines += ["", "In brackets: 95 % intervals by bootstrap over paintings."]
    return lines


def _spell(figure: Figure | None, digits: int) -> str:
    if figure is None:
        return ""
    interval = "" if figure.low is None else f" [{figure.low:.{digits}f}, {figure.high:.{digits}f}]"
    return f"{figure.value:.{digits}f}{interval}"
