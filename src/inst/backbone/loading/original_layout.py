"""Files in the original layout of Stable Diffusion (CompVis, Stability AI): find the family, and rename the weights.

The conversions come from diffusers (`diffusers.loaders.single_file_utils`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from diffusers.loaders import single_file_utils as diffusers_layout
from torch import Tensor

from inst.backbone.loading.checkpoint import Checkpoint
from inst.backbone.loading.part import FITTING_CONFIGURATION, MisfitError, silence_libraries
from inst.backbone.parts import COLOURS, OTHER_INPUTS
from inst.errors import InstError, first_line

_COMPLETE_FILE = "use the complete file, or the folder, of a Stable Diffusion 1.x, 2.x or XL model"

UNET = "model.diffusion_model."
_AUTOENCODERS = ("first_stage_model.", "vae.")
_PICTURES = (("encoder.conv_in.weight", 1), ("decoder.conv_out.weight", 0))
"""The weights of an autoencoder that take and give pictures, and their dimension of colour channels."""
_CLIP = {"sd1": "cond_stage_model.transformer.", "sdxl": "conditioner.embedders.0.transformer."}
_OPEN_CLIP = {
    "sd2": ("cond_stage_model.model.", "conditioner.embedders.0.model."),
    "sdxl": ("conditioner.embedders.1.model.",),
}
"""Prefixes of the text encoders' keys; the second one for sd2 is used in Stability AI's later code."""

_OTHER_MODELS = {
    "xl_refiner": "the refiner of Stable Diffusion XL; its base model is needed",
    "playground-v2-5": "Playground 2.5, which scales latents in another way",
    "sd35": "Stable Diffusion 3.5",
    "sd3": "Stable Diffusion 3",
    "flux": "FLUX",
    "controlnet": "a ControlNet",
    "animatediff": "a motion module of AnimateDiff",
}
"""Other kinds of models, by the start of their names in diffusers."""

_AVERAGE = "model_ema.diffusion_model"
_NUMBERED = re.compile(r"(input_blocks|output_blocks|label_emb)(\d+)(\d)")
"""In names of the average without dots: the numbers of two lists follow each other. The second one has one digit."""
_STEPS = re.compile(
    r"\d+|input_blocks|middle_block|output_blocks|transformer_blocks|time_embed|label_emb|in_layers|emb_layers|out_layers"
    r"|skip_connection|attn[12]|norm[123]|norm|to_out|to_q|to_k|to_v|proj_out|proj_in|proj|ff|net|conv|op|out|weight|bias"
)
"""The steps of the path to a weight of Stable Diffusion's UNet."""

_OTHER_FILES = (
    ("model_ema.", "only the average of a UNet's weights, under unknown names"),
    ("lora_", "a LoRA, which changes a model but is not a model"),
    ("emb_params", "a textual-inversion embedding"),
    ("clip_l", "a textual-inversion embedding"),
    ("control_model.", "a ControlNet"),
    ("time_embedding.", "only one part of a model in the diffusers layout"),
    ("input_blocks.", "only a UNet"),
    ("text_model.", "only one part of a model in the diffusers layout"),
    ("first_stage_model.", "only an autoencoder"),
    ("encoder.conv_in.", "only an autoencoder"),
    ("encoder.down.", "only an autoencoder"),
)
"""Other kinds of files, by the start of their keys."""


def use_average(checkpoint: Checkpoint) -> Checkpoint:
    """Return the checkpoint of a file that holds the UNet only as its average, with this average as its UNet.

    The training program averages the weights over the steps (EMA) and stores the average under `model_ema.`, with all
    dots of the names removed (`ldm.modules.ema.LitEma`). Other checkpoints, and those with an unknown name in the
    average, are returned unchanged.
    """
    tensors = checkpoint.tensors
    if any(key.startswith(UNET) for key in tensors):
        return checkpoint
    found = {}
    for key in tensors:
        if key.startswith(_AVERAGE):
            flat = key.removeprefix(_AVERAGE)
            name = ".".join(_STEPS.findall(_NUMBERED.sub(r"\1.\2.\3.", flat)))
            if name.replace(".", "") != flat:
                return checkpoint
            found[UNET + name] = tensors[key]
    return replace(checkpoint, tensors=tensors | found)


