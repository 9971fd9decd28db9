"""Choose the device and the precision; make CUDA deterministic."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from threading import Lock

import torch
from torch import Tensor

from inst.arguments import check_type
from inst.errors import Argument, InstWarning, UsageError, first_line

_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
# cuBLAS is deterministic only with workspaces of a fixed size; see `deterministic`.
_FIXED_SIZE = ":4096:8"
os.environ.setdefault(_WORKSPACE, _FIXED_SIZE)

_NONDETERMINISTIC: set[torch.device] = set()
"""Devices on which an operation has no deterministic kernel."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""The precisions that a backbone can be loaded with, by name."""


def choose_device(device: str | torch.device | None = None) -> torch.device:
    """Return `device`, or the best available one: CUDA, then MPS, then the CPU.

    Raises:
        UsageError: there is no such device; the message says why, and names the devices that there are.
    """
    if device is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(device)
        torch.empty(0, device=device).cpu()  # fails for "meta": its tensors have no values
    except TypeError:
        kind = type(device).__name__
        raise UsageError(f"A device of the type {kind} cannot be used", 'give its name, such as "cpu"') from None
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        available = _available_devices()
        raise UsageError(
            f'The device "{device}" cannot be used ({_reason(device, error)}; available: {", ".join(available)})',
            "try ",
            Argument("device", available[0]),
        ) from None
    return device


def _available_devices() -> list[str]:
    """Return the names of this machine's devices that PyTorch can use, the CPU last."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    count = 0 if accelerator is None else torch.accelerator.device_count()
    return [f"{accelerator}:{number}" if count > 1 else str(accelerator) for number in range(count)] + ["cpu"]


def _reason(device: str | torch.device, error: Exception) -> str:
    """Return why a device cannot be used, from the error that PyTorch raised for it."""
    if isinstance(device, str):  # PyTorch lists every device that any build of it knows
        return "there is no such device"
    if device.type == "meta":
        return "its tensors have no values"
    # PyTorch raises a different exception for each kind of device that it was built without.
    if isinstance(error, AssertionError | NotImplementedError | ImportError) or "INTERNAL ASSERT" in str(error):
        return f"this PyTorch cannot use {device.type}"
    return first_line(error)


def choose_dtype(device: torch.device, dtype: str | torch.dtype | None = None) -> torch.dtype:
    """Return `dtype`, or the best precision for the device.

    CUDA: bfloat16 if the hardware supports it, because gradients flow through the UNet to the pseudo-word and need the
    range of float32; float16 on older GPUs. MPS: float16. CPU: bfloat16 if the CPU has the instructions (AVX-512 BF16,
    which every CPU with AMX also has), otherwise float32.

    Measured with mini at 256 px on 2 threads of an AMD EPYC (Zen 4), bfloat16 and float32, medians: encode 74 and
    135 ms, decode 240 and 422 ms, a UNet call of batch 2 151 and 209 ms, 10 guided steps and decode 1.79 and 2.68 s.
    Differences: decoded pictures 61 dB PSNR or better, predicted noise at most 0.7 %, pictures after 10 steps 52 dB.

    Warns:
        InstWarning: float16 is asked for on a CPU, where it is slow.
    """
    if dtype is not None:
        check_type("A precision", dtype, (str, torch.dtype), f"give one of {', '.join(DTYPES)}")
        chosen = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
        if chosen is None or chosen not in DTYPES.values():
            raise UsageError(f'The precision "{dtype}" is unknown', f"use one of {', '.join(DTYPES)}")
        if chosen == torch.float16 and device.type == "cpu":
            warnings.warn(
                InstWarning(
                    "float16 on a CPU is 5 to 12 times slower than float32",
                    "leave out ",
                    Argument("dtype"),
                    " for the fastest precision",
                ),
                stacklevel=3,
            )
        return chosen
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "mps":
        return torch.float16
    return torch.bfloat16 if _has_cpu_bfloat16() else torch.float32


def _has_cpu_bfloat16() -> bool:
    # Without the instructions, bfloat16 is emulated and slower than float32. Old releases of PyTorch lack this query.
    return hasattr(torch.cpu, "get_capabilities") and bool(torch.cpu.get_capabilities().get("avx512_bf16"))


def autoencoder_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the autoencoder's precision in a backbone of `dtype`: float32 for float16, otherwise `dtype`.

    Its activations can overflow float16. Those of Stable Diffusion XL, with `force_upcast` in its configuration, always
    do. bfloat16 has the range of float32.
    """
    return torch.float32 if dtype == torch.float16 else dtype


