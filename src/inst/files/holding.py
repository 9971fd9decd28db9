"""Tell what is being written from what a killed process left: a process locks the files that it is writing.

The operating system drops a lock when its process ends, however it ends. Where there are no such locks (Windows, a few
network disks), nothing is held and nothing is taken for left.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import time
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # not POSIX
    fcntl = None  # type: ignore[assignment]

LOCK_START, LOCK_END = ".inst-", ".lock"
"""How the name of a lock file begins and ends; the name of what it locks stands between."""

RESERVED = b"reserved"
"""The last word in the lock file of a name that was free: what lies under that name is empty until it is written."""

_PART = re.compile(r"\.inst-(\d+)-[0-9a-f]{16}\.part")
_COMPANIONS = ("-journal", "-wal", "-shm")
"""Endings of the files that SQLite keeps beside a database."""
_YOUNG = 60.0
"""Seconds in which an unlocked file may be one that a living process is about to lock."""


def part_name() -> str:
    """Return a new name for an unfinished file of this process. `sweep` knows such names."""
    return f".inst-{os.getpid()}-{secrets.token_hex(8)}.part"


def lock(file: IO[bytes]) -> bool | None:
    """Lock an open file until it is closed or its process ends, without waiting.

    Returns:
        True if it is locked now, False if it was locked already, None if files cannot be locked here.
    """
    if fcntl is None:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def sweep(folder: str | Path) -> list[Path]:
    """Delete what killed processes left in a folder: unfinished files, lock files, and names reserved for nothing.

    What a living process writes is locked and stays, on this computer and on others that share the disk. What cannot be
    read or deleted stays too.

    Returns:
        The deleted files.
    """
    deleted: list[Path] = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(LOCK_START) and entry.is_file(follow_symlinks=False):
                with contextlib.suppress(OSError):
                    deleted += _delete_left(Path(entry.path))
    return deleted


def _delete_left(path: Path) -> list[Path]:
    part = _PART.fullmatch(path.name)
    if part is None and not path.name.endswith(LOCK_END):
        return []
    with path.open("r+b") as file:  # for writing: network disks lock no file that is open for reading
        if not lock(file):
            return []
        if part is None:
            left = path.with_name(path.name[len(LOCK_START) : -len(LOCK_END)])
            reserved = file.read(300).split()[-1:] == [RESERVED]
            files = [left, path] if reserved and left.is_file() and left.stat().st_size == 0 else [path]
        elif time.time() - path.stat().st_mtime < _YOUNG and _lives(int(part[1])):
            return []
        else:
            companions = (path.with_name(path.name + ending) for ending in _COMPANIONS)
            files = [path, *(one for one in companions if one.exists())]
        for one in files:
            one.unlink()
        return files


def _lives(process: int) -> bool:
    import psutil

    return process == os.getpid() or psutil.pid_exists(process)
