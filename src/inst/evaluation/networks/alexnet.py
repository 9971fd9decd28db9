"""Features of AlexNet (Krizhevsky, "One weird trick for parallelizing convolutional neural networks", 2014)."""

import torch
from torch import Tensor, nn

CHANNELS = (64, 192, 384, 256, 256)
"""Output channels of the five convolutions."""


class AlexNetFeatures(nn.Module):
    """The rectified activations of AlexNet's five convolutions, as LPIPS uses them.

    The input is pictures [B, 3, H, W] in [-1, 1], with H and W of at least 31; the network normalises them itself.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        a, b, c, d, e = CHANNELS
        self.features = nn.Sequential(
            *(nn.Conv2d(3, a, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
            *(nn.Conv2d(a, b, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
            *(nn.Conv2d(b, c, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(c, d, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(d, e, 3, padding=1), nn.ReLU()),
        )
        # As in the LPIPS authors' ScalingLayer; the same values as for VGG-16.
        shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
        self.register_buffer("shift", shift.view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", scale.view(1, 3, 1, 1), persistent=False)

    def forward(self, pictures: Tensor) -> list[Tensor]:
        x = (pictures - self.shift) / self.scale
        outputs = []
        for layer in self.features:
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                outputs.append(x)
        return outputs
