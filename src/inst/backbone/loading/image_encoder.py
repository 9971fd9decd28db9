"""CLIP: the image encoder of a model, which Stable Diffusion's files come without, and CLIP as a whole."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import CLIPModel, CLIPTokenizerFast, CLIPVisionModelWithProjection
from transformers.utils import cached_file

from inst.backbone.loading.hub import find_clip, is_hub_name
from inst.backbone.loading.part import (
    build_model,
    find_folder,
    quiet,
    read_json,
    read_keys,
    refuse_adapter,
    weight_files,
)
from inst.backbone.loading.tokenizer import VOCABULARY
from inst.backbone.parts import AGAIN, FeatureExtractor
from inst.errors import Argument, InstError, UsageError, Words, first_line

MATCHING = {
    768: "openai/clip-vit-large-patch14",
    1024: "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
}
"""The hub's name of the image encoder that was trained together with a (first) text encoder of this width.

768 is the text encoder of Stable Diffusion 1.x and the first one of XL; 1024 is that of 2.x. XL's second one was
trained with the image encoder of OpenCLIP's ViT-bigG, six times as large as that of the first. The inversion module
learns its own way from pictures to words (paper sec. 3.2) and needs no common space, so the smaller one serves XL too.
"""


def find_image_encoder(named: str | Path, download: bool) -> Path:
    """Find the folder of an image encoder, which `read_image_encoder` reads.

    Args:
        named: a folder of CLIP's image encoder in transformers' layout, alone or as a part of a whole CLIP model or of
            a model in the diffusers layout; or the name of such a model on the hub.
        download: ask the hub for it where it is not on this machine.

    Raises:
        InstError: it is not there, or a download failed.
        UsageError: `named` is neither a folder nor of a name's form.
    """
    if folder := find_folder(named):
        return folder
    if not is_hub_name(str(named)):
        raise UsageError(
            f"{named} is no image encoder", f"name a folder, or a model of the hub such as {MATCHING[768]}"
        )
    return find_clip(str(named), download)


def find_matching_image_encoder(text_config: Any, download: bool) -> Path | None:
    """Find the folder of the image encoder that matches a model's (first) text encoder, by its configuration.

    Returns:
        None where none is known, or where it is not on this machine and may not be downloaded.

    Raises:
        InstError: the download failed.
    """
    name = _matching(text_config)
    if name is None:
        return None
    try:
        return find_clip(name, download)
    except InstError:
        if download:
            raise
        return None


def how_to_give(text_config: Any) -> tuple[Words, ...]:
    """The remedy for a model that has no image encoder: which one fits its (first) text encoder, and how to give it."""
    name = _matching(text_config)
    if name is None:
        return "give one (", Argument("image_encoder"), " with the folder of a CLIP)"
    return "give one (", Argument("image_encoder", name), " and ", Argument("download", True), ", or its folder)"


def _matching(text_config: Any) -> str | None:
    return MATCHING.get(text_config.hidden_size) if text_config.vocab_size == VOCABULARY else None


def read_image_encoder(folder: Path, dtype: torch.dtype) -> tuple[Any, FeatureExtractor]:
    """Read CLIP's image encoder with its projection, out of whatever else the folder holds.

    Returns:
        The image encoder, on the CPU and in evaluation mode, and what it wants to see.

    Raises:
        InstError: something is missing or broken, or is of another kind.
    """
    preprocessing = folder
    if not (folder / "config.json").is_file() and (folder / "image_encoder").is_dir():
        folder, preprocessing = folder / "image_encoder", folder / "feature_extractor"
    elif not (folder / "preprocessor_config.json").is_file() and folder.name == "image_encoder":
        preprocessing = folder.parent / "feature_extractor"
    refuse_adapter(folder)
    config = read_json(folder / "config.json")
    if config.get("model_type") == "clip":  # a whole CLIP model; of its two projections it says the width once
        vision = config.get("vision_config")
        config = {**vision, "projection_dim": config.get("projection_dim", 512)} if isinstance(vision, dict) else {}
    elif config.get("model_type") != "clip_vision_model":
        kind = config.get("model_type") or "nothing"
        raise InstError(f"{folder / 'config.json'} describes {kind}, not the image encoder of CLIP that is needed.")
    files = read_keys(weight_files(folder, "model")[0])
    tensors: dict[str, torch.Tensor] = {}
    for path in set(files.values()):
        with safe_open(path, "pt") as weights:
            own = [key for key in weights.keys() if key.startswith(("vision_model.", "visual_projection."))]  # noqa: SIM118
            tensors |= {key: weights.get_tensor(key) for key in own}
    encoder = build_model(CLIPVisionModelWithProjection, config, tensors, dtype, str(folder))
    return encoder, read_feature_extractor(preprocessing / "preprocessor_config.json", encoder.config.image_size)


def read_clip(name: str | Path, download: bool = False) -> tuple[Any, Any, FeatureExtractor]:
    """Read a whole CLIP in transformers' layout: image encoder and text encoder, in float32.

    Args:
        name: a folder with config.json, model.safetensors, the tokenizer and preprocessor_config.json, or the name of a
            model on the hub, such as "openai/clip-vit-base-patch32".
        download: fetch it where it is not in the hub's cache.

    Returns:
        The model on the CPU, frozen; its tokenizer; and what its image encoder wants to see.

    Raises:
        InstError: the folder is missing or incomplete, or the model is neither here nor allowed to be fetched.
    """
    folder = find_folder(name)
    place = str(folder or name)
    try:
        if folder and not (folder / "config.json").is_file():
            raise ValueError("it has no config.json")  # transformers would make a CLIP of the usual size first
        with quiet():
            options = {"local_files_only": not download}
            model, report = CLIPModel.from_pretrained(
                place, use_safetensors=True, dtype=torch.float32, output_loading_info=True, **options
            )
            tokenizer = CLIPTokenizerFast.from_pretrained(place, **options)
            preprocessing = cached_file(place, "preprocessor_config.json", **options)
        if not 0.9 * model.config.text_config.vocab_size <= len(tokenizer) <= model.config.text_config.vocab_size:
            raise ValueError("its tokenizer is missing or of another model")  # transformers makes an empty one
        if report["missing_keys"]:
            raise ValueError(f"it has no {min(report['missing_keys'])}")  # transformers draws it at random
    except (OSError, ValueError, RuntimeError) as error:
        raise InstError(
            f"CLIP cannot be read from {name} ({first_line(error)})",
            "give its folder, or a name on the model hub with ",
            Argument("download", True),
        ) from error
    extractor = read_feature_extractor(Path(str(preprocessing)), model.config.vision_config.image_size)
    return model.eval().requires_grad_(False), tokenizer, extractor


def read_feature_extractor(path: Path, side: int) -> FeatureExtractor:
    """Read what an image encoder that takes `side` x `side` pixels wants to see.

    Raises:
        InstError: a value is missing, makes no sense, or is another side.
    """
    config = read_json(path)
    try:
        crop = config["crop_size"]
        size = crop if isinstance(crop, int) else crop["height"]
    except (KeyError, TypeError):
        raise InstError(f"{path} has no usable crop_size", AGAIN) from None
    if size != side:
        raise InstError(f"{path} makes pictures of {size} px, but the image encoder takes {side} px.")
    mean, std = _read_channels(path, config, "image_mean"), _read_channels(path, config, "image_std")
    if min(std) <= 0:
        raise InstError(f"{path} has the image_std {list(std)}, which is not positive", AGAIN)
    return FeatureExtractor(size, mean, std)


def _read_channels(path: Path, config: dict[str, Any], name: str) -> tuple[float, float, float]:
    match config.get(name):
        case [int() | float() as red, int() | float() as green, int() | float() as blue] if all(
            map(math.isfinite, (red, green, blue))
        ):
            return red, green, blue
        case other:
            raise InstError(f"{path} has the {name} {other!r}, not a number for each of three colours", AGAIN)
