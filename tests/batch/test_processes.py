"""A process for each device: they share the work, one that dies is started again, and Ctrl-C ends all of them."""

import contextlib
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

import inst
from batch_runs import QUICK, facts, results, wait_for_results, write_pictures

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def transfer(tmp_path: Path, tiny_backbone_folder: Path) -> list[object]:
    write_pictures(tmp_path / "photos", *(f"p{k}.png" for k in range(4)))
    write_pictures(tmp_path / "styles", *(f"s{k}.png" for k in range(4)), seed=1)
    inputs = ["--photos", "photos", "--styles", "styles"]
    return ["batch", "transfer", *inputs, *QUICK, "--backbone", tiny_backbone_folder, "--dtype", "float32"]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # of the processes, as of this one
    monkeypatch.setenv("PYTHONPATH", str(Path(inst.__file__).parents[1]))


def test_a_process_that_is_killed_is_started_again_and_nothing_is_lost(
    tmp_path: Path, transfer: list[object], run: Run
) -> None:
    (tmp_path / "list.txt").write_text("".join(f"photos/{name}.png\n" for name in ("p0", "p1", "p0", "gone", "p2")))
    transfer[transfer.index("photos")] = "list.txt"  # with a photo that is listed twice
    assert run(*transfer, "--device", "cpu", "-o", "peace")[0] == 1
    killed: list[int] = []

    def kill() -> None:
        wait_for_results(tmp_path / "out", 3)
        victim = random.Random(0).choice(multiprocessing.active_children())
        killed.append(victim.pid or 0)
        victim.kill()

    thread = threading.Thread(target=kill)
    thread.start()
    code, out, err = run(*transfer, "--devices", "cpu,cpu", "-o", "out")
    thread.join()
    assert (code, err) == (1, "Failed: photos/gone.png: no such file: check the path.\n")
    assert killed
    assert results(tmp_path / "out") == results(tmp_path / "peace")
    assert facts(tmp_path / "out") == facts(tmp_path / "peace")
    counted = re.match(r"(\d+) made(?:, (\d+) there already)?, 4 failed in ", out)
    assert counted is not None
    assert int(counted[1]) + int(counted[2] or 0) == 16
    assert not multiprocessing.active_children()


def test_the_error_of_a_process_is_one_line(tmp_path: Path, transfer: list[object], run: Run) -> None:
    code, out, err = run(*transfer, "--steps", 0, "--devices", "cpu,cpu", "-o", "out")
    assert (code, out) == (2, "")
    assert err.startswith("Error: ")
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()
    assert not multiprocessing.active_children()


def test_more_devices_than_a_computer_has_are_refused(tmp_path: Path, transfer: list[object], run: Run) -> None:
    code, out, err = run(*transfer, "--devices", ",".join(["cpu"] * 301), "-o", "out")
    assert (code, out, err) == (2, "", "Error: 301 devices cannot be used: give 256 or fewer.\n")
    assert not multiprocessing.active_children()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no groups of processes that get Ctrl-C")
@pytest.mark.parametrize("early", [True, False])
def test_ctrl_c_ends_all_processes_quietly(tmp_path: Path, transfer: list[object], early: bool) -> None:
    """Also while they start, when nothing of this package runs in them yet."""
    # A shell that runs the tests behind lets its processes ignore Ctrl-C.
    heeded = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    command = [sys.executable, "-c", heeded + "from inst.cli import main; main()", *map(str, transfer)]
    process = subprocess.Popen(
        [*command, "--devices", "cpu,cpu", "-o", "out"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if early and not children.exists():
        process.kill()
        pytest.skip("the system does not name the children of a process")
    until = time.monotonic() + 120
    if early:
        while len(children.read_text().split()) < 2:
            assert time.monotonic() < until
            time.sleep(0.01)
        time.sleep(0.2)
    else:
        wait_for_results(tmp_path / "out", 1)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 130, printed
    lines = printed.splitlines()
    assert lines[-1] == "Interrupted."
    assert len(lines) <= 2, printed
    while any(one.status() != psutil.STATUS_ZOMBIE for one in group(process.pid)):
        assert time.monotonic() < until + 60
        time.sleep(0.05)


def group(leader: int) -> list[psutil.Process]:
    """The processes of a group."""
    found = []
    for one in psutil.process_iter():
        with contextlib.suppress(OSError):
            found += [one] if os.getpgid(one.pid) == leader else []
    return found
