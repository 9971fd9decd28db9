"""Assign pairs to participants: which pairs, in which order, and with which result on which side."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Assigned:
    """One trial of a participant: the pair's id, and whether our result comes first (left; above, on a phone)."""

    pair: int
    ours_first: bool


def choose_pairs(
    pairs: Mapping[str, Sequence[int]], shown: Mapping[int, int], count: int, rng: random.Random
) -> list[int]:
    """Choose pairs for one participant so that methods, and the pairs of a method, are shown equally often.

    Each step takes the method that was shown least often, and its pair that was shown least often. Ties are random.

    Args:
        pairs: ids of pairs by method.
        shown: how often each pair was shown to others; a missing pair means 0.
        count: number of pairs to choose; all pairs if there are fewer.
        rng: random numbers for ties.

    Returns:
        Different pairs, in no particular order.
    """
    remaining = {method: list(ids) for method, ids in pairs.items() if ids}
    times_shown = {method: sum(shown.get(pair, 0) for pair in ids) for method, ids in remaining.items()}
    chosen: list[int] = []
    while remaining and len(chosen) < count:
        method = min(remaining, key=lambda name: (times_shown[name], rng.random()))
        pair = min(remaining[method], key=lambda pair_id: (shown.get(pair_id, 0), rng.random()))
        remaining[method].remove(pair)
        times_shown[method] += 1
        chosen.append(pair)
        if not remaining[method]:
            del remaining[method]
    return chosen


def arrange(pairs: Sequence[int], checks: Sequence[int], rng: random.Random) -> list[Assigned]:
    """Put pairs and attention checks into random order, with our result on random sides.

    Ours comes first in half of the pairs, and in half of the checks, so that participants who always choose the same
    side favour no method.
    """
    trials = []
    for group in (pairs, checks):
        odd = rng.random() < 0.5
        sides = [(index + odd) % 2 == 0 for index in range(len(group))]
        rng.shuffle(sides)
        trials += [Assigned(pair, side) for pair, side in zip(group, sides, strict=True)]
    rng.shuffle(trials)
    return trials
