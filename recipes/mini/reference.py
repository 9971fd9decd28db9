"""Teach the denoiser to read a reference: another crop of the same picture, through its self-attention.

In a step with a reference, the batch of the denoiser has 2n paired rows: n crops A, then n other crops B of the same
pictures, at the same timesteps. In the chosen blocks, the rows of A also read the keys and values of their B. So they
learn to take palette, brushwork and material from a picture with another layout, with the weights that the denoiser
has. (Hertz et al. 2024, StyleAligned, share attention in this way without training.)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor

from inst.backbone.self_attention import output, project, self_attention_layers

MODES = ("concat", "both")
BLOCKS = ("up", "all")
"""Which blocks read the reference, by their names in `inst.backbone.self_attention.BLOCKS`."""
REFERENCE_CROP = (0.6, 1.0)
"""Side of the crop B, as a share of the picture's side."""
LEAST_SIDE = 0.85
"""Side in source pixels, as a share of the training size, from which a crop B counts in the loss. Smaller crops are
enlarged too much: the model would learn to blur. They are still good references."""
_GOLDEN = (5**0.5 - 1) / 2


def has_reference(step: int, share: float) -> bool:
    """Return whether this step has a reference. `share` of all steps do, evenly spread.

    The golden ratio makes this independent of the step's bucket, which also follows from its number. Otherwise all
    steps with a reference could be in one bucket.
    """
    return step * _GOLDEN % 1 < share


def paired_attention(query: Tensor, key: Tensor, value: Tensor, *, swap: bool) -> Tensor:
    """Return the attention of paired rows [A..., B...], all [2n, heads, tokens, width].

    B's rows attend to their own tokens. A's rows attend to their own tokens and B's. With `swap`, this is only done by
    the first half of A's rows, rounded up. The second half attends to B's tokens alone.
    """
    count = len(query) // 2
    both = (count + 1) // 2 if swap else count
    wide_key, wide_value = (torch.cat([x[:both], x[count : count + both]], dim=2) for x in (key, value))
    wide = F.scaled_dot_product_attention(query[:both], wide_key, wide_value)
    # The rows that swap read B's tokens, and B's rows their own: from `count + both` on, then from `count` on.
    if both < count:
        key, value = (torch.cat([x[count + both :], x[count:]]) for x in (key, value))
    else:
        key, value = key[count:], value[count:]
    return torch.cat([wide, F.scaled_dot_product_attention(query[both:], key, value)])


class ReferenceAttention:
    """A diffusers attention processor for self-attention, without weights. One object serves all layers.

    Outside `paired()` it does what diffusers' own processor does.
    """

    def __init__(self, mode: str) -> None:
        self.swap = mode == "both"
        self.is_paired = False
        self.plain = AttnProcessor2_0()

    @contextmanager
    def paired(self, on: bool = True) -> Iterator[None]:
        """Read the rows of the batch as pairs [A..., B...], if `on`."""
        self.is_paired = on
        try:
            yield
        finally:
            self.is_paired = False

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """Return the output of the layer `attn` for `hidden_states` [rows, tokens, channels], in the same shape."""
        if not self.is_paired:
            return self.plain(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        return output(attn, paired_attention(*project(attn, hidden_states), swap=self.swap), hidden_states)


def read_reference(unet: UNet2DConditionModel, mode: str, blocks: str) -> ReferenceAttention:
    """Let the self-attention of the chosen blocks of `unet` read a reference, and return its processor.

    The weights and the configuration of `unet` stay as they are.
    """
    reference = ReferenceAttention(mode)
    for layer in self_attention_layers(unet, blocks).values():
        layer.set_processor(reference)
    return reference
