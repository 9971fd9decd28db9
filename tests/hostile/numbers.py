"""Absurd numbers for every numeric option of every command."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .commands import Command, Name, Parameter, commands
from .harness import Case

VALUES = {
    "huge": "1000000000",
    "negative": "-1",
    "zero": "0",
    "nan": "nan",
    "infinite": "inf",
    "overflow": "-1e400",
    "64-bits": "9223372036854775808",
    "arabic": "٣",
    "underscore": "0_1",
    "empty": "",
}

NEEDED: Mapping[tuple[str, str], Mapping[str, Any]] = {
    ("learn", "save_every"): {"steps": 2},
    ("learn", "preview_every"): {"steps": 2},
    ("ablate", "every"): {"what": "convergence"},
    ("ablate", "seeds"): {"what": "convergence"},
    **{(name, "control_scale"): {"controlnet": "controlnet"} for name in ("transfer", "generate")},
}
"""What else must be given for an option to have a meaning."""

REPEATED = {
    (command, one.name)
    for command, like in (
        (("batch", "transfer"), ("transfer",)),
        (("batch", "film"), ("transfer",)),
        (("batch", "generate"), ("generate",)),
        (("batch", "learn"), ("learn",)),
    )
    for one in commands()[like].numbers
}
"""Options that are declared once for two commands."""

SEEN: Mapping[Name, Mapping[str, Any]] = {("learn",): {"save_every": 1}}
"""What lets an endless command write a first file."""


def numbers() -> Iterator[Case]:
    for command in commands().values():
        for option in command.numbers:
            yield from _cases(command, option)


def _cases(command: Command, option: Parameter) -> Iterator[Case]:
    more = NEEDED.get((command.name[0], option.name), {})
    seen = SEEN.get(command.name, {}) if option.name not in ("save_every", "preview_every") else {}
    for kind in _kinds(option, shared=(command.name, option.name) in REPEATED):
        value = VALUES[kind]
        yield Case(
            f"numbers/{'-'.join(command.name)}/{option.name}={kind}",
            command.name,
            {**more, **seen, option.name: value},
            endless=True,
            refused=kind in ("nan", "infinite", "overflow", "empty"),
        )


def _kinds(option: Parameter, shared: bool) -> list[str]:
    """The values that differ for an option. How a number is read is the same for all of a type, so these take turns."""
    turn = sum(map(ord, option.name))
    if option.kind is int:
        read, tried = (
            ("nan", "infinite", "overflow", "arabic", "underscore", "empty"),
            ("huge", "negative", "zero", "64-bits"),
        )
    else:
        read, tried = (
            ("64-bits", "arabic", "underscore", "empty"),
            ("huge", "negative", "zero", "nan", "infinite", "overflow"),
        )
    if shared:
        return [tried[turn % len(tried)], read[turn % len(read)]]
    return [*tried, read[turn % len(read)]]


def lists() -> Iterator[Case]:
    """Numbers inside of texts: lists, sizes and weights."""
    values = {**VALUES, "commas": ",,,", "many": ",".join(["0.5"] * 100_000), "words": "0.3;0.5"}
    for kind, value in values.items():
        for option in ("strengths", "guidances"):
            yield Case(f"numbers/sheet/{option}={kind}", ("sheet",), {option: value})
        for command in (("generate",), ("batch", "generate")):
            for size in (value, f"64x{value}", f"{value}x64"):
                place = "x".join("64" if part == "64" else kind for part in size.split("x")) if "x" in size else kind
                yield Case(f"numbers/{'-'.join(command)}/size={place}", command, {"size": size}, endless=True)
        yield Case(f"numbers/style-mix/weight={kind}", ("style", "mix"), {"styles": [f"style.safetensors={value}"]})
