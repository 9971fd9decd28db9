"""Models out of a configuration and tensors that were read elsewhere: complete, or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import ModelMixin
from torch import Tensor

from inst.errors import InstError, first_line
from inst.model_files import quiet


class MisfitError(InstError):
    """Weights and a configuration that do not belong together: a weight is missing, or has another shape."""


@quiet()
def build_model(
    model_class: Any, config: Mapping[str, Any], tensors: Mapping[str, Tensor], dtype: torch.dtype, source: str
) -> Any:
    """Build one part of a model around its weights: none is ever made up, and none is copied without need.

    Args:
        model_class: a model class of diffusers or of transformers.
        config: what its `config.json` holds.
        tensors: the weights in the layout of diffusers and transformers, of any precision; others are left alone.
        dtype: the precision of the model.
        source: what to call the file in messages.

    Returns:
        The model, on the CPU, in evaluation mode. Weights that have `dtype` already are those of `tensors`.

    Raises:
        MisfitError: a weight is missing, or has another shape than the configuration says.
        InstError: the configuration makes no sense, or the weights are quantised.
    """
    name = model_class.__name__
    try:
        with init_empty_weights():
            if issubclass(model_class, ModelMixin):
                model = model_class.from_config(dict(config))
            else:
                model = model_class(model_class.config_class.from_dict(dict(config)))
    except MemoryError:
        raise
    except Exception as error:  # the libraries raise anything at all over a configuration that makes no sense
        raise InstError(f"{source}: the configuration makes no {name} ({first_line(error)}).") from error

    given = {_without_prefix(key): tensor for key, tensor in tensors.items()}
    wanted: dict[str, Tensor] = model.state_dict()
    missing = sorted(key for key in wanted if _without_prefix(key) not in given)
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise MisfitError(f"{source} does not fit its configuration: the {name} would need {missing[0]}{more}.")
    weights = {}
    for key, parameter in wanted.items():
        tensor = given[_without_prefix(key)]
        if tensor.shape != parameter.shape:
            raise MisfitError(
                f"{source} does not fit its configuration: {key} of the {name} has the shape {list(tensor.shape)}, "
                f"not {list(parameter.shape)}."
            )
        if not tensor.is_floating_point():
            raise InstError(f"{source} is quantised ({key} is {tensor.dtype}): use the model's ordinary weights.")
        weights[key] = tensor.to(dtype)
    model.load_state_dict(weights, assign=True)
    return model.eval()


def _without_prefix(key: str) -> str:
    # transformers 5 has these prefixes in some of its classes, and took them out of others.
    return key.removeprefix("text_model.").removeprefix("vision_model.")
