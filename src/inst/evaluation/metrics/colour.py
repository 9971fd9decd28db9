"""The distance between colour histograms (Afifi, Brubaker and Brown, HistoGAN, CVPR 2021)."""

import torch
from torch import Tensor, nn

from inst.pictures.resizing import resize

BINS = 64
_FALL_OFF = 0.02
"""How fast the share of a pixel in a bin decreases with the distance in log-chroma (the paper's tau)."""
_MAX_SIDE = 256
"""Long side in pixels; larger pictures are reduced before the histogram is computed."""
_EPSILON = 1e-6


class ColourHistogram(nn.Module):
    """Pictures [B, 3, H, W] in [-1, 1] -> RGB-uv histograms [B, 3, 64, 64] that sum to 1 (the paper's eq. 1 to 4).

    For each channel c of a pixel, the logarithms of its ratios to the two other channels are its place (u, v) in
    [-3, 3]^2. The pixel is weighted by its intensity and spread over the bins by 1 / (1 + (distance / 0.02)^2) in u
    and in v.
    """

    centres: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centres", torch.linspace(-3, 3, BINS), persistent=False)

    def forward(self, pictures: Tensor) -> Tensor:
        height, width = pictures.shape[-2:]
        if max(height, width) > _MAX_SIDE:
            scale = _MAX_SIDE / max(height, width)
            pictures = resize(pictures, (max(1, round(height * scale)), max(1, round(width * scale))))
        colours = (pictures.float().flatten(2).clamp(-1, 1) + 1) / 2  # [B, 3, N]
        intensity = (colours.square().sum(1) + _EPSILON).sqrt()
        logarithms = (colours + _EPSILON).log()
        planes = []
        for channel, first, second in ((0, 1, 2), (1, 0, 2), (2, 0, 1)):
            u = self._shares(logarithms[:, channel] - logarithms[:, first])
            v = self._shares(logarithms[:, channel] - logarithms[:, second])
            planes.append((u * intensity[:, None]) @ v.transpose(1, 2))
        histograms = torch.stack(planes, 1)
        return histograms / (histograms.sum((1, 2, 3), keepdim=True) + _EPSILON)

    def _shares(self, values: Tensor) -> Tensor:
        """[B, N] -> [B, 64, N]."""
        return 1 / (1 + ((values[:, None] - self.centres[:, None]) / _FALL_OFF).square())


class ColourDistance(nn.Module):
    """The Hellinger distance of the colour histograms: 0 for the same palette, 1 for no colours in common."""

    def __init__(self) -> None:
        super().__init__()
        self.network = ColourHistogram()

    def forward(self, pictures: Tensor, paintings: Tensor) -> Tensor:
        """Return distances [B] of pictures [B, 3, H, W] to paintings [B or 1, 3, H', W'], in [-1, 1]; symmetric."""
        return self.compare(self.network(pictures), self.network(paintings))

    def compare(self, pictures: Tensor, paintings: Tensor) -> Tensor:
        """Return the distances [B] of histograms."""
        return (pictures.sqrt() - paintings.sqrt()).square().sum((1, 2, 3)).sqrt() / 2**0.5
