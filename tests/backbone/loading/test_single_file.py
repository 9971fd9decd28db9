"""Single files in the original layout: the same model as its folder, and what must be refused."""

import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from inst import Backbone, InstError, UsageError
from inst.backbone.fingerprints import denoiser_fingerprint_of, fingerprint_of
from inst.backbone.loading.checkpoint import Checkpoint, read_checkpoint
from inst.backbone.loading.original_layout import convert, find_layout, use_average
from inst.backbone.loading.part import build_model, read_json
from inst.backbone.loading.single_file import CONFIGS, FAMILIES, predicts_v, read_single_file
from inst.backbone.loading.tokenizer import VOCABULARY, clip_tokenizer, read_tokenizer
from inst.backbone.parts import Parts
from original_layout import (
    Tensors,
    original_autoencoder,
    original_clip,
    original_open_clip,
    original_unet,
    to_original,
    write_lightning,
    write_safetensors,
)
from tiny import edit_json, save_family

PROMPTS = ["a painting of a dog", "xyz"]
CLASSES = {
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
    "text_encoder_2": CLIPTextModelWithProjection,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny model of each family, in the diffusers layout, with as many kinds of blocks as the full ones have."""
    heads = {"sd1": 4}
    unets: dict[str, dict[str, Any]] = {
        family: {
            "block_out_channels": [8, 16, 16],
            "layers_per_block": 2,
            "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
            "attention_head_dim": heads.get(family, [2, 4, 4]),
        }
        for family in FAMILIES
    }
    unets["sd2-v"]["sample_size"] = 12
    unets["sdxl"] |= {
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": [1, 2, 3],
    }
    return {family: save_family(tmp_path_factory.mktemp(family), family, **unets[family]) for family in FAMILIES}


@pytest.fixture(scope="module")
def originals(folders: dict[str, Path]) -> dict[str, Tensors]:
    """Their tensors under the original names."""
    return {family: to_original(folder) for family, folder in folders.items()}


def read(path: Path, config: str | Path | None = None) -> Parts:
    return read_single_file(path, torch.float32, torch.float32, config)


def refuse(path: Path, *, naming: str, config: str | Path | None = None) -> str:
    with pytest.raises(InstError) as caught:
        read(path, config)
    message = str(caught.value)
    assert "\n" not in message
    assert naming in message
    return message


def backbone_of(parts: Parts) -> Backbone:
    names = ("vae", "unet", "text_encoder", "tokenizer", "scheduler", "fingerprint", "denoiser_fingerprint")
    given: dict[str, Any] = {name: getattr(parts, name) for name in names}
    return Backbone(**given, device=torch.device("cpu"), dtype=torch.float32)


# The same model


@pytest.mark.parametrize("form", ["safetensors", "ckpt", "legacy"])
@pytest.mark.parametrize("family", ["sd1", "sd2", "sd2-v"])
@torch.inference_mode()
def test_a_single_file_gives_the_same_model_as_its_folder(
    folders: dict[str, Path], originals: dict[str, Tensors], tmp_path: Path, family: str, form: str
) -> None:
    if form == "safetensors":
        path = write_safetensors(tmp_path / "model.safetensors", originals[family])
    else:
        path = write_lightning(tmp_path / "model.ckpt", originals[family], legacy=form == "legacy")
    one, other = backbone_of(read(path, folders[family])), Backbone.load(folders[family], "cpu", "float32")
    assert one.fingerprint == other.fingerprint
    assert one.denoiser_fingerprint == other.denoiser_fingerprint
    assert one.scheduler.config.prediction_type == ("v_prediction" if family == "sd2-v" else "epsilon")
    assert one.tokenizer(PROMPTS[0]).input_ids == other.tokenizer(PROMPTS[0]).input_ids
    for name in ("vae", "unet", "text_encoder"):
        assert not getattr(one, name).training
        expected = getattr(other, name).state_dict()
        found = getattr(one, name).state_dict()
        assert found.keys() == expected.keys()
        assert all(map(torch.equal, found.values(), expected.values()))

    picture = torch.linspace(-1, 1, 3 * 64 * 64).view(1, 3, 64, 64)
    text, expected_text = one.embed_text(PROMPTS[:1]), other.embed_text(PROMPTS[:1])
    torch.testing.assert_close(text.tokens, expected_text.tokens, rtol=0, atol=1e-4)
    latents = one.encode(picture)
    torch.testing.assert_close(latents, other.encode(picture), rtol=0, atol=1e-4)
    noise = one.predict_noise(latents, 500, text)
    torch.testing.assert_close(noise, other.predict_noise(latents, 500, expected_text), rtol=0, atol=1e-4)


@torch.inference_mode()
def test_a_single_file_of_xl_gives_the_same_weights_and_both_text_encoders(
    folders: dict[str, Path], originals: dict[str, Tensors], tmp_path: Path
) -> None:
    folder = folders["sdxl"]
    parts = read(write_safetensors(tmp_path / "xl.safetensors", originals["sdxl"]), folder)
    for name, model_class in CLASSES.items():
        expected = model_class.from_pretrained(folder / name).float().state_dict()
        found = getattr(parts, name).state_dict()
        assert found.keys() == expected.keys()
        assert all(map(torch.equal, found.values(), expected.values()))
    tables = [getattr(parts, name).get_input_embeddings().weight for name in ("text_encoder", "text_encoder_2")]
    assert parts.fingerprint == fingerprint_of(*tables)
    weights = UNet2DConditionModel.from_pretrained(folder / "unet").state_dict()
    assert parts.denoiser_fingerprint == denoiser_fingerprint_of({key: rows[:1] for key, rows in weights.items()})

    reference = CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2").float()
    ids = parts.tokenizer_2(PROMPTS, padding="max_length", return_tensors="pt").input_ids
    found, expected = (model(ids, output_hidden_states=True) for model in (parts.text_encoder_2, reference))
    torch.testing.assert_close(found.text_embeds, expected.text_embeds, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.hidden_states[-2], expected.hidden_states[-2], rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_fingerprints_do_not_depend_on_the_precision_of_file_or_model(
    folders: dict[str, Path], originals: dict[str, Tensors], tmp_path: Path, dtype: torch.dtype
) -> None:
    """Half the precision in the file, any in the model: the fingerprints do not notice."""
    full = {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in originals["sd1"].items()}
    path = write_safetensors(tmp_path / "model.safetensors", full)
    parts = read_single_file(path, dtype, torch.float32, folders["sd1"])
    expected = Backbone.load(folders["sd1"], "cpu", "float32")
    assert (parts.unet.dtype, parts.text_encoder.dtype, parts.vae.dtype) == (dtype, dtype, torch.float32)
    assert parts.fingerprint == expected.fingerprint
    assert parts.denoiser_fingerprint == expected.denoiser_fingerprint


def test_ema_weights_beside_the_ordinary_ones_are_ignored(
    folders: dict[str, Path], originals: dict[str, Tensors], tmp_path: Path
) -> None:
    """As diffusers does, where `model_ema.*` stands beside them."""
    tensors = originals["sd1"]
    average = {
        f"model_ema.{key.removeprefix('model.').replace('.', '')}": torch.zeros_like(tensor)
        for key, tensor in tensors.items()
        if key.startswith("model.diffusion_model.")
    }
    parts = read(write_safetensors(tmp_path / "model.safetensors", tensors | average), folders["sd1"])
    assert parts.denoiser_fingerprint == Backbone.load(folders["sd1"], "cpu").denoiser_fingerprint


def averaged(tensors: Tensors) -> Tensors:
    """The UNet as the training program stores its average (`ldm.modules.ema.LitEma`): without dots, and a counter."""
    average = {
        f"model_ema.{key.removeprefix('model.').replace('.', '')}"
        if key.startswith("model.diffusion_model.")
        else key: tensor
        for key, tensor in tensors.items()
    }
    return average | {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7)}


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_a_file_with_the_average_alone_gives_the_same_model(
    folders: dict[str, Path], originals: dict[str, Tensors], tmp_path: Path, family: str
) -> None:
    parts = read(write_safetensors(tmp_path / "model.safetensors", averaged(originals[family])), folders[family])
    expected = UNet2DConditionModel.from_pretrained(folders[family] / "unet").float().state_dict()
    found = parts.unet.state_dict()
    assert found.keys() == expected.keys()
    assert all(map(torch.equal, found.values(), expected.values()))


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_every_name_of_an_average_in_full_size_is_found_again(family: str) -> None:
    _, tensors = full_size(family)
    found = use_average(Checkpoint(Path("model.ckpt"), averaged(tensors), {})).tensors
    assert {key for key in found if not key.startswith("model_ema.")} == tensors.keys()


def test_text_encoders_under_other_known_keys_load_the_same_weights(
    folders: dict[str, Path], originals: dict[str, Tensors], tmp_path: Path
) -> None:
    """Without "text_model.", as some programs wrote them; and Stable Diffusion 2.x by Stability AI's later code."""
    for family, old, new in (
        ("sd1", "transformer.text_model.", "transformer."),
        ("sd2", "cond_stage_model.model.", "conditioner.embedders.0.model."),
    ):
        renamed = {key.replace(old, new): tensor for key, tensor in originals[family].items()}
        assert renamed.keys() != originals[family].keys()
        path = write_safetensors(tmp_path / f"{family}.safetensors", renamed)
        found = read(path, folders[family]).text_encoder.state_dict()
        expected = Backbone.load(folders[family], "cpu", "float32").text_encoder.state_dict()
        assert found.keys() == expected.keys()
        assert all(map(torch.equal, found.values(), expected.values()))


# The full sizes, without weights


def full_size(family: str) -> tuple[dict[str, Any], Tensors]:
    """The models of a shipped configuration, on no device, and their tensors under the original names."""
    folder = CONFIGS / family
    models = {}
    with torch.device("meta"):
        for name, model_class in CLASSES.items():
            if not (folder / name).is_dir():
                continue
            config = read_json(folder / name / "config.json")
            is_text = name.startswith("text")
            models[name] = model_class(CLIPTextConfig(**config)) if is_text else model_class.from_config(config)
        weights = {name: model.state_dict() for name, model in models.items()}
        tensors = original_unet(weights["unet"], models["unet"].config)
        tensors |= original_autoencoder(weights["vae"], models["vae"].config)
        if family == "sdxl":
            tensors |= original_clip(weights["text_encoder"], "conditioner.embedders.0.transformer.")
            prefix = "conditioner.embedders.1.model."
            tensors |= original_open_clip(weights["text_encoder_2"], prefix, last_layer=False)
        elif family == "sd1":
            tensors |= original_clip(weights["text_encoder"])
        else:
            tensors |= original_open_clip(weights["text_encoder"], "cond_stage_model.model.", last_layer=True)
    return models, tensors


def millions(model: torch.nn.Module) -> float:
    return sum(weight.numel() for weight in model.parameters()) / 1e6


@pytest.mark.parametrize(
    ("family", "sizes"),
    [
        ("sd1", {"unet": 859.5, "vae": 83.7, "text_encoder": 123.1}),
        ("sd2", {"unet": 865.9, "vae": 83.7, "text_encoder": 340.4}),
        ("sd2-v", {"unet": 865.9, "vae": 83.7, "text_encoder": 340.4}),
        ("sdxl", {"unet": 2567.5, "vae": 83.7, "text_encoder": 123.1, "text_encoder_2": 694.7}),
    ],
)
def test_shipped_configurations_have_the_published_sizes_and_convert_completely(
    family: str, sizes: dict[str, float]
) -> None:
    models, tensors = full_size(family)
    assert {name: round(millions(model), 1) for name, model in models.items()} == sizes
    checkpoint = Checkpoint(Path("model.safetensors"), tensors, {})
    layout = find_layout(checkpoint)
    assert layout == family.split("-")[0]
    converted = convert(checkpoint, layout, models["unet"].config, models["vae"].config)
    for name, model in models.items():
        config = read_json(CONFIGS / family / name / "config.json")
        built = build_model(type(model), config, converted[name], torch.float32, "model.safetensors")
        assert {key: tensor.shape for key, tensor in built.state_dict().items()} == {
            key: tensor.shape for key, tensor in model.state_dict().items()
        }
    assert converted["unet"].keys() == models["unet"].state_dict().keys()
    assert converted["vae"].keys() == models["vae"].state_dict().keys()


def test_the_original_tensor_names_and_shapes_are_those_of_sd_v1_4() -> None:
    """Names and shapes as `sd-v1-4.ckpt` has them: 1,131 tensors of the model."""
    _, tensors = full_size("sd1")
    counts = [
        sum(key.startswith(f"{part}.") for key in tensors)
        for part in ("model.diffusion_model", "first_stage_model", "cond_stage_model")
    ]
    assert counts == [686, 248, 197]
    assert len(tensors) == 1131
    unet, vae, text = "model.diffusion_model", "first_stage_model", "cond_stage_model.transformer.text_model"
    for key, shape in {
        f"{unet}.time_embed.0.weight": [1280, 320],
        f"{unet}.input_blocks.0.0.weight": [320, 4, 3, 3],
        f"{unet}.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": [320, 768],
        f"{unet}.input_blocks.3.0.op.weight": [320, 320, 3, 3],
        f"{unet}.input_blocks.4.0.skip_connection.weight": [640, 320, 1, 1],
        f"{unet}.input_blocks.11.0.in_layers.2.weight": [1280, 1280, 3, 3],
        f"{unet}.middle_block.1.proj_in.weight": [1280, 1280, 1, 1],
        f"{unet}.middle_block.2.out_layers.3.bias": [1280],
        f"{unet}.output_blocks.2.1.conv.weight": [1280, 1280, 3, 3],
        f"{unet}.output_blocks.5.2.conv.weight": [1280, 1280, 3, 3],
        f"{unet}.output_blocks.8.2.conv.bias": [640],
        f"{unet}.output_blocks.11.0.skip_connection.weight": [320, 640, 1, 1],
        f"{unet}.output_blocks.11.1.transformer_blocks.0.ff.net.0.proj.weight": [2560, 320],
        f"{unet}.out.2.weight": [4, 320, 3, 3],
        f"{vae}.encoder.down.1.block.0.nin_shortcut.weight": [256, 128, 1, 1],
        f"{vae}.encoder.mid.attn_1.q.weight": [512, 512, 1, 1],
        f"{vae}.encoder.norm_out.weight": [512],
        f"{vae}.decoder.up.3.upsample.conv.weight": [512, 512, 3, 3],
        f"{vae}.decoder.up.0.block.0.conv1.weight": [128, 256, 3, 3],
        f"{vae}.decoder.mid.attn_1.proj_out.weight": [512, 512, 1, 1],
        f"{vae}.quant_conv.weight": [8, 8, 1, 1],
        f"{text}.embeddings.position_ids": [1, 77],
        f"{text}.embeddings.token_embedding.weight": [49408, 768],
        f"{text}.encoder.layers.11.mlp.fc1.weight": [3072, 768],
        f"{text}.final_layer_norm.weight": [768],
    }.items():
        assert list(tensors[key].shape) == shape, key


def test_the_shipped_tokenizer_gives_the_token_ids_of_clip() -> None:
    tokenizer = clip_tokenizer()
    assert len(tokenizer) == VOCABULARY == 49408
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert tokenizer("a", padding="max_length").input_ids == [49406, 320, *[49407] * 75]
    assert clip_tokenizer("!")("a", padding="max_length").input_ids == [49406, 320, 49407, *[0] * 74]
    assert tokenizer.decode(tokenizer("Café, 漢字!").input_ids, skip_special_tokens=True) == "café , 漢字 !"


def test_a_tokenizer_without_a_vocabulary_takes_that_of_clip(tmp_path: Path) -> None:
    text = SimpleNamespace(vocab_size=VOCABULARY, max_position_embeddings=77)
    for padding, number in (("!", 0), ({"content": "!", "special": True}, 0), (None, 49407)):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"pad_token": padding}))
        assert read_tokenizer(tmp_path, text).pad_token_id == number
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"pad_token": "[PAD]"}))
    with pytest.raises(InstError, match=r'pads prompts with "\[PAD\]"'):
        read_tokenizer(tmp_path, text)


