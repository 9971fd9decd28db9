"""Read models from folders in the diffusers layout."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inst.backbone.fingerprints import denoiser_fingerprint_of, fingerprint_of
from inst.backbone.inversion import AttentionInversion
from inst.backbone.libraries import (
    AutoencoderKL,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    DDIMScheduler,
    UNet2DConditionModel,
)
from inst.backbone.loading.image_encoder import read_image_encoder
from inst.backbone.loading.part import load_weights, read_json, read_keys, silence_libraries, weight_files
from inst.backbone.loading.schedule import ScheduleError, noise_schedule
from inst.backbone.loading.tokenizer import load_tokenizer
from inst.backbone.parts import COPY_AGAIN, Parts, check_autoencoder
from inst.errors import InstError, InstWarning, first_line
from inst.files.tensors import open_tensors
from inst.texts import cut

_PIPELINES = ("InSTPipeline", "LatentConsistencyModelPipeline")
"""Classes of model_index.json that are used as Stable Diffusion is, besides those that have its name in theirs."""


def read_folder(folder: Path, dtype: torch.dtype, vae_dtype: torch.dtype) -> Parts:
    """Read a model of the families Stable Diffusion 1.x, 2.x or XL in the diffusers layout. Pickles are never read.

    Args:
        folder: the folder with `model_index.json`.
        dtype: the precision of all parts except the autoencoder.
        vae_dtype: the precision of the autoencoder.

    Raises:
        InstError: the folder is incomplete or broken, or contains another kind of model.
    """
    check_kind(folder)
    image_encoder = feature_extractor = None
    index = read_json(folder / "model_index.json")
    # A model that is saved over another one may leave folders of parts that it does not have.
    if (folder / "image_encoder").is_dir() and index.get("image_encoder") != [None, None]:
        image_encoder, feature_extractor = read_image_encoder(folder / "image_encoder", dtype)
    unet, denoiser_fingerprint = load_denoiser(folder / "unet", dtype)
    text_encoder, table = load_text_encoder(folder / "text_encoder", dtype)
    tokenizer = load_tokenizer(folder / "tokenizer", text_encoder.config)
    more: dict[str, Any] = {}
    tables = [table[: tokenizer.vocab_size]]
    if (folder / "text_encoder_2").is_dir() and index.get("text_encoder_2") not in (None, [None, None]):
        more["text_encoder_2"], table = load_text_encoder(folder / "text_encoder_2", dtype, projected=True)
        more["tokenizer_2"] = load_tokenizer(folder / "tokenizer_2", more["text_encoder_2"].config)
        more["force_zeros_for_empty_prompt"] = bool(index.get("force_zeros_for_empty_prompt", True))
        tables.append(table[: more["tokenizer_2"].vocab_size])
    has_inversion = (folder / "inversion").is_dir()
    return Parts(
        vae=load_autoencoder(folder / "vae", vae_dtype),
        unet=unet,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        scheduler=load_scheduler(folder / "scheduler"),
        fingerprint=fingerprint_of(*tables),
        denoiser_fingerprint=denoiser_fingerprint,
        image_encoder=image_encoder,
        feature_extractor=feature_extractor,
        inversion=AttentionInversion.from_pretrained(folder / "inversion") if has_inversion else None,
        **more,
    )


def check_kind(folder: Path) -> None:
    """Raise InstError unless `folder` contains all parts of a Stable Diffusion 1.x, 2.x or XL model.

    An image encoder that is named but missing gives only an InstWarning, because not every use needs one.
    """
    if not (folder / "model_index.json").is_file():
        raise InstError(
            f"{folder} is not a model in the diffusers layout (it has no model_index.json)", "give another folder"
        )
    index = read_json(folder / "model_index.json")
    kind = cut(str(index.get("_class_name", "model without a name")), 60)
    named = {name for name, entry in index.items() if isinstance(entry, list) and entry[:1] not in ([], [None])}
    needed = {"vae", "unet", "text_encoder", "tokenizer", "scheduler"}
    if "text_encoder_2" in named and "text_encoder" not in named:
        raise InstError(
            f"{folder / 'model_index.json'} describes the refiner of Stable Diffusion XL ({kind}), which has only the "
            f"second text encoder",
            "use the base model",
        )
    if not needed <= named:
        raise InstError(
            f"{folder / 'model_index.json'} describes a {kind}, but only models in the layout of Stable Diffusion 1.x, "
            f"2.x and XL can be used",
            "use another model",
        )
    if "text_encoder_2" in named:
        needed |= {"text_encoder_2", "tokenizer_2"}
    if "StableDiffusion" not in kind and kind not in _PIPELINES:
        warnings.warn(
            InstWarning(
                f"{folder / 'model_index.json'} describes a {kind}, which InST does not know, so the results may be "
                f"wrong",
                "use a model for StableDiffusionPipeline or StableDiffusionXLPipeline",
            ),
            stacklevel=2,
        )
    missing = sorted(name for name in needed if not (folder / name).is_dir())
    if missing:
        raise InstError(f"{folder} is incomplete (it has no folder {', '.join(missing)})", COPY_AGAIN)
    if "image_encoder" in named and not (folder / "image_encoder").is_dir():
        warnings.warn(
            InstWarning(
                f"{folder} has no folder image_encoder, which its model_index.json names, so it is loaded without an "
                f"image encoder",
                COPY_AGAIN,
            ),
            stacklevel=2,
        )


def load_autoencoder(folder: Path, dtype: torch.dtype) -> Any:
    """Load an autoencoder, and check that it is for colour pictures and scales latents as in Stable Diffusion."""
    vae = load_weights(AutoencoderKL, folder, dtype)
    check_autoencoder(vae.config, folder / "config.json")
    return vae


def load_denoiser(folder: Path, dtype: torch.dtype) -> tuple[Any, str]:
    """Load the UNet and compute its fingerprint from the files, because `dtype` may round the loaded weights."""
    model = load_weights(UNet2DConditionModel, folder, dtype)
    first_rows: dict[str, Tensor] = {}
    for path in weight_files(folder, "diffusion_pytorch_model")[0]:
        with open_tensors(path) as weights:
            slices = {key: weights.get_slice(key) for key in weights.keys()}  # noqa: SIM118
            first_rows |= {key: slices[key][:1] for key in slices if slices[key].get_shape()}  # scalars have no rows
    return model, denoiser_fingerprint_of(first_rows)


def load_text_encoder(folder: Path, dtype: torch.dtype, *, projected: bool | None = None) -> tuple[Any, Tensor]:
    """Load a text encoder, and its token table from the file, because `dtype` may round the loaded table.

    `projected` says whether it must have a projection; None loads a projection if the weights have one.
    """
    keys = read_keys(weight_files(folder, "model")[0])
    # model_index.json names CLIPTextModel in both cases, because diffusers' pipeline needs it.
    projected = "text_projection.weight" in keys if projected is None else projected
    model = load_weights(CLIPTextModelWithProjection if projected else CLIPTextModel, folder, dtype)
    table = next(key for key in keys if key.endswith("embeddings.token_embedding.weight"))
    with open_tensors(keys[table]) as weights:
        return model, weights.get_tensor(table)


@silence_libraries()
def load_scheduler(folder: Path) -> DDIMScheduler:
    """Load the noise schedule and the prediction type of any diffusion scheduler of diffusers."""
    path = folder / "scheduler_config.json"
    config = read_json(path)
    name = cut(str(config.get("_class_name", "a scheduler without a name")), 60)
    try:
        scheduler = noise_schedule(config, name)
    except ScheduleError as error:
        raise InstError(f"{path} describes {name}, which {error}", "use another model") from None
    except Exception as error:
        raise InstError(f"{path} has no usable noise schedule ({first_line(error)})", COPY_AGAIN) from error
    alphas = scheduler.alphas_cumprod
    if len(alphas) == 0 or not ((alphas >= 0) & (alphas <= 1)).all():  # also false for NaN
        raise InstError(f"{path} has no usable noise schedule (alphas_cumprod is not between 0 and 1)", COPY_AGAIN)
    if len(alphas) != (steps := scheduler.config["num_train_timesteps"]):
        raise InstError(
            f"{path} has no usable noise schedule ({len(alphas)} trained_betas for {steps} timesteps)", COPY_AGAIN
        )
    return scheduler
