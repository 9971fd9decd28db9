"""Fused layers: the same results with fewer and faster kernels, in the calls inside of a block.

diffusers' models stay as they are. A mode of PyTorch sees every operation of this thread, and computes some of them in
another way (`inst.backbone.kernels`): group normalisation, with the SiLU that follows it; layer normalisation; and the
product with a GELU. A convolution of one pixel becomes a matrix product, which adds the bias at once. Copies to the
plain layout are left out, because the next convolution would copy the tensor back.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

_LARGEST_INDEX = 2**31 - 1  # PyTorch's channels-last upsampling fails with more numbers


@cache
def kernels() -> Any:
    """Return `inst.backbone.kernels`; None without Triton, which comes with PyTorch for CUDA on Linux."""
    if importlib.util.find_spec("triton") is None:
        return None
    from inst.backbone import kernels

    return kernels


class Fused(TorchFunctionMode):
    """Compute these layers with fused kernels inside the block.

    An operation that may be fused with the next one waits for it: its result is an empty tensor until then. Every other
    operation first makes the waiting one fill its tensor.
    """

    def __init__(self) -> None:
        super().__init__()
        self._waiting: _Waiting | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            fused = waiting.join(func, args)
            if fused is not None:
                return fused
            waiting.fill()
        if func is F.group_norm and _is_channels_last(args[0]) and _is_frozen(kwargs["weight"], kwargs["bias"]):
            self._waiting = _GroupNorm(args[0], args[1], **kwargs)
            return self._waiting.result
        if func is F.layer_norm and _has_rows(args[0]) and _is_frozen(kwargs["weight"], kwargs["bias"]):
            return _LayerNormFunction.apply(args[0], kwargs["weight"], kwargs["bias"], kwargs["eps"])
        if func is F.conv2d and not kwargs and _is_of_one_pixel(*args):
            x, weight, bias, *_ = args
            return F.linear(x.movedim(1, -1), weight.flatten(1), bias).movedim(-1, 1)
        if func is F.gelu and not kwargs and _has_rows(args[0]):
            self._waiting = _Gelu(args[0])
            return self._waiting.result
        if func is Tensor.contiguous and not kwargs and args[0].dim() == 4 and _is_channels_last(args[0]):
            return args[0]
        if func is F.interpolate and _is_channels_last(args[0]) and 4 * args[0].numel() > _LARGEST_INDEX:
            args = (args[0].contiguous(), *args[1:])
        return func(*args, **kwargs)

    def __exit__(self, *exception: Any) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.fill()
        super().__exit__(*exception)


class _Waiting:
    """An operation whose tensor `result` is still empty."""

    result: Tensor

    def join(self, func: Any, args: Any) -> Tensor | None:
        """Return the result of this and the next operation together; None if they cannot be fused."""
        raise NotImplementedError

    def fill(self) -> None:
        """Compute `result` alone."""
        raise NotImplementedError


class _GroupNorm(_Waiting):
    def __init__(self, x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> None:
        self.x, self.settings = x, (groups, weight, bias, eps)
        self.norm = _Norm(weight, bias)
        self.result: Tensor = _GroupNormFunction.apply(x, self.norm)

    def join(self, func: Any, args: Any) -> Tensor | None:
        if func is not F.silu or args[0] is not self.result:
            return None
        self.norm.silu = True
        self.fill()
        return self.result

    def fill(self) -> None:
        with torch.no_grad():
            self.norm.stats = kernels().group_norm(self.x, *self.settings, self.norm.silu, self.result.detach())


@dataclass(eq=False)
class _Norm:
    """What the backward pass of a group normalisation needs, besides its input."""

    weight: Tensor
    bias: Tensor
    silu: bool = False
    stats: Tensor | None = None


class _GroupNormFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, norm: _Norm) -> Tensor:
        ctx.save_for_backward(x)
        ctx.norm = norm
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        (x,), norm = ctx.saved_tensors, ctx.norm
        dy = dy.movedim(1, -1).contiguous().movedim(-1, 1)
        return kernels().group_norm_backward(x, dy, norm.weight, norm.bias, norm.stats, norm.silu), None


class _LayerNormFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.weight, ctx.eps = weight, eps
        normal: Tensor = kernels().layer_norm(x, weight, bias, eps)
        return normal

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None, None]:
        return kernels().layer_norm_backward(*ctx.saved_tensors, dy, ctx.weight, ctx.eps), None, None, None


class _Gelu(_Waiting):
    def __init__(self, gate: Tensor) -> None:
        self.gate = gate
        self.result: Tensor = _GeluFunction.apply(gate)

    def join(self, func: Any, args: Any) -> Tensor | None:
        if func is not Tensor.mul or args[1] is not self.result or not _has_rows(args[0]):
            return None
        fused: Tensor = _GegluFunction.apply(args[0], self.gate)
        return fused

    def fill(self) -> None:
        with torch.no_grad():
            self.result.detach().copy_(F.gelu(self.gate))


class _GeluFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor) -> Tensor:
        ctx.save_for_backward(gate)
        return torch.empty_like(gate)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        gradient: Tensor = torch.ops.aten.gelu_backward(dy, *ctx.saved_tensors)
        return gradient


class _GegluFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, gate: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, gate)
        product: Tensor = kernels().geglu(hidden, gate)
        return product

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        gradients: tuple[Tensor, Tensor] = kernels().geglu_backward(*ctx.saved_tensors, dy)
        return gradients


def _is_of_one_pixel(
    x: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: Any = 1
) -> bool:
    """Return whether a convolution treats every pixel alone, and x is channels-last."""
    if weight.shape[2:].numel() != 1 or groups != 1 or not _is_channels_last(x):
        return False
    return stride in (1, (1, 1)) and padding in (0, (0, 0))


def _is_channels_last(x: Any) -> bool:
    return isinstance(x, Tensor) and x.dim() > 2 and x.movedim(1, -1).is_contiguous()


def _is_frozen(weight: Tensor | None, bias: Tensor | None) -> bool:
    """Return whether no gradients of these are needed; None, for no weights, is not supported."""
    return weight is not None and bias is not None and not (weight.requires_grad or bias.requires_grad)


def _has_rows(x: Any) -> bool:
    """Return whether the rows of x [..., D] are contiguous, and follow each other at a regular distance."""
    if not isinstance(x, Tensor) or x.dim() < 2 or x.stride(-1) != 1:
        return False
    return all(x.stride(i) == x.stride(i + 1) * x.shape[i + 1] for i in range(x.dim() - 2))
