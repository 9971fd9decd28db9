"""Jobs on the disk: one row a job in a SQLite file, which one process holds at a time."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from inst.errors import InstError

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


class JobStore:
    """The file of all jobs. Its methods may be called from any thread.

    Raises:
        InstError: another process uses the file, it is not such a file, or it cannot be written to.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._file = sqlite3.connect(path, timeout=1.0, check_same_thread=False, isolation_level=None)
        try:
            # Held until it is closed: two servers in one folder would run the same jobs.
            self._file.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._file.execute("PRAGMA journal_mode = WAL")
            self._file.execute("BEGIN IMMEDIATE")
            known = (
                self._file.execute("PRAGMA application_id").fetchone()[0],
                self._file.execute("PRAGMA user_version").fetchone()[0],
            )
            self._file.execute("COMMIT")
            if known not in ((0, 0), (_APPLICATION, _FORMAT)):
                raise InstError(f"{path} is not a file of jobs of this version", "choose another data folder")
            self._file.executescript(_SCHEMA)
        except sqlite3.Error as error:
            self._file.close()
            if "locked" in str(error):
                raise InstError(
                    f"Another studio uses the folder {path.parent}", "stop it, or choose another data folder"
                ) from None
            raise InstError(f"{path} cannot be used ({error})", "choose another data folder") from None

    def save(self, job: Job) -> None:
        """Write a job; when this returns, it survives a crash. Raises InstError if the disk is full."""
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
        except sqlite3.Error as error:
            raise InstError(f"The job cannot be saved ({error})", "free some space on the disk") from None

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
        return [row[0] for row in rows]

    def close(self) -> None:
        """Close the file, so that another process may use it."""
        with self._lock:
            self._file.close()

    def _read(self, where: str, *values: str) -> list[Job]:
        with self._lock:
            rows = self._file.execute(f"SELECT id, person, state, content FROM jobs {where}", values).fetchall()
        return [_job(*row) for row in rows]


def _job(id: str, person: str, state: str, content: str) -> Job:
    entries = json.loads(content)
    if entries["progress"] is not None:
        entries["progress"] = Progress(**entries["progress"] | {"files": tuple(entries["progress"]["files"])})
    return Job(id=id, person=person, state=JobState(state), **entries)
