"""The solvers against diffusers' schedulers and pipeline, exact solutions, and their properties."""

import math
import shutil
from collections.abc import Callable, Generator
from itertools import pairwise

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, StableDiffusionPipeline
from hypothesis import given, settings
from hypothesis import strategies as st

from inst import Backbone, InstError, UsageError
from inst.runs import complete
from inst.sampling.denoiser import guided
from inst.sampling.noise import add_noise, draw_noise, timestep_grid
from inst.sampling.solvers import SOLVERS, choose_solver, ddim, dpm_solver_pp
from schedules import ABAR, DDIM, DPM, PREDICTIONS, noise
from tiny import LATENT_CHANNELS, edit_json


def dummy_model(seed: int = 0) -> Callable[[torch.Tensor, int], torch.Tensor]:
    """A smooth non-linear function of the latents and the timestep, the same for the same seed."""
    weight = noise(4, 4, 3, 3, seed=seed) / 6

    def model(latents: torch.Tensor, timestep: int) -> torch.Tensor:
        mixed = torch.nn.functional.conv2d(latents, weight.to(latents), padding=1)
        return torch.tanh(mixed + 0.3 * math.cos(timestep / 150)) + 0.5 * latents

    return model


def as_noise(model, prediction: str, abar: torch.Tensor = ABAR):
    """The epsilon that a model of `prediction` predicts: by the definition of v, eps = alpha v + sigma z."""
    if prediction == "epsilon":
        return model
    return lambda z, t: abar[t].sqrt() * model(z, t) + (1 - abar[t]).sqrt() * z


def by_diffusers(scheduler, model, latents: torch.Tensor, timesteps) -> list[torch.Tensor]:
    trajectory = []
    for t in timesteps:
        latents = scheduler.step(model(latents, int(t)), int(t), latents).prev_sample
        trajectory.append(latents)
    return trajectory


