"""The edges of pictures, as the ControlNets for edges were trained with."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from inst.errors import InstError
from inst.pictures.io import to_image


def canny(photos: Tensor, low: float = 100, high: float = 200) -> Tensor:
    """Find the edges of photos (Canny 1986).

    By OpenCV, because the ControlNets for edges were trained with its edges and these thresholds; another detector's
    are thinner or fewer. Whoever has no use for them need not install it.

    Args:
        photos: [..., 3, H, W] in [-1, 1].
        low, high: thresholds of the gradient, in levels of 8 bits: edges start above `high`, and go on above `low`.

    Returns:
        The same shape: 1 at edges, else -1.

    Raises:
        InstError: OpenCV is not installed.
    """
    detect = find_opencv().Canny
    flat = photos.reshape(-1, *photos.shape[-3:])
    edges = np.stack([detect(np.asarray(to_image(photo)), low, high) for photo in flat])
    found = torch.from_numpy(edges).to(photos.device).float() / 127.5 - 1
    return found[:, None].expand(-1, 3, -1, -1).reshape(photos.shape)


def find_opencv() -> Any:
    """Import OpenCV. Raises InstError where it is not installed."""
    try:
        import cv2
    except ImportError:
        raise InstError(
            "Edges are found with OpenCV, which is not installed",
            "pip install 'inst[control]', or give a control picture",
        ) from None
    return cv2
