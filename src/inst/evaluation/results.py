"""What an evaluation comes to: rows of figures with their intervals, kept as compactly as the pictures are many."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from inst.evaluation.bootstrap import mean_intervals
from inst.evaluation.collection import Collection, Pair
from inst.evaluation.metrics.fid import FeatureFile, FrechetFigures, ReferenceSet, art_fid
from inst.evaluation.metrics.table import Column

Kind = Literal["method", "photo", "painting", "wrong"]
"""Of a row: a method, or a control: the photo unchanged, the painting unchanged, a wrong painting's style."""


@dataclass(frozen=True)
class Figure:
    """A mean over pictures with its 95 % interval, or the figure of a set, which has none."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, eq=False)
class Row:
    """A method or a control.

    Attributes:
        label: what to call it.
        kind: "method", or which control.
        method: whose pictures; None where they are nobody's.
        figures: by the column's key; a column that says nothing here is not among them.
        pairs: [n] which of the collection's pairs, in the order of `values`.
        values: [n, K] figures of the single pictures, for the columns that are not of sets; NaN for none.
    """

    label: str
    kind: Kind
    method: str | None
    figures: Mapping[str, Figure]
    pairs: NDArray[np.int64]
    values: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The outcome.

    Attributes:
        collection: what was judged.
        columns: of the table.
        rows: methods, then controls.
        problems: what was left out, one line each: not empty means that the figures are of less than was asked for.
        notes: what a reader should know.
        settings: what the figures depend on.
    """

    collection: Collection
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    settings: Mapping[str, Any]

    @property
    def picture_columns(self) -> tuple[Column, ...]:
        """The columns that single pictures have figures in: those of `Row.values`."""
        return tuple(column for column in self.columns if column.against != "set")


@dataclass(eq=False)
class Tally:
    """A row under way: takes the figures of batches, and features for FID."""

    label: str
    kind: Kind
    method: str | None
    pairs: array[int] = field(default_factory=lambda: array("q"))
    values: array[float] = field(default_factory=lambda: array("d"))
    features: FeatureFile | None = None
    reference: ReferenceSet | None = None

    def add(self, pairs: Sequence[int], figures: Tensor) -> None:
        """Take in the figures [n, K], float64, of the pairs with these numbers."""
        self.pairs.extend(pairs)
        self.values.frombytes(figures.numpy().tobytes())

    def add_features(self, features: Tensor, painting: str, painting_features: Tensor) -> None:
        """Take in Inception's features [n, D] of pictures, and [D] of the painting that they were made after."""
        if self.features is None or self.reference is None:
            self.features, self.reference = FeatureFile(features.shape[1]), ReferenceSet(features.shape[1])
        self.features.append(features)
        self.reference.add(painting, painting_features, len(features))

    def close(self) -> None:
        """Give the disk space back."""
        if self.features is not None:
            self.features.close()

    def row(self, collection: Collection, columns: Sequence[Column], replicates: int, seed: int) -> Row:
        """The finished row: means, intervals by bootstrap, and the figures of the set."""
        keys = [column.key for column in columns if column.against != "set"]
        pairs = np.asarray(self.pairs)  # which share the memory
        values = np.asarray(self.values).reshape(len(pairs), len(keys))
        photos, paintings = _labels([collection.pairs[number] for number in pairs])
        finite = np.isfinite(values)
        figures: dict[str, Figure] = {}
        for known in np.unique(finite.T, axis=0):
            if known.any():  # columns that know the same pictures are drawn together
                places = np.flatnonzero((finite == known[:, None]).all(axis=0))
                some = values[known][:, places]
                ends = mean_intervals(some, photos[known], paintings[known], replicates=replicates, seed=seed)
                for index, place in enumerate(places):
                    figures[keys[place]] = Figure(float(some[:, index].mean()), *(ends[index] if ends else ()))
        figures |= self._figures_of_set({column.key for column in columns}, figures.get("lpips-alex"), seed)
        return Row(self.label, self.kind, self.method, figures, pairs, values)

    def _figures_of_set(self, wanted: set[str], lpips: Figure | None, seed: int) -> dict[str, Figure]:
        reference = None if self.reference is None else self.reference.reference()
        if self.features is None or reference is None:
            return {}
        found = FrechetFigures.of(self.features, reference, seed)
        if found is None:
            return {}
        figures: dict[str, Figure] = {}
        for suffix, fid in (("", found.fid), ("-inf", found.fid_infinity)):
            if fid is not None:
                figures[f"fid{suffix}"] = Figure(fid)
                if lpips is not None and "artfid" in wanted:
                    figures[f"artfid{suffix}"] = Figure(art_fid(lpips.value, fid))
        return figures


def _labels(pairs: Sequence[Pair]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Each pair's photo and painting by number. Pictures without a photo are each their own."""
    photos: dict[str, int] = {}
    paintings: dict[Path, int] = {}
    return (
        np.array([photos.setdefault(str(pair.photo or pair.name), len(photos)) for pair in pairs]),
        np.array([paintings.setdefault(pair.painting, len(paintings)) for pair in pairs]),
    )
