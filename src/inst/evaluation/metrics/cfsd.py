"""CFSD, the content feature structural distance (Chung, Hyun and Heo, StyleID, CVPR 2024)."""

import torch
from torch import Tensor

from inst.evaluation.networks.vgg import VGG19Distance

_ENTRIES = 2**22
"""Similarities in memory at a time, 16 MB for a matrix; at 512 px all similarities would take 1 GB for a picture."""


class CFSD(VGG19Distance):
    """The change of the similarities between places of a picture, compared with its photo: 0 for the photo itself.

    With f_i the features of place i in relu3_1 of VGG-19, of C channels, and S_i = softmax over j of f_i . f_j / C^2,
    CFSD is the sum over i of KL(S_i of the photo || S_i of the picture), in nats. It describes the layout of the
    content and ignores colours. The sum runs over the places as in the authors' code, so scores at different sizes
    cannot be compared. The authors' scores cannot be compared either, because they use torchvision's VGG-19, not the
    normalised one. CFSD is not symmetric. Pictures and photos must have the same size.
    """

    @staticmethod
    def compare(pictures: list[Tensor], others: list[Tensor]) -> Tensor:
        """Return the distances [B] between features of pictures and of their photos."""
        x, y = pictures[2].float().flatten(2), others[2].float().flatten(2)  # relu3_1: [B, C, N]
        x, y = torch.broadcast_tensors(x / x.shape[1], y / y.shape[1])
        return torch.stack([_divergence(picture, photo) for picture, photo in zip(x, y, strict=True)])


def _divergence(x: Tensor, y: Tensor) -> Tensor:
    """Return the sum of the divergences over the places of features [C, N]."""
    total = x.new_zeros(())
    for start in range(0, x.shape[1], rows := max(1, _ENTRIES // x.shape[1])):
        log_x, log_y = ((z[:, start : start + rows].T @ z).log_softmax(dim=1) for z in (x, y))
        total += (log_y.exp() * (log_y - log_x)).sum(1).sum()
    return total
