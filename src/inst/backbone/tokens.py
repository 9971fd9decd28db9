"""Prompts with placeholders -> token ids, and slots for the vectors that take the placeholders' places."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from inst.errors import UsageError

PLACEHOLDER = re.compile(r"\[[A-Za-z]\w*\]")
"""What counts as a placeholder in a prompt: a word in square brackets, such as `[C]` or `[monet2]`."""


@dataclass(frozen=True)
class TokenizedPrompts:
    """Prompts ready for `inst.backbone.text.encode_text`.

    ids: [B, L] int64, `BOS tokens EOS padding`; a harmless ordinary token stands where a vector will be put.
    slots: [B, L] int64, -1 for an ordinary token, k where the k-th vector is to be put.
    """

    ids: Tensor
    slots: Tensor

    def __getitem__(self, rows: Tensor) -> "TokenizedPrompts":
        """Take some of the prompts, by their numbers."""
        return TokenizedPrompts(self.ids[rows], self.slots[rows])

    def to(self, device: torch.device) -> "TokenizedPrompts":
        """The same on a device."""
        return TokenizedPrompts(self.ids.to(device), self.slots.to(device))


@dataclass(frozen=True)
class _Item:
    """One position of a prompt: a token or a vector, and where the text that it stands for starts and ends."""

    token: int
    slot: int
    start: int
    end: int


def tokenize(tokenizer: Any, prompts: Sequence[str], lengths: Mapping[str, int] | None = None) -> TokenizedPrompts:
    """Tokenise prompts; each placeholder takes as many positions as its style has vectors.

    Args:
        tokenizer: a fast CLIP tokenizer with `model_max_length` = L.
        prompts: B texts. The same placeholder may occur several times, and several placeholders in one prompt.
        lengths: number of vectors of each placeholder, for example `{"[C]": 4}`. The slots count through the vectors of
            all placeholders in this order.

    Raises:
        UsageError: a placeholder that `lengths` does not name, or a prompt that does not fit into L positions; the
            message names the words that would be lost.
    """
    lengths = lengths or {}
    check_placeholders(lengths)
    first_slot, total = {}, 0
    for name, count in lengths.items():
        first_slot[name] = total
        total += count

    room = tokenizer.model_max_length
    stand_in = _ordinary_token(tokenizer)
    ids = torch.full((len(prompts), room), tokenizer.pad_token_id, dtype=torch.int64)
    slots = torch.full((len(prompts), room), -1, dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        items: list[_Item] = []
        position = 0
        for match in PLACEHOLDER.finditer(prompt):
            name = match.group()
            if name not in lengths:
                known = f"known here: {', '.join(lengths)}" if lengths else "no style is given"
                raise UsageError(
                    f'The prompt "{prompt}" names {name}, which stands for no style ({known})',
                    "give its style, or take the square brackets off if it is an ordinary word",
                )
            items += _words(tokenizer, prompt, position, match.start())
            slot = first_slot[name]
            items += [_Item(stand_in, slot + k, match.start(), match.end()) for k in range(lengths[name])]
            position = match.end()
        items += _words(tokenizer, prompt, position, len(prompt))
        if len(items) > room - 2:
            raise UsageError(_too_long(prompt, items, room - 2))

        tokens = [tokenizer.bos_token_id, *(item.token for item in items), tokenizer.eos_token_id]
        ids[row, : len(tokens)] = torch.tensor(tokens)
        slots[row, 1 : len(items) + 1] = torch.tensor([item.slot for item in items], dtype=torch.int64)
    return TokenizedPrompts(ids, slots)


def check_placeholders(names: Mapping[str, object]) -> None:
    """Raise UsageError for a name that no prompt could contain, such as `C` instead of `[C]`."""
    for name in names:
        if not isinstance(name, str) or not PLACEHOLDER.fullmatch(name):
            raise UsageError(f'"{name}" is no placeholder', 'write a word in square brackets, such as "[C]"')


def _words(tokenizer: Any, prompt: str, start: int, end: int) -> list[_Item]:
    encoded = tokenizer(prompt[start:end], add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    pairs = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    return [_Item(token, -1, start + left, start + right) for token, (left, right) in pairs]


def _ordinary_token(tokenizer: Any) -> int:
    # The text encoder pools at the first EOS, and some vocabularies pad with it: a stand-in must not look like one.
    special = set(tokenizer.all_special_ids)
    return next(token for token in range(len(tokenizer)) if token not in special)


def _too_long(prompt: str, items: Sequence[_Item], room: int) -> str:
    cut, of_style = items[room].start, items[room].slot >= 0
    while cut > 0 and not prompt[cut - 1].isspace() and not of_style:
        cut -= 1  # name whole words, not the tail of one
    return (
        f"The prompt takes {len(items)} of at most {room} tokens; this part does not fit: "
        f'"{prompt[cut:].strip()}". Shorten the prompt{", or take fewer vectors for the style" if of_style else ""}.'
    )
