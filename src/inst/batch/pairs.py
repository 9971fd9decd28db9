"""A table of pairs: which photo gets which style."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from inst.batch.places import resolve
from inst.batch.rows import read_rows, table_ending

_ENDINGS = (".csv", ".jsonl", ".parquet")


def read_pairs(table: str | Path) -> Iterator[tuple[str, str]]:
    """Return a stream of the pairs of a table: the paths or URLs of a photo and of a style.

    Args:
        table: path or URL of a CSV file in UTF-8 with a header, of JSON lines (.jsonl), or of a Parquet file. It has
            the columns `photo` and `style`; others are left out. Paths in it are relative to its folder.

    Returns:
        Each pair as (photo, style). A URL in it can have credentials, which `inst.batch.sources.file_item` hides.

    Raises:
        UsageError: the file has another ending.
        InstError (while it is iterated): the file is missing, empty or damaged, has not these columns, or a row has no
            photo or no style. The message names the line, or the row, from 0.
    """
    text = os.fspath(table)
    place, ending = table_ending("A table of pairs", text, _ENDINGS)
    rows = read_rows(place, ending, ("photo", "style"))
    return ((resolve(text, row["photo"].strip()), resolve(text, row["style"].strip())) for _, row in rows)
