"""The Frechet distance between two sets of feature vectors (Heusel et al., NeurIPS 2017, eq. 6)."""

import torch
from torch import Tensor


class FeatureStatistics:
    """Mean and covariance of feature vectors, accumulated from batches in float64 on the CPU."""

    def __init__(self, dimensions: int) -> None:
        self.count = 0
        self._mean = torch.zeros(dimensions, dtype=torch.float64)
        self._scatter = torch.zeros(dimensions, dimensions, dtype=torch.float64)

    def update(self, features: Tensor) -> None:
        """Add features [B, D], B of at least 1."""
        batch = features.detach().to("cpu", torch.float64)
        mean = batch.mean(0)
        centred, shift, total = batch - mean, mean - self._mean, self.count + len(batch)
        # The pairwise update of Chan et al. (1979): plain sums of squares lose precision if means are large.
        self._scatter += centred.T @ centred + torch.outer(shift, shift) * (self.count * len(batch) / total)
        self._mean += shift * (len(batch) / total)
        self.count = total

    @property
    def mean(self) -> Tensor:
        """Return the mean, [D] in float64."""
        return self._mean.clone()

    @property
    def covariance(self) -> Tensor:
        """Return the covariance, [D, D] in float64, with the divisor N - 1.

        Raises:
            ValueError: fewer than two feature vectors were given.
        """
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 feature vectors, not {self.count}")
        return self._scatter / (self.count - 1)


def frechet_distance(mean1: Tensor, covariance1: Tensor, mean2: Tensor, covariance2: Tensor) -> float:
    """Return |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) of two Gaussians with means [D] and covariances [D, D].

    The trace of the square root is the sum of the square roots of the eigenvalues of S1^(1/2) S2 S1^(1/2). This matrix
    is symmetric, so there are no complex numbers, and covariances of fewer samples than dimensions are allowed.
    """
    m1, s1, m2, s2 = (value.to("cpu", torch.float64) for value in (mean1, covariance1, mean2, covariance2))
    values, vectors = torch.linalg.eigh(s1)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    overlap = torch.linalg.eigvalsh(root @ s2 @ root).clamp_min(0).sqrt().sum()
    distance = (m1 - m2).square().sum() + s1.trace() + s2.trace() - 2 * overlap
    return max(0.0, distance.item())  # rounding can put the distance of equal sets just below 0
