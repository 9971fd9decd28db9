"""Every PNG says what made it, and `inst repeat` makes again what it can and says in one line what it cannot."""

import copy
import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import inst
import inst.synthesis.sheet
from inst.cli.pictures import TRANSFER
from inst.files.provenance import SourceFile
from inst.pictures import reading, resizing
from inst.pictures.tensors import to_image
from inst.pictures.writing import save_picture
from inst.styles.style import Style
from inst.synthesis.record import PictureRecord, read_record
from schedules import LIKE_DIFFUSERS

Run = Callable[..., tuple[int, str, str]]


def picture(path: Path, seed: int, size: tuple[int, int] = (96, 64)) -> Path:
    path.parent.mkdir(exist_ok=True)
    small = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(path)
    return path


def pixels(path: str | Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def content_of(path: str | Path) -> dict[str, Any]:
    with Image.open(path) as image:
        return json.loads(image.text["inst"])


def noted(path: Path) -> dict[str, str]:
    return {"name": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def refused(run: Run, path: str | Path, *options: object) -> str:
    code, out, err = run("repeat", path, *options)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("Error: ")
    return err


@pytest.fixture
def sheet(run: Run, common: list[object]) -> list[object]:
    """The command of a sheet of a photo in another folder, a painting and a style file."""
    photo, painting = picture(Path("photos/photo.png"), 0), picture(Path("art/one.png"), 1)
    assert run("learn", picture(Path("art/two.png"), 2), "-o", "two.safetensors", "--steps", "1", *common)[0] == 0
    sources = ["sheet", photo, "--style", painting, "--style", "two.safetensors"]
    return [*sources, "--strengths", "0.2,0.6", "--guidances", "1,3", "--steps", "2", "--seed", "7", *common]


def test_a_sheet_carries_its_record_and_repeat_makes_it_again(
    run: Run, common: list[object], sheet: list[object]
) -> None:
    assert run(*sheet, "-o", "sheet.png")[0] == 0
    record = read_record("sheet.png")
    assert (record.command, list(record.styles)) == ("sheet", ["[C1]", "[C2]"])
    assert (record.styles["[C2]"].vectors == Style.load("two.safetensors").vectors).all()
    assert record.settings["strengths"] == [0.2, 0.6]
    assert (record.settings["guidances"], record.settings["seed"]) == ([1, 3], 7)
    assert record.photo == SourceFile(**noted(Path("photos/photo.png")))
    assert '"photos' not in record.to_text()

    again = ("repeat", "sheet.png", "--photo", "photos/photo.png", "--backbone", common[1])
    assert run(*again) == (0, "outputs/sheet-again.png\n", "")
    assert (pixels("outputs/sheet-again.png") == pixels("sheet.png")).all()
    assert read_record("outputs/sheet-again.png").styles["[C1]"].paintings == record.styles["[C1]"].paintings


def test_a_sheet_with_large_paintings_leaves_them_out_and_repeat_says_so(
    run: Run, sheet: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inst.synthesis.sheet, "_PAINTINGS", 100)
    assert run(*sheet, "-o", "sheet.png")[0] == 0
    assert [style.paintings for style in read_record("sheet.png").styles.values()] == [(), ()]
    assert "make it again with inst sheet" in refused(run, "sheet.png")


def test_a_style_without_a_painting_has_a_sheet_that_repeat_makes_again(
    run: Run, common: list[object], tiny_backbone: inst.Backbone
) -> None:
    photo = picture(Path("photo.png"), 0)
    Style(torch.ones(3, 32), tiny_backbone.fingerprint).save("bare.safetensors")
    given = ["sheet", photo, "--style", "bare.safetensors", "--strengths", "0.5", "--steps", "1", *common]
    assert run(*given, "-o", "sheet.png")[0] == 0
    assert run("repeat", "sheet.png", "-o", "again.png", "--backbone", common[1])[0] == 0
    assert (pixels("again.png") == pixels("sheet.png")).all()


# Records from before style attention


@pytest.mark.parametrize("command", ["transfer", "generate", "sheet"])
def test_a_record_of_the_old_format_is_repeated_as_its_picture_was_made(
    run: Run, common: list[object], command: str
) -> None:
    """Without style attention and in the native size, which a photo was enlarged to, however small it was."""
    picture(Path("small.png"), 5, (30, 20))
    picture(Path("art/one.png"), 1)
    subject = "[C]" if command == "generate" else "small.png"
    more = ["--strengths", "0.5", "--guidances", "3"] if command == "sheet" else []
    given = [command, subject, "--style", "art/one.png", "--steps", "2", "--style-attention", "0", "--size", "64"]
    given += ["--tone", "adain"]
    assert run(*given, *more, "-o", "made.png", *common)[0] == 0
    record = content_of("made.png")
    old = {**record["settings"], "size": None, "tone": "painting"}
    for name in ("style_attention", "style_scale", "query_preservation", "attention_temperature", "attention_blocks"):
        old.pop(name, None)
    if command == "sheet":
        old["thumbnails"] = old.pop("paintings")
        old |= {"spacing": TRANSFER["spacing"], "cache_interval": TRANSFER["cache_interval"]}  # no options of a sheet
    code, _, err = repeat(run, common, {**record, "settings": old, "format": 1})
    assert code == 0, err
    assert (pixels("again.png") == pixels("made.png")).all()
    if command == "transfer":  # a new record has the defaults of today
        assert repeat(run, common, {**record, "settings": old})[0] == 0
        assert pixels("again.png").shape == (40, 60, 3)


def test_a_large_picture_of_the_old_format_is_repeated_in_tiles_of_the_native_size(
    run: Run, common: list[object], tiny_backbone: inst.Backbone
) -> None:
    photo = inst.read_photo(picture(Path("wide.png"), 5, (60, 20)), flattened=True)
    style = inst.instant_style(tiny_backbone, photo)
    then = copy.copy(tiny_backbone)
    then.default_size = then.native_size
    made = inst.complete(
        inst.transfer(
            then,
            photo,
            style,
            size=64,
            tile=64,
            steps=2,
            strength=0.5,
            style_attention=0,
            tone="adain",
            **LIKE_DIFFUSERS,
        )
    )
    record = PictureRecord.of("transfer", tiny_backbone, {"steps": 2}, {"[C]": style}, photo=photo, paintings=True)
    save_picture(made, "made.png", texts=replace(record, format=1).texts())
    assert run("repeat", "made.png", "-o", "again.png", "--backbone", common[1])[0] == 0
    assert (pixels("again.png") == pixels("made.png")).all()


def test_a_preview_carries_its_record_and_repeat_makes_it_again(run: Run, common: list[object]) -> None:
    painting = picture(Path("painting.png"), 1)
    given = ["learn", painting, "--steps", "2", "--crops", "2", "--seed", "3", "--save-every", "1", *common]
    assert run(*given, "--preview-every", "1", "-o", "s.safetensors")[0] == 0
    record = read_record("s-000001.png")
    assert (record.command, record.photo, record.settings["seed"]) == ("preview", None, 3)
    style = record.styles["[C]"]
    assert (style.vectors == Style.load("s-000001.safetensors").vectors).all()
    assert (style.about["steps"], style.about["paintings"]) == (1, [noted(painting)])

    assert run("repeat", "s-000001.png", "-o", "again.png", "--backbone", common[1]) == (0, "again.png\n", "")
    assert (pixels("again.png") == pixels("s-000001.png")).all()
    assert (pixels("again.png") != pixels("s-000002.png")).any()


def test_the_demo_sheet_carries_its_record_and_repeat_refuses_it(run: Run, common: list[object]) -> None:
    code, out, _ = run("demo", "--steps", "1", "-o", "made", "--json", *common)
    assert code == 0
    said = json.loads(out)
    record = read_record(said["sheet"])
    assert (record.command, record.settings["steps"], list(record.styles)) == ("demo", 1, ["instant", "learned"])
    assert (record.styles["learned"].vectors == Style.load(said["style"]).vectors).all()
    assert record.photo is not None
    assert record.photo.name == inst.demo.PHOTOS[0].name
    assert "was made by inst demo" in refused(run, said["sheet"])


def test_every_picture_of_a_comparison_records_what_it_is_made_of(run: Run, common: list[object]) -> None:
    photos, painting = [picture(Path(f"photos/{name}.png"), n) for n, name in enumerate("ab")], Path("art/p.png")
    picture(painting, 3)
    for photo in photos:
        picture(Path("other") / f"{photo.stem}__p.png", 4)
    sources = ["--photos", "photos", "--paintings", "art", "--methods", "inst-instant", "--outputs", "other=other"]
    sources += ["--style-attention", "0.25", "--style-scale", "0.5"]
    assert run("compare", "-o", "made", "--no-figures", *sources, *common)[0] == 0
    copies = {"photos", "paintings"}
    written = [path for path in Path("made").rglob("*.png") if path.parent.name not in copies]
    assert len(written) == 5
    for path in written:
        assert str(Path.cwd()) not in json.dumps(content_of(path))

    sheet = content_of("made/sheets/p.png")
    assert sheet["kind"] == "sheet of a comparison"
    assert (sheet["photos"], sheet["paintings"]) == ([noted(photo) for photo in photos], [noted(painting)])
    assert list(sheet["methods"]) == ["inst-instant", "other"]
    used = sheet["methods"]["inst-instant"]["transfer"]
    assert (used["strength"], used["style_attention"], used["style_scale"]) == (TRANSFER["strength"], 0.25, 0.5)
    assert sheet["methods"]["other"] == {"folder": "other"}
    assert sheet["versions"]["inst"] == inst.__version__
    assert content_of("made/other/b__p.png")["photos"] == [noted(photos[1])]
    assert "is that of a sheet of a comparison, which inst compare" in refused(run, "made/sheets/p.png")
    assert "is that of a result of a comparison" in refused(run, "made/other/a__p.png")


# Records that were edited by hand

JUNK = [
    *(None, True, "", "x", "\ud800", "../x", "a\x00b", -1, 0, 2, 1.5, 10**30, 1e300, math.nan, math.inf),
    *([], [1], ["x"], [None, {}], [[[]]], {}, {"x": [None]}, {"[C]": "AAAA"}, {"name": "x", "sha256": "x"}),
]
MISSING = object()


def places(content: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The ways to all that a record holds."""
    for key in content if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else ():
        yield (*above, key)
        yield from places(content[key], (*above, key))


def edited(content: Any, place: tuple[Any, ...], value: object) -> Any:
    """A copy with another value at one place, or without it."""
    whole = copy.deepcopy(content)
    inner = whole
    for key in place[:-1]:
        inner = inner[key]
    if value is MISSING:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    return whole


@pytest.fixture
def records(run: Run, common: list[object], sheet: list[object]) -> dict[str, dict[str, Any]]:
    """What pictures of each kind carry; their photo is beside them."""
    photo = Path(shutil.copy("photos/photo.png", "photo.png"))
    few = ["--style", "art/one.png", "--steps", "1", *common]
    Image.new("L", (96, 64), 255).save("mask.png")
    assert run("transfer", photo, "--mask", "mask.png", "-o", "transfer.png", *few)[0] == 0
    assert run("generate", "[C]", "--size", "64x80", "-o", "generate.png", *few)[0] == 0
    assert run(sheet[0], photo, *sheet[2:4], *sheet[6:10], "-o", "sheet.png", "--steps", "1", *common)[0] == 0
    return {command: content_of(f"{command}.png") for command in ("transfer", "generate", "sheet")}


def test_a_record_edited_by_hand_is_repeated_or_refused_with_one_error(
    run: Run,
    common: list[object],
    records: dict[str, dict[str, Any]],
    tiny_backbone: inst.Backbone,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(inst.Backbone, "load", lambda *_, **__: tiny_backbone)  # the same each time
    everywhere = [(command, place) for command, record in records.items() for place in places(record)]

    @given(st.sampled_from(everywhere), st.sampled_from([MISSING, *JUNK]))
    @settings(max_examples=80, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    def check(where: tuple[str, tuple[Any, ...]], value: object) -> None:
        code, out, err = repeat(run, common, edited(records[where[0]], where[1], value))
        if code == 0:
            assert out == "again.png\n"
            assert all(line.startswith("Warning: ") for line in err.splitlines())
        else:
            assert (code, out) == (1, "")
            assert err.splitlines()[-1].startswith("Error: ")
            assert err.count("Error") == 1

    check()


def test_a_wrong_value_in_a_record_is_refused_and_named(
    run: Run, common: list[object], records: dict[str, dict[str, Any]]
) -> None:
    cases: list[tuple[tuple[str, ...], Any, str]] = [
        (("settings", "steps"), "20", "The record in edited.png cannot be used: The number of steps '20' cannot be"),
        (("settings", "strength"), None, "The strength None cannot be used"),
        (("settings", "size"), [64, 64], "The size [64, 64] cannot be used"),
        (("settings", "guidance"), 10**30, "A guidance of 1000000000000000000000000000000 cannot be used"),
        (("settings", "style_weight"), 1e300, "A style weight of 1e+300 cannot be used"),
        (("settings", "tone"), ["none"], "The tone ['none'] cannot be used"),
        (("settings", "prompt"), {"a": 1}, "The prompt {'a': 1} cannot be used"),
        (("settings", "prompt"), "\ud800", "is damaged ('utf-8' codec can't encode"),
        (("settings", "flatten"), "yes", "does not record whether its photo was put on a white background"),
        (("settings", "seed"), 1.5, "does not record which of its seeds"),
        (("settings", "strengths"), [0.5], "made by another version of inst"),
        (("styles",), {}, "No style is given"),
        (("command",), "demo", "was made by inst demo"),
        (("command",), "", "made by another version of inst"),
        (("device",), "meta", 'The device "meta" cannot be used'),
        (("device",), "toaster", 'The device "toaster" cannot be used'),
        (("dtype",), "int8", 'The precision "int8" is unknown'),
        (("photo", "name"), "", "give the photo"),
        (("photo",), None, "does not record its photo"),
        (("format",), "1", "is damaged (format is a str, not a int)"),
    ]
    for place, value, said in cases:
        code, out, err = repeat(run, common, edited(records["transfer"], place, value))
        assert (code in (1, 2), out, err.count("\n")) == (True, "", 1)
        assert said in err


def repeat(run: Run, common: list[object], record: Any) -> tuple[int, str, str]:
    save_picture(torch.zeros(3, 8, 8), "edited.png", texts={"inst": json.dumps(record)})
    return run("repeat", "edited.png", "-o", "again.png", "--backbone", common[1])


# Quantised weights


def test_a_picture_with_quantised_weights_is_repeated_with_them(run: Run, common: list[object]) -> None:
    pytest.importorskip("torchao")
    photo, painting = picture(Path("photo.png"), 0), picture(Path("art/one.png"), 1)
    given = ["transfer", photo, "--style", painting, "--steps", "2", *common]
    assert run(*given, "-o", "plain.png")[0] == 0
    assert run(*given, "-o", "small.png", "--quantize", "int8") == (0, "small.png\n", "")
    assert (pixels("small.png") != pixels("plain.png")).any()
    assert run("repeat", "small.png", "-o", "again.png", "--backbone", common[1]) == (0, "again.png\n", "")
    assert Path("again.png").read_bytes() == Path("small.png").read_bytes()
    code, _, err = run("repeat", "plain.png", "-o", "other.png", "--backbone", common[1], "--quantize", "fp8")
    assert (code, err.count("quantisation none, here fp8")) == (0, 1)


def test_a_large_photo_gives_the_same_picture_everywhere(
    run: Run, common: list[object], tiny_backbone: inst.Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is reduced while it is read, before a command knows the size of its result."""
    monkeypatch.setattr(resizing, "LARGE", 10_000)
    monkeypatch.setattr(reading, "USUAL_SIZE", 150)
    picture(Path("large.png"), 0, (180, 240))
    picture(Path("painting.png"), 1)
    arguments = ("--style", "painting.png", "--steps", 1, *common)
    style = inst.read_style(tiny_backbone, "painting.png")
    for size in (None, 40):
        code, _, err = run("transfer", "large.png", *arguments, "-o", "made.png", *(["--size", size] if size else []))
        assert code == 0, err
        for photo in ("large.png", Image.open("large.png"), inst.read_photo("large.png", reduce_to=size or 150)):
            made = inst.complete(inst.transfer(tiny_backbone, photo, style, steps=1, size=size))[0]
            assert (np.asarray(to_image(made)) == pixels(Path("made.png"))).all()
        whole = inst.complete(inst.transfer(tiny_backbone, inst.read_photo("large.png"), style, steps=1, size=size))[0]
        assert np.abs(np.asarray(to_image(whole)).astype(int) - pixels(Path("made.png"))).mean() < 3
        code, _, err = run("repeat", "made.png", "-o", "again.png", "--backbone", common[1])
        assert code == 0, err
        assert (pixels(Path("again.png")) == pixels(Path("made.png"))).all()
