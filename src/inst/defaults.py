"""Read the defaults of the package's functions from their source code. Importing them would import PyTorch."""

from __future__ import annotations

import ast
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any


@cache
def defaults_of(module: str, function: str) -> dict[str, Any]:
    """Return the literal defaults of a function's parameters, by parameter name.

    `function` may be a method, such as "Backbone.load". The module is not imported. Its parent packages are.
    """
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    node: Any = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    for name in function.split("."):
        node = next(child for child in node.body if getattr(child, "name", None) == name)
    arguments: ast.arguments = node.args
    positional = [*arguments.posonlyargs, *arguments.args]
    tail = zip(reversed(positional), reversed(arguments.defaults), strict=False)
    pairs = [
        *((a.arg, d) for a, d in tail),
        *((a.arg, d) for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if d),
    ]
    return {name: ast.literal_eval(default) for name, default in pairs}
