"""The actions of participants: begin, vote, rank. Each is one transaction, and repeating it changes nothing."""

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
from inst.study.begins import MOST_OF_ALL, MOST_PARTICIPANTS, PERIOD, Begins
from inst.study.checking import is_ranking
from inst.study.database import Database
from inst.study.factors import FACTORS
from inst.study.schema import MOST_SECONDS

_TOKEN = re.compile(r"[0-9a-f]{64}")
_KEY = re.compile(r"[0-9a-f]{32}")
_MOST_ANSWERS = 50
"""Answers to one trial: all are stored, and nobody changes their mind so often."""


class Refused(Exception):
    """The server refuses a request.

    Attributes:
        status: HTTP status: 400 malformed, 401 not a participant, 404 no such trial, 408 too slow, 409 contradicts an
            answer, 413 too large, 429 too many.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def describe_study(database: Database) -> dict[str, Any]:
    """Return the public information: the texts that the researcher chose, and the number of pairs to compare."""
    settings = database.settings()
    return {
        "title": settings.title,
        "question": settings.question,
        "contact": settings.contact,
        "consent": settings.consent,
        "trials": settings.trials + settings.checks,
    }


def begin(database: Database, token: str, begins: Begins | None = None, address: str = "") -> None:
    """Register the participant with this token and assign pairs; a known participant keeps the pairs.

    Args:
        token: 64 random hexadecimal digits from the browser. Only the hash is stored, so a reader of the file cannot
            answer for the participant.
        begins: the sessions of each address; None does not limit those of one.
        address: where the request comes from. It is not stored.

    Raises:
        Refused: the token has another form, or too many sessions are begun and not finished.
    """
    if not _TOKEN.fullmatch(token):
        raise Refused(400, "a token must have 64 hexadecimal digits")
    settings = database.settings()
    now = int(time.time())
    with database.transaction() as connection:
        if _find(connection, token) is not None:
            return
        _check_room(connection, now)
        if begins is not None:
            if not begins.may_begin(address):
                raise Refused(429, "too many people begin from this address, try again later")
            begins.begun(address, token)
        number = connection.execute(
            "INSERT INTO participants (token_sha256, started_at) VALUES (?, ?)", (_hash(token), now)
        ).lastrowid
        rng = random.Random(f"{settings.seed} trials of {number}")
        shown = dict(
            connection.execute(
                "SELECT trials.pair, count(*) FROM trials JOIN participants ON participants.id = trials.participant "
                "WHERE started_at > ? OR EXISTS (SELECT 1 FROM answers WHERE trial = trials.id) GROUP BY trials.pair",
                (now - PERIOD,),
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


def _check_room(connection: sqlite3.Connection, now: int) -> None:
    """Raise Refused if the study has as many participants as it may have, in all or at this time."""
    everybody, unfinished = connection.execute(
        "SELECT count(*), count(*) FILTER (WHERE started_at > ? AND finished_at IS NULL) FROM participants",
        (now - PERIOD,),
    ).fetchone()
    if everybody >= MOST_PARTICIPANTS:
        raise Refused(429, "the study has enough participants")
    if unfinished >= MOST_OF_ALL:
        raise Refused(429, "too many people take part at this time, try again later")


def describe_session(database: Database, token: str) -> dict[str, Any] | None:
    """Return a participant's trials, answers and factors; None if no participant has this token.

    Of the pictures, only the addresses are returned: not their methods, and not whether a pair is an attention check.
    """
    with database.transaction() as connection:
        participant = _find(connection, token)
        if participant is None:
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
            (participant["id"],),
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
        "finished": participant["finished_at"] is not None,
    }


def vote(database: Database, token: str, key: str, position: int, choice: str, seconds: float) -> bool:
    """Store an answer to one of the participant's trials; the last answer to a trial is the vote.

    Args:
        token: token of the participant.
        key: 32 hexadecimal digits that the browser made for this answer; a repeated key is not counted again.
        position: position of the trial, from 1.
        choice: "first" or "second".
        seconds: viewing time of the participant.

    Returns:
        False if the same answer was stored before.

    Raises:
        Refused: malformed request, unknown token, no such trial, key of another answer, finished session, or too many
            answers to this trial.
    """
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        raise Refused(400, "an answer's key must have 32 hexadecimal digits")
    if choice not in ("first", "second"):
        raise Refused(400, 'the choice must be "first" or "second"')
    if not isinstance(seconds, (int, float)) or isinstance(seconds, bool) or not 0 <= seconds <= MOST_SECONDS:
        raise Refused(400, f"the seconds must be a number from 0 to {MOST_SECONDS:.0f}")
    if not isinstance(position, int) or isinstance(position, bool):
        raise Refused(400, "the position must be a whole number")
    if not 0 < position < 2**31:
        raise Refused(404, "no such trial")
    with database.transaction() as connection:
        participant = _participant(connection, token)
        trial = connection.execute(
            "SELECT id FROM trials WHERE participant = ? AND position = ?", (participant["id"], position)
        ).fetchone()
        if trial is None:
            raise Refused(404, "no such trial")
        content = (trial["id"], int(choice == "first"))
        stored = connection.execute("SELECT trial, first FROM answers WHERE key = ?", (key,)).fetchone()
        if stored is not None:
            if tuple(stored) != content:
                raise Refused(409, "this key belongs to another answer")
            return False
        if participant["finished_at"] is not None:
            raise Refused(409, "the study is finished")
        (answers,) = connection.execute("SELECT count(*) FROM answers WHERE trial = ?", (trial["id"],)).fetchone()
        if answers >= _MOST_ANSWERS:
            raise Refused(409, f"this pair has {answers} answers already, keep the last")
        connection.execute(
            "INSERT INTO answers (key, trial, first, seconds, answered_at) VALUES (?, ?, ?, ?, ?)",
            (key, *content, seconds, int(time.time())),
        )
    return True


def rank(database: Database, token: str, ranking: Sequence[str] | None) -> None:
    """Store the order of the factors and end the participant's session.

    Args:
        token: token of the participant.
        ranking: factors that matter, most important first; the other factors do not matter. None if the participant
            skips the question.

    Raises:
        Refused: malformed request, unknown token, pairs without an answer, or another ranking was stored before.
    """
    if ranking is not None and not (isinstance(ranking, list) and is_ranking(ranking)):
        raise Refused(400, f"a ranking must be a list of different factors: {', '.join(FACTORS)}")
    content = None if ranking is None else json.dumps(ranking)
    with database.transaction() as connection:
        participant = _participant(connection, token)
        if participant["finished_at"] is not None:
            if participant["ranking"] != content:
                raise Refused(409, "the study is finished")
            return
        unanswered = connection.execute(
            "SELECT 1 FROM trials WHERE participant = ? AND NOT EXISTS (SELECT 1 FROM answers WHERE trial = trials.id)",
            (participant["id"],),
        ).fetchone()
        if unanswered is not None:
            raise Refused(409, "some pairs have no answer yet")
        connection.execute(
            "UPDATE participants SET ranking = ?, finished_at = ? WHERE id = ?",
            (content, int(time.time()), participant["id"]),
        )


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _find(connection: sqlite3.Connection, token: str) -> sqlite3.Row | None:
    participant: sqlite3.Row | None = connection.execute(
        "SELECT * FROM participants WHERE token_sha256 = ?", (_hash(token),)
    ).fetchone()
    return participant


def _participant(connection: sqlite3.Connection, token: str) -> sqlite3.Row:
    participant = _find(connection, token)
    if participant is None:
        raise Refused(401, "no participant has this token")
    return participant
