"""What users of diffusers give to a pipeline -> what the package's functions take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch import Tensor

from inst.arguments import checked
from inst.backbone.model import Backbone
from inst.errors import Argument, Call, UsageError, first_line, in_python
from inst.learning.instant import read_style
from inst.pictures.given import read_one
from inst.styles.style import Style

Picture = Image.Image | np.ndarray[Any, Any] | Tensor
Painting = Image.Image | str | Path
Look = Style | Painting | Sequence[Painting]
"""A style or the path of a style file; or a painting, or several of one style, for the instant style."""

OUTPUT_TYPES = ("pil", "np", "pt", "latent")
"""The forms that pictures can be returned in, by diffusers' names."""

CALLBACK_TENSORS = ("latents", "clean")
"""What a callback can have of a step, by the names of `inst.sampling.solvers.SamplingStep`."""

_PHOTOS = VaeImageProcessor(do_resize=False)
_MASKS = VaeImageProcessor(do_resize=False, do_normalize=False, do_convert_grayscale=True)


def read_photos(image: Picture | Sequence[Picture]) -> Tensor:
    """Read photos into [B, 3, H, W] in [-1, 1].

    Args:
        image: PIL images of any mode, which are read as picture files are; arrays [H, W, 3] or [B, H, W, 3], or tensors
            [3, H, W] or [B, 3, H, W], in [0, 1]; or a list of one of these.

    Raises:
        UsageError: something else, or pictures of several sizes.
    """
    several: Any = image
    if isinstance(image, Image.Image | list | tuple):
        given = [image] if isinstance(image, Image.Image) else image
        several = [read_one(one).picture / 2 + 0.5 if isinstance(one, Image.Image) else one for one in given]
    try:
        photos: Tensor = _PHOTOS.preprocess(several)
    except (ValueError, RuntimeError, IndexError) as error:
        sizes = {tuple(one.shape) for one in several if hasattr(one, "shape")} if isinstance(several, list) else set()
        reason = f"pictures of the shapes {sorted(sizes)}" if len(sizes) > 1 else first_line(error)
        raise UsageError(f"The image cannot be used ({reason})", "give a picture, or several of one size") from None
    return photos


def read_mask_image(mask: Picture) -> Tensor:
    """Read a mask into [H, W] in [0, 1]: a PIL image, whose grey levels count; or an array or tensor [H, W].

    Raises:
        UsageError: something else.
    """
    try:
        read: Tensor = _MASKS.preprocess(mask)
    except (ValueError, RuntimeError, IndexError) as error:
        raise UsageError(f"The mask_image cannot be used ({first_line(error)})", "give one picture") from None
    if read.shape[:2] != (1, 1):
        raise UsageError(f"A mask_image of the shape {list(read.shape)} cannot be used", "give one grey picture")
    return read[0, 0]


def read_looks(backbone: Backbone, style: Look | Mapping[str, Look]) -> Style | dict[str, Style]:
    """Read a style, or several by placeholder. Raises InstError, or UsageError where something is no style."""
    if isinstance(style, Mapping):
        return {name: read_style(backbone, look) for name, look in style.items()}
    return read_style(backbone, style)


def noise_source(
    generator: torch.Generator | Sequence[torch.Generator] | None, pictures: int
) -> torch.Generator | Sequence[torch.Generator]:
    """Check the generators of so many pictures; None is PyTorch's own on the CPU, for the same on every device.

    Raises:
        UsageError: another number of them.
    """
    if generator is None:
        return torch.default_generator
    if not isinstance(generator, torch.Generator) and len(generator) != pictures:
        raise UsageError(f"{len(generator)} generators do not fit {pictures} pictures", "give one for all, or for each")
    return generator


def check_call(output_type: str, tensor_inputs: Sequence[str], copies: int, negative_prompt: object) -> None:
    """Raise UsageError for an argument of a call that cannot be used whatever the others are."""
    if output_type not in OUTPUT_TYPES:
        raise UsageError(f'The output_type "{output_type}" is unknown', f"use one of {', '.join(OUTPUT_TYPES)}")
    unknown = [name for name in tensor_inputs if name not in CALLBACK_TENSORS]
    if unknown:
        raise UsageError(
            f"callback_on_step_end_tensor_inputs names {', '.join(unknown)}: "
            f"only {' and '.join(CALLBACK_TENSORS)} can be had."
        )
    if checked("num_images_per_prompt", copies, "int") < 1:
        raise UsageError(f"num_images_per_prompt is {copies}", "give 1 or more")
    if not (negative_prompt is None or isinstance(negative_prompt, str)):
        raise UsageError("negative_prompt is one text for all pictures", "give a string")


_NAMES = {
    "photo": "image",
    "steps": "num_inference_steps",
    "guidance": "guidance_scale",
    "mask": "mask_image",
    "seed": "generator",
}
"""What diffusers' pipelines call arguments of `inst.transfer` and `inst.generate`."""


def in_a_pipeline(named: Argument | Call) -> str:
    """The words of somebody who calls a pipeline: diffusers' names of arguments, and the pipeline's components."""
    match named:
        case Argument("image_encoder"):
            such_as = f', such as "{named.value}",' if named.value else ""
            return f"the pipeline's component image_encoder{such_as}"
        case Argument("download"):  # which the image encoder is given with elsewhere
            return "its feature_extractor"
        case Argument():
            return in_python(Argument(_NAMES.get(named.name, named.name), named.value))
    return in_python(named)


def refuse(arguments: Mapping[str, Any], remedy: str) -> None:
    """Raise UsageError for the first argument that is given (not None) where it means nothing."""
    for name, value in arguments.items():
        if value is not None:
            raise UsageError(f"{name} cannot be used here", remedy)


def repeated(texts: Sequence[Any], copies: int) -> list[Any]:
    """Repeat each text `copies` times, one after another."""
    return [text for text in texts for _ in range(copies)]
