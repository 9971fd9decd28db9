"""Good files with some bytes changed, cut or repeated at random places, through the command line."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from .commands import Name
from .harness import Case

FILES: Mapping[str, tuple[Name, dict[str, Any]]] = {
    "style.safetensors": (("style", "info"), {}),
    "embedding.safetensors": (("style", "import"), {}),
    "half.state.safetensors": (("learn",), {"resume": True, "out": "half.safetensors", "steps": 3}),
    "photo.png": (("transfer",), {}),
    "before.png": (("repeat",), {}),
    "voted.db": (("study", "report"), {}),
    "study.db": (("study", "serve"), {}),
    "prompts.json": (("evaluate",), {"prompts": "prompts.json"}),
    "pairs.csv": (("batch", "transfer"), {"photos": None, "styles": None, "pairs": "pairs.csv"}),
    "controlnet/config.json": (("generate",), {"controlnet": "controlnet", "control": "depth"}),
}
"""The files of the kit, and a command that reads each."""


def replace(path: Path, data: bytes) -> None:
    path.unlink(missing_ok=True)  # it may be a hard link to the good file
    path.write_bytes(data)


@st.composite
def broken(draw: st.DrawFn, whole: bytes) -> bytes:
    """Bytes with one to three changes; most of them near the start, where a file says what it is."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(data)) | st.integers(0, min(len(data), 400)))
        length = draw(st.integers(1, 16))
        match draw(st.sampled_from(["change", "cut", "insert", "remove", "repeat"])):
            case "change":
                data[place : place + length] = draw(st.binary(min_size=length, max_size=length))
            case "cut":
                del data[place:]
            case "insert":
                data[place:place] = draw(st.binary(min_size=length, max_size=length))
            case "remove":
                del data[place : place + length]
            case "repeat":
                data[place:place] = data[max(0, place - 64 * length) : place]
    return bytes(data)


@pytest.mark.timeout(240, method="thread")
@pytest.mark.parametrize("name", FILES)
def test_a_broken_file_is_used_or_refused_in_one_line(name: str, place: Path, check: Callable[[Case], None]) -> None:
    command, changes = FILES[name]
    whole = Path(name).read_bytes()

    @settings(max_examples=20, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(broken(whole))
    def attack(data: bytes) -> None:
        assume(data != whole)
        before = set(Path().rglob("*"))
        check(Case(f"broken/{name}", command, changes, partial(replace, Path(name), data)))
        for made in sorted(set(Path().rglob("*")) - before, reverse=True):
            made.rmdir() if made.is_dir() else made.unlink()

    attack()
