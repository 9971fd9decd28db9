"""Style attention: the painting itself takes part in the self-attention of the denoiser.

The pseudo-word carries the palette and the manner of a painting. It has no room for single strokes. So the painting's
latents also run through the UNet, noised to the same timestep, and in its self-attention the picture looks at the keys
and values of the painting (StyleID, Chung et al., CVPR 2024, arXiv 2312.09008, sec. 4.1). No weights are added or
trained.

Notation: Q, K and V are queries, keys and values of one self-attention layer, [B, heads, N positions, d].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from inst.arguments import check_choice, check_factor, checked
from inst.backbone.libraries import Attention
from inst.backbone.model import Backbone
from inst.backbone.self_attention import BLOCKS, Finished, handled, output, project, self_attention_layers
from inst.backbone.text import Frame, TextEmbedding
from inst.errors import UsageError
from inst.sampling.denoiser import Denoise

_AHEAD = 8
"""Largest number of timesteps whose keys and values are computed at once on an accelerator."""


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


KeysValues = tuple[Tensor, Tensor]
"""K and V of one layer, each [1, heads, M, d]."""

LayersKeysValues = Mapping[str, KeysValues]
"""K and V of every layer, by its name."""


@dataclass(frozen=True, eq=False)
class Reference:
    """A painting that the denoiser looks at.

    Attributes:
        at: the latents of the painting at a timestep, [1, C, h, w]; h and w need not be those of the picture.
        text: its prompt, one text.
        share: its part among several paintings; the shares sum to 1.
        kept: its keys and values at timesteps, for the next runs. They are those of one backbone and one choice of
            blocks. None keeps them during a run only.
    """

    at: Callable[[int], Tensor]
    text: TextEmbedding
    share: float = 1.0
    kept: dict[int, LayersKeysValues] | None = None


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
    are computed once for each timestep of a run, for all pictures and tiles. Between two `fresh` timesteps, those of
    the first one are used again. On an accelerator, those of `_AHEAD` timesteps are computed in one call, which is
    faster. With `Backbone.low_memory`, only those of the current timestep are kept. Both ways give the same result up
    to rounding.

    Args:
        backbone: the frozen model.
        settings: the settings; the weight is not 0.
        references: the paintings.
        timesteps: the timesteps of the sampling, in order.
        content_at: the latents of the photos at a timestep, [B, C, h, w], for query preservation; None without.
        fresh: the timesteps whose keys and values are computed, among them the first one; None means all.
    """

    def __init__(
        self,
        backbone: Backbone,
        settings: AttentionSettings,
        references: Sequence[Reference],
        timesteps: Sequence[int],
        content_at: Callable[[int], Tensor] | None = None,
        fresh: Collection[int] | None = None,
    ) -> None:
        self.backbone = backbone
        self.settings = settings
        self.references = list(references)
        self.timesteps = list(timesteps)
        self._computed = [t for t in timesteps if fresh is None or t in fresh]
        self._source = {t: min(earlier for earlier in self._computed if earlier >= t) for t in timesteps}
        self.content_at = content_at
        self._layers = self_attention_layers(backbone.unet, settings.blocks)
        ahead = 1 if backbone.low_memory or backbone.device.type == "cpu" else _AHEAD
        # Calls of one size, if possible: each size needs its own CUDA graph.
        calls = max(1, math.ceil(len(self._computed) / ahead))
        self._ahead = math.ceil(len(self._computed) / calls)
        self._memory: dict[int, list[LayersKeysValues]] = {}

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
        shares = [reference.share for reference in self.references]

        def predict(extended: Tensor, timestep: int, text: TextEmbedding, *, frame: Frame | None = None) -> Tensor:
            latents, queries = extended, {}
            if self.content_at is not None:
                content, latents = extended[:, channels : 2 * channels], _without(extended, channels, 2 * channels)
                queries = self._record(content, timestep, text, frame, queries=True).queries
            paintings = self._keys_values(timestep)
            with handled(self._layers, _Injection(self.settings, shares, paintings, queries)):
                return predict_noise(latents, timestep, text, frame=frame)

        return predict

    def _keys_values(self, timestep: int) -> list[LayersKeysValues]:
        """Return K and V of every layer, by its name, for each painting."""
        timestep = self._source.get(timestep, timestep)
        if timestep not in self._memory:
            place = self._computed.index(timestep) if timestep in self._computed else None
            chunk = [timestep] if place is None else self._computed[place : place + self._ahead]
            records = [self._of_reference(reference, chunk) for reference in self.references]
            self._memory = {t: [record[t] for record in records] for t in chunk}
        return self._memory[timestep]

    def _of_reference(self, reference: Reference, timesteps: Sequence[int]) -> dict[int, LayersKeysValues]:
        kept = {} if reference.kept is None else reference.kept
        missing = [t for t in timesteps if t not in kept]
        if missing:
            record = self._record_reference(reference, missing)
            found = {
                t: {n: (k[i : i + 1], v[i : i + 1]) for n, (k, v) in record.items()} for i, t in enumerate(missing)
            }
            if not self.backbone.low_memory:
                kept.update(found)
            return kept | found
        return kept

    def _record_reference(self, reference: Reference, timesteps: Sequence[int]) -> dict[str, KeysValues]:
        latents = torch.cat([reference.at(t) for t in timesteps])
        return self._record(latents, torch.tensor(timesteps), reference.text).keys_values

    def _record(
        self,
        latents: Tensor,
        timesteps: Tensor | int,
        text: TextEmbedding,
        frame: Frame | None = None,
        *,
        queries: bool = False,
    ) -> _Recording:
        recording = _Recording(tuple(self._layers), queries)
        with handled(self._layers, recording):
            self.backbone.predict_noise(latents, timesteps, text, frame=frame)
        return recording


