"""`inst study` as a user runs it."""

import json
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from study_server import write_comparison


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    program = "import sys; from inst.cli import main; sys.argv[0] = 'inst'; main()"
    return subprocess.run(
        [sys.executable, "-c", program, "study", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
        env=os.environ | {"COLUMNS": "80", "NO_COLOR": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )


def mistake(found: subprocess.CompletedProcess[str], code: int, reason: str) -> None:
    assert found.returncode == code, found.stderr
    assert reason in found.stderr
    assert "Traceback" not in found.stderr


def test_a_study_goes_from_pictures_through_a_simulation_to_a_report(tmp_path: Path) -> None:
    folder = write_comparison(tmp_path / "comparison")
    study, rehearsed = tmp_path / "our first study.db", tmp_path / "rehearsed.db"
    made = run("create", "--from", folder, "-o", study, "--checks", 1)
    assert made.returncode == 0, made.stderr
    assert "8 pairs: 4 inst / adain, 4 inst / gatys" in made.stdout
    assert "sees all of them, not 26" in made.stderr
    assert shlex.split(made.stdout.splitlines()[-1])[1:] == ["inst", "study", "serve", str(study)]  # to be pasted
    before = study.read_bytes()
    simulated = run("simulate", study, "--participants", 3, "--kills", 0, "-o", rehearsed, "--json")
    assert simulated.returncode == 0, simulated.stderr
    assert json.loads(simulated.stdout)["complete"]
    assert study.read_bytes() == before
    reported = run("report", rehearsed, "-o", tmp_path / "report")
    assert reported.returncode == 0, reported.stderr
    assert reported.stdout.splitlines()[-1] == str(tmp_path / "report" / "report.md")
    assert (tmp_path / "report" / "votes.svg").is_file()
    mistake(run("simulate", rehearsed), 2, "has participants already")
    mistake(run("report", study), 1, "no votes yet")


def test_a_broken_picture_is_left_out_and_the_exit_code_is_1(tmp_path: Path) -> None:
    folder = write_comparison(tmp_path / "comparison")
    (folder / "gatys" / "castle__night.png").write_bytes(b"broken")
    found = run("create", "--from", folder, "-o", tmp_path / "study.db", "--json")
    mistake(found, 1, "castle__night.png is not a picture")
    assert json.loads(found.stdout)["pairs"] == {"adain": 4, "gatys": 3}
    assert (tmp_path / "study.db").is_file()


def test_wrong_arguments_are_refused_with_the_reason(
    comparison: Path, make_study: Callable[..., Path], tmp_path: Path
) -> None:
    study = make_study()
    mistake(run("create", "--from", comparison, "-o", study), 2, "exists")
    mistake(run("create", "--from", comparison, "-o", tmp_path / "a.db", "--ours", "x"), 2, "no method x")
    mistake(run("serve", tmp_path / "none.db"), 1, "no such study")
    mistake(run("serve", comparison / "photos" / "castle.png"), 1, "is not a study")
    mistake(run("simulate", study, "--preference", 2), 2, "preference of 2 cannot be used")
    mistake(run("simulate", study, "-o", tmp_path / "away" / "b.db"), 1, "away does not exist")
    mistake(run("serve", study, "--port", 70000), 2, "port 70000 cannot be used")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        mistake(run("serve", study, "--port", taken.getsockname()[1]), 1, "give another --port")
    assert [one.name for one in tmp_path.iterdir()] == ["study.db"]


@pytest.mark.parametrize("missing", ["starlette", "scipy"])
def test_a_missing_library_is_named_with_the_command_that_installs_it(
    make_study: Callable[..., Path], missing: str
) -> None:
    command = "serve" if missing == "starlette" else "report"
    program = f"import sys; sys.modules['{missing}'] = None\nfrom inst.cli import main; sys.argv[0] = 'inst'; main()"
    found = subprocess.run(
        [sys.executable, "-c", program, "study", command, str(make_study())],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"NO_COLOR": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    assert found.returncode == 1
    assert f"library {missing}" in found.stderr
    assert 'pip install "inst[eval]"' in found.stderr
    assert "Traceback" not in found.stderr


def test_help_of_study_imports_no_heavy_library() -> None:
    program = (
        "import sys, inst.cli; sys.argv = ['inst', 'study', '--help']\n"
        "try: inst.cli.main()\nexcept SystemExit: pass\n"
        "print([name for name in ('torch', 'numpy', 'scipy', 'starlette', 'uvicorn', 'PIL') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert found.stdout.splitlines()[-1] == "[]"
