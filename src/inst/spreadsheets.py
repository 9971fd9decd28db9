"""Tables as CSV, which people open in spreadsheets."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

_FORMULA = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")
"""What a text begins with that a spreadsheet may run (OWASP, "CSV Injection"); the last four are full-width."""


def to_csv(rows: Iterable[Sequence[object]]) -> str:
    """Return a table as CSV text.

    Names are chosen by others: a text that a spreadsheet would take for a formula gets an apostrophe before it.

    Args:
        rows: the heading first; of texts, numbers, and None for an empty cell. Numbers stay as they are.
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([_quoted(cell) for cell in row] for row in rows)
    return text.getvalue()


def _quoted(cell: object) -> object:
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell
