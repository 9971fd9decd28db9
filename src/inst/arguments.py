"""Check arguments: a wrong type or value raises UsageError at once, not another error deep in the code."""

from __future__ import annotations

import os
import reprlib
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

from inst.errors import RemedyPiece, UsageError
from inst.texts import cut

LONGEST_VALUE = 60
"""Longest value that a message about an argument quotes whole, in characters."""

LARGEST_FACTOR = 10_000
"""The largest guidance, style weight or scale. Useful values are much smaller; float16 overflows not far above it."""

_KINDS: dict[str, tuple[type, Any, str]] = {
    "int": (Integral, int, "a whole number"),
    "float": (Real, float, "a number"),
    "bool": (bool, bool, "True or False"),
    "str": (str, str, "a text"),
}


def checked(name: str, value: Any, kind: str) -> Any:
    """Check an argument and return it as a plain Python value. NumPy numbers are accepted too.

    Args:
        name: the argument's name in the message.
        value: the given value. True, False and tensors do not count as numbers.
        kind: "int", "float", "bool" or "str".

    Raises:
        UsageError: the value has another type, is a number too large for a float, or is a text that is not valid
            Unicode.
    """
    abstract, convert, wanted = _KINDS[kind]
    if isinstance(value, abstract) and (kind == "bool" or not isinstance(value, bool)):
        try:
            if isinstance(value, Integral):
                float(value)  # raises OverflowError if it is too large
            elif isinstance(value, str):
                value.encode()
            return convert(value)
        except OverflowError:
            raise UsageError(f"The {name} is too large to be used", "give a smaller number") from None
        except UnicodeEncodeError:  # bytes on the command line that are not UTF-8
            quoted = cut(ascii(value), LONGEST_VALUE)
            raise UsageError(f"The {name} {quoted} is not valid Unicode text", "type it again") from None
    raise UsageError(f"The {name} {shown(value)} cannot be used", f"give {wanted}")


def shown(value: Any) -> str:
    """Return a value as a message quotes it: the first line of its `repr`, cut if it is long."""
    short = reprlib.Repr()  # looks at the first items of a long list only
    short.maxstring = short.maxother = short.maxlong = 4 * LONGEST_VALUE
    try:
        return cut((repr(value) if isinstance(value, str) else short.repr(value)).split("\n")[0], LONGEST_VALUE)
    except Exception:  # such as a number with more digits than Python turns into text
        return f"of the type {type(value).__name__}"


def check_type(what: str, value: Any, kind: type | tuple[type, ...], *remedy: RemedyPiece) -> None:
    """Raise UsageError, with `what` as the argument's name and this `remedy`, unless `value` is of the type `kind`."""
    if not isinstance(value, kind):
        raise UsageError(f"{what} of the type {type(value).__name__} cannot be used", *remedy)


def check_at_least(least: int, **numbers: int) -> None:
    """Raise UsageError for the first number that is less than `least`. The keyword says what the number counts."""
    for what, number in numbers.items():
        if number < least:
            raise UsageError(f"{shown(number)} {what.replace('_', ' ')} cannot be used", f"give {least} or more")


def check_between(least: int, most: int, **numbers: int) -> None:
    """Raise UsageError for the first number that is not in [least, most]. The keyword says what the number counts."""
    check_at_least(least, **numbers)
    for what, number in numbers.items():
        if number > most:
            raise UsageError(f"{shown(number)} {what.replace('_', ' ')} cannot be used", f"give {most} or fewer")


def with_article(what: str) -> str:
    """Return the name of one thing as the beginning of a sentence: "A photo", "An image"."""
    return f"{'An' if what[0] in 'aeiou' else 'A'} {what}"


def check_factor(what: str, value: Any, remedy: str) -> None:
    """Raise UsageError, with `what` as the argument's name, unless `value` is in [0, `LARGEST_FACTOR`]."""
    if not 0 <= checked(what, value, "float") <= LARGEST_FACTOR:  # False for NaN, so NaN is refused
        raise UsageError(f"{with_article(what)} of {shown(value)} cannot be used", f"{remedy}, up to {LARGEST_FACTOR}")


def check_choice(what: str, name: Any, known: Iterable[str]) -> None:
    """Raise UsageError, with `what` as the argument's name, unless `name` is one of the `known` names."""
    if checked(what, name, "str") not in (choices := list(known)):
        raise UsageError(f'The {what} "{cut(name, LONGEST_VALUE)}" is unknown', f"use one of {', '.join(choices)}")


def check_path(what: str, value: Any) -> None:
    """Raise UsageError unless `value` can name a file or folder. `what` is its name in messages, such as "A mask"."""
    check_type(what, value, (str, os.PathLike), "give its path as a text or a pathlib.Path")
    if not os.fspath(value):  # which Python takes for the current folder
        raise UsageError(f"{what} cannot be used: the path is empty", "give its path")
    try:
        usable = b"\0" not in os.fsencode(value)
    except UnicodeEncodeError:
        usable = False
    if not usable:
        raise UsageError(
            f"{what} cannot have the path {cut(ascii(os.fspath(value)), LONGEST_VALUE)}", "give another path"
        )
