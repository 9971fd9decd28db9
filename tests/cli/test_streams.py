"""Consoles without letters, full disks, closed pipes, piped photos and missing home folders, in processes of their own.

Whatever happens to the output: no trace, an exit code, and what was written stays.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from inst.styles.style import Style
from pictures import quarters

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/full, /proc and names of any bytes")

Run = Callable[..., tuple[int, str, str]]
MIX = ["style", "mix", "one.safetensors", "-o"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    quarters().save("photo.png")
    Style(torch.ones(3, 32), fingerprint="0123456789abcdef", about={"name": "one"}).save("one.safetensors")
    return tmp_path


def inst(*arguments: object, **more: Any) -> subprocess.CompletedProcess[bytes]:
    """Run a command with buffered output, as users do. `env` adds variables of the environment."""
    environment = {**os.environ, "NO_COLOR": "1", **more.pop("env", {})}
    environment.pop("PYTHONUNBUFFERED", None)
    command = [sys.executable, "-c", "from inst.cli import main; main()", *map(str, arguments)]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more}
    return subprocess.run(command, env=environment, timeout=240, check=False, **streams)


@pytest.mark.parametrize(
    ("encoding", "name", "printed"),
    [
        ("cp1252:strict", "日本 é.safetensors", b"?? \xe9.safetensors\n"),
        ("utf-8", os.fsdecode(b"\xff\xe9.safetensors"), b"\xff\xe9.safetensors\n"),
    ],
)
def test_every_name_is_printed_on_every_console(encoding: str, name: str, printed: bytes) -> None:
    found = inst(*MIX, name, env={"PYTHONIOENCODING": encoding})
    assert (found.returncode, found.stdout, found.stderr) == (0, printed, b"")
    assert Style.load(name).name == "100% one"
    found = inst("style", "info", f"missing-{name}", env={"PYTHONIOENCODING": encoding})
    assert (found.returncode, found.stdout) == (1, b"")
    assert found.stderr == b"Error: missing-" + printed[:-1] + b": no such file: check the path.\n"


@pytest.mark.parametrize("arguments", [[*MIX, "made.safetensors"], ["--version"], ["style", "--help"]])
def test_an_output_that_finds_no_room_is_one_line_and_results_stay(arguments: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        found = inst(*arguments, stdout=full)
    assert found.returncode == 1
    assert found.stderr.decode() == (
        "Error: the output cannot be printed (No space left on device): free space on the disk. Files that were "
        "written stay.\n"
    )
    assert Path("made.safetensors").exists() == ("made.safetensors" in arguments)


@pytest.mark.parametrize("arguments", [[*MIX, "made.safetensors"], ["--version"], ["style", "--help"]])
def test_a_closed_pipe_ends_a_command_quietly_and_results_stay(arguments: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    found = inst(*arguments, stdout=writing)
    os.close(writing)
    assert (found.returncode, found.stderr) == (1, b"")
    assert Path("made.safetensors").exists() == ("made.safetensors" in arguments)


def test_a_message_that_finds_no_room_does_not_change_the_exit_code() -> None:
    with open("/dev/full", "wb") as full:
        assert inst("style", "info", "missing.safetensors", stderr=full).returncode == 1


@pytest.mark.parametrize("more", [[], ["--json"]])
@pytest.mark.parametrize("closed", ["1", "2", "1 2", "0"])
def test_closed_streams_are_no_traces_and_results_stay(closed: str, more: list[str]) -> None:
    redirected = "".join({"0": " <&-", "1": " >&-", "2": " 2>&-"}[one] for one in closed.split())
    command = (
        f'exec "$0" -c "from inst.cli import main; main()" {" ".join([*MIX, "made.safetensors", *more])}{redirected}'
    )
    found = subprocess.run(["sh", "-c", command, sys.executable], capture_output=True, timeout=240, check=False)
    lost = "1" in closed
    assert found.returncode == (1 if lost else 0)
    assert bool(found.stdout) != lost
    said = b"Error: the output cannot be printed (Bad file descriptor): give the command an output."
    assert found.stderr.startswith(said if closed == "1" else b"")
    assert found.stderr.count(b"\n") == (closed == "1")
    assert Style.load("made.safetensors").name == "100% one"


def test_a_terminal_that_goes_away_does_not_end_the_work(common: list[object]) -> None:
    """The progress bar's terminal is closed at once, as that of a connection that breaks; the picture is made."""
    ours, theirs = os.openpty()
    arguments = ["transfer", "photo.png", "-s", "photo.png", "--steps", "50", "-o", "made.png", *common]
    code = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN); from inst.cli import main; main()"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, env={**os.environ, "TERM": "xterm"})
    os.close(theirs)
    os.read(ours, 1)  # the bar is there
    os.close(ours)
    out, _ = run.communicate(timeout=240)
    assert (run.returncode, out) == (0, b"made.png\n")
    assert Path("made.png").exists()