# What a UNet predicts


@pytest.fixture
def tiny_configurations(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny models' folders in the place of the configurations that ship with the package."""
    (tmp_path / "configs").mkdir()
    for family, folder in folders.items():
        (tmp_path / "configs" / family).symlink_to(folder)
    monkeypatch.setattr("inst.backbone.loading.single_file.CONFIGS", tmp_path / "configs")


@pytest.mark.usefixtures("tiny_configurations")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({"modelspec.prediction_type": "v"}, "v_prediction"),
        ({"modelspec.prediction_type": "epsilon"}, "epsilon"),
        ({"modelspec.predict_key": "v"}, "v_prediction"),
        ({"modelspec.predict_key": "epsilon"}, "epsilon"),
        ({}, "epsilon"),
    ],
)
def test_the_prediction_type_is_read_from_metadata_or_marker_tensors(
    originals: dict[str, Tensors], tmp_path: Path, words: dict[str, str], expected: str
) -> None:
    parts = read(write_safetensors(tmp_path / "model.safetensors", originals["sd1"], words))
    assert parts.scheduler.config.prediction_type == expected
    marked = originals["sd1"] | {"v_pred": torch.tensor([]), "ztsnr": torch.tensor([])}
    parts = read(write_safetensors(tmp_path / "marked.safetensors", marked, words))
    assert parts.scheduler.config.prediction_type == "v_prediction"
    assert parts.scheduler.alphas_cumprod[-1] < 1e-6