def find_layout(checkpoint: Checkpoint) -> str:
    """Return the family of a file, found by its keys: "sd1", "sd2" or "sdxl". The sizes do not matter.

    Raises:
        InstError: the file contains another kind of model, which the message names, or has no autoencoder or text
            encoder.
    """
    path, tensors = checkpoint.path, checkpoint.tensors
    first = tensors.get(f"{UNET}input_blocks.0.0.weight")
    if first is None or first.dim() != 4:
        raise InstError(f"{path} cannot be used as a model (it contains {_describe_content(tensors)})", _COMPLETE_FILE)
    if (channels := first.shape[1]) != 4:
        other = OTHER_INPUTS.get(channels, "another kind of model")
        raise InstError(f"{path} is {other} (its UNet takes {channels} channels, not 4)", _COMPLETE_FILE)
    if kind := _other_model(tensors):
        raise InstError(f"{path} cannot be used (it contains {kind})", _COMPLETE_FILE)
    if not any(key.startswith(_AUTOENCODERS) for key in tensors):
        raise InstError(f"{path} has no autoencoder ({_AUTOENCODERS[0]}*)", "get the complete model")
    for key, dimension in ((prefix + key, dimension) for prefix in _AUTOENCODERS for key, dimension in _PICTURES):
        if key in tensors and tensors[key].dim() == 4 and (channels := tensors[key].shape[dimension]) != COLOURS:
            raise InstError(f"{path} is for pictures of {channels} channels, not {COLOURS} ({key})", _COMPLETE_FILE)

    def has(prefix: str) -> bool:
        return any(key.startswith(prefix) for key in tensors)

    if has(_CLIP["sdxl"]) and has(_OPEN_CLIP["sdxl"][0]):
        return "sdxl"
    layout = "sd1" if has(_CLIP["sd1"]) else "sd2" if any(map(has, _OPEN_CLIP["sd2"])) else None
    if layout is None:
        raise InstError(f"{path} has no text encoder (cond_stage_model.* or conditioner.*)", "get the complete model")
    if has(labels := f"{UNET}label_emb."):
        raise InstError(
            f"{path} cannot be used (its UNet takes a picture or a class beside the text, {labels}*)", _COMPLETE_FILE
        )
    return layout


def _other_model(tensors: Mapping[str, Tensor]) -> str | None:
    try:
        kind = diffusers_layout.infer_diffusers_model_type(tensors)
    except Exception:  # diffusers expects shapes that an unusual file may not have
        return None
    if kind in ("v1", "v2", "xl_base"):
        return None
    known = (name for start, name in _OTHER_MODELS.items() if kind.startswith(start))
    return next(known, f'a model of another kind ("{kind}" in diffusers)')


def _describe_content(tensors: Mapping[str, Tensor]) -> str:
    for start, name in _OTHER_FILES:
        if any(key.startswith(start) for key in tensors):
            return name
    return _other_model(tensors) or "no UNet in the original layout of Stable Diffusion"


@silence_libraries()
def convert(
    checkpoint: Checkpoint, layout: str, unet_config: Mapping[str, Any], vae_config: Mapping[str, Any]
) -> dict[str, dict[str, Tensor]]:
    """Rename the weights of each part to their names in the diffusers layout.

    If a file has a second, averaged set of the UNet's weights (`model_ema.*`) beside the first set, the first set is
    used, as in diffusers.

    Returns:
        The weights of "unet", "vae", "text_encoder" and, for sdxl, "text_encoder_2".

    Raises:
        MisfitError: the configurations do not fit the file.
        InstError: the UNet has weights that Stable Diffusion does not have.
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
            # The function reads only the width of the model, and only if there is no projection.
            model = SimpleNamespace(config=SimpleNamespace(hidden_size=width))
            text = diffusers_layout.convert_open_clip_checkpoint(model, tensors, prefix=prefix)
            if layout == "sd2":  # the projection needs the last layer, which Stable Diffusion 2 leaves out
                text.pop("text_projection.weight", None)
            parts["text_encoder" if layout == "sd2" else "text_encoder_2"] = text
    except Exception as error:  # the conversions do not check for missing keys or wrong shapes
        raise MisfitError(
            f"{path} does not fit its configuration, and its keys cannot be converted ({first_line(error)})",
            FITTING_CONFIGURATION,
        ) from error
    # diffusers drops weights that it does not know, such as the extra layer in the UNet of a distilled model.
    extra = sum(key.startswith(UNET) for key in tensors) - len(unet)
    if extra > 0:
        raise InstError(
            f"{path} has {extra} weights in its UNet that Stable Diffusion does not have", "use another model"
        )
    return parts
