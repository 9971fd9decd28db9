"""Features of VGG-16 and VGG-19 (Simonyan and Zisserman, ICLR 2015) for perceptual losses."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inst.evaluation.networks.frozen import load_frozen

BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Output channels of the convolutions of each block; there is a 2 x 2 max pooling between blocks."""


class VGG16Features(nn.Module):
    """The last rectified activations of VGG-16's five blocks: relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3.

    The input is pictures [B, 3, H, W] in [-1, 1], with H and W of at least 16; the network normalises them itself. The
    output is five tensors of 64, 128, 256, 512 and 512 channels at 1, 1/2, 1/4, 1/8 and 1/16 of the size.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for block in BLOCKS:
            if layers:
                layers.append(nn.MaxPool2d(2))
            for width in block:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
                channels = width
        self.features = nn.Sequential(*layers)
        # ImageNet's mean and standard deviation for pictures in [-1, 1], rounded as in the LPIPS authors' ScalingLayer.
        shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
        self.register_buffer("shift", shift.view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", scale.view(1, 3, 1, 1), persistent=False)

    @classmethod
    def load(cls, path: str | Path | None = None) -> Self:
        """Load frozen float32 ImageNet weights from a `vgg16-lpips` file of any precision; None downloads it."""
        return load_frozen(cls(), "vgg16-lpips", path, lambda key: None if key.startswith("lin") else key)

    def forward(self, pictures: Tensor) -> list[Tensor]:
        x = (pictures - self.shift) / self.scale
        outputs = []
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                outputs.append(x)
            x = layer(x)
        return [*outputs, x]


class VGG19Features(nn.Module):
    """The first rectified activations of VGG-19's five blocks: relu1_1, relu2_1, relu3_1, relu4_1 and relu5_1.

    These are the style layers of Gatys et al. (CVPR 2016), of AdaIN (Huang and Belongie, ICCV 2017), and of most later
    work. The weights are AdaIN's: rescaled to a mean activation of 1, and used with reflection padding.

    The input is pictures [B, 3, H, W] in [-1, 1], with H and W of at least 32; the network normalises them itself. The
    output is five tensors of 64, 128, 256, 512 and 512 channels at 1, 1/2, 1/4, 1/8 and 1/16 of the size, rounded up.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(3, 3, 1)
        channels = 3
        for block, (width, layers) in enumerate(((64, 2), (128, 2), (256, 4), (512, 4), (512, 1)), start=1):
            for layer in range(1, layers + 1):
                convolution = nn.Conv2d(channels, width, 3, padding=1, padding_mode="reflect")
                self.add_module(f"conv{block}_{layer}", convolution)
                channels = width

    @classmethod
    def load(cls, path: str | Path | None = None) -> Self:
        """Load AdaIN's weights in float32, frozen, from a `vgg19` safetensors file; None downloads it."""
        model = cls()
        wanted = model.state_dict().keys()
        return load_frozen(model, "vgg19", path, lambda key: key if key in wanted else None)

    def forward(self, pictures: Tensor) -> list[Tensor]:
        x = self.conv0((pictures + 1) / 2)
        outputs: list[Tensor] = []
        for name, convolution in self.named_children():
            if name == "conv0":
                continue
            first = name.endswith("_1")
            if first and outputs:
                x = F.max_pool2d(x, 2, ceil_mode=True)
            x = F.relu(convolution(x), inplace=True)
            if first:
                outputs.append(x)
        return outputs


class VGG19Distance(nn.Module, ABC):
    """A distance between pictures by VGG-19's features: `compare(network(pictures), network(others))`."""

    def __init__(self) -> None:
        super().__init__()
        self.network = VGG19Features()

    @classmethod
    def load(cls, path: str | Path | None = None) -> Self:
        """Load weights in float32, frozen, from a `vgg19` safetensors file; None downloads it."""
        model = cls()
        model.network = VGG19Features.load(path)
        return model.eval()

    def forward(self, pictures: Tensor, others: Tensor) -> Tensor:
        """Return the distances [B] of pictures [B, 3, H, W] to others [B or 1, 3, H', W'], both in [-1, 1]."""
        return self.compare(self.network(pictures), self.network(others))

    @staticmethod
    @abstractmethod
    def compare(pictures: list[Tensor], others: list[Tensor]) -> Tensor:
        """Return the distances [B] between features of pictures and of other pictures."""
