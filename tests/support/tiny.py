"""Complete models in Stable Diffusion's folder layouts, a thousand times smaller, with random weights."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from transformers import (
    CLIPImageProcessorPil,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

from inst.backbone.inversion import AttentionInversion, InversionConfig
from inst.backbone.model import Backbone

WIDTH = 32
POSITIONS = 24
LATENT_CHANNELS = 4
PICTURE_SIZE = 64
WORDS = ["a", "painting", "photo", "of", "in", "the", "style", "river", "mountain", "dog", "church", "and", "by"]


def write_tiny_backbone(folder: Path, prediction_type: str = "v_prediction") -> Path:
    """Write a model with all parts of mini into `folder`, in fp16. The weights are always the same."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer = tiny_tokenizer()
        parts = {
            "vae": tiny_autoencoder(scaling_factor=0.7),
            "unet": tiny_unet(
                down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"],
                up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"],
                attention_head_dim=8,
                cross_attention_dim=WIDTH,
            ),
            "text_encoder": tiny_text_encoder(tokenizer),
            "image_encoder": CLIPVisionModelWithProjection(
                CLIPVisionConfig(
                    hidden_size=WIDTH,
                    intermediate_size=2 * WIDTH,
                    num_hidden_layers=2,
                    num_attention_heads=4,
                    image_size=PICTURE_SIZE,
                    patch_size=16,
                    projection_dim=WIDTH,
                )
            ),
            "inversion": AttentionInversion(InversionConfig(WIDTH, WIDTH, WIDTH, vectors=3, layers=1, heads=4)),
        }
    for name, part in parts.items():
        part.half().save_pretrained(folder / name)
    for name in ("text_encoder", "image_encoder"):
        edit_json(folder / name / "config.json", dtype="float32")
    tokenizer.save_pretrained(folder / "tokenizer")
    tiny_scheduler(prediction_type).save_pretrained(folder / "scheduler")
    size = {"height": PICTURE_SIZE, "width": PICTURE_SIZE}
    CLIPImageProcessorPil(size={"shortest_edge": PICTURE_SIZE}, crop_size=size).save_pretrained(
        folder / "feature_extractor"
    )
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.42.0",
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


FAMILIES = ("sd1", "sd2", "sd2-v", "sdxl")
WIDTH_2 = 48


def save_family(folder: Path, family: str, **unet: Any) -> Path:
    """Write a model of a family, without image encoder. The weights are always the same.

    Args:
        folder: the folder to write; created if needed.
        family: one of `FAMILIES`: Stable Diffusion 1.x; 2.x, predicting noise or v; XL.
        unet: entries that replace those of the family's UNet configuration.
    """
    old = family == "sd1"
    attention: dict[str, Any] = {
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        "attention_head_dim": 2 if old else [2, 4],
        "use_linear_projection": not old,
        "upcast_attention": family == "sd2-v",
        "cross_attention_dim": WIDTH,
    }
    more: dict[str, Any] = {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if family == "sdxl":
            attention |= {
                "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
                "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
                "transformer_layers_per_block": [1, 2],
                "cross_attention_dim": WIDTH + WIDTH_2,
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 8,
                "projection_class_embeddings_input_dim": WIDTH + 6 * 8,
            }
            more["tokenizer_2"] = tiny_tokenizer(pad_token="!")
            more["text_encoder_2"] = CLIPTextModelWithProjection(tiny_text_config(more["tokenizer_2"], "gelu", WIDTH_2))
            # The tables of the two encoders have different scales.
            more["text_encoder_2"].get_input_embeddings().weight.data.mul_(3)
        clip = family in ("sd1", "sdxl")
        tokenizer = tiny_tokenizer() if clip else tiny_tokenizer(pad_token="!")
        parts = {
            "vae": tiny_autoencoder(
                scaling_factor=0.13025 if family == "sdxl" else 0.18215, force_upcast=family == "sdxl"
            ),
            "unet": tiny_unet(**(attention | unet)),
            "text_encoder": CLIPTextModel(tiny_text_config(tokenizer, "quick_gelu" if clip else "gelu")),
            "tokenizer": tokenizer,
            "scheduler": tiny_scheduler("v_prediction" if family == "sd2-v" else "epsilon"),
            **more,
        }
    pipeline = "StableDiffusionXLPipeline" if family == "sdxl" else "StableDiffusionPipeline"
    index: dict[str, Any] = {"_class_name": pipeline, "_diffusers_version": "0.42.0"}
    if family == "sdxl":
        index["force_zeros_for_empty_prompt"] = True
    for name, part in parts.items():
        (part.half() if isinstance(part, torch.nn.Module) else part).save_pretrained(folder / name)
        index[name] = ["transformers" if name.startswith(("text", "token")) else "diffusers", type(part).__name__]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def tiny_autoencoder(**more: Any) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=[8, 8, 8, 8],
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=4,
        **more,
    )


