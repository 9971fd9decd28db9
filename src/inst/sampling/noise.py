"""The noise schedule: timesteps, noise, and the noise level of each timestep."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from inst.arguments import check_choice, checked
from inst.backbone.devices import copy_to
from inst.errors import InstError, UsageError

_SEEDS = 2**64  # number of different seeds of torch.Generator


Seed = int | Sequence[int] | torch.Generator | Sequence[torch.Generator]
"""The source of the noise: one seed for all pictures, or one seed for each; or one PyTorch generator that draws the
noise of all pictures at once, as in diffusers, or one generator for each."""


SPACINGS = ("power", "trailing")
"""Names of the ways to spread timesteps; see `timestep_grid`."""

_POWER = 2.5


def timestep_grid(total: int, steps: int, strength: float = 1.0, spacing: str = "trailing") -> list[int]:
    """Make the grid of timesteps for a strength. With n = round(strength total), it is

        "trailing":  t_i = round(n (1 - i / steps)) - 1
        "power":     t_i = round(n (1 - i / steps)^2.5) - 1, or steps - 1 - i if that is more

    At strength 1, "trailing" is the spacing of that name in diffusers (Lin et al. 2024, arXiv 2305.08891, table 2).

    The last step of a solver removes all noise that is left, as if there were none of it in the denoiser's input. Near
    z_0 the noise level falls with the square root of t, so at the end of an even grid much noise is left: 6 steps from
    timestep 299 end at 49. "power" ends at 2. (The power 2 is the quadratic grid of Song et al. 2021, arXiv 2010.02502,
    appendix D.3.) Measured with mini, 8 paintings on 6 photos at 256 px, DPM-Solver++: the LPIPS to a transfer with 80
    even steps.

                           strength 0.3                       strength 0.6
        steps               4      5      6      8     12      6      8
        even                            0.059  0.045  0.029  0.083  0.062
        power 2           0.026  0.013  0.006  0.001         0.033  0.015
        power 2.5         0.011  0.003  0.001  0.001         0.019  0.008
        power 3           0.005  0.002  0.004  0.003

    At every strength there are `steps` steps (fewer only if the strength leaves fewer timesteps). So the cost is
    constant and the strength is exact. diffusers instead takes the last strength x steps steps of a grid.

    Args:
        total: T, the number of timesteps of the noise schedule.
        steps: calls of the denoiser, 1 to `total`.
        strength: in [0, 1], the part of the schedule that is used.
        spacing: a name in `SPACINGS`.

    Returns:
        Strictly falling timesteps in [0, total): empty at strength 0; they start at total - 1 at strength 1.

    Raises:
        UsageError: the strength or the number of steps is not a number, or out of range; or the spacing is unknown.
    """
    strength, steps = checked("strength", strength, "float"), checked("number of steps", steps, "int")
    check_choice("spacing", spacing, SPACINGS)
    if not 0 <= strength <= 1:  # False for NaN too
        raise UsageError(
            f"A strength of {strength} cannot be used", "give 0 (no change) to 1 (the picture is made completely new)"
        )
    if not 1 <= steps <= total:
        raise UsageError(f"{steps} sampling steps cannot be taken", f"give 1 to {total}")
    last = round(strength * total)
    steps = min(steps, last)
    power = _POWER if spacing == "power" else 1
    # Without the minimum, several timesteps near z_0 could be equal.
    return [max(round(last * (steps - i) ** power / steps**power), steps - i) - 1 for i in range(steps)]


def draw_noise(
    shape: tuple[int, int, int], seeds: Sequence[int | torch.Generator], device: torch.device | str = "cpu"
) -> Tensor:
    """Draw Gaussian noise for each seed: [len(seeds), *shape] float32.

    Every seed has its own generator, on the CPU. So the noise of a picture does not depend on the device or on the
    other pictures of the batch.

    Args:
        shape: (C, h, w) of the latents of one picture.
        seeds: each in [0, 2^64); or generators, each of which draws on its own device.
        device: the device of the result.

    Raises:
        UsageError: there is no seed, or a seed is not a whole number or out of range.
    """
    return torch.stack(
        [
            copy_to(torch.randn(shape, generator=generator, device=generator.device), torch.device(device))
            for generator in as_generators(seeds)
        ]
    )


def as_generators(seeds: Sequence[int | torch.Generator]) -> list[torch.Generator]:
    """Return a generator for each seed, on the CPU. The arguments and errors are those of `draw_noise`."""
    if not seeds:
        raise UsageError("No seed is given", "give one seed for each picture")
    seeds = [seed if isinstance(seed, torch.Generator) else checked("seed", seed, "int") for seed in seeds]
    for seed in seeds:
        if not isinstance(seed, torch.Generator) and not 0 <= seed < _SEEDS:
            raise UsageError(f"The seed {seed} cannot be used", f"give 0 to {_SEEDS - 1}")
    return [seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed) for seed in seeds]


def add_noise(clean: Tensor, noise: Tensor, timestep: int | Tensor, alphas_cumprod: Tensor) -> Tensor:
    """Add noise to clean latents: z_t = sqrt(abar_t) z_0 + sqrt(1 - abar_t) noise.

    Args:
        clean: z_0, [B, C, h, w].
        noise: [B, C, h, w].
        timestep: t in [0, T), one integer for all or [B] integers.
        alphas_cumprod: abar, [T].

    Raises:
        UsageError: a timestep is out of range. Timesteps on an accelerator are not checked: the check would stall it.
    """
    timesteps = torch.as_tensor(timestep)
    if timesteps.device.type == "cpu" and ((timesteps < 0) | (timesteps >= len(alphas_cumprod))).any():
        raise UsageError(
            f"The timestep {timesteps.tolist()} is not in the noise schedule", f"give 0 to {len(alphas_cumprod) - 1}"
        )
    # An integer selects a value without waiting for the device; a tensor has to be copied to it.
    chosen = timestep if isinstance(timestep, int) else copy_to(timesteps, alphas_cumprod.device)
    abar = copy_to(alphas_cumprod[chosen].view(-1, 1, 1, 1), clean.device)
    return abar.sqrt() * clean + (1 - abar).sqrt() * noise


def noise_levels(timesteps: Sequence[int], alphas_cumprod: Tensor) -> list[float]:
    """Return abar at each timestep, and 1 for the clean latents at the end.

    The values are Python floats. So the coefficients of the solvers have double precision, and no step waits for a
    device.

    Raises:
        UsageError: the timesteps do not fall or are out of range.
        InstError: abar is not strictly between 0 and 1 at one of them.
    """
    last = len(alphas_cumprod) - 1
    bounds = [last + 1, *timesteps, -1]
    if any(a <= b for a, b in pairwise(bounds)):
        raise UsageError(
            f"The timesteps {list(timesteps)} cannot be used", f"give timesteps that fall, from {last} at most to 0"
        )
    schedule = alphas_cumprod.tolist()
    levels = [schedule[t] for t in timesteps]
    for t, abar in zip(timesteps, levels, strict=True):
        if not 0 < abar < 1:
            raise InstError(f"The noise schedule is {abar} at timestep {t}, not between 0 and 1", "use another model")
    return [*levels, 1.0]
