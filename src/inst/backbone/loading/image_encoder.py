"""Read CLIP's image encoder, which Stable Diffusion's files do not contain, and whole CLIP models."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from transformers.utils import cached_file

from inst.backbone.libraries import CLIPModel, CLIPTextModel, CLIPTokenizerFast, CLIPVisionModelWithProjection
from inst.backbone.loading.configuration import check_config
from inst.backbone.loading.hub import find_clip, is_hub_name
from inst.backbone.loading.part import (
    build_model,
    find_folder,
    find_variants,
    read_json,
    read_keys,
    refuse_adapter,
    silence_libraries,
    warn_of_variants,
    weight_files,
)
from inst.backbone.loading.tokenizer import VOCABULARY, check_files
from inst.backbone.parts import COLOURS, COPY_AGAIN, FeatureExtractor
from inst.errors import Argument, InstError, RemedyPiece, UsageError, first_line
from inst.files.tensors import open_tensors
from inst.texts import cut

MATCHING = {
    768: "openai/clip-vit-large-patch14",
    1024: "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
}
"""The image encoder on the hub that was trained together with a (first) text encoder of this width.

768 is the text encoder of Stable Diffusion 1.x and the first one of XL; 1024 is the one of 2.x. XL's second one was
trained with the image encoder of OpenCLIP's ViT-bigG, which is six times as large. The inversion module learns its
own mapping from pictures to words (paper sec. 3.2) and needs no shared space, so XL uses the smaller one.
"""


def find_image_encoder(name: str | Path, download: bool) -> Path:
    """Find the folder of an image encoder, for `read_image_encoder`.

    Args:
        name: a folder with CLIP's image encoder in transformers' layout, alone, in a whole CLIP model, or in a model in
            the diffusers layout; or the name of such a model on the hub.
        download: download it from the hub if it is not on this machine.

    Raises:
        InstError: the image encoder is not found, or the download failed.
        UsageError: `name` is neither a folder nor a name on the hub.
    """
    if folder := find_folder(name):
        return folder
    if not is_hub_name(str(name)):
        raise UsageError(
            f"{name} is not an image encoder", f"give a folder, or a model on the hub such as {MATCHING[768]}"
        )
    return find_clip(str(name), download)


def find_matching_image_encoder(text_config: Any, download: bool) -> Path | None:
    """Find the folder of the image encoder that matches the configuration of a model's (first) text encoder.

    Returns:
        The folder. None if no match is known, or if it is not on this machine and may not be downloaded.

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


def image_encoder_remedy(text_config: Any) -> tuple[RemedyPiece, ...]:
    """Return the remedy for a model without an image encoder. It names the one that fits its (first) text encoder."""
    name = _matching(text_config)
    if name is None:
        return "give one (", Argument("image_encoder"), " with the folder of a CLIP model)"
    return "give one (", Argument("image_encoder", name), " and ", Argument("download", True), ", or its folder)"


def _matching(text_config: Any) -> str | None:
    return MATCHING.get(text_config.hidden_size) if text_config.vocab_size == VOCABULARY else None


def read_image_encoder(folder: Path, dtype: torch.dtype) -> tuple[Any, FeatureExtractor]:
    """Read CLIP's image encoder with its projection. Other parts in the folder are ignored.

    Returns:
        The image encoder, on the CPU and in evaluation mode, and its feature extractor.

    Raises:
        InstError: a file is missing or broken, or describes another kind of model.
    """
    preprocessing = folder
    if not (folder / "config.json").is_file() and (folder / "image_encoder").is_dir():
        folder, preprocessing = folder / "image_encoder", folder / "feature_extractor"
    elif not (folder / "preprocessor_config.json").is_file() and folder.name == "image_encoder":
        preprocessing = folder.parent / "feature_extractor"
    refuse_adapter(folder)
    config = read_json(folder / "config.json")
    if config.get("model_type") == "clip":  # a whole CLIP model has one width for both projections
        vision = config.get("vision_config")
        config = {**vision, "projection_dim": config.get("projection_dim", 512)} if isinstance(vision, dict) else {}
    elif config.get("model_type") != "clip_vision_model":
        kind = cut(str(config.get("model_type") or "nothing"), 60)
        raise InstError(
            f"{folder / 'config.json'} describes {kind}, not the image encoder of CLIP that is needed",
            "use another folder",
        )
    files = read_keys(weight_files(folder, "model")[0])
    warn_of_variants(folder, "model")
    tensors: dict[str, torch.Tensor] = {}
    for path in set(files.values()):
        with open_tensors(path) as weights:
            keys = [key for key in weights.keys() if key.startswith(("vision_model.", "visual_projection."))]  # noqa: SIM118
            tensors |= {key: weights.get_tensor(key) for key in keys}
    encoder = build_model(CLIPVisionModelWithProjection, config, tensors, dtype, str(folder))
    if (channels := encoder.config.num_channels) != COLOURS:
        raise InstError(
            f"{folder / 'config.json'} is for pictures of {channels} channels, not {COLOURS} (num_channels)",
            "use another folder",
        )
    return encoder, read_feature_extractor(preprocessing / "preprocessor_config.json", encoder.config.image_size)


