"""Tokenizers. All models of Stable Diffusion share CLIP's vocabulary, which is part of the package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from inst import models
from inst.backbone.libraries import CLIPTokenizer, bytes_to_unicode
from inst.backbone.loading.part import read_json, silence_libraries
from inst.backbone.parts import COPY_AGAIN
from inst.errors import InstError, first_line
from inst.files.git_lfs import refuse_pointer

_MERGES = models.FOLDER / "configs" / "clip" / "merges.txt"

VOCABULARY = 49408
"""Size of CLIP's vocabulary: every byte, inside and at the end of a word, the merges, and a start and an end token."""


def clip_tokenizer(pad_token: str = "<|endoftext|>", model_max_length: int = 77) -> Any:
    """Make CLIP's tokenizer (Radford et al. 2021, arXiv 2103.00020, sec. 2.4).

    Args:
        pad_token: pads short prompts; the end token in Stable Diffusion 1.x, "!" (id 0) in OpenCLIP's text encoders.
        model_max_length: number of positions L.

    Raises:
        InstError: `pad_token` is not in the vocabulary, so no text encoder has a vector for it.
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
            f'The tokenizer pads prompts with "{pad_token}", which is not a token of CLIP', "correct pad_token"
        )
    return CLIPTokenizer(
        vocab={token: number for number, token in enumerate(tokens)},
        merges=merges,
        pad_token=pad_token,
        model_max_length=model_max_length,
    )


@silence_libraries()
def load_tokenizer(folder: Path, text: Any) -> Any:
    """Load a tokenizer, check that it fits the text encoder's configuration `text`, and set `model_max_length`."""
    kind = read_json(folder / "tokenizer_config.json").get("tokenizer_class")
    if kind not in ("CLIPTokenizer", "CLIPTokenizerFast"):
        raise InstError(
            f"{folder / 'tokenizer_config.json'} describes {kind or 'nothing'}, not the CLIPTokenizer that is needed",
            "use another model",
        )
    names = {path.name for path in folder.iterdir()}
    for name in names:
        refuse_pointer(folder / name)
    if "tokenizer.json" not in names and not {"vocab.json", "merges.txt"} <= names:
        # transformers would use an empty vocabulary
        raise InstError(f"{folder} is incomplete (it needs tokenizer.json, or vocab.json and merges.txt)", COPY_AGAIN)
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the tokenizers library raises bare Exception
        raise InstError(f"{folder} has no usable tokenizer ({first_line(error)})", COPY_AGAIN) from error
    largest = max(tokenizer.get_vocab().values())
    if largest >= text.vocab_size:
        raise InstError(
            f"{folder} has the token {largest}, but the text encoder knows only {text.vocab_size} tokens", COPY_AGAIN
        )
    # The text configurations of Stable Diffusion 1.x and XL have 2, an old mistake that CLIP's pooling handles.
    if text.eos_token_id not in (2, tokenizer.eos_token_id):
        raise InstError(
            f"{folder} ends prompts with token {tokenizer.eos_token_id}, but the text encoder expects "
            f"{text.eos_token_id}",
            COPY_AGAIN,
        )
    length = tokenizer.model_max_length
    if not isinstance(length, int) or length < 3:  # start token, one token, end token
        raise InstError(
            f"{folder / 'tokenizer_config.json'} has the model_max_length {length!r}, not a number of 3 or more",
            COPY_AGAIN,
        )
    tokenizer.model_max_length = min(length, text.max_position_embeddings)
    return tokenizer


def read_tokenizer(folder: Path, text: Any) -> Any:
    """Read a tokenizer. If it has no vocabulary and the text encoder has CLIP's, CLIP's vocabulary is used."""
    has_vocabulary = any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json"))
    if has_vocabulary or text.vocab_size != VOCABULARY:
        return load_tokenizer(folder, text)
    padding = read_json(folder / "tokenizer_config.json").get("pad_token") or "<|endoftext|>"
    if isinstance(padding, dict):  # transformers may write a token with its properties
        padding = padding.get("content")
    return clip_tokenizer(str(padding), text.max_position_embeddings)
