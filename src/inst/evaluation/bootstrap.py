"""Confidence intervals of means by bootstrap, over photos and paintings rather than over single pictures."""

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
    """The 95 % percentile intervals of means by the pigeonhole bootstrap (Owen, Annals of Applied Statistics 2007).

    Pictures that share a photo or a painting are alike, so drawing pictures one by one would promise too much. Each
    replicate draws the photos with replacement, and the paintings likewise; a picture counts as often as its photo was
    drawn times as often as its painting was. Where every photo goes with one painting only (or every painting with one
    photo only), the larger groups alone are drawn; with one photo to a painting it is the ordinary bootstrap.

    Args:
        values: [N, K] figures of N pictures, K of each.
        photos, paintings: [N] numbers of the photo and of the painting that each picture belongs to.
        replicates: how many times to draw.
        seed: of the draws.

    Returns:
        The lower and the upper end for each of the K; None where there is one photo and one painting only.
    """
    factors = _factors(photos, paintings)
    if not factors:
        return None
    rng = np.random.default_rng(seed)
    means = []
    for _ in range(replicates):
        weights = np.ones(len(values))
        for group in factors:
            count = group.max() + 1
            weights *= rng.multinomial(count, np.full(count, 1 / count))[group]
        if total := weights.sum():  # sparse pairings can miss every picture
            means.append(weights @ values / total)
    ends = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return [(float(low), float(high)) for low, high in ends.T]


def _factors(photos: NDArray[np.int64], paintings: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """What is drawn: for each factor the number of every picture's group, counted from 0 without gaps."""
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
