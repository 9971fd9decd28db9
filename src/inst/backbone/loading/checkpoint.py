"""Checkpoint: every tensor of one file, whether safetensors or what `torch.save` wrote."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from inst.backbone.parts import AGAIN
from inst.errors import InstError, first_line
from inst.files.pickles import LIGHTNING, UnsafePickleError, holds_numbers, read_torch_pickle

_PICKLES = (".ckpt", ".pt", ".pth", ".bin")


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What one file holds.

    Attributes:
        path: the file.
        tensors: by name; they stay in the file until they are used.
        metadata: what a safetensors file says of itself.
    """

    path: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, str]


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint's tensors, and nothing that could run.

    Raises:
        InstError: the file is damaged, of an unknown format, asks for code, or holds no tensors.
    """
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        tensors, metadata = _read_safetensors(path)
    elif suffix in _PICKLES:
        tensors, metadata = _read_pickle(path), {}
    else:
        raise InstError(
            f"{path} is no model file that can be read: it would end in .safetensors, {', '.join(_PICKLES)}."
        )
    if not tensors:
        raise InstError(f"{path} holds no weights at its top level: it is no model in the original layout.")
    return Checkpoint(path, tensors, metadata)


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, "pt") as weights:
            return {key: weights.get_tensor(key) for key in weights.keys()}, weights.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InstError(f"{path} is damaged or no safetensors file ({first_line(error)})", AGAIN) from None


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        content = read_torch_pickle(path, LIGHTNING)
    except UnsafePickleError as error:
        raise InstError(f"{path} is refused: {error}", "get the model's safetensors file") from None
    except MemoryError:
        raise
    except Exception as error:  # a damaged file can fail in any way
        raise InstError(f"{path} is damaged or no checkpoint of torch ({first_line(error)})", AGAIN) from None
    while isinstance(content, dict) and isinstance(content.get("state_dict"), dict):  # as Lightning wraps it
        content = content["state_dict"]
    if not isinstance(content, dict):
        return {}
    tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    return {key: tensor.detach() for key, tensor in tensors.items() if holds_numbers(tensor)}
