"""Convert the inputs of the diffusers pipeline to the inputs of the functions of this package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch import Tensor

from inst.arguments import check_type, checked, shown
from inst.backbone.model import Backbone
from inst.backbone.text import TextEmbedding
from inst.errors import Argument, Call, UsageError, first_line, python_wording
from inst.learning.instant import read_style
from inst.pictures.given import Mask, to_batch
from inst.pictures.reading import reading_size
from inst.styles.style import Style
from inst.synthesis.plan import MOST_PICTURES

PipelinePicture = Image.Image | np.ndarray[Any, Any] | Tensor
Painting = PipelinePicture | str | Path
StyleInput = Style | Painting | Sequence[Painting]
"""A style or the path of a style file; or one or more paintings of one style, for an instant style."""

OUTPUT_TYPES = ("pil", "np", "pt", "latent")
"""The forms of the returned pictures, with the names of diffusers."""

CALLBACK_TENSORS = ("latents", "clean")
"""The tensors of a step that a callback can get, with the names of `inst.sampling.solvers.SamplingStep`."""

_MASKS = VaeImageProcessor(do_resize=False, do_normalize=False, do_convert_grayscale=True)


def read_photos(image: PipelinePicture | Sequence[PipelinePicture], size: Any = None, mask: Any = None) -> Tensor:
    """Read photos into [B, 3, H, W] in [-1, 1].

    Args:
        image: PIL images of any mode, which are read like picture files; arrays [H, W, 3] or [B, H, W, 3], or tensors
            [3, H, W] or [B, 3, H, W], floating point from 0 to 1 or uint8 from 0 to 255; or a list of one of these.
        size, mask: arguments of the pipeline that are not checked yet; large PIL images are reduced as for
            `inst.transfer`.

    Raises:
        UsageError: `image` is something else, or the pictures have different sizes.
    """
    given: Any = image if isinstance(image, list | tuple) else [image]
    has_own_size = isinstance(mask, np.ndarray | Tensor)  # the photo's
    single = [one for entry in given for one in (entry if getattr(entry, "ndim", 0) == 4 else [entry])]
    return to_batch([_read_photo(one) for one in single], "image", None if has_own_size else reading_size(size))


def _read_photo(image: Any) -> PipelinePicture:
    """Check one image, and convert a tensor (`_read_tensor`)."""
    check_type("An image", image, (Image.Image, np.ndarray, Tensor), "give a PIL image, an array or a tensor")
    return _read_tensor(image, "image") if isinstance(image, Tensor) else image


def _read_tensor(image: Tensor, what: str) -> Tensor:
    """Convert a tensor from 0 to 1, as in diffusers, to this package's, from -1 to 1; uint8 stays."""
    if image.dtype == torch.uint8:
        return image
    # diffusers guesses that a tensor with a negative value is from -1 to 1, and misreads a bright one.
    if not image.is_floating_point() or not ((image >= 0) & (image <= 1)).all():  # False for NaN, so NaN is refused
        raise UsageError(
            f"The {what}'s values cannot be used", "give floating point numbers from 0 to 1, or uint8 from 0 to 255"
        )
    return image.float() * 2 - 1


def read_mask_image(mask: PipelinePicture) -> Mask:
    """Read a mask for `inst.transfer`: a PIL image as it is; an array or tensor [H, W] in [0, 1] or uint8.

    Raises:
        UsageError: `mask` is something else.
    """
    if isinstance(mask, Image.Image):
        return mask
    try:
        tensor: Tensor = _MASKS.preprocess(mask)
    except (ValueError, RuntimeError, IndexError, TypeError) as error:
        raise UsageError(f"The mask_image cannot be used ({first_line(error)})", "give one picture") from None
    if tensor.shape[:2] != (1, 1):
        raise UsageError(f"A mask_image of the shape {list(tensor.shape)} cannot be used", "give one grey picture")
    return tensor[0, 0]


def read_styles(backbone: Backbone, style: StyleInput | Mapping[str, StyleInput]) -> Style | dict[str, Style]:
    """Read a style, or several styles by placeholder. Raises InstError, or UsageError if an input is not a style."""
    if isinstance(style, Mapping):
        return {name: read_style(backbone, _read_paintings(given)) for name, given in style.items()}
    return read_style(backbone, _read_paintings(style))


def _read_paintings(style: Any) -> Any:
    """Convert the tensors in the input for one style as those of photos; all else stays."""
    if isinstance(style, list | tuple):
        return [_read_paintings(one) for one in style]
    return _read_tensor(style, "painting") if isinstance(style, Tensor) else style


def read_generators(
    generator: torch.Generator | Sequence[torch.Generator] | None, pictures: int
) -> torch.Generator | Sequence[torch.Generator]:
    """Check the generators for this number of pictures, and return them.

    None is PyTorch's default generator on the CPU, so that every device gets the same noise.

    Raises:
        UsageError: they are something else, or the number of generators is wrong.
    """
    if generator is None:
        return torch.default_generator
    for one in generator if isinstance(generator, Sequence) else [generator]:
        check_type("A generator", one, torch.Generator, "give a torch.Generator, or a list of them")
    if not isinstance(generator, torch.Generator) and len(generator) != pictures:
        raise UsageError(
            f"{len(generator)} generators do not fit {pictures} pictures", "give one generator for all, or one for each"
        )
    return generator


