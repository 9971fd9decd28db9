"""Jobs on the disk: one row a job in a SQLite file, which one process holds at a time."""

from __future__ import annotations

import json
import logging
import re
import sqlite3
import threading
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path, PurePath
from typing import Any

from pydantic import TypeAdapter

from inst.errors import InstError
from inst.files.reading import check_regular
from inst.files.watching import Watched
from inst.studio.disk import NoSpace, NotKept
from inst.texts import one_line

_log = logging.getLogger(__name__)

ID = re.compile(r"[0-9a-f]{32}")
"""What the id of a job looks like; its folder has this name."""

_APPLICATION = 0x1457A70B
_FORMAT = 1
_MOST_LISTED = 100

_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS jobs (
    number INTEGER PRIMARY KEY,      -- the order in which jobs came
    id TEXT NOT NULL UNIQUE,
    person TEXT NOT NULL,
    state TEXT NOT NULL,
    changed REAL NOT NULL,           -- Unix time in seconds of the last change of its state
    content TEXT NOT NULL            -- JSON: the other fields of `Job`
) STRICT;
CREATE INDEX IF NOT EXISTS jobs_by_person ON jobs (person, number);
CREATE INDEX IF NOT EXISTS jobs_by_state ON jobs (state, changed);
PRAGMA application_id = {_APPLICATION};
PRAGMA user_version = {_FORMAT};
"""


class JobState(StrEnum):
    """Where a job is."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


ENDED = frozenset({JobState.DONE, JobState.FAILED, JobState.CANCELLED})


@dataclass(frozen=True)
class Progress:
    """How far a job is.

    Attributes:
        step: number of finished steps.
        total: number of all steps.
        remaining: estimated seconds until the end; None if unknown.
        loss: smoothed loss of a learning.
        files: names of finished files in the job's folder.
        preview: a WebP picture of what is under way; None if this step makes none. It is not stored.
    """

    step: int
    total: int
    remaining: float | None = None
    loss: float | None = None
    files: tuple[str, ...] = ()
    preview: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Job:
    """A job as it is at one moment.

    Attributes:
        id: 32 random hexadecimal digits.
        person: who asked for it.
        kind: "transfer", "sheet", "generate" or "learn".
        request: the request as plain JSON values.
        created, started, ended: Unix times in seconds.
        seconds: time on the device so far.
        state: where it is.
        progress: after its last step; None before the first.
        error: one line, if it has failed.
        result: what its work returned; "files" are names of files in its folder.
        wish: what is to be done with it before its next step: "cancel", "finish", "pause", or None.
    """

    id: str
    person: str
    kind: str
    request: Mapping[str, Any] = field(repr=False)
    created: float
    started: float | None = None
    ended: float | None = None
    seconds: float = 0.0
    state: JobState = JobState.QUEUED
    progress: Progress | None = None
    error: str | None = None
    result: Mapping[str, Any] = field(default_factory=dict)
    wish: str | None = None


_JOB = TypeAdapter(Job)
_WISHES = (None, "cancel", "finish", "pause", "time", "stop")


