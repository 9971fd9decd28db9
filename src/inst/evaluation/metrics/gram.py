"""Distances between the textures of a picture and a painting: Gram matrices, and means with standard deviations."""

import torch
from torch import Tensor

from inst.evaluation.networks.vgg import VGG19Distance


def gram_matrix(features: Tensor) -> Tensor:
    """Return the products of channels, averaged over all places: [B, C, h, w] -> [B, C, C].

    It is the mean, not the sum, so that pictures of different sizes can be compared.
    """
    flat = features.float().flatten(2)
    return flat @ flat.transpose(1, 2) / flat.shape[2]


class GramDistance(VGG19Distance):
    """|G(x) - G(y)| / |G(y)| (Frobenius norms), mean over relu1_1 to relu5_1 (Gatys et al., CVPR 2016, eq. 3 to 5).

    0 for a picture with the painting's textures and palette; about 1 for a grey picture. Division by the norm of the
    painting's matrix gives every layer and every painting the same weight. Gatys et al. square the difference and do
    not fix the weights of the layers. The distance is not symmetric.
    """

    @staticmethod
    def compare(pictures: list[Tensor], others: list[Tensor]) -> Tensor:
        """Return the distances [B] between features of pictures and of paintings."""
        total = torch.zeros(len(pictures[0]), device=pictures[0].device)
        for x, y in zip(pictures, others, strict=True):
            target = gram_matrix(y)
            total = total + (gram_matrix(x) - target).norm(dim=(1, 2)) / target.norm(dim=(1, 2)).clamp_min(1e-12)
        return total / len(pictures)


class MeanStdDistance(VGG19Distance):
    """Sum over relu1_1 to relu4_1 of |mean(x) - mean(y)| + |std(x) - std(y)| (AdaIN, Huang and Belongie 2017, eq. 13).

    Means and standard deviations are over all places of each channel; the norms are Euclidean over the channels. AdaIN
    was trained with this loss, so it scores well here.
    """

    @staticmethod
    def compare(pictures: list[Tensor], others: list[Tensor]) -> Tensor:
        """Return the distances [B] between features of pictures and of paintings."""
        total = torch.zeros(len(pictures[0]), device=pictures[0].device)
        for x, y in zip(pictures[:4], others[:4], strict=True):
            (mean_x, std_x), (mean_y, std_y) = _moments(x), _moments(y)
            total = total + (mean_x - mean_y).norm(dim=1) + (std_x - std_y).norm(dim=1)
        return total


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and the standard deviation of each channel over the places, [B, C]."""
    flat = features.float().flatten(2)
    return flat.mean(2), flat.std(2)
