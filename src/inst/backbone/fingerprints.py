"""What tells one model from another: short hashes of weights, the same whatever precision they are stored in."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def fingerprint_of(*tables: Tensor) -> str:
    """Identify a text space by its token-embedding table [V, d], or by those of both encoders: 16 hexadecimal digits.

    The tables are rounded to fp16 first, so that a model's fp16 and fp32 files agree.
    """
    digest = hashlib.sha256()
    for table in tables:
        digest.update("x".join(map(str, table.shape)).encode() + _rounded(table))
    return digest.hexdigest()[:16]


def denoiser_fingerprint_of(first_rows: Mapping[str, Tensor]) -> str:
    """Identify a UNet (or another network) by the first row of each of its weights: 16 hexadecimal digits.

    Every weight has its part, because a fine-tuned model may differ in its cross-attention only; a row of each is read
    in no time. They are rounded to fp16 first, so that a model's fp16 and fp32 files agree.

    Args:
        first_rows: what stands at index 0 of each weight's first axis, by its name in diffusers' layout.
    """
    digest = hashlib.sha256()
    for key in sorted(first_rows):
        digest.update(key.encode() + b"\0" + _rounded(first_rows[key]))
    return digest.hexdigest()[:16]


def _rounded(tensor: Tensor) -> bytes:
    return tensor.to(torch.float16).contiguous().numpy().astype("<f2").tobytes()
