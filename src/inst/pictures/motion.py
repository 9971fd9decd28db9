"""How things move from one frame of a film to another, and how a picture moves along.

Optical flow is that of OpenCV (DIS; Kroeger et al., ECCV 2016, arXiv 1603.03590). OpenCV is an optional dependency:
without it, nothing is known to move, and only what stands still is trusted.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from inst.errors import InstWarning
from inst.pictures.tensors import to_image

_STILL = 0.1
"""Motion below this many pixels is none: a picture that is moved by so little only gets blurred."""

_SAME, _OTHER = 0.04, 0.12
"""Differences of colour, in [0, 1]: up to the first, a place is the same; from the second on, it is another."""

_MARGIN = 4
"""Pixels at the edge of what is trusted that are not: there, flow is least exact."""


@dataclass(frozen=True, eq=False)
class Motion:
    """The motion from an earlier frame to a later one.

    Attributes:
        back: [2, H, W] in pixels. What the later frame shows at (x, y) was at (x + back[0], y + back[1]) before.
        forth: [2, H, W] in pixels, the same from the earlier frame to the later.
        trust: [H, W] in [0, 1]: 0 where the later frame shows what the earlier one does not, or where `back` is wrong.
    """

    back: Tensor
    forth: Tensor
    trust: Tensor

    def after(self, earlier: Motion) -> tuple[Tensor, Tensor]:
        """Return `back` and `forth` of the motion that begins with an `earlier` one and goes on with this one."""
        return self.back + move(earlier.back, self.back), earlier.forth + move(self.forth, earlier.forth)


def motion_between(earlier: Tensor, later: Tensor, guess: tuple[Tensor, Tensor] | None = None) -> Motion:
    """Find the motion between two frames.

    A place is trusted if the flow back from where `forth` leads comes back to it (Sundaram, Brox and Keutzer, ECCV
    2010, eq. 5), and if its colour is still the same.

    Args:
        earlier, later: [3, H, W] in [-1, 1].
        guess: `back` and `forth` from which the search begins, for frames that are far apart.
    """
    height, width = later.shape[1:]
    back, forth = _flow(later, earlier, guess and guess[0]), _flow(earlier, later, guess and guess[1])
    returned = move(forth, back)
    error = (back + returned).square().sum(0)
    exact = error <= 0.01 * (back.square().sum(0) + returned.square().sum(0)) + 0.5
    places = _places(height, width) + back
    inside = (places >= 0).all(0) & (places[0] <= width - 1) & (places[1] <= height - 1)
    same = ((_OTHER - _difference(move(earlier, back), later)) / (_OTHER - _SAME)).clamp(0, 1)
    trust = -_pool(F.max_pool2d, -same * (exact & inside), _MARGIN)
    return Motion(back, forth, _pool(F.avg_pool2d, trust, _MARGIN // 2))


def move(values: Tensor, flow: Tensor) -> Tensor:
    """Return for each place what is at place + flow: [C, H, W], bicubic. Beyond the edge, the edge is repeated.

    Args:
        values: [C, H, W].
        flow: [2, H, W] in pixels.
    """
    height, width = flow.shape[1:]
    if not flow.any():
        return values
    places = (_places(height, width) + flow).permute(1, 2, 0)
    grid = (2 * places + 1) / torch.tensor([width, height]) - 1
    return F.grid_sample(values[None], grid[None], mode="bicubic", padding_mode="border", align_corners=False)[0]


def opencv() -> Any:
    """Return OpenCV; None if it is not installed."""
    try:
        import cv2
    except ImportError:
        return None
    return cv2


def warn_without_opencv() -> None:
    """Warn with `InstWarning` if OpenCV is not installed, for the caller of a function that needs motion."""
    if opencv() is None:
        warnings.warn(
            InstWarning(
                "OpenCV is not installed, so only the strokes on what stands still keep their places",
                "run pip install 'inst[control]'",
            ),
            stacklevel=3,
        )


def _flow(here: Tensor, there: Tensor, guess: Tensor | None) -> Tensor:
    """Return where each place of `here` is in `there`, [2, H, W]."""
    cv2 = opencv()
    if cv2 is None:
        return torch.zeros(2, *here.shape[1:])
    search = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    grey = [np.asarray(to_image(frame).convert("L")) for frame in (here, there)]
    begin = None if guess is None else np.ascontiguousarray(guess.permute(1, 2, 0).numpy())
    flow = torch.from_numpy(search.calc(*grey, begin)).permute(2, 0, 1)
    return flow * (flow.square().sum(0) > _STILL**2)


def _places(height: int, width: int) -> Tensor:
    """Return x and y of every place, [2, H, W]."""
    return torch.stack(torch.meshgrid(torch.arange(width), torch.arange(height), indexing="xy")).float()


def _difference(moved: Tensor, later: Tensor) -> Tensor:
    """Return how far colours are outside of what the moved frame has within a pixel around, [H, W] in [0, 1].

    At an edge, colours change with every fraction of a pixel (Birchfield and Tomasi, PAMI 1998).
    """
    moved, later = (F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False) for x in (moved, later))
    highest, lowest = F.max_pool2d(moved, 3, 1, 1), -F.max_pool2d(-moved, 3, 1, 1)
    return torch.maximum(later - highest, lowest - later).clamp_min(0).amax(0) / 2


def _pool(pool: Any, values: Tensor, radius: int) -> Tensor:
    padded = F.pad(values[None, None], [radius] * 4, mode="replicate")
    pooled: Tensor = pool(padded, 2 * radius + 1, stride=1)[0, 0]
    return pooled
