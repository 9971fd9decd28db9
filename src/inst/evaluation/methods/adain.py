"""The baseline AdaIN: arbitrary style transfer in one pass (Huang and Belongie, ICCV 2017, arXiv 1703.06868)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inst.errors import UsageError
from inst.evaluation.methods.method import OnStep, Repaint, RepaintResult
from inst.evaluation.networks.frozen import load_frozen
from inst.evaluation.networks.vgg import VGG19Features
from inst.pictures.reading import Photo
from inst.pictures.resizing import resize_short_side
from inst.synthesis.tone import adain, channel_statistics


class AdaINDecoder(nn.Module):
    """Decodes features of VGG-19's relu4_1, [B, 512, h, w], to pictures [B, 3, 8 h, 8 w] in [-1, 1].

    Each convolution mirrors the encoder layer with its name. After the first convolution of a block, features are
    enlarged. The weights are AdaIN's.
    """

    def __init__(self) -> None:
        super().__init__()
        channels = 512
        for name, width in (
            ("conv4_1", 256),
            *((f"conv3_{layer}", 256) for layer in (4, 3, 2)),
            ("conv3_1", 128),
            ("conv2_2", 128),
            ("conv2_1", 64),
            ("conv1_2", 64),
            ("conv1_1", 3),
        ):
            self.add_module(name, nn.Conv2d(channels, width, 3, padding=1, padding_mode="reflect"))
            channels = width

    @classmethod
    def load(cls, path: str | Path | None = None) -> Self:
        """Load the authors' weights in float32, frozen, from an `adain-decoder` safetensors file; None downloads it."""
        return load_frozen(cls(), "adain-decoder", path)

    def forward(self, features: Tensor) -> Tensor:
        x = features
        for name, convolution in self.named_children():
            x = convolution(x)
            if name == "conv1_1":
                break
            x = F.relu(x)
            if name.endswith("_1"):
                x = F.interpolate(x, scale_factor=2, mode="nearest")
        return (x * 2 - 1).clamp(-1, 1)


@dataclass(frozen=True, eq=False)
class AdaIN:
    """The method "adain" of `inst.evaluation.compare`.

    Attributes:
        encoder, decoder: networks with loaded weights, on one device.
        size: short side of photo, painting and result, in pixels.
        alpha: share of the painting's statistics in the features, in [0, 1] (eq. 14); 1 uses only the painting's.
    """

    encoder: VGG19Features
    decoder: AdaINDecoder
    size: int = 512
    alpha: float = 1.0
    name: str = "adain"

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise UsageError(
                f"An alpha of {self.alpha} cannot be used", "give 0 (the photo) to 1 (the painting's style)"
            )

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"size": self.size, "alpha": self.alpha}

    def start(self, painting: Photo, folder: Path, on_step: OnStep) -> Repaint:
        mean, std = channel_statistics(self._features(self._prepare(painting)))

        @torch.no_grad()
        def repaint(photo: Photo) -> RepaintResult:
            content = self._prepare(photo)
            features = self._features(content)
            styled = self.decoder(features.lerp(adain(features, mean, std), self.alpha))
            # Cropped, because the encoder rounds sizes up to multiples of 8.
            return RepaintResult(styled[0, :, : content.shape[2], : content.shape[3]])

        return repaint

    def _prepare(self, photo: Photo) -> Tensor:
        return resize_short_side(photo.picture[None], self.size).to(self.encoder.conv0.weight.device)

    @torch.no_grad()
    def _features(self, picture: Tensor) -> Tensor:
        return self.encoder(picture)[3]
