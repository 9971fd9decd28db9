"""What the calls of `transfer` for one series of pictures share: for a batch of photos, or for the frames of a film."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace

import torch.nn.functional as F
from torch import Tensor

from inst.backbone.devices import copy_to
from inst.backbone.model import Backbone
from inst.backbone.text import TextEmbedding
from inst.sampling.attention import LayersKeysValues, Reference
from inst.sampling.noise import add_noise
from inst.sampling.tiles import encode_any_size

_STROKE = 1 / 8
"""The size up to which a difference belongs to a stroke, as a share of the short side."""


@dataclass(eq=False)
class Neighbour:
    """A finished frame of a film that the denoiser looks at, as it looks at a painting.

    Attributes:
        picture: [3, H, W] in [-1, 1], of the size of the results.
    """

    picture: Tensor
    _latents: Tensor | None = None
    _kept: dict[int, LayersKeysValues] = field(default_factory=dict)

    def reference(self, backbone: Backbone, noise: Tensor, text: TextEmbedding, share: float) -> Reference:
        """Return it as a reference, with the noise of the film [1, C, h, w] and the prompt of its frames."""
        if self._latents is None:
            self._latents = encode_any_size(backbone, copy_to(self.picture[None], backbone.device))
        clean = self._latents
        return Reference(lambda t: add_noise(clean, noise, t, backbone.alphas_cumprod), text, share, self._kept)


@dataclass(frozen=True, eq=False)
class Held:
    """What a frame takes over from finished ones.

    Attributes:
        neighbours: finished frames that the denoiser looks at, each with its share in the style attention. The
            paintings have the rest.
        picture: the finished frames, moved to where their places are now, [3, H, W] in [-1, 1].
        weight: how much of it the result takes, [H, W] in [0, 1].
    """

    neighbours: Sequence[tuple[Neighbour, float]]
    picture: Tensor
    weight: Tensor

    def over(self, result: Tensor) -> Tensor:
        """Return a result [1, 3, H, W] with the held picture over it, in the light of the result.

        The strokes are held. Differences that are larger than strokes, such as a shadow that comes, are not. A blend of
        old and new strokes instead would have the contrast of neither.
        """
        held, weight = copy_to(self.picture[None], result.device), copy_to(self.weight[None, None], result.device)
        light = _coarse((result - held) * weight) / _coarse(weight).clamp_min(1e-3)
        return result.lerp(held + light, weight).clamp(-1, 1)


def _coarse(values: Tensor) -> Tensor:
    """Return values [1, C, H, W] without details that are smaller than `_STROKE`."""
    height, width = values.shape[2:]
    least = max(1, round(min(height, width) * _STROKE))
    small = F.interpolate(values, (math.ceil(height / least), math.ceil(width / least)), mode="area")
    return F.interpolate(small, (height, width), mode="bilinear")


@dataclass
class Series:
    """Keeps the keys and values of the paintings, which are the same for all pictures of a series.

    They are those of the last size, styles and settings that were asked for. Give one to all calls of `transfer` for a
    batch or a film, one call after another. The results are the same as without it.

    Attributes:
        held: what the next frame of a film takes over; None for photos.
    """

    held: Held | None = None
    _store: dict[Hashable, list[Reference]] = field(default_factory=dict)

    def holding(self, held: Held | None) -> Series:
        """Return the series for one frame. Both keep the same keys and values."""
        return replace(self, held=held)

    def references(self, key: Hashable, make: Callable[[], list[Reference]]) -> list[Reference]:
        """Return the references that `make` returned for the same `key`: everything that they depend on."""
        if key not in self._store:
            self._store.clear()
            self._store[key] = [replace(reference, kept={}) for reference in make()]
        return self._store[key]

    def neighbours(self, backbone: Backbone, noise: Tensor, text: TextEmbedding) -> list[Reference]:
        """Return the references to finished frames. The arguments are those of `Neighbour.reference`."""
        if self.held is None:
            return []
        return [one.reference(backbone, noise, text, share) for one, share in self.held.neighbours if share > 0]
