"""Models whose files ask for anything: each is refused in one line, before much is read or built."""

import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bounded import bounded_memory  # noqa: F401  # a fixture for all tests here
from inst import Backbone, InstError
from inst.backbone.libraries import CLIPTextModel, UNet2DConditionModel
from inst.backbone.loading.configuration import check_config, without_code
from inst.backbone.loading.image_encoder import read_clip
from inst.backbone.loading.part import build_model
from tiny import edit_json

UNET, VAE, TEXT, EYES = "unet/config.json", "vae/config.json", "text_encoder/config.json", "image_encoder/config.json"
TOKENS, SCHEDULE = "tokenizer/tokenizer_config.json", "scheduler/scheduler_config.json"


def refusal(folder: Path) -> str:
    with pytest.raises(InstError) as caught:
        Backbone.load(folder, "cpu")
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 1500
    return message


@pytest.mark.parametrize(
    ("file", "key", "value", "said"),
    [
        (UNET, "layers_per_block", 10**7, "a number from 1 to"),
        (UNET, "layers_per_block", 10**6, "more layers than there are weights"),
        (UNET, "layers_per_block", [1, 10**6], "more layers than there are weights"),
        (UNET, "transformer_layers_per_block", [[10**6], 1], "more layers than there are weights"),
        (UNET, "reverse_transformer_layers_per_block", 10**6, "more layers than there are weights"),
        (UNET, "block_out_channels", [8] * 10**5, "more layers than there are weights"),
        (UNET, "block_out_channels", [8, 10**9], "a number from 1 to"),
        (UNET, "block_out_channels", [8, -8], "block_out_channels -8, not a number"),
        (UNET, "block_out_channels", [8, "16"], "block_out_channels 16, not a number"),
        (UNET, "in_channels", True, "in_channels True, not a number"),
        (UNET, "norm_eps", -1.0, "norm_eps -1.0"),
        (UNET, "act_fn", True, "act_fn True, not a text"),
        (UNET, "sample_size", 10**9, "sample_size 1000000000, not a number from 0 to 4,096"),
        (UNET, "quantization_config", {"quant_method": "bitsandbytes"}, "for quantised weights"),
        (VAE, "scaling_factor", True, "scaling_factor True"),
        (VAE, "scaling_factor", 1e-300, "scaling_factor 1e-300"),
        (VAE, "latent_channels", 10**12, "not a number from"),
        (TEXT, "num_hidden_layers", -5, "num_hidden_layers -5, not a number from 1"),
        (TEXT, "num_hidden_layers", 0, "num_hidden_layers 0, not a number from 1"),
        (TEXT, "num_hidden_layers", 10**5, "more layers than there are weights"),
        (TEXT, "max_position_embeddings", 10**9, "max_position_embeddings 1000000000, not a number"),
        (TEXT, "layer_norm_eps", "small", "layer_norm_eps small, not a number"),
        (TEXT, "hidden_size", {"a": 1}, "not valid for"),
        (TEXT, "hidden_act", "x" * 10**6, "not valid for"),
        (TEXT, "_attn_implementation", "someone/kernel", "asks for code from another place"),
        (EYES, "image_size", 10**6, "image_size 1000000, not a number from 0 to 4,096"),
        (SCHEDULE, "num_train_timesteps", 10**9, "num_train_timesteps is 1000000000"),
        (SCHEDULE, "num_train_timesteps", True, "num_train_timesteps is True"),
        (SCHEDULE, "num_train_timesteps", "1000", "num_train_timesteps is 1000"),
        (SCHEDULE, "beta_end", "x" * 10**6, "beta_end is xxx"),
        (SCHEDULE, "prediction_type", ["x"] * 10**5, "prediction type"),
        (SCHEDULE, "_class_name", "x" * 10**6, ""),
        (SCHEDULE, "_class_name", "utils", ""),
        (SCHEDULE, "trained_betas", [0.1] * 10**5, "100000 trained_betas for 1000 timesteps"),
        (TOKENS, "model_max_length", True, "model_max_length True"),
        (TOKENS, "tokenizer_class", "x" * 10**6, "describes xxx"),
        ("model_index.json", "_class_name", ["x"] * 10**5, ""),
        ("model_index.json", "unet", ["../../outside", "UNet2DConditionModel"], ""),
        ("model_index.json", "../../outside", ["diffusers", "UNet2DConditionModel"], ""),
    ],
)
@pytest.mark.filterwarnings("ignore::inst.InstWarning")
def test_values_that_no_model_has_are_refused(tiny_copy: Path, file: str, key: str, value: Any, said: str) -> None:
    edit_json(tiny_copy / file, **{key: value})
    if said:
        assert said in refusal(tiny_copy)
    else:  # the value is not used
        Backbone.load(tiny_copy, "cpu")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-1e400", "1e999"])
