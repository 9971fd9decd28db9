"""The index of the library: a SQLite file with what is known about each style file, so that lists are fast.

The style files are the truth. The index is compared with them at each listing, and made again if it is missing or
damaged. This module does not import PyTorch before it reads a style.
"""

from __future__ import annotations

import logging
import os
import re
import sqlite3
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from inst.errors import InstError, first_line
from inst.files.listing import readable_name
from inst.studio.entry import StyleEntry
from inst.studio.style_files import ENDING, ID, id_of, painting_hash, read_style_file

_log = logging.getLogger(__name__)

FILE = "index.sqlite"
TRASH = "trash"
"""Subfolder of deleted styles: `<id>-<time of deletion, Unix time in milliseconds>.safetensors`."""

_IN_TRASH = re.compile(rf"({ID.pattern})-(\d{{1,15}}){re.escape(ENDING)}")
_OTHER_ENDING = ".state.safetensors"  # interrupted learnings

_APPLICATION = 0x1457CD20
"""Application id that marks a SQLite file as the index of a library."""
_FORMAT = 1
"""Increase it if the meaning of any column changes, also of `entry` and `vector`: older indexes are made again."""

# Thumbnails and embeddings belong to the bytes of a painting, so they stay when a style file is written again.
_SCHEMA = f"""
BEGIN IMMEDIATE;
PRAGMA application_id = {_APPLICATION};
PRAGMA user_version = {_FORMAT};
CREATE TABLE IF NOT EXISTS files (
    file BLOB PRIMARY KEY,           -- path in the library's folder; bytes, because a name may not be UTF-8
    size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    id TEXT NOT NULL,
    deleted INTEGER,                 -- Unix time in milliseconds; NULL unless it is in the trash
    problem TEXT,                    -- why it cannot be read; NULL if it can
    entry TEXT,                      -- StyleEntry.to_json
    added REAL,
    painting TEXT                    -- sha256 of the first painting; NULL without paintings
) STRICT;
CREATE INDEX IF NOT EXISTS files_by_id ON files (id);
CREATE TABLE IF NOT EXISTS thumbnails (
    painting TEXT NOT NULL, side INTEGER NOT NULL, data BLOB NOT NULL, PRIMARY KEY (painting, side)
) STRICT;
CREATE TABLE IF NOT EXISTS embeddings (
    painting TEXT NOT NULL, encoder TEXT NOT NULL, vector BLOB NOT NULL, PRIMARY KEY (painting, encoder)
) STRICT;
COMMIT;
"""

_Result = TypeVar("_Result")
_Stamp = tuple[int, int]  # size in bytes and time of the last change in ns


