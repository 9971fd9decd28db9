"""The defaults of the package's functions, read from their source: importing them would import PyTorch."""

from __future__ import annotations

import ast
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any


@cache
def defaults_of(module: str, function: str) -> dict[str, Any]:
    """Return a function's parameters that have a literal default, with it.

    `function` may be a method, such as "Backbone.load". The module is not imported, only the packages above it are.
    """
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    found: Any = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    for name in function.split("."):
        found = next(node for node in found.body if getattr(node, "name", None) == name)
    given: ast.arguments = found.args
    positional = [*given.posonlyargs, *given.args]
    tail = zip(reversed(positional), reversed(given.defaults), strict=False)
    pairs = [
        *((a.arg, d) for a, d in tail),
        *((a.arg, d) for a, d in zip(given.kwonlyargs, given.kw_defaults, strict=True) if d),
    ]
    return {name: ast.literal_eval(default) for name, default in pairs}
