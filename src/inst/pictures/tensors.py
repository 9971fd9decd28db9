"""Convert PIL images to tensors [3, H, W] in [-1, 1], and back."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from inst.errors import Argument, InstError, UsageError


def to_tensor(image: Image.Image) -> Tensor:
    """Convert an RGB image to [3, H, W] float32 in [-1, 1]."""
    pixels = torch.from_numpy(np.array(image if image.mode == "RGB" else image.convert("RGB"))).permute(2, 0, 1)
    # In place and without copies in between: a large picture takes much memory.
    return pixels.to(torch.float32, memory_format=torch.contiguous_format).div_(127.5).sub_(1)


def to_image(picture: Tensor, alpha: Tensor | None = None) -> Image.Image:
    """Convert [3, H, W] or [1, 3, H, W] in [-1, 1] (clamped) to an RGB image; the inverse of `to_tensor`.

    With `alpha`, [H, W] in [0, 1], the image is RGBA.

    Raises:
        UsageError: the picture has another shape.
        InstError: the picture has values that are not finite, which half precision can cause.
    """
    if picture.dim() == 4 and len(picture) == 1:
        picture = picture[0]
    if picture.dim() != 3 or picture.shape[0] != 3 or 0 in picture.shape or not picture.is_floating_point():
        kind = str(picture.dtype).removeprefix("torch.")
        raise UsageError(
            f"A picture of the shape {list(picture.shape)} and the type {kind} cannot be used",
            "give one picture, [3, H, W] in floating point from -1 to 1",
        )
    if not picture.isfinite().all():
        raise InstError(
            "The picture has values that are not finite", "load the backbone with ", Argument("dtype", "float32")
        )
    levels = ((picture.detach().float().clamp(-1, 1) + 1) * 127.5).round().to("cpu", torch.uint8)
    image = Image.fromarray(levels.permute(1, 2, 0).contiguous().numpy())
    if alpha is not None:
        image.putalpha(alpha_image(alpha))
    return image


def alpha_image(alpha: Tensor) -> Image.Image:
    """Convert an opacity [H, W] in [0, 1] to an image of mode L."""
    return Image.fromarray((alpha.detach().float().clamp(0, 1) * 255).round().to("cpu", torch.uint8).numpy())
