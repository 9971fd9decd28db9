"""Stochastic inversion by its definition, DDIM inversion against diffusers' and against the way back."""

import math

import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler

from inst import UsageError
from inst.runs import complete
from inst.sampling.content import INVERSIONS, ddim_inversion, invert_content, stochastic_inversion
from inst.sampling.denoiser import guided
from inst.sampling.noise import add_noise, draw_noise, timestep_grid
from inst.sampling.solvers import ddim
from tiny import LATENT_CHANNELS

STABLE_DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
ABAR = DDIMScheduler(**STABLE_DIFFUSION).alphas_cumprod
CLEAN, NOISE = (torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))


def smooth_model(latents: torch.Tensor, timestep: int) -> torch.Tensor:
    """A prediction that changes slowly with the latents and the timestep."""
    return torch.tanh(0.5 * latents + latents.roll(1, -1) / 4) * math.cos(timestep / 700)


class Recorded:
    """A denoiser that remembers what it was called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[torch.Tensor, int]] = []

    def __call__(self, latents: torch.Tensor, timestep: int) -> torch.Tensor:
        self.calls.append((latents.clone(), timestep))
        return smooth_model(latents, timestep)


@pytest.mark.parametrize("strength", [0.05, 0.5, 1.0])
def test_stochastic_inversion_with_a_perfect_denoiser_gives_back_the_noise(strength: float) -> None:
    grid = timestep_grid(1000, 20, strength)

    def perfect(latents: torch.Tensor, timestep: int) -> torch.Tensor:
        return (latents - ABAR[timestep].sqrt() * CLEAN) / (1 - ABAR[timestep]).sqrt()

    start = complete(invert_content("stochastic", perfect, CLEAN, grid, ABAR, NOISE))
    torch.testing.assert_close(start, add_noise(CLEAN, NOISE, grid[0], ABAR), rtol=1e-4, atol=1e-4)
    assert torch.equal(start, stochastic_inversion(perfect, CLEAN, grid[0], ABAR, NOISE))


def test_stochastic_inversion_equals_an_example_worked_out_by_hand() -> None:
    """abar 0.64: z_t = 0.8 x 2 + 0.6 x 1 = 2.2; the model says 3; the start is 0.8 x 2 + 0.6 x 3."""

    def three(latents: torch.Tensor, timestep: int) -> torch.Tensor:
        assert latents.item() == pytest.approx(2.2)
        assert timestep == 1
        return torch.full_like(latents, 3)

    clean, noise = torch.full((1, 1, 1, 1), 2.0), torch.ones(1, 1, 1, 1)
    start = complete(invert_content("stochastic", three, clean, [1, 0], torch.tensor([0.9, 0.64]), noise))
    assert start.item() == pytest.approx(3.4)


def test_stochastic_inversion_calls_the_denoiser_once_at_the_first_timestep() -> None:
    model, grid = Recorded(), timestep_grid(1000, 20, 0.7)
    complete(invert_content("stochastic", model, CLEAN, grid, ABAR, NOISE))
    [(latents, timestep)] = model.calls
    assert timestep == 699
    torch.testing.assert_close(latents, add_noise(CLEAN, NOISE, 699, ABAR))


def test_plain_noise_calls_no_denoiser() -> None:
    model = Recorded()
    start = complete(invert_content("none", model, CLEAN, timestep_grid(1000, 20, 0.7), ABAR, NOISE))
    assert torch.equal(start, add_noise(CLEAN, NOISE, 699, ABAR))
    assert model.calls == []


@pytest.mark.parametrize(("steps", "strength"), [(10, 1.0), (12, 0.6), (1, 0.05)])
def test_ddim_inversion_gives_the_same_steps_as_diffusers(steps: int, strength: float) -> None:
    """Without refinement; with trailing spacing, set_alpha_to_one=True, clip_sample=False, and steps that divide T.

    diffusers turns v into epsilon at the noise level that the latents come from, though the model was asked at the
    timestep that they go to; `predict_noise` does both at one timestep, so that no v-prediction can be compared.
    """
    scheduler = DDIMInverseScheduler(
        **STABLE_DIFFUSION, timestep_spacing="trailing", set_alpha_to_one=True, clip_sample=False
    )
    scheduler.set_timesteps(round(steps / strength))
    grid = timestep_grid(1000, steps, strength)
    assert scheduler.timesteps.tolist()[:steps] == grid[::-1]
    found = list(ddim_inversion(smooth_model, CLEAN, grid, ABAR, refinements=0))
    assert [(step.index, step.total, step.timestep) for step in found] == [
        (i, steps, t) for i, t in enumerate(reversed(grid))
    ]
    latents = CLEAN
    for step in found:
        latents = scheduler.step(smooth_model(latents, step.timestep), step.timestep, latents).prev_sample
        torch.testing.assert_close(step.latents, latents, rtol=1e-5, atol=1e-5)


def test_ddim_inversion_calls_the_denoiser_at_the_timestep_it_goes_to() -> None:
    model, grid = Recorded(), timestep_grid(1000, 4, 0.5)
    found = list(ddim_inversion(model, CLEAN, grid, ABAR, refinements=1))
    assert [timestep for _, timestep in model.calls] == [124, 124, 249, 249, 374, 374, 499, 499]
    asked = [latents for latents, _ in model.calls]
    assert torch.equal(asked[0], CLEAN)
    assert torch.equal(asked[2], found[0].latents)
    assert not torch.equal(asked[1], asked[0])
    assert torch.equal(complete(invert_content("ddim", smooth_model, CLEAN, grid, ABAR, NOISE)), found[-1].latents)


def there_and_back(steps: int, refinements: int) -> float:
    """The relative error after DDIM inversion and DDIM sampling."""
    grid = timestep_grid(1000, steps, 0.8)
    start = complete(ddim_inversion(smooth_model, CLEAN, grid, ABAR, refinements))
    found = complete(ddim(smooth_model, start, grid, ABAR))
    return ((found - CLEAN).norm() / CLEAN.norm()).item()


@pytest.mark.parametrize("refinements", [0, 1, 2])
def test_ddim_inversion_and_sampling_come_back_closer_on_a_finer_grid(refinements: int) -> None:
    errors = [there_and_back(steps, refinements) for steps in (10, 40, 160)]
    assert errors[0] < 0.1
    assert errors[0] > 2 * errors[1] > 4 * errors[2]


def test_ddim_inversion_with_many_refinements_is_exact() -> None:
    errors = [there_and_back(20, refinements) for refinements in (0, 1, 2)]
    assert errors[0] > 2 * errors[1] > 4 * errors[2]
    assert there_and_back(20, 30) < 1e-5


def test_ddim_inversion_and_sampling_are_exact_if_the_predicted_noise_is_constant() -> None:
    grid = timestep_grid(1000, 7, 0.8)
    start = complete(invert_content("ddim", lambda z, t: NOISE, CLEAN, grid, ABAR, torch.zeros_like(NOISE)))
    torch.testing.assert_close(start, add_noise(CLEAN, NOISE, grid[0], ABAR), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(complete(ddim(lambda z, t: NOISE, start, grid, ABAR)), CLEAN, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("kind", INVERSIONS)
def test_with_a_real_network_inversion_does_not_depend_on_the_rest_of_the_batch(tiny_backbone, kind: str) -> None:
    abar, grid = tiny_backbone.alphas_cumprod, timestep_grid(1000, 5, 0.6)
    clean, noise = draw_noise((LATENT_CHANNELS, 8, 8), [1, 2]), draw_noise((LATENT_CHANNELS, 8, 8), [3, 4])
    denoise = guided(tiny_backbone.predict_noise, tiny_backbone.embed_text(["a painting of a dog"]), None, 1)
    both = complete(invert_content(kind, denoise, clean, grid, abar, noise))
    assert both.shape == clean.shape
    assert both.isfinite().all()
    for i in range(2):
        alone = complete(invert_content(kind, denoise, clean[i : i + 1], grid, abar, noise[i : i + 1]))
        torch.testing.assert_close(alone[0], both[i], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", INVERSIONS)
def test_inversion_at_strength_0_returns_the_clean_latents(kind: str) -> None:
    model = Recorded()
    grid = timestep_grid(1000, 20, 0)
    assert torch.equal(complete(invert_content(kind, model, CLEAN, grid, ABAR, NOISE)), CLEAN)
    assert model.calls == []


@pytest.mark.parametrize("kind", INVERSIONS)
def test_inversion_leaves_its_inputs_unchanged_and_is_repeatable(kind: str) -> None:
    clean, noise, abar = CLEAN.clone(), NOISE.clone(), ABAR.clone()
    grid = timestep_grid(1000, 5, 0.6)
    start = complete(invert_content(kind, smooth_model, clean, grid, abar, noise))
    assert torch.equal(start, complete(invert_content(kind, smooth_model, clean, grid, abar, noise)))
    assert torch.equal(clean, CLEAN)
    assert torch.equal(noise, NOISE)
    assert torch.equal(abar, ABAR)


@pytest.mark.parametrize("kind", INVERSIONS)
@pytest.mark.parametrize("grid", [[5, 5], [1000], [3, -1]])
def test_timesteps_that_do_not_fall_within_the_schedule_are_refused(kind: str, grid: list[int]) -> None:
    with pytest.raises(UsageError, match="fall, from 999 at most to 0"):
        complete(invert_content(kind, smooth_model, CLEAN, grid, ABAR, NOISE))


@pytest.mark.parametrize("grid", [[], [5]])
def test_an_unknown_inversion_is_refused_with_the_known_names(grid: list[int]) -> None:
    with pytest.raises(UsageError, match='"null-text" is unknown: use one of stochastic, none, ddim'):
        complete(invert_content("null-text", smooth_model, CLEAN, grid, ABAR, NOISE))
