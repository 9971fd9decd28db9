"""Read all tensors of one checkpoint file, in the safetensors format or written by `torch.save`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from inst.backbone.parts import COPY_AGAIN
from inst.errors import InstError, first_line
from inst.files.git_lfs import refuse_pointer
from inst.files.pickle_limits import DamagedPickleError, UnsafePickleError
from inst.files.pickles import LIGHTNING, is_dense, read_torch_pickle
from inst.files.tensors import open_tensors

_PICKLES = (".ckpt", ".pt", ".pth", ".bin")


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The content of one checkpoint file.

    Attributes:
        path: the file.
        tensors: the tensors by name; they stay in the file until they are used.
        metadata: the metadata of a safetensors file; empty for other files.
    """

    path: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, str]


def read_checkpoint(path: Path) -> Checkpoint:
    """Read the tensors of a checkpoint, without running any code in it.

    Raises:
        InstError: the file is damaged, a pointer of git LFS, or of an unknown format, would run code, or contains no
            tensors.
    """
    refuse_pointer(path)
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        tensors, metadata = _read_safetensors(path)
    elif suffix in _PICKLES:
        tensors, metadata = _read_pickle(path), {}
    else:
        raise InstError(f"{path} is not a model file", f"use a file that ends in .safetensors, {', '.join(_PICKLES)}")
    if not tensors:
        raise InstError(
            f"{path} has no weights at its top level, so it is not a model in the original layout", "use another file"
        )
    return Checkpoint(path, tensors, metadata)


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with open_tensors(path, COPY_AGAIN) as weights:
        return {key: weights.get_tensor(key) for key in weights.keys()}, weights.metadata() or {}  # noqa: SIM118


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        content = read_torch_pickle(path, LIGHTNING)
    except (InstError, MemoryError):
        raise
    except DamagedPickleError as error:
        raise InstError(f"{path} is damaged or not a PyTorch checkpoint ({error})", COPY_AGAIN) from None
    except UnsafePickleError as error:
        raise InstError(f"{path} is refused ({error})", "use the model's safetensors file") from None
    except Exception as error:  # a damaged file can raise any exception
        raise InstError(f"{path} is damaged or not a PyTorch checkpoint ({first_line(error)})", COPY_AGAIN) from None
    while isinstance(content, dict) and isinstance(
        content.get("state_dict"), dict
    ):  # Lightning wraps the weights like this
        content = content["state_dict"]
    if not isinstance(content, dict):
        return {}
    tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    return {key: tensor.detach() for key, tensor in tensors.items() if is_dense(tensor)}
