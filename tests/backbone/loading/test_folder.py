"""Loading: layouts that must give the same model, and folders that must be refused in one clear line."""

import hashlib
import json
import shutil
import struct
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from inst import Backbone, InstError, InstWarning, UsageError
from inst.backbone.fingerprints import denoiser_fingerprint_of, fingerprint_of
from inst.backbone.inversion import AttentionInversion, InversionConfig
from inst.backbone.loading.part import load_weights
from original_layout import to_original, write_safetensors
from tiny import FAMILIES, WIDTH, edit_json, save_family, write_tiny_backbone

WEIGHTS = {
    "vae": "diffusion_pytorch_model.safetensors",
    "unet": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
    "image_encoder": "model.safetensors",
    "inversion": "model.safetensors",
}


def refuse(folder: Path | str, *, naming: str) -> str:
    with pytest.raises(InstError) as caught:
        Backbone.load(folder, "cpu")
    message = str(caught.value)
    assert "\n" not in message
    assert naming in message
    return message


def same_model(one: Backbone, other: Backbone) -> bool:
    prompts = ["a painting of a dog", "xyz"]
    picture = torch.linspace(-1, 1, 3 * 64 * 64).view(1, 3, 64, 64)
    return (
        one.fingerprint == other.fingerprint
        and torch.equal(one.embed_text(prompts).tokens, other.embed_text(prompts).tokens)
        and torch.equal(one.encode(picture), other.encode(picture))
        and all(map(torch.equal, one.embed_picture(picture), other.embed_picture(picture)))
    )


# Layouts


def test_everything_is_loaded_in_float32(tiny_backbone: Backbone) -> None:
    assert (tiny_backbone.device, tiny_backbone.dtype) == (torch.device("cpu"), torch.float32)
    for name in WEIGHTS:
        assert {weight.dtype for weight in getattr(tiny_backbone, name).parameters()} == {torch.float32}
    assert (tiny_backbone.latent_channels, tiny_backbone.downscale) == (4, 8)
    assert isinstance(tiny_backbone.text_encoder, CLIPTextModelWithProjection)


def test_the_weights_are_those_of_the_files(tiny_backbone: Backbone, tiny_backbone_folder: Path) -> None:
    for name, file in WEIGHTS.items():
        loaded = getattr(tiny_backbone, name).state_dict()
        for key, tensor in load_file(tiny_backbone_folder / name / file).items():
            torch.testing.assert_close(loaded[key], tensor.float(), rtol=0, atol=0)


def test_float16_keeps_the_autoencoder_and_the_inversion_in_float32(tiny_backbone_folder: Path) -> None:
    backbone = Backbone.load(tiny_backbone_folder, "cpu", torch.float16)
    assert backbone.unet.dtype == backbone.text_encoder.dtype == backbone.image_encoder.dtype == torch.float16
    assert backbone.vae.dtype == torch.float32
    assert {weight.dtype for weight in backbone.inversion.parameters()} == {torch.float32}


def test_sharded_weights_load_the_same_model_and_a_missing_shard_is_named(
    tiny_backbone: Backbone, tiny_copy: Path
) -> None:
    for name in ("unet", "text_encoder"):
        part = type(getattr(tiny_backbone, name)).from_pretrained(tiny_copy / name)
        (tiny_copy / name / WEIGHTS[name]).unlink()
        part.save_pretrained(tiny_copy / name, max_shard_size="40KB")
        assert len(list((tiny_copy / name).glob("*-of-*.safetensors"))) > 1
    assert same_model(Backbone.load(tiny_copy, "cpu", "float32"), tiny_backbone)

    shard = sorted((tiny_copy / "unet").glob("*-of-*.safetensors"))[1]
    shard.unlink()
    refuse(tiny_copy, naming=shard.name)


@pytest.mark.parametrize("variant", ["fp16", "bf16", "non_ema", "ema-only", "v2"])
def test_weights_of_any_variant_load_as_in_diffusers(
    tiny_backbone: Backbone, tiny_copy: Path, variant: str, recwarn: pytest.WarningsRecorder
) -> None:
    for name in ("vae", "unet", "text_encoder", "image_encoder"):
        path = tiny_copy / name / WEIGHTS[name]
        path.rename(path.with_suffix(f".{variant}.safetensors"))
    expected = UNet2DConditionModel.from_pretrained(tiny_copy / "unet", variant=variant).state_dict()
    found = Backbone.load(tiny_copy, "cpu", "float32")
    assert same_model(found, tiny_backbone)
    assert all(torch.equal(tensor, expected[key]) for key, tensor in found.unet.state_dict().items())
    assert not recwarn.list


