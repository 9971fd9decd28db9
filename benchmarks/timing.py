"""Measure times: medians of warm, synchronised runs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(call: Callable[[], Any], device: torch.device) -> float:
    """Return the seconds that a call takes, its work on the device included."""
    synchronise(device)
    begin = time.perf_counter()
    call()
    synchronise(device)
    return time.perf_counter() - begin


def median_ms(call: Callable[[], Any], device: torch.device, repeats: int, warm_up: int = 2) -> float:
    """Return the median milliseconds of `repeats` calls, after `warm_up` calls that are not counted."""
    for _ in range(warm_up):
        call()
    return statistics.median(seconds(call, device) for _ in range(repeats)) * 1000


def step_ms(steps: Iterable[Any], device: torch.device, skip: int = 3) -> float:
    """Return the median milliseconds between the steps of a generator. The first `skip` steps are not counted."""
    marks = []
    for _ in steps:
        synchronise(device)
        marks.append(time.perf_counter())
    times = [after - before for before, after in zip(marks[skip:], marks[skip + 1 :], strict=False)]
    return statistics.median(times) * 1000


def peak_gb(call: Callable[[], Any], device: torch.device) -> float | None:
    """Return the peak memory that PyTorch allocates on a GPU during a call, in GB; None on other devices."""
    if device.type != "cuda":
        call()
        return None
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    call()
    return torch.cuda.max_memory_allocated(device) / 1e9
