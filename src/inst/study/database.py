"""The study's file: its tables, and safe reading and writing, so that no answer is lost or counted twice."""

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
"""Application id that marks a SQLite file as a study."""
_FORMAT = 1

_SCHEMA = f"""
PRAGMA application_id = {_APPLICATION};
PRAGMA user_version = {_FORMAT};
CREATE TABLE settings (content TEXT NOT NULL) STRICT;
CREATE TABLE pictures (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,        -- random, so that the address of a picture does not reveal its method
    folder TEXT NOT NULL,            -- "photos", "paintings", or a method
    name TEXT NOT NULL,              -- name of the file without ending
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
    method TEXT NOT NULL,            -- the method that made `other`
    is_check INTEGER NOT NULL,       -- attention check: `ours` is correct, `other` shows another photo and painting
    UNIQUE (ours, other)
) STRICT;
CREATE TABLE participants (
    id INTEGER PRIMARY KEY,
    token_sha256 TEXT NOT NULL UNIQUE,
    started_at INTEGER NOT NULL,     -- Unix time in seconds
    finished_at INTEGER,
    ranking TEXT                     -- JSON: factors, most important first; NULL if not answered
) STRICT;
CREATE TABLE trials (
    id INTEGER PRIMARY KEY,
    participant INTEGER NOT NULL REFERENCES participants,
    position INTEGER NOT NULL,       -- from 1
    pair INTEGER NOT NULL REFERENCES pairs,
    ours_first INTEGER NOT NULL,     -- whether `ours` is on the left (above, on a phone)
    UNIQUE (participant, position)
) STRICT;
CREATE TABLE answers (               -- all answers; the last answer to a trial is the vote
    id INTEGER PRIMARY KEY,          -- increases with time
    key TEXT NOT NULL UNIQUE,        -- made by the participant's browser, so that a repeated request is not counted
    trial INTEGER NOT NULL REFERENCES trials,
    first INTEGER NOT NULL,          -- whether the first result was chosen
    seconds REAL NOT NULL,           -- viewing time before the choice
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
    """The researcher's settings for the study.

    Attributes:
        ours: the method that every other method is compared with.
        trials: number of pairs for each participant, without attention checks.
        checks: number of additional attention checks for each participant.
        title, question, contact, consent: texts of the pages; empty texts are replaced by the default texts.
        seed: random seed of all choices of pairs, sides and orders.
        admin_token: token for the admin page.
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
    """The open file of a study. Threads can share it, and several processes can open the same file.

    Args:
        path: the file.
        create: create the tables in a new, empty file.

    Raises:
        InstError: the file is missing, is not a study, or has another format version.
        sqlite3.Error: the new file cannot be created; the caller words the error with the final file name.
    """

    def __init__(self, path: str | Path, *, create: bool = False) -> None:
        self.path = Path(path)
        if not create and not self.path.is_file():
            raise InstError(f"{path}: no such study", "make one with ", Call("study.creation.create_study"))
        self._lock = threading.RLock()
        try:
            # Autocommit, so that transactions start and end only in `transaction`.
            self._connection = sqlite3.connect(self.path, timeout=30, isolation_level=None, check_same_thread=False)
        except sqlite3.Error as error:
            if create:
                raise
            raise InstError(f"{path} cannot be opened ({error})", "check its permissions") from None
        self._connection.row_factory = sqlite3.Row
        try:
            if create:
                self._connection.executescript(_SCHEMA)
            self._check()
            # A committed answer is on the disk before it is confirmed, even if the process or the power fails then.
            self._connection.execute("PRAGMA synchronous = FULL")
            self._connection.execute("PRAGMA foreign_keys = ON")
        except sqlite3.DatabaseError as error:
            self._connection.close()
            if create:
                raise
            raise InstError(
                f"{path} is not a study ({error})", "give a file made by ", Call("study.creation.create_study")
            ) from None
        except BaseException:
            self._connection.close()
            raise

    def _check(self) -> None:
        if self._connection.execute("PRAGMA application_id").fetchone()[0] != _APPLICATION:
            raise InstError(f"{self.path} is not a study", "give a file made by ", Call("study.creation.create_study"))
        version = self._connection.execute("PRAGMA user_version").fetchone()[0]
        if version != _FORMAT:
            raise InstError(
                f"{self.path} has the format {version}, but this version of inst reads only the format {_FORMAT}",
                "use the version of inst that made the study",
            )

    def __enter__(self) -> Database:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write_ahead(self) -> None:
        """Turn on write-ahead logging for serving, so that readers and writers do not block each other.

        `close` turns it off.
        """
        with self._lock:
            self._connection.execute("PRAGMA journal_mode = WAL")

    def close(self) -> None:
        """Close the file. Then all data is in this one file, unless another process has it open."""
        with self._lock:
            with suppress(sqlite3.Error):
                self._connection.execute("PRAGMA busy_timeout = 0")
                self._connection.execute("PRAGMA journal_mode = DELETE")
            self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Run the block as one transaction: all or nothing. The data is on the disk when the block ends."""
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
        """Return the rows of a query."""
        with self._lock:
            return self._connection.execute(query, values).fetchall()

    def value(self, query: str, *values: object) -> Any:
        """Return the first column of the first row of a query; None if there is no row."""
        rows = self.rows(query, *values)
        return rows[0][0] if rows else None

    def settings(self) -> Settings:
        """Return the researcher's settings."""
        return Settings(**json.loads(self.value("SELECT content FROM settings")))

    def write_settings(self, settings: Settings) -> None:
        """Store the researcher's settings; called once, when the study is created."""
        with self.transaction() as connection:
            connection.execute("INSERT INTO settings VALUES (?)", (json.dumps(asdict(settings)),))
