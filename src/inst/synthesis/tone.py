"""Tone: whose palette the result has. No change, toward the painting, or the photo's own colours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from inst.pictures.io import fit_size, resize
from inst.sampling.tiles import encode_in_tiles

if TYPE_CHECKING:
    from inst.backbone.model import Backbone
import warnings
from collections.abc import Mapping

from inst.backbone.model import Backbone
from inst.errors import InstWarning
from inst.pictures.oklab import in_gamut, oklab_to_linear, oklab_to_srgb, srgb_to_oklab
from inst.styles.style import Style

TONES = ("none", "painting", "photo")
"""The tones by name.

none: colours as the denoiser leaves them: mostly the photo's, at moderate strengths.
painting: the photo's latents get the painting's statistics (`adain`) before they are noised, as in InST's reference
    code. On the result instead, the same statistics lie over the picture like a filter: flatter, with a cast. Before
    the noise, the denoiser still decides which colour goes where, and paints single strokes in the painting's colours.
    Both at once look like the former. Pictures that are generated have no photo: theirs is on the result.
photo: the result's lightness with the photo's hue and chroma (`keep_colours`).
"""


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
        shown = in_gamut(oklab_to_linear(torch.cat([lightness, share * colour], dim=-3)))
        share = torch.where(shown, (share + step).clamp(max=1), share - step)
    return oklab_to_srgb(torch.cat([lightness, share * colour], dim=-3))


def paintings_of(styles: Mapping[str, Style]) -> list[Tensor]:
    """The paintings whose palette is wanted; warns of a style that carries none."""
    for style in styles.values():
        if style.thumbnail is None:
            warnings.warn(
                f'The style "{style.name}" carries no picture of its painting: its palette is not transferred.',
                InstWarning,
                stacklevel=3,
            )
    return [painting for painting in (style.painting() for style in styles.values()) if painting is not None]
