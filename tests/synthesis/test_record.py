"""Pictures that carry what made them: nothing is lost, nothing private is told, and damage is one clear line."""

import base64
import dataclasses
import hashlib
import json
import os
import struct
import zlib
from importlib.metadata import version
from pathlib import Path, PureWindowsPath

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

import inst
from inst import Backbone, InstError
from inst.files.provenance import FORMAT, SourceFile
from inst.pictures.reading import Photo, read_photo, read_picture
from inst.pictures.stored import encode_painting
from inst.pictures.writing import save_picture
from inst.styles.style import Style
from inst.synthesis.painter import paint
from inst.synthesis.record import BackboneRecord, PictureRecord, read_record

PROMPT = 'a black/white dog, "C:\\art" in the style of [C1] and [C2], 梵高'


def random_style(seed: int, n: int = 3, width: int = 32, side: int = 40) -> Style:
    generator = torch.Generator().manual_seed(seed)
    picture = torch.rand(3, side, side, generator=generator) * 2 - 1
    return Style(
        torch.randn(n, width, generator=generator),
        "0123456789abcdef",
        "fedcba9876543210",
        about={"name": f"style {seed}", "paintings": [{"name": f"/home/ann/secret/{seed}.jpg", "sha256": "00"}]},
        paintings=(encode_painting(picture),),
        module={"weight": torch.randn(50, 50, generator=generator)},
        module_config={"layers": 1},
    )


SETTINGS = {
    "prompt": PROMPT,
    "strength": 0.7000000000000001,
    "steps": 20,
    "size": (512, 768),
    "seed": 2**63,
    "tile": None,
}


def make_record(backbone: Backbone, *, paintings: bool = False) -> PictureRecord:
    return PictureRecord.of(
        "transfer",
        backbone,
        SETTINGS,
        {"[C1]": random_style(1), "[C2]": random_style(2)},
        photo=SourceFile("boat.jpg", "11"),
        mask=SourceFile("boat-mask.png", "22"),
        paintings=paintings,
    )


# What is kept


@pytest.mark.parametrize("paintings", [False, True])
def test_a_picture_carries_its_record(tiny_backbone: Backbone, tmp_path: Path, paintings: bool) -> None:
    picture = torch.rand(3, 32, 48) * 2 - 1
    record = make_record(tiny_backbone, paintings=paintings)
    path = save_picture(picture, tmp_path / "result.png", texts=record.texts())
    found = read_record(path)
    assert found.command == "transfer"
    assert found.settings == {**SETTINGS, "size": [512, 768]}
    assert found.backbone == BackboneRecord(
        tiny_backbone.name, tiny_backbone.fingerprint, tiny_backbone.denoiser_fingerprint
    )
    assert (found.device, found.dtype) == ("cpu", "float32")
    assert found.versions["inst"] == inst.__version__
    assert found.versions["torch"] == version("torch")
    assert found.photo == SourceFile("boat.jpg", "11")
    assert found.mask == SourceFile("boat-mask.png", "22")
    assert list(found.styles) == ["[C1]", "[C2]"]
    for seed, style in enumerate(found.styles.values(), start=1):
        original = random_style(seed)
        assert torch.equal(style.vectors, original.vectors)
        assert (style.fingerprint, style.denoiser, style.about) == (
            (original.fingerprint, original.denoiser, original.about)
        )
        assert style.paintings == (original.paintings if paintings else ())
        assert style.module is None
    assert found.to_text() == record.to_text()
    # the picture is the same with and without a record
    assert torch.equal(read_picture(path), read_picture(save_picture(picture, tmp_path / "plain.png")))


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"tone": "none", "style_attention": 0.0}, False),
        ({"tone": "photo", "style_attention": 0}, False),
        ({"tone": "painting", "style_attention": 0.0}, True),
        ({"tone": "none", "style_attention": 0.5}, True),
    ],
)
def test_a_painted_picture_keeps_the_paintings_that_it_was_made_with(
    tiny_backbone: Backbone, settings: dict[str, object], kept: bool
) -> None:
    styles = {"[C]": dataclasses.replace(random_style(1), fingerprint=tiny_backbone.fingerprint, denoiser="")}
    photo = Photo(torch.zeros(3, 64, 64), None, "photo.png", "00")
    painted = inst.complete(paint(tiny_backbone, styles, {"steps": 1, **settings}, photo=photo))
    assert painted.record.styles["[C]"].paintings == (styles["[C]"].paintings if kept else ())


