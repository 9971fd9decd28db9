"""Stream the files of a folder or a glob in a fixed order, with bounded memory."""

from __future__ import annotations

import errno
import fnmatch
import os
import re
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from itertools import chain, islice
from typing import NamedTuple

from inst.errors import InstError

_BLOCK = 10_000
"""So many names are sorted in memory; more are sorted on the disk."""

_LINKS = 3
"""So many links to folders are followed inside of each other. A few folders that all link to one another have millions
of paths."""

ANY_DEPTH = "**"
"""The part of a glob that stands for any number of folders, also none."""


def is_glob(text: str) -> bool:
    """Whether a path has the special characters of a glob."""
    return re.search(r"[*?\[]", text) is not None


def split_glob(pattern: str) -> tuple[str, list[str]]:
    """Split a glob into the folder before its first special character, and the parts after it."""
    parts = pattern.split("/")
    fixed = next(k for k, part in enumerate(parts) if is_glob(part))
    folder = "/".join(parts[:fixed])
    return folder + "/" if pattern.startswith("/") else folder, [part for part in parts[fixed:] if part]


class Pattern:
    """The parts of a glob. A state is the set of the parts that can come next.

    As in a shell, `*`, `?` and `**` do not match a name that starts with a dot.
    """

    def __init__(self, parts: Sequence[str]) -> None:
        self._parts = [
            None if part == ANY_DEPTH else (re.compile(fnmatch.translate(part)), part.startswith(".")) for part in parts
        ]
        self.start = self._closed({0})
        # A `**` at the end stands for the files too.
        self._final = {len(parts)} | ({len(parts) - 1} if parts and parts[-1] == ANY_DEPTH else set())

    def _closed(self, state: Iterable[int]) -> frozenset[int]:
        """Add the parts that can come next because `**` can stand for nothing."""
        closed: set[int] = set()
        for k in state:
            closed.add(k)
            while k < len(self._parts) and self._parts[k] is None:
                k += 1
                closed.add(k)
        return frozenset(closed)

    def step(self, state: frozenset[int], name: str) -> frozenset[int]:
        """Return the state after one more name."""
        following: set[int] = set()
        for k in state:
            part = self._parts[k] if k < len(self._parts) else ()
            if part is None:
                following |= set() if name.startswith(".") else {k}
            elif part and part[0].match(name) and (part[1] or not name.startswith(".")):
                following.add(k + 1)
        return self._closed(following)

    def accepts(self, state: frozenset[int]) -> bool:
        """Whether a file in this state matches."""
        return not self._final.isdisjoint(state)

    def continues(self, state: frozenset[int]) -> bool:
        """Whether files in a folder in this state can match."""
        return any(k < len(self._parts) for k in state)

    def matches(self, path: str) -> bool:
        """Whether a path relative to the pattern's folder matches."""
        state = self.start
        for name in path.split("/"):
            state = self.step(state, name)
        return self.accepts(state)


class _Open(NamedTuple):
    """A folder that is being read: its path, the state of the pattern, the folders it is in, and links among them."""

    path: str
    state: frozenset[int]
    above: frozenset[tuple[int, int]]
    links: int
    entries: Iterator[tuple[bool, str]]


def files_below(folder: str, pattern: Pattern) -> Iterator[tuple[str, OSError | None]]:
    """Yield the files in a folder that match, as paths relative to it; in each folder, files come before folders.

    Links to folders are followed, except to a folder that the link is in, and at most `_LINKS` inside of each other. A
    folder that cannot be read is yielded with its error.
    """
    waiting: list[_Open] = []

    def enter(path: str, state: frozenset[int], outer: frozenset[tuple[int, int]], links: int) -> OSError | None:
        place = os.path.join(folder, path)
        try:
            status = os.stat(place)
            if (status.st_dev, status.st_ino) not in outer:
                links += bool(path) and os.path.islink(place)
                if links > _LINKS:
                    return OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                inner = outer | {(status.st_dev, status.st_ino)}
                waiting.append(_Open(path, state, inner, links, _entries(place, pattern, state)))
        except OSError as error:
            return error
        return None

    if error := enter("", pattern.start, frozenset(), 0):
        raise error
    while waiting:
        latest = waiting[-1]
        for is_folder, name in latest.entries:
            child = os.path.join(latest.path, name)
            if not is_folder:
                yield child, None
            elif error := enter(child, pattern.step(latest.state, name), latest.above, latest.links):
                yield child, error
            else:
                break  # its files come first
        else:
            waiting.pop()


def _entries(folder: str, pattern: Pattern, state: frozenset[int]) -> Iterator[tuple[bool, str]]:
    """Return (whether it is a folder, name) of the entries that match or can lead to a match, sorted."""
    entries = os.scandir(folder)  # here, so that a folder that cannot be read raises at once

    def keys() -> Iterator[bytes]:
        with entries:
            for entry in entries:
                following = pattern.step(state, entry.name)
                if not following:
                    continue
                try:
                    is_folder = entry.is_dir()
                except OSError:  # a link in a circle: to be read, and to fail, as a file
                    is_folder = False
                if pattern.continues(following) if is_folder else pattern.accepts(following):
                    yield b"%d" % is_folder + os.fsencode(entry.name)

    return ((key[:1] == b"1", os.fsdecode(key[1:])) for key in sorted_keys(keys()))


def sorted_keys(keys: Iterable[bytes]) -> Iterator[bytes]:
    """Yield keys in their order. More than a block of them are sorted by SQLite, in a file that deletes itself."""
    keys = iter(keys)
    block = list(islice(keys, _BLOCK))
    if len(block) < _BLOCK:
        yield from sorted(block)
        return
    try:
        with closing(sqlite3.connect("", check_same_thread=False)) as database:
            for setting in ("cache_size = -4096", "journal_mode = OFF", "synchronous = OFF"):  # 4 MiB; it is no record
                database.execute(f"PRAGMA {setting}")
            database.execute("CREATE TABLE keys (key BLOB PRIMARY KEY) WITHOUT ROWID")
            database.executemany("INSERT OR IGNORE INTO keys VALUES (?)", ((key,) for key in chain(block, keys)))
            del block
            for (key,) in database.execute("SELECT key FROM keys ORDER BY key"):
                yield key
    except sqlite3.Error as error:
        raise InstError(
            f"The names of a large folder cannot be sorted ({error})", "free space in the folder for temporary files"
        ) from None
