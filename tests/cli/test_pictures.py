"""`inst transfer`, `generate`, `repeat`, `sheet`, `style`: what a user types, and what is on the disk afterwards."""

import contextlib
import errno
import hashlib
import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.main import get_command

import inst
from inst import demo
from inst.cli import app
from inst.defaults import defaults_of
from inst.pictures.reading import read_picture
from inst.pictures.sheets import _GAP, LABEL_HEIGHT
from inst.pictures.tensors import to_image
from inst.pictures.writing import save_picture
from inst.styles.style import Style
from inst.synthesis.record import PictureRecord, read_record
from tiny import save_family

Run = Callable[..., tuple[int, str, str]]


def picture(path: Path, size: tuple[int, int] = (96, 64), seed: int = 0, mode: str = "RGB") -> Path:
    generator = np.random.default_rng(seed)
    small = generator.integers(0, 256, (4, 6, len(mode)), dtype=np.uint8)
    Image.fromarray(small, mode).resize(size, Image.Resampling.BICUBIC).save(path)
    return path


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_a_painting_can_be_the_style_and_repeat_gives_the_same_file(run: Run, common: list[object]) -> None:
    picture(Path("photo.png"))
    picture(Path("painting.png"), (64, 64), 1)
    given = ["transfer", "photo.png", "--style", "painting.png", "--steps", "3", "--seed", "5", *common]
    code, out, err = run(*given, "-o", "made.png")
    assert (code, out, err) == (0, "made.png\n", "")
    assert pixels(Path("made.png")).shape == (128, 192, 3)
    record = read_record("made.png")
    assert record.photo is not None
    assert record.photo.sha256 == hashlib.sha256(Path("photo.png").read_bytes()).hexdigest()
    assert record.settings["seed"] == 5

    code, out, err = run("repeat", "made.png", "--backbone", common[1])
    assert (code, out, err) == (0, "outputs/made-again.png\n", "")
    assert Path(out.strip()).read_bytes() == Path("made.png").read_bytes()

    older = replace(record, versions=dict(record.versions) | {"torch": "1.0"})
    save_picture(read_picture("made.png"), "older.png", texts=older.texts())
    warnings.simplefilter("ignore")  # as PYTHONWARNINGS=ignore does, which is about Python's warnings
    code, _, err = run("repeat", "older.png", "--backbone", common[1], "--dtype", "bfloat16")
    assert code == 0, err
    assert (
        "older.png was made in another environment (precision float32, here bfloat16; torch 1.0, here "
        in err.replace("\n", " ")
    )


def test_repeat_uses_the_defaults_for_settings_that_a_record_leaves_out(
    run: Run, common: list[object], tiny_backbone: inst.Backbone
) -> None:
    picture(Path("photo.png"))
    photo = inst.read_photo("photo.png", flattened=True)
    style = inst.instant_style(tiny_backbone, [photo])
    made = inst.complete(inst.transfer(tiny_backbone, photo.picture, style, steps=1))[0]
    record = PictureRecord.of("transfer", tiny_backbone, {"steps": 1}, {"[C]": style}, photo=photo, paintings=True)
    save_picture(made, "made.png", texts=record.texts())
    code, _, err = run("repeat", "made.png", "-o", "again.png", "--backbone", common[1])
    assert code == 0, err
    assert (pixels(Path("again.png")) == pixels(Path("made.png"))).all()

    for change, said in (
        ({"photo": None}, "does not record its photo"),
        ({"command": "generate"}, "does not record its prompt"),
        ({"settings": {"seed": [1, 2]}}, "does not record which of its seeds it was made with"),
        ({"settings": {"mask": 1}}, "was made by another version of inst"),
    ):
        save_picture(made, "made.png", texts=replace(record, **change).texts())
        code, _, err = run("repeat", "made.png", "--backbone", common[1])
        assert (code, err.count("\n")) == (1, 1)
        assert said in err


