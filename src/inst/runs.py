"""Long work is a generator that yields its steps; `complete` runs one to its end."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TypeVar

from inst.arguments import check_type

_Step = TypeVar("_Step")
_Result = TypeVar("_Result")


def complete(generator: Generator[_Step, None, _Result], on_step: Callable[[_Step], object] | None = None) -> _Result:
    """Run a generator such as a solver's to its end and return its result, showing every step to `on_step`.

    The generator is closed when `on_step` raises, so that it can put its things in order at once.

    Raises:
        UsageError: no generator, such as the style of `inst.instant_style`, which is complete.
    """
    check_type("A run", generator, Generator, "give what inst.learn, inst.transfer or inst.generate returns")
    try:
        while True:
            try:
                step = next(generator)
            except StopIteration as end:
                result: _Result = end.value
                return result
            if on_step is not None:
                on_step(step)
    finally:
        generator.close()
