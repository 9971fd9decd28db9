"""Tone: whose palette the result has. No change, toward the painting, or the photo's own colours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from inst.images import fit_size, resize
from inst.tiles import encode_in_tiles

if TYPE_CHECKING:
    from inst.backbone import Backbone

TONES = ("none", "painting", "photo")
"""The tones by name.

none: colours as the denoiser leaves them: mostly the photo's, at moderate strengths.
painting: the photo's latents get the painting's statistics (`adain`) before they are noised, as in InST's reference
    code. On the result instead, the same statistics lie over the picture like a filter: flatter, with a cast. Before
    the noise, the denoiser still decides which colour goes where, and paints single strokes in the painting's colours.
    Both at once look like the former. Pictures that are generated have no photo: theirs is on the result.
photo: the result's lightness with the photo's hue and chroma (`keep_colours`).
"""

# Ottosson 2020, "A perceptual color space for image processing": linear sRGB -> cone responses -> Lab.
_TO_CONES = (
    (0.4122214708, 0.5363325363, 0.0514459929),
    (0.2119034982, 0.6806995451, 0.1073969566),
    (0.0883024619, 0.2817188376, 0.6299787005),
)
_TO_LAB = (
    (0.2104542553, 0.7936177850, -0.0040720468),
    (1.9779984951, -2.4285922050, 0.4505937099),
    (0.0259040371, 0.7827717662, -0.8086757660),
)


def channel_statistics(latents: Tensor) -> tuple[Tensor, Tensor]:
    """Compute each channel's mean and standard deviation over the positions: [B, C, h, w] -> two of [B, C, 1, 1].

    The variance is the unbiased one plus 1e-5, as in AdaIN's reference code (Huang and Belongie 2017, arXiv
    1703.06868) and in InST's.
    """
    mean = latents.mean(dim=(-2, -1), keepdim=True)
    variance = latents.var(dim=(-2, -1), unbiased=True, keepdim=True)
    return mean, (variance + 1e-5).sqrt()


def adain(latents: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Adaptive instance normalisation: give each channel of [B, C, h, w] another mean and std, [B or 1, C, 1, 1]."""
    own_mean, own_std = channel_statistics(latents)
    return (latents - own_mean) / own_std * std + mean


def palette(backbone: Backbone, paintings: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Compute the statistics of paintings' latents, for `adain`: the mean of theirs, two of [1, C, 1, 1].

    Args:
        backbone: whose autoencoder makes the latents.
        paintings: at least one, each [3, H, W] in [-1, 1]; looked at in the backbone's native size, in tiles where
            they are long: a scroll has many times the pixels of a square.
    """
    statistics = []
    for painting in paintings:
        sides = fit_size(painting.shape[2], painting.shape[1], backbone.native_size)
        width, height = (side - side % backbone.downscale for side in sides)
        latents = encode_in_tiles(backbone, resize(painting[None].to(backbone.device), (height, width)))
        statistics.append(torch.stack(channel_statistics(latents)))
    mean, std = torch.stack(statistics).mean(dim=0)
    return mean, std


def keep_colours(result: Tensor, photo: Tensor) -> Tensor:
    """Take the lightness of `result` and the colours (hue and chroma) of `photo`, in Oklab.

    Where a colour cannot be shown at the new lightness, its chroma is reduced until it can: hue and lightness stay.

    Args:
        result: [..., 3, H, W] sRGB in [-1, 1].
        photo: the same shape or one that broadcasts to it.

    Returns:
        [..., 3, H, W] in [-1, 1].
    """
    lightness = srgb_to_oklab(result)[..., :1, :, :].clamp(0, 1)
    colour = srgb_to_oklab(photo)[..., 1:, :, :].expand(*lightness.shape[:-3], -1, -1, -1)
    # 10 halvings find the largest chroma that can be shown to a thousandth.
    share, step = torch.ones_like(lightness), 1.0
    for _ in range(10):
        step /= 2
        shown = _in_gamut(_oklab_to_linear(torch.cat([lightness, share * colour], dim=-3)))
        share = torch.where(shown, (share + step).clamp(max=1), share - step)
    return oklab_to_srgb(torch.cat([lightness, share * colour], dim=-3))


def srgb_to_oklab(pictures: Tensor) -> Tensor:
    """[..., 3, H, W] sRGB in [-1, 1] -> Oklab: lightness L in [0, 1], and the opponent colours a and b."""
    levels = (pictures + 1) / 2
    linear = torch.where(levels <= 0.04045, levels / 12.92, ((levels.clamp_min(0) + 0.055) / 1.055) ** 2.4)
    cones = _matmul(pictures.new_tensor(_TO_CONES), linear).clamp_min(0)
    return _matmul(pictures.new_tensor(_TO_LAB), cones.pow(1 / 3))


def oklab_to_srgb(lab: Tensor) -> Tensor:
    """The inverse of `srgb_to_oklab`; colours that sRGB does not have are clamped to [-1, 1]."""
    linear = _oklab_to_linear(lab).clamp(0, 1)
    levels = torch.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear.clamp_min(1e-8) ** (1 / 2.4) - 0.055)
    return levels * 2 - 1


def _oklab_to_linear(lab: Tensor) -> Tensor:
    cones = _matmul(torch.linalg.inv(lab.new_tensor(_TO_LAB)), lab) ** 3
    return _matmul(torch.linalg.inv(lab.new_tensor(_TO_CONES)), cones)


def _in_gamut(linear: Tensor) -> Tensor:
    return ((linear >= -1e-4) & (linear <= 1 + 1e-4)).all(dim=-3, keepdim=True)


def _matmul(matrix: Tensor, pictures: Tensor) -> Tensor:
    return torch.einsum("ij,...jhw->...ihw", matrix, pictures)