def test_the_options_of_style_attention_are_used_and_recorded(run: Run, common: list[object]) -> None:
    picture(Path("photo.png"))
    picture(Path("painting.png"), seed=1)
    options = {"style_attention": 0.5, "style_scale": 0.8, "attention_temperature": 1.5, "attention_blocks": "all"}
    for command, own in (("transfer", {"query_preservation": 0.2}), ("generate", {})):
        subject = "photo.png" if command == "transfer" else "[C]"
        given = [command, subject, "--style", "painting.png", "--steps", "2", "--size", "64", *common]
        expected = options | own
        flags = [part for name, value in expected.items() for part in (f"--{name.replace('_', '-')}", value)]
        assert run(*given, *flags, "-o", "made.png")[0] == 0
        record = read_record("made.png")
        assert {name: record.settings[name] for name in expected} == expected
        assert len(record.styles["[C]"].paintings) == 1
        assert run("repeat", "made.png", "-o", "again.png", "--backbone", common[1])[0] == 0
        assert (pixels(Path("again.png")) == pixels(Path("made.png"))).all()
        for name in expected:
            flags = [f"--{name.replace('_', '-')}", "up" if name == "attention_blocks" else "1"]
            assert run(*given, *flags, "-o", "other.png")[0] == 0
            assert (pixels(Path("other.png")) != pixels(Path("made.png"))).any()


def test_repeat_keeps_the_order_of_the_styles(run: Run, common: list[object]) -> None:
    for seed in range(3):
        picture(Path(f"{seed}.png"), seed=seed)
    styles = ["--style", "B=1.png", "--style", "A=2.png"]
    assert run("transfer", "0.png", *styles, "--steps", "2", "-o", "made.png", *common)[0] == 0
    assert run("repeat", "made.png", "-o", "again.png", "--backbone", common[1])[0] == 0
    assert (pixels(Path("again.png")) == pixels(Path("made.png"))).all()


def test_repeat_looks_for_a_backbone_of_the_hub_by_its_name(run: Run, common: list[object]) -> None:
    picture(Path("photo.png"))
    run("transfer", "photo.png", "--style", "photo.png", "--steps", "1", "-o", "made.png", *common)
    record = read_record("made.png")
    of_hub = replace(record, backbone=replace(record.backbone, name="owner/no-such-model@v1"))
    save_picture(read_picture("made.png"), "made.png", texts=of_hub.texts())
    code, _, err = run("repeat", "made.png")
    assert code == 1
    assert err.startswith("Error: owner/no-such-model@v1 is not on this machine")
    assert "--download" in err


@pytest.mark.parametrize(
    ("arguments", "source"),
    [
        (["transfer", "photo.png", "--style", "art/one.png", "-o", "photo.png"], "photo.png"),
        (["transfer", "photo.png", "--style", "art/one.png", "-o", "art/one.png"], "art/one.png"),
        (["transfer", "photo.png", "--style", "A=mask.png", "--style", "art", "-o", "art/two.png"], "art/two.png"),
        (["transfer", "photo.png", "--style", "art", "--mask", "mask.png", "-o", "mask.png"], "mask.png"),
        (["transfer", "shot-1.png", "--style", "art", "--count", "2", "-o", "shot.png"], "shot-1.png"),
        (["generate", "[A]", "--style", "A=art/one.png", "-o", "art/one.png"], "art/one.png"),
        (["generate", "[C]", "--style", "art", "--count", "3", "-o", "art/one.png"], "art/one-2.png"),
        (["sheet", "photo.png", "--style", "art", "-o", "art/one.png"], "art/one.png"),
        (["learn", "shot-000002.png", "-o", "shot.safetensors", "--preview-every", "1"], "shot-000002.png"),
        (["learn", "art/two.png", "art/two-000002.png", "-o", "art", "--preview-every", "5"], "art/two-000002.png"),
    ],
)
def test_no_file_that_is_read_is_overwritten(run: Run, common: list[object], arguments: list[str], source: str) -> None:
    Path("art").mkdir()
    names = ["photo", "mask", "shot-1", "shot-000002", "art/one", "art/one-2", "art/two", "art/two-000002"]
    for seed, name in enumerate(names):
        picture(Path(f"{name}.png"), seed=seed)
    before = {path: path.read_bytes() for path in Path().rglob("*.png")}
    code, _, err = run(*arguments, "--steps", "2", *common)
    assert code == 2
    assert err == f"Error: {source} is an input file and would be overwritten: give another name with -o.\n"
    assert {path: path.read_bytes() for path in Path().rglob("*.png")} == before


