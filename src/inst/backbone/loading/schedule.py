"""The noise schedule of a model, from the configuration of any diffusion scheduler of diffusers."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any

import diffusers

from inst.backbone.libraries import DDIMScheduler
from inst.texts import cut

PREDICTIONS = ("epsilon", "v_prediction")
"""What a denoiser may predict."""


_SCHEDULER = re.compile(r"[A-Za-z]\w{0,60}(Scheduler|SchedulerFlax|Sampler)\w{0,10}")

_MOST_TIMESTEPS = 100_000


class ScheduleError(ValueError):
    """A scheduler whose model cannot be used. The message continues a sentence that begins with the scheduler."""


def noise_schedule(config: Mapping[str, Any], name: str) -> DDIMScheduler:
    """Return the noise schedule and the prediction type of a scheduler.

    Only these are used, and the class of DDIM can hold those of every diffusion scheduler. The betas of flow matching
    and of EDM mean something else, or nothing. Their configurations may still have betas, because `from_config` keeps
    what the scheduler before had.

    Args:
        config: its configuration. A missing `prediction_type` is "epsilon", as in the files of Stable Diffusion 1.x.
        name: the name of its class.

    Raises:
        ScheduleError: the scheduler is none of diffusion with betas, or has another prediction type.
        ValueError: its numbers are out of range.
        Exception: what diffusers raises if it cannot use the configuration.
    """
    _check_numbers(config)
    has_betas = "beta_schedule" in config
    # Any other name would import any other part of diffusers.
    scheduler_class = getattr(diffusers, name, None) if _SCHEDULER.fullmatch(name) else None
    # A class whose library is missing, such as torchsde, is a dummy with `_backends` and without these parameters.
    if scheduler_class is not None and not hasattr(scheduler_class, "_backends"):
        has_betas &= "beta_schedule" in inspect.signature(scheduler_class).parameters
    if not has_betas:
        raise ScheduleError("is not a scheduler of diffusion with betas")
    if config.get("use_flow_sigmas"):
        raise ScheduleError("samples along a flow (use_flow_sigmas)")
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in PREDICTIONS:
        raise ScheduleError(
            f'has the prediction type "{cut(str(prediction), 60)}", and not one of {", ".join(PREDICTIONS)}'
        )
    own = inspect.signature(DDIMScheduler).parameters
    if all(key in own or key.startswith("_") for key in config):
        # `from_config` would import every other scheduler, and SciPy, to look for keys that are theirs.
        unset = config.get("_use_default_values", ())
        return DDIMScheduler(**{key: value for key, value in config.items() if key in own and key not in unset})
    scheduler: DDIMScheduler = DDIMScheduler.from_config(config)
    return scheduler


def _check_numbers(config: Mapping[str, Any]) -> None:
    """Check the numbers that a table of all timesteps is made from, before it is made. Raises ValueError."""
    steps = config.get("num_train_timesteps", 1000)
    if type(steps) is not int or not 1 <= steps <= _MOST_TIMESTEPS:
        raise ValueError(
            f"num_train_timesteps is {cut(str(steps), 60)}, not a whole number from 1 to {_MOST_TIMESTEPS:,}"
        )
    for key in ("beta_start", "beta_end"):
        if type(number := config.get(key, 0.0)) not in (int, float) or not 0 <= number < 1:
            raise ValueError(f"{key} is {cut(str(number), 60)}, not a number from 0 to 1")
