"""Which pairs a participant is shown, in which order and on which side."""

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

    Each time the method that was shown least, in it the pair that was shown least; ties are broken at random.

    Args:
        pairs: ids of pairs by method.
        shown: how often each pair was shown to others; 0 where it is missing.
        count: how many to choose; all of them where there are fewer.

    Returns:
        Different pairs, in no particular order.
    """
    left = {method: list(ids) for method, ids in pairs.items() if ids}
    times = {method: sum(shown.get(pair, 0) for pair in ids) for method, ids in left.items()}
    chosen: list[int] = []
    while left and len(chosen) < count:
        method = min(left, key=lambda name: (times[name], rng.random()))
        pair = min(left[method], key=lambda one: (shown.get(one, 0), rng.random()))
        left[method].remove(pair)
        times[method] += 1
        chosen.append(pair)
        if not left[method]:
            del left[method]
    return chosen


def arrange(pairs: Sequence[int], checks: Sequence[int], rng: random.Random) -> list[Assigned]:
    """Put pairs and attention checks into random order and onto random sides.

    Ours comes first in half of the pairs, and in half of the checks: whoever always takes the same side helps nobody.
    """
    trials = []
    for group in (pairs, checks):
        odd = rng.random() < 0.5
        sides = [(index + odd) % 2 == 0 for index in range(len(group))]
        rng.shuffle(sides)
        trials += [Assigned(pair, side) for pair, side in zip(group, sides, strict=True)]
    rng.shuffle(trials)
    return trials