def close(found, expected, tolerance: float = 2e-5) -> None:
    """Within a fraction of the expected tensors' scale."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert (one - other).abs().max() <= tolerance * max(1.0, other.abs().max())


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(
    ("steps", "strength"), [(1, 1.0), (10, 1.0), (20, 1.0), (50, 1.0), (12, 0.6), (1, 0.05), (4, 0.2)]
)
def test_ddim_gives_the_same_steps_as_diffusers(prediction: str, steps: int, strength: float) -> None:
    scheduler = DDIMScheduler(**DDIM, prediction_type=prediction)
    scheduler.set_timesteps(round(steps / strength))  # the end of its grid is our whole one
    grid = timestep_grid(1000, steps, strength)
    assert scheduler.timesteps.tolist()[-steps:] == grid
    model, start = dummy_model(), noise(2, 4, 8, 8, seed=9)
    expected = by_diffusers(scheduler, model, start, grid)
    found = list(ddim(as_noise(model, prediction), start, grid, ABAR))
    close([step.latents for step in found], expected)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_ddim_with_fresh_noise_gives_the_same_steps_as_diffusers(prediction: str, eta: float) -> None:
    scheduler = DDIMScheduler(**DDIM, prediction_type=prediction)
    scheduler.set_timesteps(10)
    grid = timestep_grid(1000, 10)
    model, start = dummy_model(), noise(2, 4, 8, 8, seed=9)
    generators = [torch.Generator().manual_seed(5) for _ in range(2)]
    expected, latents = [], start
    for t in grid:
        latents = scheduler.step(model(latents, t), t, latents, eta=eta, generator=generators[0]).prev_sample
        expected.append(latents)
    solve = choose_solver("ddim", eta, lambda: torch.randn(start.shape, generator=generators[1]))
    found = list(solve(as_noise(model, prediction), start, grid, ABAR))
    close([step.latents for step in found], expected)
    assert torch.equal(generators[0].get_state(), generators[1].get_state())


@settings(deadline=None, max_examples=60)
@given(
    st.sets(st.integers(0, 49), min_size=1, max_size=25),
    st.integers(0, 19),
    st.sampled_from(PREDICTIONS),
    st.sampled_from([1, 2]),
    st.booleans(),
)
def test_both_solvers_give_the_same_steps_as_diffusers_on_uneven_grids(
    twenties, offset, prediction, order, lower_order_final
) -> None:
    grid = sorted((20 * twenty + offset for twenty in twenties), reverse=True)
    scheduler = DPMSolverMultistepScheduler(
        **DPM, solver_order=order, prediction_type=prediction, lower_order_final=lower_order_final
    )
    scheduler.set_timesteps(timesteps=grid)
    levels = ABAR.double()[grid]
    scheduler.sigmas = torch.cat([((1 - levels) / levels).sqrt(), torch.zeros(1)])  # in double precision, as ours are
    model, start = dummy_model(), noise(1, 4, 8, 8, seed=9).double()
    expected = by_diffusers(scheduler, model, start, grid)
    solver = {1: ddim, 2: dpm_solver_pp}[order]
    found = list(solver(as_noise(model, prediction, ABAR.double()), start, grid, ABAR))
    close([step.latents for step in found], expected, tolerance=1e-4)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(
    ("steps", "strength"), [(1, 1.0), (2, 1.0), (10, 1.0), (20, 1.0), (37, 1.0), (13, 0.63), (20, 0.3)]
)
def test_dpm_solver_gives_the_same_steps_as_diffusers(prediction: str, steps: int, strength: float) -> None:
    scheduler = DPMSolverMultistepScheduler(**DPM, prediction_type=prediction)
    grid = timestep_grid(1000, steps, strength)
    scheduler.set_timesteps(timesteps=grid)
    model, start = dummy_model(), noise(2, 4, 8, 8, seed=9)
    expected = by_diffusers(scheduler, model, start, grid)
    found = list(dpm_solver_pp(as_noise(model, prediction), start, grid, ABAR))
    close([step.latents for step in found], expected, tolerance=1e-4)


@pytest.fixture(scope="module", params=PREDICTIONS)
def backbone(request, tiny_backbone: Backbone, tiny_backbone_folder, tmp_path_factory) -> Backbone:
    if request.param == "v_prediction":
        return tiny_backbone
    folder = shutil.copytree(tiny_backbone_folder, tmp_path_factory.mktemp("epsilon") / "copy")
    edit_json(folder / "scheduler" / "scheduler_config.json", prediction_type="epsilon")
    return Backbone.load(folder, "cpu", "float32")


@torch.no_grad()
@pytest.mark.parametrize("guidance", [1.0, 4.5])
@pytest.mark.parametrize("solver", SOLVERS)
def test_guided_sampling_gives_the_same_latents_as_the_pipeline_of_diffusers(
    backbone: Backbone, solver: str, guidance: float
) -> None:
    """The whole loop: prompts, negative prompts, the UNet's own prediction type, guidance, and the solver."""
    kind, config = {"ddim": (DDIMScheduler, DDIM), "dpm++": (DPMSolverMultistepScheduler, DPM)}[solver]
    pipeline = StableDiffusionPipeline(
        vae=backbone.vae,
        text_encoder=backbone.text_encoder,
        tokenizer=backbone.tokenizer,
        unet=backbone.unet,
        scheduler=kind(**config, prediction_type=backbone.scheduler.config["prediction_type"]),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    text = backbone.embed_text(["a painting of a dog", "the river"])
    negative = backbone.embed_text([""])
    start = draw_noise((LATENT_CHANNELS, 8, 8), [3, 4])
    expected = pipeline(
        prompt_embeds=text.tokens,
        negative_prompt_embeds=negative.expand(2).tokens,
        latents=start,
        guidance_scale=guidance,
        num_inference_steps=5,
        output_type="latent",
    ).images

    denoise = guided(backbone.predict_noise, text, negative, guidance)
    found = complete(choose_solver(solver)(denoise, start, timestep_grid(1000, 5), backbone.alphas_cumprod))
    close([found], [expected], tolerance=1e-4)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_schedule_of_zero_terminal_snr_is_sampled_as_in_diffusers(tiny_copy, solver: str) -> None:
    """The last abar is 0, where epsilon says nothing about z_0: kept just above it, as diffusers' DPM-Solver does."""
    edit_json(tiny_copy / "scheduler" / "scheduler_config.json", rescale_betas_zero_snr=True)
    backbone = Backbone.load(tiny_copy, "cpu", "float32")
    assert backbone.scheduler.alphas_cumprod[-1] == 0
    assert backbone.alphas_cumprod[-1] > 0
    kind, config = {"ddim": (DDIMScheduler, DDIM), "dpm++": (DPMSolverMultistepScheduler, DPM)}[solver]
    scheduler = kind(**config, prediction_type="v_prediction", rescale_betas_zero_snr=True)
    scheduler.set_timesteps(10)
    model, start = dummy_model(), noise(2, 4, 8, 8, seed=9)
    expected = by_diffusers(scheduler, model, start, timestep_grid(1000, 10))
    denoise = as_noise(model, "v_prediction", backbone.alphas_cumprod)
    found = list(SOLVERS[solver](denoise, start, timestep_grid(1000, 10), backbone.alphas_cumprod))
    close([step.latents for step in found], expected, tolerance=1e-3)


def test_ddim_steps_equal_an_example_worked_out_by_hand() -> None:
    """abar 0.64 -> alpha 0.8, sigma 0.6; z 2, eps 1 -> z_0 1.75; then abar 0.36 the other way round."""
    levels = torch.tensor([0.64, 0.36])
    first, last = ddim(lambda z, t: torch.ones_like(z), torch.full((1, 1, 1, 1), 2.0), [1, 0], levels)
    assert first.clean.item() == pytest.approx((2 - 0.8) / 0.6)
    assert first.latents.item() == pytest.approx(0.8 * 2 + 0.6)
    assert last.latents.item() == last.clean.item() == pytest.approx((2.2 - 0.6) / 0.8)
    assert [(step.index, step.total, step.timestep) for step in (first, last)] == [(0, 2, 1), (1, 2, 0)]


def test_dpm_solver_steps_equal_an_example_worked_out_by_hand() -> None:
    """Algorithm 2 of Lu et al. written out for three levels, with a denoiser that predicts z_0 = t."""
    levels = [0.9, 0.5, 0.1]
    alpha, sigma = [math.sqrt(a) for a in levels], [math.sqrt(1 - a) for a in levels]
    lam = [math.log(a / s) for a, s in zip(alpha, sigma, strict=True)]

    def denoise(z: torch.Tensor, t: int) -> torch.Tensor:
        return (z - alpha[t] * t) / sigma[t]

    steps = list(dpm_solver_pp(denoise, torch.ones(1, 1, 1, 1), [2, 1, 0], torch.tensor(levels)))
    h1, h2 = lam[1] - lam[2], lam[0] - lam[1]
    one = sigma[1] / sigma[2] * 1 - alpha[1] * math.expm1(-h1) * 2
    r = h1 / h2
    two = sigma[0] / sigma[1] * one - alpha[0] * math.expm1(-h2) * ((1 + 1 / (2 * r)) * 1 - 1 / (2 * r) * 2)
    assert [step.clean.item() for step in steps] == pytest.approx([2, 1, 0], abs=1e-5)
    assert [step.latents.item() for step in steps] == pytest.approx([one, two, 0], abs=1e-5)


def gaussian_data(spread: float) -> Callable[[torch.Tensor, int], torch.Tensor]:
    """The perfect denoiser of data drawn from N(0, spread^2): eps = sigma z / (alpha^2 spread^2 + sigma^2)."""
    abar = ABAR.double()
    return lambda z, t: (1 - abar[t]).sqrt() * z / (abar[t] * spread**2 + 1 - abar[t])


@pytest.mark.parametrize(("solver", "order"), [("ddim", 1), ("dpm++", 2)])
def test_the_solvers_converge_to_the_exact_solution_at_their_order(solver: str, order: int) -> None:
    """The probability flow of Gaussian data is known: z / sqrt(alpha^2 spread^2 + sigma^2) stays what it is.

    Measured from timestep 950 to 150, because the step to z_0 after that is of first order in every grid.
    """
    spread, start = 0.3, noise(1, 4, 8, 8).double()
    high, low = ((ABAR[t].item() * spread**2 + 1 - ABAR[t].item()) ** 0.5 for t in (950, 150))
    exact = start * low / high

    def error(gap: int) -> float:
        *_, last, _to_clean = SOLVERS[solver](gaussian_data(spread), start, range(950, 149, -gap), ABAR)
        return ((last.latents - exact).norm() / exact.norm()).item()

    errors = [error(gap) for gap in (80, 40, 20, 10)]
    assert errors[0] < 0.03
    for coarse, fine in pairwise(errors):
        assert coarse / fine == pytest.approx(2**order, rel=0.05)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_denoiser_that_knows_the_noise_restores_the_clean_latents(solver: str) -> None:
    clean, eps = noise(1, 4, 8, 8), noise(1, 4, 8, 8, seed=1)
    for steps in (1, 2, 20):
        grid = timestep_grid(1000, steps, 0.8)
        found = complete(SOLVERS[solver](lambda z, t: eps, add_noise(clean, eps, grid[0], ABAR), grid, ABAR))
        close([found], [clean], tolerance=1e-4)


@pytest.mark.parametrize("solver", SOLVERS)
def test_sampling_is_lazy_and_leaves_its_inputs_unchanged(solver: str) -> None:
    calls: list[int] = []
    model, start, abar = dummy_model(), noise(2, 4, 8, 8), ABAR.clone()
    kept, grid = start.clone(), timestep_grid(1000, 4)

    def denoise(z: torch.Tensor, t: int) -> torch.Tensor:
        calls.append(t)
        return model(z, t)

    sampling = SOLVERS[solver](denoise, start, grid, abar)
    assert calls == []
    first = next(sampling)
    assert calls == grid[:1]
    latents, predicted = first.latents.clone(), first.clean.clone()
    rest = list(sampling)
    assert calls == grid
    assert [step.index for step in (first, *rest)] == [0, 1, 2, 3]
    assert torch.equal(start, kept)
    assert torch.equal(abar, ABAR)
    assert torch.equal(first.latents, latents)
    assert torch.equal(first.clean, predicted)
    assert torch.equal(rest[-1].latents, rest[-1].clean)
    again = list(SOLVERS[solver](model, start, grid, ABAR))
    assert torch.equal(again[-1].latents, rest[-1].latents)


@pytest.mark.parametrize("solver", SOLVERS)
def test_strength_0_takes_no_step(solver: str) -> None:
    clean = noise(1, 4, 8, 8)
    assert list(SOLVERS[solver](dummy_model(), clean, timestep_grid(1000, 20, 0), ABAR)) == []
    assert complete(SOLVERS[solver](dummy_model(), clean, timestep_grid(1000, 20, 0), ABAR)) is clean


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("grid", [[1000, 5], [5, -1], [5, 5], [5, 6]])
def test_timesteps_that_do_not_fall_within_the_schedule_are_refused(solver: str, grid: list[int]) -> None:
    with pytest.raises(UsageError, match="fall, from 999 at most to 0"):
        next(SOLVERS[solver](dummy_model(), noise(1, 4, 8, 8), grid, ABAR))


@pytest.mark.parametrize("level", [0.0, 1.0, math.nan])
def test_a_noise_schedule_that_cannot_be_sampled_is_refused(level: float) -> None:
    with pytest.raises(InstError, match="timestep 1"):
        next(ddim(dummy_model(), noise(1, 4, 8, 8), [1, 0], torch.tensor([0.9, level])))


def test_an_unknown_solver_is_refused_with_the_known_names() -> None:
    assert choose_solver("dpm++") is dpm_solver_pp
    with pytest.raises(UsageError, match=r'"euler" is unknown: use one of ddim, dpm\+\+'):
        choose_solver("euler")
    with pytest.raises(UsageError, match=r'\+\+" is deterministic, so an eta of 0.5 cannot be used: use solver="ddim"'):
        choose_solver("dpm++", 0.5)
    for eta in (-0.1, 1.1, math.nan):
        with pytest.raises(UsageError, match="give 0"):
            choose_solver("ddim", eta)


def test_complete_shows_every_step_and_closes_the_generator() -> None:
    closed = []

    def count() -> Generator[int, None, str]:
        try:
            yield from (1, 2, 3)
        finally:
            closed.append(True)
        return "done"

    seen: list[int] = []
    assert complete(count(), seen.append) == "done"
    assert complete(count()) == "done"
    assert seen == [1, 2, 3]

    def stop(step: int) -> None:
        raise KeyboardInterrupt

    held = count()
    with pytest.raises(KeyboardInterrupt):
        complete(held, stop)
    assert len(closed) == 3
