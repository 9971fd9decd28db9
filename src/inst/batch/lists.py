"""Text files of lines: lists of pictures, and tables."""

from __future__ import annotations

import io
import os
from collections.abc import Collection, Iterator

from inst.batch.items import Item, safe_name
from inst.batch.places import Place, check_named, is_url, without_secrets
from inst.errors import InstError

_LONGEST_LINE = 1 << 20  # bytes


def read_lines(place: Place) -> Iterator[tuple[int, str]]:
    """Yield (number from 1, text with its end) of the lines of a file in UTF-8. A byte order mark is left out.

    Raises:
        InstError: the file cannot be read; or a line is longer than 1 MiB, not UTF-8, or has NUL characters.
    """
    with place.open() as file:
        lines = io.BufferedReader(file)  # type: ignore[type-var]  # fsspec's own files read no part of a line
        number = 0
        while line := lines.readline(_LONGEST_LINE + 1):
            number += 1
            where = f"{place.shown} line {number}"
            if len(line) > _LONGEST_LINE:
                raise InstError(f"{where} is longer than {_LONGEST_LINE:,} bytes", "give a text file")
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise InstError(f"{where} is not UTF-8 text", "save the file as UTF-8") from None
            if "\0" in text:
                raise InstError(f"{where} has NUL characters", "give a text file")
            yield number, text


def items_of_list(file: Item, endings: Collection[str]) -> Iterator[Item]:
    """Yield the files that the lines of a list file name. A missing file raises when it is read.

    Blank lines, and lines that start with `#`, are left out. A path is relative to the list's folder.
    """
    assert file.file is not None
    for number, line in read_lines(file.file):
        text = line.strip()
        if text and not text.startswith("#"):
            yield named_item(text, f"{file.place} line {number}", file.file, endings)


def named_item(text: str, where: str, base: Place, endings: Collection[str]) -> Item:
    """Return the item of a path or URL that a list or a table names.

    Its name is the relative path; of an absolute path or a URL, the last part.
    """
    try:
        check_named(text, base.shown, where)
    except InstError as error:
        return Item("picture", where, problem=error)
    place = base.beside(text)
    named = without_secrets(text) if is_url(text) else os.path.normpath(text)
    if is_url(text) or os.path.isabs(text):
        named = os.path.basename(named.rstrip("/"))
    return Item(safe_name(named, endings), place.shown, file=place)
