"""The contents of the study's file as tables, for the admin page and for other programs."""

from __future__ import annotations

import json
from typing import Any

from inst.files.csv_tables import to_csv
from inst.study.database import Database
from inst.study.factors import FACTORS


def progress(database: Database) -> dict[str, Any]:
    """Return the progress of the study: participants, answers, and votes by method."""
    participants = database.rows(
        "SELECT count(*) AS started, count(finished_at) AS finished, count(ranking) AS ranked FROM participants"
    )[0]
    methods = database.rows(
        """
        SELECT pairs.method, count(DISTINCT pairs.id) AS pairs, count(votes.key) AS votes,
               coalesce(sum(votes.for_ours), 0) AS for_ours
        FROM pairs LEFT JOIN votes ON votes.pair = pairs.id
        WHERE NOT is_check GROUP BY pairs.method ORDER BY pairs.method
        """
    )
    settings = database.settings()
    return {
        "title": settings.title,
        "ours": settings.ours,
        **dict(participants),
        "votes": sum(row["votes"] for row in methods),
        "methods": [dict(row) for row in methods],
    }


ANSWERS = (
    "participant",
    "position",
    "photo",
    "painting",
    "method",
    "is_check",
    "ours_first",
    "chosen",
    "for_ours",
    "seconds",
    "answered_at",
    "counts",
)
"""The columns of `answers`."""


def answers(database: Database) -> list[dict[str, Any]]:
    """Return all answers, by participant and in the order of answering.

    `participant` counts from 1 in the order of arrival; `chosen` is "first" or "second"; `counts` is 0 if the
    participant went back and answered again later; `answered_at` is Unix time in seconds.
    """
    rows = database.rows(
        """
        SELECT trials.participant, trials.position, photo.name AS photo, painting.name AS painting, pairs.method,
               pairs.is_check, trials.ours_first, CASE WHEN answers.first THEN 'first' ELSE 'second' END AS chosen,
               answers.first = trials.ours_first AS for_ours, answers.seconds, answers.answered_at,
               answers.id = (SELECT max(id) FROM answers AS later WHERE later.trial = answers.trial) AS counts
        FROM answers JOIN trials ON trials.id = answers.trial JOIN pairs ON pairs.id = trials.pair
        JOIN pictures AS photo ON photo.id = pairs.photo JOIN pictures AS painting ON painting.id = pairs.painting
        ORDER BY trials.participant, answers.id
        """
    )
    return [dict(row) for row in rows]


def rankings(database: Database) -> dict[int, list[str]]:
    """Return the rankings by participant: factors, most important first; some factors may be left out."""
    rows = database.rows("SELECT id, ranking FROM participants WHERE ranking IS NOT NULL ORDER BY id")
    return {row["id"]: json.loads(row["ranking"]) for row in rows}


def answers_csv(database: Database) -> str:
    """Return `answers` as CSV."""
    return to_csv([ANSWERS, *([row[name] for name in ANSWERS] for row in answers(database))])


def rankings_csv(database: Database) -> str:
    """Return `rankings` as CSV: the rank of each factor from 1; empty if the factor was left out."""
    rows = (
        [participant, *(order.index(factor) + 1 if factor in order else "" for factor in FACTORS)]
        for participant, order in rankings(database).items()
    )
    return to_csv([("participant", *FACTORS), *rows])
