"""Style attention: the painting itself takes part in the self-attention of the denoiser.

The pseudo-word carries the palette and the manner of a painting. It has no room for single strokes. So the painting's
latents also run through the UNet, noised to the same timestep, and in its self-attention the picture looks at the keys
and values of the painting (StyleID, Chung et al., CVPR 2024, arXiv 2312.09008, sec. 4.1). No weights are added or
trained.

Notation: Q, K and V are queries, keys and values of one self-attention layer, [B, heads, N positions, d].
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from inst.arguments import check_choice, check_factor, checked
from inst.backbone.model import Backbone
from inst.backbone.text import Frame, TextEmbedding
from inst.errors import UsageError
from inst.sampling.denoiser import Denoise

BLOCKS: Mapping[str, Callable[[str, int], bool]] = {
    "up": lambda name, levels: "up_blocks." in name,
    "fine": lambda name, levels: any(f"up_blocks.{level}." in name for level in (levels - 2, levels - 1)),
    "all": lambda name, levels: True,
}
"""Which self-attention layers look at the painting: those of the upward blocks, of the two finest upward levels (as in
StyleID), or all. Each value says whether a layer belongs to it, by the name of the layer and the number of levels."""

_AHEAD = 8
"""Number of timesteps whose keys and values are computed at once on an accelerator."""


@dataclass(frozen=True)
class AttentionSettings:
    """The settings of style attention.

    Attributes:
        weight: W in [0, 1]; see `attend`. 0 is no style attention.
        query_preservation: gamma in [0, 1]: Q = gamma Q_content + (1 - gamma) Q (StyleID, eq. 6).
        temperature: tau, a factor of the attention's logits (StyleID, eq. 8). More than 1 makes it sharper.
        blocks: a name in `BLOCKS`.

    Raises:
        UsageError: a value is out of range.
    """

    weight: float = 1.0
    query_preservation: float = 0.0
    temperature: float = 1.0
    blocks: str = "up"

    def __post_init__(self) -> None:
        for name, field_name in (("style attention", "weight"), ("query preservation", "query_preservation")):
            value = checked(name, getattr(self, field_name), "float")
            if not 0 <= value <= 1:  # False for NaN too
                raise UsageError(f"A {name} of {value} cannot be used", "give 0 (none) to 1 (full)")
            object.__setattr__(self, field_name, value)
        check_factor("attention temperature", self.temperature, "give a positive number, such as 1 or 1.5")
        if self.temperature == 0:
            raise UsageError("An attention temperature of 0 cannot be used", "give a positive number, such as 1 or 1.5")
        check_choice("attention blocks", self.blocks, BLOCKS)


@dataclass(frozen=True, eq=False)
class Reference:
    """A painting that the denoiser looks at.

    Attributes:
        at: the latents of the painting at a timestep, [1, C, h, w]; h and w need not be those of the picture.
        text: its prompt, one text.
        share: its part among several paintings; the shares sum to 1.
    """

    at: Callable[[int], Tensor]
    text: TextEmbedding
    share: float = 1.0


KeysValues = tuple[Tensor, Tensor]
"""K and V of one layer, each [1, heads, M, d]."""


def attend(
    query: Tensor,
    own: KeysValues,
    paintings: Sequence[tuple[KeysValues, float]],
    weight: float,
    temperature: float = 1.0,
) -> Tensor:
    """Compute self-attention in which paintings take part.

        out = softmax(tau Q [K; K_1; K_2; ...]^T / sqrt(d) + log p) [V; V_1; V_2; ...]

    p is the prior of a position: 1 - W is spread evenly over the own positions, and W times the share of a painting
    over the positions of the painting. At W = 1 only the paintings count, as in StyleID. At W = 0.5, one painting with
    as many positions as the picture counts as the picture does. At W = 0 the result is the plain self-attention.

    Args:
        query: Q, [B, heads, N, d].
        own: K and V of the picture, each [B, heads, N, d].
        paintings: K and V of each painting, [1, heads, M, d], with its share.
        weight: W in [0, 1].
        temperature: tau.

    Returns:
        [B, heads, N, d].
    """
    batch = len(query)
    parts = [(own, 1 - weight), *((pair, weight * share) for pair, share in paintings)]
    parts = [(pair, mass) for pair, mass in parts if mass > 0]
    keys, values = (torch.cat([pair[i].expand(batch, -1, -1, -1) for pair, _ in parts], dim=2) for i in (0, 1))
    counts = [pair[0].shape[2] for pair, _ in parts]
    priors = [math.log(mass) - math.log(count) for (_, mass), count in zip(parts, counts, strict=True)]
    highest = max(priors)  # subtracted, because small numbers keep more digits in half precision
    bias = None
    if highest - min(priors) > 1e-6:  # a constant changes nothing, and without a bias the attention is faster
        levels = [query.new_full((count,), prior - highest) for count, prior in zip(counts, priors, strict=True)]
        bias = torch.cat(levels).expand(1, 1, query.shape[2], -1)
    scale = temperature / math.sqrt(query.shape[-1])
    return F.scaled_dot_product_attention(query, keys, values, attn_mask=bias, scale=scale)


class StyleAttention:
    """Style attention for one run of the sampling.

    The keys and values of the paintings depend on painting, size, noise, timestep and text, not on the photos. They
    are computed once for each timestep of a run, for all pictures and tiles. On an accelerator, those of `_AHEAD`
    timesteps are computed in one call, which is faster. With `Backbone.low_memory`, only those of the current timestep
    are kept. Both ways give the same result up to rounding.

    Args:
        backbone: the frozen model.
        settings: the settings; the weight is not 0.
        references: the paintings.
        timesteps: the timesteps of the sampling, in order.
        content_at: the latents of the photos at a timestep, [B, C, h, w], for query preservation; None without.
    """

    def __init__(
        self,
        backbone: Backbone,
        settings: AttentionSettings,
        references: Sequence[Reference],
        timesteps: Sequence[int],
        content_at: Callable[[int], Tensor] | None = None,
    ) -> None:
        self.backbone = backbone
        self.settings = settings
        self.references = list(references)
        self.timesteps = list(timesteps)
        self.content_at = content_at
        self._layers = self_attention_layers(backbone.unet, settings.blocks)
        self._ahead = 1 if backbone.low_memory or backbone.device.type == "cpu" else _AHEAD
        self._memory: dict[int, list[dict[str, KeysValues]]] = {}

    def with_content(self, denoise: Denoise) -> Denoise:
        """Add the latents of the photos as extra channels to the latents that `denoise` takes.

        So code that cuts the latents into tiles, or joins them into a batch, does the same to the photos.
        """
        content_at = self.content_at
        if content_at is None:
            return denoise
        return lambda latents, timestep: denoise(torch.cat([latents, content_at(timestep)], dim=1), timestep)

    def with_painting(self, predict_noise: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Return a function like `Backbone.predict_noise`, with style attention.

        With query preservation, it takes the extra channels of `with_content`, directly behind the latents.
        """
        channels = self.backbone.latent_channels

        def predict(extended: Tensor, timestep: int, text: TextEmbedding, *, frame: Frame | None = None) -> Tensor:
            latents, queries = extended, None
            if self.content_at is not None:
                content, latents = extended[:, channels : 2 * channels], _without(extended, channels, 2 * channels)
                queries = self._record(content, timestep, text, frame).queries
            paintings = self._keys_values(timestep)
            with handled(self._layers, _Injection(self, paintings, queries)):
                return predict_noise(latents, timestep, text, frame=frame)

        return predict

    def _keys_values(self, timestep: int) -> list[dict[str, KeysValues]]:
        """Return K and V of every layer, by its name, for each painting."""
        if timestep not in self._memory:
            place = self.timesteps.index(timestep) if timestep in self.timesteps else None
            chunk = [timestep] if place is None else self.timesteps[place : place + self._ahead]
            records = [self._record_reference(reference, chunk) for reference in self.references]
            self._memory = {
                t: [{name: (k[i : i + 1], v[i : i + 1]) for name, (k, v) in record.items()} for record in records]
                for i, t in enumerate(chunk)
            }
        return self._memory[timestep]

    def _record_reference(self, reference: Reference, timesteps: Sequence[int]) -> dict[str, KeysValues]:
        latents = torch.cat([reference.at(t) for t in timesteps])
        return self._record(latents, torch.tensor(timesteps), reference.text).keys_values

    def _record(
        self, latents: Tensor, timesteps: Tensor | int, text: TextEmbedding, frame: Frame | None = None
    ) -> _Recording:
        recording = _Recording()
        with handled(self._layers, recording):
            self.backbone.predict_noise(latents, timesteps, text, frame=frame)
        return recording


