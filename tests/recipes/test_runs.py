"""What can happen to a stage while it runs: signals, a broken cache, an output that ends, no room."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

import autoencoder
import files
import training
import workers
from inst.errors import InstError

RECIPE = Path(files.__file__).parent

WATCHED = """
import os, runpy, signal, sys
event, ending, number = sys.argv[1], sys.argv[2], int(sys.argv[3])
def watch(now, values):
    global event
    if now == event and str(values[0]).endswith(ending):
        event = None
        os.kill(os.getpid(), number)
sys.addaudithook(watch)
sys.argv = sys.argv[4:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Runs a stage that gets a signal just before the first EVENT (of Python's audit events) on a name with this ENDING."""


def stage(*arguments: object, output: int = subprocess.PIPE, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, arguments)]
    given = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "", **environment}
    return subprocess.run(command, env=given, stdout=output, stderr=subprocess.PIPE, text=True, check=False)


def tokenizer_arguments(shards: Path, out: Path) -> Sequence[object]:
    return RECIPE / "tokenizer.py", "--data", shards, "--out", out, "--size", "560", "--length", "24"


def autoencoder_arguments(shards: Path, vgg: Path, out: Path, steps: int) -> list[str]:
    sizes = ["--batch", "2", "--crop", "64", "--widths", "16", "16", "16", "32", "--log-every", "1"]
    return ["--data", str(shards), "--perceptual", str(vgg), "--out", str(out), "--steps", str(steps), *sizes]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("number", "event", "ending"),
    [
        pytest.param(signal.SIGINT, "import", "transformers", id="while it imports"),
        pytest.param(signal.SIGTERM, "open", "train-1.tar", id="while it reads"),
        pytest.param(signal.SIGTERM, "open", ".tokenizer.part/vocab.json", id="while it writes"),
        pytest.param(signal.SIGTERM, "os.rename", "/tokenizer", id="while it replaces"),
    ],
)
def test_a_signal_at_any_time_is_reported_in_one_line_and_existing_files_stay(
    shards: Path, tmp_path: Path, number: int, event: str, ending: str
) -> None:
    before = {"tokenizer/vocab.json": b"earlier", "tokenizer/merges.txt": b"earlier"}
    (tmp_path / "tokenizer").mkdir()
    for name, content in before.items():
        (tmp_path / name).write_bytes(content)
    answer = stage("-c", WATCHED, event, ending, number, *tokenizer_arguments(shards, tmp_path))
    assert answer.stderr == "error: interrupted; run it again to continue from its last checkpoint, if there is one\n"
    assert answer.returncode == 130
    assert contents(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer"]


def test_after_a_kill_and_a_resume_the_log_has_each_step_once(shards: Path, random_vgg: Path, tmp_path: Path) -> None:
    """Killed after step 4 with a checkpoint of step 2; then also half a row, as a full disk leaves it."""
    log = tmp_path / "log.jsonl"
    autoencoder.main([*autoencoder_arguments(shards, random_vgg, tmp_path, 2), "--no-compile"])
    again = [*autoencoder_arguments(shards, random_vgg, tmp_path, 4), "--no-compile"]
    # The next file that is renamed is the checkpoint of step 4.
    killed = stage("-c", WATCHED, "os.rename", ".part", signal.SIGKILL, RECIPE / "autoencoder.py", *again)
    assert killed.returncode == -signal.SIGKILL
    rows = log.read_text()
    assert [json.loads(row)["step"] for row in rows.splitlines()] == [1, 2, 3, 4]
    log.write_text(rows + '{"step": 5, "sec')
    autoencoder.main(again)
    after = [json.loads(row) for row in log.read_text().splitlines()]
    assert [row["step"] for row in after] == [1, 2, 3, 4]
    assert [row["loss"] for row in after] == [json.loads(row)["loss"] for row in rows.splitlines()]


def test_a_compiler_cache_that_is_not_a_folder_is_reported_in_one_line(shards: Path, tmp_path: Path) -> None:
    """PyTorch makes the folder while it is imported."""
    cache = tmp_path / "cache"
    cache.touch()
    given = autoencoder_arguments(shards, tmp_path / "vgg", tmp_path / "out", 1)
    answer = stage(RECIPE / "autoencoder.py", *given, TORCHINDUCTOR_CACHE_DIR=str(cache))
    assert answer.returncode == 1
    assert answer.stderr.startswith(f"error: {cache}: File exists (TORCHINDUCTOR_CACHE_DIR, the cache of torch.compile")
    assert answer.stderr.count("\n") == 1


def test_a_compiler_cache_that_cannot_be_used_is_reported_in_one_line(tmp_path: Path) -> None:
    """A stage in little: the compiler's errors come out of the first call of what was compiled."""
    (tmp_path / "little.py").write_text(
        "import torch\ndef main():\n    torch.compile(torch.nn.Linear(2, 2))(torch.zeros(1, 2))\n"
    )
    path = os.pathsep.join([str(tmp_path), str(RECIPE), *sys.path])
    cache = "/proc"  # nothing can be made there, by root neither
    answer = stage("-c", "from files import guarded; guarded('little')", PYTHONPATH=path, TORCHINDUCTOR_CACHE_DIR=cache)
    assert answer.returncode == 1
    assert answer.stderr.startswith("error: torch.compile failed (FileNotFoundError: ")
    assert answer.stderr.endswith("; delete its cache, /proc, or give --no-compile\n")
    assert answer.stderr.count("\n") == 1


@pytest.mark.parametrize("more", [[], ["--help"]])
def test_a_closed_standard_output_is_reported_in_one_line(shards: Path, tmp_path: Path, more: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    answer = stage(*tokenizer_arguments(shards, tmp_path), *more, output=writing)
    os.close(writing)
    assert answer.stderr == "error: standard output: Broken pipe; repair that, then run the same command again\n"
    assert answer.returncode == 1


def test_an_output_folder_that_is_a_file_or_below_one_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    for folder in (file, file / "runs" / "vae"):
        with pytest.raises(InstError, match="file is a file; give another folder"):
            files.write_folder(folder, lambda made: (made / "new").touch())
    alone, box = workers.Workers(0, 1, torch.device("cpu")), training.TimeBox(None, 1)
    with pytest.raises(InstError, match="file is a file; give another folder"):
        training.Training(alone, file / "runs", {}, {}, {}, torch.Generator(), box, {})
    assert contents(tmp_path) == {"file": b"mine"}


def test_a_copy_that_does_not_fit_on_the_disk_is_reported_with_the_reason(tmp_path: Path) -> None:
    """Under a limit on the size of files, as little as a full disk."""
    source = tmp_path / "part"
    source.mkdir()
    for name in ("a", "b"):
        (source / name).write_bytes(bytes(10000))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
    try:
        with pytest.raises(
            InstError, match=r"out: cannot be written \([^[(]*\[Errno 27\] File too large: .*\); free disk space"
        ):
            files.write_folder(tmp_path / "out", lambda made: shutil.copytree(source, made / "part"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.iterdir()] == ["part"]