def test_a_record_keeps_the_version_of_its_format(tiny_backbone: Backbone) -> None:
    """Its settings may leave out what had another default then."""
    old = json.loads(make_record(tiny_backbone).to_text()) | {"format": 1}
    found = PictureRecord.from_text(json.dumps(old))
    assert found.format == 1
    assert json.loads(found.to_text())["format"] == 1
    assert make_record(tiny_backbone).format == FORMAT


def test_the_record_is_plain_json_in_a_text_chunk(tiny_backbone: Backbone, tmp_path: Path) -> None:
    path = save_picture(torch.zeros(3, 8, 8), tmp_path / "result.png", texts=make_record(tiny_backbone).texts())
    with Image.open(path) as image:
        content = json.loads(image.text["inst"])
    assert content["settings"]["prompt"] == PROMPT
    assert content["photo"] == {"name": "boat.jpg", "sha256": "11"}
    style = Style.from_bytes(base64.b64decode(content["styles"]["[C1]"]))
    assert torch.equal(style.vectors, random_style(1).vectors)


def test_the_same_record_gives_the_same_file(tiny_backbone: Backbone, tmp_path: Path) -> None:
    picture = torch.rand(3, 16, 16)
    one, other = (
        save_picture(picture, tmp_path / name, texts=make_record(tiny_backbone).texts()).read_bytes()
        for name in ("one.png", "other.png")
    )
    assert one == other


def test_a_photo_is_recorded_by_name_and_hash(tiny_backbone: Backbone, tmp_path: Path) -> None:
    path = tmp_path / "boat.png"
    Image.new("RGB", (9, 9)).save(path)
    photo = read_photo(path)
    expected = SourceFile("boat.png", hashlib.sha256(path.read_bytes()).hexdigest())
    assert PictureRecord.of("transfer", tiny_backbone, {}, {}, photo=photo).photo == expected
    assert PictureRecord.of("generate", tiny_backbone, {}, {}).photo is None


@pytest.mark.parametrize(
    "folder", ["/home/ann/secret", "C:\\Users\\ann\\secret", "\\\\server\\secret", "~/secret", "../secret", "secret/"]
)
def test_a_record_contains_no_folder_names(tiny_backbone: Backbone, tmp_path: Path, folder: str) -> None:
    slash = "\\" if "\\" in folder else "/"
    kind = PureWindowsPath if "\\" in folder else Path
    file = f"{folder}{slash}boat.jpg"
    style = Style(
        torch.zeros(1, 4),
        "00",
        about={
            "name": file,
            "paintings": [{"name": file, "sha256": "00"}],
            "command": ["learn", kind(file), "-o", file],
        },
    )
    record = PictureRecord(
        command="transfer",
        settings={"prompt": "[C]", "mask": file, "style": [kind(file)], "output": {"deep": (file,)}},
        styles={"[C]": Style.mix([(style, 1), (style, 2)])},
        backbone=BackboneRecord(folder + slash + "model", "00", "00"),
        device="cpu",
        dtype="float32",
        photo=SourceFile(file, "00"),
        mask=SourceFile(file, "00"),
    )
    path = tmp_path / "result.png"
    save_picture(torch.zeros(3, 8, 8), path, texts=record.texts())
    found = read_record(path)
    text = json.dumps(json.loads(record.to_text()) | {"styles": {}})
    for private in ("secret", "ann", "server", "~", ".."):
        assert private not in text
        assert private.encode() not in found.styles["[C]"].to_bytes()
    assert found.photo == SourceFile("boat.jpg", "00")
    assert found.settings["style"] == ["boat.jpg"]
    assert found.backbone.name == "model"


