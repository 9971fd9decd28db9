"""Read models from a single file in the original layout, such as `sd-v1-4.ckpt`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from inst import models
from inst.backbone.fingerprints import denoiser_fingerprint_of, fingerprint_of
from inst.backbone.libraries import (
    AutoencoderKL,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    DDIMScheduler,
    UNet2DConditionModel,
)
from inst.backbone.loading.checkpoint import Checkpoint, read_checkpoint
from inst.backbone.loading.folder import load_scheduler
from inst.backbone.loading.original_layout import convert, find_layout, use_average
from inst.backbone.loading.part import MisfitError, build_model, find_folder, read_json
from inst.backbone.loading.tokenizer import read_tokenizer
from inst.backbone.parts import Parts, check_autoencoder
from inst.errors import Argument, InstError, UsageError

CONFIGS = models.FOLDER / "configs"

FAMILIES = ("sd1", "sd2", "sd2-v", "sdxl")
"""The configurations that are part of the package, without weights; see `models/configs/README.md`."""

_TOKENS = "embeddings.token_embedding.weight"


def read_single_file(path: Path, dtype: torch.dtype, vae_dtype: torch.dtype, config: str | Path | None = None) -> Parts:
    """Read a complete Stable Diffusion 1.x, 2.x or XL base model in the original layout, without the network.

    The file has only weights. Its keys give the family, and the family's configuration gives the sizes and the noise
    schedule. The file may state the prediction type. Stable Diffusion 2.x has models of both types with the same keys;
    if its file states nothing, the UNet is tested (`predicts_v`).

    Args:
        path: a safetensors file, or a PyTorch checkpoint, which is read without running any code in it.
        dtype: the precision of UNet and text encoders.
        vae_dtype: the precision of the autoencoder.
        config: one of `FAMILIES`, or a folder in the diffusers layout, which needs no weights. Use it for models of
            other sizes, or if the wrong configuration was found.

    Raises:
        InstError: the file is damaged, incomplete or of another kind, or does not fit the configuration.
        UsageError: the configuration does not exist.
    """
    checkpoint = use_average(read_checkpoint(path))
    layout = find_layout(checkpoint)
    prediction = _stated_prediction(checkpoint)
    family = layout if (layout, prediction) != ("sd2", "v_prediction") else "sd2-v"
    folder = CONFIGS / family if config is None else _find_config(config)
    try:
        parts = _read_parts(checkpoint, layout, folder, dtype, vae_dtype)
    except MisfitError as error:
        if config is not None:
            raise
        raise InstError(
            f"{error.problem}; the file looks like {family}",
            "copy or download it again, or give the configuration of a model of another size (",
            Argument("config"),
            ")",
        ) from None
    if config is not None:
        return parts
    if prediction is None and layout == "sd2" and predicts_v(parts, path):
        prediction = "v_prediction"
        parts.unet.register_to_config(**read_json(CONFIGS / "sd2-v" / "unet" / "config.json"))
    if prediction is None:
        return parts
    changes = {"prediction_type": prediction, "rescale_betas_zero_snr": "ztsnr" in checkpoint.tensors}
    return replace(parts, scheduler=DDIMScheduler.from_config(parts.scheduler.config, **changes))


def _read_parts(checkpoint: Checkpoint, layout: str, folder: Path, dtype: torch.dtype, vae_dtype: torch.dtype) -> Parts:
    numbers = ("", "_2") if layout == "sdxl" else ("",)
    encoders = [f"text_encoder{number}" for number in numbers]
    configs = {name: read_json(folder / name / "config.json") for name in ("unet", "vae", *encoders)}
    weights = convert(checkpoint, layout, configs["unet"], configs["vae"])

    def build(model_class: Any, name: str, dtype: torch.dtype) -> Any:
        return build_model(model_class, configs[name], weights[name], dtype, str(checkpoint.path))

    texts = [build(_text_class(name, weights[name]), name, dtype) for name in encoders]
    tables = [next(weights[name][key] for key in weights[name] if key.endswith(_TOKENS)) for name in encoders]
    tokenizers = [
        read_tokenizer(folder / f"tokenizer{number}", text.config) for number, text in zip(numbers, texts, strict=True)
    ]
    vae = build(AutoencoderKL, "vae", vae_dtype)
    check_autoencoder(vae.config, folder / "vae" / "config.json")
    index = folder / "model_index.json"
    return Parts(
        vae=vae,
        unet=build(UNet2DConditionModel, "unet", dtype),
        text_encoder=texts[0],
        tokenizer=tokenizers[0],
        scheduler=load_scheduler(folder / "scheduler"),
        fingerprint=fingerprint_of(
            *(table[: tokenizer.vocab_size] for table, tokenizer in zip(tables, tokenizers, strict=True))
        ),
        denoiser_fingerprint=denoiser_fingerprint_of(
            {key: tensor[:1] for key, tensor in weights["unet"].items() if tensor.dim()}
        ),
        text_encoder_2=texts[1] if len(texts) > 1 else None,
        tokenizer_2=tokenizers[1] if len(texts) > 1 else None,
        force_zeros_for_empty_prompt=not index.is_file()
        or bool(read_json(index).get("force_zeros_for_empty_prompt", True)),
    )


def _text_class(name: str, weights: dict[str, Any]) -> Any:
    if name == "text_encoder_2" or "text_projection.weight" in weights:
        return CLIPTextModelWithProjection
    return CLIPTextModel


def _find_config(config: str | Path) -> Path:
    if str(config) in FAMILIES:
        return CONFIGS / str(config)
    folder = find_folder(config)
    if folder is None:
        raise UsageError(
            f"{config} is not a configuration", f"use one of {', '.join(FAMILIES)}, or a folder in the diffusers layout"
        )
    return folder


def _stated_prediction(checkpoint: Checkpoint) -> str | None:
    """Return the prediction type that a file states: in its metadata (ModelSpec), or by an empty tensor `v_pred`.

    ComfyUI writes it under another key than the specification says.
    """
    keys = ("modelspec.prediction_type", "modelspec.predict_key")
    stated = next((checkpoint.metadata[key].lower() for key in keys if checkpoint.metadata.get(key)), "")
    if "v_pred" in checkpoint.tensors or stated in ("v", "v_prediction"):
        return "v_prediction"
    return "epsilon" if stated == "epsilon" else None


@torch.inference_mode()
def predicts_v(parts: Parts, path: Path) -> bool:
    """Return whether a UNet predicts v and not noise: test it with pure noise at the last timestep, without prompt.

    At this timestep the input is almost only noise, so epsilon = input, while v = sqrt(abar) eps - sqrt(1 - abar) z0
    (Salimans and Ho 2022, arXiv 2202.00512) is almost a clean picture, which does not depend on the input.

    Raises:
        InstError: the output is neither.
    """
    unet: Any = parts.unet
    tokens = parts.tokenizer([""], padding="max_length", return_tensors="pt").input_ids
    text = parts.text_encoder(tokens).last_hidden_state
    noise = torch.randn(1, unet.config.in_channels, 16, 16, generator=torch.Generator().manual_seed(0))
    output = unet(noise.to(unet.dtype), parts.scheduler.config.num_train_timesteps - 1, text).sample.float()
    share = ((output * noise).sum() / (noise * noise).sum()).item()  # share of the input in the output, 1 for epsilon
    if not (abs(share) < 0.35 or abs(share - 1) < 0.35):
        raise InstError(
            f"{path} does not show whether it predicts noise or v",
            "give ",
            Argument("config", "sd2"),
            " or ",
            Argument("config", "sd2-v"),
        )
    return abs(share) < 0.35
