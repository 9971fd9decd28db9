"""A batch loses no work: whatever ends it, the same command goes on, and its outputs are those of a run in peace."""

import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from batch_runs import QUICK, ended, facts, results, rows, started, wait_for_results, write_pictures
from inst.batch.orders import seed_of
from inst.files.provenance import SourceFile

Run = Callable[..., tuple[int, str, str]]

PHOTOS = [f"p{k}.png" for k in range(6)]
STYLES = ["s0.png", "s1.png"]


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """Photos and paintings in the current folder of `run`; always the same."""
    write_pictures(tmp_path / "photos", *PHOTOS)
    write_pictures(tmp_path / "styles", *STYLES, seed=1)
    return tmp_path


@pytest.fixture
def transfer(work: Path, common: list[object]) -> list[object]:
    """The command, but for its folder."""
    return ["batch", "transfer", "--photos", "photos", "--styles", "styles", *QUICK, *common]


@pytest.fixture
def peaceful(work: Path, transfer: list[object], run: Run) -> dict[str, bytes]:
    """The outputs of a run in peace."""
    assert run(*transfer, "-o", "peace")[0] == 0
    return results(work / "peace")


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, 130)])
def test_a_run_that_is_ended_goes_on_and_leaves_what_a_run_in_peace_leaves(
    work: Path, transfer: list[object], peaceful: dict[str, bytes], run: Run, sent: signal.Signals, code: int
) -> None:
    chance = random.Random(sent)
    for _ in range(2):  # and again, where the first one stopped
        before = len(results(work / "out")) if (work / "out").exists() else 0
        with started(work, *transfer, "-o", "out") as pid:
            wait_for_results(work / "out", before + chance.randint(1, 3))
            time.sleep(chance.random() * 0.05)
            os.kill(pid, sent)
            assert ended(pid) == code
        printed = (work / "printed").read_text()
        assert "Traceback" not in printed
        if sent != signal.SIGKILL:
            assert printed.splitlines()[-1] == "Interrupted."
            assert "The same command goes on." in printed
        done = results(work / "out")
        assert 0 < len(done) < len(peaceful)
        assert done.items() <= peaceful.items()
    code, out, _ = run(*transfer, "-o", "out")
    assert code == 0
    assert f"{len(done)} there already" in out
    assert results(work / "out") == peaceful
    assert facts(work / "out") == facts(work / "peace")
    assert not (work / "out" / "manifest.jsonl").exists()


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if sys.platform != "linux" or os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no disk can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(
    work: Path, transfer: list[object], peaceful: dict[str, bytes], run: Run
) -> None:
    with small_disk(work / "disk") as disk:
        code, out, err = run(*transfer, "-o", disk / "out")
        assert (code, out) == (1, "")
        assert err.splitlines()[-1].startswith("Error: ")
        assert "No space left on device" in err.splitlines()[-1]
        assert len(err.splitlines()) == 1
        done = results(disk / "out")
        assert done.items() < peaceful.items()
        assert not list(disk.rglob(".*"))  # half a file would keep the disk full
        subprocess.run(["mount", "-o", "remount,size=8m", disk], check=True)
        assert run(*transfer, "-o", disk / "out")[0] == 0
        assert results(disk / "out") == peaceful
        assert facts(disk / "out") == facts(work / "peace")


def test_a_file_that_the_system_does_not_let_grow_is_one_line_too(
    work: Path, transfer: list[object], peaceful: dict[str, bytes], run: Run
) -> None:
    most = min(map(len, peaceful.values())) - 1
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))  # noqa: E731
    with started(work, *transfer, "-o", "out", prepare=limit) as pid:
        assert ended(pid) == 1
    (line,) = (work / "printed").read_text().splitlines()
    assert line.startswith("Error: out/")
    assert "File too large" in line
    assert results(work / "out") == {}
    assert run(*transfer, "-o", "out")[0] == 0
    assert results(work / "out") == peaceful


def test_a_temporary_folder_without_room_costs_nothing_but_the_table(
    work: Path, transfer: list[object], peaceful: dict[str, bytes], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(work / "missing"))
    code, _, err = run(*transfer, "-o", "out")
    assert code == 1
    assert err.startswith("Error: out/manifest.parquet cannot be brought up to date (No such file or directory): ")
    assert len(err.splitlines()) == 1
    monkeypatch.undo()
    monkeypatch.chdir(work)
    assert run(*transfer, "-o", "out")[0] == 0
    assert results(work / "out") == peaceful
    assert facts(work / "out") == facts(work / "peace")


# What decides about a picture


def test_a_picture_is_that_of_inst_transfer_with_its_seed_and_is_made_again_by_inst_repeat(
    work: Path, transfer: list[object], peaceful: dict[str, bytes], run: Run, common: list[object]
) -> None:
    (row,) = [
        row for row in rows(work / "peace") if row["input"] == "photos/p3.png" and row["style"] == "styles/s1.png"
    ]
    assert row["seed"] == seed_of(0, *(SourceFile.of(work / row[name]).sha256 for name in ("input", "style")))
    alone = ["transfer", row["input"], "--style", row["style"], "--seed", row["seed"]]
    assert run(*alone, *QUICK, *common, "-o", "alone.png")[0] == 0
    assert (work / "alone.png").read_bytes() == peaceful[row["output"]]
    photo = ["--photo", row["input"], "-o", "again.png", *common]
    code, _, err = run("repeat", f"peace/{row['output']}", *photo)
    assert (code, err) == (0, "")
    assert (work / "again.png").read_bytes() == peaceful[row["output"]]


