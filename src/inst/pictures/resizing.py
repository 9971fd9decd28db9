"""Resize pictures, also large ones that do not fit in memory as numbers.

A pixel of a decoded image takes 1 to 4 bytes, and 12 as a tensor. So a large image is converted in strips, and each is
made narrow before the next one is converted. The result is that of resizing the whole, to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from inst.arguments import checked
from inst.errors import UsageError

LARGE = 2**24
"""Number of pixels above which a picture is reduced while it is read, if only a small one is needed."""

_LARGEST = 2**26
"""Number of pixels to which every larger picture is reduced: a panorama may have a short side that is small."""

_STRIP = 2**21  # pixels


def fit_size(width: int, height: int, short_side: int) -> tuple[int, int]:
    """Scale (width, height), rounded, so that the short side is `short_side`. The proportions stay the same."""
    short_side = checked("size", short_side, "int")  # NumPy's small integer types would overflow below
    if short_side < 1:
        raise UsageError(f"A short side of {short_side} pixels is not possible", "give a positive number")
    short = min(width, height)
    return round(width * short_side / short), round(height * short_side / short)


def reduced_size(width: int, height: int, short_side: int | None) -> tuple[int, int] | None:
    """Return (width, height) to which a picture is reduced when it is read; None if it stays as it is."""
    if short_side is None or width * height <= LARGE:
        return None
    fitting = int(min(width, height) * math.sqrt(_LARGEST / (width * height)))
    short_side = max(1, min(short_side, fitting))
    return None if min(width, height) <= short_side else fit_size(width, height, short_side)


def interpolate(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize [..., H, W] to `size` (height, width): bicubic, antialiased, not clamped."""
    if tuple(picture.shape[-2:]) == tuple(size):
        return picture
    batch = picture.reshape(-1, 1, *picture.shape[-2:]).float()
    return F.interpolate(batch, size, mode="bicubic", antialias=True).reshape(*picture.shape[:-2], *size)


def resize(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize [3, H, W] or [B, 3, H, W] in [-1, 1] to `size` (height, width): bicubic, antialiased, clamped."""
    return interpolate(picture, size).clamp(-1, 1)


def resize_short_side(picture: Tensor, short_side: int) -> Tensor:
    """Resize as `resize` does, so that the short side is `short_side` pixels. The proportions stay the same."""
    width, height = fit_size(picture.shape[-1], picture.shape[-2], short_side)
    return resize(picture, (height, width))


def resize_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a mask or an opacity, [H, W] in [0, 1], as `resize` does."""
    return interpolate(mask[None], size)[0].clamp(0, 1)


def strips(image: Image.Image) -> Iterator[Image.Image]:
    """Yield an image in parts from top to bottom, each of its full width."""
    rows = max(1, _STRIP // image.width)
    for top in range(0, image.height, rows):
        yield image.crop((0, top, image.width, min(top + rows, image.height)))


def resize_strips(image: Image.Image, size: tuple[int, int], convert: Callable[[Image.Image], Tensor]) -> Tensor:
    """Convert an image, and resize it as `interpolate` does.

    Args:
        image: of any mode.
        size: (width, height).
        convert: converts an image to a tensor [C, H, W], each pixel by itself.
    """
    width, height = size
    narrow, top = torch.empty(0), 0
    for part in map(convert, strips(image)):
        if top == 0:
            narrow = torch.empty(len(part), image.height, width)
        narrow[:, top : top + part.shape[1]] = interpolate(part, (part.shape[1], width))
        top += part.shape[1]
    return interpolate(narrow, (height, width))