@pytest.mark.parametrize("file", [UNET, TEXT, SCHEDULE, "image_encoder/config.json"])
def test_numbers_that_are_not_finite_are_refused(tiny_copy: Path, file: str, number: str) -> None:
    path = tiny_copy / file
    path.write_text(path.read_text().rstrip().removesuffix("}") + f', "more": {number}}}')
    assert "is not finite" in refusal(tiny_copy)


def test_a_configuration_names_no_code_to_load() -> None:
    config = {
        "hidden_size": 32,
        "_attn_implementation": "flash_attention_9",
        "attn_implementation": "x",
        "auto_map": {},
    }
    assert without_code(config) == {"hidden_size": 32}
    for key in ("_attn_implementation", "attn_implementation", "_attn_implementation_internal"):
        with pytest.raises(InstError, match="asks for code"):
            check_config({key: "someone/kernel"}, CLIPTextModel, "config.json", 1)


_entries = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(10**30),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_any_configuration_is_refused_in_one_line(data: st.DataObject) -> None:
    good = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "vocab_size": 10,
        "max_position_embeddings": 7,
        "layer_norm_eps": 1e-5,
        "hidden_act": "gelu",
        "projection_dim": 32,
    }
    key = data.draw(st.sampled_from([*good, "attention_dropout", "model_type", "dtype", "eos_token_id"]))
    with pytest.raises(InstError) as caught:
        build_model(CLIPTextModel, good | {key: data.draw(_entries)}, {"a": torch.ones(1)}, torch.float32, "The model")
    assert "\n" not in str(caught.value)
    unet = {"block_out_channels": [8, 8], "layers_per_block": 1, "norm_num_groups": 4, "cross_attention_dim": 8}
    unet |= {
        "down_block_types": ["DownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "UpBlock2D"],
        "mid_block_type": None,
        "attention_head_dim": 4,
    }
    key = data.draw(st.sampled_from([*unet, "time_embedding_type", "class_embed_type", "conv_in_kernel", "freq_shift"]))
    with pytest.raises(InstError) as caught:
        build_model(UNet2DConditionModel, unet | {key: data.draw(_entries)}, {}, torch.float32, "The model")
    assert "\n" not in str(caught.value)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def zero(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def large(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**40)


def deep(path: Path) -> None:
    path.write_bytes(b'{"a":' * 100_000)


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX")
@pytest.mark.parametrize("change", [pipe, zero, loop, folder, large, deep])
@pytest.mark.parametrize(
    "file",
    [
        *("model_index.json", UNET, SCHEDULE, TOKENS, "tokenizer/tokenizer.json"),
        *("unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"),
        "feature_extractor/preprocessor_config.json",
    ],
)
def test_what_is_no_file_of_a_model_is_refused_without_a_wait(
    tiny_copy: Path, file: str, change: Callable[[Path], None]
) -> None:
    change(tiny_copy / file)
    refusal(tiny_copy)


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX")
def test_what_is_no_model_is_refused_without_a_wait(tmp_path: Path) -> None:
    for name in ("a.safetensors", "a.ckpt", "a.pt", "a"):
        os.mkfifo(tmp_path / name)
        assert "is not" in refusal(tmp_path / name)
    for name in ("b.safetensors", "b.ckpt"):
        (tmp_path / name).symlink_to("/dev/zero")
        assert "is not a regular file" in refusal(tmp_path / name)
    (tmp_path / "c.safetensors").symlink_to(tmp_path / "c.safetensors")
    refusal(tmp_path / "c.safetensors")
    refusal(Path("/dev/zero"))
    refusal(tmp_path / "\0")


def safetensors(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "content",
    [
        safetensors({}, length=2**63),
        safetensors({}, length=2**40),
        safetensors({}, bytes(1000), length=900),
        safetensors({"a": tensor([10**12], 0, 4 * 10**12)}),
        safetensors({"a": tensor([10**12, 10**12], 0, 8)}, bytes(8)),
        safetensors({"a": tensor([2], 0, 8), "b": tensor([2], 4, 12)}, bytes(12)),
        safetensors({"a": tensor([2], 8, 0)}, bytes(8)),
        safetensors({"a": tensor([-2], 0, 8)}, bytes(8)),
        safetensors(b'{"a":' * 100_000),
        safetensors({"__metadata__": {"a": {"b": 1}}}),
        safetensors({"a": tensor([2], 0, 1, "F4")}, bytes(1)),
        safetensors({"a": tensor([2], 0, 16, "C64")}, bytes(16)),
        safetensors({str(n): tensor([0], 0, 0) for n in range(350_000)}),
    ],
    ids=lambda content: f"{len(content)}-{zlib.crc32(content):x}",
)
@pytest.mark.parametrize("file", ["unet/diffusion_pytorch_model.safetensors", "model.safetensors"])
def test_headers_that_lie_are_refused(tiny_copy: Path, file: str, content: bytes) -> None:
    (tiny_copy / file).write_bytes(content)
    refusal(tiny_copy if "/" in file else tiny_copy / file)


def test_an_added_token_too_many_is_no_endless_work(tiny_copy: Path) -> None:
    tokens = {f"token{number}": number for number in range(400_000)}
    (tiny_copy / "tokenizer" / "added_tokens.json").write_text(json.dumps(tokens))
    path = tiny_copy / "tokenizer" / "tokenizer_config.json"
    path.write_text(
        json.dumps({key: value for key, value in json.loads(path.read_text()).items() if "added" not in key})
    )
    refusal(tiny_copy)


def test_a_whole_clip_model_is_checked_too(tmp_path: Path, tiny_backbone_folder: Path) -> None:
    clip = Path(shutil.copytree(tiny_backbone_folder / "image_encoder", tmp_path / "clip"))
    text = {"num_hidden_layers": 10**7}
    (clip / "config.json").write_text(json.dumps({"model_type": "clip", "text_config": text}))
    with pytest.raises(InstError, match="num_hidden_layers 10000000, not a number"):
        read_clip(clip)
    for wrong in ({"text_config": 5}, {"vision_config": "x"}, {"projection_dim": []}, {"logit_scale_init_value": "x"}):
        (clip / "config.json").write_text(json.dumps({"model_type": "clip", **wrong}))
        with pytest.raises(InstError) as caught:
            read_clip(clip)
        assert "\n" not in str(caught.value)
    if os.name == "posix":
        pipe(clip / "config.json")
        with pytest.raises(InstError):
            read_clip(clip)


@given(st.data())
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_broken_bytes_give_one_line_or_a_model(tiny_backbone_folder: Path, tmp_path: Path, data: st.DataObject) -> None:
    copy = tmp_path / "broken"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(tiny_backbone_folder, copy)
    file = data.draw(
        st.sampled_from([UNET, TEXT, EYES, TOKENS, SCHEDULE, "tokenizer/tokenizer.json", "model_index.json"])
    )
    content = bytearray((copy / file).read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    match data.draw(st.sampled_from(["flip", "cut", "insert", "repeat"])):
        case "flip":
            content[place] ^= 1 << data.draw(st.integers(0, 7))
        case "cut":
            del content[place:]
        case "insert":
            content[place:place] = data.draw(
                st.binary(min_size=1, max_size=8) | st.sampled_from([b"9" * 9, b"-", b"e9"])
            )
        case _:
            content[place:place] = content[place : place + 50]
    (copy / file).write_bytes(content)
    message = ""
    try:
        Backbone.load(copy, "cpu")
    except InstError as error:
        message = str(error)
    assert "\n" not in message
