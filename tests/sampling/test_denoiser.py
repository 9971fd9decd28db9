"""Classifier-free guidance."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inst import UsageError
from inst.backbone.text import TextEmbedding
from inst.sampling.denoiser import guided
from schedules import noise


class Counted:
    """A model whose prediction depends on the text; remembers the batch of every call."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, latents: torch.Tensor, timestep: int, text: TextEmbedding) -> torch.Tensor:
        self.batches.append(len(latents))
        return latents * text.tokens.mean((1, 2)).view(-1, 1, 1, 1) + timestep


@settings(deadline=None)
@given(st.floats(-20, 20), st.integers(1, 3), st.booleans(), st.booleans())
def test_the_guided_prediction_is_linear_in_the_guidance(
    guidance: float, batch: int, one_text: bool, one_negative: bool
) -> None:
    model, latents = Counted(), noise(batch, 4, 8, 8)
    text = TextEmbedding(noise(1 if one_text else batch, 6, 5, seed=1))
    negative = TextEmbedding(noise(1 if one_negative else batch, 6, 5, seed=2))
    without, with_text = model(latents, 7, negative), model(latents, 7, text)
    model.batches.clear()
    found = guided(model, text, negative, guidance)(latents, 7)
    assert model.batches == [batch if guidance == 1 else 2 * batch]
    torch.testing.assert_close(found, (1 - guidance) * without + guidance * with_text, rtol=1e-4, atol=1e-4)


def test_between_fresh_timesteps_the_difference_of_guidance_is_kept() -> None:
    """The prediction is latents x text + timestep, so the difference is latents x (text - negative)."""
    model, text, negative = Counted(), TextEmbedding(noise(1, 6, 5, seed=1)), TextEmbedding(noise(1, 6, 5, seed=2))
    weight, against = text.tokens.mean(), negative.tokens.mean()
    denoise = guided(model, text, negative, 4.0, {9, 5}.__contains__)
    first, second, third = (noise(2, 4, 8, 8, seed=seed) for seed in (3, 4, 5))
    for latents, timestep, kept in ((first, 9, first), (second, 7, first), (third, 5, third), (first, 2, third)):
        expected = latents * weight + timestep + 3.0 * kept * (weight - against)
        torch.testing.assert_close(denoise(latents, timestep), expected, rtol=1e-4, atol=1e-4)
    assert model.batches == [4, 2, 4, 2]
    assert guided(model, text, negative, 4.0, lambda t: False)(first, 3).shape == first.shape  # the first is always new
    assert model.batches[-1] == 4


def test_without_guidance_the_negative_prompt_is_not_evaluated() -> None:
    model, latents, text = Counted(), noise(3, 4, 8, 8), TextEmbedding(noise(3, 6, 5))
    assert torch.equal(guided(model, text, None, 1)(latents, 7), model(latents, 7, text))
    assert model.batches == [3, 3]
    with pytest.raises(TypeError, match="negative"):
        guided(model, text, None, 1.5)


@pytest.mark.parametrize("guidance", [math.nan, math.inf])
def test_a_guidance_that_is_not_finite_is_refused(guidance: float) -> None:
    with pytest.raises(UsageError, match=f"guidance of {guidance}"):
        guided(Counted(), TextEmbedding(noise(1, 6, 5)), TextEmbedding(noise(1, 6, 5)), guidance)
