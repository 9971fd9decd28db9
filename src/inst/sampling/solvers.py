"""The solvers, which turn noisy latents into clean latents step by step.

Notation: abar_t is the noise schedule (`alphas_cumprod`), alpha_t = sqrt(abar_t), sigma_t = sqrt(1 - abar_t), so
z_t = alpha_t z_0 + sigma_t eps. Latents are [B, C, h, w] float32. No function changes its inputs in place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from inst.arguments import check_choice, checked
from inst.errors import Argument, UsageError
from inst.sampling.denoiser import Denoise
from inst.sampling.noise import noise_levels


@dataclass(frozen=True, eq=False)
class SamplingStep:
    """A finished step of a solver.

    Attributes:
        index: 0-based number of the step.
        total: number of steps of the phase.
        timestep: the timestep t at which the denoiser was called.
        latents: z after the step, [B, C, h, w]; after the last step, the result.
        clean: the z_0 predicted in this step, [B, C, h, w], for previews.
        phase: "sampling"; or "inversion" for the steps of DDIM inversion. These come first, have their own count, and
            lead up to the noise level at which sampling starts.
    """

    index: int
    total: int
    timestep: int
    latents: Tensor
    clean: Tensor
    phase: str = "sampling"


Sampling = Generator[SamplingStep, Tensor | None, Tensor]
"""A generator that yields every step and returns the final latents (a solver) or pictures (`inst.transfer`).

Without steps, a solver returns the given latents.

