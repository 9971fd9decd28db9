"""Weights files into networks."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from inst.errors import InstError
from inst.evaluation.networks.weights import fetch

Network = TypeVar("Network", bound=nn.Module)


def load_frozen(
    model: Network, name: str, path: str | Path | None, rename: Callable[[str], str | None] = lambda key: key
) -> Network:
    """`model` with weights in float32, in evaluation mode and frozen.

    Args:
        model: the network to fill.
        name: what `inst.evaluation.networks.weights.fetch` calls its weights.
        path: a safetensors file of these weights in any precision; fetched if None.
        rename: the model's name of each tensor of the file; None for one that it has no use for.

    Raises:
        InstError: the file is missing, broken, or does not hold these weights.
    """
    path = Path(path or fetch(name))
    try:
        stored = load_file(path)
        model.load_state_dict({new: stored[key].float() for key in stored if (new := rename(key)) is not None})
    except FileNotFoundError as error:
        raise InstError(f"{path}: no such file", f"leave the path out to fetch the weights {name!r}") from error
    except (SafetensorError, RuntimeError, OSError) as error:
        raise InstError(f"{path}: does not hold the weights {name!r}", "delete it or give another file") from error
    return model.eval().requires_grad_(False)
