"""Where to compute, and with which precision."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch

from inst.arguments import check_type
from inst.errors import InstWarning, UsageError, first_line

_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
# cuBLAS gives the same bits every time only with workspaces of a fixed size; see `deterministic`.
_FIXED = ":4096:8"
os.environ.setdefault(_WORKSPACE, _FIXED)

_GENTLE: set[torch.device] = set()
"""Devices on which an operation turned out to have no deterministic kernel."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""The precisions a backbone can be loaded with, by name."""


def choose_device(device: str | torch.device | None = None) -> torch.device:
    """Return `device`, or the best at hand: CUDA, then MPS, then the CPU. Raises UsageError if it is not there."""
    if device is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(device)
        torch.empty(0, device=device).cpu()  # which the device of tensors without values cannot
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(f'The device "{device}" cannot be used ({first_line(error)})', 'try "cpu"') from None
    except TypeError:
        kind = type(device).__name__
        raise UsageError(f"A device of the type {kind} cannot be used", 'give its name, such as "cpu"') from None
    return device


def choose_dtype(device: torch.device, dtype: str | torch.dtype | None = None) -> torch.dtype:
    """Return `dtype`, or what suits the device.

    CUDA: bfloat16 where the hardware has it, because gradients flow through the UNet to the pseudo-word and need
    float32's range; float16 on older cards. MPS: float16. CPU: bfloat16 where it has the instructions (AVX-512 BF16,
    which every CPU with AMX has too), else float32.

    Measured with mini at 256 px on 2 threads of an AMD EPYC (Zen 4), bfloat16 against float32, medians: encode 74 and
    135 ms, decode 240 and 422 ms, a UNet call of batch 2 151 and 209 ms, 10 guided steps and decode 1.79 and 2.68 s.
    Differences: decoded pictures 61 dB PSNR or better, predicted noise at most 0.7 %, pictures after 10 steps 52 dB.
    """
    if dtype is not None:
        check_type("A precision", dtype, (str, torch.dtype), f"give one of {', '.join(DTYPES)}")
        chosen = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
        if chosen is None or chosen not in DTYPES.values():
            raise UsageError(f'The precision "{dtype}" is unknown', f"use one of {', '.join(DTYPES)}")
        return chosen
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "mps":
        return torch.float16
    return torch.bfloat16 if _has_cpu_bfloat16() else torch.float32


def _has_cpu_bfloat16() -> bool:
    # Without the instructions bfloat16 is emulated, slower than float32. Early releases cannot tell.
    return hasattr(torch.cpu, "get_capabilities") and bool(torch.cpu.get_capabilities().get("avx512_bf16"))


def autoencoder_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the autoencoder's precision in a backbone of `dtype`: float32 for float16, else the same.

    Its activations can overflow float16 (Stable Diffusion XL's, whose configuration says `force_upcast`, always do).
    bfloat16 has float32's range.
    """
    return torch.float32 if dtype == torch.float16 else dtype


@cache
def _has_fixed_workspace(device: torch.device) -> bool:
    """Whether cuBLAS runs under the strict setting, which looks at the environment once, before its first product."""
    one = torch.ones(1, 1, device=device)
    try:
        torch.mm(one, one)
    except RuntimeError:
        warnings.warn(
            f"The GPU was used before inst was imported, or {_WORKSPACE} is set otherwise, so that learning twice may "
            f"differ in the last bits: import inst first, or set {_WORKSPACE}={_FIXED} in the environment.",
            InstWarning,
            stacklevel=4,
        )
        return False
    return True


@contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """Let a CUDA device take kernels that give the same bits every time, within the block; other devices do anyway.

    PyTorch's strict setting, under which an operation without such a kernel raises RuntimeError: see `be_gentle`. Under
    the gentle one, which warns instead, attention keeps the backward kernels that add in no fixed order, though it has
    others.

    Warns:
        InstWarning: the strict setting is out of reach, because CUDA was computed with before inst was imported.
    """
    if device.type != "cuda":
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    options: Any = torch.utils.deterministic  # its properties are not annotated
    fill = options.fill_uninitialized_memory
    options.fill_uninitialized_memory = False
    try:
        torch.use_deterministic_algorithms(True)
        if device in _GENTLE or not _has_fixed_workspace(device):
            torch.use_deterministic_algorithms(True, warn_only=True)
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        options.fill_uninitialized_memory = fill


def be_gentle(device: torch.device, error: RuntimeError) -> bool:
    """Settle for PyTorch's gentle setting in `deterministic` on this device, where `error` came of the strict one.

    No operation of Stable Diffusion's parts has been found to need it, but releases of PyTorch and backends differ.

    Returns:
        Whether what failed can be tried again: False where `error` is another, or came under the gentle setting.

    Warns:
        InstWarning: with the operation's name, where it can.
    """
    if "does not have a deterministic implementation" not in str(error) or device in _GENTLE:
        return False
    _GENTLE.add(device)
    warnings.warn(
        f"Learning twice may differ in the last bits on {device}: {str(error).split()[0]} has no deterministic kernel.",
        InstWarning,
        stacklevel=3,
    )
    return True
