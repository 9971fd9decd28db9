"""Judge pictures by every metric, beside the controls that say what the figures are worth."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from inst.errors import Argument, InstError
from inst.evaluation.collection import Collection
from inst.evaluation.judging import Described, Judge, Reader, Size, cover, demo_stranger
from inst.evaluation.metrics.table import Metrics
from inst.evaluation.results import Evaluation, Kind, Tally
from inst.version import __version__

PHOTO, PAINTING, WRONG = "photo unchanged", "painting unchanged", "wrong painting"
"""The controls. The last is behind a method's name: its pictures, judged against another painting than their own."""


_ABOUT_FID = (
    "FID and ArtFID of few pictures lie too high: compare them only between rows of equally many pictures, and never "
    "with published values, which take other sizes, and ArtFID other Inception weights."
)
_NO_FID = "FID compares sets: it takes at least two pictures and two paintings."


@dataclass(frozen=True)
class Progress:
    """So many of all pairs are judged; `name` is the last one's."""

    done: int
    total: int
    name: str


def evaluate(
    collection: Collection,
    metrics: Metrics,
    *,
    size: int = 256,
    batch: int = 8,
    replicates: int = 2000,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> Generator[Progress, None, Evaluation]:
    """Judge every picture of a collection; `inst.complete` runs it to the end.

    Photos and paintings are brought to a short side of `size` pixels, results to the size of their photo. Pictures are
    read as they are needed and features of Inception kept on disk: beside the networks and `batch` pictures only the
    figures themselves are held, 8 bytes each, and up to a kilobyte for each pair of photo and painting.

    Args:
        collection: from `inst.evaluation.collection.collect`.
        metrics: from `inst.evaluation.metrics.table.load_metrics`, on `device`.
        size: of the short side, in pixels, at least 32. Figures of different sizes cannot be compared.
        batch: pairs at a time.
        replicates: of the bootstrap.
        seed: of the bootstrap and of the subsets for the extrapolated FID.
        device: where the metrics are.

    Raises:
        InstError: not one picture could be judged.
    """
    run = _Run(collection, metrics, size, torch.device(device))
    try:
        done = 0
        for pairs in run.by_painting():
            for start in range(0, len(pairs), batch):
                part = pairs[start : start + batch]
                run.judge(part)
                done += len(part)
                yield Progress(done, len(collection.pairs), collection.pairs[part[-1]].name)
        return run.finish(replicates, seed)
    finally:
        run.close()


class _Run:
    def __init__(self, collection: Collection, metrics: Metrics, size: int, device: torch.device) -> None:
        self.collection, self.metrics = collection, metrics
        self.reader, self.judging = Reader(size), Judge(metrics, device)
        self.tallies: dict[tuple[Kind, str], Tally] = {}
        self.notes: list[str] = []
        self._paintings = list(dict.fromkeys(pair.painting for pair in collection.pairs))
        self._places = {path: place for place, path in enumerate(self._paintings)}
        self._demos: Path | None = None
        self._kept: dict[Path, tuple[Image.Image, Described]] = {}

    def close(self) -> None:
        self.reader.close()
        for tally in self.tallies.values():
            tally.close()

    def by_painting(self) -> Iterator[list[int]]:
        """The pairs' numbers, painting by painting."""
        numbers = range(len(self.collection.pairs))
        for _, group in groupby(numbers, lambda number: self.collection.pairs[number].painting):
            yield list(group)

    def judge(self, numbers: Sequence[int]) -> None:
        """Judge pairs of one painting."""
        painting_file = self.collection.pairs[numbers[0]].painting
        own = self._painting(painting_file)
        if own is None:
            return
        other = self._stranger(painting_file, own[0])
        for size, members in self._templates(numbers).items():
            pairs = [self.collection.pairs[number] for number, _ in members]
            prompts = [pair.prompt for pair in pairs]
            photos = None
            if pairs[0].photo is not None:
                photos = self.judging.describe([image for _, image in members])
                self._add(PHOTO, "photo", None, members, photos, own[1], photos, prompts, painting_file)
            fitted = self.judging.describe([cover(own[0], size)])
            self._add(PAINTING, "painting", None, members, fitted, own[1], photos, prompts, painting_file)
            for method in self.collection.methods:
                self._judge_method(method, members, size, own[1], other, photos)

    def _judge_method(
        self,
        method: str,
        members: list[tuple[int, Image.Image]],
        size: Size,
        painting: Described,
        other: Described | None,
        photos: Described | None,
    ) -> None:
        here = [
            (place, number)
            for place, (number, _) in enumerate(members)
            if method in self.collection.pairs[number].results
        ]
        images = self.reader.read_all((self.collection.pairs[number].results[method], size) for _, number in here)
        made = [(place, number, image) for (place, number), image in zip(here, images, strict=True) if image]
        if not made:
            return
        chosen = [(number, image) for _, number, image in made]
        results = self.judging.describe([image for _, image in chosen])
        theirs = photos and _select(photos, [place for place, _, _ in made])
        pairs = [self.collection.pairs[number] for number, _ in chosen]
        prompts = [pair.prompt for pair in pairs]
        self._add(method, "method", method, chosen, results, painting, theirs, prompts, pairs[0].painting)
        if other is not None:
            self._add(f"{method}, {WRONG}", "wrong", method, chosen, results, other, None, None, None)

    def _templates(self, numbers: Sequence[int]) -> dict[Size, list[tuple[int, Image.Image]]]:
        """The pairs by the size that they are judged at, each with its photo, or else with its first result."""
        pairs = [self.collection.pairs[number] for number in numbers]
        sources = [pair.photo or next(iter(pair.results.values())) for pair in pairs]
        grouped: dict[Size, list[tuple[int, Image.Image]]] = {}
        images = self.reader.read_all((one, None) for one in sources)
        for number, pair, first in zip(numbers, pairs, images, strict=True):
            others = () if pair.photo else pair.results.values()
            image = first or next((one for one in map(self.reader.read, others) if one), None)
            if image is not None:
                grouped.setdefault(image.size, []).append((number, image))
        return grouped

    def _painting(self, path: Path) -> tuple[Image.Image, Described] | None:
        if path not in self._kept:
            image = self.reader.read(path)
            if image is None:
                return None
            while len(self._kept) >= 3:  # this one, the one before, and the next
                del self._kept[next(iter(self._kept))]
            self._kept[path] = image, self.judging.describe([image])
        return self._kept[path]

    def _stranger(self, path: Path, image: Image.Image) -> Described | None:
        """The next painting that can be read, and after the last one the first; where there is no other, the demo's."""
        place = self._places[path]
        for step in range(1, len(self._paintings)):
            if (found := self._painting(self._paintings[(place + step) % len(self._paintings)])) is not None:
                return found[1]
        if self._demos is None:
            self._demos = demo_stranger(image)
            why = "There is one painting only" if len(self._paintings) == 1 else "Only one painting can be read"
            self.notes.append(f"{why}: the wrong painting is {self._demos.stem}, of InST's demo.")
        found = self._painting(self._demos)
        return found and found[1]

    def _add(
        self,
        label: str,
        kind: Kind,
        method: str | None,
        members: list[tuple[int, Image.Image]],
        pictures: Described,
        painting: Described,
        photos: Described | None,
        prompts: Sequence[str | None] | None,
        set_of: Path | None,
    ) -> None:
        """Take the figures of a batch into a row. `set_of` names the painting for FID; None leaves FID out."""
        tally = self.tallies.setdefault((kind, label), Tally(label, kind, method))
        count = len(members)
        tally.add([number for number, _ in members], self.judging.compare(count, pictures, painting, photos, prompts))
        if set_of is not None and pictures.inception is not None and painting.inception is not None:
            tally.add_features(pictures.inception.expand(count, -1), str(set_of), painting.inception[0])

    def finish(self, replicates: int, seed: int) -> Evaluation:
        order = {"method": 0, "photo": 1, "painting": 2, "wrong": 3}
        tallies = sorted(self.tallies.values(), key=lambda one: (order[one.kind], _numbers_apart(one.label)))
        problems = [
            *self.collection.problems,
            *self.metrics.problems,
            *sorted(self.reader.problems),
            *self.judging.problems,
        ]
        encoder = self.metrics.encoder
        if encoder is not None and encoder.texts is None and any(pair.prompt for pair in self.collection.pairs):
            problems.append(
                str(
                    InstError(
                        f"the similarity to prompts is left out: {encoder.no_texts}",
                        "give CLIP (",
                        Argument("encoder"),
                        ")",
                    )
                )
            )
        if not any(tally.kind == "method" for tally in self.tallies.values()):
            raise InstError(problems[0] if problems else "There is no picture to judge.")
        if squashed := sorted(set(self.reader.squashed)):
            shown = ", ".join(squashed[:5]) + (" and others" if len(squashed) > 5 else "")
            self.notes.append(
                f"{len(squashed)} pictures have other proportions than their photos and were squashed: {shown}."
            )
        rows = tuple(tally.row(self.collection, self.metrics.columns, replicates, seed) for tally in tallies)
        if self.metrics.inception is not None:
            self.notes.append(_ABOUT_FID if any("fid" in row.figures for row in rows) else _NO_FID)
        settings = {
            "inst": __version__,
            "short_side": self.reader.short_side,
            "bootstrap_replicates": replicates,
            "seed": seed,
            "similarity": None if encoder is None else encoder.source,
        }
        return Evaluation(self.collection, self.metrics.columns, rows, tuple(problems), tuple(self.notes), settings)


def _numbers_apart(label: str) -> list[str | float]:
    """A key to sort by that takes numbers as such: vectors-16 comes after vectors-8."""
    parts = re.split(r"(\d+(?:\.\d+)?)", label)
    return [float(part) if place % 2 else part for place, part in enumerate(parts)]


def _select(described: Described, places: list[int]) -> Described:
    """The pictures of a batch at `places`."""

    def take(value: Any) -> Any:
        return [take(one) for one in value] if isinstance(value, list) else value[places]

    features = {key: take(value) for key, value in described.features.items()}
    return Described(features, None if described.inception is None else take(described.inception))
