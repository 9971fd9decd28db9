"""The manifest of a batch: what became of every input. JSON lines while a run is under way, then a Parquet file.

A run appends a line for each output to `manifest.jsonl`, after the output itself. At its end, the lines and the rows of
earlier runs become `manifest.parquet`. A line that a killed process could not write any more costs nothing but its
number of seconds: what is done is seen from the outputs.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

from inst.batch.orders import Row
from inst.batch.outputs import Outputs
from inst.errors import InstError, UsageError, first_line
from inst.files.writing import cannot_write, make_folder
from inst.version import __version__

LINES, TABLE, PARTS = "manifest.jsonl", "manifest.parquet", "manifest"
"""The file of a run under way, the file at its end, and the folder of the lines on a store, which cannot append."""

_BATCH = 10_000  # rows in memory
_PART_ROWS = 1_000  # rows of a file on a store; when a run is killed, the last ones are not in the manifest
_FORMAT = 1
_START = b'{"inst": '  # of the first line
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)  # of a file system that has none, as on some clusters


class Manifest:
    """The manifest of one run.

    Args:
        outputs: the output folder.
        described: what the user chose (`Order.described`).

    Attributes:
        changed: the settings that differ from those of the latest run in this folder, by name: (before, now).

    Raises:
        UsageError: the folder holds the outputs of another command.
        InstError: the folder cannot be written, another process writes to it, or its manifest is damaged.
    """

    def __init__(self, outputs: Outputs, described: Mapping[str, Any]) -> None:
        self.outputs = outputs
        self.described = json.loads(json.dumps(dict(described), default=str))
        earlier = _latest_header(outputs)
        if earlier is not None and earlier.get("command") != self.described["command"]:
            raise UsageError(
                f"{outputs.shown} holds the results of inst batch {earlier.get('command')}",
                "give another folder for these results",
            )
        self.changed: dict[str, tuple[Any, Any]] = {
            name: (earlier.get(name), self.described.get(name))
            for name in ({**earlier, **self.described} if earlier else ())
            if earlier is not None and earlier.get(name) != self.described.get(name)
        }
        self._lines = _LocalLines(outputs) if outputs.is_local else _StoreLines(outputs)
        self._lines.add({"inst": __version__, "format": _FORMAT, "settings": self.described})

    def add(self, row: Row) -> None:
        """Add a row. Raises InstError if it cannot be written."""
        self._lines.add(row.to_dict() | {"finished": datetime.now(UTC).isoformat(timespec="milliseconds")})

    def close(self) -> None:
        """Keep the lines as they are; for a run that does not reach its end."""
        self._lines.close()

    def finish(self) -> str:
        """Write the Parquet file, delete the lines, and return the path of the manifest.

        Without the library pyarrow, the lines stay. Raises InstError if it cannot be written, or an earlier one is
        damaged; the lines then stay too.
        """
        self._lines.flush()
        if find_spec("pyarrow") is None:
            self._lines.close()
            return self.outputs.path(LINES if self.outputs.is_local else PARTS)
        import pyarrow as pa

        try:
            with tempfile.TemporaryDirectory() as folder:
                table = Path(folder) / TABLE
                _write_table(table, _merged(self.outputs, Path(folder)), self.described)
                self.outputs.put(TABLE, table)
        except (pa.ArrowException, sqlite3.Error, OSError) as error:
            reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else first_line(error)
            raise InstError(
                f"{self.outputs.path(TABLE)} cannot be brought up to date ({reason})",
                "free space for temporary files, or move it away if it is damaged; what is done stays, and the same "
                "command goes on",
            ) from None
        self._lines.delete()
        return self.outputs.path(TABLE)


class _LocalLines:
    """Lines that are appended to a file. The file is locked, so that two runs do not mix."""

    def __init__(self, outputs: Outputs) -> None:
        self.path = make_folder(outputs.place) / LINES
        try:
            self.file: IO[bytes] = _open_locked(self.path, outputs.place)
            self.earlier = self.file.tell()  # bytes
            if self.earlier and not _ends_with_line(self.path):
                self.file.write(b"\n")  # a killed process left half a line
        except OSError as error:
            raise cannot_write(self.path, error) from None
        self.count = 0

    def add(self, content: Mapping[str, Any]) -> None:
        try:
            self.file.write(json.dumps(content).encode() + b"\n")
            self.file.flush()
        except OSError as error:
            raise cannot_write(self.path, error) from None
        self.count += 1

    def flush(self) -> None:
        pass  # every line is in the file

    def close(self) -> None:
        with contextlib.suppress(OSError):  # a full disk was reported by `add`
            if self.count <= 1 and not self.file.closed:  # a run without a row leaves no trace
                os.ftruncate(self.file.fileno(), self.earlier)
                if not self.earlier:
                    self.path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.file.close()

    def delete(self) -> None:
        self.path.unlink(missing_ok=True)  # before it is closed: no other run may begin between
        self.close()


class _StoreLines:
    """Lines that are written as files of `_PART_ROWS` lines."""

    def __init__(self, outputs: Outputs) -> None:
        self.outputs, self.waiting = outputs, list[bytes]()
        self.number = len(outputs.names(PARTS, ".jsonl"))

    def add(self, content: Mapping[str, Any]) -> None:
        self.waiting.append(json.dumps(content).encode() + b"\n")
        if len(self.waiting) >= _PART_ROWS:
            self.flush()

    def flush(self) -> None:
        if self.waiting:
            self.outputs.write(f"{PARTS}/{self.number:06}.jsonl", b"".join(self.waiting))
            self.number, self.waiting = self.number + 1, []

    def close(self) -> None:
        with contextlib.suppress(InstError):  # a store that does not answer was reported
            self.flush()

    def delete(self) -> None:
        for name in self.outputs.names(PARTS, ".jsonl"):
            self.outputs.remove(f"{PARTS}/{name}")


def _open_locked(path: Path, place: str) -> IO[bytes]:
    """Open the file of lines. Raises InstError if another run has it, UsageError if it is a file of something else."""
    while True:
        file = path.open("a+b")
        try:
            _lock(file, place)
            if not _is_at(file, path):  # the run that had it has just ended, and has deleted it
                file.close()
                continue
            file.seek(0)
            start = file.read(len(_START))
            if start != _START[: len(start)]:
                raise UsageError(f"{path} is not the manifest of a batch", "give another folder for the results")
            file.seek(0, os.SEEK_END)
        except BaseException:
            file.close()
            raise
        return file


def _is_at(file: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _lock(file: IO[bytes], place: str) -> None:
    """Lock the file for this process; its end frees it. Windows has no such lock, and needs none to be correct."""
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return
        if not isinstance(error, BlockingIOError):
            raise
        raise InstError(
            f"Another run is writing to {place}", "wait until it has ended, or give another folder"
        ) from None


def _ends_with_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def _line_files(outputs: Outputs) -> Iterator[Iterable[bytes]]:
    """Yield the lines of the runs that did not reach their end, file by file."""
    if outputs.is_local:
        path = Path(outputs.place, LINES)
        if path.is_file():
            with path.open("rb") as file:
                yield file
        return
    for name in outputs.names(PARTS, ".jsonl"):
        with tempfile.TemporaryDirectory() as folder:
            fetched = outputs.fetch(f"{PARTS}/{name}", Path(folder))
            yield [] if fetched is None else fetched.read_bytes().splitlines()


def _contents(outputs: Outputs) -> Iterator[dict[str, Any]]:
    """Yield what the lines hold. A line that is not complete is left out: its process was killed."""
    for lines in _line_files(outputs):
        for line in lines:
            try:
                content = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(content, dict):
                yield content


def _latest_header(outputs: Outputs) -> dict[str, Any] | None:
    """Return what the user chose in the latest run; None if there was none."""
    latest = None
    for content in _contents(outputs):
        if isinstance(content.get("settings"), dict):
            latest = content["settings"]
    if latest is not None or find_spec("pyarrow") is None:
        return latest
    import pyarrow as pa
    import pyarrow.parquet as pq

    with contextlib.nullcontext("") if outputs.is_local else tempfile.TemporaryDirectory() as folder:
        table = outputs.fetch(TABLE, Path(folder))
        if table is None:
            return None
        try:
            header = json.loads((pq.read_schema(table).metadata or {})[b"inst"])
            if not isinstance(header, dict):
                raise ValueError
        except (pa.ArrowException, KeyError, ValueError, OSError):
            raise UsageError(
                f"{outputs.path(TABLE)} is not the manifest of a batch", "give another folder for the results"
            ) from None
    return header


def _merged(outputs: Outputs, folder: Path) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows of all runs in lists of `_BATCH`: the latest of each input and output, and the latest failures.

    A database on disk finds the latest row, so that the memory does not grow with the number of rows.
    """
    with contextlib.closing(sqlite3.connect(folder / "rows.db")) as database:
        database.execute("CREATE TABLE rows (key TEXT PRIMARY KEY, content TEXT)")
        settings = ""
        for row in _table_rows(outputs, folder):
            if row["status"] != "failed":
                _put(database, row)
        for content in _contents(outputs):
            if isinstance(content.get("settings"), dict):  # a run begins; it tries again what failed
                settings = json.dumps(content["settings"])
                database.execute("DELETE FROM rows WHERE key LIKE 'failed %'")
            elif "status" in content:
                _put(database, content | {"settings": settings})
        found = database.execute("SELECT content FROM rows ORDER BY rowid")
        while rows := found.fetchmany(_BATCH):
            yield [json.loads(content) for (content,) in rows]


