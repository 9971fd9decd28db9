"""Models that come as one file, in the original layout: `sd-v1-4.ckpt` and the like."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from inst import models
from inst.backbone.fingerprints import denoiser_fingerprint_of, fingerprint_of
from inst.backbone.loading.checkpoint import Checkpoint, read_checkpoint
from inst.backbone.loading.folder import check_autoencoder, load_scheduler
from inst.backbone.loading.original_layout import convert, find_layout
from inst.backbone.loading.part import MisfitError, build_model, find_folder, read_json
from inst.backbone.loading.tokenizer import read_tokenizer
from inst.backbone.parts import Parts
from inst.errors import Argument, InstError, UsageError

CONFIGS = models.FOLDER / "configs"

FAMILIES = ("sd1", "sd2", "sd2-v", "sdxl")
"""The configurations that ship with the package, without weights; see `models/configs/README.md`."""

_TOKENS = "embeddings.token_embedding.weight"


def read_single_file(path: Path, dtype: torch.dtype, vae_dtype: torch.dtype, config: str | Path | None = None) -> Parts:
    """Read a model in the original layout: Stable Diffusion 1.x, 2.x or XL base, complete, never from the network.

    The file has weights only. Sizes and noise schedule come from the configuration of the family that its keys show,
    and the kind of prediction from the file's own words; Stable Diffusion 2.x, which came in both kinds under the same
    keys, is asked where the file says nothing (`predicts_v`).

    Args:
        path: a safetensors file, or a checkpoint of torch, which is read without running anything in it.
        dtype: the precision of UNet and text encoders.
        vae_dtype: the precision of the autoencoder.
        config: one of `FAMILIES`, or a folder in the diffusers layout, whose weights are not needed: for models of
            other sizes, and to overrule what was found.

    Raises:
        InstError: the file is damaged, incomplete, of another kind, or does not fit the configuration.
        UsageError: there is no such configuration.
    """
    checkpoint = read_checkpoint(path)
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
            f"{error} The file looks like {family}",
            "copy or download it again, or name the configuration of a model of another size (",
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
        fingerprint=fingerprint_of(*tables),
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
            f"{config} is no configuration", f"name one of {', '.join(FAMILIES)}, or a folder in the diffusers layout"
        )
    return folder


def _stated_prediction(checkpoint: Checkpoint) -> str | None:
    """What a file says that its UNet predicts: in its metadata (ModelSpec), or by an empty tensor called v_pred."""
    stated = checkpoint.metadata.get("modelspec.prediction_type", "").lower()
    if "v_pred" in checkpoint.tensors or stated in ("v", "v_prediction"):
        return "v_prediction"
    return "epsilon" if stated == "epsilon" else None


@torch.inference_mode()
def predicts_v(parts: Parts, path: Path) -> bool:
    """Find out what a UNet was trained to predict, by asking it about pure noise at the last timestep, unprompted.

    There the input is all but the noise itself, so that epsilon = input, while v = sqrt(abar) eps - sqrt(1 - abar) z0
    (Salimans and Ho 2022, arXiv 2202.00512) is all but a picture, which knows nothing of the input.

    Raises:
        InstError: the answer is neither.
    """
    unet: Any = parts.unet
    tokens = parts.tokenizer([""], padding="max_length", return_tensors="pt").input_ids
    text = parts.text_encoder(tokens).last_hidden_state
    noise = torch.randn(1, unet.config.in_channels, 16, 16, generator=torch.Generator().manual_seed(0))
    answer = unet(noise.to(unet.dtype), parts.scheduler.config.num_train_timesteps - 1, text).sample.float()
    share = ((answer * noise).sum() / (noise * noise).sum()).item()  # of the input in the answer: 1 for epsilon
    if not (abs(share) < 0.35 or abs(share - 1) < 0.35):
        raise InstError(
            f"{path} does not show whether it predicts noise or v",
            "give ",
            Argument("config", "sd2"),
            " or ",
            Argument("config", "sd2-v"),
        )
    return abs(share) < 0.35
