"""What participants do: begin, vote, rank. Each is one transaction, and doing it again changes nothing."""

from __future__ import annotations

import hashlib
import json
import random
import re
import sqlite3
import time
from collections.abc import Sequence
from typing import Any

from inst.study.assignment import arrange, choose_pairs
from inst.study.database import Database
from inst.study.factors import FACTORS

_TOKEN = re.compile(r"[0-9a-f]{64}")
_KEY = re.compile(r"[0-9a-f]{32}")
_LONGEST = 24 * 3600.0
_ABANDONED_AFTER = 3600
"""Seconds after which an unanswered trial no longer counts as shown: its participant has probably left."""


class Refused(Exception):
    """A request that cannot be served as it is.

    Attributes:
        status: HTTP's: 400 malformed, 401 not a participant, 404 no such trial, 409 contradicts what was answered.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def describe_study(database: Database) -> dict[str, Any]:
    """Return what everybody may know: the texts that the researcher chose, and how many pairs there are to judge."""
    settings = database.settings()
    return {
        "title": settings.title,
        "question": settings.question,
        "contact": settings.contact,
        "consent": settings.consent,
        "trials": settings.trials + settings.checks,
    }


def begin(database: Database, token: str) -> None:
    """Take part: the participant of this token is given pairs, once.

    Args:
        token: 64 hexadecimal digits that the browser made at random. Only its hash is kept: nobody who reads the file
            can answer in the participant's name.

    Raises:
        Refused: another form of token.
    """
    if not _TOKEN.fullmatch(token):
        raise Refused(400, "a token has 64 hexadecimal digits")
    settings = database.settings()
    now = int(time.time())
    with database.transaction() as connection:
        if _find(connection, token) is not None:
            return
        number = connection.execute(
            "INSERT INTO participants (token_sha256, started_at) VALUES (?, ?)", (_hash(token), now)
        ).lastrowid
        rng = random.Random(f"{settings.seed} trials of {number}")
        shown = dict(
            connection.execute(
                "SELECT trials.pair, count(*) FROM trials JOIN participants ON participants.id = trials.participant "
                "WHERE started_at > ? OR EXISTS (SELECT 1 FROM answers WHERE trial = trials.id) GROUP BY trials.pair",
                (now - _ABANDONED_AFTER,),
            ).fetchall()
        )
        pairs: dict[str, list[int]] = {}
        checks: list[int] = []
        for pair, method, is_check in connection.execute("SELECT id, method, is_check FROM pairs ORDER BY id"):
            (checks if is_check else pairs.setdefault(method, [])).append(pair)
        trials = arrange(
            choose_pairs(pairs, shown, settings.trials, rng),
            choose_pairs({"": checks}, shown, settings.checks, rng),
            rng,
        )
        connection.executemany(
            "INSERT INTO trials (participant, position, pair, ours_first) VALUES (?, ?, ?, ?)",
            [(number, position, trial.pair, trial.ours_first) for position, trial in enumerate(trials, 1)],
        )


def describe_session(database: Database, token: str) -> dict[str, Any] | None:
    """Return a participant's trials, answers and ranking; None where the token is nobody's.

    The addresses of pictures are all that is said of them: not which method made them, nor whether a pair is a check.
    """
    with database.transaction() as connection:
        found = _find(connection, token)
        if found is None:
            return None
        trials = connection.execute(
            """
            SELECT position, photo.key AS photo, painting.key AS painting,
                   CASE WHEN ours_first THEN ours.key ELSE other.key END AS first,
                   CASE WHEN ours_first THEN other.key ELSE ours.key END AS second,
                   (SELECT answers.first FROM answers WHERE trial = trials.id ORDER BY id DESC LIMIT 1) AS chosen
            FROM trials JOIN pairs ON pairs.id = trials.pair
            JOIN pictures AS photo ON photo.id = pairs.photo JOIN pictures AS painting ON painting.id = pairs.painting
            JOIN pictures AS ours ON ours.id = pairs.ours JOIN pictures AS other ON other.id = pairs.other
            WHERE participant = ? ORDER BY position
            """,
            (found["id"],),
        ).fetchall()
    factors = list(FACTORS)
    random.Random(f"{_hash(token)} factors").shuffle(factors)
    return {
        "trials": [
            {
                **{name: trial[name] for name in ("position", "photo", "painting", "first", "second")},
                "chosen": None if trial["chosen"] is None else "first" if trial["chosen"] else "second",
            }
            for trial in trials
        ],
        "factors": factors,
        "finished": found["finished_at"] is not None,
    }


def vote(database: Database, token: str, key: str, position: int, choice: str, seconds: float) -> bool:
    """Keep an answer to one of the participant's own trials; the last one to a trial is the vote.

    Args:
        token: the participant's.
        key: 32 hexadecimal digits that the browser made for this answer: sent again, it is not counted again.
        position: the trial, from 1.
        choice: "first" or "second".
        seconds: that the participant looked at it.

    Returns:
        False where this very answer was there already.

    Raises:
        Refused: malformed, nobody's token, no such trial, the key of another answer, or after the end.
    """
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        raise Refused(400, "an answer's key has 32 hexadecimal digits")
    if choice not in ("first", "second"):
        raise Refused(400, 'the choice is "first" or "second"')
    if not isinstance(seconds, (int, float)) or isinstance(seconds, bool) or not 0 <= seconds <= _LONGEST:
        raise Refused(400, "the seconds are a number from 0 to 86400")
    if not isinstance(position, int) or isinstance(position, bool):
        raise Refused(400, "the position is a whole number")
    if not 0 < position < 2**31:
        raise Refused(404, "no such trial")
    with database.transaction() as connection:
        found = _participant(connection, token)
        trial = connection.execute(
            "SELECT id FROM trials WHERE participant = ? AND position = ?", (found["id"], position)
        ).fetchone()
        if trial is None:
            raise Refused(404, "no such trial")
        content = (trial["id"], int(choice == "first"))
        there = connection.execute("SELECT trial, first FROM answers WHERE key = ?", (key,)).fetchone()
        if there is not None:
            if tuple(there) != content:
                raise Refused(409, "this key belongs to another answer")
            return False
        if found["finished_at"] is not None:
            raise Refused(409, "the study is finished")
        connection.execute(
            "INSERT INTO answers (key, trial, first, seconds, answered_at) VALUES (?, ?, ?, ?, ?)",
            (key, *content, seconds, int(time.time())),
        )
    return True


def rank(database: Database, token: str, ranking: Sequence[str] | None) -> None:
    """Keep the order of the factors and end the participant's session.

    Args:
        token: the participant's.
        ranking: factors that matter, most important first; others are left out. None where the participant passes.

    Raises:
        Refused: malformed, nobody's token, pairs without an answer, or another ranking was given before.
    """
    if ranking is not None:
        known = isinstance(ranking, list) and all(isinstance(one, str) and one in FACTORS for one in ranking)
        if not known or not ranking or len(set(ranking)) < len(ranking):
            raise Refused(400, f"a ranking is a list of different factors: {', '.join(FACTORS)}")
    content = None if ranking is None else json.dumps(ranking)
    with database.transaction() as connection:
        found = _participant(connection, token)
        if found["finished_at"] is not None:
            if found["ranking"] != content:
                raise Refused(409, "the study is finished")
            return
        unanswered = connection.execute(
            "SELECT 1 FROM trials WHERE participant = ? AND NOT EXISTS (SELECT 1 FROM answers WHERE trial = trials.id)",
            (found["id"],),
        ).fetchone()
        if unanswered is not None:
            raise Refused(409, "some pairs have no answer yet")
        connection.execute(
            "UPDATE participants SET ranking = ?, finished_at = ? WHERE id = ?",
            (content, int(time.time()), found["id"]),
        )


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _find(connection: sqlite3.Connection, token: str) -> sqlite3.Row | None:
    found: sqlite3.Row | None = connection.execute(
        "SELECT * FROM participants WHERE token_sha256 = ?", (_hash(token),)
    ).fetchone()
    return found


def _participant(connection: sqlite3.Connection, token: str) -> sqlite3.Row:
    found = _find(connection, token)
    if found is None:
        raise Refused(401, "no participant has this token")
    return found