def test_repeat_overwrites_nothing_that_it_reads(run: Run, common: list[object]) -> None:
    picture(Path("photo.png"))
    Image.new("L", (96, 64), 255).save("mask.png")
    given = ["transfer", "photo.png", "--style", "photo.png", "--mask", "mask.png", "--steps", "1", *common]
    assert run(*given, "-o", "made.png")[0] == 0
    for name in ("photo.png", "mask.png", "made.png"):
        before = Path(name).read_bytes()
        code, _, err = run("repeat", "made.png", "-o", name, "--backbone", common[1])
        assert code == 2
        assert f"{name} is an input file" in err
        assert Path(name).read_bytes() == before


def test_repeat_refuses_another_photo(run: Run, common: list[object]) -> None:
    picture(Path("photo.png"))
    picture(Path("painting.png"), seed=1)
    run("transfer", "photo.png", "--style", "painting.png", "--steps", "2", "-o", "made.png", *common)
    picture(Path("photo.png"), seed=2)
    code, _, err = run("repeat", "made.png", "--backbone", common[1])
    assert code == 1
    assert "photo.png is not the photo that made.png was made from" in err
    Path("photo.png").unlink()
    code, _, err = run("repeat", "made.png", "--backbone", common[1])
    assert code == 1
    assert "give the photo photo.png with --photo" in err
    code, _, err = run("repeat", "painting.png")
    assert code == 1
    assert "has no record of how it was made" in err


def test_repeat_names_the_backbone_it_needs_and_refuses_another(
    run: Run, common: list[object], tiny_copy: Path
) -> None:
    picture(Path("photo.png"))
    run("transfer", "photo.png", "--style", "photo.png", "--steps", "1", "-o", "made.png", *common)
    place = Path(str(common[1]))
    code, _, err = run("repeat", "made.png")
    assert code == 1
    assert err == (
        f'Error: made.png was made with the backbone "{place.name}": '
        f"give its folder, file or model-hub id with --backbone.\n"
    )
    weights = tiny_copy / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    save_file(tensors | {"conv_in.bias": tensors["conv_in.bias"] + 1}, weights)
    code, _, err = run("repeat", "made.png", "--backbone", tiny_copy)
    assert code == 1
    assert err.startswith(f"Error: made.png was made with another backbone than {tiny_copy}: ")
    assert f'"{place.name}" (text space' in err
    assert str(place.parent).encode() not in Path("made.png").read_bytes()


def test_without_an_output_name_no_earlier_result_is_overwritten(run: Run, common: list[object]) -> None:
    picture(Path("photo.png"))
    given = ["transfer", "photo.png", "--style", "photo.png", "--steps", "1", "--json", "--count", "2", *common]
    answers = [json.loads(run(*given)[1])["pictures"] for _ in range(2)]
    names = [name for answer in answers for name in answer]
    assert len(set(names)) == 4
    first, second = (pixels(Path(name)) for name in names[:2])
    assert (first != second).any()  # another seed
    assert (pixels(Path(names[2])) == first).all()


