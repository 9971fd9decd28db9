"""Read masks: [H, W] in [0, 1]."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from inst.arguments import check_path
from inst.errors import InstWarning, UsageError
from inst.files.provenance import SourceFile
from inst.pictures.opening import opened, source_of
from inst.pictures.resizing import resize_strips, strips
from inst.pictures.srgb import split_alpha


def read_mask(path: str | os.PathLike[str], size: tuple[int, int] | None = None) -> Tensor:
    """Read a mask: [H, W] float32 in [0, 1]. The style is applied where it is 1 (white).

    The stored grey levels are used, without colour management. A picture with transparency is laid over black. If all
    its visible pixels have one colour, as in a cut-out or a brush on an empty layer, its opacity is the mask.

    Args:
        path: the mask file.
        size: (height, width) of the photo. The mask is resized to it if it has the same proportions.

    Raises:
        InstError: an error of `open_picture`.
        UsageError: the mask's proportions differ from those of `size`.

    Warns:
        InstWarning: the mask has only the levels 0 and 1 of 255. 1 counts as white then.
    """
    return read_mask_file(path, size)[0]


def read_mask_file(path: str | os.PathLike[str], size: tuple[int, int] | None = None) -> tuple[Tensor, SourceFile]:
    """Read a mask as `read_mask` does, and return it with the record of its file."""
    check_path("A mask", path)
    path = Path(path)
    with opened(path) as (file, image, _):
        return mask_of(image, size, str(path)), source_of(path, file)


def mask_of(image: Image.Image, size: tuple[int, int] | None = None, name: str = "The mask") -> Tensor:
    """Convert an image of any mode to a mask [H, W] in [0, 1]; see `read_mask`. `name` is its name in messages."""
    if size is not None:
        _check_proportions(name, (image.height, image.width), size)
    convert = _mask_reader(image)
    if size is None:
        return convert(image)[0]
    return resize_strips(image, (size[1], size[0]), convert)[0].clamp(0, 1)


def _check_proportions(name: str, found: tuple[int, int], size: tuple[int, int]) -> None:
    """Raise UsageError unless a mask of `found` (height, width) has the proportions of a photo of `size`."""
    (found_height, found_width), (height, width) = found, size
    # A mask drawn on a smaller copy may be off by a pixel of that copy.
    if abs(found_height * width / height - found_width) > 1 + 0.01 * found_width:
        raise UsageError(
            f"{name} is {found_width} x {found_height} pixels, but the photo is {width} x {height}",
            "make a mask with the photo's proportions",
        )


def _mask_reader(image: Image.Image) -> Callable[[Image.Image], Tensor]:
    """Return the function that converts a part of a mask to [1, h, W] in [0, 1]: by its levels, its opacity, or both.

    Warns with `InstWarning` if the mask has only the levels 0 and 1.
    """
    has_opacity, highest, seen = False, 0, set[bytes]()
    for part in strips(image):
        colours, alpha = split_alpha(part)
        has_opacity |= alpha is not None
        highest = max(highest, int(np.asarray(colours.convert("L")).max()))
        if len(seen) < 2 and image.has_transparency_data:
            rgb = np.asarray(colours.convert("RGB"))
            visible = rgb.reshape(-1, 3) if alpha is None else rgb[np.asarray(alpha) > 0]
            seen |= {bound.tobytes() for bound in (visible.min(0), visible.max(0))} if len(visible) else set()
    labels = not has_opacity and highest == 1  # white in the maps of labels that programs for segmentation write
    if labels:
        warnings.warn(InstWarning("The mask has only the levels 0 and 1, so 1 counts as white"), stacklevel=4)

    def convert(part: Image.Image) -> Tensor:
        colours, alpha = split_alpha(part)
        levels = torch.from_numpy(np.array(colours.convert("L")))[None].float() / (1 if labels else 255)
        if not has_opacity:
            return levels
        opacity = torch.ones_like(levels) if alpha is None else torch.from_numpy(np.array(alpha))[None].float() / 255
        return opacity if len(seen) < 2 else levels * opacity

    return convert
