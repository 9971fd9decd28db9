"""Stable Diffusion's noise schedule, and the settings under which diffusers' schedulers do what our solvers do."""

import torch
from diffusers import DDIMScheduler

STABLE_DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SCHEDULE = DDIMScheduler(**STABLE_DIFFUSION)
ABAR = SCHEDULE.alphas_cumprod
PREDICTIONS = ["epsilon", "v_prediction"]

# Our solvers are diffusers' under these settings, and not under its defaults:
# - DDIM: `timestep_spacing="trailing"`, `set_alpha_to_one=True` (ours end at abar = 1), `clip_sample=False`, and a
#   number of steps that divides T: for others diffusers goes from t to t - T // steps, not to the next timestep.
# - DPM-Solver++: order 2, "midpoint", `final_sigmas_type="zero"`. This makes the last step one of first order, whatever
#   `lower_order_final`, which for order 2 concerns that step only. Any timesteps can be given to it.
# - DDIM is DPM-Solver++ of order 1, so that order 1 serves for uneven grids.
# What is left is rounding: diffusers computes the coefficients in float32, we in double precision.
DDIM = {**STABLE_DIFFUSION, "timestep_spacing": "trailing", "set_alpha_to_one": True, "clip_sample": False}
DPM = {
    **STABLE_DIFFUSION,
    "algorithm_type": "dpmsolver++",
    "solver_type": "midpoint",
    "timestep_spacing": "trailing",
    "final_sigmas_type": "zero",
}

LIKE_DIFFUSERS = {"spacing": "trailing", "cache_interval": 1}
"""Arguments of `inst.transfer` with which its steps are those of diffusers."""


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
