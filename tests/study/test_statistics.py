"""The figures against published and hand-worked ones."""

import pytest

from inst.study.factors import FACTORS
from inst.study.statistics import (
    factor_scores,
    holm,
    krippendorff_alpha,
    pairwise_agreement,
    share_of_votes,
)

# Rankings that give the paper's scores: 60 people, most of whom leave factors out. The paper does not print them; these
# were found by integer programming, and show that its scores can arise so.
PUBLISHED_RANKINGS = [
    (25, "subjects brushstroke ornament material colour"),
    (14, "material shapes subjects"),
    (10, "subjects material shapes brushstroke colour"),
    (6, "subjects shapes brushstroke"),
    (3, "ornament subjects brushstroke shapes colour material"),
    (1, "shapes subjects material colour ornament"),
    (1, "ornament colour shapes material subjects brushstroke"),
]
PUBLISHED_SCORES = {
    "subjects": 5.4,
    "material": 3.65,
    "brushstroke": 3.2,
    "shapes": 2.65,
    "ornament": 2.1,
    "colour": 1.4,
}


def test_partial_rankings_give_the_published_scores() -> None:
    rankings = [text.split() for count, text in PUBLISHED_RANKINGS for _ in range(count)]
    assert len(rankings) == 60
    scores = factor_scores(rankings)
    assert scores == pytest.approx(PUBLISHED_SCORES, abs=1e-12)
    assert sum(scores.values()) == pytest.approx(18.4)


def test_complete_rankings_add_up_to_21() -> None:
    scores = factor_scores([list(FACTORS), list(reversed(FACTORS))])
    assert scores == dict.fromkeys(FACTORS, 3.5)
    assert list(factor_scores([list(FACTORS)]).values()) == [6, 5, 4, 3, 2, 1]


def test_a_factor_left_out_of_a_ranking_counts_0_and_the_person_still_counts() -> None:
    assert factor_scores([["colour"], ["material", "colour"]])["colour"] == (6 + 5) / 2
    assert factor_scores([["colour"], ["material", "colour"]])["material"] == 6 / 2
    with pytest.raises(ValueError, match="nobody"):
        factor_scores([])


def test_the_wilson_interval_equals_newcombes_published_values() -> None:
    """Newcombe, "Two-sided confidence intervals for the single proportion" (1998), table I, method 3."""
    for votes, for_ours, low, high in ((263, 81, 0.2553, 0.3662), (148, 15, 0.0624, 0.1605), (20, 0, 0.0, 0.1611)):
        share = share_of_votes({1: (for_ours, votes)})
        assert share.share == for_ours / votes
        assert share.wilson == pytest.approx((low, high), abs=5e-5)


def test_the_binomial_test_equals_values_worked_out_by_hand() -> None:
    assert share_of_votes({1: (9, 10)}).p_value == pytest.approx(2 * (1 + 10) / 2**10)
    assert share_of_votes({1: (4, 5), 2: (5, 5)}).p_value == pytest.approx(2 * (1 + 10) / 2**10)
    assert share_of_votes({1: (5, 10)}).p_value == 1


def test_resampling_people_widens_the_interval_if_each_persons_votes_are_alike() -> None:
    clustered = share_of_votes({person: (20 if person % 2 else 0, 20) for person in range(30)})
    mixed = share_of_votes(dict.fromkeys(range(30), (10, 20)))
    assert clustered.wilson == mixed.wilson
    assert mixed.resampled == (0.5, 0.5)
    assert clustered.resampled is not None
    low, high = clustered.resampled
    # 30 independent people, each all or nothing: the half width is about 1.96 sqrt(0.25 / 30).
    assert (high - low) / 2 == pytest.approx(0.179, abs=0.025)


def test_without_votes_there_is_no_share_interval_or_p_value() -> None:
    share = share_of_votes({1: (0, 0)})
    assert (share.votes, share.share, share.wilson, share.p_value) == (0, None, None, None)


def test_holms_correction_equals_values_worked_out_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1, 1]
    assert holm([]) == []


def test_krippendorffs_alpha_equals_his_published_examples() -> None:
    """Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011): examples A (binary) and C (nominal, gaps)."""
    meg, owen = "0100000010", "1110010000"
    assert krippendorff_alpha(list(zip(meg, owen, strict=True))) == pytest.approx(0.095, abs=5e-4)
    raters = ("123321412...", "1233224125.3", ".3332342251.", "12332441251.")
    units = [[value for value in column if value != "."] for column in zip(*raters, strict=True)]
    assert krippendorff_alpha(units) == pytest.approx(0.743, abs=5e-4)


def test_agreement_is_1_for_equal_votes_and_none_where_it_is_undefined() -> None:
    assert krippendorff_alpha([[1, 1, 1], [0, 0], [1, 1]]) == 1
    assert pairwise_agreement([[1, 1, 1], [0, 0], [1]]) == 1
    assert pairwise_agreement([[1, 1, 0], [0, 1]]) == pytest.approx((1 / 3 + 0) / 2)
    for nothing in ([], [[1], [0]]):
        assert krippendorff_alpha(nothing) is None
        assert pairwise_agreement(nothing) is None
    assert krippendorff_alpha([[1, 1], [1, 1]]) is None  # chance would agree as well