def copy_to(tensor: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Copy a tensor to a device, and convert it, without waiting for the device.

    CUDA has read the memory of a tensor on the CPU when the call returns. Other devices may read it later, when it has
    another use, so there the copy waits.
    """
    return tensor.to(device, tensor.dtype if dtype is None else dtype, non_blocking=device.type == "cuda")


@cache
def _has_fixed_workspace(device: torch.device) -> bool:
    """Return whether cuBLAS works in strict mode. It reads the environment once, before its first matrix product."""
    matrix = torch.ones(1, 1, device=device)
    try:
        torch.mm(matrix, matrix)
    except RuntimeError:
        warnings.warn(
            InstWarning(
                f"The GPU was used before inst was imported, or {_WORKSPACE} has another value, so two runs of "
                f"learning may differ in the last bits",
                f"import inst first, or set {_WORKSPACE}={_FIXED_SIZE} in the environment",
            ),
            stacklevel=4,
        )
        return False
    return True


@contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """Use deterministic kernels on a CUDA device inside the block. On other devices it changes nothing.

    PyTorch's strict mode is used: an operation without a deterministic kernel raises RuntimeError (see
    `allow_nondeterminism`). PyTorch's warn-only mode is not enough: in it, attention uses backward kernels that add in
    no fixed order, although it has deterministic ones.

    Warns:
        InstWarning: strict mode is not possible, because CUDA was used before inst was imported.
    """
    if device.type != "cuda":
        yield
        return
    with _STRICT.lock:
        if not _STRICT.users:
            _STRICT.before = _algorithms()
        _STRICT.users += 1
    try:
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # no annotations
        torch.use_deterministic_algorithms(True)
        if device in _NONDETERMINISTIC or not _has_fixed_workspace(device):
            torch.use_deterministic_algorithms(True, warn_only=True)
        yield
    finally:
        with _STRICT.lock:
            _STRICT.users -= 1
            if not _STRICT.users:
                enabled, warn_only, fill = _STRICT.before
                torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
                torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]


def _algorithms() -> tuple[bool, bool, bool]:
    """Return PyTorch's settings: deterministic algorithms, only with a warning, and the filling of new memory."""
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
    )


@dataclass
class _Strict:
    """The users of strict mode. PyTorch has one setting for all threads: the last one to leave sets it back."""

    lock: Lock = field(default_factory=Lock)
    users: int = 0
    before: tuple[bool, bool, bool] = (False, False, False)


_STRICT = _Strict()


def allow_nondeterminism(device: torch.device, error: RuntimeError) -> bool:
    """Let `deterministic` use warn-only mode on this device if strict mode caused `error`.

    No operation of Stable Diffusion's parts is known to need this, but releases of PyTorch and backends differ.

    Returns:
        True if the failed operation can be tried again. False if `error` has another cause, or if the device already
        uses warn-only mode.

    Warns:
        InstWarning: with the operation's name, if the result is True.
    """
    if "does not have a deterministic implementation" not in str(error) or device in _NONDETERMINISTIC:
        return False
    _NONDETERMINISTIC.add(device)
    warnings.warn(
        f"Two runs of learning may differ in the last bits on {device}: {str(error).split()[0]} has no deterministic "
        f"kernel.",
        InstWarning,
        stacklevel=3,
    )
    return True