def test_a_backbone_from_a_folder_is_recorded_by_its_base_name(
    tiny_backbone: Backbone, tiny_backbone_folder: Path
) -> None:
    assert tiny_backbone.name == tiny_backbone_folder.name
    assert tiny_backbone_folder.parent.name not in make_record(tiny_backbone).to_text()


def test_a_picture_with_its_record_takes_less_than_27_kilobytes(tiny_backbone: Backbone, tmp_path: Path) -> None:
    """Stable Diffusion's width and 8 vectors are 24 KiB, which base64 and zlib leave as large as they are."""
    styles = {"[C]": random_style(1, n=8, width=768, side=256)}
    record = PictureRecord.of("transfer", tiny_backbone, SETTINGS, styles)
    path = save_picture(torch.zeros(3, 8, 8), tmp_path / "result.png", texts=record.texts())
    assert path.stat().st_size < 27_000


def test_a_picture_with_a_large_record_can_still_be_opened_by_pillow(tiny_backbone: Backbone, tmp_path: Path) -> None:
    """Pillow refuses to open a file with a compressed text of more than 1 MiB; ours must not be such a file."""
    styles = {f"[C{seed}]": random_style(seed, side=512) for seed in range(6)}
    record = PictureRecord.of("transfer", tiny_backbone, SETTINGS, styles, paintings=True)
    assert len(record.to_text()) > PngImagePlugin.MAX_TEXT_CHUNK
    path = save_picture(torch.zeros(3, 8, 8), tmp_path / "result.png", texts=record.texts())
    assert read_picture(path).shape == (3, 8, 8)
    assert read_record(path).styles["[C5]"].paintings == styles["[C5]"].paintings


_plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text("ab 梵é\"'"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.text(max_size=9), _plain, max_size=5), st.text())
@settings(max_examples=50, deadline=None)
def test_settings_are_read_back_exactly(values: dict[str, object], prompt: str) -> None:
    values = {key: value for key, value in values.items() if key not in ("prompt", "negative_prompt")}
    values["prompt"], values["negative_prompt"] = prompt, [prompt, "a/b"]
    record = PictureRecord("generate", values, {}, BackboneRecord("mini", "00", "00"), "cpu", "float32")
    found = PictureRecord.from_text(record.to_text())
    assert found.settings == values
    assert record.to_text().isascii()


def test_settings_that_cannot_be_written_down_are_refused() -> None:
    for wrong, error in (({"seed": torch.Generator()}, TypeError), ({"strength": float("nan")}, ValueError)):
        with pytest.raises(error, match="recorded"):
            PictureRecord("generate", wrong, {}, BackboneRecord("mini", "00", "00"), "cpu", "float32")


def test_styles_keep_their_order(tiny_backbone: Backbone) -> None:
    """A prompt that names no style is completed by all of them, in their order."""
    styles = {name: random_style(seed) for seed, name in enumerate(("[B]", "[C]", "[A]"))}
    record = PictureRecord.of("transfer", tiny_backbone, {}, styles)
    assert list(PictureRecord.from_text(record.to_text()).styles) == ["[B]", "[C]", "[A]"]


def test_a_backbone_from_the_model_hub_keeps_its_full_name() -> None:
    for name in ("owner/model", "owner/model@v1.0", "owner/model@refs/pr/1"):
        record = PictureRecord("transfer", {}, {}, BackboneRecord(name, "00", "00"), "cpu", "float32")
        assert PictureRecord.from_text(record.to_text()).backbone.name == name
    for folder in ("/models/owner/model", "~/owner/model", "./model", "C:\\owner\\model", "model/"):
        assert BackboneRecord(folder, "00", "00").name == "model"


# Pictures without a usable record


def refuse(path: Path, said: str) -> None:
    with pytest.raises(InstError) as caught:
        read_record(path)
    message = str(caught.value)
    assert message.count(str(path)) == 1
    assert "\n" not in message
    assert said in message


