"""Tone: the colours of the result. They are not changed, moved toward the painting, or taken from the photo."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from inst.backbone.devices import copy_to
from inst.backbone.model import Backbone
from inst.pictures.oklab import in_gamut, oklab_to_linear, oklab_to_srgb, srgb_to_oklab
from inst.pictures.resizing import fit_size, resize
from inst.sampling.tiles import encode_in_tiles
from inst.synthesis.references import Paintings

TONES = ("none", "painting", "adain", "photo")
"""The tones by name.

none: the colours that the denoiser gives. At moderate strengths they are mostly those of the photo.
painting: the photo gets the palette of the painting (`match_palette`) before noise is added. The denoiser then still
    decides which colour goes where, and paints single strokes in the colours of the painting. If the result gets the
    palette instead, it looks like a filter over the picture: flatter, with a colour cast. A generated picture has no
    photo, so there the result gets the palette.
adain: the latents of the photo, or of a generated picture, get the statistics of the painting's latents (`adain`), as
    in the reference code of InST. The palette is less exact than with "painting", and the photo changes more.
photo: the lightness of the result with the hue and chroma of the photo (`keep_colours`).
"""


_LEAST_VARIANCE = 4e-6


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


_KNOWN = WeakTensorKeyDictionary()
"""The colour statistics of paintings that are in use."""


@dataclass(frozen=True, eq=False)
class Palette:
    """The colours that pictures are moved to: mean [3] and covariance [3, 3] of sRGB values, in float64 on the CPU.

    A palette for each picture of a batch has a mean [B, 3] and a covariance [B, 3, 3].
    """

    mean: Tensor
    covariance: Tensor

    @classmethod
    def of(cls, pictures: Sequence[Tensor], shares: Sequence[float] = (1.0,)) -> Palette:
        """Compute the palette of pictures, each [3, H, W] in [-1, 1]: the mean of their palettes by shares."""
        means, covariances = zip(*map(_known_statistics, pictures), strict=True)
        weights = torch.tensor(shares, dtype=torch.float64) / sum(shares)
        return cls(
            torch.einsum("n,nc->c", weights, torch.stack(means)),
            torch.einsum("n,ncd->cd", weights, torch.stack(covariances)),
        )

    @classmethod
    def of_each(cls, pictures: Tensor) -> Palette:
        """Compute the palette of each picture of a batch [B, 3, H, W] in [-1, 1]."""
        return cls(*_colour_statistics(pictures))


def match_palette(pictures: Tensor, palette: Palette) -> Tensor:
    """Give each picture the palette, and move its colours as little as that allows.

    Of all linear maps that give the colours a new mean and covariance, this one moves them least (Monge-Kantorovitch;
    Pitie and Kokaram 2007, "The linear Monge-Kantorovitch linear colour mapping for example-based colour transfer"):

        c' = A (c - mean) + mean',   A = S^(-1/2) (S^(1/2) S' S^(1/2))^(1/2) S^(-1/2)

    S is the covariance of the picture and S' that of the palette. Measured on eight paintings and photos: AdaIN of
    the latents, as in the reference code of InST, changes the photo more (LPIPS 0.39 instead of 0.33 on a sample) and
    comes less close to the painting (Gram distance 0.75 instead of 0.70).

    Args:
        pictures: [B, 3, H, W] in [-1, 1].
        palette: the colours.

    Returns:
        [B, 3, H, W], clamped to [-1, 1].
    """
    mean, covariance = _colour_statistics(pictures)
    root, inverse = _power(covariance, 0.5), _power(covariance, -0.5)
    matrix = inverse @ _power(root @ palette.covariance @ root, 0.5) @ inverse
    offset = palette.mean - (matrix @ mean[..., None])[..., 0]
    matrix, offset = (copy_to(part, pictures.device, pictures.dtype) for part in (matrix, offset))
    colours = matrix @ pictures.flatten(2) + offset[..., None]
    return colours.view_as(pictures).clamp(-1, 1)


def _known_statistics(painting: Tensor) -> tuple[Tensor, Tensor]:
    """Return the `_colour_statistics` of a painting, which does not change; for many photos they are computed once."""
    found: tuple[Tensor, Tensor] | None = _KNOWN.get(painting)
    if found is None:
        found = _KNOWN[painting] = _colour_statistics(painting)
    return found


def _colour_statistics(pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Return means [..., 3] and covariances [..., 3, 3] of the colours of [..., 3, H, W], in float64 on the CPU."""
    colours = pictures.flatten(-2)
    # Apple's GPUs have no float64.
    colours = (colours.cpu() if colours.device.type == "mps" else colours).double()
    mean = colours.mean(dim=-1, keepdim=True)
    centred = colours - mean
    covariance = centred @ centred.mT / colours.shape[-1]
    # A picture of one colour has no covariance to invert. The added variance is that of a quarter of an 8-bit level.
    return mean[..., 0].cpu(), covariance.cpu() + _LEAST_VARIANCE * torch.eye(3, dtype=torch.float64)


def _power(matrices: Tensor, exponent: float) -> Tensor:
    """Raise symmetric positive definite matrices [..., 3, 3] to a power."""
    values, vectors = torch.linalg.eigh(matrices)
    return (vectors * values.clamp_min(_LEAST_VARIANCE)[..., None, :] ** exponent) @ vectors.mT


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


def palette_of(paintings: Paintings) -> Palette | None:
    """Return the palette of paintings; None if there are none."""
    parts = [part for group in paintings.values() for part in group]
    return Palette.of(*zip(*parts, strict=True)) if parts else None


def latent_statistics(backbone: Backbone, paintings: Paintings) -> tuple[Tensor, Tensor]:
    """Compute the mean and std of the latents of paintings for `adain`, weighted by shares: two [1, C, 1, 1].

    The paintings are resized to the native size of the backbone, and encoded in tiles if they are long: a scroll has
    many times the pixels of a square.
    """
    parts = [part for group in paintings.values() for part in group]
    total = sum(share for _, share in parts)
    statistics = []
    for painting, share in parts:
        sides = fit_size(painting.shape[2], painting.shape[1], backbone.native_size)
        width, height = (side - side % backbone.downscale for side in sides)
        latents = encode_in_tiles(backbone, resize(painting[None].to(backbone.device), (height, width)))
        statistics.append(share / total * torch.stack(channel_statistics(latents)))
    mean, std = torch.stack(statistics).sum(dim=0)
    return mean, std
