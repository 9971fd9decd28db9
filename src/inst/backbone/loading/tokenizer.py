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
from inst.files.reading import check_regular
from inst.texts import cut

_MERGES = models.FOLDER / "configs" / "clip" / "merges.txt"

_LARGEST_FILE = 16 * 2**20  # bytes; CLIP's tokenizer.json has 4 million

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
            f'The tokenizer pads prompts with "{cut(pad_token, 60)}", which is not a token of CLIP', "correct pad_token"
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
    path = folder / "tokenizer_config.json"
    kind = read_json(path).get("tokenizer_class")
    if kind not in ("CLIPTokenizer", "CLIPTokenizerFast"):
        raise InstError(
            f"{path} describes {cut(str(kind or 'nothing'), 60)}, not the CLIPTokenizer that is needed",
            "use another model",
        )
    names = check_files(folder)
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
    if type(length) is not int or length < 3:  # start token, one token, end token
        raise InstError(
            f"{path} has the model_max_length {cut(repr(length), 60)}, not a number of 3 or more", COPY_AGAIN
        )
    tokenizer.model_max_length = min(length, text.max_position_embeddings)
    return tokenizer


def check_files(folder: Path) -> set[str]:
    """Check the files in the folder of a tokenizer, because the library reads them whole. Returns their names.

    Raises:
        InstError: a file is a pointer of git LFS, or a text that is too large; or it is a pipe or a device.
    """
    paths = list(folder.iterdir())
    for path in [*paths, *folder.glob("*/*.jinja")]:  # templates for chats, which the library reads too
        refuse_pointer(path)
        if path.is_dir() or not path.exists():
            continue
        check_regular(path)
        if path.suffix in (".json", ".txt", ".jinja") and path.stat().st_size > _LARGEST_FILE:
            raise InstError(f"{path} is larger than {_LARGEST_FILE // 2**20} MB", COPY_AGAIN)
    return {path.name for path in paths}


def read_tokenizer(folder: Path, text: Any) -> Any:
    """Read a tokenizer. If it has no vocabulary and the text encoder has CLIP's, CLIP's vocabulary is used."""
    has_vocabulary = any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json"))
    if has_vocabulary or text.vocab_size != VOCABULARY:
        return load_tokenizer(folder, text)
    padding = read_json(folder / "tokenizer_config.json").get("pad_token") or "<|endoftext|>"
    if isinstance(padding, dict):  # transformers may write a token with its properties
        padding = padding.get("content")
    return clip_tokenizer(str(padding), text.max_position_embeddings)