@pytest.mark.parametrize("width", ["0", "1", "-5", "wide", "9" * 30])
def test_the_help_can_be_read_at_every_width(width: str) -> None:
    found = inst("style", "--help", env={"COLUMNS": width, "TERMINAL_WIDTH": width, "TERM": "unknown"})
    assert (found.returncode, found.stderr) == (0, b"")
    assert b"Usage: inst style" in found.stdout


def test_a_current_folder_that_is_gone_is_said_in_one_line(tmp_path: Path) -> None:
    script = 'mkdir gone && cd gone && rmdir ../gone && exec "$0" -c "from inst.cli import main; main()" "$@"'
    for arguments, code, said in (
        (["--version"], 0, b""),
        (
            ["style", "info", str(tmp_path / "one.safetensors")],
            1,
            b"Error: The current folder does not exist any more: change to another folder.\n",
        ),
    ):
        command = ["sh", "-c", script, sys.executable, *arguments]
        found = subprocess.run(command, capture_output=True, timeout=240, check=False, cwd=tmp_path)
        assert (found.returncode, found.stderr) == (code, said)


def test_without_a_home_folder_all_works_that_needs_no_cache(common: list[object]) -> None:
    found = inst("transfer", "photo.png", "-s", "photo.png", "--steps", 1, *common, env={"HOME": "/proc/nowhere"})
    assert (found.returncode, found.stderr) == (0, b"")


def test_what_needs_a_cache_says_that_there_is_no_home_folder(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without a name, as in a container."""
    for name in ("HOME", "XDG_CACHE_HOME", "INST_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 54321)
    for command in (("list",), ("get", "vgg19")):
        code, out, err = run("weights", *command)
        assert (code, out) == (1, "")
        assert err == "Error: There is no home folder for the weights: name a folder with INST_CACHE.\n"
    monkeypatch.setenv("HOME", "/proc/nowhere")
    assert run("weights", "list")[0] == 0
    code, _, err = run("weights", "get", "vgg19", "--from", ".")
    assert (code, err.count("\n")) == (1, 1)


# Photos from pipes


def test_a_photo_from_the_standard_input_is_the_photo_of_the_file(common: list[object]) -> None:
    with open("photo.png", "rb") as photo:
        piped = subprocess.Popen(["cat"], stdin=photo, stdout=subprocess.PIPE)
        found = inst("transfer", "-", "-s", "photo.png", "--steps", 1, "--json", *common, stdin=piped.stdout)
        piped.wait()
    assert (found.returncode, found.stderr) == (0, b"")
    (made,) = json.loads(found.stdout)["pictures"]
    assert made == "outputs/stdin-photo.png"
    with open("photo.png", "rb") as photo:
        found = inst("transfer", "-", "-s", "photo.png", "--steps", 1, "-o", "file.png", *common, stdin=photo)
    assert found.returncode == 0, found.stderr
    assert (np.asarray(Image.open(made)) == np.asarray(Image.open("file.png"))).all()


@pytest.fixture
def piped() -> Callable[[bytes], str]:
    """Return the path of a pipe with these bytes in it, as a shell gives for `<(command)`."""

    def path(data: bytes) -> str:
        reading, writing = os.pipe()
        with os.fdopen(writing, "wb") as file:
            file.write(data)
        return f"/dev/fd/{reading}"

    return path


def test_pipes_are_read_as_photo_style_and_mask(run: Run, common: list[object], piped: Callable[[bytes], str]) -> None:
    quarters().convert("L").save("mask.png")
    photo, mask = Path("photo.png").read_bytes(), Path("mask.png").read_bytes()
    options = ["--steps", 1, *common]
    given = (piped(photo), "-s", piped(photo), "--mask", piped(mask))
    assert run("transfer", *given, "-o", "pipe.png", *options)[::2] == (0, "")
    given = ("photo.png", "-s", "photo.png", "--mask", "mask.png")
    assert run("transfer", *given, "-o", "file.png", *options)[::2] == (0, "")
    assert (np.asarray(Image.open("pipe.png")) == np.asarray(Image.open("file.png"))).all()
    sources = ("--photo", "photo.png", "--mask", "mask.png", *common)
    assert run("repeat", "pipe.png", "-o", "again.png", *sources)[0] == 0  # the record has the hashes of the files
    code, _, err = run("repeat", "pipe.png", "--photo", piped(photo), *common)
    assert code == 1
    assert "is not a regular file: give the photo" in err


def test_what_cannot_be_read_as_a_picture_is_named_as_what_it_is(
    run: Run, common: list[object], piped: Callable[[bytes], str]
) -> None:
    for given, reason in (
        (piped(b""), "is empty (0 bytes)"),
        (piped(b"no picture"), "is not a picture in a known format"),
        ("/dev/null", "is neither a file nor a pipe"),
    ):
        code, out, err = run("transfer", given, "-s", "photo.png", *common)
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert f"{given} {reason}" in err
