"""Sampling: the timestep grid, the noise, guidance, and the solvers that bring noisy latents down to clean ones.

Notation: abar_t is the noise schedule (`alphas_cumprod`), alpha_t = sqrt(abar_t), sigma_t = sqrt(1 - abar_t), so that
z_t = alpha_t z_0 + sigma_t eps. Latents are [B, C, h, w] float32. Nothing here changes its inputs in place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor

from inst.arguments import check_type, checked
from inst.errors import InstError, UsageError
from inst.text import TextEmbedding

Denoise = Callable[[Tensor, int], Tensor]
"""(z_t [B, C, h, w], t) -> the noise epsilon predicted in it, [B, C, h, w] float32."""

_SEEDS = 2**64  # what torch.Generator distinguishes

_Step = TypeVar("_Step")
_Result = TypeVar("_Result")


@dataclass(frozen=True, eq=False)
class SamplingStep:
    """One step of a solver, after it was taken.

    Attributes:
        index: 0-based number of the step.
        total: number of steps.
        timestep: the timestep t at which the denoiser was called.
        latents: z after the step, [B, C, h, w]; after the last step the result.
        clean: the z_0 predicted in this step, [B, C, h, w], for previews.
        phase: "sampling"; or "inversion" for the steps of DDIM inversion, which come before and count for themselves,
            up to the noise level that sampling starts at.
    """

    index: int
    total: int
    timestep: int
    latents: Tensor
    clean: Tensor
    phase: str = "sampling"


Sampling = Generator[SamplingStep, Tensor | None, Tensor]
"""Yields every step and returns the latents it ends with; those given, where there is no step to take.

A tensor that is sent in (`sampling.send(latents)`) takes the place of the latents after the step that was just yielded.
"""


class StopSampling(Exception):
    """Throw it into a `Sampling` of the phase "sampling" to end it at once, with the latents given."""

    def __init__(self, latents: Tensor) -> None:
        super().__init__("sampling was stopped")
        self.latents = latents


Seed = int | Sequence[int] | torch.Generator | Sequence[torch.Generator]
"""Where noise comes from: a seed for all pictures or one for each; or a generator that all draw from at once, as
diffusers does, or one for each."""

Solver = Callable[[Denoise, Tensor, Sequence[int], Tensor], Sampling]
"""(denoise, latents at the first timestep's noise level, falling timesteps, alphas_cumprod [T]) -> `Sampling`."""


def timestep_grid(total: int, steps: int, strength: float = 1.0) -> list[int]:
    """Space timesteps evenly below a strength: t_i = round(n (1 - i / steps)) - 1 with n = round(strength total).

    At strength 1 this is the "trailing" spacing (Lin et al. 2024, arXiv 2305.08891, table 2), which starts at the last
    timestep. At every other strength, too, `steps` steps are taken (fewer only where fewer timesteps are left), so that
    the cost is constant and the strength exact; diffusers takes the last strength x steps of a grid instead.

    Args:
        total: T, the number of timesteps of the noise schedule.
        steps: calls of the denoiser, 1 to `total`.
        strength: in [0, 1], the part of the schedule to go through.

    Returns:
        Strictly falling timesteps in [0, total): empty at strength 0, from total - 1 on at strength 1.

    Raises:
        UsageError: the strength or the number of steps is no number, or out of range.
    """
    strength, steps = checked("strength", strength, "float"), checked("number of steps", steps, "int")
    if not 0 <= strength <= 1:  # NaN is not either
        raise UsageError(f"A strength of {strength} cannot be used: give 0 (nothing changes) to 1 (all is made anew).")
    if not 1 <= steps <= total:
        raise UsageError(f"{steps} sampling steps cannot be taken: give 1 to {total}.")
    reached = round(strength * total)
    steps = min(steps, reached)
    return [round(reached * (steps - i) / steps) - 1 for i in range(steps)]


def draw_noise(
    shape: tuple[int, int, int], seeds: Sequence[int | torch.Generator], device: torch.device | str = "cpu"
) -> Tensor:
    """Draw Gaussian noise for each seed: [len(seeds), *shape] float32.

    Every seed has a generator of its own, on the CPU: a picture's noise depends neither on the device nor on what else
    is in the batch.

    Args:
        shape: (C, h, w) of one picture's latents.
        seeds: each in [0, 2^64); or generators, which draw where they are.
        device: where the noise is put.

    Raises:
        UsageError: no seed, or one that is no whole number or out of range.
    """
    if not seeds:
        raise UsageError("No seed is given: give one for each picture.")
    seeds = [seed if isinstance(seed, torch.Generator) else checked("seed", seed, "int") for seed in seeds]
    for seed in seeds:
        if not isinstance(seed, torch.Generator) and not 0 <= seed < _SEEDS:
            raise UsageError(f"The seed {seed} cannot be used: give 0 to {_SEEDS - 1}.")
    generators = [seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed) for seed in seeds]
    return torch.stack([torch.randn(shape, generator=one, device=one.device).to(device) for one in generators])


