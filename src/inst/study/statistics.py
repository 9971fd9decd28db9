"""Statistics of a study, as pure functions of counts: shares of votes, agreement, scores of factors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

from inst.study.factors import FACTORS


@dataclass(frozen=True)
class Share:
    """The share of votes for ours. Without votes, all attributes except the counts are None.

    Attributes:
        votes, for_ours: number of votes, and of votes for ours.
        share: share of votes for ours, 0 to 1.
        wilson: 95 % confidence interval by Wilson's score method, which assumes independent votes.
        resampled: 95 % interval by resampling whole participants, because the votes of one person are alike.
        p_value: p-value of a two-sided exact binomial test against one half.
        p_holm: p-value adjusted for the number of methods (Holm 1979); None for the total.
    """

    votes: int
    for_ours: int
    share: float | None
    wilson: tuple[float, float] | None
    resampled: tuple[float, float] | None
    p_value: float | None
    p_holm: float | None = None


def share_of_votes(by_participant: Mapping[int, tuple[int, int]], seed: int = 0, resamples: int = 4000) -> Share:
    """Return the share of votes for ours, with intervals and a test.

    Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927.

    Args:
        by_participant: (votes for ours, votes) of each participant.
        seed, resamples: random seed and number of draws of the percentile bootstrap over participants.
    """
    counts = np.array([count for count in by_participant.values() if count[1]], dtype=np.int64).reshape(-1, 2)
    for_ours, votes = (int(total) for total in counts.sum(axis=0))
    if not votes:
        return Share(0, 0, None, None, None, None)
    test = binomtest(for_ours, votes, 0.5)
    wilson = test.proportion_ci(0.95, method="wilson")
    resampled = None
    if len(counts) > 1:
        rng = np.random.default_rng(seed)
        # Draws how often each participant is chosen, so that all sums are one matrix product.
        sums = rng.multinomial(len(counts), np.full(len(counts), 1 / len(counts)), size=resamples) @ counts
        low, high = np.quantile(sums[:, 0] / sums[:, 1], (0.025, 0.975))
        resampled = (float(low), float(high))
    return Share(
        votes, for_ours, for_ours / votes, (float(wilson.low), float(wilson.high)), resampled, float(test.pvalue)
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values so that the significance level holds for all tests together (Holm 1979)."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def krippendorff_alpha(units: Sequence[Sequence[Hashable]]) -> float | None:
    """Return Krippendorff's alpha for nominal values: 1 is full agreement, 0 is agreement by chance.

    There may be any number of raters, and each may rate any of the units. Krippendorff, "Computing Krippendorff's
    Alpha-Reliability" (2011), section C: alpha = 1 - (n - 1) sum_u sum_{c<k} n_uc n_uk / (m_u - 1) / sum_{c<k} n_c n_k.

    Args:
        units: the values that each unit was given. Units with fewer than two values do not count.

    Returns:
        Alpha; None if no unit was rated twice, or if there is only one value, so that chance agrees too.
    """
    counted = [Counter(unit) for unit in units if len(unit) > 1]
    totals: Counter[Hashable] = sum(counted, Counter())
    everything = totals.total()
    expected = everything**2 - sum(count**2 for count in totals.values())
    if not expected:
        return None
    observed = sum((unit.total() ** 2 - sum(n**2 for n in unit.values())) / (unit.total() - 1) for unit in counted)
    return 1 - (everything - 1) * observed / expected


def pairwise_agreement(units: Sequence[Sequence[Hashable]]) -> float | None:
    """Return how often two raters of the same unit gave the same value, 0 to 1; None if no unit was rated twice."""
    counted = [Counter(unit) for unit in units if len(unit) > 1]
    if not counted:
        return None
    same = [
        sum(n * (n - 1) for n in unit.values()) / (unit.total() * (unit.total() - 1))
        for unit in counted
    ]  # fmt: skip
    return sum(same) / len(same)


def factor_scores(rankings: Sequence[Sequence[str]], factors: Sequence[str] = FACTORS) -> dict[str, float]:
    """Return each factor's score: sum(frequency x weight) / number of rankings (the paper's ranking survey).

    The first of k factors has the weight k, the last 1. A factor that is left out gets 0, and the ranking still counts.
    The scores add up to k (k + 1) / 2 only if nobody leaves out a factor.

    Args:
        rankings: the ranking of each participant who answered: factors, most important first.
        factors: all factors.

    Raises:
        ValueError: there are no rankings.
    """
    if not rankings:
        raise ValueError("nobody ranked the factors")
    weights = dict.fromkeys(factors, 0)
    for ranking in rankings:
        for place, factor in enumerate(ranking):
            weights[factor] += len(factors) - place
    return {factor: weight / len(rankings) for factor, weight in weights.items()}
