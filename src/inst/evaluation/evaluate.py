"""Compute the scores of pictures by every metric, and of controls that help to read the scores."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from inst.backbone.devices import choose_device
from inst.errors import Argument, InstError
from inst.evaluation.collection import Collection
from inst.evaluation.judging import BatchFeatures, Reader, Scorer, Size, other_demo_painting, resize_and_crop
from inst.evaluation.metrics.table import Metrics
from inst.evaluation.results import Evaluation, Kind, Tally
from inst.version import __version__

PHOTO, PAINTING, WRONG = "photo unchanged", "painting unchanged", "wrong painting"
"""The controls. The last one follows a method's name: the method's pictures, compared with a wrong painting."""


_FID_NOTE = (
    "FID and ArtFID of few pictures are too high: compare them only between rows with the same number of pictures. Do "
    "not compare them with published values, which use other sizes; published ArtFID uses other Inception weights."
)
_NO_FID_NOTE = "FID compares sets: it needs at least two pictures and two paintings."


@dataclass(frozen=True)
class Progress:
    """The number of evaluated pairs, of all pairs, and the name of the last evaluated pair."""

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
    """Evaluate every picture of a collection; `inst.complete` runs it to the end.

    Photos and paintings are resized to a short side of `size` pixels, results to the size of their photo. Pictures are
    read when they are needed, and Inception features are stored on disk. Besides the networks and `batch` pictures, the
    memory holds only the scores (8 bytes each) and up to a kilobyte for each pair of photo and painting.

    Args:
        collection: from `inst.evaluation.collection.collect`.
        metrics: from `inst.evaluation.metrics.table.load_metrics`, on `device`.
        size: short side in pixels, at least 32. Scores at different sizes cannot be compared.
        batch: number of pairs at a time.
        replicates: number of bootstrap draws.
        seed: random seed of the bootstrap and of the subsets for the extrapolated FID.
        device: the device of the metrics.

    Raises:
        UsageError: there is no such device.
        InstError: no picture could be evaluated.
    """
    run = _EvaluationRun(collection, metrics, size, choose_device(device))
    try:
        done = 0
        for pairs in run.by_painting():
            for start in range(0, len(pairs), batch):
                part = pairs[start : start + batch]
                run.score_pairs(part)
                done += len(part)
                yield Progress(done, len(collection.pairs), collection.pairs[part[-1]].name)
        return run.finish(replicates, seed)
    finally:
        run.close()


class _EvaluationRun:
    def __init__(self, collection: Collection, metrics: Metrics, size: int, device: torch.device) -> None:
        self.collection, self.metrics = collection, metrics
        self.reader, self.scorer = Reader(size), Scorer(metrics, device)
        self.tallies: dict[tuple[Kind, str], Tally] = {}
        self.notes: list[str] = []
        self._paintings = list(dict.fromkeys(pair.painting for pair in collection.pairs))
        self._painting_index = {path: index for index, path in enumerate(self._paintings)}
        self._demo_painting: Path | None = None
        self._loaded_paintings: dict[Path, tuple[Image.Image, BatchFeatures]] = {}

    def close(self) -> None:
        self.reader.close()
        for tally in self.tallies.values():
            tally.close()

    def by_painting(self) -> Iterator[list[int]]:
        """Yield the indices of the pairs, painting by painting."""
        indices = range(len(self.collection.pairs))
        for _, group in groupby(indices, lambda index: self.collection.pairs[index].painting):
            yield list(group)

    def score_pairs(self, indices: Sequence[int]) -> None:
        """Compute the scores of pairs that share one painting."""
        painting_file = self.collection.pairs[indices[0]].painting
        loaded = self._load_painting(painting_file)
        if loaded is None:
            return
        painting_image, painting = loaded
        wrong_painting = self._wrong_painting(painting_file, painting_image)
        for size, members in self._group_by_size(indices).items():
            pairs = [self.collection.pairs[index] for index, _ in members]
            prompts = [pair.prompt for pair in pairs]
            photos = None
            if pairs[0].photo is not None:
                photos = self.scorer.extract([image for _, image in members])
                self._add(PHOTO, "photo", None, members, photos, painting, photos, prompts, painting_file)
            cropped = self.scorer.extract([resize_and_crop(painting_image, size)])
            self._add(PAINTING, "painting", None, members, cropped, painting, photos, prompts, painting_file)
            for method in self.collection.methods:
                self._score_method(method, members, size, painting, wrong_painting, photos)

    def _score_method(
        self,
        method: str,
        members: list[tuple[int, Image.Image]],
        size: Size,
        painting: BatchFeatures,
        wrong_painting: BatchFeatures | None,
        photos: BatchFeatures | None,
    ) -> None:
        available = [
            (place, index) for place, (index, _) in enumerate(members) if method in self.collection.pairs[index].results
        ]
        images = self.reader.read_all((self.collection.pairs[index].results[method], size) for _, index in available)
        readable = [(place, index, image) for (place, index), image in zip(available, images, strict=True) if image]
        if not readable:
            return
        chosen = [(index, image) for _, index, image in readable]
        results = self.scorer.extract([image for _, image in chosen])
        chosen_photos = photos and _select(photos, [place for place, _, _ in readable])
        pairs = [self.collection.pairs[index] for index, _ in chosen]
        prompts = [pair.prompt for pair in pairs]
        self._add(method, "method", method, chosen, results, painting, chosen_photos, prompts, pairs[0].painting)
        if wrong_painting is not None:
            self._add(f"{method}, {WRONG}", "wrong", method, chosen, results, wrong_painting, None, None, None)

    def _group_by_size(self, indices: Sequence[int]) -> dict[Size, list[tuple[int, Image.Image]]]:
        """Group the pairs by the size of the evaluation, each with its photo, or with a result if it has no photo."""
        pairs = [self.collection.pairs[index] for index in indices]
        sources = [pair.photo or next(iter(pair.results.values())) for pair in pairs]
        grouped: dict[Size, list[tuple[int, Image.Image]]] = {}
        images = self.reader.read_all((source, None) for source in sources)
        for index, pair, first in zip(indices, pairs, images, strict=True):
            others = () if pair.photo else pair.results.values()
            image = first or next((other for other in map(self.reader.read, others) if other), None)
            if image is not None:
                grouped.setdefault(image.size, []).append((index, image))
        return grouped

    def _load_painting(self, path: Path) -> tuple[Image.Image, BatchFeatures] | None:
        if path not in self._loaded_paintings:
            image = self.reader.read(path)
            if image is None:
                return None
            while len(self._loaded_paintings) >= 3:  # this painting, the previous one, and the next
                del self._loaded_paintings[next(iter(self._loaded_paintings))]
            self._loaded_paintings[path] = image, self.scorer.extract([image])
        return self._loaded_paintings[path]

    def _wrong_painting(self, path: Path, image: Image.Image) -> BatchFeatures | None:
        """Return the next readable painting (after the last one, the first); a demo painting if there is no other."""
        start = self._painting_index[path]
        for step in range(1, len(self._paintings)):
            loaded = self._load_painting(self._paintings[(start + step) % len(self._paintings)])
            if loaded is not None:
                return loaded[1]
        if self._demo_painting is None:
            self._demo_painting = other_demo_painting(image)
            why = "There is only one painting" if len(self._paintings) == 1 else "Only one painting can be read"
            self.notes.append(f"{why}: the wrong painting is {self._demo_painting.stem}, from InST's demo.")
        loaded = self._load_painting(self._demo_painting)
        return loaded and loaded[1]

    def _add(
        self,
        label: str,
        kind: Kind,
        method: str | None,
        members: list[tuple[int, Image.Image]],
        pictures: BatchFeatures,
        painting: BatchFeatures,
        photos: BatchFeatures | None,
        prompts: Sequence[str | None] | None,
        set_of: Path | None,
    ) -> None:
        """Add the scores of a batch to a row. `set_of` names the painting for FID; None leaves FID out."""
        tally = self.tallies.setdefault((kind, label), Tally(label, kind, method))
        count = len(members)
        tally.add([index for index, _ in members], self.scorer.compare(count, pictures, painting, photos, prompts))
        if set_of is not None and pictures.inception is not None and painting.inception is not None:
            tally.add_features(pictures.inception.expand(count, -1), str(set_of), painting.inception[0])

    def finish(self, replicates: int, seed: int) -> Evaluation:
        order = {"method": 0, "photo": 1, "painting": 2, "wrong": 3}
        tallies = sorted(self.tallies.values(), key=lambda tally: (order[tally.kind], _natural_order(tally.label)))
        problems = [
            *self.collection.problems,
            *self.metrics.problems,
            *sorted(self.reader.problems),
            *self.scorer.problems,
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
            reasons = [*sorted(self.reader.problems), *problems]  # a file that cannot be read explains the most
            raise InstError(f"No picture can be evaluated{f': {reasons[0]}' if reasons else '.'}")
        if distorted := sorted(set(self.reader.distorted)):
            names = ", ".join(distorted[:5]) + (" and others" if len(distorted) > 5 else "")
            self.notes.append(
                f"{len(distorted)} pictures have other proportions than their photos and were distorted: {names}."
            )
        rows = tuple(tally.row(self.collection, self.metrics.columns, replicates, seed) for tally in tallies)
        if self.metrics.inception is not None:
            self.notes.append(_FID_NOTE if any("fid" in row.scores for row in rows) else _NO_FID_NOTE)
        settings = {
            "inst": __version__,
            "short_side": self.reader.short_side,
            "bootstrap_replicates": replicates,
            "seed": seed,
            "similarity": None if encoder is None else encoder.source,
        }
        return Evaluation(self.collection, self.metrics.columns, rows, tuple(problems), tuple(self.notes), settings)


def _natural_order(label: str) -> list[str | float]:
    """Return a sort key that compares numbers by value: vectors-16 comes after vectors-8."""
    parts = re.split(r"(\d+(?:\.\d+)?)", label)
    return [float(part) if place % 2 else part for place, part in enumerate(parts)]


def _select(described: BatchFeatures, places: list[int]) -> BatchFeatures:
    """Return the features of the pictures at `places` of a batch."""

    def take(value: Any) -> Any:
        return [take(item) for item in value] if isinstance(value, list) else value[places]

    features = {key: take(value) for key, value in described.features.items()}
    return BatchFeatures(features, None if described.inception is None else take(described.inception))
