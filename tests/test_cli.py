"""The command line as a user runs it: in a process of its own."""

import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import inst
from inst.loading import BUNDLED


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("inst")
    return subprocess.run(
        [program, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=240,
        stdin=subprocess.DEVNULL,
        env=os.environ | {"COLUMNS": "80", "NO_COLOR": "1"} | environment,
    )


def test_version() -> None:
    assert run("--version").stdout == f"inst {inst.__version__}\n"
    assert version("inst") == inst.__version__


def test_help_lists_the_commands() -> None:
    for arguments in (["--help"], []):
        assert "doctor" in run(*arguments).stdout + run(*arguments).stderr


def test_wrong_use_exits_with_2() -> None:
    for arguments in (["no-such-command"], ["doctor", "--no-such-option"], ["doctor", "--device", "tpu"]):
        found = run(*arguments)
        assert found.returncode == 2
        assert "Error" in found.stderr
        assert "Traceback" not in found.stderr


def test_doctor_says_one_line_each(tiny_backbone_folder: Path, tiny_backbone: inst.Backbone) -> None:
    found = run("doctor", "--model", tiny_backbone_folder, "--device", "cpu")
    assert found.returncode == 0, found.stderr
    labels = [line.split()[0] for line in found.stdout.splitlines()]
    assert labels == ["inst", "python", "libraries", "device", "memory", "backbone", "speed"]
    assert f"torch {version('torch')}" in found.stdout
    assert tiny_backbone.fingerprint in found.stdout
    assert re.search(r"UNet call [\d.]+ ms, encode [\d.]+ ms, decode [\d.]+ ms", found.stdout)
    assert found.stderr == ""


def test_doctor_in_json(tiny_backbone_folder: Path, tiny_backbone: inst.Backbone) -> None:
    found = run("doctor", "--model", tiny_backbone_folder, "--device", "cpu", "--dtype", "bfloat16", "--json")
    report = json.loads(found.stdout)
    assert report["inst"] == inst.__version__
    assert report["dtype"] == "bfloat16"
    assert report["libraries"]["torch"] == version("torch")
    assert report["backbone"]["fingerprint"] == tiny_backbone.fingerprint
    unet = sum(weight.numel() for weight in tiny_backbone.unet.parameters())
    assert report["backbone"]["parameters"]["unet"] == unet
    assert all(0 < seconds < 60 for seconds in report["speed"].values())
    assert 0 < report["memory"]["computer"]["free"] <= report["memory"]["computer"]["total"]


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_doctor_on_a_broken_model(tiny_copy: Path, flags: list[str]) -> None:
    (tiny_copy / "unet" / "config.json").unlink()
    found = run("doctor", "--model", tiny_copy, "--device", "cpu", *flags)
    assert found.returncode == 1
    reason = f"{tiny_copy / 'unet' / 'config.json'} is missing"
    if flags:
        assert reason in json.loads(found.stdout)["error"]
        assert found.stderr == ""
    else:
        assert "libraries" in found.stdout  # what is known is said
        assert found.stderr.startswith(f"Error: {reason}")
        assert len(found.stderr.splitlines()) == 1  # not wrapped: paths can be copied


def test_doctor_by_default_looks_at_the_bundled_model() -> None:
    report = json.loads(run("doctor", "--json").stdout)
    assert report["backbone"]["parameters"]["unet"] > 1e6, report
    assert BUNDLED["mini"].is_dir()
