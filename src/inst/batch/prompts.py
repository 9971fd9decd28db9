"""A file of prompts."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from inst.batch.items import Item, safe_name
from inst.batch.places import Place
from inst.batch.rows import read_rows, read_texts, table_ending
from inst.errors import InstError
from inst.files.writing import cut_name

_ENDINGS = (".txt", ".csv", ".jsonl", ".parquet")
_LONGEST_START = 60  # bytes


def read_prompts_file(file: str | Path) -> Iterator[tuple[str, str] | Item]:
    """Return a stream of the prompts in a file, each as (name, prompt).

    Args:
        file: path or URL of a text file in UTF-8 with a prompt in each line (.txt; blank lines are left out); or of a
            table with a column `prompt` (.csv with a header, .jsonl or .parquet). It can have a column `name`.

    Returns:
        The name is safe to make an output path from, as `inst.batch.items.Item.name`; but names can be equal. Without
        a name in the file, it is the number of the prompt, from 1, and its first words: "000012-a-castle-at-night". A
        row that cannot be used is an item with its problem, which names the line, or the row, from 0.

    Raises:
        UsageError: the file has another ending.
        InstError (while it is iterated): the file is missing, empty or damaged, or has no column `prompt`.
    """
    place, ending = table_ending("A file of prompts", os.fspath(file), _ENDINGS)
    return _named_prompts(place, ending)


def _named_prompts(place: Place, ending: str) -> Iterator[tuple[str, str] | Item]:
    for number, row in enumerate(_prompts(place, ending), 1):
        if isinstance(row, Item):
            yield row
        else:
            name, prompt = row
            yield safe_name(name) if name.strip() else _name(number, prompt), prompt


def _prompts(place: Place, ending: str) -> Iterator[tuple[str, str] | Item]:
    if ending == ".txt":
        yield from (("", prompt) for prompt in read_texts(place))
        return
    for where, row in read_rows(place, ending, ("prompt",), ("name",)):
        yield Item("prompt", where, problem=row) if isinstance(row, InstError) else (row["name"], row["prompt"].strip())


def _name(number: int, prompt: str) -> str:
    words = re.sub(r"\W+", "-", prompt[: 4 * _LONGEST_START])
    return f"{number:06d}-{cut_name(words.strip('-'), _LONGEST_START)}".rstrip("-")
