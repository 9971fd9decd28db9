"""Styles as embeddings of other programs: read by diffusers, by the formats' definitions, and back again."""

import base64
import json
import os
import pickle
import re
import unicodedata
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

import inst
from inst import Backbone, InstError, UsageError
from inst.pictures.reading import read_photo
from inst.pictures.stored import encode_painting
from inst.pictures.tensors import to_tensor
from inst.pictures.writing import save_png
from inst.styles.exporting import FORMATS, export_style, slug, token_of
from inst.styles.importing import Embedding, import_style, read_embedding
from inst.styles.style import Style
from tiny import LATENT_CHANNELS, WIDTH, WIDTH_2, save_family, tiny_text_encoder, tiny_tokenizer

Run = Callable[..., tuple[int, str, str]]
DOCUMENT = Path(__file__).parents[2] / "docs" / "styles-elsewhere.md"
VECTORS = 5
OTHER = 2 * WIDTH  # the second text encoder's


def make_style(backbone: Backbone, name: str = "Waves", widths: tuple[int, ...] = (WIDTH,), **changes: Any) -> Style:
    vectors = torch.randn(VECTORS, sum(widths), generator=torch.Generator().manual_seed(0)) * 0.5
    return Style(vectors, backbone.fingerprint, about={"name": name, "steps": 7}, widths=widths, **changes)


def documented_code(words: str) -> str:
    """The one code block of the page that has these words."""
    blocks = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    (block,) = (block for block in blocks if words in block)
    return block


# diffusers


@pytest.mark.parametrize("name", ["Waves", "Große Welle", "睡莲", "25% waves + 75% lilies", "WAVES_2", "[C]", "..."])
def test_diffusers_finds_every_vector_of_a_token(
    tiny_backbone: Backbone, tiny_backbone_folder: Path, tmp_path: Path, name: str
) -> None:
    style = make_style(tiny_backbone, name)
    word = export_style(style, tmp_path / "out.safetensors", "diffusers")
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_backbone_folder)
    pipeline.load_textual_inversion(tmp_path / "out.safetensors")
    found, _ = pipeline.encode_prompt(f"a river in the style of {word} by a dog", "cpu", 1, False)
    expected = tiny_backbone.embed_text(["a river in the style of [C] by a dog"], {"[C]": style.vectors}).tokens
    torch.testing.assert_close(found, expected)


