"""Types of arguments: a wrong one is said where a wrong value is said, not by Python from deep inside."""

from __future__ import annotations

import os
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

from inst.errors import UsageError

LARGEST_FACTOR = 10_000
"""The largest guidance, style weight or scale: any of use is smaller by far, and half precision ends soon above."""

_KINDS: dict[str, tuple[type, Any, str]] = {
    "int": (Integral, int, "a whole number"),
    "float": (Real, float, "a number"),
    "bool": (bool, bool, "True or False"),
    "str": (str, str, "a text"),
}


def checked(name: str, value: Any, kind: str) -> Any:
    """Return an argument as a value of Python's own type: NumPy's numbers are taken too.

    Args:
        name: what the message calls it.
        value: what was given. True and False are no numbers, tensors neither.
        kind: "int", "float", "bool" or "str".

    Raises:
        UsageError: it is something else, a number beyond all floating point numbers, or a text that is no Unicode.
    """
    abstract, convert, wanted = _KINDS[kind]
    if isinstance(value, abstract) and (kind == "bool" or not isinstance(value, bool)):
        try:
            if isinstance(value, Integral):
                float(value)  # or an error
            elif isinstance(value, str):
                value.encode()
            return convert(value)
        except OverflowError:
            raise UsageError(f"The {name} is too large to be used", "give a smaller number") from None
        except UnicodeEncodeError:  # bytes of the command line that are no UTF-8
            raise UsageError(f"The {name} {value!a:.60} holds halves of characters", "write it again") from None
    found = repr(value).split("\n")[0]
    found = found if len(found) <= 60 else f"{found[:57]}..."
    raise UsageError(f"The {name} {found} cannot be used", f"give {wanted}")


def check_type(what: str, value: Any, kind: type | tuple[type, ...], remedy: str) -> None:
    """Raise UsageError, which says `what` cannot be used and the `remedy`, unless an argument is of this type."""
    if not isinstance(value, kind):
        raise UsageError(f"{what} of the type {type(value).__name__} cannot be used", remedy)


def check_at_least(least: int, **numbers: int) -> None:
    """Raise UsageError for the first of the numbers, each by what it counts, that is less than `least`."""
    for what, number in numbers.items():
        if number < least:
            raise UsageError(f"{number} {what.replace('_', ' ')} cannot be used", f"give {least} or more")


def check_choice(what: str, name: Any, known: Iterable[str]) -> None:
    """Raise UsageError, which says `what` is unknown, unless `name` is one of the `known` names."""
    if checked(what, name, "str") not in (choices := list(known)):
        raise UsageError(f'The {what} "{name}" is unknown', f"use one of {', '.join(choices)}")


def check_path(what: str, value: Any) -> None:
    """Raise UsageError unless an argument, which `what` says in the singular, can name a file or folder."""
    check_type(what, value, (str, os.PathLike), "give its name, a text or a pathlib.Path")
