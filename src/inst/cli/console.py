"""The standard output and the standard error, which may lack letters, be full or be closed.

All lines of a command leave through `print_line` and `print_message`, which escape what a terminal would obey.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import sys
from collections.abc import Callable
from typing import Any, TextIO, cast

from rich.console import Console

from inst.errors import InstWarning
from inst.texts import LONGEST_LINE, cut, one_line

_ANY_TEXT = "inst.any-text"


def prepare_streams() -> None:
    """Open what is closed, and let both streams print every text: a letter that the console lacks becomes "?".

    A byte of a file name that is not text (a surrogate, PEP 383) is written as it is, so that a printed path is the
    path of the file.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # the next file that is opened would get this number, and the output would go into it
            os.open(os.devnull, os.O_RDONLY)
    if sys.stdout is None:  # to write to a file that is open for reading fails, so that a lost result is noticed
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    codecs.register_error(_ANY_TEXT, _bytes_for)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # not a stream of text
            stream.reconfigure(errors=_ANY_TEXT)  # type: ignore[union-attr]


def print_line(line: str) -> None:
    """Print one line on the standard output. Control characters in it are escaped. Raises OSError if it is lost."""
    print(one_line(line), flush=True)


class _Lossy:
    """The standard error. What finds no room there, or whose terminal has gone, is lost, and the work goes on."""

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            discard(self._stream)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            discard(self._stream)

    @property
    def _stream(self) -> TextIO:
        return cast(TextIO, getattr(sys.stderr, "rich_proxied_file", sys.stderr))  # rich replaces it under a bar

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def make_screen() -> Console:
    """Return a console on the standard error that takes no text as markup. A line that finds no room there is lost."""
    return Console(file=cast(TextIO, _Lossy()), stderr=True, markup=False, emoji=False, highlight=False)


def print_message(screen: Console, line: str, colour: str | None = None) -> None:
    """Print one line on the standard error, shortened if it is very long. Control characters in it are escaped."""
    screen.print(cut(one_line(line), 3 * LONGEST_LINE), style=colour, soft_wrap=True)


_FOR_DEVELOPERS = (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning)
"""Warnings that Python hides unless somebody asks for them."""


def warning_printer(screen: Console) -> Callable[..., None]:
    """Return a function for `warnings.showwarning` that prints each warning as one line."""

    def show(message: Warning | str, category: type[Warning], filename: str, lineno: int, *more: Any) -> None:
        if issubclass(category, InstWarning):
            print_message(screen, f"Warning: {message}", "yellow")
        elif sys.warnoptions or not issubclass(category, _FOR_DEVELOPERS):  # of a library, so that its place matters
            print_message(screen, f"{filename}:{lineno}: {category.__name__}: {message}")

    return show


def finish_streams() -> None:
    """Write what the streams still hold, or discard it: Python would try that at exit, and complain."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            discard(stream)


def discard(stream: TextIO) -> None:
    """Discard what a stream still holds, and all that is written to it from now on."""
    with contextlib.suppress(OSError, AttributeError):
        place = os.open(os.devnull, os.O_WRONLY)
        os.dup2(place, stream.fileno())
        os.close(place)


def _bytes_for(error: UnicodeError) -> tuple[bytes, int]:
    assert isinstance(error, UnicodeEncodeError)
    letters = map(ord, error.object[error.start : error.end])
    return bytes(code - 0xDC00 if 0xDC80 <= code <= 0xDCFF else ord("?") for code in letters), error.end
