"""The errors and warnings that a user can cause and can repair: what is wrong, and the remedy, as data.

A remedy can name an argument (`Argument`) or a function (`Call`) of the package. Python, the command line and the
pipeline call these by other names, so each of them says how it words them (`in_the_words_of`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from copy import copy
from dataclasses import dataclass
from typing import Any, ClassVar, Self


@dataclass(frozen=True)
class Argument:
    """An argument that a remedy names.

    Attributes:
        name: as the functions of the package call it, such as "image_encoder".
        value: what to give, such as a model's name; None where the remedy says it in other words.
    """

    name: str
    value: str | bool | None = None


@dataclass(frozen=True)
class Call:
    """A function that a remedy names, as `inst.*` calls it, such as "learn"."""

    name: str


Words = str | Argument | Call
"""A piece of a remedy."""

Wording = Callable[[Argument | Call], str]
"""How somebody who shows errors calls an argument or a function."""


def in_python(named: Argument | Call) -> str:
    """The words of a Python caller: image_encoder="name", `config`, inst.learn."""
    if isinstance(named, Call):
        return f"inst.{named.name}"
    if named.value is None:
        return f"`{named.name}`"
    return f'{named.name}="{named.value}"' if isinstance(named.value, str) else f"{named.name}={named.value}"


_wording: ContextVar[Wording] = ContextVar("wording", default=in_python)


class _Told(Exception):
    """What is wrong, and the remedy.

    Attributes:
        problem: what is wrong, in one line that names the file or value at fault.
        remedy: what to do about it, in pieces; none where the problem says it all.
    """

    problem: str
    remedy: tuple[Words, ...]

    def __init__(self, problem: str, *remedy: Words) -> None:
        super().__init__(problem, *remedy)
        self.problem, self.remedy = problem, remedy

    def __str__(self) -> str:
        """Problem and remedy in one line, in the words of whoever shows it (`in_the_words_of`)."""
        return f"{self.problem}: {self.advice}." if self.remedy else self.problem

    @property
    def advice(self) -> str:
        """The remedy in the words of whoever shows it; "" where there is none."""
        say = _wording.get()
        return "".join(piece if isinstance(piece, str) else say(piece) for piece in self.remedy)

    def about(self, what: str) -> Self:
        """The same, with `what` it is about before the problem."""
        told = copy(self)
        told.problem = f"{what}{self.problem}"
        return told


class InstError(_Told):
    """Something the user can put right: one line that names the file or value at fault, and the remedy.

    The command line prints the message without a traceback and exits with `exit_code`. Every other exception type that
    leaves the package is a defect of the package.
    """

    exit_code: ClassVar[int] = 1


class UsageError(InstError, ValueError):
    """A wrong argument (an unknown device, a prompt that is too long), as opposed to a broken file or a full disk.

    It is a ValueError too, which callers of a library expect over a wrong argument.
    """

    exit_code: ClassVar[int] = 2


class InstWarning(_Told, UserWarning):
    """Something the user should know of, though the work goes on: one line. The command line prints it."""


@contextmanager
def in_the_words_of(wording: Wording) -> Iterator[None]:
    """Word the errors and warnings that are read within the block, or leave it, in somebody's terms."""
    before = _wording.set(wording)
    try:
        yield
    except _Told as told:
        told.remedy = tuple(piece if isinstance(piece, str) else wording(piece) for piece in told.remedy)
        raise
    finally:
        _wording.reset(before)


def first_line(error: BaseException) -> str:
    """Return what an error says first, for a message of one line: its type where it says nothing."""
    return str(error).strip().split("\n")[0] or type(error).__name__


def reason_of(error: Any) -> str:
    """Return why the system refused something, in its own words."""
    return getattr(error, "strerror", None) or first_line(error)
