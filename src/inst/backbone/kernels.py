"""Triton kernels for layers that PyTorch computes slowly on a GPU in the channels-last layout.

PyTorch's group normalisation takes the plain layout only, so each call copies its input, and the convolution behind it
copies the result back. These copies took a quarter of the time of Stable Diffusion's UNet (measured on an H200, 64
latents of 64 x 64).

Shapes: B pictures, P positions (h w), C channels in G groups. A channels-last tensor [B, C, h, w] is [B, P, C] in
memory. Sums are float32, whatever the precision of the tensors. A variance is the difference of two sums, so it loses
digits where the mean is much larger than the deviation. The activations of these models are not like that: measured in
float32, the kernels are as exact as PyTorch's own.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# A kernel is compiled once for each kind of value (1, a multiple of 16, others) of its numbers, unless told otherwise.
_ROWS, _COLUMNS = 64, 64  # positions and channels of a tile
_MAX_PARTS = 256  # partial sums for each picture and channel


@triton.jit
def _normal(x, mean, rstd, weight, bias):
    return (x - mean) * rstd * weight + bias


@triton.jit(do_not_specialize=["positions", "per_group", "per_part"])
def _group_sums(
    x_ptr, dy_ptr, weight_ptr, bias_ptr, stats_ptr, sums_ptr, positions, channels, per_group, per_part,
    BACKWARD: tl.constexpr, SILU: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Sum over the positions of one part: x and x^2, or (backward) w dn and w dn xhat; see `_group_apply`."""
    picture, part, parts = tl.program_id(2), tl.program_id(0), tl.num_programs(0)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < channels
    first = tl.zeros([ROWS, COLUMNS], tl.float32)
    second = tl.zeros([ROWS, COLUMNS], tl.float32)
    base = picture.to(tl.int64) * positions * channels
    if BACKWARD:
        group = picture * (channels // per_group) + column // per_group
        mean = tl.load(stats_ptr + 2 * group, mask=inside, other=0.0)[None, :]
        rstd = tl.load(stats_ptr + 2 * group + 1, mask=inside, other=0.0)[None, :]
        weight = tl.load(weight_ptr + column, mask=inside, other=0.0).to(tl.float32)[None, :]
        bias = tl.load(bias_ptr + column, mask=inside, other=0.0).to(tl.float32)[None, :]
    end = tl.minimum((part + 1) * per_part, positions)
    for start in range(part * per_part, end, ROWS):
        row = start + tl.arange(0, ROWS)
        place = base + row[:, None].to(tl.int64) * channels + column[None, :]
        mask = (row < end)[:, None] & inside[None, :]
        x = tl.load(x_ptr + place, mask=mask, other=0.0).to(tl.float32)
        if BACKWARD:
            dn = tl.load(dy_ptr + place, mask=mask, other=0.0).to(tl.float32)
            if SILU:
                n = _normal(x, mean, rstd, weight, bias)
                s = tl.sigmoid(n)
                dn = dn * s * (1 + n * (1 - s))
            first += dn * weight
            second += dn * weight * (x - mean) * rstd
        else:
            first += x
            second += x * x
    out = sums_ptr + 2 * ((picture * parts + part) * channels + column)
    tl.store(out, tl.sum(first, axis=0), mask=inside)
    tl.store(out + 1, tl.sum(second, axis=0), mask=inside)


@triton.jit(do_not_specialize=["positions", "channels", "per_group", "parts"])
def _group_means(
    sums_ptr, means_ptr, positions, channels, per_group, parts, eps,
    BACKWARD: tl.constexpr, PARTS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Reduce the sums of one group: to mean and 1 / standard deviation, or (backward) to the two means."""
    picture, group, groups = tl.program_id(1), tl.program_id(0), tl.num_programs(0)
    part, member = tl.arange(0, PARTS)[:, None], tl.arange(0, GROUP)[None, :]
    mask = (part < parts) & (member < per_group)
    place = sums_ptr + 2 * ((picture * parts + part) * channels + group * per_group + member)
    count = positions * per_group
    first = tl.sum(tl.sum(tl.load(place, mask=mask, other=0.0), axis=0), axis=0) / count
    second = tl.sum(tl.sum(tl.load(place + 1, mask=mask, other=0.0), axis=0), axis=0) / count
    if not BACKWARD:
        second = 1 / tl.sqrt(tl.maximum(second - first * first, 0.0) + eps)
    out = means_ptr + 2 * (picture * groups + group)
    tl.store(out, first)
    tl.store(out + 1, second)


@triton.jit(do_not_specialize=["positions", "per_group"])
def _group_apply(
    x_ptr, dy_ptr, weight_ptr, bias_ptr, stats_ptr, means_ptr, out_ptr, positions, channels, per_group,
    BACKWARD: tl.constexpr, SILU: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Compute n = w xhat + b, y = n or silu(n); or (backward) dx = rstd (w dn - mean(w dn) - xhat mean(w dn xhat))."""
    picture = tl.program_id(2)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < channels
    group = picture * (channels // per_group) + column // per_group
    mean = tl.load(stats_ptr + 2 * group, mask=inside, other=0.0)[None, :]
    rstd = tl.load(stats_ptr + 2 * group + 1, mask=inside, other=0.0)[None, :]
    weight = tl.load(weight_ptr + column, mask=inside, other=0.0).to(tl.float32)[None, :]
    bias = tl.load(bias_ptr + column, mask=inside, other=0.0).to(tl.float32)[None, :]
    place = picture.to(tl.int64) * positions * channels + row[:, None].to(tl.int64) * channels + column[None, :]
    mask = (row < positions)[:, None] & inside[None, :]
    x = tl.load(x_ptr + place, mask=mask, other=0.0).to(tl.float32)
    n = _normal(x, mean, rstd, weight, bias)
    if BACKWARD:
        dn = tl.load(dy_ptr + place, mask=mask, other=0.0).to(tl.float32)
        if SILU:
            s = tl.sigmoid(n)
            dn = dn * s * (1 + n * (1 - s))
        first = tl.load(means_ptr + 2 * group, mask=inside, other=0.0)[None, :]
        second = tl.load(means_ptr + 2 * group + 1, mask=inside, other=0.0)[None, :]
        out = rstd * (weight * dn - first - (x - mean) * rstd * second)
    else:
        out = n * tl.sigmoid(n) if SILU else n
    tl.store(out_ptr + place, out.to(out_ptr.dtype.element_ty), mask=mask)


def group_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, silu: bool, out: Tensor) -> Tensor:
    """Normalise x [B, C, h, w] (channels-last) into `out` of the same layout, with SiLU on request.

    Returns:
        Mean and 1 / standard deviation of each group, [B, G, 2] float32, for `group_norm_backward`.
    """
    with torch.cuda.device_of(x):
        stats = _means(x, x, weight, bias, None, groups, eps, silu)
        _apply(x, x, weight, bias, stats, None, out, silu)
    return stats


def group_norm_backward(x: Tensor, dy: Tensor, weight: Tensor, bias: Tensor, stats: Tensor, silu: bool) -> Tensor:
    """Return the gradient of x from dy, the gradient of the result of `group_norm`. All are channels-last."""
    out = torch.empty_like(x)
    with torch.cuda.device_of(x):
        means = _means(x, dy, weight, bias, stats, stats.shape[1], 0.0, silu)
        _apply(x, dy, weight, bias, stats, means, out, silu)
    return out


def _means(
    x: Tensor, dy: Tensor, weight: Tensor, bias: Tensor, stats: Tensor | None, groups: int, eps: float, silu: bool
) -> Tensor:
    batch, channels = x.shape[:2]
    positions = x.shape[2:].numel()
    per_part = _ROWS * triton.cdiv(triton.cdiv(positions, _ROWS), _MAX_PARTS)
    parts = triton.cdiv(positions, per_part)
    sums = x.new_empty(batch, parts, channels, 2, dtype=torch.float32)
    means = x.new_empty(batch, groups, 2, dtype=torch.float32)
    backward, per_group = stats is not None, channels // groups
    _group_sums[(parts, triton.cdiv(channels, _COLUMNS), batch)](
        x, dy, weight, bias, means if stats is None else stats, sums, positions, channels, per_group, per_part,
        BACKWARD=backward, SILU=silu, ROWS=_ROWS, COLUMNS=_COLUMNS,
    )  # fmt: skip
    _group_means[(groups, batch)](
        sums, means, positions, channels, per_group, parts, eps,
        BACKWARD=backward, PARTS=triton.next_power_of_2(parts), GROUP=triton.next_power_of_2(per_group),
    )  # fmt: skip
    return means


def _apply(
    x: Tensor, dy: Tensor, weight: Tensor, bias: Tensor, stats: Tensor, means: Tensor | None, out: Tensor, silu: bool
) -> None:
    batch, channels = x.shape[:2]
    positions = x.shape[2:].numel()
    _group_apply[(triton.cdiv(positions, _ROWS), triton.cdiv(channels, _COLUMNS), batch)](
        x, dy, weight, bias, stats, stats if means is None else means, out, positions, channels,
        channels // stats.shape[1], BACKWARD=means is not None, SILU=silu, ROWS=_ROWS, COLUMNS=_COLUMNS,
    )  # fmt: skip


@triton.jit
def _layer_norm(
    x_ptr, dy_ptr, weight_ptr, bias_ptr, out_ptr, rows, width, stride, eps,
    BACKWARD: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Compute w xhat + b of each row, or (backward) dx = rstd (w dy - mean(w dy) - xhat mean(w dy xhat))."""
    row, column = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    inside = column < width
    mask = (row < rows)[:, None] & inside[None, :]
    x = tl.load(x_ptr + row[:, None].to(tl.int64) * stride + column[None, :], mask=mask, other=0.0).to(tl.float32)
    mean = tl.sum(x, axis=1)[:, None] / width
    centred = tl.where(mask, x - mean, 0.0)
    rstd = 1 / tl.sqrt(tl.sum(centred * centred, axis=1)[:, None] / width + eps)
    weight = tl.load(weight_ptr + column, mask=inside, other=0.0).to(tl.float32)[None, :]
    place = row[:, None].to(tl.int64) * width + column[None, :]
    if BACKWARD:
        dy = tl.load(dy_ptr + place, mask=mask, other=0.0).to(tl.float32) * weight
        first = tl.sum(dy, axis=1)[:, None] / width
        second = tl.sum(dy * centred, axis=1)[:, None] * rstd / width
        out = rstd * (dy - first - centred * rstd * second)
    else:
        bias = tl.load(bias_ptr + column, mask=inside, other=0.0).to(tl.float32)[None, :]
        out = centred * rstd * weight + bias
    tl.store(out_ptr + place, out.to(out_ptr.dtype.element_ty), mask=mask)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Normalise x [..., D], with rows of a regular stride, over D."""
    return _launch_layer_norm(x, x, weight, bias, eps, backward=False)


def layer_norm_backward(x: Tensor, dy: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return the gradient of x from dy [..., D], the gradient of the result of `layer_norm`."""
    return _launch_layer_norm(x, dy.contiguous(), weight, weight, eps, backward=True)


def _launch_layer_norm(x: Tensor, dy: Tensor, weight: Tensor, bias: Tensor, eps: float, *, backward: bool) -> Tensor:
    out, width = _rows_like(x), x.shape[-1]
    columns = triton.next_power_of_2(width)
    count, rows = x.numel() // width, max(1, 4096 // columns)
    with torch.cuda.device_of(x):
        _layer_norm[(triton.cdiv(count, rows),)](
            x, dy, weight, bias, out, count, width, x.stride(-2), eps, BACKWARD=backward, ROWS=rows, COLUMNS=columns
        )
    return out


@triton.jit
def _geglu(
    hidden_ptr, gate_ptr, dy_ptr, out_ptr, dgate_ptr, width, hidden_stride, gate_stride,
    BACKWARD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < width
    hidden = tl.load(hidden_ptr + row * hidden_stride + column, mask=mask).to(tl.float32)
    gate = tl.load(gate_ptr + row * gate_stride + column, mask=mask).to(tl.float32)
    below = 0.5 * (1 + tl.math.erf(gate * 0.7071067811865476))  # of the normal distribution; gelu(g) = g below
    out = row * width + column
    if BACKWARD:
        dy = tl.load(dy_ptr + out, mask=mask).to(tl.float32)
        slope = below + gate * 0.3989422804014327 * tl.exp(-0.5 * gate * gate)
        tl.store(out_ptr + out, (dy * gate * below).to(out_ptr.dtype.element_ty), mask=mask)
        tl.store(dgate_ptr + out, (dy * hidden * slope).to(dgate_ptr.dtype.element_ty), mask=mask)
    else:
        tl.store(out_ptr + out, (hidden * gate * below).to(out_ptr.dtype.element_ty), mask=mask)


def geglu(hidden: Tensor, gate: Tensor) -> Tensor:
    """Compute hidden gelu(gate) (Shazeer 2020, arXiv 2002.05202). Both are [..., D], with rows of a regular stride."""
    out = _rows_like(hidden)
    _launch_geglu(hidden, gate, hidden, out, out, backward=False)
    return out


def geglu_backward(hidden: Tensor, gate: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of `hidden` and `gate` from dy [..., D], the gradient of the result of `geglu`."""
    out, dgate = _rows_like(hidden), _rows_like(hidden)
    _launch_geglu(hidden, gate, dy.contiguous(), out, dgate, backward=True)
    return out, dgate


def _rows_like(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)


def _launch_geglu(hidden: Tensor, gate: Tensor, dy: Tensor, out: Tensor, dgate: Tensor, *, backward: bool) -> None:
    width = hidden.shape[-1]
    grid: Any = (hidden.numel() // width, triton.cdiv(width, 1024))
    strides = hidden.stride(-2), gate.stride(-2)
    with torch.cuda.device_of(hidden):
        _geglu[grid](hidden, gate, dy, out, dgate, width, *strides, BACKWARD=backward, BLOCK=1024)
