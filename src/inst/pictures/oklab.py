"""The Oklab colour space: lightness and two opponent colours. Equal distances look like equal differences."""

from __future__ import annotations

import torch
from torch import Tensor

# Ottosson 2020, "A perceptual color space for image processing": linear sRGB -> cone responses -> Lab.
_TO_CONES = (
    (0.4122214708, 0.5363325363, 0.0514459929),
    (0.2119034982, 0.6806995451, 0.1073969566),
    (0.0883024619, 0.2817188376, 0.6299787005),
)
_TO_LAB = (
    (0.2104542553, 0.7936177850, -0.0040720468),
    (1.9779984951, -2.4285922050, 0.4505937099),
    (0.0259040371, 0.7827717662, -0.8086757660),
)


def srgb_to_oklab(pictures: Tensor) -> Tensor:
    """Convert sRGB [..., 3, H, W] in [-1, 1] to Oklab: lightness L in [0, 1] and the opponent colours a and b."""
    levels = (pictures + 1) / 2
    linear = torch.where(levels <= 0.04045, levels / 12.92, ((levels.clamp_min(0) + 0.055) / 1.055) ** 2.4)
    cones = _matmul(pictures.new_tensor(_TO_CONES), linear).clamp_min(0)
    return _matmul(pictures.new_tensor(_TO_LAB), cones.pow(1 / 3))


def oklab_to_srgb(lab: Tensor) -> Tensor:
    """Convert Oklab to sRGB, the inverse of `srgb_to_oklab`. Colours outside sRGB are clamped to [-1, 1]."""
    linear = oklab_to_linear(lab).clamp(0, 1)
    levels = torch.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear.clamp_min(1e-8) ** (1 / 2.4) - 0.055)
    return levels * 2 - 1


def oklab_to_linear(lab: Tensor) -> Tensor:
    """Convert Oklab [..., 3, H, W] to linear sRGB. The values are in [0, 1] if the colour is inside sRGB."""
    cones = _matmul(torch.linalg.inv(lab.new_tensor(_TO_LAB)), lab) ** 3
    return _matmul(torch.linalg.inv(lab.new_tensor(_TO_CONES)), cones)


def in_gamut(linear: Tensor) -> Tensor:
    """Return whether each colour of linear sRGB [..., 3, H, W] is inside sRGB, within 1e-4: [..., 1, H, W]."""
    return ((linear >= -1e-4) & (linear <= 1 + 1e-4)).all(dim=-3, keepdim=True)


def _matmul(matrix: Tensor, pictures: Tensor) -> Tensor:
    return torch.einsum("ij,...jhw->...ihw", matrix, pictures)
