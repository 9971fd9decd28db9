"""Check a whole `LearningState` before anything resumes from it: its file may be damaged, or made by somebody else."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from inst.errors import InstError, UsageError, first_line
from inst.learning.settings import LearningSettings
from inst.learning.state import GROWTH_INTERVAL, LearningState, Progress
from inst.texts import cut


def check_state(state: LearningState) -> None:
    """Check the settings and the progress of a state, and that they fit together.

    Raises:
        InstError: a number has another type or is not possible.
    """
    try:
        settings = LearningSettings(**state.settings)
    except TypeError as error:
        raise _damaged(f"its settings: {first_line(error)}") from None
    except UsageError as error:
        raise _damaged(f"its settings: {error.problem}") from None
    if not isinstance(state.about, Mapping):
        raise _damaged("what it needs is missing")
    progress = state.progress
    for number in fields(Progress):
        value = getattr(progress, number.name)
        if not _is_number(value, str(number.type)):
            raise _impossible(number.name, value)
    taken, validated = progress.step - progress.first, settings.validate_every > 0
    possible = {
        "first": progress.first >= 0,
        "step": progress.first <= progress.step <= settings.steps,
        "seconds": progress.seconds >= 0,
        "average": progress.average >= 0 and (taken > 0 or progress.average == 0),
        "loss_scale": progress.loss_scale >= 1 and math.frexp(progress.loss_scale)[0] == 0.5,  # a power of 2
        "steady": 0 <= progress.steady < GROWTH_INTERVAL,
        "start_loss": (progress.start_loss is not None) == validated and (progress.start_loss or 0) >= 0,
        "best_loss": (progress.best_loss is not None) == validated and (progress.best_loss or 0) >= 0,
        "best_step": progress.first <= progress.best_step <= (progress.step if validated else progress.first),
        "stale": 0 <= progress.stale <= (progress.step - progress.best_step if validated else 0),
    }
    for name, right in possible.items():
        if not right:
            raise _impossible(name, getattr(progress, name))
    if progress.start_loss is not None and progress.best_loss is not None:
        at_start = progress.best_step == progress.first
        if not (progress.best_loss == progress.start_loss if at_start else progress.best_loss < progress.start_loss):
            raise _impossible("best_loss", progress.best_loss)


def check_tensors(
    state: LearningState, parameters: Mapping[str, Tensor], order: Sequence[str], largest_scale: float
) -> None:
    """Check the tensors of a state and its loss scale. `check_state` comes first.

    Args:
        state: the state.
        parameters: the parameters of the module that resumes, which may be without numbers (on the device "meta").
        order: the names of the parameters in the order in which Adam numbers them.
        largest_scale: the largest scale of the loss in the precision of the backbone.

    Raises:
        InstError: a tensor is missing, or has another type, another shape or numbers that are not possible.
    """
    taken = state.progress.step - state.progress.first
    if state.progress.loss_scale > largest_scale:
        raise _impossible("loss_scale", state.progress.loss_scale)
    generator = torch.Generator().get_state()
    wanted = {f"{part}.{name}": one.shape for part in ("module", "best") for name, one in parameters.items()}
    if taken:
        for number, name in enumerate(order):
            shape = parameters[name].shape
            wanted |= {f"adam.{number}.exp_avg": shape, f"adam.{number}.exp_avg_sq": shape}
            wanted[f"adam.{number}.step"] = torch.Size()
    wanted["generator"] = generator.shape
    if missing := sorted(wanted.keys() - state.tensors.keys()):
        raise _damaged(f"its tensor {missing[0]} is missing")
    if unknown := sorted(map(str, state.tensors.keys() - wanted.keys())):
        raise _damaged(f"its tensor {cut(unknown[0], 60)} is unknown")
    for name, shape in wanted.items():
        tensor, dtype = state.tensors[name], generator.dtype if name == "generator" else torch.float32
        if not isinstance(tensor, Tensor) or tensor.shape != shape or tensor.dtype != dtype:
            raise _damaged(f"its tensor {name} has another shape or type")
        if not tensor.isfinite().all():
            raise _damaged(f"its tensor {name} has numbers that are not finite")
        if name.endswith(".exp_avg_sq") and (tensor < 0).any():
            raise _damaged(f"its tensor {name} has negative squares")
        # A step whose gradient is not finite does not count for Adam, which happens in float16 alone.
        if name.endswith(".step") and name.startswith("adam.") and not _is_count(tensor, taken, largest_scale == 1):
            raise _damaged(f"its tensor {name} does not fit the number of steps")
    _check_generator(state.tensors["generator"])


def _is_count(tensor: Tensor, taken: int, exact: bool) -> bool:
    count = tensor.item()
    return count == taken if exact else count in range(taken + 1)


def _check_generator(given: Tensor) -> None:
    """Raise InstError unless a generator can take a state, and gives back the same."""
    generator = torch.Generator()
    try:
        generator.set_state(given)
    except (RuntimeError, TypeError):
        raise _damaged("no generator can have its state of the random numbers") from None
    if not torch.equal(generator.get_state(), given):
        raise _damaged("no generator can have its state of the random numbers")


def _is_number(value: Any, kind: str) -> bool:
    """Return whether a value is of a type of `Progress`: "int", "float" or "float | None", and finite."""
    if value is None:
        return kind.endswith("None")
    wanted = int if kind == "int" else float
    return type(value) is wanted and math.isfinite(value)


def _impossible(name: str, value: Any) -> InstError:
    return _damaged(f"{name.replace('_', ' ')} {cut(repr(value), 60)} is not possible")


def _damaged(reason: str) -> InstError:
    return InstError(f"The learning to resume is damaged: {reason}", "start again")
