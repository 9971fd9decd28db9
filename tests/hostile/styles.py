"""Bad style files, states of learnings, and embeddings of other programs."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from .commands import Name
from .harness import Case
from .pictures import bomb, special

BAD = "bad.safetensors"
CONTROLS = "\x1b]0;owned\x07\x1b[2K\rx\nError: forged\u2028\u202e"
DEEP = "[" * 100_000


def raw(header: bytes, length: int | None = None, body: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + body


def tensors(**entries: object) -> bytes:
    """A safetensors file whose header says this of its tensors."""
    return raw(json.dumps(entries).encode(), body=bytes(1024))


def _entry(dtype: str = "F32", shape: object = (1, 32), offsets: object = (0, 128)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


FILES: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "text": lambda: b"this is no style",
    "short": lambda: b"\x08",
    "length-2^63": lambda: raw(b"{}", 2**63),
    "length-0": lambda: raw(b"", 0),
    "length-100M": lambda: raw(b"{}", 99_999_999),
    "no-json": lambda: raw(b"{'a': 1}"),
    "deep-json": lambda: raw(DEEP.encode()),
    "list": lambda: raw(b"[]"),
    "number": lambda: raw(b"1" * 5000),
    "nothing": lambda: raw(b"{}"),
    "overlap": lambda: tensors(vectors=_entry(), more=_entry()),
    "past-the-end": lambda: tensors(vectors=_entry(offsets=(0, 2**40), shape=(2**33, 32))),
    "negative-shape": lambda: tensors(vectors=_entry(shape=(-1, 32))),
    "overflow-shape": lambda: tensors(vectors=_entry(shape=(2**62, 2**62))),
    "unknown-type": lambda: tensors(vectors=_entry("F1")),
    "metadata-list": lambda: tensors(__metadata__=[1, 2]),
    "metadata-number": lambda: tensors(__metadata__={"inst_style": 1, "inst_learning": 2}),
    "metadata-deep": lambda: tensors(__metadata__={"inst_style": DEEP, "inst_learning": DEEP}),
    "metadata-controls": lambda: tensors(**{CONTROLS: _entry()}),
    "pickle": lambda: pickle.dumps(print),
    "zip": lambda: _zip({"archive/data.pkl": pickle.dumps(print)}),
    "long-key": lambda: tensors(**{"x" * 1_000_000: _entry()}),
}
"""What no program would write, for every place that takes a file of tensors."""


def _zip(files: dict[str, bytes]) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return data.getvalue()


PLACES: dict[str, tuple[Name, dict[str, Any]]] = {
    "transfer": (("transfer",), {"style": [BAD]}),
    "second": (("generate",), {"prompt": "[C1] [C2]", "style": ["C1=style.safetensors", f"C2={BAD}"]}),
    "begin": (("learn",), {"begin": BAD}),
    "info": (("style", "info"), {"style": BAD}),
    "mix": (("style", "mix"), {"styles": ["style.safetensors=1", f"{BAD}=1"]}),
    "export": (("style", "export"), {"style": BAD}),
    "embedding": (("style", "import"), {"file": BAD}),
    "embedding-2": (("style", "import"), {"second": BAD}),
    "film": (("batch", "film"), {"style": [BAD]}),
    "batch": (("batch", "transfer"), {"styles": [BAD]}),
    "backbone": (("doctor",), {"backbone": BAD}),
    "resume": (("learn",), {"out": "half.safetensors", "resume": True, "steps": 3}),
}


_CORE = ("transfer", "begin", "embedding", "backbone", "resume")
_WORST = ("empty", "length-2^63", "deep-json", "past-the-end", "metadata-controls")


def style_files() -> Iterator[Case]:
    for place, (command, changes) in PLACES.items():
        kinds = {kind: partial(_write, make) for kind, make in FILES.items() if place in _CORE or kind in _WORST}
        for kind, write in (kinds | special(place)).items():
            target = "half.state.safetensors" if place == "resume" else BAD
            if kind in ("missing", "long-key") and place == "resume":
                continue  # then the style of -o is learned on
            refused = kind != "long-key"
            yield Case(f"styles/{kind}/{place}", command, changes, partial(_replace, write, target), refused=refused)


def _write(make: Callable[[], bytes], name: str) -> None:
    Path(name).write_bytes(make())


def _replace(write: Callable[[str], object], name: str) -> None:
    Path(name).unlink(missing_ok=True)
    write(name)


def change(path: str, key: str, to: str = BAD, drop: str = "", **changes: Any) -> None:
    """Write a copy of a style or a state in which some entries and tensors are others.

    Args:
        path: the good file.
        key: the entry of its metadata.
        to: the bad file.
        drop: tensors whose names begin so are left out.
        changes: entries of the content, by "name" or "name__part"; or tensors, if the values are some.
    """
    with safetensors.safe_open(path, "pt") as file:
        content = json.loads(file.metadata()[key])
        values = {name: file.get_tensor(name) for name in file.keys() if not (drop and name.startswith(drop))}  # noqa: SIM118
    for name, value in changes.items():
        if isinstance(value, torch.Tensor):
            values[name.replace("__", ".")] = value
            continue
        *parts, last = name.split("__")
        place = content
        for part in parts:
            place = place[part]
        place[last] = value
    safetensors.torch.save_file(values, to, {key: json.dumps(content)})


_NAN, _HUGE = float("nan"), 1e308
STYLE_CHANGES: dict[str, dict[str, Any]] = {
    "format-99": {"format": 99},
    "format-text": {"format": "2"},
    "format-nan": {"format": _NAN},
    "name-controls": {"about__name": CONTROLS},
    "name-long": {"about__name": "x" * 4_000_000},
    "name-list": {"about__name": [1]},
    "about-list": {"about": []},
    "about-controls": {"about": {CONTROLS: CONTROLS, "name": "a", "backbone": CONTROLS, "variant": CONTROLS}},
    "about-deep": {"about__x": json.loads("[" * 500 + "]" * 500)},
    "about-paintings": {"about__paintings": [1, 2]},
    "about-painting-names": {"about__paintings": [{"name": CONTROLS, "sha256": CONTROLS}]},
    "fingerprint-controls": {"fingerprint": CONTROLS},
    "fingerprint-number": {"fingerprint": 1},
    "denoiser-controls": {"denoiser": CONTROLS},
    "widths-negative": {"widths": [-1, 33]},
    "widths-many": {"widths": [1] * 1_000_000},
    "widths-text": {"widths": ["32"]},
    "shares-nan": {"shares": [_NAN]},
    "shares-huge": {"shares": [_HUGE]},
    "shares-zero": {"shares": [0]},
    "shares-negative": {"shares": [-1]},
    "shares-many": {"shares": [1.0] * 100_000},
    "steps-huge": {"about__steps": 10**400},
    "steps-text": {"about__steps": "x"},
    "module-config": {"module_config": {"width": 10**9, "layers": 10**9}},
    "module-config-list": {"module_config": []},
    "vectors-nan": {"vectors": torch.full((3, 32), _NAN)},
    "vectors-none": {"vectors": torch.zeros(0, 32)},
    "vectors-flat": {"vectors": torch.zeros(32)},
    "vectors-thin": {"vectors": torch.zeros(32, 0)},
    "vectors-many": {"vectors": torch.zeros(10_000, 32)},
    "vectors-wide": {"vectors": torch.zeros(3, 33)},
    "vectors-8-bits": {"vectors": torch.zeros(3, 32).to(torch.float8_e4m3fn)},
    "vectors-whole": {"vectors": torch.zeros(3, 32, dtype=torch.int64)},
    "vectors-complex": {"vectors": torch.zeros(3, 32, dtype=torch.complex64)},
    "vectors-large": {"vectors": torch.full((3, 32), 3e38)},
    "painting-bomb": {"painting__0": "bomb"},
    "painting-postscript": {"painting__0": "postscript"},
    "painting-empty": {"painting__0": torch.zeros(0, dtype=torch.uint8)},
    "painting-float": {"painting__0": torch.full((9,), _NAN)},
    "painting-number": {"painting__x": torch.zeros(9, dtype=torch.uint8)},
    "painting-numbers": {f"painting__{n}": torch.zeros(9, dtype=torch.uint8) for n in range(300)},
}
_USED_IN = {"transfer": PLACES["transfer"], "info": PLACES["info"], "mix": PLACES["mix"], "begin": PLACES["begin"]}
_USED_IN |= {"export": (("style", "export"), {"style": BAD, "to": "a1111-png", "out": "made.png"})}


def style_contents() -> Iterator[Case]:
    for number, (kind, changes) in enumerate(STYLE_CHANGES.items()):
        places = ("transfer", "info", ("mix", "begin", "export")[number % 3])
        for command, given, place in ((*_USED_IN[place], place) for place in places):
            yield Case(f"style-content/{kind}/{place}", command, given, partial(_change_style, changes))


def _change_style(changes: dict[str, Any]) -> None:
    contents = {"bomb": lambda: bomb(13_000), "postscript": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\nshowpage\n"}
    data = {
        name: torch.frombuffer(bytearray(contents[value]()), dtype=torch.uint8)
        if name == "painting__0" and isinstance(value, str)
        else value
        for name, value in changes.items()
    }
    change("style.safetensors", "inst_style", **dict(data.items()))


STATE_CHANGES: dict[str, dict[str, Any]] = {
    "no-adam": {"drop": "adam."},
    "no-module": {"drop": "module."},
    "no-best": {"drop": "best."},
    "no-generator": {"drop": "generator"},
    "no-tensors": {"drop": ""},
    "generator-short": {"generator": torch.zeros(3, dtype=torch.uint8)},
    "generator-float": {"generator": torch.zeros(5056)},
    "extra": {"module__stranger": torch.zeros(3)},
    **{
        f"{name}={value!r}": {f"progress__{name}": value}
        for name in ("step", "first", "best_step", "stale", "steady", "average", "loss_scale", "best_loss", "seconds")
        for value in (-5, 1e30, _NAN, "x", None, [])
    },
    **{
        f"settings-{name}={value!r}": {f"settings__{name}": value}
        for name in ("steps", "seed", "crops", "layers", "vectors")
        for value in (-5, 1e30, _NAN, "x", 10**9)
    },
    "progress-list": {"progress": []},
    "settings-list": {"settings": []},
    "about-list": {"about": []},
    "about-controls": {"about__fingerprint": CONTROLS},
}


def states() -> Iterator[Case]:
    """A state is refused, and stays, whatever is wrong with it."""
    for kind, changes in STATE_CHANGES.items():
        made = partial(change, "half.state.safetensors", "inst_learning", "half.state.safetensors", **changes)
        refused = "seconds" not in kind and kind not in ("about-list", "no-tensors", "extra", "no-best")
        given = {"out": "half.safetensors", "resume": True, "steps": 3}
        yield Case(f"states/{kind}", ("learn",), given, made, refused=refused)
