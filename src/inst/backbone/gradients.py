"""Faster operations for calls with gradients in bfloat16 on a CPU, for learning.

The results are those of PyTorch's own operations up to rounding. PyTorch's attention computes its backward pass in
pieces that are too small for fast matrix products, so here the whole products are computed, and PyTorch differentiates
them. A convolution of one pixel is a matrix product too, and oneDNN would copy its numbers to another order and back.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from inst.backbone.blockwise import is_useful

_LARGEST = 2**24  # weights of one call: the backward pass needs all of them, 32 MB in bfloat16


class Gradients(TorchFunctionMode):
    """Use `attention` and `convolve` inside the block, for calls with gradients in bfloat16. Other calls stay."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and len(args) == 3 and _is_attention(*args, **kwargs):
            query, key, value = args
            return attention(query, key, value, kwargs.get("scale"), causal=bool(kwargs.get("is_causal")))
        if func is F.conv2d and not kwargs and _is_of_one_pixel(*args):
            return convolve(*args[:3])
        return func(*args, **kwargs)


def faster_gradients(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """Return `Gradients` for calls with gradients in this precision, if this CPU gains; or else an empty block."""
    useful = device.type == "cpu" and dtype == torch.bfloat16 and torch.is_grad_enabled() and is_useful()
    return Gradients() if useful else nullcontext()


def attention(query: Tensor, key: Tensor, value: Tensor, scale: float | None = None, *, causal: bool = False) -> Tensor:
    """Compute softmax(scale Q K^T) V.

    In bfloat16 the relative error is 0.5 %, also of the gradients, where PyTorch's own kernel has 0.3 %.

    Args:
        query: Q, [B, heads, N, d].
        key, value: K and V, [B, heads, M, d].
        scale: None is 1 / sqrt(d).
        causal: a query looks at no later position than its own.

    Returns:
        [B, heads, N, d].
    """
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    logits = (query * scale) @ key.transpose(-2, -1)
    if causal:
        logits = logits + logits.new_full(logits.shape[-2:], -math.inf).triu(1)
    return logits.softmax(dim=-1) @ value


def convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Compute a convolution of one pixel: x [B, C, h, w], weight [D, C, 1, 1], bias [D] -> [B, D, h, w]."""
    products = torch.baddbmm(bias[:, None], weight.flatten(1).expand(len(x), -1, -1), x.flatten(2))
    return products.unflatten(2, x.shape[2:])


def _is_attention(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> bool:
    """Return whether `attention` can compute a call, and a gradient is needed."""
    if options.get("attn_mask") is not None or options.get("dropout_p") or options.get("enable_gqa"):
        return False
    if query.dtype != torch.bfloat16 or query.dim() != 4 or key.shape != value.shape or not _has_gradient(query, key):
        return False
    fits = query.shape[:2] == key.shape[:2] and query.shape[3] == key.shape[3] > 0
    return fits and query.shape[:3].numel() * key.shape[2] <= _LARGEST


def _is_of_one_pixel(
    x: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: Any = 1
) -> bool:
    """Return whether `convolve` can compute a convolution, and a gradient is needed."""
    if x.dim() != 4 or weight.shape[2:].numel() != 1 or groups != 1 or bias is None or not x.is_contiguous():
        return False
    return stride in (1, (1, 1)) and padding in (0, (0, 0)) and x.dtype == torch.bfloat16 and _has_gradient(x)


def _has_gradient(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
