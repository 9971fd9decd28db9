"""Components that are in memory already, such as a diffusers pipeline's -> Parts. Nothing is copied or changed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler
from safetensors import safe_open
from torch import Tensor

from inst.backbone.fingerprints import denoiser_fingerprint_of, fingerprint_of
from inst.backbone.loading.part import quiet, read_keys, weight_files
from inst.backbone.parts import FeatureExtractor, Parts
from inst.errors import InstError, UsageError, first_line

_EXACT = (torch.float16, torch.float32, torch.float64)
"""Precisions that give the same fingerprints as the files: those are made of numbers rounded to fp16."""

_TOKEN_TABLE = "embeddings.token_embedding.weight"


def parts_of(
    *,
    text_encoder: Any,
    unet: Any,
    tokenizer: Any,
    scheduler: Any,
    text_encoder_2: Any = None,
    image_encoder: Any = None,
    feature_extractor: Any = None,
    **others: Any,
) -> Parts:
    """Gather parts in memory, which stay where and as they are: others may be using or training them.

    The fingerprints are computed from the tensors. Where those have been rounded to bfloat16, or are offloaded layer by
    layer, the file that the part was loaded from is looked at, if it is still there and says the same.

    Args:
        text_encoder, unet, tokenizer, text_encoder_2, image_encoder: as in `inst.backbone.parts.Parts`.
        scheduler: any of diffusers'; its noise schedule and kind of prediction are used.
        feature_extractor: the image encoder's image processor of transformers, or None.
        others: the other fields of `Parts`.

    Raises:
        UsageError: parts that cannot be used, among them a text encoder in bfloat16 whose file is not there.
    """
    length, positions = tokenizer.model_max_length, text_encoder.config.max_position_embeddings
    if length > positions:
        raise UsageError(f"The tokenizer's model_max_length is {length}", f"set it to {positions}, the text encoder's")
    return Parts(
        text_encoder=text_encoder,
        unet=unet,
        tokenizer=tokenizer,
        scheduler=_noise_schedule(scheduler),
        fingerprint=_fingerprint(text_encoder, text_encoder_2),
        denoiser_fingerprint=module_fingerprint(unet),
        text_encoder_2=text_encoder_2,
        image_encoder=image_encoder,
        feature_extractor=None if image_encoder is None else _read_processor(feature_extractor),
        **others,
    )


@quiet()
def _noise_schedule(scheduler: Any) -> DDIMScheduler:
    prediction = scheduler.config.get("prediction_type", "epsilon")
    if "beta_schedule" not in scheduler.config or prediction not in ("epsilon", "v_prediction"):
        raise UsageError(
            f'The scheduler {type(scheduler).__name__} with the prediction "{prediction}" cannot be used: '
            f'only diffusion schedules with "epsilon" or "v_prediction" can.'
        )
    return DDIMScheduler.from_config(scheduler.config)


def _read_processor(processor: Any) -> FeatureExtractor:
    try:
        settings = processor.to_dict()
        crop = settings["crop_size"]
        size = crop if isinstance(crop, int) else crop["height"]
        return FeatureExtractor(size, tuple(settings["image_mean"]), tuple(settings["image_std"]))
    except (AttributeError, KeyError, TypeError) as error:
        raise UsageError(
            f"The feature_extractor says too little of what the image encoder wants to see ({first_line(error)})",
            "give the CLIPImageProcessor that belongs to it",
        ) from None


def _fingerprint(*text_encoders: Any) -> str:
    tables = []
    for encoder in filter(None, text_encoders):
        held = {_TOKEN_TABLE: encoder.get_input_embeddings().weight.detach()}
        stored = _as_stored(encoder, held, "model")
        if stored is None:
            raise UsageError(
                f"The text encoder is in {encoder.dtype}, which is too coarse to tell its text space from others",
                "load it in float16 or float32, or from a folder that stays in its place",
            )
        tables.append(stored[_TOKEN_TABLE])
    return fingerprint_of(*tables)


def module_fingerprint(model: Any) -> str:
    """Fingerprint a UNet or ControlNet of diffusers; "" (not known) where it was rounded and its file is not there."""
    first_rows = {key: tensor[:1] for key, tensor in model.state_dict().items() if tensor.dim()}
    stored = _as_stored(model, first_rows, "diffusion_pytorch_model")
    return "" if stored is None else denoiser_fingerprint_of(stored)


def _as_stored(module: Any, held: Mapping[str, Tensor], stem: str) -> dict[str, Tensor] | None:
    """Return the tensors as they were before they were rounded, on the CPU, or None where that is not known.

    Args:
        module: knows the folder that it was loaded from.
        held: what is in memory: the beginnings of its tensors, by the ends of their names.
        stem: of the weights' file names.
    """
    if all(tensor.dtype in _EXACT and not tensor.is_meta for tensor in held.values()):
        return {key: tensor.cpu() for key, tensor in held.items()}
    try:
        places = read_keys(weight_files(Path(module.config._name_or_path), stem)[0])
        stored = {}
        for key, tensor in held.items():
            full = key if key in places else next(name for name in places if name.endswith(key))
            with safe_open(places[full], "pt") as weights:
                stored[key] = weights.get_slice(full)[: len(tensor)]
    except (InstError, AttributeError, StopIteration):
        return None
    in_sight = {key: tensor.cpu() for key, tensor in held.items() if not tensor.is_meta}
    same = all(torch.equal(stored[key].to(tensor.dtype), tensor) for key, tensor in in_sight.items())
    return stored if same else None
