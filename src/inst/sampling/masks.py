"""Masks: a style for a region of the photo only; outside it the photo stays as it is."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from inst.sampling.denoiser import Denoise
from inst.sampling.tiles import pad_to_multiple


def to_latents(mask: Tensor, size_multiple: int, downscale: int) -> Tensor:
    """Average a mask of pixels [H, W] to one of the padded picture's latents [h, w]."""
    return F.avg_pool2d(pad_to_multiple(mask[None, None], size_multiple), downscale)[0, 0]


def masked(denoise: Denoise, mask: Tensor, clean: Tensor, alphas_cumprod: Tensor) -> Denoise:
    """Let a denoiser find the photo itself outside of a mask: blended latent diffusion as a denoiser.

    Source: Avrahami et al. 2022 (arXiv 2206.02779, sec. 3.2), who replace the latents outside of the mask by the
    noised photo after each step. Here the prediction is replaced, by the noise that leads from the photo to z_t:

        eps(z_t, t) = mask denoise(z_t, t) + (1 - mask) (z_t - sqrt(abar_t) z_0) / sqrt(1 - abar_t)

    From there any deterministic solver goes along the noised photo and ends at z_0, the photo's latents, as in the
    paper; and no solver needs to know of masks.

    Args:
        denoise: predicts the noise in [B, C, h, w] at a timestep.
        mask: [h, w] in [0, 1], 1 where the denoiser is to be followed.
        clean: z_0, the photo's latents, [B, C, h, w].
        alphas_cumprod: abar, [T].
    """

    def denoise_inside(latents: Tensor, timestep: int) -> Tensor:
        abar = alphas_cumprod[timestep]
        of_photo = (latents - abar.sqrt() * clean) / (1 - abar).sqrt()
        return of_photo + mask * (denoise(latents, timestep) - of_photo)

    return denoise_inside


def feather(mask: Tensor, radius: int) -> Tensor:
    """Soften a mask's edges inwards: what is 0 stays 0, and of every region the largest value stays.

    The mask is eroded by `radius`, then blurred over as many pixels: a hard edge becomes a ramp of 2 `radius` pixels on
    its inner side, and a soft mask keeps its values but near its own edges. Where a region is too narrow for two such
    ramps, and would fade or vanish, the radius is halved as often as it takes.

    Args:
        mask: [H, W] in [0, 1].
        radius: in pixels.

    Returns:
        [H, W] in [0, 1], at no pixel above `mask`'s largest value nearby.
    """
    if radius < 1:
        return mask
    side = 2 * radius + 1
    # Beyond the picture's border the mask goes on as at the border: a region may touch it.
    padded = F.pad(mask[None, None], [2 * radius] * 4, mode="replicate")
    eroded = -F.max_pool2d(-padded, side, stride=1)
    soft = F.avg_pool2d(eroded, side, stride=1)[0, 0]
    # Nothing is softened away in the core, and around it is its edge: a little more, for regions that are round.
    core = -_highest(-mask, 2 * radius)
    narrow = _highest(core, 2 * radius + (radius + 1) // 2) < mask
    return soft.maximum(feather(mask, radius // 2)).where(narrow, soft) if narrow.any() else soft


def _highest(mask: Tensor, radius: int) -> Tensor:
    """The largest value of [H, W] within `radius` pixels, in a square."""
    return F.max_pool2d(mask[None, None], 2 * radius + 1, stride=1, padding=radius)[0, 0]
