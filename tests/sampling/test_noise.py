"""Timesteps, noise and noise levels against diffusers' schedulers, and their properties."""

import math
from itertools import pairwise

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from inst import UsageError
from inst.sampling.noise import SPACINGS, add_noise, draw_noise, timestep_grid
from schedules import ABAR, DDIM, DPM, SCHEDULE, noise

# --- the grid


def test_timestep_grids_equal_examples_worked_out_by_hand() -> None:
    assert timestep_grid(1000, 4) == [999, 749, 499, 249]
    assert timestep_grid(1000, 4, 0.5) == [499, 374, 249, 124]
    assert timestep_grid(1000, 1, 0.7) == [699]
    assert timestep_grid(10, 5, 0.3) == [2, 1, 0]  # fewer than 5 are there
    assert timestep_grid(1000, 20, 0.001) == [0]
    assert timestep_grid(1000, 20, 0.0004) == []
    assert 0.57 * 100 < 57
    assert timestep_grid(100, 3, 0.57)[0] == 56  # rounded, where truncation loses a step
    assert timestep_grid(1024, 4, 1, "power") == [1023, 498, 180, 31]  # 1024 (3/4)^2.5 = 498.8, 1024 / 2^2.5 = 181.0
    assert timestep_grid(1000, 1, 0.5, "power") == [499]
    assert timestep_grid(10, 10, 1, "power") == [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]  # no timestep comes twice


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 7, 8, 10, 12, 15, 20, 25, 30, 40, 47, 50, 100, 250, 1000])
@pytest.mark.parametrize("scheduler", [DDIMScheduler(**DDIM), DPMSolverMultistepScheduler(**DPM)])
def test_the_whole_grid_equals_the_trailing_grid_of_diffusers(scheduler, steps: int) -> None:
    scheduler.set_timesteps(steps)
    assert timestep_grid(1000, steps) == scheduler.timesteps.tolist()


@settings(deadline=None)
@given(
    st.integers(1, 1500).flatmap(lambda total: st.tuples(st.just(total), st.integers(1, total))),
    st.floats(0, 1),
    st.floats(0, 1),
    st.sampled_from(SPACINGS),
)
def test_grids_fall_evenly_and_more_strength_never_means_less_noise(
    size: tuple[int, int], strength: float, other: float, spacing: str
) -> None:
    total, steps = size
    grid = timestep_grid(total, steps, strength, spacing)
    reached = round(strength * total)
    assert len(grid) == min(steps, reached)
    assert all(above > below for above, below in pairwise([total, *grid, -1]))
    assert grid[:1] == ([reached - 1] if reached else [])
    gaps = [above - below for above, below in pairwise([*grid, -1])]
    if spacing == "trailing":
        assert not gaps or max(gaps) - min(gaps) <= 2
    else:  # the gaps get smaller
        assert all(later <= earlier + 2 for earlier, later in pairwise(gaps))
    if strength <= other:  # monotone: more strength is never less noise
        assert [-1, *grid[:1]][-1] <= [-1, *timestep_grid(total, steps, other, spacing)[:1]][-1]
    assert timestep_grid(total, steps, 0, spacing) == []
    assert timestep_grid(total, steps, 1, spacing)[0] == total - 1


@pytest.mark.parametrize("strength", [1.2, -0.1, math.nan, math.inf])
def test_a_strength_outside_0_to_1_is_refused(strength: float) -> None:
    with pytest.raises(UsageError, match=rf"strength of {strength} .*0 .*1"):
        timestep_grid(1000, 20, strength)


@pytest.mark.parametrize("steps", [0, -3, 1001])
def test_a_number_of_steps_out_of_range_is_refused(steps: int) -> None:
    with pytest.raises(UsageError, match=f"{steps} sampling steps .* 1 to 1000"):
        timestep_grid(1000, steps)


def test_an_unknown_spacing_is_refused() -> None:
    with pytest.raises(UsageError, match='spacing "karras"'):
        timestep_grid(1000, 20, 0.5, "karras")


# --- the noise


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=4), st.data())
def test_noise_does_not_depend_on_the_rest_of_the_batch(seeds: list[int], data: st.DataObject) -> None:
    state = torch.get_rng_state()
    drawn = draw_noise((4, 6, 5), seeds)
    assert drawn.shape == (len(seeds), 4, 6, 5)
    assert drawn.dtype == torch.float32
    shuffled = data.draw(st.permutations(range(len(seeds))))
    assert torch.equal(draw_noise((4, 6, 5), [seeds[i] for i in shuffled]), drawn[shuffled])
    assert torch.equal(draw_noise((4, 6, 5), seeds[-1:])[0], drawn[-1])
    assert torch.equal(drawn[0], noise(4, 6, 5, seed=seeds[0]))
    assert torch.equal(torch.get_rng_state(), state)


def test_noise_is_standard_normal_and_uncorrelated_between_seeds() -> None:
    drawn = draw_noise((4, 64, 64), [1, 2])
    assert drawn.mean().item() == pytest.approx(0, abs=0.03)
    assert drawn.std().item() == pytest.approx(1, abs=0.03)
    assert torch.corrcoef(drawn.flatten(1))[0, 1].abs() < 0.03


@pytest.mark.parametrize(("seeds", "message"), [([], "No seed"), ([-1], "seed -1"), ([3, 2**64], f"seed {2**64}")])
def test_missing_seeds_and_seeds_out_of_range_are_refused(seeds: list[int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        draw_noise((4, 8, 8), seeds)


def test_add_noise_equals_that_of_diffusers() -> None:
    clean, eps = noise(2, 4, 8, 8), noise(2, 4, 8, 8, seed=1)
    timesteps = torch.tensor([0, 700])
    expected = SCHEDULE.add_noise(clean, eps, timesteps)
    torch.testing.assert_close(add_noise(clean, eps, timesteps, ABAR), expected)
    torch.testing.assert_close(add_noise(clean, eps, 700, ABAR)[1], expected[1])
    torch.testing.assert_close(
        add_noise(torch.full((1, 1, 1, 1), 5.0), torch.ones(1, 1, 1, 1), 0, torch.tensor([0.64])),
        torch.full((1, 1, 1, 1), 0.8 * 5 + 0.6),
    )


@pytest.mark.parametrize("timestep", [-1, 1000, torch.tensor([5, 1000])])
def test_add_noise_refuses_a_timestep_out_of_range(timestep) -> None:
    with pytest.raises(UsageError, match="0 to 999"):
        add_noise(noise(2, 4, 8, 8), noise(2, 4, 8, 8), timestep, ABAR)