def read_clip(name: str | Path, download: bool = False) -> tuple[Any, Any, FeatureExtractor]:
    """Read a whole CLIP model in transformers' layout: image encoder and text encoder, in float32.

    Args:
        name: a folder with config.json, model.safetensors, the tokenizer and preprocessor_config.json, or the name of a
            model on the hub, such as "openai/clip-vit-base-patch32".
        download: download the model if it is not in the hub's cache.

    Returns:
        The model on the CPU, frozen; its tokenizer; and its feature extractor.

    Raises:
        InstError: the folder is missing or incomplete, or the model is not on this machine and may not be downloaded.
    """
    folder = find_folder(name)
    place = str(folder or name)
    if folder:
        check_files(folder)
    try:
        if folder and not (folder / "config.json").is_file():
            raise ValueError("it has no config.json")  # transformers would first make a CLIP model of default size
        if folder:
            _check_clip(folder)
        with silence_libraries():
            options = {"local_files_only": not download}
            variants = find_variants((path.name for path in folder.iterdir()), "model") if folder else []
            model, report = CLIPModel.from_pretrained(
                place,
                variant=(variants[0] or None) if variants else None,
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
                **options,
            )
            tokenizer = CLIPTokenizerFast.from_pretrained(place, **options)
            preprocessing = cached_file(place, "preprocessor_config.json", **options)
        if not 0.9 * model.config.text_config.vocab_size <= len(tokenizer) <= model.config.text_config.vocab_size:
            raise ValueError("its tokenizer is missing or belongs to another model")  # transformers makes an empty one
        if report["missing_keys"]:
            raise ValueError(f"it has no {min(report['missing_keys'])}")  # transformers would initialise it at random
    except MemoryError:
        raise
    except Exception as error:  # transformers raises anything for a configuration that makes no sense
        said = error.problem if isinstance(error, InstError) else first_line(error)
        raise InstError(
            f"CLIP cannot be read from {name} ({said})",
            "give its folder, or a name on the model hub with ",
            Argument("download", True),
        ) from error
    extractor = read_feature_extractor(Path(str(preprocessing)), model.config.vision_config.image_size)
    return model.eval().requires_grad_(False), tokenizer, extractor


def _check_clip(folder: Path) -> None:
    """Check the configuration of a whole CLIP model."""
    path, keys = folder / "config.json", read_keys(weight_files(folder, "model")[0])
    config = read_json(path)
    check_config({**config, "num_hidden_layers": 1}, CLIPModel, path, len(keys))
    for name, model_class in (("text_config", CLIPTextModel), ("vision_config", CLIPVisionModelWithProjection)):
        if isinstance(inner := config.get(name), dict):
            check_config(inner, model_class, path, len(keys))


def read_feature_extractor(path: Path, side: int) -> FeatureExtractor:
    """Read the feature extractor of an image encoder that takes `side` x `side` pixels.

    Raises:
        InstError: a value is missing or invalid, or the size is not `side`.
    """
    config = read_json(path)
    try:
        crop = config["crop_size"]
        size = crop if isinstance(crop, int) else crop["height"]
    except (KeyError, TypeError):
        raise InstError(f"{path} has no usable crop_size", COPY_AGAIN) from None
    if size != side:
        raise InstError(
            f"{path} makes pictures of {cut(str(size), 60)} px, but the image encoder takes {side} px", COPY_AGAIN
        )
    mean, std = _read_channels(path, config, "image_mean"), _read_channels(path, config, "image_std")
    if min(std) <= 0:
        raise InstError(f"{path} has the image_std {list(std)}, which is not positive", COPY_AGAIN)
    return FeatureExtractor(size, mean, std)


def _read_channels(path: Path, config: dict[str, Any], name: str) -> tuple[float, float, float]:
    match config.get(name):
        case [int() | float() as red, int() | float() as green, int() | float() as blue] if all(
            map(math.isfinite, (red, green, blue))
        ):
            return red, green, blue
        case other:
            raise InstError(
                f"{path} has the {name} {cut(repr(other), 60)}, not three numbers, one per colour", COPY_AGAIN
            )
