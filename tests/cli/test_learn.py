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


def interrupt_each_step(patched: pytest.MonkeyPatch) -> None:
    advance = LearningRun.advance

    def interrupted(self: LearningRun) -> float:
        os.kill(os.getpid(), signal.SIGINT)
        return advance(self)

    patched.setattr(LearningRun, "advance", interrupted)


def test_the_state_of_an_interrupted_command_is_only_lost_if_the_user_says_so(
    command: list[str], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    inst = request.getfixturevalue("run")
    given = [*command[1:], "--steps", "3", "-o", "s.safetensors"]
    with monkeypatch.context() as patched:
        interrupt_each_step(patched)
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


@pytest.mark.skipif(os.name != "posix", reason="needs a limit on the size of files")
@pytest.mark.parametrize(
    ("room", "checkpoint", "said"),
    [
        (
            "style",
            False,
            ["s.state.safetensors cannot be", "s.safetensors holds the style. Learning cannot be continued"],
        ),
        ("style", True, ["s.safetensors holds the style. --resume -o s.safetensors continues after step 1"]),
        (
            "none",
            True,
            ["s.safetensors cannot be", "The style was not saved. --resume -o s.safetensors continues after"],
        ),
        ("none", False, ["s.safetensors cannot be", "The style was not saved. Learning cannot be continued"]),
    ],
)
def test_an_interruption_on_a_full_disk_says_what_was_saved(
    command: list[str],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    room: str,
    checkpoint: bool,
    said: list[str],
) -> None:
    """The disk fills up in the second step, in which Ctrl-C comes."""
    import resource

    inst = request.getfixturevalue("run")
    if checkpoint:
        monkeypatch.setattr(sys.modules["inst.cli.learning"], "_CHECKPOINT_SECONDS", 0)
    given = [*command[1:], "--validate-every", "0", "--steps", "4"]
    assert inst(*given, "-o", "whole.safetensors")[0] == 0
    size, advance, steps = Path("whole.safetensors").stat().st_size, LearningRun.advance, []
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def interrupted(self: LearningRun) -> float:
        steps.append(advance(self))
        if len(steps) == 2:
            os.kill(os.getpid(), signal.SIGINT)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + 1000 if room == "style" else 100, hard))
        return steps[-1]

    monkeypatch.setattr(LearningRun, "advance", interrupted)
    try:
        code, out, err = inst(*given, "-o", "s.safetensors", "--quiet")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("Error: Interrupted after step 2, but ")
    assert all(words in err for words in said), err
    assert Path("s.safetensors").exists() == (room == "style")
    assert Path("s.state.safetensors").exists() == checkpoint
    if checkpoint:
        assert LearningState.load("s.state.safetensors").progress.step == 1
        assert inst(*given, "-o", "s.safetensors", "--resume") == (0, "s.safetensors\n", "")
        one, other = (Style.load(f"{name}.safetensors").vectors for name in ("s", "whole"))
        assert torch.equal(one, other)


def test_a_damaged_state_is_refused_and_stays(
    command: list[str], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    inst = request.getfixturevalue("run")
    given = [*command[1:], "--steps", "3", "-o", "s.safetensors"]
    with monkeypatch.context() as patched:
        interrupt_each_step(patched)
        assert inst(*given)[0] == 130
    state, style = Path("s.state.safetensors"), Path("s.safetensors").read_bytes()
    data = bytearray(state.read_bytes())
    data[-5] ^= 1
    state.write_bytes(data)
    code, out, err = inst(*given, "--resume")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "s.state.safetensors is damaged" in err
    assert (state.read_bytes(), Path("s.safetensors").read_bytes()) == (bytes(data), style)
    kept = {path.name for path in Path().iterdir()}
    assert not [name for name in kept if name.startswith(".inst-")]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--steps", "1000000001"], "1000000001 steps cannot be used: give 1000000000 at most"),
        (["--steps", str(2**63)], "steps cannot be used"),
        (["--vectors", "1000000000"], "vectors is not possible: give 1 to 1000"),
        (["--layers", "1000000000"], "layers are too many: give 100 at most"),
        (["--crops", str(2**63)], "crops cannot be used: give 10000 at most"),
        (["--batch-size", "1000000000"], "batch size cannot be used: give 1024 at most"),
        (["--lr", "inf"], "learning rate of inf"),
        (["--lr", "nan"], "learning rate of nan"),
        (["--dropout", "nan"], "dropout of nan"),
    ],
)
def test_absurd_numbers_are_refused_in_one_line(
    command: list[str], request: pytest.FixtureRequest, arguments: list[str], said: str
) -> None:
    code, out, err = request.getfixturevalue("run")(*command[1:], *arguments, "-o", "s.safetensors")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err
    assert [path.name for path in Path().iterdir()] == ["painting.png"]


def test_a_billion_steps_cost_nothing_beforehand(
    command: list[str], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    inst = request.getfixturevalue("run")
    given = [*command[1:], "--steps", "1000000000", "--save-every", "1", "--preview-every", "1000000000"]
    given += ["--patience", str(10**30), "--validate-every", str(10**30), "-o", "s.safetensors"]
    advance = LearningRun.advance

    def interrupted(self: LearningRun) -> float:
        os.kill(os.getpid(), signal.SIGINT)
        return advance(self)

    monkeypatch.setattr(LearningRun, "advance", interrupted)
    assert inst(*given)[0] == 130
    assert {path.name for path in Path().iterdir()} == {
        *("painting.png", "s.safetensors", "s.state.safetensors", "s-000001.safetensors")
    }
    Path("s.state.safetensors").unlink()
    code, _, err = inst(*given)
    assert code == 1
    assert "s-000001.safetensors is there already and would be overwritten" in err
    Path("s-000001.safetensors").unlink()
    Path("s-1000000000.png").touch()  # the preview of the last step
    assert "s-1000000000.png is there already" in inst(*given)[2]


def test_a_saved_style_never_replaces_a_file_that_appeared_meanwhile(
    command: list[str], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    inst = request.getfixturevalue("run")
    advance, file = LearningRun.advance, Path("s-000002.safetensors")

    def meanwhile(self: LearningRun) -> float:
        file.write_bytes(b"mine")
        return advance(self)

    monkeypatch.setattr(LearningRun, "advance", meanwhile)
    code, _, err = inst(*command[1:], "--steps", "3", "--save-every", "2", "-o", "s.safetensors")
    assert (code, err.count("\n")) == (1, 1)
    assert "s-000002.safetensors is there already" in err
    assert err.endswith(". --resume -o s.safetensors continues after step 2.\n")
    assert file.read_bytes() == b"mine"
    monkeypatch.setattr(LearningRun, "advance", advance)
    assert inst(*command[1:], "--steps", "3", "--save-every", "2", "-o", "s.safetensors", "--resume")[0] == 0
    resumed = Path("s.safetensors").read_bytes()
    assert inst(*command[1:], "--steps", "3", "-o", "s.safetensors")[0] == 0
    assert Path("s.safetensors").read_bytes() == resumed
