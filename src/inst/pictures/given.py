"""Pictures as people have them -> what the package computes with. The public functions take all of these alike."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from inst.arguments import check_type
from inst.errors import UsageError
from inst.pictures.io import Photo, fit_mask, mask_of, read_painting, to_tensor
from inst.pictures.io import read_mask as read_mask_file
from inst.pictures.srgb import flatten, to_srgb

Picture = str | os.PathLike[str] | Image.Image | np.ndarray[Any, Any] | Tensor | Photo
"""A picture in any form:

- the path of a file, or a PIL image of any mode: upright, in sRGB, laid over white;
- an array [H, W, 3], [H, W, 4] or [H, W] (grey): uint8 from 0 to 255, or floating point from 0 to 1;
- a tensor [3, H, W], floating point from -1 to 1, as this package returns them;
- a `Photo`, whose opacity does not count.
"""

FORMS = (str, os.PathLike, Image.Image, np.ndarray, Tensor, Photo)
"""The types of `Picture`."""

_WANTED = "give a path, a PIL image, an array, a tensor or an inst.Photo"


def read_one(given: Picture, what: str = "photo") -> Photo:
    """Read one picture, which messages call `what`.

    Raises:
        UsageError: it is none of `Picture`, or has another shape or other values.
        InstError: a file that cannot be read.
    """
    if isinstance(given, Photo):
        return given
    if isinstance(given, str | os.PathLike):
        return read_painting(given)
    if isinstance(given, Image.Image):
        name = Path(getattr(given, "filename", "") or "").name
        return Photo(to_tensor(flatten(*to_srgb(ImageOps.exif_transpose(given)))), name=name)
    if isinstance(given, np.ndarray):
        return Photo(_read_array(given, what))
    check_type(f"A {what}", given, Tensor, _WANTED)
    if given.dim() != 3 or given.shape[0] != 3 or 0 in given.shape:
        raise UsageError(f"A {what} of the shape {list(given.shape)} cannot be used", "give [3, H, W] or [B, 3, H, W]")
    if not given.is_floating_point() or not (given.abs() <= 1).all():  # NaN is not either
        raise UsageError(f"The {what}'s values cannot be used", "give floating point numbers from -1 to 1")
    return Photo(given.float())


def read_several(given: Picture | Sequence[Picture], what: str = "photo") -> list[Photo]:
    """Read one picture or several: a sequence of them, a tensor [B, 3, H, W], or an array [B, H, W, 3].

    Raises:
        UsageError: there is none, or as `read_one` does.
        InstError: a file that cannot be read.
    """
    if isinstance(given, Tensor | np.ndarray) and given.ndim == 4:
        given = list(given)
    several = [given] if not isinstance(given, Sequence) or isinstance(given, str | bytes) else given
    if not several:
        raise UsageError(f"No {what} is given", "give at least one")
    return [read_one(one, what) for one in several]


def read_batch(given: Picture | Sequence[Picture], what: str = "photo") -> Tensor:
    """Read one picture or several of one size into a batch [B, 3, H, W] in [-1, 1]. Raises as `read_several` does."""
    if isinstance(given, Tensor) and given.dim() == 4 and len(given):
        read_one(given[0], what)  # says what is wrong with the shape
        if given.is_floating_point() and (given.abs() <= 1).all():
            return given.float()
    pictures = [one.picture for one in read_several(given, what)]
    sizes = sorted({(one.shape[2], one.shape[1]) for one in pictures})
    if len(sizes) > 1:
        (width, height), (other_width, other_height) = sizes[:2]
        raise UsageError(
            f"{what.capitalize()}s of {width} x {height} and of {other_width} x {other_height} pixels make no batch",
            "give those of one size together",
        )
    return torch.stack(pictures)


def read_mask(given: Any, size: tuple[int, int]) -> Tensor:
    """Read a mask [H, W] in [0, 1], 1 where the style is wanted: a path, a PIL image, an array or a tensor.

    A mask of a file or PIL image is resized to `size` (height, width) where its proportions agree.

    Raises:
        UsageError: it is none of these, or does not fit.
        InstError: a file that cannot be read.
    """
    height, width = size
    if isinstance(given, str | os.PathLike):
        return read_mask_file(Path(given), size)
    if isinstance(given, Image.Image):
        given = fit_mask("The mask", mask_of(given), size)
    if isinstance(given, np.ndarray):
        given = torch.from_numpy(given.astype(np.float32) / (255 if given.dtype == np.uint8 else 1))
    check_type("A mask", given, Tensor, "give a path, a PIL image, an array or a tensor")
    if tuple(given.shape) != (height, width):
        raise UsageError(
            f"A mask of the shape {list(given.shape)} does not fit a photo of [{height}, {width}] (height, width)",
            "resize it to the photo's size",
        )
    if given.is_complex() or not ((given >= 0) & (given <= 1)).all():  # NaN is neither
        raise UsageError("The mask's values cannot be used", "give numbers from 0 (the photo stays) to 1 (the style)")
    mask: Tensor = given
    return mask


def _read_array(given: np.ndarray[Any, Any], what: str) -> Tensor:
    if given.ndim not in (2, 3) or (given.ndim == 3 and given.shape[2] not in (1, 3, 4)) or 0 in given.shape:
        raise UsageError(
            f"A {what} of the shape {list(given.shape)} cannot be used",
            "give an array [H, W, 3], or a tensor [3, H, W]",
        )
    if given.dtype != np.uint8 and not (given.dtype.kind == "f" and ((given >= 0) & (given <= 1)).all()):
        raise UsageError(
            f"The {what}'s values cannot be used", "give uint8 from 0 to 255, or floating point numbers from 0 to 1"
        )
    levels = given if given.ndim == 3 else given[:, :, None]
    values = torch.from_numpy(np.ascontiguousarray(levels)).float() / (255 if given.dtype == np.uint8 else 1)
    values = values.permute(2, 0, 1)
    if len(values) == 4:  # over white
        values = values[:3] * values[3:] + 1 - values[3:]
    return (values.expand(3, -1, -1) * 2 - 1).contiguous()
