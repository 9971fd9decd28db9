"""Fingerprints of models: short hashes of the weights. They do not depend on the stored precision."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def fingerprint_of(*tables: Tensor) -> str:
    """Return the fingerprint of a text space: 16 hexadecimal digits.

    It is a hash of the token-embedding table [V, d], or of the tables of both text encoders. V is the number of the
    tokenizer's own tokens (`vocab_size`): tokens that were added for other styles do not change the space. The tables
    are rounded to fp16 first, so a model's fp16 and fp32 files have the same fingerprint.
    """
    digest = hashlib.sha256()
    for table in tables:
        digest.update("x".join(map(str, table.shape)).encode() + _rounded(table))
    return digest.hexdigest()[:16]


def denoiser_fingerprint_of(first_rows: Mapping[str, Tensor]) -> str:
    """Return the fingerprint of a UNet (or another network): 16 hexadecimal digits.

    It is a hash of the first row of every weight. Every weight counts, because a fine-tuned model may differ only in
    its cross-attention; one row of each is fast to read. Rows are rounded to fp16 first, so a model's fp16 and fp32
    files have the same fingerprint.

    Args:
        first_rows: index 0 of each weight's first axis, by the weight's name in the diffusers layout.
    """
    digest = hashlib.sha256()
    for key in sorted(first_rows):
        digest.update(key.encode() + b"\0" + _rounded(first_rows[key]))
    return digest.hexdigest()[:16]


def _rounded(tensor: Tensor) -> bytes:
    return tensor.to(torch.float16).contiguous().numpy().astype("<f2").tobytes()