def test_generate_accepts_two_styles_and_repeat_gives_the_same_file(run: Run, common: list[object]) -> None:
    for seed in (1, 2):
        picture(Path(f"{seed}.png"), seed=seed)
    styles = ["--style", "A=1.png", "--style", "B=2.png"]
    given = ["generate", "[A] and [B]", *styles, "--steps", "2", "--size", "80x64", *common]
    code, _, err = run(*given, "-o", "made.png")
    assert code == 0, err
    assert pixels(Path("made.png")).shape == (64, 80, 3)
    assert run("repeat", "made.png", "-o", "again.png", "--backbone", common[1])[0] == 0
    assert Path("again.png").read_bytes() == Path("made.png").read_bytes()


def test_transparency_is_kept_in_png_and_removed_by_flatten_or_in_jpeg(run: Run, common: list[object]) -> None:
    picture(Path("photo.png"), mode="RGBA")
    given = ["transfer", "photo.png", "--style", "photo.png", "--steps", "1", *common]
    run(*given, "-o", "kept.png")
    run(*given, "-o", "flat.png", "--flatten")
    run(*given, "-o", "made.jpg")
    assert [Image.open(name).mode for name in ("kept.png", "flat.png", "made.jpg")] == ["RGBA", "RGB", "RGB"]
    assert run("repeat", "flat.png", "-o", "again.png", "--backbone", common[1])[0] == 0
    assert (pixels(Path("again.png")) == pixels(Path("flat.png"))).all()


def test_outside_the_mask_the_photo_keeps_its_pixels(run: Run, common: list[object]) -> None:
    picture(Path("photo.png"))
    mask = Image.new("L", (96, 64), 0)
    mask.paste(255, (48, 0, 96, 64))
    mask.save("mask.png")
    given = ["transfer", "photo.png", "--style", "photo.png", "--size", "64", "--mask", "mask.png", *common]
    assert run(*given, "--steps", "2", "-o", "made.png")[0] == 0
    assert (pixels(Path("made.png"))[:, :40] == pixels(Path("photo.png"))[:, :40]).all()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["transfer", "none.png", "--style", "photo.png"], 1, "none.png: no such file"),
        (["transfer", "photo.png", "--style", "none.png"], 1, "none.png: no such file"),
        (["transfer", "photo.png", "--style", "broken.safetensors"], 1, "broken.safetensors"),
        (["transfer", "photo.png", "--style", "photo.png", "--strength", "1.2"], 2, "1.2"),
        (["transfer", "photo.png", "--style", "photo.png", "--tone", "loud"], 2, "none, painting, adain, photo"),
        (["transfer", "photo.png", "--style", "photo.png", "-o", "photo.png"], 2, "photo.png is an input file"),
        (["transfer", "photo.png", "--style", "photo.png", "-o", "no/made.png"], 1, "the folder no does not exist"),
        (["transfer", "photo.png", "--style", "photo.png", "-o", "made.txt"], 2, "made.txt has the ending .txt"),
        (["transfer", "photo.png", "--style", "empty"], 1, "empty contains no picture"),
        (["transfer", "photo.png", "--style", "photo.png", "--style", "photo.png"], 2, "Two styles are called [C]"),
        (["transfer", "photo.png", "--style", "photo.png", "--prompt", "a river " * 30], 2, "does not fit"),
        (["generate", "a river", "--style", "photo.png"], 2, "[C]"),
        (["generate", "[C]", "--style", "photo.png", "--size", "big"], 2, 'size "big" cannot be used'),
        (["transfer", "photo.png", "--style", "x" * 300], 1, "xxx cannot be read (File name too long)"),
        (["transfer", "photo.png", "--style", "photo.png", "-o", f"{'x' * 300}.png"], 1, "xxx.png cannot be used"),
        (["transfer", "photo.png", "--style", "photo.png", "--style-attention", "1.5"], 2, "style attention of 1.5"),
        (["transfer", "photo.png", "--style", "photo.png", "--style-scale", "0"], 2, "style scale of 0"),
        (["transfer", "photo.png", "--style", "photo.png", "--query-preservation", "2"], 2, "query preservation of 2"),
        (["generate", "[C]", "--style", "photo.png", "--attention-blocks", "down"], 2, '"down" is unknown'),
        (["style", "info", "photo.png"], 1, "photo.png"),
        (["sheet", "photo.png", "--style", "photo.png", "--strengths", "weak"], 2, '--strengths "weak"'),
    ],
)
def test_wrong_arguments_are_refused_in_one_line_and_write_nothing(
    run: Run, common: list[object], arguments: list[str], code: int, message: str
) -> None:
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


