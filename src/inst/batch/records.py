"""The rows of earlier runs: read from the lines and the table of a manifest, checked, and merged.

A manifest may come from anywhere, and be damaged. What a row says is only copied into the next manifest: no file is
read, written or deleted because of it.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

from inst.batch.orders import LONGEST_TEXT
from inst.batch.outputs import Outputs
from inst.batch.tables import parquet_rows
from inst.errors import InstError, UsageError
from inst.files.holding import new_part, sweep_once
from inst.files.listing import readable_name
from inst.files.reading import parse_json
from inst.texts import cut

LINES, TABLE, PARTS = "manifest.jsonl", "manifest.parquet", "manifest"
"""The file of a run under way, the file at its end, and the folder of the lines on a store, which cannot append."""

FORMAT = 1
"""The version of lines and tables. It grows when an older version could not read them."""

_BATCH = 10_000  # rows in memory
_LONGEST_LINE = 1 << 20  # bytes; those of this program are much shorter
_PART = re.compile(r"\d{6,}\.jsonl")
_TEXTS = ("input", "input_sha256", "style", "style_sha256", "output", "status", "error", "finished", "settings")
_NAMES = (*_TEXTS, "seed", "seconds")
_STATES = ("made", "kept", "failed")
_LARGEST_SEED = 2**63 - 1
_FORMAT_KEY = b"inst format"


@contextlib.contextmanager
def working_file() -> Iterator[Path]:
    """Yield an empty file in the folder for temporary files. If the process is killed, the next one deletes it.

    Raises OSError if it cannot be written.
    """
    folder = Path(tempfile.gettempdir())
    sweep_once(folder)
    path, file = new_part(folder)
    with file:
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)


def part_names(outputs: Outputs) -> list[str]:
    """Return the names of the files of lines on a store, in their order; other files beside them are left alone."""
    return [name for name in outputs.names(PARTS, ".jsonl") if _PART.fullmatch(name)]


def latest_header(outputs: Outputs) -> dict[str, Any] | None:
    """Return what the user chose in the latest run; None if there was none.

    Raises:
        UsageError: the manifest is that of another program, or of a newer version of this one.
        InstError: it cannot be read.
    """
    latest = None
    for content in _contents(outputs):
        if isinstance(content.get("settings"), dict):
            _check_format(outputs.path(LINES if outputs.is_local else PARTS), content.get("format"))
            latest = content["settings"]
    return latest if latest is not None or find_spec("pyarrow") is None else _table_header(outputs)


def _table_header(outputs: Outputs) -> dict[str, Any] | None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with _table_of(outputs) as table:
        if table is None:
            return None
        shown = outputs.path(TABLE)
        try:
            schema = pq.read_schema(table)
            facts = schema.metadata or {}
            header = parse_json(facts[b"inst"], shown)
            if not isinstance(header, dict) or any(schema.names.count(name) != 1 for name in _NAMES):
                raise KeyError
        except (pa.ArrowException, OSError, KeyError, InstError):
            raise UsageError(f"{shown} is not the manifest of a batch", "give another folder for the results") from None
        number = facts.get(_FORMAT_KEY, b"1")
        _check_format(shown, int(number) if number.isdigit() else None)
        return header


def _check_format(shown: str, number: object) -> None:
    if number != FORMAT:
        raise UsageError(
            f"{shown} was written by another version of inst (its format is {cut(str(number), 60)})",
            "use that version, or give another folder for the results",
        )


def merged(outputs: Outputs) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows of all runs in lists of `_BATCH`: the latest of each input and output, and the latest failures.

    A database on disk finds the latest row, so that the memory does not grow with the number of rows.

    Raises:
        InstError: a row of the table is damaged. A damaged line is left out.
        pyarrow.ArrowException, sqlite3.Error, OSError: a file cannot be read, or the disk is full.
    """
    with working_file() as path, contextlib.closing(sqlite3.connect(path)) as database:
        for setting in ("journal_mode = OFF", "synchronous = OFF"):  # it is deleted at the end, whatever happens
            database.execute(f"PRAGMA {setting}")
        database.execute("CREATE TABLE rows (key TEXT PRIMARY KEY, content TEXT)")
        settings = ""
        for found in _table_rows(outputs):
            if (row := checked_row(found)) is None:
                raise InstError(f"{outputs.path(TABLE)} has a damaged row", "move it away")
            if row["status"] != "failed":
                _put(database, row)
        for content in _contents(outputs):
            if isinstance(content.get("settings"), dict):  # a run begins; it tries again what failed
                settings = json.dumps(content["settings"])
                database.execute("DELETE FROM rows WHERE key LIKE 'failed %'")
            elif row := checked_row(content | {"settings": settings}):
                _put(database, row)
        rows = database.execute("SELECT content FROM rows ORDER BY rowid")
        while batch := rows.fetchmany(_BATCH):
            yield [json.loads(content) for (content,) in batch]


