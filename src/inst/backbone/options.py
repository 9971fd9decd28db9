"""What a caller may change in how the frozen model computes, for one run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True, eq=False)
class ModelOptions:
    """The options of a model for one run. The defaults change nothing.

    Attributes:
        attention: arguments for the attention layers of the UNet, diffusers' `cross_attention_kwargs`, such as
            {"scale": 0.5} for the weights of LoRA.
        clip_skip: number of layers at the end of the text encoders that are left out. As in diffusers, a negative
            prompt is encoded with all layers.
        images: what IP-Adapters show the UNet beside a prompt: for each adapter the embeddings of N pictures,
            [1, N, ...]. A UNet with adapters needs them.
        no_images: the same shapes, beside a negative prompt and beside the paintings of style attention.
    """

    attention: Mapping[str, Any] = field(default_factory=dict)
    clip_skip: int = 0
    images: tuple[Tensor, ...] = ()
    no_images: tuple[Tensor, ...] = ()
