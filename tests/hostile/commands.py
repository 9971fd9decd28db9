"""The commands of `inst` as data: their parameters, read from the command tree, and a line for each that works."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args

import typer
from typer.models import ArgumentInfo

from inst.cli import app
from inst.cli.places import Output

Name = tuple[str, ...]
"""The words that name a command, such as ("batch", "transfer")."""


@dataclass(frozen=True)
class Parameter:
    """An argument or an option.

    Attributes:
        name: its name in Python.
        flag: how it is given, such as "--steps"; "" for an argument that has only its place.
        kind: bool, int, float, str or Path.
    """

    name: str
    flag: str
    kind: type


@dataclass(frozen=True)
class Command:
    name: Name
    parameters: tuple[Parameter, ...]

    @property
    def numbers(self) -> list[Parameter]:
        return [one for one in self.parameters if one.kind in (int, float)]

    @property
    def texts(self) -> list[Parameter]:
        """The parameters that take a text or a path."""
        return [one for one in self.parameters if one.kind in (str, Path)]


@cache
def commands() -> Mapping[Name, Command]:
    """Return every command of the tree, so that a new one, or a new option, is attacked without a new recipe."""
    return {
        name: Command(
            name, tuple(filter(None, map(_parameter, inspect.signature(call, eval_str=True).parameters.values())))
        )
        for name, call in _walk(app, ())
    }


def _walk(tree: typer.Typer, before: Name) -> Iterator[tuple[Name, Callable[..., Any]]]:
    for one in tree.registered_commands:
        assert one.callback is not None
        yield (*before, one.name or one.callback.__name__.replace("_", "-")), one.callback
    for group in tree.registered_groups:
        assert group.typer_instance is not None
        yield from _walk(group.typer_instance, (*before, str(group.name)))


def _parameter(one: inspect.Parameter) -> Parameter | None:
    kind, *options = get_args(one.annotation) or (one.annotation,)
    if kind is typer.Context:
        return None
    found = {part for part in (kind, *get_args(kind)) if isinstance(part, type)}
    found |= {part for inner in get_args(kind) for part in get_args(inner)}  # list[str] | None
    place = options[0]
    declared = [place.default, *(place.param_decls or ())]  # typer takes the first name for a default value
    names = [name for name in declared if isinstance(name, str) and name.startswith("--")]
    flag = names[0].split("/")[0] if names else f"--{one.name.replace('_', '-')}"
    base = next((known for known in (bool, int, float, Path, str) if known in found), Path if Output in found else None)
    assert base is not None, f"the tests know no kind for {one}"
    return Parameter(one.name, "" if isinstance(place, ArgumentInfo) else flag, base)


MODEL = {"backbone": "tiny", "device": "cpu", "dtype": "float32"}
"""The tiny random model, for every command that loads one."""

_SMALL = {"steps": 1, "size": 64}
_LEARNING = {"steps": 1, "crops": 1, "validate_every": 0, "batch_size": 1}
_NOWHERE = "192.0.2.1"  # an address for documentation (RFC 5737): no computer can listen on it

GOOD: dict[Name, dict[str, Any]] = {
    ("learn",): {"paintings": ["painting.png"], "out": "made.safetensors", **_LEARNING},
    ("transfer",): {"photo": "photo.png", "style": ["style.safetensors"], "out": "made.png", **_SMALL},
    ("generate",): {"prompt": "a river by [C]", "style": ["style.safetensors"], "out": "made.png", **_SMALL},
    ("sheet",): {
        "photo": "photo.png",
        "style": ["style.safetensors"],
        "out": "made.png",
        "strengths": "0.3",
        "guidances": "2",
        **_SMALL,
    },
    ("studio",): {"data": "data", "host": _NOWHERE, "port": 0, "token": "a long secret word"},
    ("evaluate",): {"results": "comparison", "metrics": "colour", "out": "made", "size": 32, "replicates": 100},
    ("compare",): {
        "photos": ["photo.png"],
        "paintings": ["painting.png"],
        "methods": "inst-instant",
        "figures": False,
        "out": "made",
    },
    ("ablate",): {
        "what": "stochastic",
        "photos": ["photo.png"],
        "paintings": ["painting.png"],
        "figures": False,
        "learning_steps": 1,
        "out": "made",
    },
    ("demo",): {"out": "made", "steps": 1},
    ("repeat",): {"picture": "before.png", "out": "made.png"},
    ("doctor",): {},
    ("batch", "transfer"): {"photos": ["photos"], "styles": ["styles"], "out": "made", **_SMALL},
    ("batch", "learn"): {"paintings": ["photos"], "out": "made", **_LEARNING},
    ("batch", "generate"): {"prompts": "prompts.txt", "styles": ["styles"], "out": "made", **_SMALL},
    ("batch", "film"): {"source": "photos", "style": ["style.safetensors"], "out": "made", **_SMALL},
    ("style", "info"): {"style": "style.safetensors"},
    ("style", "mix"): {"styles": ["style.safetensors=1", "styles/other.safetensors=2"], "out": "made.safetensors"},
    ("style", "export"): {"style": "style.safetensors", "to": "a1111", "out": "made.safetensors"},
    ("style", "import"): {"file": "embedding.safetensors", "out": "made.safetensors"},
    ("weights", "list"): {},
    ("weights", "get"): {"names": ["vgg19"], "given": "photos"},
    ("study", "create"): {"folder": "comparison", "out": "made.db"},
    ("study", "serve"): {"study": "study.db", "host": _NOWHERE, "port": 0},
    ("study", "report"): {"study": "voted.db", "out": "made"},
    ("study", "simulate"): {"study": "study.db", "participants": 1, "at_once": 1, "kills": 0},
}
"""The parameters of a quick run of each command, in a folder that holds the kit (`kit.py`)."""

ENDS_WITH_1 = {("studio",), ("study", "serve"), ("weights", "get")}
"""Commands whose line cannot succeed here: they check all their arguments, and then find no address or no file."""

PARTIAL = {name for name in GOOD if name[0] in ("evaluate", "compare", "ablate", "batch", "doctor", "demo")}
PARTIAL |= {("weights", "get"), ("study", "create")}
"""Commands that say what they do, report what they could do, and end with 1 if something was left out."""


def line(name: Name, changes: Mapping[str, Any]) -> list[str]:
    """Return the command line of a command: its good one, with other values for some parameters."""
    command = commands()[name]
    known = {one.name: one for one in command.parameters}
    unknown = changes.keys() - known.keys()
    assert not unknown, f"{name} has no parameters {unknown}"
    values = {key: value for key, value in MODEL.items() if key in known and name[0] != "style"}
    if name == ("style", "import"):
        values = dict(MODEL)
    if "quiet" in known and name not in PARTIAL:
        values["quiet"] = True
    values |= GOOD[name] | changes
    words = list(name)
    for one in sorted(known.values(), key=lambda one: one.flag == ""):
        if (value := values.get(one.name)) is None:
            continue
        if one.kind is bool:
            words += [one.flag] if value else [f"--no-{one.flag[2:]}"] if one.flag == "--figures" else []
        elif one.flag:
            words += [f"{one.flag}={part}" for part in (value if isinstance(value, list) else [value])]
        else:
            words += ["--"] if "--" not in words else []
            words += map(str, value if isinstance(value, list) else [value])
    return words