def test_the_documented_code_for_diffusers_makes_the_same_picture_as_inst(
    tiny_backbone: Backbone, tiny_backbone_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    style = make_style(tiny_backbone)
    monkeypatch.chdir(tmp_path)
    assert export_style(style, "waves-diffusers.safetensors", "diffusers") == "<waves>"
    code = documented_code(" StableDiffusionPipeline.from_pretrained")
    code = code.replace("models/stable-diffusion-v1-5", str(tiny_backbone_folder))
    exec(code, {})
    with torch.no_grad():
        prompt = "a church in the style of [C]"
        made = inst.complete(inst.generate(tiny_backbone, prompt, style, steps=20, guidance=5.0, seed=0, solver="ddim"))
    found = to_tensor(Image.open("church.png"))
    assert (found - made[0]).abs().max() < 1.6 / 127.5  # levels of 8 bits, of which rounding may move one


def tiny_xl() -> StableDiffusionXLPipeline:
    """diffusers' own pipeline for Stable Diffusion XL, with random weights and the wrong end token of its encoders."""
    torch.manual_seed(0)
    config = tiny_text_encoder(tiny_tokenizer()).config.to_dict() | {"eos_token_id": 2}
    wide = config | {"hidden_size": OTHER, "projection_dim": OTHER}
    return StableDiffusionXLPipeline(
        vae=AutoencoderKL(block_out_channels=[8], norm_num_groups=4, latent_channels=LATENT_CHANNELS),
        text_encoder=CLIPTextModel(CLIPTextConfig(**config)),
        text_encoder_2=CLIPTextModelWithProjection(CLIPTextConfig(**wide)),
        tokenizer=tiny_tokenizer(),
        tokenizer_2=tiny_tokenizer(),
        unet=UNet2DConditionModel(
            sample_size=8,
            in_channels=LATENT_CHANNELS,
            out_channels=LATENT_CHANNELS,
            down_block_types=["CrossAttnDownBlock2D"],
            up_block_types=["CrossAttnUpBlock2D"],
            block_out_channels=[8],
            layers_per_block=1,
            norm_num_groups=4,
            attention_head_dim=8,
            cross_attention_dim=WIDTH + OTHER,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + OTHER,
        ),
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
    )


def test_the_documented_code_for_two_text_encoders_loads_both_parts_of_a_style(
    tiny_backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_xl().save_pretrained("xl")
    style = make_style(tiny_backbone, widths=(WIDTH, OTHER))
    assert export_style(style, "waves-diffusers.safetensors", "diffusers") == "<waves>"
    code = documented_code(" StableDiffusionXLPipeline.from_pretrained")
    code = code.replace("models/stable-diffusion-xl-base-1.0", str(tmp_path / "xl"))
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["image"].size == (8, 8)
    pipeline = names["pipeline"]
    pairs = ((pipeline.tokenizer, pipeline.text_encoder), (pipeline.tokenizer_2, pipeline.text_encoder_2))
    for (tokenizer, encoder), part in zip(pairs, style.vectors.split([WIDTH, OTHER], dim=1), strict=True):
        prompt = pipeline.maybe_convert_prompt("a dog <waves>", tokenizer)
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        assert torch.equal(encoder.get_input_embeddings().weight[ids[2:]], part)
    found, _, pooled, _ = pipeline.encode_prompt("a church in the style of <waves>", device="cpu")
    backbone = Backbone.load(tmp_path / "xl", device="cpu", dtype="float32")
    with torch.no_grad():
        expected = backbone.embed_text(["a church in the style of [C]"], {"[C]": style.vectors})
    torch.testing.assert_close(found, expected.tokens)
    torch.testing.assert_close(pooled, expected.pooled)


def test_tokens_are_lower_case_without_spaces() -> None:
    for name in ("Waves", "Große Welle", "İstanbul", "睡莲", "a/b\\c", "<x>", "", "[C]", "x" * 300, "Ｂ"):  # noqa: RUF001
        token = token_of(name)
        assert re.fullmatch(r"<[^\s<>\[\]()]+>", token)
        assert token == unicodedata.normalize("NFC", token.lower())
        assert token_of(token) == token
        assert len(token) <= 62
    assert token_of("Die große  Welle (II)") == "<die-große-welle-ii>"
    assert slug("***") == "style"


def test_a_chosen_token_is_used_and_one_that_clip_cannot_read_is_refused(
    tiny_backbone: Backbone, tmp_path: Path
) -> None:
    style = make_style(tiny_backbone)
    for token in ("<sea-2>", "sea-2"):
        assert export_style(style, tmp_path / "out.safetensors", "diffusers", token) == "<sea-2>"
        assert set(load_file(tmp_path / "out.safetensors")) == {"<sea-2>"}
    for token in ("[C]", "<Sea>", "the sea", ""):
        with pytest.raises(UsageError, match="cannot be used, because CLIP reads lower-case letters only"):
            export_style(style, tmp_path / "bad.safetensors", "diffusers", token)
    with pytest.raises(UsageError, match="a1111 uses the file name"):
        export_style(style, tmp_path / "bad.safetensors", "a1111", "<sea>")
    assert not (tmp_path / "bad.safetensors").exists()


# A1111 and ComfyUI


@pytest.mark.parametrize("widths", [(WIDTH,), (WIDTH, OTHER)])
def test_files_for_a1111_and_comfyui_hold_the_vectors_under_their_keys(
    tiny_backbone: Backbone, tmp_path: Path, widths: tuple[int, ...]
) -> None:
    style = make_style(tiny_backbone, widths=widths)
    path = tmp_path / "my.waves.safetensors"
    assert export_style(style, path, "a1111") == "my.waves"
    content = load_file(path)
    assert set(content) == ({"emb_params"} if len(widths) == 1 else {"clip_l", "clip_g"})
    parts = [content[key] for key in ("emb_params", "clip_l", "clip_g") if key in content]
    assert [part.shape[1] for part in parts] == list(widths)
    assert torch.equal(torch.cat(parts, dim=1), style.vectors)
    before = path.read_bytes()
    assert export_style(style, path, "comfyui") == "embedding:my.waves"
    assert path.read_bytes() == before


@pytest.mark.parametrize("size", [(40, 60), (320, 512), None])
def test_a_picture_for_a1111_carries_the_vectors_and_shows_the_painting(
    tiny_backbone: Backbone, tmp_path: Path, size: tuple[int, int] | None
) -> None:
    paintings = () if size is None else (encode_painting(torch.zeros(3, *size)),)
    style = make_style(tiny_backbone, paintings=paintings)
    assert export_style(style, tmp_path / "waves.png", "a1111-png") == "waves"
    with Image.open(tmp_path / "waves.png") as image:
        assert image.size == {(40, 60): (60, 40), (320, 512): (256, 160), None: (256, 256)}[size]
        content = json.loads(base64.b64decode(image.text["sd-ti-embedding"]))
        said = json.loads(image.text["inst"])
    assert (said["kind"], said["about"], said["fingerprint"]) == ("picture of a style", style.about, style.fingerprint)
    assert content["name"] == "waves"
    assert content["step"] == 7
    assert list(content["string_to_param"]) == list(content["string_to_token"]) == ["*"]
    (entry,) = content["string_to_param"].values()
    assert torch.equal(torch.tensor(entry["TORCHTENSOR"]), style.vectors)

    both = make_style(tiny_backbone, widths=(WIDTH, OTHER))
    export_style(both, tmp_path / "both.png", "a1111-png")
    with Image.open(tmp_path / "both.png") as image:
        content = json.loads(base64.b64decode(image.text["sd-ti-embedding"]))
    assert {key: len(entry["TORCHTENSOR"][0]) for key, entry in content.items()} == {"clip_l": WIDTH, "clip_g": OTHER}


@pytest.mark.parametrize("name", ["my waves", "waves,2", "waves(2)", "a:b"])
def test_file_names_that_no_prompt_can_hold_are_refused(tiny_backbone: Backbone, tmp_path: Path, name: str) -> None:
    for to in ("a1111", "comfyui"):
        with pytest.raises(UsageError, match="cannot be written in a prompt"):
            export_style(make_style(tiny_backbone), tmp_path / f"{name}.safetensors", to)
    assert not list(tmp_path.iterdir())


def test_wrong_endings_and_unknown_formats_are_refused(tiny_backbone: Backbone, tmp_path: Path) -> None:
    for to, ending in FORMATS.items():
        wrong = ".png" if ending == ".safetensors" else ".safetensors"
        with pytest.raises(UsageError, match=rf"give a name that ends in \{ending}"):
            export_style(make_style(tiny_backbone), tmp_path / f"waves{wrong}", to)
    with pytest.raises(UsageError, match=r'The format "lora" is unknown: use one of diffusers, a1111, comfyui'):
        export_style(make_style(tiny_backbone), tmp_path / "waves.safetensors", "lora")
    three = make_style(tiny_backbone, widths=(1, 2, 3))
    with pytest.raises(UsageError, match="3 text encoders"):
        export_style(three, tmp_path / "waves.safetensors", "a1111")


# Back


def xl_backbone() -> Backbone:
    pipeline = tiny_xl()
    return Backbone(
        vae=pipeline.vae,
        unet=pipeline.unet,
        text_encoder=pipeline.text_encoder,
        text_encoder_2=pipeline.text_encoder_2,
        tokenizer=pipeline.tokenizer,
        tokenizer_2=pipeline.tokenizer_2,
        scheduler=pipeline.scheduler,
        device=torch.device("cpu"),
        dtype=torch.float32,
        fingerprint="two",
        name="xl",
    )


@pytest.mark.parametrize("to", FORMATS)
def test_an_exported_style_is_imported_with_the_same_vectors(tiny_backbone: Backbone, tmp_path: Path, to: str) -> None:
    style = make_style(tiny_backbone)
    path = tmp_path / f"sea{FORMATS[to]}"
    export_style(style, path, to)
    found = import_style(tiny_backbone, path)
    assert torch.equal(found.vectors, style.vectors)
    assert found.fingerprint == tiny_backbone.fingerprint
    assert found.check(tiny_backbone) is None
    assert found.name == ("waves" if to == "diffusers" else "sea")
    assert found.about["imported"]["name"] == path.name
    assert import_style(tiny_backbone, path, name="Sea").name == "Sea"
    assert torch.equal(Style.load(found.save(tmp_path / "again.safetensors")).vectors, style.vectors)


@pytest.mark.parametrize("to", FORMATS)
def test_a_style_exported_for_two_text_encoders_is_imported_with_the_same_vectors(
    tiny_backbone: Backbone, tmp_path: Path, to: str
) -> None:
    style = make_style(tiny_backbone, widths=(WIDTH, OTHER))
    path = tmp_path / f"sea{FORMATS[to]}"
    export_style(style, path, to)
    found = import_style(xl_backbone(), path)
    assert torch.equal(found.vectors, style.vectors)
    assert found.widths == (WIDTH, OTHER)
    with pytest.raises(UsageError, match=rf"width {WIDTH} \+ {OTHER}, which does not fit .* of width {WIDTH}:"):
        import_style(tiny_backbone, path)


@pytest.mark.parametrize("names", [("clip_l", "clip_g"), ("text_encoders_0", "text_encoders_1")])
@pytest.mark.parametrize("outputs", [False, True])
def test_the_names_of_both_encoders_are_those_of_several_programs(
    names: tuple[str, str], outputs: bool, tmp_path: Path
) -> None:
    """cog-sdxl and the advanced script of diffusers use other names; OneTrainer adds vectors for outputs."""
    tensors = {name: torch.randn(2, width) for name, width in zip(names, (WIDTH, OTHER), strict=True)}
    extra = {f"{name}_out": torch.randn(2, 7) for name in names} if outputs else {}
    save_file(tensors | extra, tmp_path / "file.safetensors")
    found = read_embedding(tmp_path / "file.safetensors")
    assert isinstance(found, Embedding)
    assert torch.equal(found.vectors, torch.cat(list(tensors.values()), dim=1))
    assert (found.widths, found.name) == ((WIDTH, OTHER), "file")


@pytest.mark.parametrize(
    ("keys", "name"),
    [(("<waves>", "<waves>"), "waves"), (("clip_l", "clip_g"), "first"), (("emb_params", "emb_params"), "first")],
)
def test_two_files_for_two_text_encoders_are_imported_as_one_style(
    tmp_path: Path, keys: tuple[str, str], name: str
) -> None:
    """As diffusers' script for textual inversion of Stable Diffusion XL (`learned_embeds_2`) and others write them."""
    backbone, style = xl_backbone(), torch.randn(VECTORS, WIDTH + OTHER)
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    for path, key, part in zip((first, second), keys, style.split([WIDTH, OTHER], dim=1), strict=True):
        save_file({key: part.contiguous()}, path)
    found = import_style(backbone, first, second=second)
    assert torch.equal(found.vectors, style)
    assert (found.widths, found.name) == ((WIDTH, OTHER), name)
    assert found.about["imported"]["name"] == "first.safetensors"
    assert found.about["imported"]["second"]["name"] == "second.safetensors"
    assert torch.equal(import_style(backbone, second, second=first).vectors, style)
    for path in (first, second):
        with pytest.raises(UsageError, match="give the file for the other text encoder as `second`, or use the model"):
            import_style(backbone, path)
    with pytest.raises(UsageError, match=rf"of width {WIDTH} \+ {WIDTH}, which does not fit the backbone xl"):
        import_style(backbone, first, second=first)


def test_two_files_that_are_no_halves_of_an_embedding_are_refused(tiny_backbone: Backbone, tmp_path: Path) -> None:
    half, other, whole = (tmp_path / f"{name}.safetensors" for name in ("half", "other", "whole"))
    save_file({"clip_l": torch.ones(2, WIDTH)}, half)
    save_file({"clip_g": torch.ones(1, OTHER)}, other)
    save_file({"clip_l": torch.ones(2, WIDTH), "clip_g": torch.ones(2, OTHER)}, whole)
    with pytest.raises(UsageError, match=r"whole\.safetensors does not hold the vectors for one of two text encoders"):
        import_style(xl_backbone(), half, second=whole)
    with pytest.raises(InstError, match="2 and 1 vectors for its text encoders"):
        import_style(xl_backbone(), half, second=other)
    with pytest.raises(InstError, match="nowhere: no such file"):
        import_style(xl_backbone(), half, second=tmp_path / "nowhere")
    save_file({"clip_g": torch.ones(2, OTHER)}, other)
    with pytest.raises(UsageError, match=rf"of width {WIDTH} \+ {OTHER}, which does not fit the backbone"):
        import_style(tiny_backbone, half, second=other)


def a1111(vectors: Any) -> dict[str, Any]:
    return {
        "string_to_token": {"*": 265},
        "string_to_param": vectors,
        "name": "Monet",
        "step": 100,
        "sd_checkpoint": "7460a6fa",
        "sd_checkpoint_name": "sd-v1-4",
    }


def test_pickles_of_other_programs_are_imported(tiny_backbone: Backbone, tmp_path: Path) -> None:
    vectors = torch.randn(VECTORS, WIDTH)
    path = tmp_path / "file.pt"
    for content, name, kind in (
        # A1111 goes by the name of the file, not by the name in it
        (a1111({"*": vectors}), "file", "A1111"),
        (a1111({"*": nn.Parameter(vectors)}), "file", "A1111"),
        (a1111({"*": vectors}) | {"step": np.int64(100)}, "file", "A1111"),
        ([{"<monet>": vectors[:2]}, {"other": vectors[2:]}], "file", "ComfyUI"),
        # textual inversion's own
        (
            {"string_to_token": {"*": torch.tensor(265)}, "string_to_param": nn.ParameterDict({"*": vectors})},
            "file",
            "A1111",
        ),
        ({"<monet>": vectors}, "monet", "diffusers"),
        ({"<monet>": vectors.half()}, "monet", "diffusers"),
        (vectors, "file", "diffusers"),
    ):
        torch.save(content, path)
        found = import_style(tiny_backbone, path)
        torch.testing.assert_close(found.vectors, vectors, rtol=1e-3, atol=1e-3)
        assert (found.name, found.about["imported"]["format"]) == (name, kind)
    torch.save({"<monet>": vectors[0]}, path)
    assert torch.equal(import_style(tiny_backbone, path).vectors, vectors[:1])
    torch.save({"<monet>": vectors}, path, _use_new_zipfile_serialization=False)
    assert torch.equal(import_style(tiny_backbone, path).vectors, vectors)


def test_a_painting_given_at_import_is_kept_in_the_style(tiny_backbone: Backbone, tmp_path: Path) -> None:
    export_style(make_style(tiny_backbone), tmp_path / "sea.safetensors", "a1111")
    Image.new("RGB", (30, 20), "teal").save(tmp_path / "painting.png")
    found = import_style(
        tiny_backbone, tmp_path / "sea.safetensors", painting=read_photo(tmp_path / "painting.png", flattened=True)
    )
    assert found.painting().shape == (3, 20, 30)
    assert found.about["paintings"][0]["name"] == "painting.png"


# The first numbers of A1111's generator, as its own tests quote them.
A1111_NUMBERS = [253, 242, 127, 44, 157, 27, 239, 133, 38, 79, 167, 4, 177, 95, 130, 79, 78, 14, 52, 215, 220, 194, 126]


def hide(text: bytes, height: int) -> Image.Image:
    """A picture with a text in blocks of pixels left and right of it, in A1111's layout."""
    stream = zlib.compress(text, 9)
    width = -(-len(stream) // (3 * height))
    stream = (stream * 4)[: 3 * height * width]  # the rest is filled up with the text's beginning
    numbers, state = [], 0
    for _ in stream:
        state = (state * 1664525 + 1013904223) & 0xFFFFFFFF
        numbers.append(state % 255)
    assert numbers[: len(A1111_NUMBERS)] == A1111_NUMBERS[: len(numbers)]
    decoration = np.random.default_rng(0).integers(1, 16, len(stream), dtype=np.uint8) << 4
    noise = np.array(numbers, np.uint8) & 0x0F
    data = np.frombuffer(stream, np.uint8)
    blocks = [(half ^ noise | decoration).reshape(height, width, 3) for half in (data & 0x0F, data >> 4)]
    picture = np.full((height, 40, 3), 90, np.uint8)
    line = np.zeros((height, 1, 3), np.uint8)
    return Image.fromarray(np.concatenate([blocks[0], line, picture, line, blocks[1]], axis=1))


@pytest.mark.parametrize("ending", ["png", "webp"])
def test_an_embedding_that_a1111_hides_in_the_pixels_is_imported(
    tiny_backbone: Backbone, tmp_path: Path, ending: str
) -> None:
    style = make_style(tiny_backbone)
    text = json.dumps(a1111({"*": {"TORCHTENSOR": style.vectors.tolist()}})).encode()
    path = tmp_path / f"picture.{ending}"
    hide(text, 64).save(path, lossless=True)
    found = import_style(tiny_backbone, path)
    assert torch.equal(found.vectors, style.vectors)
    assert found.name == "Monet"
    framed = Image.new("RGB", (400, 300))
    framed.paste(hide(text, 64), (7, 9))
    framed.save(path, lossless=True)
    assert torch.equal(import_style(tiny_backbone, path).vectors, style.vectors)
    for spoilt in (hide(text, 64).resize((50, 50)), hide(b"{}", 8), hide(b"[", 8), hide(text, 64).rotate(180)):
        spoilt.save(path, lossless=True)
        with pytest.raises(InstError, match=r"holds no embedding|not an embedding|damaged"):
            import_style(tiny_backbone, path)


class Harmful:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("zipped", [True, False])
def test_importing_a_harmful_pickle_runs_no_code(
    tiny_backbone: Backbone, tmp_path: Path, protocol: int, zipped: bool
) -> None:
    path, harmed = tmp_path / "file.pt", tmp_path / "harmed"
    content = {"attention": Harmful(harmed), "string_to_param": {"*": torch.ones(1, WIDTH)}}
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InstError) as caught:
        import_style(tiny_backbone, path)
    assert not harmed.exists()
    message = str(caught.value)
    assert "\n" not in message
    assert "safetensors" in message
    if protocol == 2:
        assert "asks for posix.mkdir" in message or "asks for nt.mkdir" in message
        assert "nothing was run" in message
    torch.load(path, weights_only=False)  # the ordinary reader does run it: the test would notice
    assert harmed.exists()


def test_a_pickle_of_another_class_is_refused_with_the_class_name(tiny_backbone: Backbone, tmp_path: Path) -> None:
    torch.save({"*": nn.Conv2d(1, 1, 1)}, tmp_path / "file.pt")
    with pytest.raises(InstError, match=r"asks for torch\.nn\.modules\.conv\.Conv2d"):
        import_style(tiny_backbone, tmp_path / "file.pt")
    (tmp_path / "file.pt").write_bytes(pickle.dumps({"*": eval}, 2))
    with pytest.raises(InstError, match=r"file\.pt is"):
        import_style(tiny_backbone, tmp_path / "file.pt")


@pytest.mark.parametrize("width", [768, 1024])
def test_an_embedding_of_another_width_is_refused_with_its_model(
    tiny_backbone: Backbone, tmp_path: Path, width: int
) -> None:
    path = tmp_path / "sea.safetensors"
    save_file({"emb_params": torch.zeros(2, width)}, path)
    model = {768: "1.x", 1024: "2.x"}[width]
    with pytest.raises(UsageError) as caught:
        import_style(tiny_backbone, path)
    assert f"an embedding of width {width} (Stable Diffusion {model}), which does not fit" in str(caught.value)
    assert f"of width {WIDTH}:" in str(caught.value)


def test_files_that_hold_no_embedding_are_refused_with_the_reason(tiny_backbone: Backbone, tmp_path: Path) -> None:
    def refuse(path: Path, said: str) -> None:
        with pytest.raises(InstError) as caught:
            import_style(tiny_backbone, path)
        message = str(caught.value)
        assert message.startswith(str(path))
        assert "\n" not in message
        assert said in message

    def saved(content: Any) -> Path:
        torch.save(content, tmp_path / "file.pt")
        return tmp_path / "file.pt"

    refuse(tmp_path / "nowhere.pt", "no such file")
    for table in (
        torch.ones(2, WIDTH).to_sparse(),
        torch.ones(2, WIDTH, device="meta"),
        torch.ones(1, 1).expand(10**9, WIDTH),  # would take 128 GB
    ):
        refuse(saved({"emb_params": table}), "does not hold vectors")
    refuse(saved({"emb_params": torch.full((2, WIDTH), float("nan")).to(torch.float8_e4m3fn)}), "are not finite")
    Image.new("RGB", (64, 64), (16, 32, 48)).save(tmp_path / "grey.png")  # what hides in it is 0 pixels wide
    refuse(tmp_path / "grey.png", "holds no embedding")
    refuse(tmp_path, "is a folder")
    path = make_style(tiny_backbone).save(tmp_path / "style.safetensors")
    refuse(path, "is already an InST style")
    save_file({"a": torch.ones(1), "b": torch.ones(1)}, path)
    refuse(path, "not an embedding in a known format (it holds a, b)")
    path.write_bytes(b"")
    refuse(path, "cannot be read as an embedding")
    path.write_bytes(b"hello, I am a text")
    refuse(path, "cannot be read as an embedding")
    with path.open("wb") as file:
        file.truncate(300_000_000)
    refuse(path, "too large for an embedding")
    for content in (
        {"x": torch.ones(2, 3, 4)},
        {"x": torch.ones(2, 3, dtype=torch.int64)},
        {"x": "y"},
        {"x": torch.ones(0, 3)},
    ):
        refuse(saved(content), "vectors of the shape [n, d]")
    refuse(saved({"x": torch.full((1, WIDTH), float("nan"))}), "not finite")
    refuse(saved({}), "not an embedding in a known format")
    refuse(saved([1, 2]), "not an embedding in a known format")
    refuse(saved(a1111({"*": torch.ones(1, WIDTH), "+": torch.ones(1, WIDTH)})), "exactly one embedding")
    refuse(saved(a1111([])), "exactly one embedding")
    refuse(saved({"clip_l": torch.ones(2, 3), "clip_g": torch.ones(1, 3)}), "2 and 1 vectors")
    refuse(saved({"attention": torch.ones(1)}), "not an embeddings.pt of the reference code")
    whole = saved(a1111({"*": torch.ones(9, WIDTH)})).read_bytes()
    for length in (5, 100, len(whole) // 2, len(whole) - 30):
        (tmp_path / "file.pt").write_bytes(whole[:length])
        refuse(tmp_path / "file.pt", "cannot be read as a pickle of weights")

    picture = tmp_path / "picture.png"
    Image.new("RGB", (9, 9)).save(picture)
    refuse(picture, "holds no embedding, neither in a text chunk (sd-ti-embedding) nor in its pixels")
    for text in (
        "no base64!",
        base64.b64encode(b"[").decode(),
        base64.b64encode(b'{"x": {"TORCHTENSOR": [[1], [1, 2]]}}').decode(),
    ):
        save_png(torch.zeros(3, 9, 9), picture, texts={"sd-ti-embedding": text})
        refuse(picture, "the embedding is damaged")


# The command line


def test_a_style_without_a_word_cannot_be_exported(tiny_backbone: Backbone, tmp_path: Path) -> None:
    wordless = Style(torch.zeros(0, WIDTH), tiny_backbone.fingerprint, about={"name": "waves"})
    with pytest.raises(UsageError, match='"waves" has no pseudo-word to export: learn it with'):
        export_style(wordless, tmp_path / "waves.safetensors", "comfyui")
    assert not (tmp_path / "waves.safetensors").exists()


def test_no_painting_leaves_the_picture_out_of_learned_and_imported_styles(
    run: Run, tiny_backbone: Backbone, tiny_backbone_folder: Path
) -> None:
    Image.new("RGB", (70, 64), "teal").save("painting.png")
    given = ["--backbone", tiny_backbone_folder, "--device", "cpu"]
    export_style(make_style(tiny_backbone), "sea.safetensors", "a1111")
    learning = ["learn", "painting.png", "--steps", "1", "--crops", "1"]
    for command in (learning, ["style", "import", "sea.safetensors", "--painting", "painting.png"]):
        for option, kept in (("--no-painting", 0), ("--quiet", 1)):
            code, _, err = run(*command, option, "-o", "made.safetensors", *given)
            assert code == 0, err
            style = Style.load("made.safetensors")
            assert len(style.paintings) == kept
            assert style.about["paintings"][0]["name"] == "painting.png"  # which painting it was is always said


def test_the_export_and_import_commands_give_back_the_same_vectors(
    run: Run, tiny_backbone: Backbone, tiny_backbone_folder: Path
) -> None:
    style = make_style(tiny_backbone)
    style.save("mine.safetensors")
    for to, word in (("diffusers", "<waves>"), ("a1111", "out"), ("comfyui", "embedding:out"), ("a1111-png", "out")):
        out = f"out{FORMATS[to]}"
        code, said, err = run("style", "export", "mine.safetensors", "--to", to, "-o", out)
        assert (code, said, err) == (0, f"{out}\nIn the prompt, write: {word}\n", "")
        code, said, err = run("style", "import", out, "--backbone", tiny_backbone_folder, "-o", "back.safetensors")
        assert (code, err) == (0, "")
        assert said.splitlines()[0] == "back.safetensors"
        assert torch.equal(Style.load("back.safetensors").vectors, style.vectors)


def test_the_import_command_takes_a_second_file(run: Run, tmp_path: Path) -> None:
    model = save_family(tmp_path / "xl", "sdxl")
    save_file({"<waves>": torch.ones(2, WIDTH)}, "learned_embeds.safetensors")
    save_file({"<waves>": torch.ones(2, WIDTH_2)}, "learned_embeds_2.safetensors")
    command = ["style", "import", "learned_embeds.safetensors", "--backbone", model, "--device", "cpu"]
    code, said, err = run(*command, "--second", "learned_embeds_2.safetensors", "-o", "waves.safetensors")
    assert (code, err) == (0, "")
    assert said == f"waves.safetensors\n2 vectors of width {WIDTH} + {WIDTH_2}\n"
    code, _, err = run(*command)
    assert code == 2
    assert "give the file for the other text encoder as --second" in err


def test_without_a_given_name_the_commands_choose_a_free_one(
    run: Run, tiny_backbone: Backbone, tiny_backbone_folder: Path
) -> None:
    make_style(tiny_backbone).save("mine.safetensors")
    for name in ("waves", "waves-2"):
        code, said, _ = run("style", "export", "mine.safetensors", "--to", "comfyui", "--json")
        assert code == 0
        expected = {"file": f"outputs/{name}.safetensors", "to": "comfyui", "prompt": f"embedding:{name}"}
        assert json.loads(said) == expected
    code, said, _ = run("style", "import", "outputs/waves.safetensors", "--backbone", tiny_backbone_folder, "--json")
    answer = json.loads(said)
    assert (code, answer["style"]) == (0, "outputs/waves-3.safetensors")
    assert (answer["vectors"], answer["widths"]) == (VECTORS, [WIDTH])
    _, said, _ = run("style", "info", answer["style"])
    assert "imported" in said


def test_wrong_use_of_export_and_import_is_reported_in_one_line(
    run: Run, tiny_backbone: Backbone, tiny_backbone_folder: Path
) -> None:
    path = make_style(tiny_backbone).save("mine.safetensors")
    before = path.read_bytes()
    save_file({"emb_params": torch.zeros(2, 1024)}, "other.safetensors")
    for arguments, code in (
        (["export", path, "--to", "lora"], 2),
        (["export", path, "--to", "diffusers", "-o", path], 2),
        (["export", path, "--to", "diffusers", "--token", "[C]"], 2),
        (["export", path, "--to", "a1111-png", "-o", "x.safetensors"], 2),
        (["export", path, "--to", "a1111", "-o", "nowhere/x.safetensors"], 1),
        (["export", "other.safetensors", "--to", "a1111"], 1),
        (["import", path, "--backbone", tiny_backbone_folder], 2),
        (["import", "other.safetensors", "--backbone", tiny_backbone_folder], 2),
        (["import", "other.safetensors", "--backbone", tiny_backbone_folder, "--as-reference"], 2),
        (["import", "other.safetensors", "--backbone", tiny_backbone_folder, "-o", "other.safetensors"], 2),
        (["import", "other.safetensors", "--backbone", tiny_backbone_folder, "--no-painting"], 2),
        (["import", "nowhere.pt", "--backbone", tiny_backbone_folder], 1),
    ):
        found, said, err = run("style", *arguments)
        assert (found, said) == (code, ""), (arguments, err)
        assert err.startswith("Error: ")
        assert err.count("\n") == 1
    assert path.read_bytes() == before
    assert not Path("outputs").exists() or not list(Path("outputs").iterdir())
