"""The noise schedule: timesteps, the noise that is drawn, and what noise level a timestep stands for."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from inst.arguments import checked
from inst.errors import InstError, UsageError

_SEEDS = 2**64  # what torch.Generator distinguishes


Seed = int | Sequence[int] | torch.Generator | Sequence[torch.Generator]
"""Where noise comes from: a seed for all pictures or one for each; or a generator that all draw from at once, as
diffusers does, or one for each."""


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
        raise UsageError(f"A strength of {strength} cannot be used", "give 0 (nothing changes) to 1 (all is made anew)")
    if not 1 <= steps <= total:
        raise UsageError(f"{steps} sampling steps cannot be taken", f"give 1 to {total}")
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
        raise UsageError("No seed is given", "give one for each picture")
    seeds = [seed if isinstance(seed, torch.Generator) else checked("seed", seed, "int") for seed in seeds]
    for seed in seeds:
        if not isinstance(seed, torch.Generator) and not 0 <= seed < _SEEDS:
            raise UsageError(f"The seed {seed} cannot be used", f"give 0 to {_SEEDS - 1}")
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
            raise InstError(f"The noise schedule is {abar} at timestep {t}, not between 0 and 1", "use another model")
    return [*levels, 1.0]
