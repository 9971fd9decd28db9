"""The denoiser predicts the noise in noisy latents at a timestep, with classifier-free guidance."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from inst.backbone.text import TextEmbedding
from inst.errors import UsageError

Denoise = Callable[[Tensor, int], Tensor]
"""(z_t [B, C, h, w], t) -> the noise epsilon predicted in z_t, [B, C, h, w] float32."""


def guided(
    predict_noise: Callable[[Tensor, int, TextEmbedding], Tensor],
    text: TextEmbedding,
    negative: TextEmbedding | None,
    guidance: float,
    fresh: Callable[[int], bool] = lambda timestep: True,
    together: bool = True,
) -> Denoise:
    """Make a denoiser with classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598).

    eps = eps(negative) + guidance (eps(text) - eps(negative)). One call with a batch of 2 B predicts both. A guidance
    of 1 gives eps(text): one call with a batch of B, and `negative` may be None.

    The difference eps(text) - eps(negative) changes slowly during sampling. At a timestep that is not `fresh`, the
    latest one is used again, and the call has a batch of B (the idea of FasterCache, Lv et al. 2024, arXiv 2410.19355).
    So such a denoiser is for one run only, from high timesteps to low ones.

    Args:
        predict_noise: such as `Backbone.predict_noise`: (z_t [B, C, h, w], t, text of B prompts) -> epsilon.
        text: text embedding of B prompts, or of one prompt for all.
        negative: text embedding of the negative (or empty) prompts, B or one.
        guidance: the guidance scale, any finite number.
        fresh: says whether the difference is computed anew at a timestep.
        together: predict with both texts in one call; two calls need less memory.

    Raises:
        UsageError: the guidance is not finite.
    """
    if not math.isfinite(guidance):
        raise UsageError(f"A guidance of {guidance} cannot be used", "give a number, such as 1 (none) or 5")
    if guidance == 1:
        return lambda latents, timestep: predict_noise(latents, timestep, text)
    if negative is None:
        raise TypeError(f"a guidance of {guidance} needs the text embedding of the negative prompt")

    difference: Tensor | None = None

    def denoise(latents: Tensor, timestep: int) -> Tensor:
        nonlocal difference
        if difference is not None and not fresh(timestep):
            return predict_noise(latents, timestep, text) + (guidance - 1) * difference
        if together:
            both = TextEmbedding.cat([part.expand(len(latents)) for part in (negative, text)])
            with_negative, with_text = predict_noise(torch.cat([latents, latents]), timestep, both).chunk(2)
        else:
            with_negative, with_text = (predict_noise(latents, timestep, part) for part in (negative, text))
        difference = with_text - with_negative
        return with_negative + guidance * difference

    return denoise
