"""Records of pictures that say something else than what `inst` wrote, for `inst repeat`."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from .harness import Case
from .pictures import bomb, with_text
from .styles import CONTROLS, DEEP, change

KEY = "inst"
_NAN = float("nan")
_SOURCES = (
    [],
    {"name": "../../etc/passwd", "sha256": "x"},
    {"name": CONTROLS, "sha256": CONTROLS},
    {"name": "/dev/zero", "sha256": "0" * 64},
)
ENTRIES: dict[str, tuple[Any, ...]] = {
    "format": (-1, 0, 99, 10**400, "x", None, _NAN, True),
    "command": ("sheet", "demo", "preview", "nonsense", CONTROLS, 5, "x" * 1_000_000),
    "settings": ([], 5, {CONTROLS: 1}, {"steps": {"steps": 1}}, {"x" * 1_000_000: 1}),
    "styles": ([], {}, {"[C]": ""}, {"[C]": "AAAA"}, {CONTROLS: "AAAA"}, {"[C]": 5}, {"[C]": "A" * 8_000_000}),
    "backbone": ({}, [], {"name": CONTROLS, "fingerprint": CONTROLS, "denoiser": CONTROLS}, {"name": 5}),
    "device": ("cuda:99", "nonsense", CONTROLS, 5, "meta", ""),
    "dtype": ("float8", "int64", CONTROLS, 5, ""),
    "versions": ([], {"inst": 5}, {CONTROLS: CONTROLS}, {f"v{n}": "1" for n in range(20_000)}),
    "quantize": ("int1", 5, CONTROLS),
    "photo": (
        {},
        {"name": "../../etc/passwd", "sha256": "x"},
        {"name": CONTROLS, "sha256": CONTROLS},
        [],
        {"name": "/dev/zero", "sha256": "0" * 64},
    ),
    "mask": ({"name": "mask.png", "sha256": "0" * 64}, [], {"name": "", "sha256": ""}),
    "control": ({}, [], {"model": CONTROLS, "fingerprint": "x", "kind": CONTROLS, "scale": _NAN, "picture": None}),
    "kind": ("film", CONTROLS, 5),
}
NUMBERS = ("steps", "size", "seed", "strength", "guidance", "style_weight", "style_scale", "cache_interval", "tile")
_VALUES = (-1, 10**9, 10**400, 1e308, _NAN, "x", None, [], {}, True)
_TEXTS = {
    "empty": "",
    "text": "no JSON",
    "deep": DEEP,
    "list": "[]",
    "null": "null",
    "number": "1" * 5000,
    "nothing": "{}",
}
_SHEETS: dict[str, dict[str, Any]] = {
    "million-cells": {"strengths": [0.5] * 1000, "guidances": [2.0] * 1000},
    "one-row": {"strengths": [0.5] * 1_000_000, "guidances": [2.0]},
    "words": {"strengths": ["x"], "guidances": [CONTROLS]},
    "nothing": {"strengths": [], "guidances": []},
    "nan": {"strengths": [_NAN], "guidances": [_NAN]},
    "nested": {"strengths": [[0.5]], "guidances": [{}]},
}


def records() -> Iterator[Case]:
    for name, values in ENTRIES.items():
        for number, value in enumerate(values):
            yield _case(f"{name}-{number}", {name: value})
    for name in NUMBERS:
        for number, value in enumerate(_VALUES):
            if (number + len(name)) % 2:
                yield _case(f"{name}={number}", settings={name: value})
    for kind, text in _TEXTS.items():
        made = partial(with_text, "bad.png", KEY, text)
        yield Case(f"records/{kind}", ("repeat",), {"picture": "bad.png"}, made, refused=True)
    for kind, settings in _SHEETS.items():
        yield _case(f"sheet-{kind}", {"command": "sheet"}, settings | {"paintings": True})
    for painting in ("bomb", "postscript"):
        yield Case(f"records/painting-{painting}", ("repeat",), {"picture": "bad.png"}, partial(_paintings, painting))


def _case(kind: str, changes: dict[str, Any] | None = None, settings: dict[str, Any] | None = None) -> Case:
    prepare = partial(_edit, changes or {}, settings or {})
    return Case(f"records/{kind}", ("repeat",), {"picture": "bad.png"}, prepare)


def _edit(changes: dict[str, Any], settings: dict[str, Any]) -> None:
    content = json.loads(Image.open("before.png").text[KEY])  # type: ignore[attr-defined]
    content["settings"] |= settings
    if changes.get("command") == "sheet":
        for name in ("strength", "guidance", "flatten"):
            content["settings"].pop(name, None)
    with_text("bad.png", KEY, json.dumps(content | changes))


def _paintings(kind: str) -> None:
    import torch

    data = bomb(13_000) if kind == "bomb" else b"%!PS-Adobe-3.0 EPSF-3.0\nshowpage\n"
    change("style.safetensors", "inst_style", painting__0=torch.frombuffer(bytearray(data), dtype=torch.uint8))
    style = base64.b64encode(Path("bad.safetensors").read_bytes()).decode()
    _edit({"styles": {"[C]": style}}, {"style_attention": 1.0})
