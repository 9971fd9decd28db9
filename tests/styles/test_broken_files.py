"""Styles and embeddings with broken or hostile bytes: one line, or a style that can be used."""

import base64
import io
import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from bounded import bounded_memory  # noqa: F401  # a fixture for all tests here
from inst import Backbone, InstError, Style
from inst.pictures.writing import save_png
from inst.styles.a1111_pixels import hidden_text
from inst.styles.exporting import export_style
from inst.styles.importing import Embedding, read_embedding
from inst.styles.style import KEY
from tiny import WIDTH

_SETTINGS = settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (3, 90, 200)).save(buffer, "PNG")
    return buffer.getvalue()


STYLE = Style(
    torch.linspace(-1, 1, 2 * WIDTH).reshape(2, WIDTH),
    "0123456789abcdef",
    about={"name": "Waves", "steps": 3, "paintings": [{"name": "waves.jpg", "sha256": "00"}]},
    paintings=(picture(),),
    module={"base": torch.ones(3)},
    module_config={"layers": 1},
)


def embedding(kind: str) -> bytes:
    buffer = io.BytesIO()
    content = {"string_to_token": {"*": 265}, "string_to_param": {"*": STYLE.vectors}, "name": "waves", "step": 5}
    match kind:
        case "safetensors":
            return safetensors.torch.save({"emb_params": STYLE.vectors})
        case "png":
            text = base64.b64encode(json.dumps({"emb_params": {"TORCHTENSOR": [[0.5] * WIDTH]}}).encode()).decode()
            path = io.BytesIO()
            from PIL.PngImagePlugin import PngInfo

            info = PngInfo()
            info.add_text("sd-ti-embedding", text)
            Image.new("RGB", (4, 4)).save(path, "PNG", pnginfo=info)
            return path.getvalue()
    torch.save(content, buffer, _use_new_zipfile_serialization=kind == "zip")
    return buffer.getvalue()


GOOD = {"style": STYLE.to_bytes(), **{kind: embedding(kind) for kind in ("safetensors", "zip", "legacy", "png")}}


@st.composite
def broken(draw: st.DrawFn, kind: str) -> bytes:
    """Good bytes, changed at a few random places."""
    content = bytearray(GOOD[kind])
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, max(0, len(content) - 1)))
        match draw(st.sampled_from(["flip", "cut", "extend", "replace", "repeat", "number"])):
            case "flip":
                content[place : place + 1] = bytes([draw(st.integers(0, 255))])
            case "cut":
                del content[place:]
            case "extend":
                content += draw(st.binary(min_size=1, max_size=40))
            case "replace":
                content[place : place + draw(st.integers(0, 40))] = draw(st.binary(max_size=40))
            case "repeat":
                content[place:place] = content[place : place + 200]
            case _:
                content[place : place + 8] = struct.pack("<Q", draw(st.sampled_from([0, 2**31, 2**40, 2**63])))
    return bytes(content)


def message_of(read: Callable[[], object]) -> str:
    try:
        read()
    except InstError as error:
        return str(error)
    return ""


@given(st.data())
@_SETTINGS
def test_a_broken_style_gives_one_line_or_a_style(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "style.safetensors"
    path.write_bytes(data.draw(broken("style")))

    def use() -> None:
        style = Style.load(path)
        assert style.vectors.isfinite().all()
        Style.from_bytes(style.to_bytes())
        style.main_paintings()

    assert "\n" not in message_of(use)


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy", "png"])
@given(data=st.data())
@_SETTINGS
def test_a_broken_embedding_gives_one_line_or_vectors(tmp_path: Path, kind: str, data: st.DataObject) -> None:
    path = tmp_path / "embedding"
    path.write_bytes(data.draw(broken(kind)))

    def use() -> None:
        found = read_embedding(path)
        assert isinstance(found, Embedding)
        assert found.vectors.isfinite().all()
        assert len(found.name) <= 200

    assert "\n" not in message_of(use)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from(["format", "fingerprint", "denoiser", "about", "module_config", "widths", "shares"]), _json)
@_SETTINGS
def test_any_description_gives_one_line_or_a_style(key: str, value: Any) -> None:
    content = {"format": 2, "fingerprint": "0", "denoiser": "", "about": {}, "module_config": None}
    text = json.dumps(content | {key: value})
    data = safetensors.torch.save({"vectors": torch.ones(1, 4)}, {KEY: text})
    assert "\n" not in message_of(lambda: Style.from_bytes(data).to_bytes())


def rewritten(**changes: Any) -> bytes:
    tensors = changes.pop("tensors", {"vectors": torch.ones(1, 4)})
    content = {"format": 2, "fingerprint": "0", "denoiser": "", "about": {}, "module_config": None} | changes
    return safetensors.torch.save(tensors, {KEY: json.dumps(content)})