@pytest.mark.usefixtures("tiny_configurations")
@pytest.mark.parametrize("answer", [True, False])
def test_a_stable_diffusion_2_unet_is_probed_only_if_its_prediction_type_is_unknown(
    originals: dict[str, Tensors], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bool
) -> None:
    asked = []
    monkeypatch.setattr("inst.backbone.loading.single_file.predicts_v", lambda *_: asked.append(1) or answer)
    kinds = {False: ("epsilon", 8), True: ("v_prediction", 12)}  # the tiny model of 2.x for v is for larger pictures

    def kind(path: Path, config: str | None = None) -> tuple[str, int]:
        parts = read(path, config)
        return parts.scheduler.config.prediction_type, parts.unet.config.sample_size

    path = write_safetensors(tmp_path / "model.safetensors", originals["sd2"])
    assert kind(path) == kinds[answer]
    assert asked
    asked.clear()
    assert kind(path, "sd2") == kinds[False]
    assert kind(path, "sd2-v") == kinds[True]
    said = {"modelspec.prediction_type": "v"}
    assert kind(write_safetensors(tmp_path / "said.safetensors", originals["sd2"], said)) == kinds[True]
    assert not asked


class Noise(torch.nn.Module):
    """A UNet that was trained to predict v, asked for the noise."""

    def __init__(self, backbone: Backbone, share: float = 1.0) -> None:
        super().__init__()
        self.unet, self.alpha, self.share = backbone.unet, backbone.alphas_cumprod[-1], share
        self.config, self.dtype = backbone.unet.config, backbone.unet.dtype

    def forward(self, latents: Tensor, timestep: int, text: Tensor) -> Any:
        v = self.unet(latents, timestep, text).sample
        noise = self.alpha.sqrt() * v + (1 - self.alpha).sqrt() * latents
        return SimpleNamespace(sample=self.share * noise)