class Handler(Protocol):
    """What happens in a self-attention layer, in the calls that it is `handled` in."""

    def __call__(self, name: str, layer: Attention, hidden: Tensor, plain: Callable[[], Tensor]) -> Tensor:
        """Return the output of a layer, [B, N, C].

        Args:
            name: the name of the layer in the UNet.
            layer: the layer.
            hidden: its input, [B, N, C].
            plain: computes its output without the handler.
        """


@dataclass
class _Recording:
    """Keeps queries, keys and values of every layer. The outputs do not change."""

    queries: dict[str, Tensor] = field(default_factory=dict)
    keys_values: dict[str, KeysValues] = field(default_factory=dict)

    def __call__(self, name: str, layer: Attention, hidden: Tensor, plain: Callable[[], Tensor]) -> Tensor:
        self.queries[name], *pair = project(layer, hidden)
        self.keys_values[name] = (pair[0], pair[1])
        return plain()


@dataclass(frozen=True)
class _Injection:
    """Lets the paintings take part in the self-attention."""

    attention: StyleAttention
    paintings: Sequence[Mapping[str, KeysValues]]
    queries: Mapping[str, Tensor] | None

    def __call__(self, name: str, layer: Attention, hidden: Tensor, plain: Callable[[], Tensor]) -> Tensor:
        settings = self.attention.settings
        query, key, value = project(layer, hidden)
        if self.queries is not None:
            query = query.lerp(self.queries[name], settings.query_preservation)
        shares = [reference.share for reference in self.attention.references]
        paintings = [(layers[name], share) for layers, share in zip(self.paintings, shares, strict=True)]
        return output(layer, attend(query, (key, value), paintings, settings.weight, settings.temperature), hidden)