def _put(database: sqlite3.Connection, row: dict[str, Any]) -> None:
    # Two inputs with the same bytes and the same name share an output, and each has a row.
    key = f"{'failed' if row['status'] == 'failed' else 'there'} {row['input']}\n{row['style']}\n{row['output']}"
    # An output that was kept has an earlier row, which says how long it took; or none, if a process was killed.
    how = "IGNORE" if row["status"] == "kept" else "REPLACE"
    database.execute(f"INSERT OR {how} INTO rows VALUES (?, ?)", (key, json.dumps(row)))


def _schema() -> Any:
    import pyarrow as pa

    names = pa.dictionary(pa.int32(), pa.string())
    return pa.schema(
        {
            "input": pa.string(),
            "input_sha256": pa.string(),
            "style": names,
            "style_sha256": names,
            "output": pa.string(),
            "seed": pa.int64(),
            "seconds": pa.float64(),
            "status": names,
            "error": pa.string(),
            "finished": pa.string(),
            "settings": names,
        }
    )


def _table_rows(outputs: Outputs, folder: Path) -> Iterator[dict[str, Any]]:
    table = outputs.fetch(TABLE, folder)
    if table is None:
        return
    import pyarrow.parquet as pq

    with pq.ParquetFile(table) as file:
        for batch in file.iter_batches(_BATCH):
            yield from batch.to_pylist()


def _write_table(path: Path, batches: Iterator[list[dict[str, Any]]], described: Mapping[str, Any]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = _schema().with_metadata({"inst": json.dumps(described)})
    with pq.ParquetWriter(path, schema) as writer:
        for rows in batches:
            writer.write_table(pa.Table.from_pylist(rows, schema))
