"""The texts for a picture in training: its captions, and sentences with the placeholder `[C]`."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

PROMPTS = (
    "a photo of a mountain",
    "a photo of a beach",
    "a photo of a dog",
    "a photo of a church",
    "a photo of flowers",
    "a photo of a street with people",
    "a ukiyo-e print",
    "a cubist painting",
    "a pointillist painting",
    "an impressionist painting of a river",
    "a baroque portrait",
    "a photo of a house",
)
"""The prompts of every sheet, so that sheets can be compared."""

_WHOLE = ("[C]", "a painting in the style of [C]", "a picture in the style of [C]", "[C] style")
_AFTER = ("{} in the style of [C]", "{}, [C] style")
_ARTICLE = re.compile(r"\ba (?=[aeio])")
_MEDIUM = re.compile(r"^an? (?:.{0,30}? )?(?:painting|photo|photograph|cartoon|pencil sketch) of ")


def plain(captions: Sequence[str]) -> list[str]:
    """Return the captions with corrected articles ('an impressionist' instead of 'a impressionist')."""
    return [_ARTICLE.sub("an ", caption) for caption in captions]


def styled(captions: Sequence[str]) -> list[str]:
    """Return sentences with `[C]` for the style: alone, and after a description of the picture."""
    bare = dict.fromkeys(_MEDIUM.sub("", caption) for caption in plain(captions))
    return [*_WHOLE, *(form.format(text) for text in bare for form in _AFTER)]


def most_vectors(tokenizer: Any) -> int:
    """Return the largest number of vectors for `[C]` that fits in a prompt with the longest text after `[C]`."""
    after = [sentence.partition("[C]")[2] for sentence in (*_WHOLE, *_AFTER)]
    longest = max(len(ids) for ids in tokenizer(after, add_special_tokens=False)["input_ids"])
    return max(0, tokenizer.model_max_length - 2 - longest)


class CaptionBank:
    """Holds the tokens of up to `variants` captions of every picture on the device. Each step draws from them.

    Args:
        captions: the captions of N pictures.
        tokenizer: mini's tokenizer.
        vectors: number of vectors for `[C]`.
        variants: number of captions for each picture; if a picture has fewer, they repeat.
        form: `plain`, `styled`, or any function from the captions of a picture to sentences.
    """

    def __init__(
        self,
        captions: Sequence[Sequence[str]],
        tokenizer: Any,
        device: torch.device | str,
        *,
        vectors: int = 0,
        variants: int = 8,
        form: Callable[[Sequence[str]], list[str]] = plain,
    ) -> None:
        number: dict[str, int] = {}
        rows = []
        for texts in captions:
            sentences = form(texts)
            rows.append([number.setdefault(sentences[i % len(sentences)], len(number)) for i in range(variants)])
        ids, slots = _tokens(tokenizer, list(number), vectors)
        self.variants = variants
        self.sentence = torch.tensor(rows, device=device)  # [N, variants] -> a number for each different sentence
        self.ids, self.slots = ids.to(device), slots.to(device)  # [sentences, L] each

    def draw(self, index: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Draw a random caption of each picture at `index` [B]: (ids [B, L], slots [B, L], sentence numbers [B])."""
        pick = torch.randint(self.variants, (len(index),), generator=generator, device=index.device)
        sentence = self.sentence[index, pick]
        return self.ids[sentence], self.slots[sentence], sentence


def _tokens(tokenizer: Any, sentences: Sequence[str], vectors: int) -> tuple[Tensor, Tensor]:
    """Return token ids and slots [sentences, L] as `inst.backbone.tokens.tokenize` does, but for 100,000 at once.

    A sentence that is too long loses words before its `[C]`, or at its end if it has no `[C]`. It is not an error.
    """
    halves = [sentence.partition("[C]") for sentence in sentences]
    texts = list(dict.fromkeys(text for head, _, tail in halves for text in (head, tail)))
    encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    tokens = dict(zip(texts, encoded, strict=True))
    length = tokenizer.model_max_length
    rows, slot_rows = [], []
    for head, mark, tail in halves:
        count = vectors if mark else 0
        before = tokens[head][: length - 2 - count - len(tokens[tail])]
        row = [tokenizer.bos_token_id, *before, *[0] * count, *tokens[tail], tokenizer.eos_token_id]
        rows.append(row + [tokenizer.pad_token_id] * (length - len(row)))
        slots = [-1] * (1 + len(before)) + list(range(count))
        slot_rows.append(slots + [-1] * (length - len(slots)))
    return torch.tensor(rows), torch.tensor(slot_rows)