def project(layer: Attention, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return Q, K and V of a self-attention layer, each [B, heads, N, d], for its input [B, N, C]."""
    query, key, value = (
        linear(hidden).unflatten(-1, (layer.heads, -1)).transpose(1, 2)
        for linear in (layer.to_q, layer.to_k, layer.to_v)
    )
    query = query if layer.norm_q is None else layer.norm_q(query)
    return query, key if layer.norm_k is None else layer.norm_k(key), value


def output(layer: Attention, attended: Tensor, hidden: Tensor) -> Tensor:
    """Return the output [B, N, C] of a self-attention layer from what it attended to, [B, heads, N, d]."""
    project_out, dropout = layer.to_out
    out: Tensor = dropout(project_out(attended.transpose(1, 2).flatten(2).to(hidden.dtype)))
    if layer.residual_connection:
        out = out + hidden
    return out / layer.rescale_output_factor


_HANDLER: ContextVar[tuple[Collection[Attention], Handler] | None] = ContextVar("handler", default=None)
"""The layers and the handler of the call that runs in this thread or task."""

_LOCK = threading.Lock()


class _Processor:
    """A processor of diffusers that asks the handler of the running call. Without one, it does what `plain` does.

    Several threads and pipelines may share a UNet. A call without style attention gets exactly what it would get
    without this processor, also while another call has style attention.
    """

    def __init__(self, name: str, plain: Any) -> None:
        self.name, self.plain = name, plain
        self.users = 0
        # diffusers passes a processor those arguments that the signature of its `__call__` names. A call without style
        # attention must keep its own. Calls themselves go to the method of the class.
        self.__call__ = plain.__call__  # type: ignore[method-assign]

    def __call__(
        self,
        layer: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        def plain() -> Tensor:
            out: Tensor = self.plain(layer, hidden_states, encoder_hidden_states, *args, **kwargs)
            return out

        layers, handler = _HANDLER.get() or ((), None)
        if handler is None or encoder_hidden_states is not None or layer not in layers:
            return plain()
        return handler(self.name, layer, hidden_states, plain)


@contextmanager
def handled(layers: Mapping[str, Attention], handler: Handler) -> Iterator[None]:
    """Let `handler` compute self-attention layers, in the calls of this thread and inside of the block only.

    Args:
        layers: from `self_attention_layers`. Their processors are replaced, and put back at the end of the block.
        handler: computes them.
    """
    with _LOCK:
        for name, layer in layers.items():
            if not isinstance(layer.processor, _Processor):
                layer.set_processor(_Processor(name, layer.processor))
            layer.processor.users += 1
        processors = [layer.processor for layer in layers.values()]
    token = _HANDLER.set((set(layers.values()), handler))
    try:
        yield
    finally:
        _HANDLER.reset(token)
        with _LOCK:
            for layer, processor in zip(layers.values(), processors, strict=True):
                processor.users -= 1
                if processor.users == 0 and layer.processor is processor:
                    layer.set_processor(processor.plain)


def self_attention_layers(unet: nn.Module, blocks: str) -> dict[str, Attention]:
    """Return the self-attention layers of these blocks (a name in `BLOCKS`), by name."""
    levels = len(unet.config["block_out_channels"])  # type: ignore[index]
    belongs = BLOCKS[blocks]
    return {
        name: module
        for name, module in unet.named_modules()
        if isinstance(module, Attention) and name.endswith(".attn1") and belongs(name, levels)
    }


def _without(tensor: Tensor, start: int, stop: int) -> Tensor:
    """Return a tensor [B, C, h, w] without the channels from `start` to `stop`."""
    return torch.cat([tensor[:, :start], tensor[:, stop:]], dim=1)
