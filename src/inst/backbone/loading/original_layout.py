"""The original layout of Stable Diffusion's files (CompVis, Stability AI): what a file holds, and its weights' names.

The conversions are diffusers' own (`diffusers.loaders.single_file_utils`).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from diffusers.loaders import single_file_utils as diffusers_layout
from torch import Tensor

from inst.backbone.loading.checkpoint import Checkpoint
from inst.backbone.loading.part import MisfitError, quiet
from inst.errors import InstError, first_line

UNET = "model.diffusion_model."
_AUTOENCODERS = ("first_stage_model.", "vae.")
_CLIP = {"sd1": "cond_stage_model.transformer.", "sdxl": "conditioner.embedders.0.transformer."}
_OPEN_CLIP = {
    "sd2": ("cond_stage_model.model.", "conditioner.embedders.0.model."),
    "sdxl": ("conditioner.embedders.1.model.",),
}
"""Where the text encoders are; the second place for sd2 is that of Stability AI's later code."""

_OTHER_INPUTS = {
    5: "a depth-to-image model",
    7: "an upscaler",
    8: "a model that edits by instruction, or makes videos",
    9: "an in-painting model",
}
"""What the UNet's first layer says, where it takes more than latents of 4 channels."""

_OTHER_MODELS = {
    "xl_refiner": "the refiner of Stable Diffusion XL; its base model is needed",
    "playground-v2-5": "Playground 2.5, whose latents are scaled in another way",
    "sd35": "Stable Diffusion 3.5",
    "sd3": "Stable Diffusion 3",
    "flux": "FLUX",
    "controlnet": "a ControlNet",
    "animatediff": "a motion module of AnimateDiff",
}
"""By what the names begin with that diffusers has for them."""

_NOT_EVEN_MODELS = (
    ("lora_", "a LoRA, which changes a model but is none"),
    ("emb_params", "a textual-inversion embedding"),
    ("clip_l", "a textual-inversion embedding"),
    ("control_model.", "a ControlNet"),
    ("time_embedding.", "one part of a model in the diffusers layout; name the folder of the whole model"),
    ("text_model.", "one part of a model in the diffusers layout; name the folder of the whole model"),
    ("first_stage_model.", "an autoencoder alone"),
    ("encoder.conv_in.", "an autoencoder alone"),
    ("encoder.down.", "an autoencoder alone"),
)


def find_layout(checkpoint: Checkpoint) -> str:
    """Tell by the keys which family's layout a file has: "sd1", "sd2" or "sdxl", whatever the sizes.

    Raises:
        InstError: it is of another kind, or lacks a part; the message says which.
    """
    path, tensors = checkpoint.path, checkpoint.tensors
    first = tensors.get(f"{UNET}input_blocks.0.0.weight")
    if first is None or first.dim() != 4:
        raise InstError(f"{path} cannot be used as a model: it holds {_something_else(tensors)}.")
    if (channels := first.shape[1]) != 4:
        other = _OTHER_INPUTS.get(channels, "another kind of model")
        raise InstError(f"{path} cannot be used: its UNet takes {channels} channels, not 4, so it is {other}.")
    if kind := _other_model(tensors):
        raise InstError(f"{path} cannot be used: it holds {kind}.")
    if not any(key.startswith(_AUTOENCODERS) for key in tensors):
        raise InstError(f"{path} has no autoencoder ({_AUTOENCODERS[0]}*)", "get the complete model")

    def has(prefix: str) -> bool:
        return any(key.startswith(prefix) for key in tensors)

    if has(_CLIP["sdxl"]) and has(_OPEN_CLIP["sdxl"][0]):
        return "sdxl"
    if has(_CLIP["sd1"]):
        return "sd1"
    if any(map(has, _OPEN_CLIP["sd2"])):
        return "sd2"
    raise InstError(f"{path} lacks a text encoder (cond_stage_model.* or conditioner.*)", "get the complete model")


def _other_model(tensors: Mapping[str, Tensor]) -> str | None:
    try:
        kind = diffusers_layout.infer_diffusers_model_type(tensors)
    except Exception:  # it looks at shapes that a strange file may not have
        return None
    if kind in ("v1", "v2", "xl_base"):
        return None
    known = (name for start, name in _OTHER_MODELS.items() if kind.startswith(start))
    return next(known, f'a model of another kind ("{kind}" in diffusers)')


def _something_else(tensors: Mapping[str, Tensor]) -> str:
    for start, name in _NOT_EVEN_MODELS:
        if any(key.startswith(start) for key in tensors):
            return name
    return _other_model(tensors) or "no UNet in the original layout of Stable Diffusion"


@quiet()
def convert(
    checkpoint: Checkpoint, layout: str, unet_config: Mapping[str, Any], vae_config: Mapping[str, Any]
) -> dict[str, dict[str, Tensor]]:
    """Give each part's weights the names that they have in the diffusers layout.

    Where a file holds a second, averaged set of the UNet's weights (`model_ema.*`), the first is taken, as diffusers
    does.

    Returns:
        The weights of "unet", "vae", "text_encoder" and, of sdxl, "text_encoder_2".

    Raises:
        MisfitError: the configurations do not fit the file.
        InstError: the UNet has weights that Stable Diffusion's has not.
    """
    path, tensors = checkpoint.path, checkpoint.tensors
    try:
        unet = diffusers_layout.convert_ldm_unet_checkpoint(tensors, unet_config)
        vae = diffusers_layout.convert_ldm_vae_checkpoint(tensors, vae_config)
        parts = {"unet": unet, "vae": vae}
        if layout in _CLIP:
            parts["text_encoder"] = diffusers_layout.convert_ldm_clip_checkpoint(tensors)
        if layout in _OPEN_CLIP:
            prefix = next(prefix for prefix in _OPEN_CLIP[layout] if f"{prefix}token_embedding.weight" in tensors)
            width = tensors[f"{prefix}token_embedding.weight"].shape[1]
            # Of the model that it converts for, the function reads the width, and only where there is no projection.
            model = SimpleNamespace(config=SimpleNamespace(hidden_size=width))
            text = diffusers_layout.convert_open_clip_checkpoint(model, tensors, prefix=prefix)
            if layout == "sd2":  # its projection belongs to the last layer, which Stable Diffusion 2 leaves out
                text.pop("text_projection.weight", None)
            parts["text_encoder" if layout == "sd2" else "text_encoder_2"] = text
    except Exception as error:  # they take every key and every shape for granted
        raise MisfitError(
            f"{path} does not fit its configuration: its keys cannot be converted ({first_line(error)})."
        ) from error
    # diffusers drops what it does not know, such as a layer that the UNet of a distilled model has in addition.
    extra = sum(key.startswith(UNET) for key in tensors) - len(unet)
    if extra > 0:
        raise InstError(f"{path} has {extra} weights in its UNet that Stable Diffusion's has not", "use another model")
    return parts