def checked_row(content: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a row of a manifest as it can be stored, with long texts cut; None if it is none."""
    row: dict[str, Any] = {}
    for name in _TEXTS:
        text = content.get(name)
        if not isinstance(text, str | None):
            return None
        # The settings are JSON, which would be none if it were cut.
        row[name] = readable_name(text or "") if name == "settings" else cut(readable_name(text or ""), LONGEST_TEXT)
    if row["status"] not in _STATES or len(row["settings"]) > _LONGEST_LINE:
        return None
    seed, seconds = (content.get(name) for name in ("seed", "seconds"))
    if seed is not None and (type(seed) is not int or not 0 <= seed <= _LARGEST_SEED):
        return None
    if seconds is not None and (type(seconds) not in (int, float) or seconds < 0 or not math.isfinite(seconds)):
        return None
    return row | {"seed": seed, "seconds": None if seconds is None else float(seconds)}


def write_table(path: Path, batches: Iterator[list[dict[str, Any]]], described: Mapping[str, Any]) -> None:
    """Write rows as a Parquet file. Raises pyarrow.ArrowException and OSError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = _schema().with_metadata({"inst": json.dumps(described), _FORMAT_KEY: str(FORMAT)})
    with pq.ParquetWriter(path, schema) as writer:
        for rows in batches:
            writer.write_table(pa.Table.from_pylist(rows, schema))


def _contents(outputs: Outputs) -> Iterator[dict[str, Any]]:
    """Yield what the lines hold. A line that is not complete is left out: its process was killed."""
    for file in _line_files(outputs):
        for line in _bounded_lines(file):
            with contextlib.suppress(InstError):
                content = parse_json(line, LINES)
                if isinstance(content, dict):
                    yield content


def _line_files(outputs: Outputs) -> Iterator[IO[bytes]]:
    """Yield the files of the runs that did not reach their end."""
    if outputs.is_local:
        path = Path(outputs.place, LINES)
        if path.is_file():
            with path.open("rb") as file:
                yield file
        return
    for name in part_names(outputs):
        with working_file() as path:
            if outputs.fetch(f"{PARTS}/{name}", path) is not None:
                with path.open("rb") as file:
                    yield file


def _bounded_lines(file: IO[bytes]) -> Iterator[bytes]:
    """Yield the lines of a file, without those that are longer than `_LONGEST_LINE`."""
    goes_on = False
    while line := file.readline(_LONGEST_LINE):
        ends = line.endswith(b"\n")
        if not goes_on and (ends or len(line) < _LONGEST_LINE):
            yield line
        goes_on = not ends


@contextlib.contextmanager
def _table_of(outputs: Outputs) -> Iterator[Path | None]:
    """Yield a local file with the table; None if there is none."""
    if outputs.is_local:
        yield outputs.fetch(TABLE, Path(outputs.place, TABLE))
        return
    with working_file() as path:
        yield outputs.fetch(TABLE, path)


def _table_rows(outputs: Outputs) -> Iterator[dict[str, Any]]:
    with _table_of(outputs) as table:
        if table is not None:
            import pyarrow.parquet as pq

            with pq.ParquetFile(table) as file:
                yield from parquet_rows(file, _NAMES)


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
