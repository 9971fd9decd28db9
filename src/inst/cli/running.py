"""What commands share that run for long: how a signal ends them, and durations for people."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def ends_as_ctrl_c(number: signal.Signals) -> Iterator[None]:
    """Let a signal end the work in this block as Ctrl-C does."""
    before = signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(number, before)


def duration(seconds: float) -> str:
    """Return a duration as people say it: "12.3 s", "5 min 20 s" or "2 h 5 min"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