class Index:
    """The open index of a library's folder. Threads can share it, and several processes can open the same folder.

    Raises:
        InstError: the index cannot be opened, or is a database of another program.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / FILE
        self._lock = threading.RLock()
        try:
            self._connection = self._open()
        except (sqlite3.Error, OSError) as error:
            raise self._failure(error) from None
        # What could not be read may be readable now: a change of permissions does not show in the time of the file.
        self.write("DELETE FROM files WHERE problem IS NOT NULL")
        self.refresh()
        for table in ("thumbnails", "embeddings"):
            self.write(f"DELETE FROM {table} WHERE painting NOT IN (SELECT painting FROM files WHERE painting NOTNULL)")

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def rows(self, query: str, *values: object) -> list[sqlite3.Row]:
        """Return the rows of a query."""
        return self._run(lambda connection: connection.execute(query, values).fetchall())

    def write(self, statement: str, *values: object) -> None:
        """Run a statement that changes the index."""
        self._run(lambda connection: connection.execute(statement, values))

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keep all other threads and processes from changing the library inside the block. Blocks can be nested."""
        with self._lock:
            if self._connection.in_transaction:
                yield
                return
            self.write("BEGIN IMMEDIATE")
            try:
                yield
            finally:
                # Also after an error: what the index says about the files is right, or put right at the next listing.
                if self._connection.in_transaction:
                    self.write("COMMIT")

    def refresh(self) -> None:
        """Compare the index with the files, and read the files that are new or have changed."""
        self._run(self._update)

    def live(self, id: str) -> sqlite3.Row | None:
        """Return the row of a style that is not in the trash."""
        live = "SELECT * FROM files WHERE id = ? AND entry NOTNULL AND deleted IS NULL ORDER BY file LIMIT 1"
        return next(iter(self.rows(live, id)), None)

    def without_embedding(self, encoder: str) -> list[sqlite3.Row]:
        """Return the rows of the styles with a painting that has no embedding by this encoder."""
        return self.rows(
            "SELECT * FROM files WHERE painting NOTNULL AND deleted IS NULL "
            "AND painting NOT IN (SELECT painting FROM embeddings WHERE encoder = ?) ORDER BY added DESC, file",
            encoder,
        )

    def with_embedding(self, encoder: str) -> list[sqlite3.Row]:
        """Return the entries of the styles with an embedding by this encoder, each with its `vector`."""
        return self.rows(
            "SELECT entry, vector FROM files JOIN embeddings USING (painting) "
            "WHERE encoder = ? AND deleted IS NULL ORDER BY added DESC, file",
            encoder,
        )

    def is_current(self, row: sqlite3.Row) -> bool:
        """Whether a file has not changed since the index read it."""
        try:
            return _stamp(os.lstat(self.path_of(row))) == (row["size"], row["mtime_ns"])
        except OSError:
            return False

    def path_of(self, row: sqlite3.Row) -> Path:
        """Return the path of a file."""
        return self.folder / os.fsdecode(row["file"])

    def _update(self, connection: sqlite3.Connection) -> None:
        known = {
            file: (size, time) for file, size, time in connection.execute("SELECT file, size, mtime_ns FROM files")
        }
        found = dict(self._scan())
        gone = [(file,) for file in known.keys() - found.keys()]
        # The files are read before the index is locked for other processes.
        read = [self._read(file, stamp) for file, stamp in found.items() if known.get(file) != stamp]
        if not gone and not read:
            return
        with self.exclusive():
            connection.executemany("DELETE FROM files WHERE file = ?", gone)
            connection.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", read)

    def _scan(self) -> Iterator[tuple[bytes, _Stamp]]:
        """Find the style files and links in the folder, and the files in its trash."""
        trash = self.folder / TRASH
        try:
            yield from (pair for pair in _files_in(self.folder) if not pair[0].endswith(_OTHER_ENDING.encode()))
            if trash.is_dir() and not trash.is_symlink():
                for name, stamp in _files_in(trash):
                    if _IN_TRASH.fullmatch(os.fsdecode(name)):
                        yield f"{TRASH}/".encode() + name, stamp
        except OSError as error:
            raise InstError(
                f"The library {self.folder} cannot be read ({error.strerror or error})", "check the folder"
            ) from None

    def _read(self, file: bytes, stamp: _Stamp) -> tuple[Any, ...]:
        """Read a file into a row of the table."""
        path = self.folder / os.fsdecode(file)
        trashed = _IN_TRASH.fullmatch(path.name) if file.startswith(f"{TRASH}/".encode()) else None
        id, deleted = (trashed[1], int(trashed[2])) if trashed else (id_of(path.name), None)
        size, mtime_ns = stamp
        try:
            if path.is_symlink():
                raise InstError(f"{readable_name(path.name)} is a link, which is not followed", "copy the file itself")
            style = read_style_file(path, module=False)
            entry = StyleEntry.of(style, id, size, mtime_ns / 1e9)
            return file, size, mtime_ns, id, deleted, None, entry.to_json(), entry.added, painting_hash(style)
        except InstError as error:
            problem = str(error)
        except Exception as error:  # one file, whatever is in it, must not close the whole library
            problem = f"{path.name} is damaged ({first_line(error)})"
        return file, size, mtime_ns, id, deleted, readable_name(problem), None, None, None

    def _run(self, work: Callable[[sqlite3.Connection], _Result]) -> _Result:
        """Run `work` with the connection. If the index turns out to be damaged or gone, it is made again before."""
        with self._lock:
            try:
                try:
                    return work(self._connection)
                except sqlite3.DatabaseError as error:
                    if not _is_lost(error):
                        raise
                    self._connection.close()
                    self._connection = self._open()
                    self._update(self._connection)
                    return work(self._connection)
            except sqlite3.ProgrammingError:  # a bug, or a library that was closed
                raise
            except (sqlite3.DatabaseError, OSError) as error:
                raise self._failure(error) from None

    def _open(self) -> sqlite3.Connection:
        """Open the index, and make it first if there is none that can be used."""
        if self.path.is_symlink():  # not followed out of the folder
            self.path.unlink()
        if self.path.exists() and not self.path.is_file():
            raise InstError(f"{self.path} is not a file", "rename it: the index is made again")
        try:
            return self._connect()
        except sqlite3.DatabaseError as error:
            if not _is_lost(error):
                raise
            _log.warning("%s was damaged or of another version and is made again from the style files", FILE)
            for ending in ("", "-journal", "-wal", "-shm"):
                self.path.with_name(FILE + ending).unlink(missing_ok=True)
            return self._connect()

    def _connect(self) -> sqlite3.Connection:
        # Autocommit, so that transactions start and end only in `exclusive`.
        connection = sqlite3.connect(self.path, timeout=30, isolation_level=None, check_same_thread=False)
        connection.row_factory = sqlite3.Row
        connection.text_factory = lambda data: data.decode(errors="replace")
        try:

            def value(query: str) -> Any:
                return connection.execute(query).fetchone()[0]

            application, version = value("PRAGMA application_id"), value("PRAGMA user_version")
            if value("SELECT count(*) FROM sqlite_master"):
                if application != _APPLICATION:
                    raise InstError(f"{self.path} is a database of another program", "choose another folder")
                if version != _FORMAT or value("PRAGMA quick_check(1)") != "ok":
                    raise _LostIndexError
            connection.executescript(_SCHEMA)
            _check_rows(connection)
            return connection
        except UnicodeDecodeError:  # a name in a damaged index
            connection.close()
            raise _LostIndexError from None
        except BaseException:
            connection.close()
            raise

    def _failure(self, error: Exception) -> InstError:
        return InstError(
            f"The index {self.path} cannot be used ({error})",
            "check the folder's permissions and the space on the disk, or delete the index: it is made again",
        )


