"""CLIP's vocabulary, which ships with the package: Stable Diffusion's models all share it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from inst import models
from inst.backbone.loading.part import quiet, read_json
from inst.backbone.parts import AGAIN
from inst.errors import InstError, first_line

_MERGES = models.FOLDER / "configs" / "clip" / "merges.txt"

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
        raise InstError(f"{_MERGES} is missing from this installation", "install inst again") from None
    merges = [(left, right) for left, right in (line.split() for line in lines[1:])]
    letters = list(bytes_to_unicode().values())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    if pad_token not in tokens:
        raise InstError(
            f'The tokenizer fills prompts with "{pad_token}", which is no token of CLIP', "correct pad_token"
        )
    return CLIPTokenizer(
        vocab={token: number for number, token in enumerate(tokens)},
        merges=merges,
        pad_token=pad_token,
        model_max_length=model_max_length,
    )


@quiet()
def load_tokenizer(folder: Path, text: Any) -> Any:
    """Load a tokenizer that fits the text encoder with the configuration `text`; `model_max_length` is set."""
    kind = read_json(folder / "tokenizer_config.json").get("tokenizer_class")
    if kind not in ("CLIPTokenizer", "CLIPTokenizerFast"):
        raise InstError(
            f"{folder / 'tokenizer_config.json'} describes {kind or 'nothing'}, not the CLIPTokenizer needed."
        )
    names = {path.name for path in folder.iterdir()}
    if "tokenizer.json" not in names and not {"vocab.json", "merges.txt"} <= names:
        # transformers would make up an empty vocabulary
        raise InstError(f"{folder} is incomplete: it has no tokenizer.json, nor vocab.json and merges.txt", AGAIN)
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the tokenizers library raises bare Exception
        raise InstError(f"{folder} holds no usable tokenizer ({first_line(error)})", AGAIN) from error
    largest = max(tokenizer.get_vocab().values())
    if largest >= text.vocab_size:
        raise InstError(
            f"{folder} has token {largest}, but the text encoder knows {text.vocab_size} tokens only", AGAIN
        )
    # Stable Diffusion 1.x's and XL's text configurations say 2, an old mistake that CLIP's pooling knows about.
    if text.eos_token_id not in (2, tokenizer.eos_token_id):
        raise InstError(
            f"{folder} ends prompts with token {tokenizer.eos_token_id}, but the text encoder expects "
            f"{text.eos_token_id}",
            AGAIN,
        )
    length = tokenizer.model_max_length
    if not isinstance(length, int) or length < 3:  # the start token, one more, and the end token
        raise InstError(
            f"{folder / 'tokenizer_config.json'} has the model_max_length {length!r}, not a number of tokens",
            AGAIN,
        )
    tokenizer.model_max_length = min(length, text.max_position_embeddings)
    return tokenizer


def read_tokenizer(folder: Path, text: Any) -> Any:
    """Read a tokenizer; one that has settings but no vocabulary, beside a text encoder of CLIP's, takes CLIP's."""
    has_vocabulary = any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json"))
    if has_vocabulary or text.vocab_size != VOCABULARY:
        return load_tokenizer(folder, text)
    padding = read_json(folder / "tokenizer_config.json").get("pad_token") or "<|endoftext|>"
    if isinstance(padding, dict):  # a token with its properties, as transformers may write it
        padding = padding.get("content")
    return clip_tokenizer(str(padding), text.max_position_embeddings)
