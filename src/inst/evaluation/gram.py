"""How far the textures of a picture are from a painting's: Gram matrices, and means with standard deviations."""

from pathlib import Path
from typing import Literal, Self

import torch
from torch import Tensor, nn

from inst.evaluation.vgg import VGG16Features, VGG19Features


def gram_matrix(features: Tensor) -> Tensor:
    """The correlations of channels over all places: [B, C, h, w] -> [B, C, C], the mean over the places.

    The mean rather than the sum, so that pictures of different sizes can be compared.
    """
    flat = features.float().flatten(2)
    return flat @ flat.transpose(1, 2) / flat.shape[2]


class GramDistance(nn.Module):
    """|G(x) - G(y)| / |G(y)| (Frobenius norms), the mean over five layers (Gatys et al., CVPR 2016, eq. 3 to 5).

    0 for a picture with the painting's textures and palette; about 1 is as far as a grey picture. Divided by the
    painting's own norm, so that every layer and every painting counts alike; Gatys et al. square the difference and
    leave the weights of the layers open.

    Args:
        net: "vgg19" for relu1_1 to relu5_1, as Gatys et al.; "vgg16" for the last layer of each block.
    """

    def __init__(self, net: Literal["vgg19", "vgg16"] = "vgg19") -> None:
        super().__init__()
        self.network: nn.Module = VGG19Features() if net == "vgg19" else VGG16Features()

    @classmethod
    def load(cls, path: str | Path | None = None, net: Literal["vgg19", "vgg16"] = "vgg19") -> Self:
        """Weights in float32, frozen: from a `vgg19` or `vgg16-lpips` safetensors file, else fetched."""
        model = cls(net)
        model.network = (VGG19Features if net == "vgg19" else VGG16Features).load(path)
        return model.eval()

    def forward(self, pictures: Tensor, paintings: Tensor) -> Tensor:
        """Distances [B] of pictures [B, 3, H, W] to paintings [B or 1, 3, H', W'], both in [-1, 1]; not symmetric."""
        return self.compare(self.network(pictures), self.network(paintings))

    @staticmethod
    def compare(pictures: list[Tensor], paintings: list[Tensor]) -> Tensor:
        """Distances [B] of what `network` made of pictures and paintings."""
        total = torch.zeros(len(pictures[0]), device=pictures[0].device)
        for x, y in zip(pictures, paintings, strict=True):
            target = gram_matrix(y)
            total = total + (gram_matrix(x) - target).norm(dim=(1, 2)) / target.norm(dim=(1, 2)).clamp_min(1e-12)
        return total / len(pictures)


class MeanStdDistance(nn.Module):
    """Sum over relu1_1 to relu4_1 of |mean(x) - mean(y)| + |std(x) - std(y)| (AdaIN, Huang and Belongie 2017, eq. 13).

    Means and standard deviations are those of each channel over all places, and the norms Euclidean over the channels.
    It is the loss that AdaIN was trained with, so AdaIN does well by it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.network = VGG19Features()

    @classmethod
    def load(cls, path: str | Path | None = None) -> Self:
        """Weights in float32, frozen: from a `vgg19` safetensors file, else fetched."""
        model = cls()
        model.network = VGG19Features.load(path)
        return model.eval()

    def forward(self, pictures: Tensor, paintings: Tensor) -> Tensor:
        """Distances [B] of pictures [B, 3, H, W] to paintings [B or 1, 3, H', W'], both in [-1, 1]."""
        return self.compare(self.network(pictures), self.network(paintings))

    @staticmethod
    def compare(pictures: list[Tensor], paintings: list[Tensor]) -> Tensor:
        """Distances [B] of what `network` made of pictures and paintings."""
        total = torch.zeros(len(pictures[0]), device=pictures[0].device)
        for x, y in zip(pictures[:4], paintings[:4], strict=True):
            (mean_x, std_x), (mean_y, std_y) = _moments(x), _moments(y)
            total = total + (mean_x - mean_y).norm(dim=1) + (std_x - std_y).norm(dim=1)
        return total


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Each channel's mean and standard deviation over the places, [B, C]."""
    flat = features.float().flatten(2)
    return flat.mean(2), flat.std(2)
