"""What commands leave that are killed while they write: the next run, or `inst doctor --clean`, deletes it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Run = Callable[..., tuple[int, str, str]]

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs POSIX")

# The command itself, which waits for ever where its first file would be complete on the disk.
PROGRAM = """
import os, sys, time

def wait(descriptor):
    os.write(1, b"writing\\n")
    time.sleep(600)

os.fsync = wait
from inst.cli import main

sys.argv[0] = "inst"
main()
"""


@pytest.fixture
def places(tmp_path: Path, common: list[object]) -> list[object]:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    for name in ("photo.png", "painting.png"):
        Image.fromarray(pixels).resize((64, 64)).save(tmp_path / name)
    return common


def writing(folder: Path, *arguments: object) -> subprocess.Popen[bytes]:
    """Run a command until it is about to complete its first file."""
    command = [sys.executable, "-c", PROGRAM, *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(folder / "temporary")}
    (folder / "temporary").mkdir(exist_ok=True)
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, env=environment)
    assert process.stdout is not None
    assert process.stdout.readline() == b"writing\n"
    return process


def kill(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def left(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob(".inst-*") if path.name.endswith((".part", ".lock")))


LEARN = ["learn", "painting.png", "--crops", "2", "--batch-size", "1", "--steps", "2", "--validate-every", "0"]
COMMANDS: dict[str, list[object]] = {
    "learn": [*LEARN, "-o", "s.safetensors"],
    "learn without -o": [*LEARN],
    "transfer": ["transfer", "photo.png", "--style", "painting.png", "--steps", "2", "-o", "out.png"],
    "transfer without -o": ["transfer", "photo.png", "--style", "painting.png", "--steps", "2"],
    "generate numbered": ["generate", "[C]", "--style", "painting.png", "--steps", "2", "--count", "2", "-o", "g.png"],
    "film": ["batch", "film", "frames", "--style", "painting.png", "--steps", "2", "-o", "film.mp4"],
    "batch": ["batch", "transfer", "--photos", "photo.png", "--styles", "painting.png", "--steps", "2", "-o", "made"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_next_run_deletes_what_a_killed_one_left(
    name: str, places: list[object], tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "film" and shutil.which("ffmpeg") is None:
        pytest.skip("needs ffmpeg")
    if name == "film":
        (tmp_path / "frames").mkdir()
        shutil.copy(tmp_path / "photo.png", tmp_path / "frames" / "1.png")
    command = [*COMMANDS[name], *places]
    kill(writing(tmp_path, *command))
    assert left(tmp_path), "nothing to clean"
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    code, _, err = run(*command)
    assert code == 0, err
    assert left(tmp_path) == []
    made = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert not any("-2." in one for one in made if name != "generate numbered"), "a name was left reserved"


def test_doctor_cleans_after_the_dead_and_leaves_the_living_alone(
    places: list[object], tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    monkeypatch.setenv("INST_CACHE", str(tmp_path / "cache"))
    code, out, _ = run("doctor", "--clean")
    assert (code, out.count("\n")) == (0, 1)
    assert out.startswith("No killed process left anything in outputs, ")

    dead = writing(tmp_path, *LEARN, *places)  # in outputs/
    living = writing(tmp_path, *LEARN, "-o", "living.safetensors", *places)
    try:
        at_work = [path for path in left(tmp_path) if path.parent == tmp_path]
        assert len(at_work) == 3  # the style, its lock and that of its state
        kill(dead)
        before = len(left(tmp_path))
        code, out, err = run("doctor", "--clean", "--json")
        assert code == 0, err
        found = json.loads(out)
        assert found["complete"]
        assert {Path(one["path"]).suffix for one in found["deleted"]} == {".part", ".lock", ".safetensors"}
        assert found["bytes"] == sum(one["bytes"] for one in found["deleted"]) > 100
        assert len(left(tmp_path)) < before
        assert list((tmp_path / "outputs").iterdir()) == []
        assert run("doctor", "--clean", ".")[1].startswith("No killed process left anything in .")
        assert left(tmp_path) == at_work
        code, _, err = run(*LEARN, "-o", "living.safetensors", *places)
        assert (code, err.count("\n")) == (1, 1)
        assert f"living.safetensors is being written by process {living.pid} on " in err
        assert left(tmp_path) == at_work
    finally:
        kill(living)
    code, out, _ = run("doctor", "--clean", tmp_path)
    assert (code, out.count("\n")) == (0, 4)
    assert out.splitlines()[-1].startswith("3 deleted, ")
    assert left(tmp_path) == []


def test_wrong_folders_are_refused_in_one_line(tmp_path: Path, run: Run) -> None:
    (tmp_path / "file").touch()
    for arguments, said, exit_code in (
        (["--clean", "nowhere"], "nowhere is no folder", 1),
        (["--clean", "file"], "file is no folder", 1),
        (["nowhere"], "add --clean", 2),
    ):
        code, out, err = run("doctor", *arguments)
        assert (code, out, err.count("\n")) == (exit_code, "", 1)
        assert said in err


def test_doctor_never_deletes_a_state_or_a_file_of_the_user(tmp_path: Path, run: Run) -> None:
    kept = ["s.state.safetensors", "s.safetensors", ".inst-notes", ".hidden.part", "photo.png.part", ".abcd.lock"]
    for name in kept:
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time.time() - 10**6,) * 2)
    assert run("doctor", "--clean", tmp_path)[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)
