"""Types for the number options of the stages. A number out of range is reported before any data is read."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable


def whole_number(least: int, most: float = math.inf, *, multiple: int = 1) -> Callable[[str], int]:
    """Return an argparse type for a whole number from `least` to `most` that is a multiple of `multiple`."""
    kind = "a whole number" if multiple == 1 else f"a multiple of {multiple}"
    extent = f"of at least {least}" if most == math.inf else f"from {least} to {most}"

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most or value % multiple:
            raise argparse.ArgumentTypeError(f"{text} is not {kind} {extent}")
        return value

    return read


def real_number(most: float = math.inf, *, zero: bool = True) -> Callable[[str], float]:
    """Return an argparse type for a finite number from 0 to `most`. `zero` says whether 0 itself is allowed."""
    extent = "of at least 0" if zero else "above 0"
    if most < math.inf:
        extent = f"from 0 to {most:g}" if zero else f"above 0 and at most {most:g}"

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and 0 <= value <= most) or (value == 0 and not zero):
            raise argparse.ArgumentTypeError(f"{text} is not a number {extent}")
        return value

    return read
