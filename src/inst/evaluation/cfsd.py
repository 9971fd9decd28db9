"""CFSD, the content feature structural distance (Chung, Hyun and Heo, StyleID, CVPR 2024)."""

import torch
from torch import Tensor

from inst.evaluation.vgg import VGG19Distance

_ROWS = 1024
"""Places whose similarities to all others are held at a time: at 512 px all of them would take 1 GB a picture."""


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
        x, y = x / x.shape[1], y / y.shape[1]
        total = torch.zeros((), device=x.device)
        for start in range(0, x.shape[2], _ROWS):
            rows = slice(start, start + _ROWS)
            of_x = (x[..., rows].transpose(1, 2) @ x).log_softmax(dim=2)
            of_y = (y[..., rows].transpose(1, 2) @ y).log_softmax(dim=2)
            total = total + (of_y.exp() * (of_y - of_x)).sum(2).sum(1)
        return total