def check_call(output_type: str, callback: object, tensor_inputs: Sequence[str]) -> None:
    """Raise UsageError if one of these arguments cannot be used. They do not depend on the other arguments."""
    if output_type not in OUTPUT_TYPES:
        raise UsageError(f'The output_type "{output_type}" is unknown', f"use one of {', '.join(OUTPUT_TYPES)}")
    if callback is not None and not callable(callback):
        raise UsageError(
            f"A callback_on_step_end of the type {type(callback).__name__} cannot be used", "give a function"
        )
    names = " and ".join(CALLBACK_TENSORS)
    if not isinstance(tensor_inputs, Sequence) or isinstance(tensor_inputs, str):
        raise UsageError(
            f"callback_on_step_end_tensor_inputs of the type {type(tensor_inputs).__name__} cannot be used",
            f"give a list of {names}",
        )
    unknown = [name for name in tensor_inputs if name not in CALLBACK_TENSORS]
    if unknown:
        raise UsageError(
            f"callback_on_step_end_tensor_inputs has unknown names: {', '.join(map(str, unknown))}",
            f"use {names} only",
        )


def read_copies(number: Any) -> int:
    """Return `num_images_per_prompt`. Raises UsageError unless it is a whole number from 1 to `MOST_PICTURES`."""
    copies: int = checked("num_images_per_prompt", number, "int")
    if not 1 <= copies <= MOST_PICTURES:
        raise UsageError(f"num_images_per_prompt is {shown(copies)}", f"give 1 to {MOST_PICTURES}")
    return copies


def read_answer(answer: Any, latents: Tensor) -> Tensor | None:
    """Return the latents with which a callback wants to continue, or None. Raises UsageError if they cannot be used.

    Args:
        answer: what the callback returned.
        latents: those of the step.
    """
    if answer is None:
        return None
    remedy = 'let it return None, or a dict such as {"latents": ...}'
    check_type("A result of callback_on_step_end", answer, Mapping, remedy)
    changed = answer.get("latents")
    if changed is not None:
        check_type("latents from callback_on_step_end", changed, Tensor, remedy)
        if changed.shape != latents.shape or not changed.is_floating_point():
            raise UsageError(
                f"latents from callback_on_step_end of the shape {list(changed.shape)} and the type {changed.dtype} "
                "cannot be used",
                f"let it return the shape {list(latents.shape)}, in floating point",
            )
    return changed


_NAMES = {
    "photo": "image",
    "steps": "num_inference_steps",
    "guidance": "guidance_scale",
    "mask": "mask_image",
    "seed": "generator",
    "noise": "latents",
}
"""Arguments of `inst.transfer` and `inst.generate` that have another name in the pipelines of diffusers."""


def pipeline_wording(named: Argument | Call) -> str:
    """Return the text for a user of the pipeline: argument names of diffusers, and components of the pipeline."""
    match named:
        case Argument("image_encoder"):
            such_as = f', such as "{named.value}",' if named.value else ""
            return f"the pipeline's component image_encoder{such_as}"
        case Argument("download"):  # Python callers give it together with the image encoder
            return "its feature_extractor"
        case Argument():
            return python_wording(Argument(_NAMES.get(named.name, named.name), named.value))
    return python_wording(named)


def reject_arguments(arguments: Mapping[str, Any], remedy: str) -> None:
    """Raise UsageError for the first argument that is given (not None). None of them applies to this call."""
    for name, value in arguments.items():
        if value is not None:
            raise UsageError(f"{name} cannot be used here", remedy)


_NO_SUCH = {
    "timesteps, sigmas": "the timesteps follow from num_inference_steps and strength",
    "guidance_rescale": "give a lower guidance_scale",
    "prompt_2, negative_prompt_2": "encode the prompts with a pipeline of diffusers, and give prompt_embeds",
    "original_size, target_size, crops_coords_top_left, negative_original_size, negative_target_size, "
    "negative_crops_coords_top_left": "they follow from the size of the picture and its tiles",
    "denoising_start, denoising_end": "give strength; a refiner can work on the finished picture",
    "aesthetic_score, negative_aesthetic_score": "only refiners take it, and InST has none",
    "padding_mask_crop": "crop the photo and the mask_image",
    "control_image, controlnet_conditioning_scale": "give control, an inst.sampling.control.Control",
    "callback, callback_steps": "give callback_on_step_end",
}
"""Arguments of the pipelines of diffusers that this pipeline does not have, and what to do instead."""


def reject_unknown(arguments: Mapping[str, Any]) -> None:
    """Raise UsageError for an argument that only the pipelines of diffusers have, TypeError for any other.

    None means not given.
    """
    remedies = {name: remedy for names, remedy in _NO_SUCH.items() for name in names.split(", ")}
    for name, value in arguments.items():
        if name not in remedies:
            raise TypeError(f"InSTPipeline.__call__() got an unexpected keyword argument '{name}'")
        if value is not None:
            raise UsageError(f"This pipeline has no argument {name}", remedies[name])


def repeated(texts: Sequence[Any] | TextEmbedding, copies: int) -> Any:
    """Repeat each text or encoded prompt `copies` times, one after another."""
    rows = [row for row in range(len(texts)) for _ in range(copies)]
    return texts[rows] if isinstance(texts, TextEmbedding) else [texts[row] for row in rows]


def repeated_negative(negative: Any, prompts: int, copies: int) -> Any:
    """Repeat negative prompts, texts or encoded, as their prompts are repeated. One for all prompts stays as it is.

    Raises:
        UsageError: there are several, and not one for each prompt.
    """
    if not isinstance(negative, list | tuple | TextEmbedding) or len(negative) == 1:
        return negative
    if len(negative) != prompts:
        raise UsageError(
            f"{len(negative)} negative prompts do not fit {prompts} prompts", "give one text for all, or one for each"
        )
    return repeated(negative, copies)