def test_probing_a_unet_tells_v_from_epsilon_and_refuses_unclear_answers() -> None:
    """mini predicts v; what it thinks of the noise follows from that."""
    mini = Backbone.load("mini", "cpu", "float32")

    def ask(unet: Any) -> bool:
        parts: Any = SimpleNamespace(
            unet=unet, scheduler=mini.scheduler, tokenizer=mini.tokenizer, text_encoder=mini.text_encoder
        )
        return predicts_v(parts, Path("mini"))

    assert ask(mini.unet)
    assert not ask(Noise(mini))
    for share in (0.5, float("nan")):
        with pytest.raises(InstError, match='config="sd2" or config="sd2-v"'):
            ask(Noise(mini, share))


# What must be refused


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_malicious_checkpoint_is_refused_and_runs_no_code(
    originals: dict[str, Tensors], tmp_path: Path, legacy: bool
) -> None:
    path, canary = tmp_path / "model.ckpt", tmp_path / "canary"
    content = {"state_dict": originals["sd1"], "extra": Malicious(canary)}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    assert "mkdir, which is not on the allow-list; nothing was run" in refuse(path, naming=str(path))
    assert not canary.exists()
    torch.load(path, weights_only=False)  # the ordinary reader does run it: the test would notice
    assert canary.exists()


