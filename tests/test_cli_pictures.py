"""`inst transfer`, `generate`, `repeat`, `sheet`, `style`: what a user types, and what is on the disk afterwards."""

import errno
import hashlib
import inspect
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import inst
from inst.cli import main
from inst.cli.defaults import defaults_of
from inst.record import read_record
from inst.style import Style

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(
    tiny_backbone_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Run a command in a folder of its own; gives the exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["inst", *map(str, arguments)])
        try:
            main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def common(tiny_backbone_folder: Path) -> list[object]:
    return ["--backbone", tiny_backbone_folder, "--device", "cpu", "--dtype", "float32"]


def picture(path: Path, size: tuple[int, int] = (96, 64), seed: int = 0, mode: str = "RGB") -> Path:
    generator = np.random.default_rng(seed)
    small = generator.integers(0, 256, (4, 6, len(mode)), dtype=np.uint8)
    Image.fromarray(small, mode).resize(size, Image.Resampling.BICUBIC).save(path)
    return path


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_a_painting_is_a_style_at_once_and_repeat_gives_the_same_bits(run: Run, common: list[object]) -> None:
    picture(Path("photo.png"))
    picture(Path("painting.png"), (64, 64), 1)
    given = ["transfer", "photo.png", "--style", "painting.png", "--steps", "3", "--seed", "5", *common]
    code, out, err = run(*given, "-o", "made.png")
    assert (code, out, err) == (0, "made.png\n", "")
    assert pixels(Path("made.png")).shape == (64, 96, 3)
    record = read_record("made.png")
    assert record.photo is not None
    assert record.photo.sha256 == hashlib.sha256(Path("photo.png").read_bytes()).hexdigest()
    assert record.settings["seed"] == 5

    code, out, err = run("repeat", "made.png", "--backbone", common[1])
    assert (code, out) == (0, "outputs/made-again.png\n"), err
    assert (pixels(Path(out.strip())) == pixels(Path("made.png"))).all()


def test_repeat_refuses_another_photo(run: Run, common: list[object]) -> None:
    picture(Path("photo.png"))
    picture(Path("painting.png"), seed=1)
    run("transfer", "photo.png", "--style", "painting.png", "--steps", "2", "-o", "made.png", *common)
    picture(Path("photo.png"), seed=2)
    code, _, err = run("repeat", "made.png", "--backbone", common[1])
    assert code == 1
    assert "photo.png is not the photo that made.png was made of" in err
    Path("photo.png").unlink()
    code, _, err = run("repeat", "made.png", "--backbone", common[1])
    assert code == 1
    assert "give the photo photo.png with --photo" in err
    code, _, err = run("repeat", "painting.png")
    assert code == 1
    assert "does not say what made it" in err


def test_nothing_is_overwritten_where_no_place_is_named(run: Run, common: list[object]) -> None:
    picture(Path("photo.png"))
    given = ["transfer", "photo.png", "--style", "photo.png", "--steps", "1", "--json", "--count", "2", *common]
    answers = [json.loads(run(*given)[1])["pictures"] for _ in range(2)]
    names = [name for answer in answers for name in answer]
    assert len(set(names)) == 4
    first, second = (pixels(Path(name)) for name in names[:2])
    assert (first != second).any()  # another seed
    assert (pixels(Path(names[2])) == first).all()


def test_generate_with_two_styles(run: Run, common: list[object]) -> None:
    for seed in (1, 2):
        picture(Path(f"{seed}.png"), seed=seed)
    styles = ["--style", "A=1.png", "--style", "B=2.png"]
    given = ["generate", "[A] and [B]", *styles, "--steps", "2", "--size", "80x64", *common]
    code, _, err = run(*given, "-o", "made.png")
    assert code == 0, err
    assert pixels(Path("made.png")).shape == (64, 80, 3)
    assert run("repeat", "made.png", "-o", "again.png", "--backbone", common[1])[0] == 0
    assert (pixels(Path("again.png")) == pixels(Path("made.png"))).all()


def test_transparency_is_kept_or_flattened(run: Run, common: list[object]) -> None:
    picture(Path("photo.png"), mode="RGBA")
    given = ["transfer", "photo.png", "--style", "photo.png", "--steps", "1", *common]
    run(*given, "-o", "kept.png")
    run(*given, "-o", "flat.png", "--flatten")
    run(*given, "-o", "made.jpg")
    assert [Image.open(name).mode for name in ("kept.png", "flat.png", "made.jpg")] == ["RGBA", "RGB", "RGB"]
    assert run("repeat", "flat.png", "-o", "again.png", "--backbone", common[1])[0] == 0
    assert (pixels(Path("again.png")) == pixels(Path("flat.png"))).all()


