import shutil
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path

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


@pytest.fixture(scope="session")
def once() -> Iterator[None]:
    """Read the command tree and load the good model once: both take longer than most refusals."""
    with pytest.MonkeyPatch.context() as patch:
        load = inst.Backbone.load
        good = cache(partial(load, MODEL["backbone"]))

        def load_once(name: str, **more: object) -> inst.Backbone:
            return good(**more) if name == MODEL["backbone"] else load(name, **more)

        patch.setattr(inst.Backbone, "load", load_once)
        patch.setattr(reading, "_PIPE_WAIT", 200)  # not ten seconds for each pipe that nobody writes to
        patch.setattr(typer.main, "get_command", cache(typer.main.get_command))
        yield


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
