"""Environment variables of any kind."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from .commands import Name
from .harness import Case

_LONG = "x" * 100_000
PLACES = {
    "nobody": "~nosuchuser/cache",
    "device": "/dev/null",
    "inside-a-file": "photo.png/cache",
    "nowhere": "/proc/nowhere",
    "controls": "a\x1b[2J\nError: forged",
    "no-utf8": "a\udcff",
    "long": _LONG,
    "empty": "",
    "none": None,
}
"""Values for the variables that name a folder; None takes the variable away."""

FOLDERS = ("INST_CACHE", "HOME", "TMPDIR", "XDG_CACHE_HOME", "HF_HOME", "MPLCONFIGDIR")
OTHERS = {
    "COLUMNS": ("0", "-5", "nonsense", "1", "9" * 30),
    "LANG": ("nonsense", "", "C"),
    "TERM": ("nonsense", ""),
    "OMP_NUM_THREADS": ("nonsense", "0", "-1"),
    "INST_STUDIO_PORT": ("nonsense", "1e400", "-1"),
    "INST_STUDIO_KEEP_DAYS": ("nan", "inf", "-1e400"),
}

COMMANDS: tuple[Name, ...] = (("weights", "list"), ("weights", "get"), ("doctor",), ("transfer",), ("style", "info"))


def environment() -> Iterator[Case]:
    for number, (variable, (kind, value)) in enumerate(product(FOLDERS, PLACES.items())):
        command = COMMANDS[number % len(COMMANDS)]
        yield Case(f"environment/{variable}={kind}/{'-'.join(command)}", command, environment={variable: value})
    for variable, values in OTHERS.items():
        command = ("studio",) if variable.startswith("INST_STUDIO") else ("style", "info")
        for number, value in enumerate(values):
            yield Case(f"environment/{variable}={number}", command, environment={variable: value})
