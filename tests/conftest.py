import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

# Nothing in the tests may reach a model hub, and two-core machines must not be oversubscribed.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch

import inst
from inst.cli import main
from tiny import write_tiny_backbone

pytest_plugins = ["evaluation_fixtures", "study_fixtures"]  # of commands and of rooms alike

torch.set_num_threads(1)

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="session")
def tiny_backbone_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model (v-prediction) in the diffusers layout. Read only: copy it to change it."""
    return write_tiny_backbone(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_backbone(tiny_backbone_folder: Path) -> inst.Backbone:
    """The tiny random model, loaded on the CPU in float32. Its weights are frozen: leave them so."""
    return inst.Backbone.load(tiny_backbone_folder, device="cpu", dtype="float32")


@pytest.fixture
def tiny_copy(tiny_backbone_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model's folder, to break."""
    return Path(shutil.copytree(tiny_backbone_folder, tmp_path / "copy"))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command of `inst` in a folder of its own; gives the exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["inst", *map(str, arguments)])
        capsys.readouterr()  # what was printed while things were prepared is not the command's
        try:
            main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def common(tiny_backbone_folder: Path) -> list[object]:
    """The options that let a command of `inst` use the tiny random model."""
    return ["--backbone", tiny_backbone_folder, "--device", "cpu", "--dtype", "float32"]
