"""Models with random weights for benchmarks. Time and memory do not depend on weights; the pictures have no meaning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, ModelMixin, UNet2DConditionModel
from transformers import (
    CLIPImageProcessorPil,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    PreTrainedModel,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

from inst.backbone.devices import autoencoder_dtype
from inst.backbone.parts import FeatureExtractor, Parts

SIZES: dict[str, dict[str, dict[str, Any]]] = {
    "Stable Diffusion 1.4": {
        "unet": {
            "sample_size": 64,
            "block_out_channels": (320, 640, 1280, 1280),
            "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
            "cross_attention_dim": 768,
            "attention_head_dim": 8,
        },
        "vae": {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2},
        "text": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
        "vision": {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "image_size": 224,
            "patch_size": 14,
            "projection_dim": 768,
        },
    },
    "tiny": {
        "unet": {
            "sample_size": 8,
            "block_out_channels": (32, 64),
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "layers_per_block": 1,
            "cross_attention_dim": 32,
        },
        "vae": {"block_out_channels": (32, 32, 32, 32)},
        "text": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
        "vision": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 32,
            "patch_size": 16,
            "projection_dim": 32,
        },
    },
}
VOCABULARY = 49408
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def build(sizes: dict[str, dict[str, Any]], dtype: torch.dtype) -> Parts:
    """Build all parts with random weights on the CPU."""
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        scaling_factor=0.18215,
        **sizes["vae"],
    )
    text = CLIPTextConfig(vocab_size=VOCABULARY, eos_token_id=tokenizer.eos_token_id, **sizes["text"])
    return Parts(
        vae=vae.to(autoencoder_dtype(dtype)),
        unet=UNet2DConditionModel(**sizes["unet"]).to(dtype),
        text_encoder=CLIPTextModel(text).to(dtype),
        tokenizer=tokenizer,
        scheduler=DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
        fingerprint="random",
        denoiser_fingerprint="random",
        image_encoder=CLIPVisionModelWithProjection(CLIPVisionConfig(**sizes["vision"])).to(dtype),
        feature_extractor=FeatureExtractor(sizes["vision"]["image_size"], CLIP_MEAN, CLIP_STD),
    )


def save(parts: Parts, folder: Path) -> Path:
    """Write all parts in the layout of diffusers, for processes that load them themselves."""
    assert parts.feature_extractor is not None
    for name, part in vars(parts).items():
        if isinstance(part, ModelMixin | PreTrainedModel):
            part.save_pretrained(folder / name)
    parts.tokenizer.save_pretrained(folder / "tokenizer")
    parts.scheduler.save_pretrained(folder / "scheduler")
    side = {"height": parts.feature_extractor.size, "width": parts.feature_extractor.size}
    crop = CLIPImageProcessorPil(size={"shortest_edge": side["width"]}, crop_size=side)
    crop.save_pretrained(folder / "feature_extractor")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def byte_tokenizer() -> CLIPTokenizer:
    """Return a tokenizer of CLIP's size with tokens for single bytes only."""
    letters = list(bytes_to_unicode().values())
    words = [*letters, *(f"{letter}</w>" for letter in letters)]
    words += [f"unused{number}" for number in range(len(words), VOCABULARY - 2)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=77)
