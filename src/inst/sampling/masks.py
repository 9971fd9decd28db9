"""Masks: apply a style to one region of a photo. Outside of the region, the photo does not change."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from inst.sampling.denoiser import Denoise
from inst.sampling.tiles import pad_to_multiple


def to_latents(mask: Tensor, size_multiple: int, downscale: int) -> Tensor:
    """Average a pixel mask [H, W] to a mask for the latents of the padded picture, [h, w]."""
    return F.avg_pool2d(pad_to_multiple(mask[None, None], size_multiple), downscale)[0, 0]


def masked(denoise: Denoise, mask: Tensor, clean: Tensor, alphas_cumprod: Tensor) -> Denoise:
    """Make a denoiser that reproduces the photo outside of a mask (blended latent diffusion).

    Source: Avrahami et al. 2022 (arXiv 2206.02779, sec. 3.2). They replace the latents outside of the mask by the
    noised photo after each step. Here the predicted noise is replaced, by the noise between the photo and z_t:

        eps(z_t, t) = mask denoise(z_t, t) + (1 - mask) (z_t - sqrt(abar_t) z_0) / sqrt(1 - abar_t)

    With this prediction, every deterministic solver follows the noised photo and ends at z_0, the latents of the photo,
    as in the paper. The solvers need no code for masks.

    Args:
        denoise: predicts the noise in [B, C, h, w] at a timestep.
        mask: [h, w] in [0, 1]; 1 where `denoise` is used.
        clean: z_0, the latents of the photo, [B, C, h, w].
        alphas_cumprod: abar, [T].
    """

    def denoise_inside(latents: Tensor, timestep: int) -> Tensor:
        abar = alphas_cumprod[timestep]
        photo_noise = (latents - abar.sqrt() * clean) / (1 - abar).sqrt()
        return photo_noise + mask * (denoise(latents, timestep) - photo_noise)

    return denoise_inside


def feather(mask: Tensor, radius: int) -> Tensor:
    """Soften the edges of a mask inwards. Pixels of 0 stay 0, and every region keeps its largest value.

    The mask is eroded by `radius`, and then blurred with the same radius. A hard edge becomes a ramp of 2 `radius`
    pixels on its inner side. A soft mask changes only near its edges. If a region is too narrow for two such ramps, it
    would fade or vanish: there the radius is halved until the region stays.

    Args:
        mask: [H, W] in [0, 1].
        radius: in pixels.

    Returns:
        [H, W] in [0, 1]; no pixel exceeds the largest value of `mask` in its neighbourhood.
    """
    if radius < 1:
        return mask
    side = 2 * radius + 1
    # A region may touch the border of the picture, so the border values are repeated outside.
    padded = F.pad(mask[None, None], [2 * radius] * 4, mode="replicate")
    eroded = -F.max_pool2d(-padded, side, stride=1)
    soft = F.avg_pool2d(eroded, side, stride=1)[0, 0]
    # The core of a region keeps its values. The edge around it is taken a little wider, because of round regions.
    core = -_highest(-mask, 2 * radius)
    narrow = _highest(core, 2 * radius + (radius + 1) // 2) < mask
    return soft.maximum(feather(mask, radius // 2)).where(narrow, soft) if narrow.any() else soft


def _highest(mask: Tensor, radius: int) -> Tensor:
    """Return the largest value of [H, W] in the square of `radius` pixels around each pixel."""
    return F.max_pool2d(mask[None, None], 2 * radius + 1, stride=1, padding=radius)[0, 0]
