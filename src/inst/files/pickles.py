"""Read arrays and tensors from pickles of unknown origin, without running any code in them.

A pickle is a program: it names functions and calls them. The readers here accept only the names on a short allow-list
and refuse every other name. If the named object itself is not needed, they use a harmless replacement.
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

from inst.errors import first_line
from inst.files.listing import readable_path
from inst.files.pickle_limits import UnsafePickleError, check_pickle, check_stored, check_torch_file
from inst.files.reading import check_regular

Array = NDArray[np.float32]

_LONGEST_NAME = 1_000  # of an array, in characters


def is_safetensors(start: bytes) -> bool:
    """Whether a file that begins with these 9 bytes may be a safetensors file.

    Its first 8 bytes are a length below 2^32, which can be the same as those of a pickle. No pickle has a "{" after
    them.
    """
    return start[4:9] == b"\0\0\0\0{"


def read_numpy_pickle(data: bytes) -> dict[str, Array]:
    """Read nested dicts of float32 arrays into one flat dict; the keys are joined with dots.

    Raises UnsafePickleError.
    """
    check_pickle(io.BytesIO(data))
    return _load(_NumpyUnpickler(io.BytesIO(data)), "the pickle")


def read_torchscript_tensors(data: bytes) -> dict[str, Array]:
    """Read the float32 tensors of a TorchScript archive (a zip file), by attribute path such as `net.conv.weight`.

    Only `data.pkl` and the raw storages under `data/` are read; the archive's code is ignored. Raises
    UnsafePickleError.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            pickles = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise UnsafePickleError("not a TorchScript archive: it has no single data.pkl")
            root = pickles[0].removesuffix("data.pkl")
            # The code, which is not read, may be compressed.
            check_stored((entry for entry in archive.infolist() if _is_read(entry.filename, root)), len(data))
            content = archive.read(pickles[0])
            check_pickle(io.BytesIO(content))
            return _load(_TorchScriptUnpickler(io.BytesIO(content), archive, root), "the pickle")
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, KeyError, EOFError, ValueError) as error:
        raise UnsafePickleError(f"not a readable TorchScript archive ({type(error).__name__})") from error


def _is_read(name: str, root: str) -> bool:
    return name == f"{root}data.pkl" or name.startswith(f"{root}data/")


def _load(unpickler: pickle.Unpickler, what: str) -> dict[str, Array]:
    try:
        return _flatten(unpickler.load())
    except UnsafePickleError:
        raise
    # A damaged pickle can raise any exception. No code was run, and the data cannot be used.
    except Exception as error:
        raise UnsafePickleError(f"{what} cannot be read: {first_line(error)}") from error


def _flatten(value: object, path: str = "") -> dict[str, Array]:
    """Collect the arrays of nested dicts and modules; other leaves (flags, strides, paddings) are dropped."""
    if len(path) > _LONGEST_NAME:
        raise UnsafePickleError("the pickle has names that are too long")
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
    """Replaces `numpy.ndarray`, which numpy's pickles name but never need to call."""


class _PickledDType:
    """Replaces `numpy.dtype`: stores the type code and the byte order in the pickle."""

    def __init__(self, code: str, *_: object) -> None:
        self.code, self.order = code, "?"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]


class _PickledArray:
    """Replaces an array while it is built."""

    def __init__(self, *_: object) -> None:
        self.state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state

    def array(self) -> Array:
        if len(self.state) != 5:
            raise UnsafePickleError("the pickle contains an array without data")
        _, shape, dtype, fortran, raw = self.state
        if not _is_shape(shape):
            raise UnsafePickleError("the pickle contains an array without a shape")
        if not isinstance(dtype, _PickledDType) or (dtype.code, dtype.order) != ("f4", "<"):
            raise UnsafePickleError("the pickle contains data other than little-endian float32 arrays")
        if not isinstance(raw, bytes) or len(raw) != 4 * math.prod(shape):
            raise UnsafePickleError("the pickle contains an array with the wrong number of bytes for its shape")
        flat = np.frombuffer(raw, dtype="<f4")
        return flat.reshape(shape, order="F" if fortran else "C").astype(np.float32, copy=False)


def _is_shape(value: object) -> bool:
    """Whether a value holds lengths. The product of anything else can be anything: texts, or endless tuples."""
    return (
        isinstance(value, tuple | list)
        and len(value) <= 32
        and all(type(length) is int and 0 <= length < 2**40 for length in value)
    )


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
    """Replaces every module class of the archive; only stores attributes."""