def add_noise(clean: Tensor, noise: Tensor, timestep: int | Tensor, alphas_cumprod: Tensor) -> Tensor:
    """Bring clean latents to a noise level: z_t = sqrt(abar_t) z_0 + sqrt(1 - abar_t) noise.

    Args:
        clean: z_0, [B, C, h, w].
        noise: [B, C, h, w].
        timestep: t in [0, T), an integer for all or [B] integers.
        alphas_cumprod: abar, [T].

    Raises:
        UsageError: a timestep out of range (not looked for on an accelerator, which it would stall).
    """
    timesteps = torch.as_tensor(timestep)
    if timesteps.device.type == "cpu" and ((timesteps < 0) | (timesteps >= len(alphas_cumprod))).any():
        raise UsageError(
            f"The timestep {timesteps.tolist()} is not in the noise schedule: 0 to {len(alphas_cumprod) - 1}."
        )
    abar = alphas_cumprod[timesteps.to(alphas_cumprod.device)].view(-1, 1, 1, 1).to(clean.device)
    return abar.sqrt() * clean + (1 - abar).sqrt() * noise


def guided(
    predict_noise: Callable[[Tensor, int, TextEmbedding], Tensor],
    text: TextEmbedding,
    negative: TextEmbedding | None,
    guidance: float,
) -> Denoise:
    """Make a denoiser with classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598).

    eps = eps(negative) + guidance (eps(text) - eps(negative)), both predicted in one call with a batch of 2 B. A
    guidance of 1 is eps(text) alone: one call with a batch of B, and `negative` may be None.

    Args:
        predict_noise: such as `Backbone.predict_noise`: (z_t [B, C, h, w], t, text of B prompts) -> epsilon.
        text: of B prompts, or of one for all.
        negative: likewise of the negative (or empty) prompts.
        guidance: the guidance scale, any finite number.

    Raises:
        UsageError: the guidance is not finite.
    """
    if not math.isfinite(guidance):
        raise UsageError(f"A guidance of {guidance} cannot be used: give a number, such as 1 (none) or 5.")
    if guidance == 1:
        return lambda latents, timestep: predict_noise(latents, timestep, text)
    if negative is None:
        raise TypeError(f"a guidance of {guidance} needs the text of the negative prompt")

    def denoise(latents: Tensor, timestep: int) -> Tensor:
        both = TextEmbedding.cat([part.expand(len(latents)) for part in (negative, text)])
        without, with_text = predict_noise(torch.cat([latents, latents]), timestep, both).chunk(2)
        return without + guidance * (with_text - without)

    return denoise


def ddim_step(latents: Tensor, epsilon: Tensor, abar: float, abar_to: float) -> tuple[Tensor, Tensor]:
    """Move latents from the noise level `abar` to `abar_to`, up or down (Song et al. 2021, eq. 12 with sigma = 0).

    z_0 = (z - sqrt(1 - abar) eps) / sqrt(abar), and z' = sqrt(abar') z_0 + sqrt(1 - abar') eps.

    Returns:
        z' and the predicted z_0, both [B, C, h, w].
    """
    clean = (latents - math.sqrt(1 - abar) * epsilon) / math.sqrt(abar)
    return math.sqrt(abar_to) * clean + math.sqrt(1 - abar_to) * epsilon, clean