def nested(levels: int) -> object:
    value: object = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (rewritten(about={"deep": nested(150)}), ""),
        (rewritten(about={"deep": nested(400)}), "nested too deeply"),
        (rewritten(shares=[float("inf")]), "is not finite"),
        (rewritten(about={"loss": 1}).replace(b'\\"loss\\": 1', b'\\"l\\": 1e99'), ""),
        (rewritten(about={"loss": 11111}).replace(b'\\"loss\\": 11111', b'\\"loss\\": 1e999'), "is not finite"),
        (rewritten(about={"loss": 111111}).replace(b'\\"loss\\": 111111', b'\\"loss\\": -1e999'), "is not finite"),
        (rewritten(tensors={"vectors": torch.ones(1, 4, dtype=torch.complex64)}), "not real numbers"),
        (rewritten(tensors={"vectors": torch.ones(1, 4, dtype=torch.int64)}), "not real numbers"),
        (rewritten(tensors={"vectors": torch.ones(1, 4, dtype=torch.float8_e4m3fn)}), ""),
        (rewritten(tensors={"vectors": torch.ones(1, 4), "painting.x": torch.ones(1)}), "damaged"),
        (rewritten(tensors={"vectors": torch.ones(1, 4), f"painting.{'9' * 9999}": torch.ones(1)}), "damaged"),
        (struct.pack("<Q", 90_000_000) + b"{}".ljust(90_000_000), "not a safetensors file"),
    ],
    ids=str,
)
def test_hostile_styles_are_refused_with_the_reason(data: bytes, said: str) -> None:
    assert said in message_of(lambda: Style.from_bytes(data))
    assert bool(said) == bool(message_of(lambda: Style.from_bytes(data)))


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX")
def test_what_is_no_file_is_refused_without_a_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises(InstError, match=r"is not a regular file|is a folder"):
            read_embedding(path)
    for path in (Path("/dev/zero"), tmp_path):
        with pytest.raises(InstError, match=r"neither a file nor a pipe|is a folder"):
            Style.load(path)


def test_a_style_comes_back_through_names_that_are_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.safetensors")
    STYLE.save(path)
    assert torch.equal(Style.load(path).vectors, STYLE.vectors)
    export_style(STYLE, path, "diffusers")
    found = read_embedding(path)
    assert isinstance(found, Embedding)
    assert torch.equal(found.vectors, STYLE.vectors)
    (tmp_path / os.fsdecode(b"\xff.pt")).write_bytes(GOOD["zip"])
    found = read_embedding(tmp_path / os.fsdecode(b"\xff.pt"))
    assert isinstance(found, Embedding)
    assert found.name == "%FF"
    named = Style(STYLE.vectors, "0", about={"name": os.fsdecode(b"\xff")})
    assert named.name.encode() == b"%FF"


def test_a_long_name_in_a_file_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file({"x" * 1_000_000: STYLE.vectors}, path)
    found = read_embedding(path)
    assert isinstance(found, Embedding)
    assert len(found.name) <= 200


def test_a_text_in_pixels_of_noise_costs_no_more_than_its_picture() -> None:
    pixels = np.random.default_rng(0).integers(1, 255, (300, 700, 3), np.uint8)
    pixels[:, [300, 400]] = 0
    assert hidden_text(Image.fromarray(pixels)) is None


def test_an_embedding_of_empty_lists_is_refused(tmp_path: Path) -> None:
    text = base64.b64encode(b'{"emb_params": [' + b"[]," * 3_000_000 + b"[]]}").decode()
    save_png(torch.zeros(3, 9, 9), tmp_path / "a.png", texts={"sd-ti-embedding": text})
    with pytest.raises(InstError, match=r"lists and objects|larger|more than"):
        read_embedding(tmp_path / "a.png")


def test_a_pickle_that_is_no_file_of_torch_is_refused(tmp_path: Path, tiny_backbone: Backbone) -> None:
    own: dict[str, object] = {}
    own["state_dict"] = own
    (tmp_path / "a.ckpt").write_bytes(pickle.dumps(own, 2))
    for read in (read_embedding, Backbone.load):
        with pytest.raises(InstError, match="holds itself"):
            read(tmp_path / "a.ckpt")


def test_packed_4_bit_numbers_are_refused(tmp_path: Path) -> None:
    entry = {"dtype": "F4", "shape": [2, 32], "data_offsets": [0, 32]}
    metadata = {"inst_style": json.dumps({"format": 2, "fingerprint": "", "about": {}, "widths": [32]})}
    for name, header in {"e": {"emb_params": entry}, "s": {"__metadata__": metadata, "vectors": entry}}.items():
        start = json.dumps(header).encode()
        (tmp_path / f"{name}.safetensors").write_bytes(struct.pack("<Q", len(start)) + start + bytes(32))
    with pytest.raises(InstError, match="does not hold vectors of the shape"):
        read_embedding(tmp_path / "e.safetensors")
    with pytest.raises(InstError, match="is damaged"):
        Style.load(tmp_path / "s.safetensors")