@dataclass
class _Recording:
    """Keeps the keys and values of these layers, or their queries. What comes after the last one does not run."""

    layers: Sequence[str]
    of_queries: bool
    queries: dict[str, Tensor] = field(default_factory=dict)
    keys_values: dict[str, KeysValues] = field(default_factory=dict)
    inputs: Sequence[Tensor] = ()

    def __call__(self, name: str, layer: Attention, hidden: Tensor, plain: Callable[[], Tensor]) -> Tensor:
        query, key, value = project(layer, hidden)
        if self.of_queries:
            self.queries[name] = query
        else:
            self.keys_values[name] = (key, value)
        if len(self.queries) + len(self.keys_values) == len(self.layers):
            raise Finished
        return plain()

    @property
    def key(self) -> Any:
        return "recording", self.of_queries, self.layers

    def with_inputs(self, inputs: Sequence[Tensor]) -> Self:
        return type(self)(self.layers, self.of_queries)

    def outputs(self) -> list[Tensor]:
        if self.of_queries:
            return [self.queries[name] for name in self.layers]
        return [tensor for name in self.layers for tensor in self.keys_values[name]]

    def take(self, outputs: Sequence[Tensor]) -> None:
        if self.of_queries:
            self.queries = dict(zip(self.layers, outputs, strict=True))
        else:
            self.keys_values = dict(zip(self.layers, zip(outputs[::2], outputs[1::2], strict=True), strict=True))


@dataclass(frozen=True)
class _Injection:
    """Lets the paintings take part in the self-attention.

    Attributes:
        settings: the settings of style attention.
        shares: the share of each painting.
        paintings: K and V of each painting by layer.
        queries: the queries of the photos by layer, for query preservation; {} without.
    """

    settings: AttentionSettings
    shares: Sequence[float]
    paintings: Sequence[Mapping[str, KeysValues]]
    queries: Mapping[str, Tensor]

    def __call__(self, name: str, layer: Attention, hidden: Tensor, plain: Callable[[], Tensor]) -> Tensor:
        settings = self.settings
        query, key, value = project(layer, hidden)
        if self.queries:
            query = query.lerp(self.queries[name], settings.query_preservation)
        paintings = [(layers[name], share) for layers, share in zip(self.paintings, self.shares, strict=True)]
        return output(layer, attend(query, (key, value), paintings, settings.weight, settings.temperature), hidden)

    @property
    def key(self) -> Any:
        return "injection", self.settings, tuple(self.shares), tuple(map(tuple, self.paintings)), tuple(self.queries)

    @property
    def inputs(self) -> Sequence[Tensor]:
        pairs = [tensor for layers in self.paintings for pair in layers.values() for tensor in pair]
        return [*pairs, *self.queries.values()]

    def with_inputs(self, inputs: Sequence[Tensor]) -> Self:
        given = iter(inputs)
        paintings = [{name: (next(given), next(given)) for name in layers} for layers in self.paintings]
        return replace(self, paintings=paintings, queries={name: next(given) for name in self.queries})

    def outputs(self) -> list[Tensor]:
        return []

    def take(self, outputs: Sequence[Tensor]) -> None:
        pass


def _without(tensor: Tensor, start: int, stop: int) -> Tensor:
    """Return a tensor [B, C, h, w] without the channels from `start` to `stop`."""
    return torch.cat([tensor[:, :start], tensor[:, stop:]], dim=1)
