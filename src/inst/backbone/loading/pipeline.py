"""Make `Parts` from components in memory, such as those of a diffusers pipeline. They are not copied or changed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inst.backbone.fingerprints import denoiser_fingerprint_of, fingerprint_of
from inst.backbone.libraries import DDIMScheduler
from inst.backbone.loading.part import read_keys, silence_libraries, weight_files
from inst.backbone.loading.schedule import ScheduleError, noise_schedule
from inst.backbone.parts import FeatureExtractor, Parts, check_autoencoder
from inst.errors import InstError, UsageError, first_line
from inst.files.tensors import open_tensors

_EXACT = (torch.float16, torch.float32, torch.float64)
"""Precisions that give the same fingerprints as the files, because fingerprints use numbers rounded to fp16."""

_WRAPPERS = re.compile(r"_orig_mod\.|base_layer\.")
"""What torch.compile and LoRA put into the names of a module's own weights."""

_ADDED = re.compile(r"\.lora_|\.processor\.|\.to_q?kv\.|^(_orig_mod\.)?encoder_hid_proj\.")
"""The names of weights that LoRA, IP-Adapters and `fuse_qkv_projections` add to a module."""

_TOKEN_TABLE = "embeddings.token_embedding.weight"


def parts_of(
    *,
    vae: Any,
    text_encoder: Any,
    unet: Any,
    tokenizer: Any,
    scheduler: Any,
    text_encoder_2: Any = None,
    image_encoder: Any = None,
    feature_extractor: Any = None,
    **others: Any,
) -> Parts:
    """Make `Parts` from components in memory. They are not moved or changed, because other code may use or train them.

    The fingerprints are computed from the tensors. If these are rounded to bfloat16, or offloaded layer by layer, the
    file that the component was loaded from is read instead, if it still exists and has the same values.

    Args:
        vae, text_encoder, unet, tokenizer, text_encoder_2, image_encoder: as in `inst.backbone.parts.Parts`.
        scheduler: any scheduler of diffusers; its noise schedule and prediction type are used.
        feature_extractor: the image processor of transformers for the image encoder, or None.
        others: the other fields of `Parts`.

    Raises:
        UsageError: a component cannot be used, such as a text encoder in bfloat16 without its file.
        InstError: the autoencoder is not for colour pictures, or shifts the latents.
    """
    check_autoencoder(vae.config, "The autoencoder of the pipeline")
    length, positions = tokenizer.model_max_length, text_encoder.config.max_position_embeddings
    if length > positions:
        raise UsageError(f"The tokenizer's model_max_length is {length}", f"set it to {positions}, the text encoder's")
    return Parts(
        vae=vae,
        text_encoder=text_encoder,
        unet=unet,
        tokenizer=tokenizer,
        scheduler=_noise_schedule(scheduler),
        fingerprint=_fingerprint((text_encoder, tokenizer), (text_encoder_2, others.get("tokenizer_2"))),
        denoiser_fingerprint=module_fingerprint(unet),
        text_encoder_2=text_encoder_2,
        image_encoder=image_encoder,
        feature_extractor=None if image_encoder is None else _read_processor(feature_extractor),
        **others,
    )


@silence_libraries()
def _noise_schedule(scheduler: Any) -> DDIMScheduler:
    name = type(scheduler).__name__
    try:
        return noise_schedule(scheduler.config, name)
    except ScheduleError as error:
        raise UsageError(f"The scheduler {name} {error}", "use one for models of diffusion, such as DDIM") from None


def _read_processor(processor: Any) -> FeatureExtractor:
    try:
        settings = processor.to_dict()
        crop = settings["crop_size"]
        size = crop if isinstance(crop, int) else crop["height"]
        return FeatureExtractor(size, tuple(settings["image_mean"]), tuple(settings["image_std"]))
    except (AttributeError, KeyError, TypeError) as error:
        raise UsageError(
            f"The feature_extractor lacks settings that the image encoder needs ({first_line(error)})",
            "give the CLIPImageProcessor that belongs to it",
        ) from None


def _fingerprint(*encoders: tuple[Any, Any]) -> str:
    """Return the fingerprint of the text encoders, each with its tokenizer; one that is None is left out."""
    tables = []
    for encoder, tokenizer in encoders:
        if encoder is None:
            continue
        table = {_TOKEN_TABLE: encoder.get_input_embeddings().weight.detach()[: tokenizer.vocab_size]}
        stored = _as_stored(encoder, table, "model")
        if stored is None:
            raise UsageError(
                f"The text encoder is in {encoder.dtype}, which is too coarse to identify its text space",
                "load it in float16 or float32, or from a folder that still exists",
            )
        tables.append(stored[_TOKEN_TABLE])
    return fingerprint_of(*tables)


def module_fingerprint(model: Any) -> str:
    """Return the fingerprint of a UNet or ControlNet of diffusers; "" if it was rounded and its file is missing.

    Weights that LoRA and IP-Adapters added to it do not count.
    """
    first_rows = {
        _WRAPPERS.sub("", key): tensor[:1]
        for key, tensor in model.state_dict().items()
        if tensor.dim() and not _ADDED.search(key)
    }
    stored = _as_stored(model, first_rows, "diffusion_pytorch_model")
    return "" if stored is None else denoiser_fingerprint_of(stored)


def _as_stored(module: Any, in_memory: Mapping[str, Tensor], stem: str) -> dict[str, Tensor] | None:
    """Return the tensors on the CPU with their values before rounding, or None if these are not known.

    Args:
        module: the module; its configuration names the folder that it was loaded from.
        in_memory: the first rows of its tensors in memory, by the ends of their names.
        stem: the stem of the weights' file names.
    """
    if all(tensor.dtype in _EXACT and not tensor.is_meta for tensor in in_memory.values()):
        return {key: tensor.cpu() for key, tensor in in_memory.items()}
    try:
        files = read_keys(weight_files(Path(module.config._name_or_path), stem)[0])
        stored = {}
        for key, tensor in in_memory.items():
            full = key if key in files else next(name for name in files if name.endswith(key))
            with open_tensors(files[full]) as weights:
                stored[key] = weights.get_slice(full)[: len(tensor)]
    except (InstError, AttributeError, StopIteration):
        return None
    with_values = {key: tensor.cpu() for key, tensor in in_memory.items() if not tensor.is_meta}
    same = all(torch.equal(stored[key].to(tensor.dtype), tensor) for key, tensor in with_values.items())
    return stored if same else None
