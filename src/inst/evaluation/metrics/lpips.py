"""LPIPS, the learned perceptual image patch similarity (Zhang et al., CVPR 2018), version 0.1."""

from pathlib import Path
from typing import Literal, Self

import torch
from torch import Tensor, nn

from inst.evaluation.networks.alexnet import CHANNELS, AlexNetFeatures
from inst.evaluation.networks.frozen import load_frozen
from inst.evaluation.networks.vgg import BLOCKS, VGG16Features


class LPIPS(nn.Module):
    """Perceptual distance of pairs of pictures: 0 if equal, about 0.1 if similar, about 0.7 if unrelated.

    Eq. 1 of the paper: the features of five layers are scaled to length 1 along the channels; their squared differences
    are weighted per channel by learned non-negative weights, averaged over places and summed over layers. LPIPS is
    differentiable in both arguments, so it is also a perceptual loss.

    Args:
        net: "vgg" for VGG-16, "alex" for AlexNet. Their distances are on different scales.
    """

    def __init__(self, net: Literal["vgg", "alex"] = "vgg") -> None:
        super().__init__()
        if net not in ("vgg", "alex"):
            raise ValueError(f"LPIPS is available with net='vgg' and net='alex', not {net!r}")
        self.weights = "vgg16-lpips" if net == "vgg" else "alexnet-lpips"
        self.network: nn.Module = VGG16Features() if net == "vgg" else AlexNetFeatures()
        widths = [block[-1] for block in BLOCKS] if net == "vgg" else CHANNELS
        self.heads = nn.ParameterList(torch.ones(width) for width in widths)

    @classmethod
    def load(cls, path: str | Path | None = None, net: Literal["vgg", "alex"] = "vgg") -> Self:
        """Load the authors' weights, frozen, from a safetensors file of any precision; None downloads them.

        `path` is a file with the weights `vgg16-lpips` for net="vgg" or `alexnet-lpips` for net="alex".
        """
        model = cls(net)
        return load_frozen(
            model,
            model.weights,
            path,
            lambda key: f"heads.{key.removeprefix('lin')}" if key.startswith("lin") else f"network.{key}",
        )

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return distances [B] in float32 of two batches of pictures [B, 3, H, W] in [-1, 1] (H, W of at least 32)."""
        return self.compare(self.network(x), self.network(y))

    def compare(self, x: list[Tensor], y: list[Tensor]) -> Tensor:
        """Return the distances [B] between the features of two batches of pictures."""
        total = torch.zeros(x[0].shape[0], device=x[0].device)
        for head, a, b in zip(self.heads, x, y, strict=True):
            difference = (_unit_length(a) - _unit_length(b)).square()
            total = total + (difference * head.view(1, -1, 1, 1)).sum((1, 2, 3)) / (a.shape[2] * a.shape[3])
        return total


def _unit_length(features: Tensor) -> Tensor:
    """Scale the channels to length 1 at every place, in float32 for features of any precision.

    The lower bound only matters if all channels of a place are 0: the square root has no gradient there, and without
    the bound a flat black region would turn a whole training step into NaN.
    """
    features = features.float()
    return features / (features.square().sum(1, keepdim=True).clamp_min(1e-20).sqrt() + 1e-10)