def ddim(denoise: Denoise, latents: Tensor, timesteps: Sequence[int], alphas_cumprod: Tensor) -> Sampling:
    """Denoise deterministically with DDIM (Song et al. 2021, arXiv 2010.02502, eq. 12 with sigma = 0).

    Args:
        denoise: predicts the noise; called once for each timestep.
        latents: [B, C, h, w] at the noise level of the first timestep.
        timesteps: strictly falling, such as from `timestep_grid`. After the last one comes z_0 (abar = 1).
        alphas_cumprod: abar, [T].

    Raises:
        UsageError: timesteps that do not fall or are out of range.
        InstError: the noise schedule is not within 0 and 1 at one of them.
    """
    levels = noise_levels(timesteps, alphas_cumprod)
    for i, t in enumerate(timesteps):
        latents, clean = ddim_step(latents, denoise(latents, t), levels[i], levels[i + 1])
        changed = yield SamplingStep(i, len(timesteps), t, latents, clean)
        latents = latents if changed is None else changed
    return latents


def dpm_solver_pp(denoise: Denoise, latents: Tensor, timesteps: Sequence[int], alphas_cumprod: Tensor) -> Sampling:
    """Denoise deterministically with DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2).

    With x_i the z_0 predicted at t_i, lambda_t = log(alpha_t / sigma_t), h_i = lambda_(t_i) - lambda_(t_(i-1)) and
    r_i = h_(i-1) / h_i:

        D_i = x_(i-1) + (x_(i-1) - x_(i-2)) / (2 r_i)
        z_(t_i) = sigma_(t_i) / sigma_(t_(i-1)) z_(t_(i-1)) - alpha_(t_i) (exp(-h_i) - 1) D_i

    The first step has no x before it, and to the last one's target, z_0, h is infinite: both take D_i = x_(i-1).
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


def stoppable(sampling: Sampling) -> Sampling:
    """Let `StopSampling`, thrown in between two steps, end a solver's steps as if they were all done."""
    try:
        return (yield from sampling)
    except StopSampling as stop:
        return stop.latents


SOLVERS: Mapping[str, Solver] = {"ddim": ddim, "dpm++": dpm_solver_pp}
"""The solvers by name."""


def choose_solver(name: str) -> Solver:
    """Return the solver of a name in `SOLVERS`. Raises UsageError for any other."""
    if checked("solver", name, "str") not in SOLVERS:
        raise UsageError(f'The solver "{name}" is unknown: use one of {", ".join(SOLVERS)}.')
    return SOLVERS[name]


def noise_levels(timesteps: Sequence[int], alphas_cumprod: Tensor) -> list[float]:
    """Return abar at each timestep, and 1 for the clean latents after the last.

    They are Python's numbers, so that the solvers' coefficients have double precision and no step waits for a device.

    Raises:
        UsageError: timesteps that do not fall or are out of range.
        InstError: abar is not strictly between 0 and 1 at one of them.
    """
    last = len(alphas_cumprod) - 1
    bounds = [last + 1, *timesteps, -1]
    if any(a <= b for a, b in pairwise(bounds)):
        raise UsageError(f"The timesteps {list(timesteps)} cannot be used: they must fall, from {last} at most to 0.")
    schedule = alphas_cumprod.tolist()
    levels = [schedule[t] for t in timesteps]
    for t, abar in zip(timesteps, levels, strict=True):
        if not 0 < abar < 1:
            raise InstError(f"The noise schedule is {abar} at timestep {t}, not between 0 and 1: use another model.")
    return [*levels, 1.0]


def complete(generator: Generator[_Step, None, _Result], on_step: Callable[[_Step], object] | None = None) -> _Result:
    """Run a generator such as a solver's to its end and return its result, showing every step to `on_step`.

    The generator is closed when `on_step` raises, so that it can put its things in order at once.

    Raises:
        UsageError: no generator, such as the style of `inst.instant_style`, which is complete.
    """
    check_type("A run", generator, Generator, "give what inst.learn, inst.transfer or inst.generate returns")
    try:
        while True:
            try:
                step = next(generator)
            except StopIteration as end:
                result: _Result = end.value
                return result
            if on_step is not None:
                on_step(step)
    finally:
        generator.close()


def _log_snr(abar: float) -> float:
    """lambda = log(alpha / sigma)."""
    return 0.5 * (math.log(abar) - math.log1p(-abar))
