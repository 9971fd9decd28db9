"""Tone: the colours of the result. They are not changed, moved toward the painting, or taken from the photo."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from inst.backbone.model import Backbone
from inst.errors import InstWarning
from inst.pictures.io import fit_size, resize
from inst.pictures.oklab import in_gamut, oklab_to_linear, oklab_to_srgb, srgb_to_oklab
from inst.sampling.tiles import encode_in_tiles
from inst.styles.style import Style

TONES = ("none", "painting", "photo")
"""The tones by name.

none: the colours that the denoiser gives. At moderate strengths they are mostly those of the photo.
painting: the latents of the photo get the statistics of the painting (`adain`) before noise is added, as in the
    reference code of InST. The denoiser then still decides which colour goes where, and paints single strokes in the
    colours of the painting. If the result gets the statistics instead, they look like a filter over the picture:
    flatter, with a colour cast. Changing both looks like changing the result only. A generated picture has no photo,
    so there the result gets the statistics.
photo: the lightness of the result with the hue and chroma of the photo (`keep_colours`).
"""


def channel_statistics(latents: Tensor) -> tuple[Tensor, Tensor]:
    """Compute mean and standard deviation of each channel over the positions: [B, C, h, w] -> two of [B, C, 1, 1].

    The variance is the unbiased variance plus 1e-5, as in the reference code of AdaIN (Huang and Belongie 2017, arXiv
    1703.06868) and of InST.
    """
    mean = latents.mean(dim=(-2, -1), keepdim=True)
    variance = latents.var(dim=(-2, -1), unbiased=True, keepdim=True)
    return mean, (variance + 1e-5).sqrt()


def adain(latents: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Apply adaptive instance normalisation: give each channel of [B, C, h, w] a new mean and std [B or 1, C, 1, 1]."""
    own_mean, own_std = channel_statistics(latents)
    return (latents - own_mean) / own_std * std + mean


def palette_statistics(backbone: Backbone, paintings: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Compute the mean and std of the latents of paintings for `adain`, averaged over the paintings: two [1, C, 1, 1].

    Args:
        backbone: its autoencoder makes the latents.
        paintings: at least one, each [3, H, W] in [-1, 1]. They are resized to the native size of the backbone, and
            encoded in tiles if they are long: a scroll has many times the pixels of a square.
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

    If sRGB cannot show a colour at the new lightness, its chroma is reduced until it can. Hue and lightness stay.

    Args:
        result: [..., 3, H, W] sRGB in [-1, 1].
        photo: the same shape, or a shape that broadcasts to it.

    Returns:
        [..., 3, H, W] in [-1, 1].
    """
    lightness = srgb_to_oklab(result)[..., :1, :, :].clamp(0, 1)
    colour = srgb_to_oklab(photo)[..., 1:, :, :].expand(*lightness.shape[:-3], -1, -1, -1)
    # 10 halvings find the largest possible chroma with an error below 0.001.
    factor, step = torch.ones_like(lightness), 1.0
    for _ in range(10):
        step /= 2
        valid = in_gamut(oklab_to_linear(torch.cat([lightness, factor * colour], dim=-3)))
        factor = torch.where(valid, (factor + step).clamp(max=1), factor - step)
    return oklab_to_srgb(torch.cat([lightness, factor * colour], dim=-3))


def decode_paintings(styles: Mapping[str, Style]) -> list[Tensor]:
    """Return the thumbnails of the paintings, each [3, H, W] in [-1, 1]. Warns if a style has no thumbnail."""
    for style in styles.values():
        if style.thumbnail is None:
            warnings.warn(
                f'The style "{style.name}" has no picture of its painting, so its palette is not transferred.',
                InstWarning,
                stacklevel=3,
            )
    return [painting for painting in (style.painting() for style in styles.values()) if painting is not None]
