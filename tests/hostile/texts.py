"""Names and texts that no terminal, file system or message expects, for every path and text of every command."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from .commands import Command, Parameter, commands
from .harness import Case

VALUES = {
    "controls": "\x1b]0;owned\x07\x1b[2K\rx\nError: forged\u2028\u202etxt",
    "bytes": os.fsdecode(b"caf\xe9\xff"),
    "long": "x" * 4_000_000,
    "home": "~nosuchuser/x",
    "empty": "",
}
_OUTPUTS = ("out", "data")


def texts() -> Iterator[Case]:
    for command in commands().values():
        for one in command.texts:
            yield from _cases(command, one)


def _cases(command: Command, one: Parameter) -> Iterator[Case]:
    shared = one.name in ("backbone", "config", "image_encoder", "quantize", "device", "dtype")
    for kind, value in VALUES.items():
        turn = list(VALUES)[1 + sum(map(ord, one.name)) % (len(VALUES) - 1)]
        if command.name != ("transfer",) and kind not in (("controls",) if shared else ("controls", turn)):
            continue  # the same code reads most of them for every command
        place = f"texts/{'-'.join(command.name)}/{one.name}={kind}"
        yield Case(place, command.name, {one.name: value})
        if one.kind is Path and one.name not in _OUTPUTS and not shared and kind in ("controls", "bytes"):
            for ending in (".png", ".safetensors")[: 1 if command.name != ("transfer",) else 2]:
                yield Case(f"{place}{ending}", command.name, {one.name: value + ending}, _garbage(value + ending))


def _garbage(name: str) -> Callable[[], object]:
    return partial(Path.write_bytes, Path(name), b"\x1b]0;owned\x07 nothing that any program wrote")
