"""The Inception-v3 of the Frechet inception distance, ported to PyTorch.

The weights are from the TensorFlow graph of 2015, which all published FID values use (Heusel et al., 2017). This
network differs from torchvision's Inception-v3: average pooling ignores the padding, and the last block uses max
pooling. Batch normalisation is folded into the convolutions.
"""

from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inst.evaluation.networks.frozen import load_frozen


class InceptionFID(nn.Module):
    """Pictures [B, 3, H, W] in [-1, 1], of any size, to 2,048 pooled features [B, 2048] (layer pool3)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = Conv(3, 32, 3, stride=2)
        self.conv_1 = Conv(32, 32, 3)
        self.conv_2 = Conv(32, 64, 3, padding=1)
        self.conv_3 = Conv(64, 80, 1)
        self.conv_4 = Conv(80, 192, 3)
        self.mixed = InceptionA(192, 32)
        self.mixed_1 = InceptionA(256, 64)
        self.mixed_2 = InceptionA(288, 64)
        self.mixed_3 = InceptionB(288)
        self.mixed_4 = InceptionC(768, 128)
        self.mixed_5 = InceptionC(768, 160)
        self.mixed_6 = InceptionC(768, 160)
        self.mixed_7 = InceptionC(768, 192)
        self.mixed_8 = InceptionD(768)
        self.mixed_9 = InceptionE(1280, max_pool=False)
        self.mixed_10 = InceptionE(2048, max_pool=True)

    @classmethod
    def load(cls, path: str | Path | None = None) -> Self:
        """Load frozen float32 weights from an `inception-fid` safetensors file of any precision; None downloads it."""
        return load_frozen(cls(), "inception-fid", path)

    def forward(self, pictures: Tensor) -> Tensor:
        """Return the features of pictures, which are resized to 299 x 299 without antialiasing, as in pytorch-fid."""
        x = F.interpolate(pictures, size=(299, 299), mode="bilinear", align_corners=False)
        x = self.conv_2(self.conv_1(self.conv(x)))
        x = F.max_pool2d(x, 3, stride=2)
        x = self.conv_4(self.conv_3(x))
        x = F.max_pool2d(x, 3, stride=2)
        x = self.mixed_2(self.mixed_1(self.mixed(x)))
        x = self.mixed_7(self.mixed_6(self.mixed_5(self.mixed_4(self.mixed_3(x)))))
        x = self.mixed_10(self.mixed_9(self.mixed_8(x)))
        return x.mean(dim=(2, 3))


class Conv(nn.Conv2d):
    """A convolution with folded normalisation, followed by ReLU."""

    def forward(self, input: Tensor) -> Tensor:
        return F.relu(super().forward(input))


class Tower(nn.Module):
    """Convolutions in a row, named `conv`, `conv_1`, `conv_2`, ..."""

    def __init__(self, *convolutions: Conv) -> None:
        super().__init__()
        for index, convolution in enumerate(convolutions):
            self.add_module(f"conv_{index}" if index else "conv", convolution)

    def forward(self, x: Tensor) -> Tensor:
        for convolution in self.children():
            x = convolution(x)
        return x


def _average(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class InceptionA(nn.Module):
    def __init__(self, inputs: int, pooled: int) -> None:
        super().__init__()
        self.conv = Conv(inputs, 64, 1)
        self.tower = Tower(Conv(inputs, 48, 1), Conv(48, 64, 5, padding=2))
        self.tower_1 = Tower(Conv(inputs, 64, 1), Conv(64, 96, 3, padding=1), Conv(96, 96, 3, padding=1))
        self.tower_2 = Tower(Conv(inputs, pooled, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.conv(x), self.tower(x), self.tower_1(x), self.tower_2(_average(x))], 1)


class InceptionB(nn.Module):
    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.conv = Conv(inputs, 384, 3, stride=2)
        self.tower = Tower(Conv(inputs, 64, 1), Conv(64, 96, 3, padding=1), Conv(96, 96, 3, stride=2))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.conv(x), self.tower(x), F.max_pool2d(x, 3, stride=2)], 1)


class InceptionC(nn.Module):
    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()

        def row(inputs: int, outputs: int) -> Conv:
            return Conv(inputs, outputs, (1, 7), padding=(0, 3))

        def column(inputs: int, outputs: int) -> Conv:
            return Conv(inputs, outputs, (7, 1), padding=(3, 0))

        self.conv = Conv(inputs, 192, 1)
        self.tower = Tower(Conv(inputs, width, 1), row(width, width), column(width, 192))
        self.tower_1 = Tower(
            Conv(inputs, width, 1),
            column(width, width),
            row(width, width),
            column(width, width),
            row(width, 192),
        )
        self.tower_2 = Tower(Conv(inputs, 192, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.conv(x), self.tower(x), self.tower_1(x), self.tower_2(_average(x))], 1)


class InceptionD(nn.Module):
    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.tower = Tower(Conv(inputs, 192, 1), Conv(192, 320, 3, stride=2))
        self.tower_1 = Tower(
            Conv(inputs, 192, 1),
            Conv(192, 192, (1, 7), padding=(0, 3)),
            Conv(192, 192, (7, 1), padding=(3, 0)),
            Conv(192, 192, 3, stride=2),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.tower(x), self.tower_1(x), F.max_pool2d(x, 3, stride=2)], 1)


class InceptionE(nn.Module):
    def __init__(self, inputs: int, max_pool: bool) -> None:
        super().__init__()
        self.max_pool = max_pool
        self.conv = Conv(inputs, 320, 1)
        self.tower_conv = Conv(inputs, 384, 1)
        self.tower_mixed_conv = Conv(384, 384, (1, 3), padding=(0, 1))
        self.tower_mixed_conv_1 = Conv(384, 384, (3, 1), padding=(1, 0))
        self.tower_1_conv = Conv(inputs, 448, 1)
        self.tower_1_conv_1 = Conv(448, 384, 3, padding=1)
        self.tower_1_mixed_conv = Conv(384, 384, (1, 3), padding=(0, 1))
        self.tower_1_mixed_conv_1 = Conv(384, 384, (3, 1), padding=(1, 0))
        self.tower_2_conv = Conv(inputs, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.tower_conv(x)
        b = self.tower_1_conv_1(self.tower_1_conv(x))
        pooled = F.max_pool2d(x, 3, stride=1, padding=1) if self.max_pool else _average(x)
        return torch.cat(
            [
                self.conv(x),
                self.tower_mixed_conv(a),
                self.tower_mixed_conv_1(a),
                self.tower_1_mixed_conv(b),
                self.tower_1_mixed_conv_1(b),
                self.tower_2_conv(pooled),
            ],
            1,
        )
