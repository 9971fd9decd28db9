"""How fast the variants of the inversion module learn (the paper's Fig. 5), as curves over steps and seconds."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Self

import torch
from torch import Tensor

from inst.backbone import Backbone
from inst.errors import InstError, UsageError
from inst.evaluation.clip import PictureTextEncoder, cosine
from inst.evaluation.methods import check_transfer, learned
from inst.files import write_bytes_atomically
from inst.image_encoders import how_to_give
from inst.images import Photo
from inst.learning import learn
from inst.provenance import SourceFile, describe
from inst.sampling import complete
from inst.styling import generate, transfer

CURVES = "curves.json"

VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "pretrained": {"pretrained": True},
    "attention": {"variant": "attention", "pretrained": False},
    "pooled": {"variant": "pooled", "pretrained": False},
    "direct": {"variant": "direct", "pretrained": False},
}
"""Arguments of `learn` by the name of the curve. "pretrained" starts from the backbone's module: a row of its own."""


@dataclass(frozen=True)
class CurvePoint:
    """A style on the way, and how good it is.

    Attributes:
        painting: the painting's name.
        sha256: of the painting's file.
        variant: one of `VARIANTS`.
        seed: of the learning.
        step: learning steps so far.
        seconds: of learning so far, without the time that these figures took.
        loss: the validation loss (fixed crops, timesteps and noise, which are not learned from).
        gram: mean distance to the painting of the photos transferred with it, lower is closer.
        accuracy: mean cosine of the image embeddings of pictures generated from "[C]" and of the painting.
    """

    painting: str
    sha256: str
    variant: str
    seed: int
    step: int
    seconds: float
    loss: float
    gram: float
    accuracy: float


def check_curves(
    backbone: Backbone,
    paintings: Sequence[Photo],
    transferred: Mapping[str, Any],
    *,
    steps: int,
    every: int,
    seeds: Sequence[int],
) -> None:
    """Check what `learning_curves` is given, before anything is learned.

    Raises:
        UsageError: two paintings of one name, or arguments that `inst.learn` or `inst.transfer` cannot use.
        InstError: the backbone has no image encoder.
    """
    if backbone.image_encoder is None:
        raise InstError(
            f"{backbone.name or 'This backbone'} has no image encoder, which the variants attention and pooled look "
            f"through: give one ({how_to_give(backbone)})."
        )
    names = [painting.name for painting in paintings]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"Two paintings are called {twice[0]}: their points are told apart by it, so rename one.")
    for seed in seeds:
        learned(backbone, **_learning(steps, every, seed))  # begun and not run
    check_transfer(backbone, transferred)


def _learning(steps: int, every: int, seed: int) -> dict[str, Any]:
    """The arguments of `learn` that every variant has: none stops early."""
    return {"steps": steps, "validate_every": every, "patience": steps, "seed": seed}


def learning_curves(
    backbone: Backbone,
    paintings: Sequence[Photo],
    photos: Sequence[Photo],
    gram_distance: Callable[[Tensor, Tensor], Tensor],
    *,
    steps: int = 200,
    every: int = 50,
    seeds: Sequence[int] = (0,),
    pictures: int = 4,
    variants: Sequence[str] | None = None,
    transferred: Mapping[str, Any] | None = None,
    encoder: PictureTextEncoder | None = None,
    done: Callable[[str, str, int], bool] | None = None,
) -> Generator[CurvePoint, None, None]:
    """Learn each painting with each variant and seed, and measure the style every `every` steps.

    Args:
        backbone: has an image encoder.
        paintings: each learned by itself.
        photos: transferred with each style; few will do.
        gram_distance: ([B, 3, H, W], [1, 3, H', W']) -> [B], such as `inst.evaluation.gram.GramDistance`.
        steps: of each learning, none of which stops early.
        every: steps between two points.
        seeds: of the learnings; the same for every variant.
        pictures: generated from "[C]" for the accuracy, always with the same noise.
        variants: which of `VARIANTS`; None is all that the backbone has the parts for.
        transferred: arguments of `inst.transfer` for the photos; None leaves the tone alone, as the other ablations
            do: with the painting's palette even a poor style would be close to the painting.
        encoder: embeds pictures for the accuracy; None takes the backbone's own image encoder.
        done: which learnings (painting's name, variant, seed) to leave out, because they are known; None is none.

    Yields:
        The points of one learning after the other, in the order of their steps.

    Raises:
        UsageError: as `check_curves` does.
        InstError: the backbone has no image encoder; or what `learn` raises while it runs.
    """
    if transferred is None:
        transferred = {"tone": "none"}
    check_curves(backbone, paintings, transferred, steps=steps, every=every, seeds=seeds)
    if encoder is None:
        encoder = PictureTextEncoder.of_backbone(backbone)
    if variants is None:
        variants = [name for name in VARIANTS if name != "pretrained" or backbone.inversion is not None]
    for seed in seeds:
        for painting in paintings:
            target = painting.picture[None].to(backbone.device)
            with torch.inference_mode():
                embedded = encoder.pictures(target)
            for variant in variants:
                if done is not None and done(painting.name, variant, seed):
                    continue
                run = learn(backbone, [painting], **_learning(steps, every, seed), **VARIANTS[variant])
                measuring = 0.0
                for step in run:
                    if step.validation is None:
                        continue
                    begin = time.perf_counter()
                    style = step.style()
                    shown = [complete(transfer(backbone, photo.picture, style, **transferred)) for photo in photos]
                    made = complete(generate(backbone, "[C]", style, seed=range(pictures)))
                    with torch.inference_mode():
                        gram = torch.cat([gram_distance(one.to(backbone.device), target) for one in shown]).mean().item()
                        accuracy = cosine(encoder.pictures(made), embedded).mean().item()
                    yield CurvePoint(
                        painting=painting.name,
                        sha256=painting.sha256,
                        variant=variant,
                        seed=seed,
                        step=step.step,
                        seconds=round(step.seconds - measuring, 2),
                        loss=step.validation,
                        gram=gram,
                        accuracy=accuracy,
                    )
                    measuring += time.perf_counter() - begin


