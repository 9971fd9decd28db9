"""Measure memory and time of transfer and learning on a model of the size of Stable Diffusion 1.4, as JSON.

    python benchmarks/full_size.py [--out full_size.json] [--device cuda] [--dtype float16]

It measures with and without `low_memory`. The weights are random, because memory and time do not depend on them, so the
pictures have no meaning. --tiny uses a model that is a thousand times smaller, to try the program without a GPU.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

from inst.backbone.devices import autoencoder_dtype, choose_device, choose_dtype
from inst.backbone.model import Backbone
from inst.backbone.parts import FeatureExtractor, Parts
from inst.files.writing import write_bytes_atomically
from inst.learning.loop import learn
from inst.pictures.io import Photo
from inst.styles.style import Style
from inst.synthesis.from_photo import transfer

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


def byte_tokenizer() -> CLIPTokenizer:
    """Return a tokenizer of CLIP's size with tokens for single bytes only."""
    letters = list(bytes_to_unicode().values())
    words = [*letters, *(f"{letter}</w>" for letter in letters)]
    words += [f"unused{number}" for number in range(len(words), VOCABULARY - 2)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=77)


def measure(backbone: Backbone, steps: int) -> dict[str, dict[str, float]]:
    """Measure transfer at the native size and learning with the defaults: milliseconds per step, peak memory."""
    size = backbone.native_size
    picture = torch.rand(3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    style = Style(backbone.token_table[:8], backbone.fingerprint)
    return {
        "transfer": timed(backbone, lambda: transfer(backbone, picture, style, steps=steps, tone="none")),
        "learning": timed(
            backbone, lambda: learn(backbone, [Photo(picture, None, "random", "")], steps=steps, validate_every=0)
        ),
    }


def timed(backbone: Backbone, start: Callable[[], Any]) -> dict[str, float]:
    """Run a generator of several steps. The time of a step excludes the first step and all that runs before it."""
    cuda = backbone.device.type == "cuda"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(backbone.device)

    def now() -> float:
        if cuda:
            torch.cuda.synchronize(backbone.device)
        return time.perf_counter()

    begin = now()
    marks = [now() for _ in start()]
    end = now()
    figures = {
        "seconds": round(end - begin, 3),
        "ms_per_step": round((marks[-1] - marks[0]) / (len(marks) - 1) * 1000, 2),
    }
    if cuda:
        figures["peak_memory_gb"] = round(torch.cuda.max_memory_allocated(backbone.device) / 1e9, 3)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure transfer and learning on a model of full size.")
    parser.add_argument("--out", type=Path, default=Path("full_size.json"), help="JSON file to write")
    parser.add_argument("--device", help="device, such as cpu or cuda")
    parser.add_argument("--dtype", help="float32, bfloat16 or float16")
    parser.add_argument(
        "--steps", type=int, default=20, help="steps of transfer and of learning, at least 2 (default 20)"
    )
    parser.add_argument("--tiny", action="store_true", help="use a tiny model, to try the program")
    options = parser.parse_args()
    device = choose_device(options.device)
    dtype = choose_dtype(device, options.dtype)
    name = "tiny" if options.tiny else "Stable Diffusion 1.4"
    parts = build(SIZES[name], dtype)
    report: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "torch": torch.__version__,
        "dtype": str(dtype).removeprefix("torch."),
        "sizes": name,
        "million_parameters": {
            kind: round(sum(weight.numel() for weight in part.parameters()) / 1e6, 1)
            for kind, part in vars(parts).items()
            if isinstance(part, nn.Module)
        },
        "steps": options.steps,
    }
    for low_memory in (False, True):  # in this order, because the changes of low_memory to the parts are permanent
        backbone = Backbone.of(parts, device, dtype, name, low_memory=low_memory)
        report["low_memory" if low_memory else "plain"] = measure(backbone, options.steps)
    text = json.dumps(report, indent=2)
    print(text)
    write_bytes_atomically(options.out, text.encode())


if __name__ == "__main__":
    main()
