"""The study's file: its tables, and how they are opened and written so that no answer is lost or counted twice."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from inst.errors import Call, InstError

_APPLICATION = 0x1457CD1F
"""Marks a SQLite file as a study."""
_FORMAT = 1

_SCHEMA = f"""
PRAGMA application_id = {_APPLICATION};
PRAGMA user_version = {_FORMAT};
CREATE TABLE settings (content TEXT NOT NULL) STRICT;
CREATE TABLE pictures (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,        -- random: the address of a picture says nothing of what made it
    folder TEXT NOT NULL,            -- "photos", "paintings", or a method
    name TEXT NOT NULL,              -- of the file, without its ending
    width INTEGER NOT NULL,
    height INTEGER NOT NULL,
    data BLOB NOT NULL,              -- WebP
    UNIQUE (folder, name)
) STRICT;
CREATE TABLE pairs (
    id INTEGER PRIMARY KEY,
    photo INTEGER NOT NULL REFERENCES pictures,
    painting INTEGER NOT NULL REFERENCES pictures,
    ours INTEGER NOT NULL REFERENCES pictures,
    other INTEGER NOT NULL REFERENCES pictures,
    method TEXT NOT NULL,            -- that made `other`
    is_check INTEGER NOT NULL,       -- an attention check: `ours` is right beyond doubt, `other` shows something else
    UNIQUE (ours, other)
) STRICT;
CREATE TABLE participants (
    id INTEGER PRIMARY KEY,
    token_sha256 TEXT NOT NULL UNIQUE,
    started_at INTEGER NOT NULL,     -- Unix time in seconds
    finished_at INTEGER,
    ranking TEXT                     -- JSON: factors in order, most important first; NULL where not answered
) STRICT;
CREATE TABLE trials (
    id INTEGER PRIMARY KEY,
    participant INTEGER NOT NULL REFERENCES participants,
    position INTEGER NOT NULL,       -- from 1, as the participant counts
    pair INTEGER NOT NULL REFERENCES pairs,
    ours_first INTEGER NOT NULL,     -- whether `ours` is on the left (above, on a phone)
    UNIQUE (participant, position)
) STRICT;
CREATE TABLE answers (               -- every answer ever given; the last one to a trial is the vote
    id INTEGER PRIMARY KEY,          -- grows
    key TEXT NOT NULL UNIQUE,        -- made by the participant's browser: the same answer sent again is not a new one
    trial INTEGER NOT NULL REFERENCES trials,
    first INTEGER NOT NULL,          -- whether the first of the two was chosen
    seconds REAL NOT NULL,           -- that the participant looked before choosing
    answered_at INTEGER NOT NULL
) STRICT;
CREATE INDEX answers_of_trial ON answers (trial);
CREATE INDEX trials_of_pair ON trials (pair);
CREATE VIEW votes AS
    SELECT trials.participant, trials.position, trials.pair, answers.key, answers.first,
           answers.first = trials.ours_first AS for_ours, answers.seconds
    FROM answers JOIN trials ON trials.id = answers.trial
    WHERE answers.id = (SELECT max(id) FROM answers AS later WHERE later.trial = answers.trial);
"""


@dataclass(frozen=True)
class Settings:
    """What the researcher chose when the study was made.

    Attributes:
        ours: the method that every other one is compared with.
        trials: pairs that a participant is shown, attention checks not counted.
        checks: attention checks that a participant is shown besides.
        title, question, contact, consent: texts for the pages; empty for the usual ones.
        seed: of all random choices of pairs, sides and orders.
        admin_token: opens the admin page.
    """

    ours: str
    trials: int
    checks: int
    title: str
    question: str
    contact: str
    consent: str
    seed: int
    admin_token: str


class Database:
    """A study's file, open. Safe to share among threads; several processes may open the same file.

    Args:
        path: the file.
        create: make the tables in a new, empty file.

    Raises:
        InstError: the file is missing, no study, or of another version.
        sqlite3.Error: the new file cannot be made; the caller knows what it is to be called in the end.
    """

    def __init__(self, path: str | Path, *, create: bool = False) -> None:
        self.path = Path(path)
        if not create and not self.path.is_file():
            raise InstError(f"{path}: no such study", "make one with ", Call("create_study"))
        self._lock = threading.RLock()
        try:
            # Autocommit: transactions begin and end where `transaction` says so.
            self._connection = sqlite3.connect(self.path, timeout=30, isolation_level=None, check_same_thread=False)
        except sqlite3.Error as error:
            if create:
                raise
            raise InstError(f"{path} cannot be opened ({error}).") from None
        self._connection.row_factory = sqlite3.Row
        try:
            if create:
                self._connection.executescript(_SCHEMA)
            self._check()
            # A committed answer is on the disk before it is acknowledged, whatever is killed or cut off afterwards.
            self._connection.execute("PRAGMA synchronous = FULL")
            self._connection.execute("PRAGMA foreign_keys = ON")
        except sqlite3.DatabaseError as error:
            self._connection.close()
            if create:
                raise
            raise InstError(
                f"{path} is no study ({error})", "give a file that ", Call("create_study"), " made"
            ) from None
        except BaseException:
            self._connection.close()
            raise

    def _check(self) -> None:
        if self._connection.execute("PRAGMA application_id").fetchone()[0] != _APPLICATION:
            raise InstError(f"{self.path} is no study", "give a file that ", Call("create_study"), " made")
        found = self._connection.execute("PRAGMA user_version").fetchone()[0]
        if found != _FORMAT:
            raise InstError(f"{self.path} is a study of format {found}, this version of inst knows format {_FORMAT}.")

    def __enter__(self) -> Database:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write_ahead(self) -> None:
        """Let readers and the writer not wait for each other, while the study is served. `close` undoes it."""
        with self._lock:
            self._connection.execute("PRAGMA journal_mode = WAL")

    def close(self) -> None:
        """Close the file; unless another process has it open, everything is in this one file then."""
        with self._lock:
            with suppress(sqlite3.Error):
                self._connection.execute("PRAGMA busy_timeout = 0")
                self._connection.execute("PRAGMA journal_mode = DELETE")
            self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Do all of the block or nothing of it; it is on the disk when the block has ended."""
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def rows(self, query: str, *values: object) -> list[sqlite3.Row]:
        """Return what a query finds."""
        with self._lock:
            return self._connection.execute(query, values).fetchall()

    def value(self, query: str, *values: object) -> Any:
        """Return the first column of the first row that a query finds, or None."""
        found = self.rows(query, *values)
        return found[0][0] if found else None

    def settings(self) -> Settings:
        """Return what the researcher chose."""
        return Settings(**json.loads(self.value("SELECT content FROM settings")))

    def write_settings(self, settings: Settings) -> None:
        """Keep what the researcher chose; once, when the study is made."""
        with self.transaction() as connection:
            connection.execute("INSERT INTO settings VALUES (?)", (json.dumps(asdict(settings)),))