class _FloatStorage:
    """Replaces `torch.FloatStorage`, a marker in the archive's references to its storages."""


def _build_tensor(storage: Array, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *_: object) -> Array:
    """Replaces `torch._utils._rebuild_tensor_v2`, for contiguous tensors only."""
    if not _is_shape(shape) or not _is_shape(stride) or not _is_shape((offset,)) or type(storage) is not np.ndarray:
        raise UnsafePickleError("the archive contains a tensor without a shape")
    contiguous = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
    if tuple(stride) != contiguous:
        raise UnsafePickleError("the archive contains a tensor that is not contiguous")
    # Not a copy: a tensor may be named any number of times.
    return storage[offset : offset + math.prod(shape)].reshape(shape)


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
        self._storages: dict[str, Array] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__."):
            return _Module
        return self._allowed.get((module, name)) or _refuse(module, name)

    def persistent_load(self, pid: Any) -> Array:
        match pid:
            case ("storage", storage_type, str(key), str(), int(count)) if storage_type is _FloatStorage:
                if key not in self._storages:
                    raw = self._archive.read(f"{self._root}data/{key}")
                    if len(raw) != 4 * count:
                        raise UnsafePickleError(f"the archive's storage {key:.60} has the wrong size")
                    self._storages[key] = np.frombuffer(raw, dtype="<f4").astype(np.float32, copy=False)
                return self._storages[key]
        raise UnsafePickleError("the archive refers to something other than a float32 storage")


# --- torch.save -------------------------------------------------------------------------------------------------------


class _Ignored:
    """Replaces the objects that a training program stored with the weights: accepts any data and discards it."""

    def __new__(cls, *_: object) -> "_Ignored":
        return super().__new__(cls)

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


_LIGHTNING_NAMES = (
    "pytorch_lightning.callbacks.ModelCheckpoint",
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "pytorch_lightning.callbacks.early_stopping.EarlyStopping",
    "lightning.pytorch.callbacks.model_checkpoint.ModelCheckpoint",
    "lightning.pytorch.callbacks.early_stopping.EarlyStopping",
)
"""Names in Lightning's checkpoints: the state of its callbacks."""

NUMPY_SCALARS: Mapping[str, type] = dict.fromkeys(
    ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype"), _Ignored
)
"""Replacements for numpy's scalars, such as a number of steps or a score beside the tensors of a file."""

LIGHTNING: Mapping[str, type] = {**dict.fromkeys(_LIGHTNING_NAMES, _Ignored), **NUMPY_SCALARS}
"""Replacements for what Stable Diffusion's checkpoints name: Lightning's classes and numpy's scalars."""


def read_torch_pickle(path: Path, replacements: Mapping[str, type]) -> object:
    """Read a file of `torch.save` with torch's weights-only reader. Tensors stay in the file until they are used.

    Args:
        path: the file.
        replacements: the classes to use instead of those that the pickle names. The libraries of the named classes are
            not imported and need not be installed.

    Raises:
        DamagedPickleError: the file is truncated, or no file of `torch.save`.
        UnsafePickleError: the pickle names another object, or is refused by `check_torch_file`; no code was run.
        InstError: it is missing, or not a regular file.
        Exception: any exception that torch raises for a damaged file.
    """
    check_regular(path)
    is_archive = check_torch_file(path)
    classes: Any = [(replacement, name) for name, replacement in replacements.items()]
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(classes):
            warnings.simplefilter("ignore")  # torch warns of pickle protocols that it does not write, then refuses them
            with readable_path(path) as place:
                return torch.load(place, map_location="cpu", weights_only=True, mmap=is_archive)
    except pickle.UnpicklingError as error:
        if asked := re.search(r"GLOBAL (\S+)", str(error)):
            module, _, name = asked[1].rpartition(".")
            _refuse(module or "builtins", name)
        raise UnsafePickleError("the pickle contains data other than tensors; nothing was run") from None


def is_dense(tensor: torch.Tensor) -> bool:
    """Return whether a tensor from a pickle is an ordinary array: not sparse, not nested, and with all its data.

    A pickle can declare any shape for a single stored number.
    """
    if tensor.layout != torch.strided or tensor.is_nested or tensor.is_meta:
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
