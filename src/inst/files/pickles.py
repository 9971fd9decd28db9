"""Arrays and tensors out of other people's pickles, without running anything that a pickle asks for.

A pickle is a program: it names functions and calls them. The readers here answer every name from a short allow-list,
with a stand-in of their own wherever the thing itself is not needed, and refuse every other name.
"""

import io
import math
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[np.float32]


class UnsafePickleError(pickle.UnpicklingError):
    """The pickle names something outside the allow-list, or holds something other than what its reader takes."""


def read_numpy_pickle(data: bytes) -> dict[str, Array]:
    """Nested dicts of pickled float32 arrays as one flat dict; the keys are joined with dots."""
    return _load(_NumpyUnpickler(io.BytesIO(data)), "the pickle")


def read_torchscript_tensors(data: bytes) -> dict[str, Array]:
    """The float32 tensors of a TorchScript archive (a zip file), by attribute path such as `net.conv.weight`.

    Only `data.pkl` and the raw storages under `data/` are read; the archive's code is not looked at.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            pickles = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise UnsafePickleError("not a TorchScript archive: it has no single data.pkl")
            root = pickles[0].removesuffix("data.pkl")
            unpickler = _TorchScriptUnpickler(io.BytesIO(archive.read(pickles[0])), archive, root)
            return _load(unpickler, pickles[0])
    except (zipfile.BadZipFile, KeyError) as error:
        raise UnsafePickleError(f"not a readable TorchScript archive: {error}") from error


def _load(unpickler: pickle.Unpickler, what: str) -> dict[str, Array]:
    try:
        return _flatten(unpickler.load())
    except pickle.UnpicklingError:
        raise
    # A damaged pickle can fail in any way; whichever it is, nothing was executed and nothing can be used.
    except Exception as error:
        raise UnsafePickleError(f"{what} cannot be read: {error}") from error


def _flatten(value: object, path: str = "") -> dict[str, Array]:
    """Arrays of nested dicts and module stand-ins; other leaves (flags, strides, paddings) are dropped."""
    if isinstance(value, _PickledArray):
        return {path: value.array()}
    if isinstance(value, np.ndarray):
        return {path: value}
    if isinstance(value, _Module):
        value = vars(value)
    if not isinstance(value, dict):
        return {}
    arrays: dict[str, Array] = {}
    for key, item in value.items():
        arrays |= _flatten(item, f"{path}.{key}" if path else str(key))
    return arrays


def _refuse(module: str, name: str) -> NoReturn:
    raise UnsafePickleError(f"the pickle asks for {module}.{name}, which is not on the allow-list; nothing was run")


# --- numpy ------------------------------------------------------------------------------------------------------------


class _NumpyType:
    """Stands in for the name `numpy.ndarray`, which numpy's pickles pass around but never need called."""


class _PickledDType:
    """Stands in for `numpy.dtype`: keeps what the pickle says about it."""

    def __init__(self, code: str, *_: object) -> None:
        self.code, self.order = code, "?"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]


class _PickledArray:
    """Stands in for an array under construction."""

    def __init__(self, *_: object) -> None:
        self.state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state

    def array(self) -> Array:
        if len(self.state) != 5:
            raise UnsafePickleError("the pickle holds an array without contents")
        _, shape, dtype, fortran, raw = self.state
        if not isinstance(dtype, _PickledDType) or (dtype.code, dtype.order) != ("f4", "<"):
            raise UnsafePickleError("the pickle holds something other than little-endian float32 arrays")
        if not isinstance(raw, bytes) or len(raw) != 4 * math.prod(shape):
            raise UnsafePickleError("the pickle holds an array whose bytes do not fit its shape")
        flat = np.frombuffer(raw, dtype="<f4")
        return flat.reshape(shape, order="F" if fortran else "C").astype(np.float32)


class _NumpyUnpickler(pickle.Unpickler):
    _allowed: ClassVar[dict[tuple[str, str], type]] = {
        ("numpy.core.multiarray", "_reconstruct"): _PickledArray,
        ("numpy._core.multiarray", "_reconstruct"): _PickledArray,  # the same under numpy 2
        ("numpy", "ndarray"): _NumpyType,
        ("numpy", "dtype"): _PickledDType,
    }

    def find_class(self, module: str, name: str) -> type:
        return self._allowed.get((module, name)) or _refuse(module, name)


