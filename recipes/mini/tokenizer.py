"""Stage 1: the tokenizer, a lower-cased byte-pair encoding in CLIP's form, learned from the captions.

    python recipes/mini/tokenizer.py --data SHARDS --out runs/tokenizer

Writes `tokenizer/` (transformers' CLIPTokenizer) into --out. It takes seconds on one core. No pictures are decoded.
"""

from __future__ import annotations

if __name__ == "__main__":
    from files import guarded

    guarded("tokenizer")

import argparse
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from captions import plain, styled
from data import TOO_FEW, held_out, read_shard, shards_of
from files import require_folder, write_folder
from inst.errors import InstError, UsageError, first_line
from options import whole_number

START, END = "<|startoftext|>", "<|endoftext|>"
SUFFIX = "</w>"
SMALLEST = 2 * 256 + 2
"""Smallest number of tokens: every byte, alone and at the end of a word, and START and END."""
_WORDS = r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""


def learn(texts: Iterable[str], size: int, length: int) -> CLIPTokenizer:
    """Learn `size` tokens from `texts`. A prompt has `length` tokens, including the start and the end token.

    Every byte is a token, so that any text can be encoded.
    """
    learner = Tokenizer(models.BPE(end_of_word_suffix=SUFFIX))
    learner.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters = [*alphabet, *(letter + SUFFIX for letter in alphabet)]
    trainer = trainers.BpeTrainer(
        vocab_size=size - 2, end_of_word_suffix=SUFFIX, initial_alphabet=alphabet, show_progress=False
    )
    learner.train_from_iterator(texts, trainer)
    learned = json.loads(learner.to_str())["model"]["merges"]
    merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in learned][: size - 2 - len(letters)]
    tokens = dict.fromkeys([*letters, *(a + b for a, b in merges), START, END])
    return CLIPTokenizer(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=merges,
        unk_token=END,
        bos_token=START,
        eos_token=END,
        pad_token=END,
        model_max_length=length,
    )


def save(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write the tokenizer in transformers' form, and as CLIP's two files for older transformers and other programs."""
    for name in ("is_local", "local_files_only"):  # transformers would also write how it was loaded
        tokenizer.init_kwargs.pop(name, None)
    tokenizer.save_pretrained(folder)
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False))
    merges = (m if isinstance(m, str) else " ".join(m) for m in model["merges"])
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")


def load(folder: Path) -> CLIPTokenizer:
    """Load the tokenizer that `save` wrote into `folder`.

    Raises:
        InstError: the folder does not exist, or its tokenizer is broken.
        UsageError: the folder contains no tokenizer.
    """
    for name in (
        "tokenizer.json",
        "tokenizer_config.json",
    ):  # without them, transformers silently uses an empty vocabulary
        if not (require_folder(folder) / name).is_file():
            raise UsageError(f"{folder}: contains no {name}; give the folder tokenizer/ that tokenizer.py wrote")
    try:
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the tokenizers library raises bare Exception
        raise InstError(f"{folder}: the tokenizer is broken ({first_line(error)}); make it again") from error


def load_matching(pair: Path, folder: Path) -> CLIPTokenizer:
    """Load the tokenizer of `folder`, and check that the encoders in `pair` were trained with it.

    Raises:
        InstError: as `load` does.
        UsageError: it is another tokenizer, with other ids for the same tokens.
    """
    tokenizer = load(folder)
    if digest(tokenizer) != digest(load(pair / "tokenizer")):
        raise UsageError(f"{folder}: not the tokenizer that {pair} was trained with; give {pair / 'tokenizer'}")
    return tokenizer


def digest(tokenizer: CLIPTokenizer) -> str:
    """Return 12 digits of a SHA-256 that are equal only for tokenizers that give the same tokens for every text."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    content |= {"truncation": None, "padding": None}  # left from the last call
    return hashlib.sha256(json.dumps([tokenizer.model_max_length, content]).encode()).hexdigest()[:12]


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Learn mini's tokenizer.")
    parser.add_argument("--data", type=Path, required=True, help="folder of WebDataset shards (*.tar)")
    parser.add_argument("--out", type=Path, required=True, help="folder for tokenizer/")
    parser.add_argument("--size", type=whole_number(SMALLEST), default=4096, help="number of tokens (default 4096)")
    parser.add_argument("--length", type=whole_number(3), default=48, help="tokens of the longest prompt (default 48)")
    options = parser.parse_args(given)
    rows = [row for shard in shards_of(options.data) for row in read_shard(shard)]
    texts: list[str] = []
    for (_, _, record), held in zip(rows, held_out([data for _, data, _ in rows]), strict=True):
        if not held:
            captions = list(record["captions"])  # type: ignore[call-overload]
            # Users also write the sentences with the placeholder, so "style" must be a token.
            texts += [*plain(captions), styled(captions)[1]]
    if not texts:
        raise InstError(TOO_FEW)
    tokenizer = learn(texts, options.size, options.length)
    write_folder(options.out / "tokenizer", lambda folder: save(tokenizer, folder))
    print(f"{len(tokenizer)} tokens from {len(texts)} captions; '{texts[0]}' -> {tokenizer.tokenize(texts[0])}")
