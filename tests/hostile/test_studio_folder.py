"""Files of a studio's data folder that are something else: the studio starts, or says in one line why not."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

import inst
from inst.studio.limits import Limits
from inst.studio.studio import Studio

from .pictures import SPECIAL
from .tables import TEXTS

NAMES = ("jobs.sqlite", "jobs", "styles", "styles/index.sqlite", "styles/a.safetensors", "uploads", "uploads/owners")
KINDS: dict[str, Callable[[Path], object]] = {
    **{kind: lambda path, data=data: path.write_bytes(data) for kind, data in TEXTS.items()},
    **{kind: lambda path, write=write: write(str(path)) for kind, write in SPECIAL.items() if kind != "huge-hole"},
    "sqlite-header": lambda path: path.write_bytes(b"SQLite format 3\0" + bytes(5000)),
    "random": lambda path: path.write_bytes(os.urandom(5000)),
}


def state_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and not path.is_symlink()}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_data_folder_with_something_else_in_it_starts_or_is_refused_in_one_line(
    kind: str, name: str, tmp_path: Path
) -> None:
    path = tmp_path / "data" / name
    path.parent.mkdir(parents=True)
    KINDS[kind](path)
    before = state_of(tmp_path)
    message = ""
    try:
        Studio(tmp_path / "data", lambda: pytest.fail("loaded"), Limits()).close()
    except inst.InstError as error:
        message = str(error)
    assert message.isprintable()
    assert len(message) < 1500
    kept = set(state_of(tmp_path).values())
    if name != "styles/index.sqlite":  # which is made again from the styles
        assert kept >= set(before.values()) - {b""}
