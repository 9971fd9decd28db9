"""Compute confidence intervals of means by bootstrap over photos and paintings, not over single pictures."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95


def mean_intervals(
    values: NDArray[np.float64],
    photos: NDArray[np.int64],
    paintings: NDArray[np.int64],
    *,
    replicates: int = 2000,
    seed: int = 0,
) -> list[tuple[float, float]] | None:
    """Return 95 % percentile intervals of means by the pigeonhole bootstrap (Owen, Annals of Applied Statistics 2007).

    Pictures that share a photo or a painting are alike, so drawing single pictures would give too narrow intervals.
    Each replicate draws the photos with replacement, and the paintings too. The weight of a picture is the number of
    draws of its photo times the number of draws of its painting. If every photo goes with one painting only (or every
    painting with one photo only), only the larger groups are drawn. With one photo for each painting it is the ordinary
    bootstrap.

    Args:
        values: [N, K] scores of N pictures, K scores each.
        photos, paintings: [N] numbers of the photo and of the painting of each picture.
        replicates: number of bootstrap draws.
        seed: random seed of the draws.

    Returns:
        The lower and upper end for each of the K scores; None if there is only one photo and one painting, or
        if no draw met a picture.
    """
    factors = _factors(photos, paintings)
    if not factors:
        return None
    rng = np.random.default_rng(seed)
    means, count_means = np.empty((replicates, values.shape[1])), 0
    for _ in range(replicates):
        weights = np.ones(len(values))
        for group in factors:
            count = group.max() + 1
            weights *= rng.multinomial(count, np.full(count, 1 / count))[group]
        if total := weights.sum():  # sparse pairings can miss every picture
            means[count_means] = weights @ values / total
            count_means += 1
    if not count_means:
        return None
    ends = np.quantile(means[:count_means], [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return [(float(low), float(high)) for low, high in ends.T]


def _factors(photos: NDArray[np.int64], paintings: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Return the factors to draw: for each factor the group number of every picture, from 0 without gaps."""
    (photo_names, photo), (painting_names, painting) = (
        np.unique(labels, return_inverse=True) for labels in (photos, paintings)
    )
    pairs = len(np.unique(photo * len(painting_names) + painting))
    if len(photo_names) == len(painting_names) == 1:
        return []
    if pairs == len(photo_names):
        return [painting] if len(painting_names) > 1 else [photo]
    if pairs == len(painting_names):
        return [photo] if len(photo_names) > 1 else [painting]
    return [photo, painting]
