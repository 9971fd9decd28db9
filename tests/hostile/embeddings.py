"""Pickles that ask for more than weights, that loop, or that unpack to gigabytes; and odd embeddings."""

from __future__ import annotations

import os
import pickle
import struct
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import safetensors.torch
import torch

from .harness import Case
from .pictures import repeated, with_text
from .styles import CONTROLS, DEEP


class _Runs:
    """Pickled, it asks the reader to call a function."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


def _archive(program: bytes, more: dict[str, bytes] | None = None) -> Callable[[str], None]:
    def write(name: str) -> None:
        with zipfile.ZipFile(name, "w", zipfile.ZIP_DEFLATED) as archive:
            for entry, data in {
                "a/data.pkl": program,
                "a/version": b"3\n",
                "a/byteorder": b"little",
                **(more or {}),
            }.items():
                archive.writestr(entry, data)

    return write


def _inflating(name: str) -> None:
    """A program of 3 GB in an archive of 3 MB."""
    entry, size = b"a/data.pkl", 3 << 30
    data = repeated(b"N0" * (1 << 19), size >> 20)
    facts = struct.pack("<5H3I", 20, 0, 8, 0, 0, 0, len(data), size)
    local = b"PK\3\4" + facts + struct.pack("<2H", len(entry), 0) + entry + data
    central = b"PK\1\2\x14\0" + facts + struct.pack("<5H2I", len(entry), 0, 0, 0, 0, 0, 0) + entry
    end = b"PK\5\6" + struct.pack("<4H2IH", 0, 0, 1, 1, len(central), len(local), 0)
    Path(name).write_bytes(local + central + end)


_LOOP = b"\x80\x02}q\x00h\x00h\x00s."
_SELF_LIST = b"\x80\x02]q\x00h\x00a."
_TUPLES = b"\x80\x02N" + b"q\x00h\x00h\x00\x86" * 60 + b"."
_STORAGE = pickle.dumps({"string_to_param": {"*": 1}}, 2)
PROGRAMS: dict[str, bytes] = {
    "system": pickle.dumps(_Runs(os.system, "touch made-by-a-pickle"), 2),
    "popen": pickle.dumps(_Runs(subprocess.Popen, ["touch", "made-by-a-pickle"]), 2),
    "eval": pickle.dumps(_Runs(eval, "open('made-by-a-pickle', 'w').write('x')"), 2),
    "getattr": pickle.dumps(_Runs(getattr, "x", "upper"), 2),
    "in-parameters": pickle.dumps({"string_to_param": {"*": _Runs(os.system, "touch made-by-a-pickle")}}, 2),
    "self-dict": _LOOP,
    "self-list": _SELF_LIST,
    "tuples-2^60": _TUPLES,
    "deep-lists": b"\x80\x02" + b"]" * 10_000 + b"a" * 9_999 + b".",
    "deep-memo": b"\x80\x02}" + b"q\x00" * 100_000 + b".",
    "stop": b"\x80\x02.",
    "no-end": b"\x80\x02}(",
    "long-frame": b"\x80\x04\x95" + b"\xff" * 7 + b"\x7f",
    "long-bytes": b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f",
    "long-number": b"\x80\x02\x8b" + (2**31 - 1).to_bytes(4, "little") + b"\x01",
    "persistent": b"\x80\x02U\x05helloQ.",
    "wrong-parameters": pickle.dumps({"string_to_param": 5, "name": "x"}, 2),
    "name-controls": pickle.dumps({"string_to_param": {"*": 1}, "name": CONTROLS, "string_to_token": {CONTROLS: 1}}, 2),
    "key-controls": pickle.dumps({CONTROLS: 1}, 2),
    "storage": _STORAGE,
}

_SAFE: dict[str, dict[str, torch.Tensor]] = {
    "none": {},
    "no-vectors": {"emb_params": torch.zeros(0, 32)},
    "not-finite": {"emb_params": torch.full((1, 32), float("nan"))},
    "half-infinite": {"emb_params": torch.full((1, 32), float("inf"), dtype=torch.float16)},
    "many-vectors": {"emb_params": torch.zeros(100_000, 32)},
    "wide": {"emb_params": torch.zeros(1, 1_000_000)},
    "scalar": {"emb_params": torch.zeros(())},
    "4d": {"emb_params": torch.zeros(1, 1, 1, 32)},
    "8-bits": {"emb_params": torch.zeros(1, 32).to(torch.float8_e5m2)},
    "brain": {"emb_params": torch.zeros(1, 32, dtype=torch.bfloat16)},
    "whole": {"emb_params": torch.zeros(1, 32, dtype=torch.int64)},
    "key-controls": {CONTROLS: torch.zeros(1, 32)},
    "key-long": {"x" * 1_000_000: torch.zeros(1, 32)},
    "two": {"<a>": torch.zeros(1, 32), "<b>": torch.zeros(1, 32)},
    "pair": {"clip_l": torch.zeros(1, 32), "clip_g": torch.zeros(2, 48)},
    "pair-infinite": {"clip_l": torch.full((1, 32), 3e38), "clip_g": torch.zeros(1, 48)},
}
_TEXTS = {
    "empty": "",
    "text": "x",
    "deep": DEEP,
    "base64": "!" * 100,
    "list": "W10=",
    "null": "bnVsbA==",
    "long": "A" * 9_000_000,
}


def embeddings() -> Iterator[Case]:
    for kind, program in PROGRAMS.items():
        for place, write in (("pt", partial(_write, program)), ("archive", _archive(program))):
            yield _case(f"{place}-{kind}", "bad.pt", write, refused=True)
            yield Case(
                f"embeddings/{place}-{kind}/style",
                ("transfer",),
                {"style": ["bad.safetensors"]},
                partial(write, "bad.safetensors"),
                refused=True,
            )
            yield Case(
                f"embeddings/{place}-{kind}/backbone",
                ("doctor",),
                {"backbone": "bad.ckpt"},
                partial(write, "bad.ckpt"),
                refused=True,
            )
    yield _case("archive-inflates", "bad.pt", _inflating, refused=True)
    yield Case(
        "embeddings/archive-inflates/backbone",
        ("doctor",),
        {"backbone": "bad.ckpt"},
        partial(_inflating, "bad.ckpt"),
        refused=True,
    )
    for kind, tensors in _SAFE.items():
        yield _case(f"tensors-{kind}", "bad.safetensors", partial(_save, tensors))
    for kind, text in _TEXTS.items():
        for key in ("sd-ti-embedding", "inst"):
            yield _case(
                f"picture-{key}-{kind}",
                "bad.png",
                lambda name, key=key, text=text: with_text(name, key, text),
                refused=True,
            )


def _case(kind: str, name: str, write: Callable[[str], object], refused: bool = False) -> Case:
    return Case(f"embeddings/{kind}", ("style", "import"), {"file": name}, partial(write, name), refused=refused)


def _write(data: bytes, name: str) -> None:
    Path(name).write_bytes(data)


def _save(tensors: dict[str, torch.Tensor], name: str) -> None:
    safetensors.torch.save_file(tensors, name)