@pytest.mark.parametrize("shard", ["{stem}.fp16-{count}.safetensors", "{stem}-{count}.fp16.safetensors"])
def test_sharded_weights_of_a_variant_load_the_same_model(tiny_backbone: Backbone, tiny_copy: Path, shard: str) -> None:
    """In the form that diffusers and transformers write, and in the older one, as in stable-diffusion-x4-upscaler."""
    for name in ("unet", "text_encoder"):
        folder, stem = tiny_copy / name, WEIGHTS[name].partition(".")[0]
        part = type(getattr(tiny_backbone, name)).from_pretrained(folder)
        (folder / WEIGHTS[name]).unlink()
        part.save_pretrained(folder, max_shard_size="40KB")
        index = folder / f"{stem}.safetensors.index.json"
        content = index.read_text()
        for path in folder.glob("*-of-*.safetensors"):
            new = shard.format(stem=stem, count=path.stem.removeprefix(f"{stem}-"))
            content = content.replace(path.name, new)
            path.rename(folder / new)
        index.unlink()
        (folder / f"{stem}.safetensors.index.fp16.json").write_text(content)
    assert same_model(Backbone.load(tiny_copy, "cpu", "float32"), tiny_backbone)


def test_of_several_variants_the_finest_averaged_weights_are_used(tiny_backbone: Backbone, tiny_copy: Path) -> None:
    path = tiny_copy / "unet" / WEIGHTS["unet"]
    weights = load_file(path)
    expected = tiny_backbone.denoiser_fingerprint

    def write(variant: str, factor: float) -> Path:
        file = path.with_suffix(f".{variant}.safetensors")
        save_file({key: tensor * factor for key, tensor in weights.items()}, file)
        return file

    write("non_ema", 2)
    write("bf16", 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Backbone.load(tiny_copy, "cpu").denoiser_fingerprint == expected  # the set without a variant
    path.rename(path.with_suffix(".fp16.safetensors"))
    with pytest.warns(InstWarning, match=r"unet has weights in the variants fp16, bf16, non_ema, and fp16 is used"):
        assert Backbone.load(tiny_copy, "cpu").denoiser_fingerprint == expected
    path.with_suffix(".fp16.safetensors").rename(path.with_suffix(".a.safetensors"))
    path.with_suffix(".bf16.safetensors").unlink()
    with pytest.warns(InstWarning, match=r"variants a, non_ema, and a is used"):
        assert Backbone.load(tiny_copy, "cpu").denoiser_fingerprint == expected


def test_an_index_of_pickles_is_refused(tiny_copy: Path) -> None:
    path = tiny_copy / "text_encoder" / WEIGHTS["text_encoder"]
    path.unlink()
    (path.parent / "pytorch_model.bin.index.json").write_text("{}")
    (path.parent / "pytorch_model-00001-of-00002.bin").write_bytes(b"pickle")
    refuse(tiny_copy, naming="only as a pickle (pytorch_model-00001-of-00002.bin)")


def test_a_tokenizer_in_the_older_layout_loads_the_same_model(tiny_backbone: Backbone, tiny_copy: Path) -> None:
    path = tiny_copy / "tokenizer" / "tokenizer.json"
    model = json.loads(path.read_text())["model"]
    (path.parent / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (path.parent / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    path.unlink()
    assert same_model(Backbone.load(tiny_copy, "cpu", "float32"), tiny_backbone)


def test_a_tokenizer_without_a_length_takes_the_length_of_the_text_encoder(tiny_copy: Path) -> None:
    edit_json(tiny_copy / "tokenizer" / "tokenizer_config.json", model_max_length=None)
    assert Backbone.load(tiny_copy, "cpu").tokenizer.model_max_length == 24


def test_older_text_encoder_keys_and_configuration_load_the_same_model(
    tiny_backbone: Backbone, tiny_copy: Path
) -> None:
    """Stable Diffusion 1.x: everything below text_model, a stored position_ids, and an end token of 2."""
    path = tiny_copy / "text_encoder" / "model.safetensors"
    weights = load_file(path)
    assert all(key.startswith("text_model.") or key == "text_projection.weight" for key in weights)
    del weights["text_projection.weight"]
    weights["text_model.embeddings.position_ids"] = torch.arange(24)[None]
    save_file(weights, path)
    edit_json(tiny_copy / "text_encoder" / "config.json", eos_token_id=2, bos_token_id=0, pad_token_id=1)
    backbone = Backbone.load(tiny_copy, "cpu", "float32")
    assert backbone.fingerprint == tiny_backbone.fingerprint
    torch.testing.assert_close(backbone.embed_text(["a dog"]).tokens, tiny_backbone.embed_text(["a dog"]).tokens)


def test_loading_leaves_log_level_and_progress_bars_of_diffusers_as_they_were(tiny_backbone_folder: Path) -> None:
    from diffusers.utils import logging

    logging.set_verbosity_info()
    try:
        Backbone.load(tiny_backbone_folder, "cpu")
        assert logging.get_verbosity() == logging.INFO
        assert logging.is_progress_bar_enabled()
    finally:
        logging.set_verbosity_warning()


def test_loading_prints_nothing(tiny_backbone_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Backbone.load(tiny_backbone_folder, "cpu")
    assert capfd.readouterr() == ("", "")


# The fingerprint


def test_the_fingerprint_does_not_depend_on_precision(tiny_backbone: Backbone, tiny_copy: Path) -> None:
    path = tiny_copy / "text_encoder" / "model.safetensors"
    weights = load_file(path)
    save_file({key: tensor.float() for key, tensor in weights.items()}, path)
    for dtype in ("float32", "bfloat16", "float16"):
        assert Backbone.load(tiny_copy, "cpu", dtype).fingerprint == tiny_backbone.fingerprint

    key = "text_model.embeddings.token_embedding.weight"
    weights[key][5, 7] += 0.01
    save_file(weights, path)
    assert Backbone.load(tiny_copy, "cpu").fingerprint != tiny_backbone.fingerprint


def test_the_fingerprint_of_a_given_table_never_changes() -> None:
    """Style files carry it: a change would orphan every one of them."""
    table = torch.arange(12, dtype=torch.float32).view(3, 4) / 7
    assert fingerprint_of(table) == fingerprint_of(table.half()) == fingerprint_of(table.t().contiguous().t())
    assert fingerprint_of(table) != fingerprint_of(table.view(4, 3))
    expected = hashlib.sha256(b"3x4" + struct.pack("<12e", *(i / 7 for i in range(12)))).hexdigest()[:16]
    assert fingerprint_of(table) == expected == "a34cff1c7cefd6a3"


def test_the_denoisers_fingerprint_does_not_depend_on_precision_or_files(
    tiny_backbone: Backbone, tiny_copy: Path
) -> None:
    fingerprint = tiny_backbone.denoiser_fingerprint
    path = tiny_copy / "unet" / WEIGHTS["unet"]
    weights = load_file(path)
    full = {key: tensor.float() for key, tensor in reversed(weights.items())}
    save_file(full | {"steps_trained": torch.tensor(7)}, path)
    for dtype in ("float32", "bfloat16", "float16"):
        assert Backbone.load(tiny_copy, "cpu", dtype).denoiser_fingerprint == fingerprint
    unet = UNet2DConditionModel.from_pretrained(tiny_copy / "unet")
    path.unlink()
    unet.save_pretrained(tiny_copy / "unet", max_shard_size="40KB")
    assert len(list((tiny_copy / "unet").glob("*-of-*.safetensors"))) > 1
    assert Backbone.load(tiny_copy, "cpu").denoiser_fingerprint == fingerprint


def test_another_denoiser_has_another_fingerprint(tiny_backbone: Backbone, tiny_copy: Path) -> None:
    """Whichever layer was tuned: also a single one, as when the rows of a low-rank update are added to it."""
    path = tiny_copy / "unet" / WEIGHTS["unet"]
    weights = load_file(path)
    for key in ("conv_in.weight", next(key for key in weights if key.endswith("attn2.to_k.weight")), "conv_out.bias"):
        save_file(weights | {key: weights[key] * 1.01 + 0.001}, path)
        tuned = Backbone.load(tiny_copy, "cpu")
        assert tuned.denoiser_fingerprint != tiny_backbone.denoiser_fingerprint
        assert tuned.fingerprint == tiny_backbone.fingerprint


def test_the_denoiser_fingerprint_of_given_weights_never_changes() -> None:
    """Files in the world hold it: worked out by hand here."""
    rows = {"b": torch.tensor([[1.0, -2.0]]), "a": torch.tensor([0.1])}
    expected = hashlib.sha256(b"a\0" + struct.pack("<e", 0.1) + b"b\0" + struct.pack("<2e", 1, -2)).hexdigest()[:16]
    assert denoiser_fingerprint_of(rows) == expected
    assert denoiser_fingerprint_of(dict(reversed(rows.items()))) == expected
    assert denoiser_fingerprint_of({key: row.half() for key, row in rows.items()}) == expected
    assert denoiser_fingerprint_of({"a": rows["b"], "b": rows["a"]}) != expected


def test_a_backbone_is_named_after_its_folder_however_the_path_is_written(
    tiny_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_copy)
    for name in (tiny_copy, f"{tiny_copy}/", ".", "unet/.."):
        assert Backbone.load(name, "cpu").name == tiny_copy.name


# Where a model can be


def put_into_the_hubs_cache(root: Path, name: str, folder: Path) -> None:
    repository = root / f"models--{name.replace('/', '--')}"
    shutil.copytree(folder, repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")


def test_a_hub_name_loads_from_the_cache_unless_a_folder_of_that_name_exists(
    tiny_backbone: Backbone, tiny_backbone_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    refuse("someone/tiny", naming="someone/tiny is not on this machine")
    put_into_the_hubs_cache(tmp_path / "hub", "someone/tiny", tiny_backbone_folder)
    backbone = Backbone.load("someone/tiny", "cpu", "float32")
    assert same_model(backbone, tiny_backbone)
    assert backbone.name == "someone/tiny"

    (tmp_path / "someone" / "tiny").mkdir(parents=True)  # what is on the disk comes first
    refuse("someone/tiny", naming="is not a model in the diffusers layout")


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_a_single_file_loads_the_same_model_as_its_folder(family: str, tmp_path: Path) -> None:
    folder = save_family(tmp_path / "folder", family)
    file = write_safetensors(tmp_path / "my-model.safetensors", to_original(folder))
    expected, found = Backbone.load(folder, "cpu", "float32"), Backbone.load(file, "cpu", "float32", config=folder)
    assert found.name == "my-model"
    assert (found.fingerprint, found.denoiser_fingerprint) == (expected.fingerprint, expected.denoiser_fingerprint)
    prompts, latents = ["a dog", ""], torch.linspace(-2, 2, 2 * 4 * 8 * 8).view(2, 4, 8, 8)
    text, expected_text = found.embed_text(prompts), expected.embed_text(prompts)
    torch.testing.assert_close(text.tokens, expected_text.tokens, rtol=1e-4, atol=1e-5)
    noise = expected.predict_noise(latents, 500, expected_text)
    torch.testing.assert_close(found.predict_noise(latents, 500, text), noise, rtol=1e-4, atol=1e-4)
    for part in (found.vae, found.unet, *found.text_encoders):
        assert not part.training
        assert not any(weight.requires_grad for weight in part.parameters())


def test_a_configuration_given_for_a_model_folder_is_refused(tiny_backbone_folder: Path) -> None:
    with pytest.raises(UsageError, match="a configuration of its own"):
        Backbone.load(tiny_backbone_folder, "cpu", config=tiny_backbone_folder)


def test_a_given_image_encoder_is_used_and_the_pretrained_inversion_is_dropped(
    tiny_backbone_folder: Path, tmp_path: Path
) -> None:
    """For a model without one; in the place of its own one it takes the pretrained module away, which knew that one."""
    blind = save_family(tmp_path / "blind", "sd1")
    assert Backbone.load(blind, "cpu").image_encoder is None
    picture = torch.linspace(-1, 1, 3 * 64 * 64).view(1, 3, 64, 64)
    expected = Backbone.load(tiny_backbone_folder, "cpu", "float32").embed_picture(picture)
    for folder in (blind, tiny_backbone_folder):
        backbone = Backbone.load(folder, "cpu", "float32", image_encoder=tiny_backbone_folder)
        assert backbone.inversion is None
        assert all(map(torch.equal, backbone.embed_picture(picture), expected))
        assert backbone.image_encoder is not None
        assert not any(weight.requires_grad for weight in backbone.image_encoder.parameters())


def test_a_mistyped_image_encoder_is_refused_before_the_model_is_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere is not an image encoder"):
        Backbone.load(tmp_path, "cpu", image_encoder="nowhere")  # an empty folder: no model either


# What must be refused


def test_an_invalid_sample_size_or_added_input_of_the_unet_is_refused(tmp_path: Path) -> None:
    folder = save_family(tmp_path, "sdxl")
    path = folder / "unet" / "config.json"
    for size in ("x", [8, 8, 8], 8.5):
        edit_json(path, sample_size=size)
        refuse(folder, naming=f"the sample_size {size!r}")
    edit_json(path, sample_size=[8, 16])
    assert Backbone.load(folder, "cpu").native_size == 64
    edit_json(path, addition_time_embed_dim=None)
    refuse(folder, naming="parts that do not fit together, because the UNet's added inputs")


def test_quantised_weights_are_refused(tmp_path: Path) -> None:
    """diffusers and transformers would take the integers for the weights."""
    folder = save_family(tmp_path, "sd1")
    for part, name in (("unet", "diffusion_pytorch_model"), ("text_encoder", "model")):
        path = folder / part / f"{name}.safetensors"
        whole = load_file(path)
        for kind, called in ((torch.int8, "I8"), (torch.uint8, "U8")):
            key = next(key for key in whole if key.endswith(("to_q.weight", "fc1.weight")))
            save_file(whole | {key: whole[key].to(kind)}, path, {"format": "pt"})
            refuse(folder, naming=f"is quantised ({key} is {called})")
        save_file(whole, path, {"format": "pt"})
    Backbone.load(folder, "cpu")


def test_unknown_weights_are_refused_in_unet_and_vae_and_a_warning_in_the_text_encoder(tmp_path: Path) -> None:
    """A layer that would be left out changes what is computed; a head of transformers' does not."""
    folder = save_family(tmp_path, "sd1")
    surplus = {"mid_block.extra.weight": torch.ones(3), "mid_block.extra.bias": torch.ones(3)}
    for part in ("unet", "vae"):
        path = folder / part / WEIGHTS[part]
        whole = load_file(path)
        save_file(whole | surplus, path, {"format": "pt"})
        refuse(folder, naming="does not have (mid_block.extra.bias and 1 more), so it is another model")
        # fp8 with a scale beside each weight, as other programs write it
        key = next(key for key in whole if key.endswith("conv_in.weight"))
        base, lora = key.replace("weight", "base_layer.weight"), key.replace("weight", "lora_A.weight")
        tuned = {base: whole[key], lora: torch.ones(4, 4)}
        save_file({name: whole[name] for name in whole if name != key} | tuned, path, {"format": "pt"})
        refuse(folder, naming=f"does not have ({base} and 1 more)")
        fp8 = {key: whole[key].to(torch.float8_e4m3fn), key.replace("weight", "scale_weight"): torch.tensor(2.0)}
        save_file(whole | fp8, path, {"format": "pt"})
        refuse(folder, naming=f"does not have ({key.replace('weight', 'scale_weight')})")
        save_file(whole | {"steps_trained": torch.tensor(7)}, path, {"format": "pt"})
    path = folder / "text_encoder" / "model.safetensors"
    save_file(load_file(path) | {"classifier.weight": torch.ones(3)}, path, {"format": "pt"})
    with pytest.warns(InstWarning, match=r"text_encoder has weights .* \(classifier\.weight\); they are ignored"):
        Backbone.load(folder, "cpu")


def test_older_attention_keys_of_the_autoencoder_load_the_same_weights(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    """As in the folders of Stable Diffusion 1.4: other names for the same weights, and none left over."""
    folder = save_family(tmp_path, "sd1")
    expected = Backbone.load(folder, "cpu", "float32").decode(torch.ones(1, 4, 8, 8))
    path = folder / "vae" / WEIGHTS["vae"]
    older = {"to_q.": "query.", "to_k.": "key.", "to_v.": "value.", "to_out.0.": "proj_attn."}
    weights = {}
    for key, tensor in load_file(path).items():
        for new, old in older.items():
            key = key.replace(f"attentions.0.{new}", f"attentions.0.{old}")
        weights[key] = tensor
    assert sum("proj_attn" in key for key in weights) == 4
    save_file(weights, path, {"format": "pt"})
    assert torch.equal(Backbone.load(folder, "cpu", "float32").decode(torch.ones(1, 4, 8, 8)), expected)
    assert not recwarn.list


def test_a_missing_image_encoder_is_a_warning_and_the_model_loads_without_it(tiny_copy: Path) -> None:
    shutil.rmtree(tiny_copy / "image_encoder")
    shutil.rmtree(tiny_copy / "inversion")
    with pytest.warns(InstWarning, match=r"has no folder image_encoder, which its model_index\.json names"):
        backbone = Backbone.load(tiny_copy, "cpu")
    assert backbone.image_encoder is None


@pytest.mark.parametrize("part", ["text_encoder", "image_encoder"])
def test_an_adapter_beside_the_weights_is_refused(
    tiny_copy: Path, tmp_path: Path, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With peft installed, transformers would take weights from where an adapter's configuration points to."""
    monkeypatch.setattr("transformers.integrations.peft.is_peft_available", lambda: True)
    elsewhere = shutil.copytree(tiny_copy / part, tmp_path / "elsewhere")
    adapter = tiny_copy / part / "adapter_config.json"
    for target in (str(elsewhere), "someone/model"):
        adapter.write_text(json.dumps({"base_model_name_or_path": target, "peft_type": "LORA"}))
        refuse(tiny_copy, naming=f"{part} contains an adapter in addition to the model (adapter_config.json)")


def without_prefix(key: str) -> str:
    return key.removeprefix("text_model.").removeprefix("vision_model.")


def test_a_name_or_folder_that_does_not_exist_is_refused_and_named(tmp_path: Path) -> None:
    assert "a bundled model (mini)" in refuse("maxi", naming="maxi: no such folder")
    refuse(tmp_path / "nowhere", naming=str(tmp_path / "nowhere"))
    refuse(tmp_path, naming=f"{tmp_path} is not a model")
    refuse("~nosuchuser/model", naming="~nosuchuser/model")
    refuse("models/sd-v1-4.ckpt", naming="models/sd-v1-4.ckpt: no such folder or file")
    refuse("x" * 300, naming="x" * 300)


def every_file(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "zeroed", "swapped"])
def test_any_missing_or_damaged_file_is_refused_and_its_part_named(
    tiny_backbone_folder: Path, tiny_copy: Path, damage: str
) -> None:
    files = every_file(tiny_backbone_folder)
    assert len(files) == 15
    for name in files:
        whole = (tiny_backbone_folder / name).read_bytes()
        broken = tiny_copy / name
        if damage == "missing":
            broken.unlink()
        elif damage == "empty":
            broken.write_bytes(b"")
        elif damage == "cut":
            broken.write_bytes(whole[: len(whole) // 2])
        elif damage == "zeroed":
            broken.write_bytes(bytes(len(whole)))
        else:
            other = "{}" if name.endswith(".json") else "<html>404 Not Found</html>"
            broken.write_text(other)
        refuse(tiny_copy, naming=name.split("/")[0] if "/" in name else name)
        broken.write_bytes(whole)
    Backbone.load(tiny_copy, "cpu")


@pytest.mark.parametrize("part", ["vae", "unet", "text_encoder", "tokenizer", "scheduler", "feature_extractor"])
def test_a_missing_part_of_the_model_is_refused_and_named(tiny_copy: Path, part: str) -> None:
    shutil.rmtree(tiny_copy / part)
    assert str(tiny_copy) in refuse(tiny_copy, naming=part)


@pytest.mark.parametrize("part", list(WEIGHTS))
def test_a_missing_tensor_is_refused_instead_of_initialised(tiny_copy: Path, part: str) -> None:
    path = tiny_copy / part / WEIGHTS[part]
    weights = load_file(path)
    missing = sorted(weights)[len(weights) // 2]
    save_file({key: tensor for key, tensor in weights.items() if key != missing}, path)
    refuse(tiny_copy, naming=part if part == "inversion" else without_prefix(missing))


@pytest.mark.parametrize("part", list(WEIGHTS))
def test_a_tensor_of_another_shape_is_refused_and_named(tiny_copy: Path, part: str) -> None:
    path = tiny_copy / part / WEIGHTS[part]
    weights = load_file(path)
    key = next(key for key in sorted(weights) if weights[key].dim() == 2)
    save_file(weights | {key: weights[key][:-1].clone()}, path)
    refuse(tiny_copy, naming=part if part == "inversion" else without_prefix(key))


def test_a_part_with_pickled_weights_only_is_refused(tiny_copy: Path) -> None:
    path = tiny_copy / "unet" / WEIGHTS["unet"]
    torch.save(load_file(path), path.with_suffix(".bin"))
    path.unlink()
    refuse(tiny_copy, naming="diffusion_pytorch_model.bin")


def unet(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = UNet2DConditionModel.load_config(folder / "unet")
        UNet2DConditionModel.from_config(config, **changes).save_pretrained(folder / "unet")

    return change


def autoencoder(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = AutoencoderKL.load_config(folder / "vae")
        AutoencoderKL.from_config(config, **changes).save_pretrained(folder / "vae")

    return change


def eyes_of_four_colours(folder: Path) -> None:
    config = CLIPVisionConfig.from_pretrained(folder / "image_encoder", num_channels=4)
    CLIPVisionModelWithProjection(config).save_pretrained(folder / "image_encoder")


def tokenizer_of_more_words(folder: Path) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    tokenizer.add_tokens("<new>")
    tokenizer.save_pretrained(folder / "tokenizer")


def inversion_of_another_width(folder: Path) -> None:
    AttentionInversion(InversionConfig(WIDTH, WIDTH, 48, vectors=3, layers=1, heads=4)).save_pretrained(
        folder / "inversion"
    )


def inversion_without_eyes(folder: Path) -> None:
    shutil.rmtree(folder / "image_encoder")
    edit_json(folder / "model_index.json", image_encoder=None)


def scheduler_of_flows(folder: Path) -> None:
    (folder / "scheduler" / "scheduler_config.json").write_text(
        json.dumps({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0})
    )


def scheduler_of_samples(folder: Path) -> None:
    DDIMScheduler(prediction_type="sample").save_pretrained(folder / "scheduler")


def another_autoencoder(folder: Path) -> None:
    edit_json(folder / "vae" / "config.json", _class_name="AutoencoderTiny")


def end_token_of_another_vocabulary(folder: Path) -> None:
    edit_json(folder / "text_encoder" / "config.json", eos_token_id=49407)


def eyes_for_larger_pictures(folder: Path) -> None:
    edit_json(folder / "feature_extractor" / "preprocessor_config.json", crop_size={"height": 96, "width": 96})


def stable_diffusion_xl(folder: Path) -> None:
    edit_json(
        folder / "model_index.json",
        _class_name="StableDiffusionXLPipeline",
        text_encoder_2=["transformers", "CLIPTextModelWithProjection"],
    )


def entry_without_a_class(folder: Path) -> None:
    edit_json(folder / "model_index.json", vae=[])


def json_too_deep(folder: Path) -> None:
    (folder / "unet" / "config.json").write_text("[" * 100_000)


def tokenizer_of_no_length(folder: Path) -> None:
    edit_json(folder / "tokenizer" / "tokenizer_config.json", model_max_length="abc")


def tokenizer_without_room(folder: Path) -> None:
    edit_json(folder / "tokenizer" / "tokenizer_config.json", model_max_length=2)


def schedule_of_two_lengths(folder: Path) -> None:
    edit_json(folder / "scheduler" / "scheduler_config.json", num_train_timesteps=[1, 2])


def schedule_of_no_steps(folder: Path) -> None:
    edit_json(folder / "scheduler" / "scheduler_config.json", num_train_timesteps=0, set_alpha_to_one=True)


def schedule_of_two_betas(folder: Path) -> None:
    edit_json(folder / "scheduler" / "scheduler_config.json", trained_betas=[0.1, 0.2])


def schedule_that_amplifies(folder: Path) -> None:
    edit_json(folder / "scheduler" / "scheduler_config.json", beta_schedule="linear", beta_start=-0.5)


def inversion_of_seven_heads(folder: Path) -> None:
    edit_json(folder / "inversion" / "config.json", heads=7)


def two_colours(folder: Path) -> None:
    edit_json(folder / "feature_extractor" / "preprocessor_config.json", image_mean=[0.5, 0.5])


def colour_that_never_varies(folder: Path) -> None:
    edit_json(folder / "feature_extractor" / "preprocessor_config.json", image_std=[0.5, 0.5, 0])


def latents_of_no_size(folder: Path) -> None:
    edit_json(folder / "vae" / "config.json", scaling_factor=0)


def latents_of_unknown_size(folder: Path) -> None:
    path = folder / "vae" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"scaling_factor": None}))


def latents_with_a_shift(folder: Path) -> None:
    edit_json(folder / "vae" / "config.json", shift_factor=0.1159)


def latents_with_a_mean(folder: Path) -> None:
    edit_json(folder / "vae" / "config.json", latents_mean=[0.1] * 4, latents_std=[2.0] * 4)


def not_even_text(folder: Path) -> None:
    (folder / "unet" / "config.json").write_bytes(b"\xff\xfe\x00")


@pytest.mark.parametrize(
    ("change", "naming"),
    [
        (
            unet(cross_attention_dim=48),
            "the UNet's cross-attention width (48) and the text encoder's width (32) differ",
        ),
        (unet(in_channels=9), "is an in-painting model (its UNet takes 9 channels, not 4)"),
        (unet(in_channels=8), "is a model that edits pictures by instruction (InstructPix2Pix)"),
        (unet(in_channels=7, num_class_embeds=10), "is an upscaler"),
        (unet(in_channels=5), "is a depth-to-image model"),
        (unet(in_channels=6), "the UNet's input channels (6) and the autoencoder's latent channels (4) differ"),
        (unet(class_embed_type="timestep"), "one text encoder (class_embed_type)"),
        (unet(num_class_embeds=10), "(num_class_embeds)"),
        (unet(time_cond_proj_dim=8), "(time_cond_proj_dim)"),
        (unet(encoder_hid_dim=WIDTH), "(encoder_hid_dim_type, encoder_hid_dim)"),
        (unet(dual_cross_attention=True), "(dual_cross_attention)"),
        (unet(class_embeddings_concat=True), "(class_embeddings_concat)"),
        (unet(addition_embed_type="text"), "(addition_embed_type: text)"),
        (unet(addition_embed_type="image", encoder_hid_dim=WIDTH), "addition_embed_type: image"),
        (autoencoder(latent_channels=8), "the autoencoder's latent channels (8) differ"),
        (autoencoder(in_channels=4), "vae/config.json is for pictures of 4 channels, not 3 (in_channels)"),
        (autoencoder(in_channels=6, out_channels=6), "is for pictures of 6 channels, not 3 (in_channels)"),
        (autoencoder(out_channels=4), "is for pictures of 4 channels, not 3 (out_channels)"),
        (eyes_of_four_colours, "image_encoder/config.json is for pictures of 4 channels, not 3 (num_channels)"),
        (tokenizer_of_more_words, "the text encoder knows"),
        (inversion_of_another_width, "the inversion's text width (48)"),
        (inversion_without_eyes, "inversion module but no image encoder"),
        (scheduler_of_flows, "FlowMatchEulerDiscreteScheduler"),
        (scheduler_of_samples, 'the prediction type "sample"'),
        (another_autoencoder, "describes AutoencoderTiny, not the AutoencoderKL"),
        (end_token_of_another_vocabulary, "49407"),
        (eyes_for_larger_pictures, "96 px, but the image encoder takes 64 px"),
        (stable_diffusion_xl, "it has no folder text_encoder_2, tokenizer_2"),
        (not_even_text, "unet/config.json is not a text file in UTF-8"),
        (json_too_deep, "unet/config.json cannot be read"),
        (entry_without_a_class, "only models in the layout of Stable Diffusion 1.x, 2.x and XL"),
        (tokenizer_of_no_length, "model_max_length 'abc'"),
        (tokenizer_without_room, "model_max_length 2"),
        (schedule_of_two_lengths, "has no usable noise schedule"),
        (schedule_of_no_steps, "has no usable noise schedule"),
        (schedule_of_two_betas, "2 trained_betas for 1000 timesteps"),
        (schedule_that_amplifies, "has no usable noise schedule"),
        (inversion_of_seven_heads, "7 heads"),
        (two_colours, "image_mean [0.5, 0.5]"),
        (colour_that_never_varies, "image_std [0.5, 0.5, 0]"),
        (latents_of_no_size, "scaling_factor 0"),
        (latents_of_unknown_size, "scaling_factor None"),
        (latents_with_a_shift, "(shift_factor)"),
        (latents_with_a_mean, "(latents_mean, latents_std)"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused_with_the_reason(
    tiny_copy: Path, change: Callable[[Path], None], naming: str
) -> None:
    change(tiny_copy)
    assert str(tiny_copy) in refuse(tiny_copy, naming=naming)


@pytest.mark.parametrize(
    "weight_map",
    [
        None,
        ["diffusion_pytorch_model.safetensors"],
        {"conv_in.weight": 1},
        {"conv_in.weight": "../vae/diffusion_pytorch_model.safetensors"},
        {"conv_in.weight": "/tmp/model.safetensors"},
        {"conv_in.weight": "diffusion_pytorch_model.bin"},
        {"conv_in.weight": "x" * 300 + ".safetensors"},
        {},
    ],
)
def test_an_invalid_shard_index_is_refused_and_named(tiny_copy: Path, weight_map: object) -> None:
    path = tiny_copy / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": weight_map}))
    refuse(tiny_copy, naming=path.name)


def test_one_part_loads_alone_and_a_wrong_class_is_refused(tiny_copy: Path, capfd: pytest.CaptureFixture[str]) -> None:
    vae = load_weights(AutoencoderKL, tiny_copy / "vae", torch.bfloat16)
    assert vae.dtype == torch.bfloat16
    assert not vae.training
    with pytest.raises(InstError, match="describes AutoencoderKL, not the UNet2DConditionModel"):
        load_weights(UNet2DConditionModel, tiny_copy / "vae", torch.float32)
    assert capfd.readouterr() == ("", "")


def test_the_same_seed_writes_the_same_tiny_model(tiny_backbone_folder: Path, tmp_path: Path) -> None:
    write_tiny_backbone(tmp_path)
    for name, file in WEIGHTS.items():
        assert (tmp_path / name / file).read_bytes() == (tiny_backbone_folder / name / file).read_bytes()