# --- TorchScript ------------------------------------------------------------------------------------------------------


class _Module:
    """Stands in for every module class of the archive: a bag of attributes."""


class _FloatStorage:
    """Stands in for `torch.FloatStorage`, a marker in the archive's references to its storages."""


def _build_tensor(storage: Array, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *_: object) -> Array:
    """What `torch._utils._rebuild_tensor_v2` does, for contiguous tensors."""
    contiguous = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
    if tuple(stride) != contiguous:
        raise UnsafePickleError("the archive holds a tensor that is not contiguous")
    return storage[offset : offset + math.prod(shape)].reshape(shape).copy()


def _build_dict() -> dict[object, object]:
    return {}


def _build_list(values: object) -> object:
    return values


class _TorchScriptUnpickler(pickle.Unpickler):
    _allowed: ClassVar[dict[tuple[str, str], object]] = {
        ("torch._utils", "_rebuild_tensor_v2"): _build_tensor,
        ("torch", "FloatStorage"): _FloatStorage,
        ("torch.jit._pickle", "build_intlist"): _build_list,
        ("collections", "OrderedDict"): _build_dict,
    }

    def __init__(self, file: io.BytesIO, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(file)
        self._archive, self._root = archive, root

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__."):
            return _Module
        return self._allowed.get((module, name)) or _refuse(module, name)

    def persistent_load(self, pid: Any) -> Array:
        match pid:
            case ("storage", storage_type, str(key), str(), int(count)) if storage_type is _FloatStorage:
                raw = self._archive.read(f"{self._root}data/{key}")
                if len(raw) != 4 * count:
                    raise UnsafePickleError(f"the archive's storage {key} does not have the size it should have")
                return np.frombuffer(raw, dtype="<f4").astype(np.float32)
        raise UnsafePickleError("the archive refers to something other than a float32 storage")


# --- torch.save -------------------------------------------------------------------------------------------------------


class _Inert:
    """Stands in for what a training program left beside its weights: takes everything, keeps and does nothing."""

    def __new__(cls, *_: object) -> "_Inert":
        return super().__new__(cls)

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


_BESIDE_THE_WEIGHTS = (
    "pytorch_lightning.callbacks.ModelCheckpoint",
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "pytorch_lightning.callbacks.early_stopping.EarlyStopping",
    "lightning.pytorch.callbacks.model_checkpoint.ModelCheckpoint",
    "lightning.pytorch.callbacks.early_stopping.EarlyStopping",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
)
"""What Lightning's checkpoints name: its callbacks' state, and the scores that they watched."""


LIGHTNING: Mapping[str, type] = dict.fromkeys(_BESIDE_THE_WEIGHTS, _Inert)
"""Inert stand-ins for Lightning's classes and numpy's scalars, which Stable Diffusion's checkpoints name."""


def read_torch_pickle(path: Path, stand_ins: Mapping[str, type]) -> object:
    """What `torch.save` wrote, through torch's weights-only reader; the tensors stay in the file until they are used.

    Args:
        path: the file.
        stand_ins: the classes to make in the place of those that the pickle names: their libraries are not imported,
            nor need be installed.

    Raises:
        UnsafePickleError: the pickle asks for anything else; nothing of it was run.
        Exception: whatever torch raises over a damaged file.
    """
    classes: Any = [(stand_in, name) for name, stand_in in stand_ins.items()]
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(classes):
            warnings.simplefilter("ignore")  # of pickle protocols that torch does not write, before refusing them
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        if asked := re.search(r"GLOBAL (\S+)", str(error)):
            module, _, name = asked[1].rpartition(".")
            _refuse(module or "builtins", name)
        raise UnsafePickleError("the pickle holds something other than tensors; nothing was run") from None


def holds_numbers(tensor: torch.Tensor) -> bool:
    """Whether a tensor out of a pickle is an ordinary array: not sparse, not nested, and not without contents."""
    return tensor.layout == torch.strided and not tensor.is_nested and not tensor.is_meta
