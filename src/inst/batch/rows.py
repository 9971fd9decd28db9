"""Rows of a table of texts: CSV, JSON lines or Parquet."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from inst.arguments import check_path
from inst.batch.lists import read_lines
from inst.batch.places import Place, printable
from inst.batch.tables import is_text, open_parquet, parquet_rows
from inst.errors import InstError, UsageError, first_line
from inst.files.listing import readable_name
from inst.files.reading import parse_json
from inst.texts import cut

_DELIMITERS = ",;\t"
"""What separates columns: a comma, or what spreadsheet programs write in other countries."""

_Row = TypeVar("_Row")
_Rows = Iterator[tuple[str, dict[str, Any] | InstError]]
"""Rows, each with where it is, for messages; or with what is wrong with it."""


def table_ending(what: str, text: str, endings: Sequence[str]) -> tuple[Place, str]:
    """Return a file and its ending. Raises UsageError, with `what` as its name, if it has none of these endings."""
    check_path(what, text)
    place = Place.of(text)
    ending = next((ending for ending in endings if place.shown.lower().endswith(ending)), None)
    if ending is None:
        raise UsageError(f"{what} cannot be {place.shown}", f"give a file that ends in {', '.join(endings)}")
    return place, ending


def read_texts(place: Place) -> Iterator[str]:
    """Yield the lines of a text file that are not blank. Raises InstError as `read_lines` does, or if there is none."""
    yield from _not_none(place, (line.strip() for _, line in read_lines(place) if line.strip()))


def read_rows(
    place: Place, ending: str, needed: Sequence[str], optional: Sequence[str] = ()
) -> Iterator[tuple[str, dict[str, str] | InstError]]:
    """Yield (where the row is, for messages; the texts by column) of a table. Other columns are left out.

    A row that cannot be used is its error instead of the texts, and the next ones come.

    Args:
        place: the file.
        ending: its kind: ".csv", ".jsonl" or ".parquet".
        needed: columns that must be there, and must not be empty in a row.
        optional: columns that can be missing or empty: they are "" then. They can hold whole numbers.

    Raises:
        InstError: the file cannot be read, is damaged or has no rows, or a column is missing. Of JSON lines, the first
            one shows whether it is there.
    """
    readers: dict[str, Callable[[Place, Sequence[str], Sequence[str]], _Rows]]
    readers = {".csv": _csv_rows, ".jsonl": _json_rows, ".parquet": _parquet_rows}
    for where, row in _not_none(place, readers[ending](place, needed, optional)):
        try:
            if isinstance(row, InstError):
                raise row
            yield where, _texts(where, row, needed, optional)
        except InstError as error:
            yield where, error


def _texts(where: str, row: dict[str, Any], needed: Sequence[str], optional: Sequence[str]) -> dict[str, str]:
    """Return the texts of a row by column. Raises InstError if it cannot be used."""
    texts = {name: _text(where, name, row.get(name), numbers=name in optional) for name in (*needed, *optional)}
    for name in needed:
        if not texts[name].strip():
            raise InstError(f"{where} has no {name}", "fill the row, or leave it out")
    return texts


def _not_none(place: Place, rows: Iterator[_Row]) -> Iterator[_Row]:
    first = True
    for row in rows:
        yield row
        first = False
    if first:
        raise InstError(f"{place.shown} has no rows", "give another file")


def _text(where: str, name: str, value: Any, *, numbers: bool) -> str:
    if value is None:
        return ""
    if not isinstance(value, str | int if numbers else str):
        raise InstError(f"{where} has no text as {name}", "correct the row")
    text = str(value)
    if "\0" in text or readable_name(text) != text:
        raise InstError(f"{where} has a {name} that is not valid Unicode text", "correct the row")
    return text


def _csv_rows(place: Place, needed: Sequence[str], optional: Sequence[str]) -> _Rows:
    numbered = read_lines(place)
    above, first = next(((number, text) for number, text in numbered if not _is_no_header(text)), (0, None))
    if first is None:
        return
    lines = (text for _, text in numbered)
    delimiter = next((one for one in _DELIMITERS if set(needed) <= set(_header(first, one))), None)
    if delimiter is None:
        raise _missing(place, needed, _header(first, ","))
    header = _header(first, delimiter)
    at = {name: header.index(name) for name in (*needed, *optional) if name in header}
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        where = f"{place.shown} line {above + reader.line_num + 1}"
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise InstError(f"{where} is no row of a CSV file ({first_line(error)})", "correct its quotes") from None
        if cells is None:
            return
        if any(cell.strip() for cell in cells):
            yield where, {name: cells[k] for name, k in at.items() if k < len(cells)}


def _is_no_header(line: str) -> bool:
    """Whether a line above the header is blank, or the one with which Excel is told the delimiter ("sep=;")."""
    return not line.strip(_DELIMITERS + " \r\n") or line.lower().startswith("sep=")


def _header(line: str, delimiter: str) -> list[str]:
    try:
        return [cell.strip().lower() for cell in next(csv.reader([line], delimiter=delimiter), [])]
    except csv.Error:
        return []


def _json_rows(place: Place, needed: Sequence[str], optional: Sequence[str]) -> _Rows:
    first = True
    for number, line in read_lines(place):
        where = f"{place.shown} line {number}"
        if not line.strip():
            continue
        try:
            row = _json_row(where, line)
        except InstError as error:
            if first:  # it is another kind of file
                raise
            yield where, error
            continue
        if first and not set(needed) <= row.keys():
            raise _missing(place, needed, list(row))
        first = False
        yield where, row


def _json_row(where: str, line: str) -> dict[str, Any]:
    try:
        row = parse_json(line, where)
    except InstError as error:
        raise InstError(error.problem, "write one object in each line") from None
    if not isinstance(row, dict):
        raise InstError(f"{where} is no JSON object", "write one object in each line")
    return row


def _parquet_rows(place: Place, needed: Sequence[str], optional: Sequence[str]) -> _Rows:
    with open_parquet(place) as table:
        schema = table.schema_arrow
        names = schema.names
        if any(names.count(name) != 1 for name in needed):
            raise _missing(place, needed, names)
        for name in needed:
            if not is_text(schema.field(name).type):
                raise InstError(f"{place.shown} has no texts in the column {name}", "write it as text")
        columns = [name for name in (*needed, *optional) if names.count(name) == 1]
        for number, row in enumerate(parquet_rows(table, columns)):
            yield f"{place.shown} row {number}", row


def _missing(place: Place, needed: Sequence[str], found: Sequence[str]) -> InstError:
    missing = " or ".join(name for name in needed if name not in found)
    found_here = f"only {cut(printable(', '.join(found)), 200)}" if any(found) else "no header"
    return InstError(f"{place.shown} has no column {missing} ({found_here})", f"name the columns {', '.join(needed)}")
