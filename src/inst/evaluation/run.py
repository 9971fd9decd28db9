"""The course of an evaluation: batch by batch through the pictures, and then the rows of the table."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from inst.errors import Argument, InstError
from inst.evaluation.collection import Collection
from inst.evaluation.judging import BatchFeatures, Reader, Scorer, Size, other_demo_painting, resize_and_crop
from inst.evaluation.metrics.table import Metrics
from inst.evaluation.results import Evaluation, Kind, Tally
from inst.evaluation.score_file import BatchScores, RowScores, ScoreFile
from inst.version import __version__

_FID_NOTE = (
    "FID and ArtFID of few pictures are too high: compare them only between rows with the same number of pictures. Do "
    "not compare them with published values, which use other sizes; published ArtFID uses other Inception weights."
)
_NO_FID_NOTE = "FID compares sets: it needs at least two pictures and two paintings."


class EvaluationRun:
    """An evaluation that is going on; see `inst.evaluation.evaluate.evaluate`.

    Args:
        collection: the pictures.
        metrics: on `device`.
        size: short side of photos and paintings in pixels.
        device: device of the metrics.
        stored: where scores are stored and taken from; None to compute all and store none.
    """

    def __init__(
        self, collection: Collection, metrics: Metrics, size: int, device: torch.device, stored: ScoreFile | None
    ) -> None:
        self.collection, self.metrics, self.stored = collection, metrics, stored
        self.reader, self.scorer = Reader(size), Scorer(metrics, device)
        self.tallies: dict[tuple[Kind, str | None], Tally] = {}
        self.notes: list[str] = []
        self._paintings = list(dict.fromkeys(pair.painting for pair in collection.pairs))
        self._painting_index = {path: index for index, path in enumerate(self._paintings)}
        self._demo_painting: Path | None = None
        self._loaded_paintings: dict[Path, tuple[Image.Image, BatchFeatures]] = {}
        self._rows: list[RowScores] = []
        self._remarks = {
            "pictures": self.reader.problems,
            "prompts": self.scorer.problems,
            "distorted": self.reader.distorted,
            "notes": self.notes,
        }
        self._mark: list[Any] = []
        if stored is not None:  # each painting may be the wrong one for another
            self._mark = [__version__, size, self.scorer.mark(), self.reader.hashes(self._paintings)]

    def close(self) -> None:
        self.reader.close()
        for tally in self.tallies.values():
            tally.close()

    def by_painting(self) -> Iterator[list[int]]:
        """Yield the indices of the pairs, painting by painting."""
        indices = range(len(self.collection.pairs))
        for _, group in groupby(indices, lambda index: self.collection.pairs[index].painting):
            yield list(group)

    def score(self, indices: Sequence[int]) -> bool:
        """Compute the scores of pairs that share one painting; or, if they are stored, take them and return True."""
        found = key = None
        if self.stored is not None:
            key = self._key(indices)
            found = self.stored.read(key, len(indices), len(self.scorer.keys), self.collection.methods)
        if found is None:
            batch = self._compute(indices)
            if self.stored is not None and key is not None and batch.rows:
                self.stored.add(key, batch)
        else:
            batch = found
            for kind, lines in self._remarks.items():
                lines += batch.remarks.get(kind, [])
        painting = str(self.collection.pairs[indices[0]].painting)
        for row in batch.rows:
            tally = self.tallies.setdefault((row.kind, row.method), Tally(row.kind, row.method))
            tally.add([indices[place] for place in row.places], row.scores)
            if row.features is not None and batch.painting is not None:
                tally.add_features(row.features.expand(len(row.places), -1), painting, batch.painting)
        return found is not None

    def _key(self, indices: Sequence[int]) -> str:
        """Return a hash of all that the scores of these pairs depend on."""
        pairs = [self.collection.pairs[index] for index in indices]
        named = [[pair.name, pair.prompt, pair.photo is None, *pair.results] for pair in pairs]
        files = [file for pair in pairs for file in (pair.painting, pair.photo, *pair.results.values()) if file]
        content = [self._mark, self.collection.methods, named, *map(str, files), self.reader.hashes(files)]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def _compute(self, indices: Sequence[int]) -> BatchScores:
        before = {kind: len(lines) for kind, lines in self._remarks.items()}
        self._rows, features = [], None
        path = self.collection.pairs[indices[0]].painting
        if (loaded := self._load_painting(path)) is not None:
            image, painting = loaded
            features = None if painting.inception is None else painting.inception[0]
            wrong_painting = self._wrong_painting(path, image)
            for size, members in self._group_by_size(indices).items():
                self._compare(indices, members, size, image, painting, wrong_painting)
        remarks = {kind: lines[before[kind] :] for kind, lines in self._remarks.items()}
        return BatchScores(self._rows, features, remarks)

    def _compare(
        self,
        indices: Sequence[int],
        members: list[tuple[int, Image.Image]],
        size: Size,
        painting_image: Image.Image,
        painting: BatchFeatures,
        wrong_painting: BatchFeatures | None,
    ) -> None:
        """Compute the scores of pairs of one size: `members` are their places in the batch and their photos."""
        places = [place for place, _ in members]
        pairs = [self.collection.pairs[indices[place]] for place in places]
        prompts = [pair.prompt for pair in pairs]
        photos = None
        if pairs[0].photo is not None:
            photos = self.scorer.extract([image for _, image in members])
            self._add("photo", None, places, photos, painting, photos, prompts)
        cropped = self.scorer.extract([resize_and_crop(painting_image, size)])
        self._add("painting", None, places, cropped, painting, photos, prompts)
        for method in self.collection.methods:
            available = [index for index, pair in enumerate(pairs) if method in pair.results]
            images = self.reader.read_all((pairs[index].results[method], size) for index in available)
            readable = [(index, image) for index, image in zip(available, images, strict=True) if image]
            if not readable:
                continue
            chosen = [index for index, _ in readable]
            results = self.scorer.extract([image for _, image in readable])
            own = [places[index] for index in chosen]
            own_prompts = [prompts[index] for index in chosen]
            self._add("method", method, own, results, painting, photos and _select(photos, chosen), own_prompts)
            if wrong_painting is not None:
                self._add("wrong", method, own, results, wrong_painting, None, None)

    def _group_by_size(self, indices: Sequence[int]) -> dict[Size, list[tuple[int, Image.Image]]]:
        """Group places in the batch by the size of the evaluation, each with its photo, or a result if it has none."""
        pairs = [self.collection.pairs[index] for index in indices]
        sources = [pair.photo or next(iter(pair.results.values())) for pair in pairs]
        grouped: dict[Size, list[tuple[int, Image.Image]]] = {}
        images = self.reader.read_all((source, None) for source in sources)
        for place, (pair, first) in enumerate(zip(pairs, images, strict=True)):
            others = () if pair.photo else pair.results.values()
            image = first or next((other for other in map(self.reader.read, others) if other), None)
            if image is not None:
                grouped.setdefault(image.size, []).append((place, image))
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
        kind: Kind,
        method: str | None,
        places: list[int],
        pictures: BatchFeatures,
        painting: BatchFeatures,
        photos: BatchFeatures | None,
        prompts: Sequence[str | None] | None,
    ) -> None:
        """Add the scores of some places of the batch to a row."""
        scores = self.scorer.compare(len(places), pictures, painting, photos, prompts)
        # FID cannot tell which painting a picture is compared with, so a wrong one has none.
        self._rows.append(RowScores(kind, method, places, scores, None if kind == "wrong" else pictures.inception))

    def finish(self, replicates: int, seed: int) -> Evaluation:
        order = {"method": 0, "photo": 1, "painting": 2, "wrong": 3}
        tallies = sorted(self.tallies.values(), key=lambda tally: (order[tally.kind], _natural_order(tally.label)))
        problems = [
            *self.collection.problems,
            *self.metrics.problems,
            *sorted(set(self.reader.problems)),
            *dict.fromkeys(self.scorer.problems),
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
            reasons = [*sorted(set(self.reader.problems)), *problems]  # a file that cannot be read explains the most
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
        return Evaluation(
            self.collection, self.metrics.columns, rows, tuple(problems), tuple(dict.fromkeys(self.notes)), settings
        )


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
