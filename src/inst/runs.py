"""Long computations are generators that yield their steps; `complete` runs one to the end."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TypeVar

from inst.arguments import check_type
from inst.errors import Call

_Step = TypeVar("_Step")
_Result = TypeVar("_Result")


def complete(generator: Generator[_Step, None, _Result], on_step: Callable[[_Step], object] | None = None) -> _Result:
    """Run a generator, such as a solver's, to the end and return its result. `on_step` is called with every step.

    The generator is closed if `on_step` raises, so that it can clean up at once.

    Raises:
        UsageError: the argument is not a generator; `inst.instant_style`, for example, returns a finished style.
    """
    functions = Call("learn"), ", ", Call("transfer"), " or ", Call("generate")
    check_type("A run", generator, Generator, "give the result of ", *functions)
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
