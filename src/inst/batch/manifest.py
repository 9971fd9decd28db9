"""The manifest of a batch: what became of every input. JSON lines while a run is under way, then a Parquet file.

A run appends a line for each output to `manifest.jsonl`, after the output itself. At its end, the lines and the rows of
earlier runs become `manifest.parquet`. A line that a killed process could not write any more costs nothing but its
number of seconds: what is done is seen from the outputs.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

from inst.batch.orders import Row
from inst.batch.outputs import Outputs
from inst.batch.records import FORMAT, LINES, PARTS, TABLE, latest_header, merged, part_names, working_file, write_table
from inst.errors import InstError, UsageError, first_line
from inst.files.holding import is_at, lock
from inst.files.writing import cannot_write, make_folder
from inst.texts import cut
from inst.version import __version__

_PART_ROWS = 1_000  # rows of a file on a store; when a run is killed, the last ones are not in the manifest
_START = b'{"inst": '  # of the first line


class Manifest:
    """The manifest of one run.

    Args:
        outputs: the output folder.
        described: what the user chose (`Order.described`).

    Attributes:
        changed: the settings that differ from those of the latest run in this folder, by name: (before, now).

    Raises:
        UsageError: the folder holds the outputs of another command, or the manifest of another program or version.
        InstError: the folder cannot be written, another process writes to it, or its manifest is damaged.
    """

    def __init__(self, outputs: Outputs, described: Mapping[str, Any]) -> None:
        self.outputs = outputs
        self.described = json.loads(json.dumps(dict(described), default=str))
        earlier = latest_header(outputs)
        if earlier is not None and earlier.get("command") != self.described["command"]:
            raise UsageError(
                f"{outputs.shown} holds the results of inst batch {cut(str(earlier.get('command')), 60)}",
                "give another folder for these results",
            )
        self.changed: dict[str, tuple[Any, Any]] = {
            name: (earlier.get(name), self.described.get(name))
            for name in ({**earlier, **self.described} if earlier else ())
            if earlier is not None and earlier.get(name) != self.described.get(name)
        }
        self._lines = _LocalLines(outputs) if outputs.is_local else _StoreLines(outputs)
        self._lines.add({"inst": __version__, "format": FORMAT, "settings": self.described})

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
            with working_file() as table:
                write_table(table, merged(self.outputs), self.described)
                self.outputs.put(TABLE, table)
        except InstError:
            raise
        except (pa.ArrowException, sqlite3.Error, OSError, ValueError) as error:
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
        self.path, self.place = make_folder(outputs.place) / LINES, outputs.place
        try:
            self.file: IO[bytes] = _open_locked(self.path, outputs.place)
            self.earlier = self.file.tell()  # bytes
            if self.earlier and not _ends_with_line(self.path):
                self.file.write(b"\n")  # a killed process left half a line
        except OSError as error:
            raise cannot_write(self.path, error) from None
        self.count = 0

    def add(self, content: Mapping[str, Any]) -> None:
        if not is_at(self.file, self.path):
            raise InstError(
                f"{self.path} was deleted or replaced during the run",
                f"leave {self.place} alone; the same command makes what is missing",
            )
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
            if self.count <= 1 and not self.file.closed and is_at(self.file, self.path):
                # A run without a row leaves no trace.
                os.ftruncate(self.file.fileno(), self.earlier)
                if not self.earlier:
                    self.path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.file.close()

    def delete(self) -> None:
        if is_at(self.file, self.path):
            self.path.unlink(missing_ok=True)  # before it is closed: no other run may begin between
        self.close()


class _StoreLines:
    """Lines that are written as files of `_PART_ROWS` lines."""

    def __init__(self, outputs: Outputs) -> None:
        self.outputs, self.waiting = outputs, list[bytes]()
        self.number = max((int(name.partition(".")[0]) + 1 for name in part_names(outputs)), default=0)

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
        for name in part_names(self.outputs):
            self.outputs.remove(f"{PARTS}/{name}")


def _open_locked(path: Path, place: str) -> IO[bytes]:
    """Open the file of lines. Raises InstError if another run has it, UsageError if it is a file of something else."""
    while True:
        if path.exists() and not path.is_file():  # to open a pipe could wait for ever
            raise UsageError(f"{path} is not the manifest of a batch", "give another folder for the results")
        file = path.open("a+b")
        try:
            _lock(file, place)
            if not is_at(file, path):  # the run that had it has just ended, and has deleted it
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


def _lock(file: IO[bytes], place: str) -> None:
    """Lock the file for this process; its end frees it. Where no file can be locked, two runs are not kept apart."""
    if lock(file) is False:
        raise InstError(f"Another run is writing to {place}", "wait until it has ended, or give another folder")


def _ends_with_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
