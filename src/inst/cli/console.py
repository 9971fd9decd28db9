"""The standard output and the standard error, which may lack letters, be full or be closed."""

from __future__ import annotations

import codecs
import contextlib
import errno
import os
import sys
from typing import TextIO

from rich.console import Console

from inst.texts import one_line

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a disk that takes no more, as when the output goes to a file on it."""

_ANY_TEXT = "inst.any-text"


def print_any_text() -> None:
    """Let both streams print every text: a letter that the console lacks becomes "?".

    A byte of a file name that is not text (a surrogate, PEP 383) is written as it is, so that a printed path is the
    path of the file.
    """
    codecs.register_error(_ANY_TEXT, _bytes_for)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # None if the stream is closed; or not a stream of text
            stream.reconfigure(errors=_ANY_TEXT)  # type: ignore[union-attr]


def print_message(screen: Console, line: str, colour: str | None = None) -> None:
    """Print one line on the standard error. A line that finds no room there is lost, and the work goes on.

    Control characters in it are escaped (`inst.texts.one_line`).
    """
    line = one_line(line)
    try:
        screen.print(line, style=colour, markup=False, highlight=False, soft_wrap=True)
    except OSError:
        discard(sys.stderr)


def discard(stream: TextIO) -> None:
    """Discard what a stream still holds: Python would try to write it at exit, and complain again."""
    with contextlib.suppress(OSError, AttributeError):
        place = os.open(os.devnull, os.O_WRONLY)
        os.dup2(place, stream.fileno())
        os.close(place)


def _bytes_for(error: UnicodeError) -> tuple[bytes, int]:
    assert isinstance(error, UnicodeEncodeError)
    letters = map(ord, error.object[error.start : error.end])
    return bytes(code - 0xDC00 if 0xDC80 <= code <= 0xDCFF else ord("?") for code in letters), error.end