To replace the latents after the step that was just yielded, send a tensor: `sampling.send(latents)`.
"""


class StopSampling(Exception):
    """Throw this into a `Sampling` in the phase "sampling" to end it at once, with the given latents."""

    def __init__(self, latents: Tensor) -> None:
        super().__init__("sampling was stopped")
        self.latents = latents


Solver = Callable[[Denoise, Tensor, Sequence[int], Tensor], Sampling]
"""(denoise, latents at the first timestep's noise level, falling timesteps, alphas_cumprod [T]) -> `Sampling`."""


def ddim_step(
    latents: Tensor, epsilon: Tensor, abar: float, abar_to: float, sigma: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Move latents from the noise level `abar` to `abar_to`, up or down (Song et al. 2021, eq. 12).

    z_0 = (z - sqrt(1 - abar) eps) / sqrt(abar), and z' = sqrt(abar') z_0 + sqrt(1 - abar' - sigma^2) eps, where abar'
    is `abar_to`. With sigma > 0, the caller adds fresh noise of that standard deviation.

    Returns:
        z' and the predicted z_0, both [B, C, h, w].
    """
    clean = (latents - math.sqrt(1 - abar) * epsilon) / math.sqrt(abar)
    return math.sqrt(abar_to) * clean + math.sqrt(max(0.0, 1 - abar_to - sigma**2)) * epsilon, clean


def ddim(
    denoise: Denoise,
    latents: Tensor,
    timesteps: Sequence[int],
    alphas_cumprod: Tensor,
    *,
    eta: float = 0.0,
    draw: Callable[[], Tensor] | None = None,
) -> Sampling:
    """Denoise with DDIM (Song et al. 2021, arXiv 2010.02502, eq. 12 and 16), deterministically at eta = 0.

    Each step from abar to abar' adds fresh noise of the standard deviation

        sigma = eta sqrt((1 - abar') / (1 - abar)) sqrt(1 - abar / abar')

    Args:
        denoise: predicts the noise; called once for each timestep.
        latents: [B, C, h, w] at the noise level of the first timestep.
        timesteps: strictly falling, such as from `timestep_grid`. The last step leads to z_0 (abar = 1).
        alphas_cumprod: abar, [T].
        eta: in [0, 1]. At 1, the steps are those of DDPM.
        draw: returns fresh noise, [B, C, h, w]; called after each call of the denoiser if eta > 0.

    Raises:
        UsageError: the timesteps do not fall or are out of range.
        InstError: the noise schedule is not between 0 and 1 at one of them.
    """
    levels = noise_levels(timesteps, alphas_cumprod)
    for i, t in enumerate(timesteps):
        abar, abar_to = levels[i], levels[i + 1]
        sigma = eta * math.sqrt((1 - abar_to) / (1 - abar) * (1 - abar / abar_to))
        latents, clean = ddim_step(latents, denoise(latents, t), abar, abar_to, sigma)
        if eta and draw is not None:
            latents = latents + sigma * draw()
        changed = yield SamplingStep(i, len(timesteps), t, latents, clean)
        latents = latents if changed is None else changed
    return latents


def dpm_solver_pp(denoise: Denoise, latents: Tensor, timesteps: Sequence[int], alphas_cumprod: Tensor) -> Sampling:
    """Denoise deterministically with DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2).

    x_i is the z_0 predicted at t_i, lambda_t = log(alpha_t / sigma_t), h_i = lambda_(t_i) - lambda_(t_(i-1)), and
    r_i = h_(i-1) / h_i:

        D_i = x_(i-1) + (x_(i-1) - x_(i-2)) / (2 r_i)
        z_(t_i) = sigma_(t_i) / sigma_(t_(i-1)) z_(t_(i-1)) - alpha_(t_i) (exp(-h_i) - 1) D_i

    The first step has no earlier x, and in the last step, which leads to z_0, h is infinite. Both use D_i = x_(i-1).
    The arguments and errors are those of `ddim`.
    """
    levels = noise_levels(timesteps, alphas_cumprod)
    before: Tensor | None = None
    for i, t in enumerate(timesteps):
        abar, abar_to = levels[i], levels[i + 1]
        alpha, sigma, alpha_to, sigma_to = (math.sqrt(x) for x in (abar, 1 - abar, abar_to, 1 - abar_to))
        clean = (latents - sigma * denoise(latents, t)) / alpha
        target = clean
        if before is not None and abar_to < 1:
            h_before, h = (_log_snr(levels[j + 1]) - _log_snr(levels[j]) for j in (i - 1, i))
            target = clean + h / (2 * h_before) * (clean - before)
        exp_minus_h = (sigma_to * alpha) / (sigma * alpha_to)
        latents = sigma_to / sigma * latents - alpha_to * (exp_minus_h - 1) * target
        before = clean
        changed = yield SamplingStep(i, len(timesteps), t, latents, clean)
        latents = latents if changed is None else changed
    return latents


def allow_early_stop(sampling: Sampling) -> Sampling:
    """Run a solver; a `StopSampling` thrown between two steps ends it early, with the latents of the exception."""
    try:
        return (yield from sampling)
    except StopSampling as stop:
        return stop.latents


SOLVERS: Mapping[str, Solver] = {"ddim": ddim, "dpm++": dpm_solver_pp}
"""The solvers by name."""


def choose_solver(name: str, eta: float = 0.0, draw: Callable[[], Tensor] | None = None) -> Solver:
    """Return a solver by its name in `SOLVERS`; `eta` and `draw` as for `ddim`, the only solver that takes them.

    Raises:
        UsageError: the name is unknown, eta is not in [0, 1], or the solver is deterministic and eta is not 0.
    """
    check_choice("solver", name, SOLVERS)
    eta = checked("eta", eta, "float")
    if not 0 <= eta <= 1:  # False for NaN too
        raise UsageError(f"An eta of {eta} cannot be used", "give 0 (deterministic) to 1 (as much noise as in DDPM)")
    if eta == 0:
        return SOLVERS[name]
    if name != "ddim":
        raise UsageError(
            f'The solver "{name}" is deterministic, so an eta of {eta} cannot be used',
            "use ",
            Argument("solver", "ddim"),
            ", or leave eta out",
        )
    return partial(ddim, eta=eta, draw=draw)


def _log_snr(abar: float) -> float:
    """Return lambda = log(alpha / sigma)."""
    return 0.5 * (math.log(abar) - math.log1p(-abar))
