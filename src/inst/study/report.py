"""What the answers of a study say."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from inst.errors import InstError
from inst.study import tables
from inst.study.database import Database
from inst.study.exclusion import Rules, broken_rules
from inst.study.factors import FACTORS
from inst.study.statistics import Share, factor_scores, holm, krippendorff_alpha, pairwise_agreement, share_of_votes


@dataclass(frozen=True)
class Agreement:
    """How far participants agree who judged the same pair.

    Attributes:
        alpha: Krippendorff's, nominal; None where it is undefined. Near 0 where almost all vote alike, however well
            they agree: read it beside `same`.
        same: share of two who judged the same pair and voted alike.
        pairs: judged by two or more.
    """

    alpha: float | None
    same: float | None
    pairs: int


@dataclass(frozen=True)
class Report:
    """The figures of a study. Everything but `everybody` is without those whom the rules exclude.

    Attributes:
        title, ours: of the study.
        started, finished, kept: participants.
        excluded: how many break each rule; one participant may break several.
        methods, total: share of votes for ours, against each other method and in all.
        everybody: `total` with those who were excluded.
        agreement: by method, and in all under "".
        seconds: of a vote: quartiles and mean.
        all_seconds: of each vote.
        scores: of each factor, highest first; empty where nobody ranked.
        ranked: participants who ranked the factors.
        places: of each factor, how often it was put first, second and so on.
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
        """Return the figures as JSON's types, without the seconds of each vote."""
        return {name: value for name, value in asdict(self).items() if name != "all_seconds"}


def make_report(
    database: Database,
    *,
    too_fast: float = 1.0,
    one_side: float = 0.001,
    failed_checks: int = 1,
    few_answers: float = 0.5,
) -> Report:
    """Compute the figures of a study; it may be served meanwhile.

    Attention checks are not votes. Whoever is excluded is left out of the ranking of factors too.

    Args:
        database: the study.
        too_fast, one_side, failed_checks, few_answers: whom to exclude, as for `Rules`; 0 turns a rule off.

    Raises:
        UsageError: a bound that cannot be one.
        InstError: nobody voted yet.
    """
    rules = Rules(too_fast, one_side, failed_checks, few_answers)
    settings = database.settings()
    answers = [row for row in tables.answers(database) if row["counts"]]
    if not any(not row["is_check"] for row in answers):
        raise InstError(f"{database.path} holds no votes yet", "serve it, and invite people")
    given: dict[int, int] = {
        row[0]: row[1] for row in database.rows("SELECT participant, count(*) FROM trials GROUP BY 1")
    }
    of: dict[int, list[dict[str, Any]]] = {participant: [] for participant in given}
    for row in answers:
        of[row["participant"]].append(row)
    broken = {one: broken_rules(of[one], given[one], rules) for one in given}
    kept = {one for one, names in broken.items() if not names}
    votes = [row for row in answers if not row["is_check"]]
    counted = [row for row in votes if row["participant"] in kept]
    names = [row[0] for row in database.rows("SELECT DISTINCT method FROM pairs WHERE NOT is_check ORDER BY 1")]
    rankings = [order for one, order in tables.rankings(database).items() if one in kept]
    scores = factor_scores(rankings) if rankings else {}
    return Report(
        title=settings.title,
        ours=settings.ours,
        started=len(given),
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
    count: dict[int, tuple[int, int]] = {}
    for row in votes:
        ours, all_ = count.get(row["participant"], (0, 0))
        count[row["participant"]] = (ours + row["for_ours"], all_ + 1)
    return share_of_votes(count)


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
    quarter, half, three_quarters = (float(one) for one in np.quantile(seconds, (0.25, 0.5, 0.75)))
    return {"quarter": quarter, "median": half, "three quarters": three_quarters, "mean": float(np.mean(seconds))}
