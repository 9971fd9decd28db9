"""Errors and warnings that the user can fix. Each stores the problem and the remedy as data.

A remedy can name an argument (`Argument`) or a function (`Call`) of the package. Python, the command line and the
pipeline use different names for these, so each sets its own wording (`use_wording`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from copy import copy
from dataclasses import dataclass
from typing import ClassVar, Self

from inst.texts import LONGEST_LINE, cut, one_line


@dataclass(frozen=True)
class Argument:
    """An argument that a remedy names.

    Attributes:
        name: its name in the functions of the package, such as "image_encoder".
        value: the value to give, such as a model's name; None if the remedy describes the value in its own text.
    """

    name: str
    value: str | bool | None = None


@dataclass(frozen=True)
class Call:
    """A function that a remedy names, by its name in `inst`, such as "learn"."""

    name: str


RemedyPiece = str | Argument | Call
"""One piece of a remedy: a text, an argument or a function."""

Wording = Callable[[Argument | Call], str]
"""A function that returns the text for an argument or a function in a message."""


def python_wording(piece: Argument | Call) -> str:
    """Return the text for a Python caller: image_encoder="name", `config`, inst.learn."""
    if isinstance(piece, Call):
        return f"inst.{piece.name}"
    if piece.value is None:
        return f"`{piece.name}`"
    quoted = isinstance(piece.value, str) and '"' not in piece.value
    return f'{piece.name}="{piece.value}"' if quoted else f"{piece.name}={piece.value!r}"


_wording: ContextVar[Wording] = ContextVar("wording", default=python_wording)


_QUOTED = re.compile('"([^"]*)"')
_LONGEST_VALUE, _LONGEST_WORD = 200, 400
"""Longest value between quotes, and longest word outside of them, such as a path, in characters. Longer ones are cut by
themselves, so that the words around them stay."""


def _shown(text: str) -> str:
    text = one_line(text)
    if len(text) > _LONGEST_VALUE:
        text = _QUOTED.sub(lambda quoted: f'"{cut(quoted[1], _LONGEST_VALUE)}"', text)
        text = re.sub(r"\S+", lambda word: cut(word[0], _LONGEST_WORD), text)
    return cut(text, LONGEST_LINE)


class _Message(Exception):
    """The problem and the remedy of an error or a warning.

    Both are made safe to show: control characters in them are escaped, and the middle of a very long text is left out.

    Attributes:
        problem: one line that says what is wrong and names the file or value.
        remedy: what the user can do, in pieces; empty if there is no remedy.
    """

    problem: str
    remedy: tuple[RemedyPiece, ...]

    def __init__(self, problem: str, *remedy: RemedyPiece) -> None:
        problem, remedy = _shown(problem), tuple(_shown(one) if isinstance(one, str) else one for one in remedy)
        super().__init__(problem, *remedy)
        self.problem, self.remedy = problem, remedy
        self._wording: Wording | None = None

    def __str__(self) -> str:
        """Return problem and remedy in one line, in the current wording (`use_wording`)."""
        return f"{self.problem}: {self.remedy_text}." if self.remedy else self.problem

    @property
    def remedy_text(self) -> str:
        """The remedy as text, in the current wording; "" if there is none."""
        wording = self._wording or _wording.get()
        return "".join(piece if isinstance(piece, str) else _shown(wording(piece)) for piece in self.remedy)

    def with_prefix(self, prefix: str) -> Self:
        """Return a copy with `prefix`, such as a file name, before the problem."""
        prefixed = copy(self)
        prefixed.problem = _shown(f"{prefix}{self.problem}")
        prefixed.args = (prefixed.problem, *self.args[1:])
        return prefixed


class InstError(_Message):
    """An error that the user can fix. Its message is one line: the problem, with the file or value, and the remedy.

    The command line prints the message without a traceback and exits with `exit_code`. Any other
    exception is a bug, in the package or in the program that calls it.
    """

    exit_code: ClassVar[int] = 1


class UsageError(InstError, ValueError):
    """A wrong argument, such as an unknown device or a prompt that is too long; not a broken file or a full disk.

    It is also a ValueError, because callers of a library expect one for a wrong argument.
    """

    exit_code: ClassVar[int] = 2


class InstWarning(_Message, UserWarning):
    """A one-line warning that the user should read, although the work continues. The command line prints it."""


@contextmanager
def use_wording(wording: Wording) -> Iterator[None]:
    """Use `wording` for the errors and warnings that are shown inside the block, and for the errors that leave it."""
    token = _wording.set(wording)
    try:
        yield
    except _Message as message:
        message._wording = message._wording or wording  # also for whoever reads it outside of the block
        raise
    finally:
        _wording.reset(token)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, cut if it is long, or the name of its type if it has no text."""
    return cut(str(error).strip().split("\n")[0], LONGEST_LINE // 4) or type(error).__name__
