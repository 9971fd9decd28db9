"""Tokenise prompts with placeholders: token ids, and slots for the vectors that replace the placeholders."""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from inst.backbone.devices import copy_to
from inst.backbone.weights import read_weights
from inst.errors import UsageError

PLACEHOLDER = re.compile(r"\[[A-Za-z]\w*\]")
"""A placeholder in a prompt: a word in square brackets, such as `[C]` or `[monet2]`."""


@dataclass(frozen=True)
class TokenizedPrompts:
    """Tokenised prompts for `inst.backbone.text.encode_text`.

    Attributes:
        ids: [B, L] int64, `BOS tokens EOS padding`; at the position of a vector, an ordinary token without effect.
        slots: [B, L] int64, -1 for an ordinary token, k for the k-th vector.
        weights: [B, L] float32, the weights of the positions; None if all are 1.
    """

    ids: Tensor
    slots: Tensor
    weights: Tensor | None = None

    def __getitem__(self, rows: Tensor) -> "TokenizedPrompts":
        """Return some of the prompts, by index."""
        return TokenizedPrompts(self.ids[rows], self.slots[rows], None if self.weights is None else self.weights[rows])

    def to(self, device: torch.device) -> "TokenizedPrompts":
        """Return a copy on a device."""
        weights = None if self.weights is None else copy_to(self.weights, device)
        return TokenizedPrompts(copy_to(self.ids, device), copy_to(self.slots, device), weights)


@dataclass(frozen=True)
class _Item:
    """One position of a prompt: a token or a vector, and the start and end of its text in the prompt."""

    token: int
    slot: int
    start: int
    end: int


def tokenize(
    tokenizer: Any, prompts: Sequence[str], lengths: Mapping[str, int] | None = None, *, what: str = "prompt"
) -> TokenizedPrompts:
    """Tokenise prompts. Each placeholder takes as many positions as its style has vectors.

    Args:
        tokenizer: a fast CLIP tokenizer with `model_max_length` = L.
        prompts: B texts. A prompt may have several placeholders, and the same placeholder several times. Parts may have
            weights (`inst.backbone.weights`). A token that diffusers added for a textual inversion takes as many
            positions as that has vectors.
        lengths: number of vectors of each placeholder, for example `{"[C]": 4}`. The slots number the vectors of all
            placeholders in this order.
        what: the prompts' name in messages.

    Raises:
        UsageError: a placeholder is not in `lengths`, or a prompt does not fit into L positions; the message names the
            words that do not fit.
    """
    lengths = lengths or {}
    check_placeholders(lengths)
    first_slot, total = {}, 0
    for name, count in lengths.items():
        first_slot[name] = total
        total += count

    room = tokenizer.model_max_length
    dummy = _ordinary_token(tokenizer)
    groups = _token_groups(tokenizer)
    ids = torch.full((len(prompts), room), tokenizer.pad_token_id, dtype=torch.int64)
    slots = torch.full((len(prompts), room), -1, dtype=torch.int64)
    weights = torch.ones(len(prompts), room)
    for row, weighted in enumerate(map(read_weights, prompts)):
        prompt = weighted.text
        items: list[_Item] = []
        position = 0
        for match in PLACEHOLDER.finditer(prompt):
            name = match.group()
            if name not in lengths:
                known = f"known: {', '.join(lengths)}" if lengths else "no style is given"
                raise UsageError(
                    f'The {what} "{prompt}" has the placeholder {name}, which has no style ({known})',
                    "give a style for it, or remove the square brackets if it is an ordinary word",
                )
            items += _words(tokenizer, groups, prompt, position, match.start())
            slot = first_slot[name]
            items += [_Item(dummy, slot + k, match.start(), match.end()) for k in range(lengths[name])]
            position = match.end()
        items += _words(tokenizer, groups, prompt, position, len(prompt))
        if len(items) > room - 2:
            raise _too_long(what, prompt, items, room - 2)

        tokens = [tokenizer.bos_token_id, *(item.token for item in items), tokenizer.eos_token_id]
        ids[row, : len(tokens)] = torch.tensor(tokens)
        slots[row, 1 : len(items) + 1] = torch.tensor([item.slot for item in items], dtype=torch.int64)
        weights[row, 1 : len(items) + 1] = torch.tensor([weighted.weight(item.start, item.end) for item in items])
    return TokenizedPrompts(ids, slots, weights if (weights != 1).any() else None)


def check_placeholders(names: Mapping[str, object]) -> None:
    """Raise UsageError for a name that is not a placeholder, such as `C` instead of `[C]`."""
    for name in names:
        if not isinstance(name, str) or not PLACEHOLDER.fullmatch(name):
            raise UsageError(f'"{name}" is not a placeholder', 'write a word in square brackets, such as "[C]"')


def _words(tokenizer: Any, groups: Mapping[int, Sequence[int]], prompt: str, start: int, end: int) -> Iterator[_Item]:
    encoded = tokenizer(prompt[start:end], add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    for token, (left, right) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
        for one in groups.get(token, (token,)):
            yield _Item(one, -1, start + left, start + right)


def _token_groups(tokenizer: Any) -> dict[int, list[int]]:
    """Return the tokens of textual inversions with several vectors, by the first of them.

    diffusers adds `<sea>`, `<sea>_1`, `<sea>_2` to the tokenizer for three vectors. A prompt has only `<sea>`.
    """
    added = tokenizer.get_added_vocab()
    groups = {}
    for name, token in added.items():
        names = itertools.takewhile(added.__contains__, (f"{name}_{k}" for k in itertools.count(1)))
        groups[token] = [token, *(added[other] for other in names)]
    return groups


def _ordinary_token(tokenizer: Any) -> int:
    # Not a special token: the text encoder pools at the first EOS, and some vocabularies also use EOS as padding.
    special = set(tokenizer.all_special_ids)
    return next(token for token in range(len(tokenizer)) if token not in special)


def _too_long(what: str, prompt: str, items: Sequence[_Item], room: int) -> UsageError:
    cut, is_vector = items[room].start, items[room].slot >= 0
    while cut > 0 and not prompt[cut - 1].isspace() and not is_vector:
        cut -= 1  # name whole words, not the end of a word
    return UsageError(
        f'The {what} takes {len(items)} of at most {room} tokens, and the part "{prompt[cut:].strip()}" does not fit',
        f"shorten the {what}{', or use fewer vectors for the style' if is_vector else ''}",
    )
