"""`inst learn` in a process of its own: what is left after a signal, and that going on gives the same style."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from inst.learning import run as learning_run
from inst.learning.run import LearningRun
from inst.learning.state import LearningState
from inst.styles.style import Style

INST = Path(sys.executable).with_name("inst")
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "NO_COLOR": "1"}


@pytest.fixture
def command(tiny_backbone_folder: Path, tmp_path: Path) -> list[str]:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((80, 72), Image.Resampling.BICUBIC).save(tmp_path / "painting.png")
    place = ["--backbone", str(tiny_backbone_folder), "--device", "cpu", "--dtype", "float32"]
    return [str(INST), "learn", "painting.png", "--crops", "2", "--batch-size", "1", *place]


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240, env=ENVIRONMENT)


def test_an_interrupt_leaves_a_style_and_resume_gives_the_uninterrupted_result(
    command: list[str], tmp_path: Path
) -> None:
    given = [*command, "--validate-every", "20", "--patience", "1000", "--save-every", "20", "--steps", "300"]
    stopped = [*given, "-o", "stopped.safetensors"]
    process = subprocess.Popen(stopped, cwd=tmp_path, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    while not (tmp_path / "stopped-000020.safetensors").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert "To continue, run the same command with --resume -o stopped.safetensors." in error
    assert "Traceback" not in error
    assert Style.load(tmp_path / "stopped.safetensors").vectors.shape == (3, 32)
    assert (tmp_path / "stopped.state.safetensors").exists()

    assert run([*stopped, "--resume"], tmp_path).returncode == 0
    assert run([*given, "-o", "straight.safetensors"], tmp_path).returncode == 0
    for number in ("", "-000300"):
        one, other = (Style.load(tmp_path / f"{name}{number}.safetensors").vectors for name in ("stopped", "straight"))
        assert torch.equal(one, other)
    assert not (tmp_path / "stopped.state.safetensors").exists()


def test_the_state_of_an_interrupted_command_is_only_lost_if_the_user_says_so(
    command: list[str], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    inst = request.getfixturevalue("run")
    given = [*command[1:], "--steps", "3", "-o", "s.safetensors"]
    advance = LearningRun.advance

    def interrupted(self: LearningRun) -> float:
        os.kill(os.getpid(), signal.SIGINT)
        return advance(self)

    with monkeypatch.context() as patched:
        patched.setattr(LearningRun, "advance", interrupted)
        assert inst(*given)[0] == 130
    kept = {path.name: path.read_bytes() for path in Path().glob("s*.safetensors")}
    assert set(kept) == {"s.safetensors", "s.state.safetensors"}
    code, _, err = inst(*given)
    assert code == 1
    assert "s.state.safetensors is the state of an interrupted command, which would be lost" in err
    assert all(word in err for word in ("--resume", "another name with -o", "--overwrite"))
    assert len(err.splitlines()) == 1
    assert {path.name: path.read_bytes() for path in Path().glob("s*.safetensors")} == kept
    assert inst(*given, "--resume", "--overwrite")[0] == 2
    assert inst(*given, "--overwrite")[0] == 0
    assert not Path("s.state.safetensors").exists()


def test_an_interrupt_stops_a_step_but_not_the_preparation_or_the_saving(
    command: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    """In the last step it leaves a state; while nothing is left to do, or the result is written, it changes nothing."""
    inst = request.getfixturevalue("run")
    given = [*command[1:], "--steps", "2", "-o", "s.safetensors"]
    at: list[str] = []

    def interrupting(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def called(*values: Any, **more: Any) -> Any:
            if name in at:
                os.kill(os.getpid(), signal.SIGINT)
            return real(*values, **more)

        monkeypatch.setattr(owner, name, called)

    interrupting(LearningRun, "advance")
    interrupting(learning_run, "prepare")
    interrupting(Style, "save")
    at[:] = ["save"]
    assert inst(*given) == (0, "s.safetensors\n", "")
    expected = Path("s.safetensors").read_bytes()

    at[:] = ["advance"]
    code, out, err = inst(*given)
    assert (code, out) == (130, "")
    assert "Interrupted after step 1" in err
    code, _, err = inst(*given, "--resume")
    assert code == 130
    assert "Interrupted after step 2" in err
    at[:] = ["prepare"]
    assert inst(*given, "--resume") == (0, "s.safetensors\n", "")
    assert Path("s.safetensors").read_bytes() == expected
    assert not Path("s.state.safetensors").exists()


@pytest.mark.skipif(os.name != "posix", reason="needs a limit on the size of files")
def test_a_full_disk_is_a_warning_at_a_checkpoint_and_an_error_at_the_end(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """A style is smaller than the state to go on from: there is room for both, for the style alone, or for neither."""
    import resource

    inst = request.getfixturevalue("run")
    monkeypatch.setattr(sys.modules["inst.cli.learning"], "_CHECKPOINT_SECONDS", 0)
    state, (soft, hard) = Path("s.state.safetensors"), resource.getrlimit(resource.RLIMIT_FSIZE)
    room, checkpoints = [10_000_000], []

    def limited(owner: Any) -> None:
        real = owner.save

        def save(one: Any, path: Path) -> None:
            whole = state.exists()
            resource.setrlimit(resource.RLIMIT_FSIZE, (room[0] if whole else soft, hard))
            try:
                real(one, path)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
                checkpoints.append(state.read_bytes())

        monkeypatch.setattr(owner, "save", save)

    limited(LearningState)
    limited(Style)
    given = [*command[1:], "--validate-every", "0", "--steps", "4", "-o", "s.safetensors"]
    assert inst(*given) == (0, "s.safetensors\n", "")
    assert len(set(checkpoints)) == 4
    size, before = Path("s.safetensors").stat().st_size, Path("s.safetensors").read_bytes()
    assert size < len(checkpoints[0]) / 2

    room[:], checkpoints[:] = [size + 1000], []
    code, out, err = inst(*given)
    assert (code, out, err.count("\n")) == (0, "s.safetensors\n", 1)
    assert err.startswith("Warning: s.state.safetensors cannot be written (File too large)")
    assert err.endswith("Learning continues without new checkpoints.\n")
    assert (len(checkpoints), len(set(checkpoints))) == (5, 1)
    assert Path("s.safetensors").read_bytes() == before

    room[:] = [100]
    code, out, err = inst(*given)
    assert (code, out, err.count("\n")) == (1, "", 2)
    assert "Error: s.safetensors cannot be written (File too large)" in err
    assert Path("s.safetensors").read_bytes() == before
    room[:] = [10_000_000]
    assert inst(*given, "--resume") == (0, "s.safetensors\n", "")
    assert Path("s.safetensors").read_bytes() == before


def test_save_every_writes_numbered_styles_that_differ(command: list[str], tmp_path: Path) -> None:
    found = run(
        [*command, "--steps", "6", "--save-every", "2", "--preview-every", "6", "-o", "s.safetensors"], tmp_path
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout == "s.safetensors\n"
    numbered = [Style.load(tmp_path / f"s-00000{k}.safetensors").vectors for k in (2, 4, 6)]
    assert (numbered[0] != numbered[1]).any()
    assert (numbered[1] != numbered[2]).any()
    assert Image.open(tmp_path / "s-000006.png").size == (64, 64)
    assert not (tmp_path / "s.state.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--variant", "other"], 2, "attention, pooled, direct"),
        (["--preset", "other"], 2, "paper"),
        (["--resume"], 2, "-o"),
        (["--resume", "-o", "new.safetensors"], 1, "nothing to resume"),
        (["-o", "painting.png"], 2, "painting.png"),
        (["--lr", "-1"], 2, "learning rate of -1"),
    ],
)
def test_wrong_options_are_refused_in_one_line(
    command: list[str], tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    before = (tmp_path / "painting.png").read_bytes()
    found = run([*command, "--steps", "1", *arguments], tmp_path)
    assert found.returncode == code, found.stderr
    assert message in found.stderr
    assert found.stderr.count("\n") == 1
    assert (tmp_path / "painting.png").read_bytes() == before


def test_a_finished_style_is_learned_on(command: list[str], tmp_path: Path) -> None:
    """With --resume from its own file, with --begin from any; never for no more steps, nor from other paintings."""
    Image.new("RGB", (80, 80), "red").save(tmp_path / "red.png")
    given = [*command, "--validate-every", "0"]
    assert run([*given, "--steps", "3", "-o", "s.safetensors"], tmp_path).returncode == 0
    before = (tmp_path / "s.safetensors").read_bytes()
    for extra, said in (
        (["--steps", "3", "--resume"], "s.safetensors is finished: it was learned with --steps 3"),
        (["--steps", "9", "--begin", "s.safetensors"], "s.safetensors"),
        (["--steps", "9", "--begin", "s.safetensors", "--resume"], "leave out --begin or --resume"),
    ):
        found = run([*given, *extra, "-o", "s.safetensors"], tmp_path)
        assert found.returncode == 2, found.stderr
        assert said in found.stderr
        assert found.stderr.count("\n") == 1
    other = [argument.replace("painting.png", "red.png") for argument in given]
    found = run([*other, "--steps", "9", "--resume", "-o", "s.safetensors"], tmp_path)
    assert "was learned from other paintings" in found.stderr
    assert (tmp_path / "s.safetensors").read_bytes() == before

    found = run([*other, "--steps", "5", "--begin", "s.safetensors", "-o", "red.safetensors"], tmp_path)
    assert found.returncode == 0, found.stderr
    found = run([*given, "--steps", "5", "--resume", "-o", "s.safetensors", "--json"], tmp_path)
    assert found.returncode == 0, found.stderr
    assert Style.load(tmp_path / "s.safetensors").about["steps"] == 5
    assert (Style.load(tmp_path / "red.safetensors").vectors != Style.load(tmp_path / "s.safetensors").vectors).any()


def test_numbered_styles_of_an_earlier_run_are_not_overwritten(command: list[str], tmp_path: Path) -> None:
    given = [*command, "--steps", "2", "--save-every", "1"]
    assert run(given, tmp_path).returncode == 0
    (style,) = (path for path in (tmp_path / "outputs").iterdir() if "-0000" not in path.name)
    style.unlink()
    before = {path: path.read_bytes() for path in (tmp_path / "outputs").iterdir()}
    again = run(given, tmp_path)
    assert again.returncode == 1
    assert "is there already" in again.stderr
    assert before == {path: path.read_bytes() for path in (tmp_path / "outputs").iterdir()}