@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
def test_pictures_without_a_record_are_refused(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"other.{ending}"
    Image.new("RGB", (9, 9)).save(path)
    refuse(path, "has no record of how it was made: give a PNG file that inst wrote")


def test_files_that_are_no_picture_are_refused_with_the_reason(tmp_path: Path) -> None:
    refuse(tmp_path / "nowhere.png", "no such file")
    refuse(tmp_path, "is a folder")
    path = tmp_path / "file.png"
    path.touch()
    refuse(path, "is empty (0 bytes)")
    path.write_bytes(b"hello")
    refuse(path, "is not a picture in a known format")


def with_text(path: Path, text: str) -> Path:
    return save_picture(torch.zeros(3, 8, 8), path, texts={"inst": text})


@pytest.mark.parametrize(
    "text", ["", "hello", "[]", "null", "7", "{}", '{"format": 1}', '{"format": NaN}', "[" * 100_000, '{"format": "1"}']
)
def test_a_record_that_makes_no_sense_is_refused(tmp_path: Path, text: str) -> None:
    refuse(with_text(tmp_path / "result.png", text), "is damaged")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format": FORMAT + 1}, "was written by a newer version of inst"),
        ({"styles": {"[C]": "!"}}, "is damaged"),
        ({"styles": {"[C]": 7}}, "is damaged"),
        ({"styles": {"[C]": ""}}, "the style [C] is empty"),
        ({"styles": {"[C]": base64.b64encode(b"hello there").decode()}}, "the style [C] is not a safetensors file"),
        ({"settings": []}, "settings is a list, not a dict"),
        ({"photo": {"name": "x"}}, "sha256"),
        ({"photo": {"name": "x", "sha256": 7}}, "sha256 is a int, not a str"),
        ({"backbone": {"name": "x", "fingerprint": "0", "denoiser": "0", "more": "0"}}, "more"),
        ({"versions": {"torch": 2}}, "torch is a int, not a str"),
        ({"command": None}, "command is a NoneType, not a str"),
    ],
)
def test_a_record_with_wrong_values_is_refused_with_the_reason(
    tiny_backbone: Backbone, tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    content = json.loads(make_record(tiny_backbone).to_text()) | changes
    refuse(with_text(tmp_path / "result.png", json.dumps(content)), said)


def test_a_truncated_record_is_refused_with_its_path(tiny_backbone: Backbone, tmp_path: Path) -> None:
    """The record comes first in the file, and is read without the pixels."""
    path = save_picture(torch.rand(3, 64, 64), tmp_path / "result.png", texts=make_record(tiny_backbone).texts())
    whole = path.read_bytes()
    pixels = whole.index(b"IDAT")
    for kept in (pixels // 2, 100, 20):
        path.write_bytes(whole[:kept])
        refuse(path, str(path))
    path.write_bytes(whole[: (pixels + len(whole)) // 2])
    assert read_record(path).to_text() == make_record(tiny_backbone).to_text()


def test_a_text_chunk_that_unpacks_to_a_huge_size_is_refused(tmp_path: Path) -> None:
    """A few kilobytes that would unpack to a gigabyte."""
    path = save_picture(torch.zeros(3, 8, 8), tmp_path / "bomb.png")
    body = b"inst\0\0" + zlib.compress(bytes(50_000_000))
    chunk = struct.pack(">I", len(body)) + b"zTXt" + body + struct.pack(">I", zlib.crc32(b"zTXt" + body))
    whole = path.read_bytes()
    path.write_bytes(whole[:33] + chunk + whole[33:])  # after the signature and the header
    refuse(path, "is damaged")
    with pytest.raises(InstError, match=r"bomb\.png is damaged"):
        read_picture(path)


def test_a_full_disk_leaves_the_old_picture(
    tiny_backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_picture(torch.zeros(3, 8, 8), tmp_path / "result.png", texts=make_record(tiny_backbone).texts())

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InstError, match="No space left"):
        with_text(path, "hello")
    assert read_record(path).to_text() == make_record(tiny_backbone).to_text()
