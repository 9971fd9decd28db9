"""The study's file: its tables, and safe reading and writing, so that no answer is lost or counted twice."""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from inst.files.watching import Watched
from inst.study.checking import LOCK_SECONDS, check_study, prepare, read_settings, translate_errors
from inst.study.schema import SCHEMA, Settings

_log = logging.getLogger(__name__)

_WAIT_SECONDS = 2 * LOCK_SECONDS
"""Seconds that a thread waits for the others: less than all of their waits for another program one after another."""


class Database:
    """The open file of a study. Threads can share it, and several processes can open the same file.

    Args:
        path: the file. It is checked as a whole before it is opened for writing (`inst.study.checking`).
        create: create the tables in a new, empty file.

    Raises:
        InstError: the file is missing, is not a study, is damaged, has another format version, or another program has
            locked it.
        sqlite3.Error: the new file cannot be created; the caller words the error with the final file name.
    """

    def __init__(self, path: str | Path, *, create: bool = False) -> None:
        self.path = Path(path)
        if not create:
            check_study(self.path)
        self._lock = threading.RLock()
        self._watched: Watched | None = None  # while it is served
        self._loss: str | None = None  # why nothing can be saved any more
        self._settings: Settings | None = None
        with nullcontext() if create else translate_errors(self.path):
            # Autocommit, so that transactions start and end only in `transaction`.
            self._connection = sqlite3.connect(
                self.path, timeout=LOCK_SECONDS, isolation_level=None, check_same_thread=False
            )
            try:
                prepare(self._connection)
                if create:
                    self._connection.executescript(SCHEMA)
                # A committed answer is on the disk before it is confirmed, even if the process or the power fails then.
                self._connection.execute("PRAGMA synchronous = FULL")
                self._connection.execute("PRAGMA foreign_keys = ON")
            except BaseException:
                self._connection.close()
                raise

    def __enter__(self) -> Database:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write_ahead(self) -> None:
        """Turn on write-ahead logging for serving, so that readers and writers do not block each other.

        `close` turns it off. From now on, nothing is confirmed that would be lost because the file was removed,
        replaced or cut.
        """
        with self._held():
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._watched = Watched(self.path)

    def close(self) -> None:
        """Close the file. Then all data is in this one file, unless another process has it open."""
        with self._lock:
            if self._loss is None:  # otherwise the log beside the path may be another file's
                with suppress(sqlite3.Error):
                    self._connection.execute("PRAGMA busy_timeout = 0")
                    self._connection.execute("PRAGMA journal_mode = DELETE")
            self._connection.close()

    @contextmanager
    def _held(self) -> Iterator[None]:
        """Keep the other threads from the file. Raises sqlite3.OperationalError if they take too long."""
        if not self._lock.acquire(timeout=_WAIT_SECONDS):
            raise sqlite3.OperationalError("database is locked")
        try:
            if self._loss is not None:
                raise sqlite3.OperationalError(self._loss)
            yield
        finally:
            self._lock.release()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Run the block as one transaction: all or nothing. The data is on the disk when the block ends."""
        with self._held():
            self._check_place()
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
                self._check_place()
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def _check_place(self) -> None:
        """Raise sqlite3.OperationalError if the open file is not what lies at the path, or has lost some of it."""
        if self._watched is None:
            return
        if self._watched.is_replaced():
            self._loss = "the study's file was removed or replaced"
            self._keep_all()
        elif self._watched.is_cut():
            self._loss = "the study's file was cut"
        if self._loss is not None:
            raise sqlite3.OperationalError(self._loss)

    def _keep_all(self) -> None:
        """Copy the open file, which has no name any more, to a new file beside it."""
        kept = self.path.with_name(f"{self.path.stem}-kept-{time.strftime('%Y%m%d-%H%M%S')}{self.path.suffix}")
        try:
            with kept.open("xb"), closing(sqlite3.connect(kept)) as copy:
                self._connection.backup(copy)
                copy.execute("PRAGMA journal_mode = DELETE")
        except (OSError, sqlite3.Error) as error:
            _log.error("%s was removed or replaced, and its answers cannot be kept (%s)", self.path, error)
            return
        _log.error("%s was removed or replaced: its answers until now are in %s, serve that", self.path, kept)

    def rows(self, query: str, *values: object) -> list[sqlite3.Row]:
        """Return the rows of a query."""
        with self._held():
            return self._connection.execute(query, values).fetchall()

    def value(self, query: str, *values: object) -> Any:
        """Return the first column of the first row of a query; None if there is no row."""
        rows = self.rows(query, *values)
        return rows[0][0] if rows else None

    def settings(self) -> Settings:
        """Return the researcher's settings. Raises InstError if they are damaged."""
        if self._settings is None:  # they never change
            self._settings = read_settings(self.rows("SELECT content FROM settings"), self.path)
        return self._settings

    def write_settings(self, settings: Settings) -> None:
        """Store the researcher's settings; called once, when the study is created."""
        with self.transaction() as connection:
            connection.execute("INSERT INTO settings VALUES (?)", (json.dumps(asdict(settings)),))
