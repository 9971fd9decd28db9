"""The results of an evaluation: rows of scores with their intervals, stored compactly for many pictures."""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from inst.evaluation.bootstrap import mean_intervals
from inst.evaluation.collection import Collection, Pair
from inst.evaluation.metrics.fid import FeatureFile, FrechetScores, ReferenceSet, art_fid
from inst.evaluation.metrics.table import Column

Kind = Literal["method", "photo", "painting", "wrong"]
"""The kind of a row: a method, or a control (the unchanged photo, the unchanged painting, a wrong painting)."""
KINDS: tuple[Kind, ...] = get_args(Kind)

PHOTO, PAINTING, WRONG = "photo unchanged", "painting unchanged", "wrong painting"
"""The controls. The last one follows a method's name: the method's pictures, compared with a wrong painting."""


@dataclass(frozen=True)
class Score:
    """A number in a table of metrics: a mean over pictures with its 95 % interval, or a score of a set without one."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, eq=False)
class Row:
    """A method or a control.

    Attributes:
        label: the name of the row.
        kind: "method", or the kind of the control.
        method: the method that made the pictures; None for unchanged photos and paintings.
        scores: the scores by the column's key; a column without a score in this row is missing.
        pairs: [n] indices of the collection's pairs, in the order of `values`.
        values: [n, K] scores of the single pictures, for the columns that do not compare sets; NaN means no score.
    """

    label: str
    kind: Kind
    method: str | None
    scores: Mapping[str, Score]
    pairs: NDArray[np.int64]
    values: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The result of an evaluation.

    Attributes:
        collection: the pictures that were evaluated.
        columns: the columns of the table.
        rows: methods, then controls.
        problems: what was left out, one line each; if not empty, the scores cover less than was asked for.
        notes: remarks for the reader of the table.
        settings: the settings that the scores depend on.
    """

    collection: Collection
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    settings: Mapping[str, Any]

    @property
    def picture_columns(self) -> tuple[Column, ...]:
        """Return the columns in which single pictures have scores: the columns of `Row.values`."""
        return tuple(column for column in self.columns if column.against != "set")


def row_label(kind: Kind, method: str | None) -> str:
    """Return the name of a row."""
    if method is None:
        return PHOTO if kind == "photo" else PAINTING
    return f"{method}, {WRONG}" if kind == "wrong" else method


@dataclass(eq=False)
class Tally:
    """An unfinished row: collects the scores of batches, and the features for FID."""

    kind: Kind
    method: str | None
    pairs: array[int] = field(default_factory=lambda: array("q"))
    values: array[float] = field(default_factory=lambda: array("d"))
    features: FeatureFile | None = None
    reference: ReferenceSet | None = None

    @property
    def label(self) -> str:
        return row_label(self.kind, self.method)

    def add(self, pairs: Sequence[int], scores: Tensor) -> None:
        """Add the scores [n, K], float64, of the pairs with these indices."""
        self.pairs.extend(pairs)
        self.values.frombytes(scores.numpy().tobytes())

    def add_features(self, features: Tensor, painting: str, painting_features: Tensor) -> None:
        """Add the Inception features [n, D] of pictures, and [D] of the painting whose style they have."""
        if self.features is None or self.reference is None:
            self.features, self.reference = FeatureFile(features.shape[1]), ReferenceSet(features.shape[1])
        self.features.append(features)
        self.reference.add(painting, painting_features, len(features))

    def close(self) -> None:
        """Free the disk space."""
        if self.features is not None:
            self.features.close()

    def row(self, collection: Collection, columns: Sequence[Column], replicates: int, seed: int) -> Row:
        """Return the finished row: means, bootstrap intervals, and the scores of the set."""
        keys = [column.key for column in columns if column.against != "set"]
        pairs = np.asarray(self.pairs)  # without a copy, to save memory
        values = np.asarray(self.values).reshape(len(pairs), len(keys))
        photos, paintings = _group_numbers([collection.pairs[index] for index in pairs])
        finite = np.isfinite(values)
        scores: dict[str, Score] = {}
        for known in np.unique(finite.T, axis=0):
            if known.any():  # columns with scores for the same pictures share the bootstrap draws
                places = np.flatnonzero((finite == known[:, None]).all(axis=0))
                known_values = values[known][:, places]
                intervals = mean_intervals(
                    known_values, photos[known], paintings[known], replicates=replicates, seed=seed
                )
                for index, place in enumerate(places):
                    interval = intervals[index] if intervals else ()
                    scores[keys[place]] = Score(float(known_values[:, index].mean()), *interval)
        scores |= self._set_scores({column.key for column in columns}, scores.get("lpips-alex"), seed)
        return Row(self.label, self.kind, self.method, scores, pairs, values)

    def _set_scores(self, wanted: set[str], lpips: Score | None, seed: int) -> dict[str, Score]:
        reference = None if self.reference is None else self.reference.reference()
        if self.features is None or reference is None:
            return {}
        frechet = FrechetScores.of(self.features, reference, seed)
        if frechet is None:
            return {}
        scores: dict[str, Score] = {}
        for suffix, fid in (("", frechet.fid), ("-inf", frechet.fid_infinity)):
            if fid is not None and math.isfinite(fid):
                scores[f"fid{suffix}"] = Score(fid)
                if lpips is not None and "artfid" in wanted:
                    scores[f"artfid{suffix}"] = Score(art_fid(lpips.value, fid))
        return scores


def _group_numbers(pairs: Sequence[Pair]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the number of each pair's photo and of its painting. Each pair without a photo gets its own number."""
    photos: dict[str, int] = {}
    paintings: dict[Path, int] = {}
    return (
        np.array([photos.setdefault(str(pair.photo or pair.name), len(photos)) for pair in pairs]),
        np.array([paintings.setdefault(pair.painting, len(paintings)) for pair in pairs]),
    )
