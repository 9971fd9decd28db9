"""Show text that may come from strangers: on one line, with nothing that a terminal obeys, and not too long."""

from __future__ import annotations

import re

LONGEST_LINE = 1_200
"""Longest problem or remedy of an error, in characters. Longer ones are cut, because a value can have megabytes."""

OBEYED = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
"""Characters that a terminal or a reader obeys and does not show: control characters, ends of lines and the marks that
turn the direction of writing. A joiner within a word or an emoji is not one of them."""

_MARKUP = re.compile(
    r"[\\`*\[\]<|~]"  # emphasis, code, links, HTML, cells of a table
    r"|(?<![^\W_])_|_(?![^\W_])"  # inside of a word, "_" is no emphasis
    r"|&(?=#?\w+;)"  # a character by its name, such as "&lt;"
    r"|^[#+=>-]"  # the beginning of a heading, a quotation or a list
)
"""What has a meaning in Markdown (CommonMark, and the tables of GitHub)."""

_NUMBERED = re.compile(r"^(\d+)(?=[.)]( |$))")
"""The beginning of a numbered list."""


def one_line(text: str) -> str:
    """Return text with its control characters, ends of lines and direction marks escaped as in Python, such as `\\n`.

    A lone surrogate, which stands for a byte of a file's name that is no text (PEP 383), stays: see
    `inst.files.listing.readable_name`.
    """
    return OBEYED.sub(lambda one: one[0].encode("unicode_escape").decode(), text)


def cut(text: str, most: int) -> str:
    """Return `text`, or, if it has more than `most` characters, its beginning and its end with the length between.

    The result has at most `most` characters, but for a `most` below 40.
    """
    if len(text) <= most:
        return text
    length = f" … ({len(text):,} characters) … "
    end = max(most - len(length), 4) // 4
    return f"{text[: 3 * end]}{length}{text[len(text) - end :]}"


def markdown(text: str) -> str:
    """Return Markdown that shows `text` as it is, on one line, also in a cell of a table."""
    return _NUMBERED.sub(r"\1\\", _MARKUP.sub(r"\\\g<0>", one_line(text).strip()))