def test_style_mix_weighs_the_vectors_and_style_info_gives_the_facts(
    run: Run, common: list[object], tiny_backbone: inst.Backbone
) -> None:
    for seed in (1, 2):
        picture(Path(f"{seed}.png"), seed=seed)
        inst.instant_style(tiny_backbone, [inst.read_photo(f"{seed}.png")]).save(f"{seed}.safetensors")
    assert run("style", "mix", "1.safetensors=3", "2.safetensors", "-o", "mixed.safetensors")[0] == 0
    one, two, mixed = (Style.load(f"{name}.safetensors").vectors for name in ("1", "2", "mixed"))
    np.testing.assert_allclose(mixed, 0.75 * one + 0.25 * two, atol=1e-6)
    facts = json.loads(run("style", "info", "1.safetensors", "--json")[1])
    assert facts["text space"] == tiny_backbone.fingerprint
    assert facts["about"]["paintings"][0]["name"] == "1.png"
    assert facts["paintings"] == [{"width": 96, "height": 64, "share": 1.0}]
    lines = run("style", "info", "mixed.safetensors")[1].splitlines()
    assert "paintings   1.png (96 x 64), 2.png (96 x 64)" in lines


def test_style_info_says_what_a_style_lacks(run: Run) -> None:
    paintings = [{"name": "one.png", "sha256": "00"}]
    Style(torch.ones(2, 32), "0123456789abcdef", about={"paintings": paintings}).save("bare.safetensors")
    assert "paintings   one.png (pictures: none)\n" in run("style", "info", "bare.safetensors")[1]
    Style(torch.ones(2, 32), "0123456789abcdef").save("unknown.safetensors")
    assert "paintings   not known\n" in run("style", "info", "unknown.safetensors")[1]
    Style(torch.ones(0, 32), "0123456789abcdef").save("wordless.safetensors")
    assert "vectors     none\n" in run("style", "info", "wordless.safetensors")[1]


