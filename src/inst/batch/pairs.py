"""A table of pairs: which photo gets which style."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from inst.batch.items import Item
from inst.batch.places import check_named, resolve
from inst.batch.rows import read_rows, table_ending
from inst.errors import InstError

_ENDINGS = (".csv", ".jsonl", ".parquet")


def read_pairs(table: str | Path) -> Iterator[tuple[str, str] | Item]:
    """Return a stream of the pairs of a table: the paths or URLs of a photo and of a style.

    Args:
        table: path or URL of a CSV file in UTF-8 with a header, of JSON lines (.jsonl), or of a Parquet file. It has
            the columns `photo` and `style`; others are left out. Paths in it are relative to its folder.

    Returns:
        Each pair as (photo, style). A URL in it can have credentials, which `inst.batch.sources.file_item` hides. A row
        that cannot be used is an item with its problem, which names the line, or the row, from 0.

    Raises:
        UsageError: the file has another ending.
        InstError (while it is iterated): the file is missing, empty or damaged, or has not these columns.
    """
    text = os.fspath(table)
    place, ending = table_ending("A table of pairs", text, _ENDINGS)
    return (_pair(text, where, row) for where, row in read_rows(place, ending, ("photo", "style")))


def _pair(table: str, where: str, row: dict[str, str] | InstError) -> tuple[str, str] | Item:
    try:
        if isinstance(row, InstError):
            raise row
        photo, style = (row[name].strip() for name in ("photo", "style"))
        for text in (photo, style):
            check_named(text, table, where)
        return resolve(table, photo), resolve(table, style)
    except InstError as error:
        return Item("pair", where, problem=error)
