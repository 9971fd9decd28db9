"""Compute the results of a study from its answers."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from inst.errors import Call, InstError
from inst.study import tables
from inst.study.database import Database
from inst.study.exclusion import Rules, broken_rules
from inst.study.factors import FACTORS
from inst.study.statistics import Share, factor_scores, holm, krippendorff_alpha, pairwise_agreement, share_of_votes


@dataclass(frozen=True)
class Agreement:
    """Agreement of participants who compared the same pair.

    Attributes:
        alpha: Krippendorff's nominal alpha; None if it is undefined. It is near 0 if almost all votes are the same,
            even if participants agree well, so read it together with `same`.
        same: share of pairs of participants who voted the same for the same pair.
        pairs: number of pairs compared by two or more participants.
    """

    alpha: float | None
    same: float | None
    pairs: int


@dataclass(frozen=True)
class Report:
    """The results of a study. Votes of excluded participants count only in `everybody`.

    Attributes:
        title, ours: title of the study, and its own method.
        started, finished, kept: number of participants who started, finished, and are not excluded.
        rules: the rules for exclusion.
        excluded: number of participants who break each rule; one participant may break several.
        methods, total: share of votes for ours, against each other method and in total.
        everybody: `total` with excluded participants.
        agreement: agreement by method; the key "" is the total.
        seconds: quartiles and mean of the time for a vote.
        all_seconds: time for each vote.
        scores: score of each factor, highest first; empty if nobody ranked the factors.
        ranked: number of participants who ranked the factors.
        places: for each factor, how often it was ranked first, second and so on.
    """

    title: str
    ours: str
    started: int
    finished: int
    kept: int
    rules: Rules
    excluded: dict[str, int]
    methods: dict[str, Share]
    total: Share
    everybody: Share
    agreement: dict[str, Agreement]
    seconds: dict[str, float]
    all_seconds: list[float]
    scores: dict[str, float]
    ranked: int
    places: dict[str, list[int]]

    def as_json(self) -> dict[str, Any]:
        """Return the results as plain JSON values, without the time for each vote."""
        return {name: value for name, value in asdict(self).items() if name != "all_seconds"}


def make_report(
    database: Database,
    *,
    too_fast: float = 1.0,
    one_side: float = 0.001,
    failed_checks: int = 1,
    few_answers: float = 0.5,
) -> Report:
    """Compute the results of a study, also while it is served.

    Attention checks are not votes. Excluded participants do not count in the ranking of factors either.

    Args:
        database: the study.
        too_fast, one_side, failed_checks, few_answers: limits for exclusion, see `Rules`; 0 turns a rule off.

    Raises:
        UsageError: a limit is out of range.
        InstError: there are no votes yet.
    """
    rules = Rules(too_fast, one_side, failed_checks, few_answers)
    settings = database.settings()
    answers = [row for row in tables.answers(database) if row["counts"]]
    if not any(not row["is_check"] for row in answers):
        raise InstError(
            f"{database.path} holds no votes yet", "serve it with ", Call("study.server.serve"), " and invite people"
        )
    trial_counts: dict[int, int] = {
        row[0]: row[1] for row in database.rows("SELECT participant, count(*) FROM trials GROUP BY 1")
    }
    answers_of: dict[int, list[dict[str, Any]]] = {participant: [] for participant in trial_counts}
    for row in answers:
        answers_of[row["participant"]].append(row)
    broken = {
        participant: broken_rules(answers_of[participant], count, rules) for participant, count in trial_counts.items()
    }
    kept = {participant for participant, names in broken.items() if not names}
    votes = [row for row in answers if not row["is_check"]]
    counted = [row for row in votes if row["participant"] in kept]
    names = [row[0] for row in database.rows("SELECT DISTINCT method FROM pairs WHERE NOT is_check ORDER BY 1")]
    rankings = [order for participant, order in tables.rankings(database).items() if participant in kept]
    scores = factor_scores(rankings) if rankings else {}
    return Report(
        title=settings.title,
        ours=settings.ours,
        started=len(trial_counts),
        finished=database.value("SELECT count(finished_at) FROM participants"),
        kept=len(kept),
        rules=rules,
        excluded=dict(Counter(name for names in broken.values() for name in names)),
        methods=_shares(counted, names),
        total=_share(counted),
        everybody=_share(votes),
        agreement={name: _agreement([row for row in counted if name in ("", row["method"])]) for name in ["", *names]},
        seconds=_quartiles([row["seconds"] for row in counted]),
        all_seconds=[row["seconds"] for row in counted],
        scores=dict(sorted(scores.items(), key=lambda item: -item[1])),
        ranked=len(rankings),
        places={
            factor: [sum(order[place : place + 1] == [factor] for order in rankings) for place in range(len(FACTORS))]
            for factor in FACTORS
        },
    )


def _share(votes: Sequence[dict[str, Any]]) -> Share:
    counts: dict[int, tuple[int, int]] = {}
    for row in votes:
        ours, total = counts.get(row["participant"], (0, 0))
        counts[row["participant"]] = (ours + row["for_ours"], total + 1)
    return share_of_votes(counts)


def _shares(votes: Sequence[dict[str, Any]], names: Sequence[str]) -> dict[str, Share]:
    shares = {name: _share([row for row in votes if row["method"] == name]) for name in names}
    tested = {name: share.p_value for name, share in shares.items() if share.p_value is not None}
    for name, adjusted in zip(tested, holm(list(tested.values())), strict=True):
        shares[name] = replace(shares[name], p_holm=adjusted)
    return shares


def _agreement(votes: Sequence[dict[str, Any]]) -> Agreement:
    units: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for row in votes:
        units[row["photo"], row["painting"], row["method"]].append(row["for_ours"])
    ratings = list(units.values())
    return Agreement(krippendorff_alpha(ratings), pairwise_agreement(ratings), sum(len(unit) > 1 for unit in ratings))


def _quartiles(seconds: Sequence[float]) -> dict[str, float]:
    if not seconds:
        return {}
    quarter, median, three_quarters = (float(value) for value in np.quantile(seconds, (0.25, 0.5, 0.75)))
    return {"quarter": quarter, "median": median, "three quarters": three_quarters, "mean": float(np.mean(seconds))}
