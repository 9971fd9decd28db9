"""Weights of words in prompts, `(word:1.3)` and `[C:0.5]`, as users of AUTOMATIC1111 and ComfyUI write them."""

from __future__ import annotations

import re
from dataclasses import dataclass

_NUMBER = r"(\d+(?:\.\d*)?|\.\d+)"
_WEIGHTED = re.compile(rf"\\[()]|\(([^()\\]+):\s*{_NUMBER}\s*\)|\[([A-Za-z]\w*):\s*{_NUMBER}\s*\]")
_MOST = 3.0
"""The largest weight. A larger number, as in "(16:9)", is no weight. Words break down far below it."""


@dataclass(frozen=True)
class WeightedPrompt:
    """A prompt without its weights, and the weights.

    Attributes:
        text: the prompt, such as "a castle by [C]" for "a (castle:1.3) by [C:0.5]".
        parts: start, end and weight of each part of the text with a weight.
    """

    text: str
    parts: tuple[tuple[int, int, float], ...]

    def weight(self, start: int, end: int) -> float:
        """Return the weight of a word from `start` to `end` in the text, 1 if it has none."""
        return next((weight for first, last, weight in self.parts if first <= start and end <= last), 1.0)


def read_weights(prompt: str) -> WeightedPrompt:
    r"""Take the weights out of a prompt.

    A weight is a number from 0 to 3 behind a colon, in round brackets behind any text, or in the square brackets of a
    placeholder. Other brackets are text. `\(` and `\)` are always brackets of the text. Weights cannot be nested.
    """
    text, parts, position = "", [], 0
    for match in _WEIGHTED.finditer(prompt):
        text += prompt[position : match.start()]
        position = match.end()
        words, weight, name, weight_of_name = match.groups()
        number = float(weight or weight_of_name or 0)
        if words is None and name is None:
            text += match.group()[1:]  # an escaped bracket
        elif number > _MOST:
            text += match.group()
        else:
            shown = f"[{name}]" if words is None else words
            parts.append((len(text), len(text) + len(shown), number))
            text += shown
    return WeightedPrompt(text + prompt[position:], tuple(parts))
