"""Tables as CSV text, for spreadsheet programs."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence

from inst.texts import one_line

_FORMULA = tuple("=+-@\uff1d\uff0b\uff0d\uff20")
"""A spreadsheet may run a text that starts with one of these (OWASP, "CSV Injection"). The last four are full-width."""


def to_csv(rows: Iterable[Sequence[object]]) -> str:
    """Return a table as CSV text.

    The names in a table can come from other people: control characters in a text are escaped, and a text that a
    spreadsheet would run as a formula gets an apostrophe before it.

    Args:
        rows: the header row, then the data. A cell is a text, a number, or None if it is empty. Numbers stay as they
            are.
    """
    return "".join(csv_lines(rows))


def csv_lines(rows: Iterable[Sequence[object]]) -> Iterator[str]:
    """Yield the lines of `to_csv` one by one, so that a large table is never in memory as a whole."""
    writer = csv.writer(_LineReturner(), lineterminator="\n")
    return (writer.writerow([_quoted(cell) for cell in row]) for row in rows)


class _LineReturner:
    """A file-like object for `csv.writer`: `writerow` returns the line, because it returns the result of `write`."""

    def write(self, line: str) -> str:
        return line


def _quoted(cell: object) -> object:
    if not isinstance(cell, str):
        return cell
    return ("'" if cell.startswith(_FORMULA) else "") + one_line(cell)
