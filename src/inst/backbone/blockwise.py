"""Attention over many positions in bfloat16 on a CPU, a block of queries at a time.

PyTorch's own kernel is made for CPUs with matrix units (AMX). On others it computes in pieces that are too small for
fast matrix products. With mini's finest level at 512 px (4,096 positions, 64 channels a head), on two cores of an AMD
EPYC, it takes 1.6 times as long as the products of whole blocks.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

_ROWS = 256  # queries of a block: their weights, 2 MB for 4,096 positions, fit into the cache of a core
_SMALLEST = 2048  # positions; blocks of fewer are too short for two threads on a busy computer
_MOST_CORES = 4  # PyTorch's kernel shares heads and queries among cores; a block is one product for all of them


class Blockwise(TorchFunctionMode):
    """Use `attention` inside the block, for the calls in which it is faster. Other calls are left as they are."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and len(args) == 3 and _is_faster(*args, **kwargs):
            query, key, value = args
            return attention(query, key, value, kwargs.get("scale"))
        return func(*args, **kwargs)


def attention(query: Tensor, key: Tensor, value: Tensor, scale: float | None = None) -> Tensor:
    """Compute softmax(scale Q K^T) V without gradients.

    In bfloat16 its relative error is 1 %, where PyTorch's own kernel has 0.2 %. The noise that mini predicts differs
    from that of float32 by 1.0 % at timestep 50 and by 0.5 % at 200, both ways.

    Args:
        query: Q, [B, heads, N, d].
        key, value: K and V, [B, heads, M, d].
        scale: None is 1 / sqrt(d).

    Returns:
        [B, heads, N, d].
    """
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    heads = zip(*(part.flatten(0, 1) for part in (query, key * scale, value, out)), strict=True)
    for one_query, one_key, one_value, one_out in heads:
        columns, one_value = one_key.T.contiguous(), one_value.contiguous()
        for rows, result in zip(one_query.split(_ROWS), one_out.split(_ROWS), strict=True):
            torch.mm((rows @ columns).softmax(dim=-1), one_value, out=result)
    return out


@cache
def is_useful() -> bool:
    """Return whether this CPU has few cores and no matrix units. It does not depend on threads, as bits must not."""
    if not hasattr(torch.cpu, "get_capabilities"):  # an old release of PyTorch
        return False
    capabilities = torch.cpu.get_capabilities()
    return not capabilities.get("amx_bf16") and capabilities.get("num_physical_cores", math.inf) <= _MOST_CORES


def _is_faster(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> bool:
    if options.get("attn_mask") is not None or options.get("is_causal") or options.get("dropout_p"):
        return False
    if torch.is_grad_enabled() or query.dtype != torch.bfloat16 or query.dim() != 4 or key.shape != value.shape:
        return False
    fits = query.shape[:2] == key.shape[:2] and query.shape[3] == key.shape[3] > 0
    return fits and min(query.shape[2], key.shape[2]) >= _SMALLEST
