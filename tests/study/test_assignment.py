"""Everybody is shown different pairs; methods, pairs and sides are shown equally often."""

import random
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from inst.study.assignment import arrange, choose_pairs


@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=5),
    st.integers(1, 30),
    st.integers(1, 25),
    st.integers(0, 2**32),
)
@settings(deadline=None)
def test_methods_and_pairs_are_shown_equally_often(sizes: list[int], count: int, people: int, seed: int) -> None:
    numbers = iter(range(1000))
    pairs = {f"method {index}": [next(numbers) for _ in range(size)] for index, size in enumerate(sizes)}
    shown: Counter[int] = Counter()
    for person in range(people):
        chosen = choose_pairs(pairs, shown, count, random.Random(f"{seed} {person}"))
        assert len(chosen) == len(set(chosen)) == min(count, sum(sizes))
        shown.update(chosen)
    for ids in pairs.values():
        times = [shown[pair] for pair in ids]
        assert max(times) - min(times) <= 1
    if min(sizes) * len(sizes) >= count:  # otherwise a small method runs out of pairs
        totals = [sum(shown[pair] for pair in ids) for ids in pairs.values()]
        assert max(totals) - min(totals) <= 1


@given(st.integers(0, 30), st.integers(0, 4), st.integers(0, 2**32))
@settings(deadline=None)
def test_half_of_the_pairs_have_ours_first(pairs: int, checks: int, seed: int) -> None:
    trials = arrange(range(pairs), range(100, 100 + checks), random.Random(seed))
    assert sorted(trial.pair for trial in trials) == [*range(pairs), *range(100, 100 + checks)]
    for group in ([t for t in trials if t.pair < 100], [t for t in trials if t.pair >= 100]):
        first = sum(trial.ours_first for trial in group)
        assert abs(2 * first - len(group)) <= 1


def test_order_and_side_are_random_but_the_same_for_the_same_seed() -> None:
    made = [tuple(arrange(range(26), [], random.Random(seed))) for seed in (1, 1, 2)]
    assert made[0] == made[1] != made[2]
    firsts = Counter(arrange(range(26), [], random.Random(seed))[0] for seed in range(2000))
    assert len(firsts) == 52  # any pair, on either side
    sides = Counter(trial.ours_first for trial in firsts.elements())
    assert abs(sides[True] - 1000) < 150
