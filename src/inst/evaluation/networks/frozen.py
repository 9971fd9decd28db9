"""Load frozen networks from weights files."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from torch import nn

from inst.errors import InstError
from inst.evaluation.networks.weights import fetch
from inst.files.tensors import open_tensors

Network = TypeVar("Network", bound=nn.Module)


def load_frozen(
    model: Network, name: str, path: str | Path | None, rename: Callable[[str], str | None] = lambda key: key
) -> Network:
    """Load weights into `model` in float32, and return it frozen and in evaluation mode.

    Args:
        model: the network to fill.
        name: name of the weights in `inst.evaluation.networks.weights.fetch`.
        path: a safetensors file of these weights in any precision; None downloads them.
        rename: returns the model's name for each tensor of the file; None for a tensor that the model does not use.

    Raises:
        InstError: the file is missing, broken, or does not contain these weights.
    """
    path = Path(path or fetch(name))
    if not os.path.exists(path):
        raise InstError(f"{path}: no such file", f"leave out the path to download the weights {name!r}")
    try:
        with open_tensors(path) as weights:
            names = {key: new for key in weights.keys() if (new := rename(key)) is not None}  # noqa: SIM118
            stored = {new: weights.get_tensor(key) for key, new in names.items()}
        if not all(tensor.is_floating_point() for tensor in stored.values()):
            raise ValueError("its tensors are not real numbers")
        model.load_state_dict({new: tensor.float() for new, tensor in stored.items()})
    except (InstError, RuntimeError, ValueError) as error:  # RuntimeError: other names or shapes, or float4
        raise InstError(f"{path} does not contain the weights {name!r}", "delete it or give another file") from error
    return model.eval().requires_grad_(False)