def test_a_lightning_checkpoint_is_read_without_importing_lightning(
    originals: dict[str, Tensors], tmp_path: Path
) -> None:
    path = write_lightning(tmp_path / "model.ckpt", originals["sd1"])
    before = set(torch.serialization.get_safe_globals())
    checkpoint = read_checkpoint(path)
    assert checkpoint.tensors.keys() == originals["sd1"].keys()
    assert set(torch.serialization.get_safe_globals()) == before
    assert not any(name.startswith("pytorch_lightning") for name in sys.modules)
    with pytest.raises(Exception, match="ModelCheckpoint"):
        torch.load(path, weights_only=True)  # torch alone refuses it


@pytest.mark.parametrize("form", ["safetensors", "ckpt", "legacy"])
@pytest.mark.parametrize("damage", ["empty", "cut", "text", "zeroed"])
def test_a_damaged_file_is_refused_and_named(
    originals: dict[str, Tensors], tmp_path: Path, form: str, damage: str
) -> None:
    if form == "safetensors":
        path = write_safetensors(tmp_path / "model.safetensors", originals["sd1"])
    else:
        path = write_lightning(tmp_path / "model.ckpt", originals["sd1"], legacy=form == "legacy")
    whole = path.read_bytes()
    broken = {"empty": b"", "cut": whole[: len(whole) // 2], "text": b"<html>404</html>", "zeroed": bytes(len(whole))}
    path.write_bytes(broken[damage])
    refuse(path, naming=str(path))


def test_meta_and_sparse_tensors_in_a_checkpoint_are_refused(
    folders: dict[str, Path], originals: dict[str, Tensors], tmp_path: Path
) -> None:
    key = "model.diffusion_model.time_embed.0.weight"
    weight = originals["sd1"][key]
    for strange in (weight.to("meta"), weight.to_sparse()):
        torch.save({"state_dict": originals["sd1"] | {key: strange}}, tmp_path / "model.ckpt")
        refuse(tmp_path / "model.ckpt", naming="does not fit its configuration", config=folders["sd1"])


@pytest.mark.filterwarnings("error")
def test_other_protocols_of_pickle_are_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").write_bytes(pickle.dumps({"a": 1}, protocol=4))
    refuse(tmp_path / "model.ckpt", naming="is refused")


def test_a_file_of_another_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    refuse(path, naming="model.gguf is not a model file")


def only(tensors: Tensors, *starts: str) -> Tensors:
    return {key: tensor for key, tensor in tensors.items() if key.startswith(starts)}


def without(tensors: Tensors, start: str) -> Tensors:
    return {key: tensor for key, tensor in tensors.items() if not key.startswith(start)}


def with_channels(channels: int) -> Callable[[Tensors], Tensors]:
    key = "model.diffusion_model.input_blocks.0.0.weight"
    return lambda tensors: tensors | {key: torch.zeros(8, channels, 3, 3)}


@pytest.mark.parametrize(
    ("change", "naming"),
    [
        (with_channels(9), "an in-painting model"),
        (with_channels(8), "edits pictures by instruction"),
        (with_channels(7), "an upscaler"),
        (with_channels(5), "a depth-to-image model"),
        (lambda tensors: averaged(with_channels(9)(tensors)), "an in-painting model"),
        (lambda tensors: averaged(with_channels(8)(tensors)), "edits pictures by instruction"),
        (
            lambda tensors: averaged(tensors) | {"model_ema.diffusion_modelnovel": torch.zeros(2)},
            "only the average of a UNet's weights, under unknown names",
        ),
        (
            lambda tensors: tensors | {"model.diffusion_model.label_emb.0.0.weight": torch.zeros(2, 2)},
            "its UNet takes a picture or a class beside the text, model.diffusion_model.label_emb",
        ),
        (
            lambda tensors: tensors | {"first_stage_model.encoder.conv_in.weight": torch.zeros(8, 4, 3, 3)},
            "is for pictures of 4 channels, not 3 (first_stage_model.encoder.conv_in.weight)",
        ),
        (
            lambda tensors: tensors | {"first_stage_model.decoder.conv_out.weight": torch.zeros(6, 8, 3, 3)},
            "is for pictures of 6 channels, not 3 (first_stage_model.decoder.conv_out.weight)",
        ),
        (lambda _: {"input_blocks.0.0.weight": torch.zeros(8, 4, 3, 3)}, "only a UNet"),
        (lambda tensors: without(tensors, "first_stage_model."), "has no autoencoder"),
        (lambda tensors: without(tensors, "cond_stage_model."), "has no text encoder"),
        (lambda tensors: only(tensors, "first_stage_model."), "only an autoencoder"),
        (lambda _: {"lora_unet_down_blocks_0.lora_up.weight": torch.zeros(2)}, "a LoRA"),
        (lambda _: {"emb_params": torch.zeros(2, 768)}, "a textual-inversion embedding"),
        (lambda _: {"control_model.input_blocks.0.0.weight": torch.zeros(2)}, "a ControlNet"),
        (lambda _: {"time_embedding.linear_1.weight": torch.zeros(2)}, "one part of a model in the diffusers layout"),
        (lambda _: {"anything": torch.zeros(2)}, "no UNet in the original layout"),
        (
            lambda _: (
                {"model.diffusion_model.double_blocks.0.img_attn.norm.key_norm.scale": torch.zeros(2)}
                | {"model.diffusion_model.img_in.weight": torch.zeros(2, 64)}
            ),
            "FLUX",
        ),
        (
            lambda _: {"model.diffusion_model.joint_blocks.37.x_block.mlp.fc1.weight": torch.zeros(2)},
            "Stable Diffusion 3.5",
        ),
        (
            lambda tensors: (
                tensors | {"conditioner.embedders.0.model.transformer.resblocks.9.mlp.c_proj.bias": torch.zeros(2)}
            ),
            "the refiner of Stable Diffusion XL",
        ),
        (lambda tensors: tensors | {"edm_mean": torch.zeros(4)}, "Playground 2.5"),
        (
            lambda tensors: tensors | {"model.diffusion_model.time_embed.cond_proj.weight": torch.zeros(2)},
            "1 weights in its UNet that Stable Diffusion does not have",
        ),
    ],
)
def test_a_file_of_another_kind_of_model_is_refused_and_the_kind_is_named(
    folders: dict[str, Path],
    originals: dict[str, Tensors],
    tmp_path: Path,
    change: Callable[[Tensors], Tensors],
    naming: str,
) -> None:
    path = write_safetensors(tmp_path / "model.safetensors", change(originals["sd1"]))
    assert str(path) in refuse(path, naming=naming, config=folders["sd1"])


def test_a_missing_or_misshapen_weight_is_refused(
    folders: dict[str, Path], originals: dict[str, Tensors], tmp_path: Path
) -> None:
    for family, missing, naming in (
        ("sd1", "model.diffusion_model.input_blocks.1.0.in_layers.2.weight", "down_blocks.0.resnets.0.conv1.weight"),
        ("sd1", "first_stage_model.decoder.mid.attn_1.k.bias", "decoder.mid_block.attentions.0.to_k.bias"),
        ("sd1", "cond_stage_model.transformer.text_model.final_layer_norm.bias", "final_layer_norm.bias"),
        ("sd2", "cond_stage_model.model.transformer.resblocks.1.attn.in_proj_bias", "encoder.layers.1.self_attn"),
    ):
        tensors = dict(originals[family])
        whole = tensors.pop(missing)
        path = write_safetensors(tmp_path / "missing.safetensors", tensors)
        refuse(path, naming=naming, config=folders[family])
        path = write_safetensors(tmp_path / "misshapen.safetensors", tensors | {missing: whole[:-1]})
        refuse(path, naming="does not fit its configuration", config=folders[family])


def test_a_quantised_file_is_refused(folders: dict[str, Path], originals: dict[str, Tensors], tmp_path: Path) -> None:
    key = "model.diffusion_model.input_blocks.1.0.in_layers.2.weight"
    tensors = originals["sd1"] | {key: originals["sd1"][key].to(torch.int8)}
    refuse(write_safetensors(tmp_path / "int8.safetensors", tensors), naming="quantised", config=folders["sd1"])


def test_a_model_of_another_size_needs_a_configuration_that_fits(
    folders: dict[str, Path], originals: dict[str, Tensors], tmp_path: Path
) -> None:
    path = write_safetensors(tmp_path / "model.safetensors", originals["sd1"])
    assert "looks like sd1" in refuse(path, naming="`config`")
    refuse(path, naming="does not fit its configuration", config="sdxl")
    for nowhere in (tmp_path / "nowhere", "~nosuchuser/model", "x" * 5000):
        with pytest.raises(UsageError, match="use one of sd1, sd2, sd2-v, sdxl"):
            read(path, nowhere)
    refuse(path, naming="config.json is missing", config=tmp_path)
    folder = Path(shutil.copytree(folders["sd1"], tmp_path / "copy"))
    edit_json(folder / "vae" / "config.json", scaling_factor=0)
    refuse(path, naming="vae/config.json has the scaling_factor 0", config=folder)
    edit_json(folder / "unet" / "config.json", layers_per_block=[1, 2])
    refuse(path, naming="cannot be converted", config=folder)
