"""Flicker: how much the frames of a film change that should not, in plain units."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor

from inst.pictures.motion import Motion, motion_between, move
from inst.pictures.resizing import resize

_STILL = 2 / 255
"""Largest change of a photo's colour, in [0, 1], in a place that stands still."""

_AROUND = 8
"""Pixels around a place that must stand still too: a stroke there depends on them."""


@dataclass(frozen=True)
class Flicker:
    """Mean absolute differences between successive results, of colours in [0, 1]; means over all pairs of frames.

    Attributes:
        static: over the places that stand still in the photos; None if no place does.
        warped: between a result and the one before, moved along with the photos, over the places that both show; None
            if there is none. Moving a picture blurs it, so even a perfect film has a little: as much as the photos.
    """

    static: float | None
    warped: float | None


def flicker(
    photos: Iterable[Tensor],
    results: Iterable[Tensor],
    motion: Callable[[Tensor, Tensor], Motion] = motion_between,
) -> Flicker:
    """Measure the flicker of a film. Frames are taken one by one.

    Args:
        photos: the frames before the transfer, [3, H, W] in [-1, 1]. They are resized to the size of the results.
        results: as many frames after it.
        motion: finds the motion between two photos; by default optical flow, if OpenCV is installed.
    """
    static, warped = [], []
    pairs = (
        (resize(photo, (result.shape[1], result.shape[2])), result)
        for photo, result in zip(photos, results, strict=True)
    )
    for (photo, result), (next_photo, next_result) in pairwise(pairs):
        change = (next_photo - photo).abs().amax(0) / 2
        still = F.max_pool2d(change[None], 2 * _AROUND + 1, stride=1, padding=_AROUND)[0] <= _STILL
        found = motion(photo, next_photo)
        still &= ~found.back.any(0)  # a cloudless sky may look the same, and still move
        static.append(_mean((next_result - result).abs().mean(0) / 2, still))
        moved = move(result, found.back)
        warped.append(_mean((next_result - moved).abs().mean(0) / 2, found.trust > 0.5))
    return Flicker(_average(static), _average(warped))


def _mean(values: Tensor, where: Tensor) -> float | None:
    return float(values[where].mean()) if where.any() else None


def _average(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