class JobStore:
    """The file of all jobs. Its methods may be called from any thread.

    A damaged file is kept under another name, and a new one is begun. A job that cannot be read is left out.

    Raises:
        InstError: another process uses the file, it is another program's or another version's, or it cannot be written
            to.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._path = path
        try:
            try:
                if path.exists():
                    _check(path)
                self._file = _open(path)
            except _DamagedError as error:
                kept = _set_aside(path)
                _log.warning(
                    "%s is damaged (%s) and is now %s: the studio begins with no jobs, and the files of the old ones "
                    "stay in its folder jobs",
                    *(path.name, one_line(str(error)), kept.name),
                )
                self._file = _open(path)
            self._watched = Watched(path)
        except sqlite3.Error as error:
            if "locked" in str(error):
                raise InstError(
                    f"Another studio uses the folder {path.parent}", "stop it, or choose another data folder"
                ) from None
            raise InstError(f"{path} cannot be used ({error})", "choose another data folder") from None

    def save(self, job: Job) -> None:
        """Write a job; when this returns, it survives a crash.

        Raises:
            NoSpace: the disk is full.
            NotKept: it cannot be written for another reason, or the file was removed, replaced or cut meanwhile.
        """
        content = {name: value for name, value in asdict(job).items() if name not in ("id", "person", "state")}
        if job.progress is not None:
            content["progress"].pop("preview")
        row = job.id, job.person, job.state.value, time.time(), json.dumps(content)
        try:
            with self._lock:
                self._file.execute(
                    "INSERT INTO jobs (id, person, state, changed, content) VALUES (?, ?, ?, ?, ?) ON CONFLICT (id) DO "
                    "UPDATE SET state = excluded.state, changed = excluded.changed, content = excluded.content",
                    row,
                )
                if self._watched.is_replaced() or self._watched.is_cut():
                    raise NotKept("The studio's file of jobs was removed, replaced or cut", "start the studio again")
        except sqlite3.Error as error:
            if (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF == sqlite3.SQLITE_FULL:
                raise NoSpace("The studio's disk is full", "try again later") from None
            raise NotKept(f"The job cannot be saved ({error})", "check the studio's folder") from None

    def find(self, id: str) -> Job | None:
        """Return a job by its id, which may be any text."""
        found = self._read("WHERE id = ?", id)
        return found[0] if found else None

    def unfinished(self) -> list[Job]:
        """Return the jobs that have not ended, the oldest first."""
        return self._read("WHERE state IN ('queued', 'running', 'paused') ORDER BY number")

    def ended(self, person: str) -> list[Job]:
        """Return the newest ended jobs of a person."""
        states = "('done', 'failed', 'cancelled')"
        return self._read(f"WHERE person = ? AND state IN {states} ORDER BY number DESC LIMIT {_MOST_LISTED}", person)

    def remove_older(self, before: float) -> list[str]:
        """Remove the jobs that ended or were paused before a Unix time, and return their ids."""
        with self._lock:
            rows = self._file.execute(
                "DELETE FROM jobs WHERE changed < ? AND state NOT IN ('queued', 'running') RETURNING id", (before,)
            ).fetchall()
        return [row[0] for row in rows if ID.fullmatch(row[0])]  # they are names of folders

    def close(self) -> None:
        """Close the file, so that another process may use it."""
        with self._lock:
            self._file.close()

    def _read(self, where: str, *values: str) -> list[Job]:
        try:
            with self._lock:
                rows = self._file.execute(f"SELECT id, person, state, content FROM jobs {where}", values).fetchall()
        except sqlite3.Error as error:
            raise NotKept(f"The jobs cannot be read ({error})", "check the studio's folder") from None
        jobs = [_job(*row) for row in rows]
        if None in jobs:
            _log.warning("%d jobs in %s cannot be read and are left out", jobs.count(None), self._path.name)
        return [job for job in jobs if job is not None]


def _job(id: str, person: str, state: str, content: str) -> Job | None:
    """Return a job; None if a row is not one, so that nothing else fails because of it."""
    try:
        entries = json.loads(content)
        json.dumps(entries, ensure_ascii=False, allow_nan=False).encode()  # as answers need it
        job = _JOB.validate_python({**entries, "id": id, "person": person, "state": state})
    except (ValueError, TypeError, RecursionError):  # also UnicodeEncodeError and pydantic's ValidationError
        return None
    names = [*(job.progress.files if job.progress else ()), *job.result.get("files", ())]
    plain = all(isinstance(name, str) and name not in ("", "..") and PurePath(name).name == name for name in names)
    return job if ID.fullmatch(id) and plain and job.wish in _WISHES else None


class _DamagedError(sqlite3.DatabaseError):
    """The file is damaged."""


def _check(path: Path) -> None:
    """Check the file without changing it, even if a log of another file lies beside it.

    Raises:
        InstError: it is another program's or another version's, or no file.
        _DamagedError: it is damaged.
        sqlite3.Error: another process uses it, or it cannot be read.
    """
    check_regular(path)
    if path.stat().st_size == 0:
        return
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=1.0)) as file:
            file.text_factory = _text
            application, version, tables = (
                file.execute(query).fetchone()[0]
                for query in ("PRAGMA application_id", "PRAGMA user_version", "SELECT count(*) FROM sqlite_schema")
            )
            if (application, version) != (_APPLICATION, _FORMAT) and (application, version, tables) != (0, 0, 0):
                if application == _APPLICATION:
                    raise InstError(f"{path} is of another version of inst", "use that, or choose another data folder")
                raise _foreign(path)
            found = file.execute("PRAGMA quick_check(1)").fetchone()[0]
            if found != "ok":
                raise _DamagedError(found)
            if tables:
                file.execute("SELECT number, id, person, state, changed, content FROM jobs LIMIT 1").fetchall()
    except (sqlite3.DatabaseError, UnicodeDecodeError, MemoryError) as error:
        code = (getattr(error, "sqlite_errorcode", None) or sqlite3.SQLITE_CORRUPT) & 0xFF
        if code not in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_NOMEM):
            raise
        with path.open("rb") as content:
            head = content.read(72)
        if not (head.startswith(b"SQLite format 3\0") and head.endswith(_APPLICATION.to_bytes(4, "big"))):
            raise _foreign(path) from None  # nobody's file is renamed but our own
        raise _DamagedError(str(error)) from None


def _foreign(path: Path) -> InstError:
    return InstError(f"{path} cannot be used: it is not a file of jobs", "rename it, or choose another data folder")


def _open(path: Path) -> sqlite3.Connection:
    file = sqlite3.connect(path, timeout=1.0, check_same_thread=False, isolation_level=None)
    file.text_factory = _text
    try:
        # Held until it is closed: two servers in one folder would run the same jobs.
        file.execute("PRAGMA locking_mode = EXCLUSIVE")
        file.execute("PRAGMA journal_mode = WAL")
        file.execute("BEGIN IMMEDIATE")
        file.execute("COMMIT")
        file.executescript(_SCHEMA)
    except BaseException:
        file.close()
        raise
    return file


def _set_aside(path: Path) -> Path:
    """Give a damaged file, and what SQLite keeps beside it, another name. Raises InstError."""
    kept = path.with_name(f"{path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}")
    try:
        for ending in ("", "-wal", "-shm", "-journal"):
            part = path.with_name(path.name + ending)
            if part.exists():
                part.rename(kept.with_name(kept.name + ending))
    except OSError as error:
        raise InstError(f"{path} is damaged and cannot be renamed ({error.strerror})", "rename it") from None
    return kept


def _text(data: bytes) -> str:
    return data.decode(errors="replace")
