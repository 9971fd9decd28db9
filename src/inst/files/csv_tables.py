"""Tables as CSV, which people open in spreadsheets."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence

_FORMULA = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")
"""What a text begins with that a spreadsheet may run (OWASP, "CSV Injection"); the last four are full-width."""


def to_csv(rows: Iterable[Sequence[object]]) -> str:
    """Return a table as CSV text.

    Names are chosen by others: a text that a spreadsheet would take for a formula gets an apostrophe before it.

    Args:
        rows: the heading first; of texts, numbers, and None for an empty cell. Numbers stay as they are.
    """
    return "".join(csv_lines(rows))


def csv_lines(rows: Iterable[Sequence[object]]) -> Iterator[str]:
    """The lines of `to_csv`, one by one, for tables that are not to be in memory as a whole."""
    writer = csv.writer(_Passing(), lineterminator="\n")
    return (writer.writerow([_quoted(cell) for cell in row]) for row in rows)


class _Passing:
    """A file for `csv.writer`, whose `writerow` returns what the file's `write` does: the line."""

    def write(self, line: str) -> str:
        return line


def _quoted(cell: object) -> object:
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell
