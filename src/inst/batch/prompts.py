"""A file of prompts."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from inst.batch.items import safe_name
from inst.batch.places import Place
from inst.batch.rows import read_rows, read_texts, table_ending
from inst.files.writing import cut_name

_ENDINGS = (".txt", ".csv", ".jsonl", ".parquet")
_LONGEST_START = 60  # bytes


def read_prompts_file(file: str | Path) -> Iterator[tuple[str, str]]:
    """Return a stream of the prompts in a file, each as (name, prompt).

    Args:
        file: path or URL of a text file in UTF-8 with a prompt in each line (.txt; blank lines are left out); or of a
            table with a column `prompt` (.csv with a header, .jsonl or .parquet). It can have a column `name`.

    Returns:
        The name is safe to make an output path from, as `inst.batch.items.Item.name`; but names can be equal. Without
        a name in the file, it is the number of the prompt, from 1, and its first words: "000012-a-castle-at-night".

    Raises:
        UsageError: the file has another ending.
        InstError (while it is iterated): the file is missing, empty or damaged, has no column `prompt`, or a row has no
            prompt. The message names the line, or the row, from 0.
    """
    place, ending = table_ending("A file of prompts", os.fspath(file), _ENDINGS)
    return (
        (safe_name(name) if name.strip() else _name(number, prompt), prompt)
        for number, (name, prompt) in enumerate(_prompts(place, ending), 1)
    )


def _prompts(place: Place, ending: str) -> Iterator[tuple[str, str]]:
    if ending == ".txt":
        return (("", prompt) for prompt in read_texts(place))
    return ((row["name"], row["prompt"].strip()) for _, row in read_rows(place, ending, ("prompt",), ("name",)))


def _name(number: int, prompt: str) -> str:
    words = re.sub(r"\W+", "-", prompt[: 4 * _LONGEST_START])
    return f"{number:06d}-{cut_name(words.strip('-'), _LONGEST_START)}".rstrip("-")