def test_a_mask_keeps_the_photo_outside(run: Run, common: list[object]) -> None:
    picture(Path("photo.png"))
    mask = Image.new("L", (96, 64), 0)
    mask.paste(255, (48, 0, 96, 64))
    mask.save("mask.png")
    given = ["transfer", "photo.png", "--style", "photo.png", "--steps", "2", "--mask", "mask.png", *common]
    assert run(*given, "-o", "made.png")[0] == 0
    assert (pixels(Path("made.png"))[:, :40] == pixels(Path("photo.png"))[:, :40]).all()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["transfer", "none.png", "--style", "photo.png"], 1, "none.png: no such file"),
        (["transfer", "photo.png", "--style", "none.png"], 1, "none.png: no such file"),
        (["transfer", "photo.png", "--style", "broken.safetensors"], 1, "broken.safetensors"),
        (["transfer", "photo.png", "--style", "photo.png", "--strength", "1.2"], 2, "1.2"),
        (["transfer", "photo.png", "--style", "photo.png", "--tone", "loud"], 2, "none, painting, photo"),
        (["transfer", "photo.png", "--style", "photo.png", "-o", "photo.png"], 2, "photo.png is what is read"),
        (["transfer", "photo.png", "--style", "photo.png", "-o", "no/made.png"], 1, "the folder no does not exist"),
        (["transfer", "photo.png", "--style", "photo.png", "-o", "made.txt"], 2, "made.txt has the ending .txt"),
        (["transfer", "photo.png", "--style", "empty"], 1, "empty holds no picture"),
        (["transfer", "photo.png", "--style", "photo.png", "--style", "photo.png"], 2, "Two styles are called [C]"),
        (["transfer", "photo.png", "--style", "photo.png", "--prompt", "a river " * 30], 2, "does not fit"),
        (["generate", "a river", "--style", "photo.png"], 2, "[C]"),
        (["generate", "[C]", "--style", "photo.png", "--size", "big"], 2, 'size "big" cannot be used'),
        (["style", "info", "photo.png"], 1, "photo.png"),
        (["sheet", "photo.png", "--style", "photo.png", "--strengths", "weak"], 2, '--strengths "weak"'),
    ],
)
def test_a_mistake_is_one_line(run: Run, common: list[object], arguments: list[str], code: int, message: str) -> None:
    picture(Path("photo.png"))
    Path("broken.safetensors").write_bytes(b"nothing")
    Path("empty").mkdir()
    before = Path("photo.png").read_bytes()
    found, out, err = run(*arguments, *(common if arguments[0] != "style" else []))
    assert found == code, err
    assert out == ""
    assert message in err
    assert err.startswith("Error: ")
    assert err.count("\n") == 1
    assert Path("photo.png").read_bytes() == before
    assert not list(Path().rglob("*.part"))
    assert not list(Path("outputs").glob("*")) if Path("outputs").exists() else True


def test_a_style_of_another_text_space_is_refused(run: Run, common: list[object]) -> None:
    picture(Path("photo.png"))
    Style(torch.ones(3, 32), fingerprint="another").save("other.safetensors")
    code, _, err = run("transfer", "photo.png", "--style", "other.safetensors", *common)
    assert code == 2
    assert "another" in err


def test_styles_are_described_and_mixed(run: Run, common: list[object], tiny_backbone: inst.Backbone) -> None:
    for seed in (1, 2):
        picture(Path(f"{seed}.png"), seed=seed)
        inst.instant_style(tiny_backbone, [inst.read_photo(f"{seed}.png")]).save(f"{seed}.safetensors")
    assert run("style", "mix", "1.safetensors=3", "2.safetensors", "-o", "mixed.safetensors")[0] == 0
    one, two, mixed = (Style.load(f"{name}.safetensors").vectors for name in ("1", "2", "mixed"))
    np.testing.assert_allclose(mixed, 0.75 * one + 0.25 * two, atol=1e-6)
    facts = json.loads(run("style", "info", "1.safetensors", "--json")[1])
    assert facts["text space"] == tiny_backbone.fingerprint
    assert facts["about"]["paintings"][0]["name"] == "1.png"


def test_a_sheet_has_a_picture_for_every_strength_and_guidance(run: Run, common: list[object]) -> None:
    picture(Path("photo.png"))
    given = ["sheet", "photo.png", "--style", "photo.png", "--strengths", "0,0.5", "--guidances", "1,2,3"]
    code, _, err = run(*given, "--steps", "1", "-o", "sheet.png", *common)
    assert code == 0, err
    width, height = Image.open("sheet.png").size
    assert width > 3 * 256
    assert height > 3 * 64


def test_defaults_are_those_of_the_functions() -> None:
    for module, name in (("inst.styling", "transfer"), ("inst.learning", "learn")):
        function = getattr(inst, name)
        expected = {
            key: parameter.default
            for key, parameter in inspect.signature(function).parameters.items()
            if parameter.default is not parameter.empty
        }
        assert defaults_of(module, name) == expected
    assert defaults_of("inst.backbone", "Backbone.load") == {"name": "mini", "device": None, "dtype": None}


def test_a_full_disk_leaves_what_was_there(run: Run, common: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    picture(Path("photo.png"))
    shutil.copy("photo.png", "made.png")
    before = Path("made.png").read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    code, _, err = run("transfer", "photo.png", "--style", "photo.png", "--steps", "1", "-o", "made.png", *common)
    assert code == 1
    assert "make room on the disk" in err
    assert Path("made.png").read_bytes() == before
