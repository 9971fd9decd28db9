"""Tell what is being written from what a killed process left: a process locks the files that it is writing.

The operating system drops a lock when its process ends, however it ends. Where there are no such locks (Windows, a few
network disks), nothing is held and nothing is taken for left.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import re
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

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
_MOST_AT_ONCE = 1_000
"""Files that `sweep_once` looks at. The next command looks again."""
_DEEPEST, _MOST_ENTRIES = 32, 1_000_000
"""Bounds of `sweep_below`, in folders and in names."""


class Leftover(NamedTuple):
    """A deleted file or folder, and the bytes that it took."""

    path: Path
    size: int


def part_name() -> str:
    """Return a new name for an unfinished file or a temporary folder of this process. `sweep` knows such names."""
    return f".inst-{os.getpid()}-{secrets.token_hex(8)}.part"


def lock(file: IO[bytes] | int, *, wait: bool = False) -> bool | None:
    """Lock an open file or folder until it is closed or its process ends.

    Args:
        file: the file, or the descriptor of a folder.
        wait: wait until it is free. Whoever looks for leftovers holds a file for an instant.

    Returns:
        True if it is locked now, False if it was locked already, None if files cannot be locked here.
    """
    if fcntl is None:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def is_at(file: IO[bytes] | int, path: Path) -> bool:
    """Return whether an open file still has this name: another process may have deleted or replaced it."""
    try:
        return os.path.samestat(os.fstat(file if isinstance(file, int) else file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def new_part(folder: Path) -> tuple[Path, IO[bytes]]:
    """Create an unfinished file, and return it with its open file, which locks it. Raises OSError."""
    while True:
        path = folder / part_name()
        file = path.open("xb")
        lock(file, wait=True)
        if path.exists() or not folder.is_dir():
            return path, file
        file.close()  # before it was locked, a computer that shares the disk took it for a leftover


@contextlib.contextmanager
def temporary_folder(parent: str | Path | None = None) -> Iterator[Path]:
    """Make a folder for this block, and delete it at the end; if the process is killed, `sweep` deletes it.

    Args:
        parent: the folder to make it in; None is the system's folder for temporary files.

    Raises:
        OSError: the folder cannot be made.
    """
    folder = Path(tempfile.gettempdir() if parent is None else parent, part_name())
    sweep_once(folder.parent)
    folder.mkdir(mode=0o700)
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # a system that opens no folders has no locks either
            descriptor = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            lock(descriptor, wait=True)
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        yield folder


def sweep(folder: str | Path, most: int | None = None) -> list[Leftover]:
    """Delete what killed processes left in a folder: unfinished files, lock files, and names reserved for nothing.

    What a living process writes is locked and stays, on this computer and on others that share the disk. What cannot be
    read or deleted stays too. No link is followed.

    Args:
        folder: the folder.
        most: the number of files that are looked at; None looks at all.

    Returns:
        What was deleted.
    """
    deleted: list[Leftover] = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for path in itertools.islice((one.path for one in entries if one.name.startswith(LOCK_START)), most):
            deleted += sweep_one(path)
    return deleted


def sweep_one(path: str | Path) -> list[Leftover]:
    """`sweep` one file or folder. Returns what was deleted, which may be a name reserved for nothing, too."""
    path = Path(path)
    with contextlib.suppress(OSError):
        return _delete_left(path, stat.S_ISDIR(path.lstat().st_mode))
    return []


def sweep_once(folder: str | Path) -> None:
    """`sweep` a folder once in this process, and at most a thousand files: all its users may have left some."""
    _sweep_once(os.path.abspath(folder))  # the current folder may change


@functools.cache
def _sweep_once(folder: str) -> None:
    sweep(folder, _MOST_AT_ONCE)


def sweep_below(folder: str | Path) -> tuple[list[Leftover], bool]:
    """`sweep` a folder and those in it, 32 deep and up to a million names.

    Returns:
        What was deleted, and whether that is all: False if there are more names or deeper folders.
    """
    deleted, seen, whole, top = sweep(folder), 0, True, os.path.abspath(folder)
    for place, below, files in os.walk(top):  # follows no links
        seen += len(below) + len(files)
        if seen > _MOST_ENTRIES:
            return deleted, False
        if below and place.count(os.sep) - top.count(os.sep) >= _DEEPEST:
            below.clear()
            whole = False
        for name in below:
            path = Path(place, name)
            if not path.is_symlink():
                deleted += sweep(path)
    return deleted, whole


def _delete_left(path: Path, is_folder: bool) -> list[Leftover]:
    part = _PART.fullmatch(path.name)
    if part is None and (is_folder or not path.name.endswith(LOCK_END)):
        return []
    descriptor = _open_left(path, is_folder)
    try:
        opened = os.fstat(descriptor)
        # Its process may have ended since it was opened, and another one may have created a file of the same name.
        if not (is_folder or stat.S_ISREG(opened.st_mode)) or not lock(descriptor) or not is_at(descriptor, path):
            return []
        if part is not None:
            young = time.time() - opened.st_mtime < _YOUNG
            if young and _lives(int(part[1])):
                return []
            companions = (path.with_name(path.name + ending) for ending in _COMPANIONS)
            files = [*(one for one in companions if one.exists()), path]
        else:
            left = path.with_name(path.name[len(LOCK_START) : -len(LOCK_END)])
            reserved = os.read(descriptor, 300).split()[-1:] == [RESERVED]
            files = [left, path] if reserved and _is_empty(left, opened.st_uid) else [path]
        return [_delete(one) for one in files]
    finally:
        os.close(descriptor)


def _open_left(path: Path, is_folder: bool) -> int:
    """Open what may be a leftover, and return the descriptor. Raises OSError."""
    flags = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    if not is_folder:
        # For writing: network disks lock no file that is open for reading.
        with contextlib.suppress(PermissionError):  # it is another user's
            return os.open(path, flags | os.O_RDWR)
    return os.open(path, flags | os.O_RDONLY)


def _is_empty(path: Path, owner: int) -> bool:
    """Return whether a path is an empty file of a user. Somebody else's lock file must not choose what is deleted."""
    found = path.lstat() if os.path.lexists(path) else None
    return found is not None and stat.S_ISREG(found.st_mode) and found.st_size == 0 and found.st_uid == owner


def _delete(path: Path) -> Leftover:
    """Delete a file or a folder. Raises OSError."""
    if path.is_dir() and not path.is_symlink():
        size = sum(one.lstat().st_size for one in path.rglob("*") if not one.is_dir())
        shutil.rmtree(path)
        return Leftover(path, size)
    size = path.lstat().st_size
    path.unlink()
    return Leftover(path, size)


def _lives(process: int) -> bool:
    import psutil

    return process == os.getpid() or psutil.pid_exists(process)
