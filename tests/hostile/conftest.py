import shutil
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import typer

import inst
from inst.files import reading

from .commands import MODEL, Name
from .harness import Case, run_case, run_good
from .kit import copy_kit, write_kit


@pytest.fixture(scope="session")
def kit(tiny_backbone: inst.Backbone, tiny_backbone_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_kit(tmp_path_factory.mktemp("hostile") / "kit", tiny_backbone, tiny_backbone_folder)


@pytest.fixture(scope="session")
def warm() -> set[Name]:
    """The commands that have run in this process: their libraries are imported, which takes time and memory."""
    return set()


_load, _get_command = inst.Backbone.load, cache(typer.main.get_command)
_load_good = cache(partial(_load, MODEL["backbone"]))


def _load_once(name: str, *values: Any, **more: Any) -> inst.Backbone:
    return _load_good(**more) if name == MODEL["backbone"] and not values else _load(name, *values, **more)


@pytest.fixture
def once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read the command tree and load the good model once: both take longer than most refusals."""
    monkeypatch.setattr(inst.Backbone, "load", _load_once)
    monkeypatch.setattr(reading, "_PIPE_WAIT", 200)  # not ten seconds for each pipe that nobody writes to
    monkeypatch.setattr(typer.main, "get_command", _get_command)


@pytest.fixture
def place(kit: Path, once: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of its own with a copy of the kit, which is the current folder."""
    folder = copy_kit(kit, tmp_path / "place")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("INST_CACHE", str(tmp_path / "cache"))
    yield folder
    monkeypatch.chdir(tmp_path)
    shutil.rmtree(folder)


@pytest.fixture
def check(place: Path, warm: set[Name], kit: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Case], None]:
    """Run a case, and fail with all that is wrong."""

    def call(case: Case) -> None:
        if case.command not in warm:
            run_good(case.command, copy_kit(kit, place.with_name("warm")), monkeypatch)
            monkeypatch.chdir(place)
            warm.add(case.command)
        faults = run_case(case, monkeypatch)
        if faults:
            pytest.fail("\n".join([case.id, *faults]), pytrace=False)

    return call
