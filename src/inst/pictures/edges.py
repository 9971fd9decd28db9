"""Edge detection for pictures, as in the training of ControlNets for edges."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from inst.errors import InstError
from inst.pictures.tensors import to_image


def canny(photos: Tensor, low: float = 100, high: float = 200) -> Tensor:
    """Find the edges of photos (Canny 1986).

    OpenCV is used because the ControlNets for edges were trained with its edges and these thresholds; other detectors
    find thinner or fewer edges. OpenCV is an optional dependency.

    Args:
        photos: [..., 3, H, W] in [-1, 1].
        low, high: thresholds of the gradient, in 8-bit levels: edges start above `high` and continue above `low`.

    Returns:
        A tensor of the same shape: 1 at edges, -1 elsewhere.

    Raises:
        InstError: OpenCV is not installed.
    """
    detect = find_opencv().Canny
    flat = photos.reshape(-1, *photos.shape[-3:])
    edges = np.stack([detect(np.asarray(to_image(photo)), low, high) for photo in flat])
    found = torch.from_numpy(edges).to(photos.device).float() / 127.5 - 1
    return found[:, None].expand(-1, 3, -1, -1).reshape(photos.shape)


def find_opencv() -> Any:
    """Import OpenCV. Raises InstError if it is not installed."""
    try:
        import cv2
    except ImportError:
        raise InstError(
            "Edge detection needs OpenCV, which is not installed",
            "run pip install 'inst[control]', or give a control picture",
        ) from None
    return cv2