def test_the_same_pictures_come_out_whatever_the_batch_size_and_the_order(
    work: Path, transfer: list[object], peaceful: dict[str, bytes], run: Run, common: list[object]
) -> None:
    write_pictures(work / "photos", "wide.png", size=(96, 64))  # of another size, in the same chunk
    assert run(*transfer, "-o", "peace")[0] == 0
    assert run(*transfer, "-o", "together", "--batch-size", 8)[0] == 0
    (work / "photos" / "reverse.txt").write_text("\n".join([*reversed(PHOTOS), "wide.png"]))
    others = ["--styles", "styles/s1.png", "--styles", "styles/s0.png", "--batch-size", 3]
    assert (
        run("batch", "transfer", "--photos", "photos/reverse.txt", *others, *QUICK, *common, "-o", "reversed")[0] == 0
    )
    one_by_one = results(work / "peace")
    assert len(one_by_one) == 14
    for other in ("together", "reversed"):
        assert {row["output"]: row["seed"] for row in rows(work / other)} == {
            row["output"]: row["seed"] for row in rows(work / "peace")
        }
        for name in one_by_one:
            first, second = (np.asarray(Image.open(work / place / name)).astype(int) for place in ("peace", other))
            assert np.abs(first - second).max() <= 1, name  # levels of 255, in float32


def test_an_incomplete_batch_is_made_again_as_a_whole(work: Path, transfer: list[object], run: Run) -> None:
    together = [*transfer, "--batch-size", 4]
    assert run(*together, "-o", "out")[0] == 0
    before = results(work / "out")
    for name in random.Random(0).sample(sorted(before), 5):
        (work / "out" / name).unlink()
    code, out, _ = run(*together, "-o", "out")
    assert code == 0
    assert out.startswith("5 made, 7 there already in ")
    assert results(work / "out") == before


def test_only_what_has_changed_is_made(
    work: Path, transfer: list[object], peaceful: dict[str, bytes], run: Run
) -> None:
    write_pictures(work / "photos", "p2.png", seed=9)
    code, out, _ = run(*transfer, "-o", "peace")
    assert code == 0
    assert out.startswith("2 made, 10 there already in ")
    write_pictures(work / "styles", "s0.png", seed=9)
    assert run(*transfer, "-o", "peace")[1].startswith("6 made, 6 there already in ")
    code, out, err = run(*transfer, "--strength", 0.4, "--seed", 3, "-o", "peace")
    assert out.startswith("12 made in ")
    assert err.startswith("Other settings than in the run before (strength 0.")
    assert "seed 0 -> 3" in err
    assert len(err.splitlines()) == 1
    after = results(work / "peace")
    assert peaceful.items() <= after.items()  # nothing was lost
    assert len(after) == len(peaceful) + 2 + 6 + 12
    assert len(rows(work / "peace")) == len(after)
    os.utime(work / "photos" / "p0.png")
    (work / "photos").rename(work / "moved")
    (work / "photos").symlink_to("moved")
    assert run(*transfer, "-o", "peace")[1].startswith("0 made, 12 there already in ")


def test_learned_styles_and_pictures_of_prompts_go_on_as_well(work: Path, run: Run, common: list[object]) -> None:
    learn = ["batch", "learn", "--paintings", "styles", "--steps", 3, "--validate-every", 0, "--vectors", 2, *common]
    assert run(*learn, "-o", "learned")[0] == 0
    learned = results(work / "learned")
    assert len(learned) == 2
    (work / "learned" / min(learned)).unlink()
    assert run(*learn, "-o", "learned")[1].startswith("1 made, 1 there already in ")
    assert results(work / "learned") == learned
    row = next(row for row in rows(work / "learned") if row["input"] == "styles/s1.png")
    alone = ["learn", "styles/s1.png", *learn[4:], "--seed", row["seed"], "-o", "s1.safetensors"]
    assert run(*alone)[0] == 0
    assert (work / "s1.safetensors").read_bytes() == learned[row["output"]]

    (work / "prompts.txt").write_text("a river in the style of [C]\na dog by [C]\n")
    paint = ["batch", "generate", "--prompts", "prompts.txt", "--styles", "learned", *QUICK, *common]
    assert run(*paint, "-o", "painted")[0] == 0
    painted = results(work / "painted")
    assert len(painted) == 4
    for name in sorted(painted)[:2]:
        (work / "painted" / name).unlink()
    assert run(*paint, "-o", "painted")[1].startswith("2 made, 2 there already in ")
    assert results(work / "painted") == painted
    row = rows(work / "painted")[0]
    alone = ["generate", row["input"], "--style", row["style"], "--seed", row["seed"], *QUICK, *common]
    assert run(*alone, "-o", "alone.png")[0] == 0
    assert (work / "alone.png").read_bytes() == painted[row["output"]]