def test_style_commands_check_a_style_against_a_backbone_where_one_is_named(
    run: Run, common: list[object], tiny_backbone: inst.Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    Style(torch.ones(3, 32), tiny_backbone.fingerprint, denoiser="another").save("mine.safetensors")
    Style(torch.ones(3, 32), "0123456789abcdef").save("other.safetensors")
    commands = [("info",), ("mix", "-o", "out.safetensors"), ("export", "--to", "comfyui", "-o", "out.safetensors")]
    for name, *more in commands:
        code, _, err = run("style", name, "mine.safetensors", *more, "--quiet", *common)
        assert (code, err.count("\n")) == (0, 1)
        assert "learned with another UNet (another)" in err
        Path("out.safetensors").unlink(missing_ok=True)
        code, out, err = run("style", name, "other.safetensors", *more, *common)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert "0123456789abcdef" in err
        assert tiny_backbone.fingerprint in err
        assert not Path("out.safetensors").exists()

    monkeypatch.setattr(inst.Backbone, "load", None)  # nothing loads one that is not named
    for name, *more in commands:
        assert run("style", name, "other.safetensors", *more, "--quiet") == (0, "", "")
        Path("out.safetensors").unlink(missing_ok=True)
        for option in ("--device=cpu", "--dtype=float32", "--image-encoder=clip", "--config=sd1", "--low-memory"):
            code, out, err = run("style", name, "other.safetensors", *more, option)
            assert (code, out, err.count("\n")) == (2, "", 1)
            assert f"{option.partition('=')[0]} needs a backbone, but none is loaded: add --backbone" in err
            assert not Path("out.safetensors").exists()


def test_a_sheet_has_a_picture_for_every_strength_and_guidance(
    run: Run, common: list[object], tiny_backbone: inst.Backbone
) -> None:
    """Three rows of a head and two strengths, of which the first gives what the autoencoder makes of the photo."""
    photo, painting = picture(Path("photo.png")), picture(Path("painting.png"), seed=1)
    given = ["sheet", photo, "--style", painting, "--strengths", "0,0.5", "--guidances", "1,2,3"]
    code, _, err = run(*given, "--steps", "1", "--size", "64", "-o", "sheet.png", *common)
    assert code == 0, err
    sheet = pixels(Path("sheet.png"))
    across, down = 256 + _GAP, 64 + LABEL_HEIGHT + _GAP
    assert sheet.shape == (3 * down + _GAP, 3 * across + _GAP, 3)

    def cell(row: int, column: int) -> np.ndarray:
        top, left = _GAP + row * down, _GAP + column * across + (256 - 96) // 2
        return sheet[top : top + 64, left : left + 96]

    assert np.abs(cell(0, 0) - pixels(painting).astype(float)).mean() < 8  # kept as WebP, which is lossy
    assert (cell(1, 0) == pixels(photo)).all()
    assert (cell(2, 0) == sheet[0, 0]).all()  # left empty
    with torch.no_grad():
        rebuilt = np.asarray(to_image(tiny_backbone.decode(tiny_backbone.encode(read_picture(photo)[None]))[0]))
    for row in range(3):
        assert (cell(row, 1) == rebuilt).all()
        assert all((cell(row, 2) != other).any() for other in (rebuilt, cell((row + 1) % 3, 2)))


def test_a_sheet_refuses_a_wrong_strength_before_it_makes_a_picture(
    run: Run, common: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    picture(Path("photo.png"))
    made: list[object] = []
    monkeypatch.setattr("inst.runs.complete", made.append)
    code, _, err = run("sheet", "photo.png", "--style", "photo.png", "--strengths", "0.5,1.5", *common)
    assert (code, made) == (2, [])
    assert err.startswith("Error: A strength of 1.5 cannot be used")


def test_ctrl_c_prints_one_word_and_exits_with_130(
    run: Run, common: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    picture(Path("photo.png"))
    monkeypatch.setattr("inst.pictures.reading.read_photo", lambda *_, **__: os.kill(os.getpid(), signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell runs it behind
    try:
        code, out, err = run("transfer", "photo.png", "--style", "photo.png", *common)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (code, out, err) == (130, "", "Interrupted.\n")


def test_too_little_memory_is_reported_in_one_line(
    run: Run, common: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    picture(Path("photo.png"))
    monkeypatch.setattr("inst.pictures.reading.read_photo", lambda *_, **__: torch.empty(2**48))
    code, out, err = run("transfer", "photo.png", "--style", "photo.png", *common)
    assert (code, out) == (1, "")
    assert err.startswith("Error: there is not enough memory")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "function"), [("transfer", inst.transfer), ("generate", inst.generate), ("sheet", inst.transfer)]
)
def test_the_options_for_pictures_have_the_defaults_of_the_functions(command: str, function: Callable) -> None:
    parameters = inspect.signature(function).parameters
    options = get_command(app).commands[command].params
    shared = [option for option in options if option.name in parameters and not option.required]
    own = {option.name: option.default for option in shared if option.name not in ("backbone", "mask", "control")}
    assert {"style_attention", "style_scale", "tone", "size"} <= own.keys()
    assert own == {name: parameters[name].default for name in own}


def test_the_command_line_has_the_defaults_of_the_functions() -> None:
    functions = {
        ("inst.synthesis.from_photo", "transfer"): inst.transfer,
        ("inst.synthesis.from_prompt", "generate"): inst.generate,
        ("inst.learning.loop", "learn"): inst.learn,
        ("inst.backbone.model", "Backbone.load"): inst.Backbone.load,
    }
    for place, function in functions.items():
        expected = {
            key: parameter.default
            for key, parameter in inspect.signature(function).parameters.items()
            if parameter.default is not parameter.empty
        }
        assert defaults_of(*place) == expected


def test_a_full_disk_leaves_the_old_picture_as_it_was(
    run: Run, common: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    picture(Path("photo.png"))
    shutil.copy("photo.png", "made.png")
    before = Path("made.png").read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    code, _, err = run("transfer", "photo.png", "--style", "photo.png", "--steps", "1", "-o", "made.png", *common)
    assert code == 1
    assert "free space on the disk" in err
    assert Path("made.png").read_bytes() == before


@pytest.mark.skipif(os.name != "posix", reason="needs a terminal of POSIX")
@pytest.mark.parametrize("more", [[], ["--quiet"]])
def test_a_terminal_shows_the_progress_of_ddim_inversion_unless_quiet(
    tmp_path: Path, common: list[object], more: list[str]
) -> None:
    import pty

    picture(tmp_path / "photo.png")
    given = ["transfer", "photo.png", "--style", "photo.png", "--inversion", "ddim", "--steps", "40", *common, *more]
    ours, theirs = pty.openpty()
    program = [str(Path(sys.executable).with_name("inst")), *map(str, given)]
    terminal = os.environ | {"TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen(program, cwd=tmp_path, stdout=subprocess.PIPE, stderr=theirs, env=terminal)
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # Linux's word for the end
        while part := os.read(ours, 1 << 16):
            shown += part
    os.close(ours)
    process.communicate(timeout=60)
    assert process.returncode == 0, shown
    assert (b"DDIM inversion" in shown) == (not more)
    assert (b"painting" in shown) == (not more)


def test_the_demo_writes_pictures_a_sheet_and_a_style_and_never_overwrites_them(run: Run, common: list[object]) -> None:
    given = ["demo", "--steps", "1", "-o", "made", "--json", *common]
    answers = [json.loads(run(*given)[1]) for _ in range(2)]
    files = [file for answer in answers for file in (answer["sheet"], answer["style"], *answer["pictures"])]
    assert len(set(files)) == 10
    assert {path.name for path in Path("made").iterdir()} == {Path(file).name for file in files}
    for answer in answers:
        assert Image.open(answer["sheet"]).width > 3 * 400
        assert Style.load(answer["style"]).name
        instant, learned, stronger = (np.asarray(Image.open(file)) for file in answer["pictures"])
        assert not np.array_equal(instant, stronger)
        assert not np.array_equal(learned, stronger)


def test_a_picture_of_the_demo_can_be_repeated(run: Run, common: list[object]) -> None:
    answer = json.loads(run("demo", "--steps", "1", "-o", "made", "--json", *common)[1])
    given = ["--photo", str(demo.PHOTOS[0]), "-o", "again.png"]
    code, _, err = run("repeat", answer["pictures"][-1], *given, *common)
    assert code == 0, err
    again, first = (np.asarray(Image.open(file)) for file in ("again.png", answer["pictures"][-1]))
    np.testing.assert_array_equal(again, first)


def test_the_demo_without_a_pretrained_module_shows_what_the_painting_alone_gives(run: Run, tmp_path: Path) -> None:
    """Stable Diffusion's models have none."""
    model = save_family(tmp_path / "sd1", "sd1")
    code, out, err = run("demo", "--steps", "1", "-o", "made", "--json", "--backbone", model, "--device", "cpu")
    assert code == 0, err
    instant = Image.open(json.loads(out)["pictures"][0])
    assert len(instant.getcolors() or [1, 2]) > 1  # not empty


def test_a_demo_that_fails_leaves_no_empty_file(run: Run, common: list[object]) -> None:
    code, _, err = run("demo", "--steps", "0", "-o", "made", *common)
    assert code == 2
    assert "0 steps cannot be used" in err
    assert not Path("made").exists()
