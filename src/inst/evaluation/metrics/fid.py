"""FID (Heusel et al., NeurIPS 2017), extrapolated to infinitely many pictures (Chong and Forsyth, CVPR 2020); ArtFID.

FID_N, the Frechet inception distance of N pictures, is greater than the true distance by about c / N, and c differs
from model to model. So small sets are not only noisy, they also compare unfairly. FID_infinity fits FID_N = a + b / N
to subsets of growing N and returns a.

ArtFID (Wright and Ommer, GCPR 2022) is (1 + LPIPS to the photos) (1 + FID to the paintings).
"""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inst.errors import InstError
from inst.evaluation.metrics.frechet import FeatureStatistics

POINTS = 15
"""Number of subsets for the fit of the line, as in the paper."""
SMALLEST_SUBSET = 5000
"""Pictures in the smallest subset, as in the paper; half of the pictures if there are fewer than 10000."""
FEWEST = 20
"""With fewer pictures, no line is fitted."""
_ROWS = 1024


class FeatureFile:
    """Stores feature vectors [N, D] in a temporary file, in batches, so that the memory does not grow with N.

    2,048 float32 features take 8 kB of disk for each picture, in the folder of temporary files (TMPDIR).

    Raises:
        InstError: the disk is full, or there is no folder of temporary files.
    """

    def __init__(self, dimensions: int) -> None:
        self.dimensions = dimensions
        self.count = 0
        with _disk_errors():
            self._file = tempfile.TemporaryFile(prefix="inst-features-", buffering=0)  # noqa: SIM115 - see `close`

    def append(self, features: Tensor) -> None:
        """Append features [B, D]. Raises InstError if the disk is full."""
        rest = memoryview(np.ascontiguousarray(features.detach().cpu().float().numpy()).tobytes())
        with _disk_errors():
            while rest:
                rest = rest[self._file.write(rest) :]
        self.count += len(features)

    def batches(self, chosen: NDArray[np.int64] | None = None) -> Iterator[Tensor]:
        """Yield all vectors, or those with the indices `chosen`, as [at most 1024, D] in float64."""
        if self.count == 0:
            return
        stored = np.memmap(self._file, np.float32, "r", shape=(self.count, self.dimensions))
        places = np.arange(self.count) if chosen is None else np.sort(chosen)
        for start in range(0, len(places), _ROWS):
            yield torch.from_numpy(stored[places[start : start + _ROWS]]).double()

    def close(self) -> None:
        """Free the disk space."""
        self._file.close()


@contextlib.contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InstError(
            f"The features of FID cannot be stored ({error.strerror or error})",
            "let TMPDIR name a folder on a disk with more space, or leave out fid and artfid",
        ) from None


@dataclass(frozen=True, eq=False)
class Reference:
    """The reference of FID: the mean [D] of features, and a root R [r, D] of their covariance R^T R, in float64."""

    mean: Tensor
    root: Tensor


class ReferenceSet:
    """The set of paintings, each weighted by the number of pictures in its style, as in ArtFID's protocol.

    It stores the features of at most D different paintings; if there are more, only their mean and covariance.
    """

    def __init__(self, dimensions: int) -> None:
        self._dimensions = dimensions
        self._rows: dict[str, tuple[Tensor, int]] = {}
        self._statistics: FeatureStatistics | None = None

    def add(self, name: str, features: Tensor, count: int) -> None:
        """Add `count` to the weight of a painting with features [D]."""
        if self._statistics is None:
            row, before = self._rows.get(name, (features.detach().cpu().double(), 0))
            self._rows[name] = row, before + count
            if len(self._rows) > self._dimensions:
                self._statistics = FeatureStatistics(self._dimensions)
                for row, number in self._rows.values():
                    self._statistics.update(row.expand(number, -1))
                self._rows.clear()
        else:
            self._statistics.update(features.expand(count, -1))

    def reference(self) -> Reference | None:
        """Return the reference; None for fewer than two paintings, which have no covariance."""
        if self._statistics is not None:
            values, vectors = torch.linalg.eigh(self._statistics.covariance)
            return Reference(self._statistics.mean, values.clamp_min(0).sqrt()[:, None] * vectors.T)
        if len(self._rows) < 2:
            return None
        rows = torch.stack([row for row, _ in self._rows.values()])
        counts = torch.tensor([count for _, count in self._rows.values()], dtype=torch.float64)
        mean = counts @ rows / counts.sum()
        return Reference(mean, (rows - mean) * (counts / (counts.sum() - 1)).sqrt()[:, None])


@dataclass(frozen=True)
class FrechetScores:
    """FID of `count` pictures, and FID_infinity, which is None for too few pictures."""

    fid: float
    fid_infinity: float | None
    count: int

    @classmethod
    def of(cls, features: FeatureFile, reference: Reference, seed: int = 0) -> Self | None:
        """Compute the scores; None for fewer than two pictures, or for features that are not finite.

        `seed` is the random seed of the subsets.
        """
        if features.count < 2:
            return None
        fid = distance_to(features.batches(), reference)
        if not math.isfinite(fid):
            return None
        return cls(fid, fid_infinity(features, reference, fid, seed), features.count)


def distance_to(batches: Iterator[Tensor], reference: Reference) -> float:
    """Return the squared Frechet distance of feature vectors, batches of [B, D], to a reference (Heusel et al., eq. 6).

    With Z the centred features / sqrt(N - 1), the trace of (S1 S2)^(1/2) is the sum of the singular values of Z R^T.
    This needs an r x r matrix instead of the root of a D x D matrix, and no rank is lost for few paintings.
    """
    rank = len(reference.root)
    count, total, squares = 0, torch.zeros_like(reference.mean), 0.0
    sums, products = torch.zeros(rank, dtype=torch.float64), torch.zeros(rank, rank, dtype=torch.float64)
    for batch in batches:
        shifted = batch - reference.mean  # close to the final mean, which keeps the later subtraction accurate
        projected = shifted @ reference.root.T
        count += len(batch)
        total += shifted.sum(0)
        squares += shifted.square().sum().item()
        sums += projected.sum(0)
        products += projected.T @ projected
    if not (products.isfinite().all() and reference.root.isfinite().all()):  # eigvalsh would fail
        return math.nan
    offset = (total / count).square().sum().item()
    overlap = torch.linalg.eigvalsh((products - torch.outer(sums, sums) / count) / (count - 1)).clamp_min(0).sqrt()
    variance = (squares - count * offset) / (count - 1)
    distance = offset + variance + reference.root.square().sum().item() - 2 * overlap.sum().item()
    return max(0.0, distance)  # rounding can put the distance of equal sets just below 0


def fid_infinity(features: FeatureFile, reference: Reference, fid: float, seed: int = 0) -> float | None:
    """Return FID_infinity by 15 random subsets with evenly spaced sizes; the largest is all pictures, with FID `fid`.

    None for fewer than 20 pictures. For few pictures the result can be negative and then only means a small distance.
    """
    if features.count < FEWEST:
        return None
    rng = np.random.default_rng(seed)
    sizes = np.linspace(min(SMALLEST_SUBSET, features.count // 2), features.count, POINTS).astype(np.int64)
    sizes = np.unique(sizes)
    distances = [
        fid
        if size == features.count
        else distance_to(features.batches(rng.choice(features.count, size, replace=False)), reference)
        for size in sizes
    ]
    return float(np.polyfit(1 / sizes, distances, 1)[1])


def art_fid(lpips: float, fid: float) -> float:
    """Return (1 + LPIPS)(1 + FID), eq. 4 of Wright and Ommer; lower is better, the minimum is 1."""
    return (1 + lpips) * (1 + fid)