def _check_rows(connection: sqlite3.Connection) -> None:
    """Raise _LostIndexError if the rows are not those that this module writes."""
    for (entry,) in connection.execute("SELECT entry FROM files WHERE entry NOTNULL"):
        try:
            StyleEntry.from_json(entry)
        except (ValueError, TypeError, KeyError, RecursionError):
            raise _LostIndexError from None
    sizes = (
        "SELECT 1 FROM embeddings GROUP BY encoder HAVING count(DISTINCT length(vector)) > 1 OR max(length(vector)) % 4"
    )
    if connection.execute(sizes).fetchone():
        raise _LostIndexError


class _LostIndexError(sqlite3.DatabaseError):
    """The index is of another version, or damaged."""


def _is_lost(error: sqlite3.DatabaseError) -> bool:
    """Whether an error says that the index is damaged, or was deleted or replaced while it was open."""
    code = getattr(error, "sqlite_errorcode", None) or 0
    lost = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)  # the last: a table is missing
    return isinstance(error, _LostIndexError) or code & 0xFF in lost or code == sqlite3.SQLITE_READONLY_DBMOVED


def _files_in(folder: Path) -> Iterator[tuple[bytes, _Stamp]]:
    """Find the files and links in a folder that end in .safetensors; hidden ones are left out."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or not entry.name.lower().endswith(ENDING):
                continue
            with suppress(FileNotFoundError):  # deleted in the meantime
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode):
                    yield os.fsencode(entry.name), _stamp(status)


def _stamp(status: os.stat_result) -> _Stamp:
    return status.st_size, status.st_mtime_ns
