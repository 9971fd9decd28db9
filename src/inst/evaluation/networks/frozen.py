"""Load frozen networks from weights files."""

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
    try:
        stored = load_file(path)
        model.load_state_dict({new: stored[key].float() for key in stored if (new := rename(key)) is not None})
    except FileNotFoundError as error:
        raise InstError(f"{path}: no such file", f"leave out the path to download the weights {name!r}") from error
    except (SafetensorError, RuntimeError, OSError) as error:
        raise InstError(f"{path} does not contain the weights {name!r}", "delete it or give another file") from error
    return model.eval().requires_grad_(False)