class Curves:
    """The points of learning curves, kept in a folder as `curves.json`: an interrupted run goes on from it."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder, self.settings = folder, settings
        self.points: dict[tuple[str, str, int, int], CurvePoint] = {}

    @classmethod
    def open(cls, folder: Path, settings: Mapping[str, Any], paintings: Sequence[Photo] = ()) -> Self:
        """Begin in a folder, which is made where it is missing, or go on with what it has.

        Args:
            folder: of the curves alone.
            settings: what all points depend on, as plain JSON values; among them "steps", of each learning, and
                "similarity", the name of what the accuracy is by.
            paintings: what is to be learned; points are told apart by their names, and there may be points of others.

        Raises:
            UsageError: its curves were made with other settings, or one of another painting of the same name.
            InstError: the folder cannot be used.
        """
        curves = cls(folder, settings)
        place = folder / CURVES
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not place.is_file():
                return curves
            stored = json.loads(place.read_text())
            there: dict[str, Any] = stored["settings"]
            points = [CurvePoint(**entry) for entry in stored["points"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InstError(f"{place} cannot be used ({error}): give another folder.") from None
        changed = sorted(key for key in {*there, *settings} if there.get(key) != settings.get(key))
        if changed:
            raise UsageError(
                f"{place} has curves made with other settings ({', '.join(changed)}): give another folder."
            )
        known = {painting.name: painting.sha256 for painting in paintings}
        for point in points:
            if known.get(point.painting, point.sha256) != point.sha256:
                raise UsageError(
                    f"{place} has curves of another painting called {point.painting}: give another folder, or rename "
                    f"the painting."
                )
            curves.points[point.painting, point.variant, point.seed, point.step] = point
        return curves

    def has(self, painting: str, variant: str, seed: int) -> bool:
        """Whether a learning is known to its end."""
        return (painting, variant, seed, self.settings["steps"]) in self.points

    def add(self, point: CurvePoint) -> None:
        """Keep a point, and write them all. Raises InstError where the folder cannot be written to."""
        self.points[point.painting, point.variant, point.seed, point.step] = point
        content = {"settings": dict(self.settings), "points": [asdict(one) for one in self.points.values()]}
        write_bytes_atomically(self.folder / CURVES, (json.dumps(content, indent=1) + "\n").encode())

    def means(self) -> Iterator[CurvePoint]:
        """The mean point of each variant and step over all paintings and seeds; painting "" and seed -1."""
        grouped: dict[tuple[str, int], list[CurvePoint]] = {}
        for point in self.points.values():
            grouped.setdefault((point.variant, point.step), []).append(point)
        for variant, step in sorted(grouped, key=lambda key: (list(VARIANTS).index(key[0]), key[1])):
            same = grouped[variant, step]
            figures = (fmean(getattr(one, name) for one in same) for name in ("seconds", "loss", "gram", "accuracy"))
            yield CurvePoint("", "", variant, -1, step, *figures)

    @property
    def _similarity(self) -> str:
        return f"{self.settings['similarity']} image similarity"

    def table(self) -> list[str]:
        """The means as lines of a Markdown table."""
        lines = [
            f"| start | steps | seconds | validation loss | Gram distance | {self._similarity} |",
            "| --- | ---: | ---: | ---: | ---: | ---: |",
        ]
        for one in self.means():
            figures = f"{one.seconds:.0f} | {one.loss:.5f} | {one.gram:.3f} | {one.accuracy:.3f}"
            lines.append(f"| {one.variant} | {one.step} | {figures} |")
        return lines

    def write(self) -> list[Path]:
        """Write the table as `curves.md`, and where matplotlib is installed the curves as `curves.png`."""
        files = [write_bytes_atomically(self.folder / "curves.md", ("\n".join(self.table()) + "\n").encode())]
        try:
            from matplotlib.figure import Figure
        except ImportError:
            return files
        figure = Figure(figsize=(11, 6.5), layout="constrained")
        panels = figure.subplots(2, 3)
        means = list(self.means())
        for row, (across, label) in enumerate((("step", "steps"), ("seconds", "seconds"))):
            for column, (name, title) in enumerate(
                (("loss", "validation loss"), ("gram", "Gram distance"), ("accuracy", self._similarity))
            ):
                panel = panels[row][column]
                for variant in dict.fromkeys(one.variant for one in means):
                    points = [one for one in means if one.variant == variant]
                    xs, ys = ([getattr(one, key) for one in points] for key in (across, name))
                    panel.plot(xs, ys, marker=".", label=variant)
                panel.set(xlabel=label, title=title)
        panels[0][0].legend()
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