def tiny_unet(**more: Any) -> UNet2DConditionModel:
    config: dict[str, Any] = {
        "sample_size": 8,
        "in_channels": LATENT_CHANNELS,
        "out_channels": LATENT_CHANNELS,
        "block_out_channels": [8, 16],
        "layers_per_block": 1,
        "norm_num_groups": 4,
    }
    return UNet2DConditionModel(**(config | more))


def tiny_scheduler(prediction_type: str) -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )


def tiny_tokenizer(pad_token: str = "<|endoftext|>") -> CLIPTokenizer:
    """Return CLIP's tokenizer with single bytes and a few whole words."""
    letters = list(bytes_to_unicode().values())
    vocab = letters + [letter + "</w>" for letter in letters]
    merges = []
    for word in WORDS:
        symbols = [*word[:-1], word[-1] + "</w>"]
        for end in range(2, len(symbols) + 1):
            merges.append(("".join(symbols[: end - 1]), symbols[end - 1]))
    merges = list(dict.fromkeys(merges))
    vocab += dict.fromkeys(left + right for left, right in merges)
    vocab += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={token: number for number, token in enumerate(dict.fromkeys(vocab))},
        merges=merges,
        model_max_length=POSITIONS,
        pad_token=pad_token,
    )


def tiny_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModelWithProjection:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=POSITIONS,
        projection_dim=WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModelWithProjection(config)


def tiny_text_config(tokenizer: CLIPTokenizer, hidden_act: str, width: int = WIDTH) -> CLIPTextConfig:
    """Return a configuration of CLIP ("quick_gelu") or OpenCLIP ("gelu"), with the old wrong special token ids."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=POSITIONS,
        hidden_act=hidden_act,
        projection_dim=WIDTH,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
    )


def edit_json(path: Path, **changes: object) -> None:
    """Set entries of a JSON object. A value of None removes the entry."""
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def tiny_controlnet(unet: UNet2DConditionModel, **changes: object) -> ControlNetModel:
    """Return a ControlNet for a UNet, with always the same weights. It has an effect, unlike a new one (zeros)."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = ControlNetModel.from_unet(unet, conditioning_channels=3)
        if changes:
            model = ControlNetModel.from_config({**model.config, **changes, "_use_default_values": []})
        for parameter in model.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.2)
        for parameter in model.controlnet_cond_embedding.parameters():
            parameter.data *= 3  # otherwise the control picture has almost no effect
    return model.requires_grad_(False).eval()


def sharpen(backbone: Backbone) -> Backbone:
    """Enlarge the queries of random self-attention: it is nearly uniform otherwise, and its keys hardly count."""
    for name, module in backbone.unet.named_modules():
        if name.endswith(".attn1"):
            module.to_q.weight.data.mul_(8)
    return backbone


def idle_copy(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> Backbone:
    """Return a copy of a backbone that must not be asked to compute anything."""
    idle = copy.copy(backbone)

    def compute(*arguments: Any) -> None:
        pytest.fail("computed something before all arguments were checked")

    for name in ("encode", "decode", "embed_text", "predict_noise"):
        monkeypatch.setattr(idle, name, compute, raising=False)
    return idle
