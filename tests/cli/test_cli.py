"""The command line as a user runs it: in a process of its own."""

import inspect
import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.main import get_command

import inst
from inst.backbone.loading.sources import BUNDLED
from inst.cli import app
from tiny import save_family


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


def test_the_version_option_prints_the_installed_version() -> None:
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


def test_doctor_prints_one_line_for_each_topic(tiny_backbone_folder: Path, tiny_backbone: inst.Backbone) -> None:
    found = run("doctor", "--backbone", tiny_backbone_folder, "--device", "cpu")
    assert found.returncode == 0, found.stderr
    labels = [line.split()[0] for line in found.stdout.splitlines()]
    assert labels == ["inst", "python", "libraries", "device", "memory", "backbone", "speed"]
    assert f"torch {version('torch')}" in found.stdout
    assert tiny_backbone.fingerprint in found.stdout
    assert re.search(r"UNet call [\d.]+ ms, encode [\d.]+ ms, decode [\d.]+ ms", found.stdout)
    assert found.stderr == ""


def test_doctor_reports_the_facts_in_json(tiny_backbone_folder: Path, tiny_backbone: inst.Backbone) -> None:
    found = run("doctor", "--backbone", tiny_backbone_folder, "--device", "cpu", "--dtype", "bfloat16", "--json")
    report = json.loads(found.stdout)
    assert report["inst"] == inst.__version__
    assert report["dtype"] == "bfloat16"
    assert report["libraries"]["torch"] == version("torch")
    assert report["backbone"]["fingerprint"] == tiny_backbone.fingerprint
    unet = sum(weight.numel() for weight in tiny_backbone.unet.parameters())
    assert report["backbone"]["parameters"]["unet"] == unet
    assert all(0 < seconds < 60 for seconds in report["speed"].values())
    assert 0 < report["memory"]["computer"]["free"] <= report["memory"]["computer"]["total"]


def test_doctor_counts_both_text_encoders(tmp_path: Path) -> None:
    folder = save_family(tmp_path / "sdxl", "sdxl")
    found = run("doctor", "--backbone", folder, "--device", "cpu", "--json")
    backbone = inst.Backbone.load(folder, "cpu")
    assert backbone.text_encoder_2 is not None
    counted = json.loads(found.stdout)["backbone"]["parameters"]
    assert counted["text_encoder_2"] == sum(weight.numel() for weight in backbone.text_encoder_2.parameters())


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_doctor_on_a_broken_model_reports_the_reason_and_exits_with_1(tiny_copy: Path, flags: list[str]) -> None:
    (tiny_copy / "unet" / "config.json").unlink()
    found = run("doctor", "--backbone", tiny_copy, "--device", "cpu", *flags)
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


def test_doctor_with_quiet_prints_nothing(tiny_backbone_folder: Path) -> None:
    found = run("doctor", "--device", "cpu", "--quiet", "--backbone", tiny_backbone_folder)
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")


# The options that commands share


COMMANDS = get_command(app).commands  # type: ignore[attr-defined]
LOADING = ["learn", "transfer", "generate", "sheet", "demo", "repeat", "doctor"]
SHARED = {
    "--backbone": "owner/model@main",
    "--config": "folder",
    "--image-encoder": "owner/encoder",
    "--download": None,
    "--low-memory": None,
    "--quantize": "int8",
    "--device": "cpu",
    "--dtype": "bfloat16",
    "--quiet": None,
    "--json": None,
}


@pytest.mark.parametrize("name", LOADING)
def test_every_command_that_loads_a_backbone_has_the_same_options(name: str) -> None:
    options = {option: one for one in COMMANDS[name].params for option in one.opts}
    assert options.keys() >= SHARED.keys()
    assert {options[option].rich_help_panel for option in SHARED} == {"Backbone and output"}
    assert "session" not in {one.name for one in COMMANDS[name].params}


@pytest.mark.parametrize(
    "given",
    [[], ["--backbone", "--device"], ["--config"], ["--image-encoder", "--dtype"], ["--download"], list(SHARED)[:-1]],
)
def test_the_backbone_is_loaded_with_the_given_options_and_else_the_defaults(
    given: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    signature = inspect.signature(inst.Backbone.load)
    asked: dict[str, object] = {}

    def load(*values: object, **more: object) -> None:
        asked.update(signature.bind(*values, **more).arguments)
        raise inst.InstError("that will do")

    monkeypatch.setattr(inst.Backbone, "load", load)
    arguments = [part for option in given for part in (option, SHARED[option]) if part is not None]
    with pytest.raises(inst.InstError, match="that will do"):
        COMMANDS["doctor"].main(arguments, standalone_mode=False)
    expected = {name: parameter.default for name, parameter in signature.parameters.items() if name != "fast"}
    expected["image_encoder"] = False  # doctor looks at no painting
    for option in set(given) - {"--quiet"}:
        name = "name" if option == "--backbone" else option.removeprefix("--").replace("-", "_")
        expected[name] = SHARED[option] or True
    assert {name: str(value) if isinstance(value, Path) else value for name, value in asked.items()} == expected
