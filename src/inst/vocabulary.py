"""CLIP's vocabulary, which ships with the package: Stable Diffusion's models all share it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from inst.errors import InstError

_MERGES = Path(__file__).parent / "models" / "configs" / "clip" / "merges.txt"

VOCABULARY = 49408
"""Tokens of CLIP's vocabulary: each byte, within a word and at its end, the merges, and a start and an end."""


def clip_tokenizer(pad_token: str = "<|endoftext|>", model_max_length: int = 77) -> Any:
    """Make CLIP's tokenizer (Radford et al. 2021, arXiv 2103.00020, sec. 2.4).

    Args:
        pad_token: fills short prompts; Stable Diffusion 1.x has the end token, OpenCLIP's text encoders have "!", id 0.
        model_max_length: positions L.

    Raises:
        InstError: the vocabulary has no such `pad_token`, and so no text encoder has a vector for it.
    """
    try:
        lines = _MERGES.read_text(encoding="utf-8").splitlines()
    except OSError:
        raise InstError(f"{_MERGES} is missing from this installation: install inst again.") from None
    merges = [(left, right) for left, right in (line.split() for line in lines[1:])]
    letters = list(bytes_to_unicode().values())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    if pad_token not in tokens:
        raise InstError(
            f'The tokenizer fills prompts with "{pad_token}", which is no token of CLIP: correct pad_token.'
        )
    return CLIPTokenizer(
        vocab={token: number for number, token in enumerate(tokens)},
        merges=merges,
        pad_token=pad_token,
        model_max_length=model_max_length,
    )
