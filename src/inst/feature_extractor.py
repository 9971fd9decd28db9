"""What CLIP's image encoder wants to see."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class FeatureExtractor:
    """What CLIP's image encoder wants to see: pixels of a side, and each colour channel's mean and std in [0, 1]."""

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, pictures: Tensor) -> Tensor:
        """[B, 3, H, W] in [-1, 1] -> [B, 3, size, size], normalised.

        The short side is resized to `size` (bicubic, antialiased), then the centre is cropped: the steps of CLIP's own
        preprocessing, on tensors, so that gradients flow.
        """
        height, width = pictures.shape[-2:]
        # The long side is truncated, not rounded, as CLIP's processor does.
        resized = [self.size * side // min(height, width) for side in (height, width)]
        pictures = F.interpolate(pictures.float(), resized, mode="bicubic", antialias=True).clamp(-1, 1)
        top, left = (resized[0] - self.size) // 2, (resized[1] - self.size) // 2
        pictures = pictures[..., top : top + self.size, left : left + self.size]
        mean = pictures.new_tensor(self.mean).view(3, 1, 1)
        std = pictures.new_tensor(self.std).view(3, 1, 1)
        return ((pictures + 1) / 2 - mean) / std
