"""CFSD, the content feature structural distance (Chung, Hyun and Heo, StyleID, CVPR 2024)."""

import torch
from torch import Tensor

from inst.evaluation.networks.vgg import VGG19Distance

_ENTRIES = 2**22
"""Similarities that are held at a time, 16 MB a matrix: at 512 px those of all places would take 1 GB a picture."""


class CFSD(VGG19Distance):
    """How much the picture's places have changed in their likeness to each other: 0 for the photo itself.

    With f_i the features of place i in relu3_1 of VGG-19, of C channels, and S_i = softmax over j of f_i . f_j / C^2,
    CFSD is the sum over i of KL(S_i of the photo || S_i of the picture), in nats. A summary of how the content is laid
    out that asks nothing about colours. The sum runs over the places as in the authors' code, so figures of different
    sizes cannot be compared; nor can those of the authors, who take torchvision's VGG-19, not the normalised one. Not
    symmetric; pictures and photos have one size.
    """

    @staticmethod
    def compare(pictures: list[Tensor], others: list[Tensor]) -> Tensor:
        """Distances [B] of what `network` made of pictures and of their photos."""
        x, y = pictures[2].float().flatten(2), others[2].float().flatten(2)  # relu3_1: [B, C, N]
        x, y = torch.broadcast_tensors(x / x.shape[1], y / y.shape[1])
        return torch.stack([_divergence(one, other) for one, other in zip(x, y, strict=True)])


def _divergence(x: Tensor, y: Tensor) -> Tensor:
    """The sum over the places of the features [C, N]."""
    total = x.new_zeros(())
    for start in range(0, x.shape[1], rows := max(1, _ENTRIES // x.shape[1])):
        of_x, of_y = ((one[:, start : start + rows].T @ one).log_softmax(dim=1) for one in (x, y))
        total += (of_y.exp() * (of_y - of_x)).sum(1).sum()
    return total
