"""The baseline of Gatys, Ecker and Bethge: style transfer by optimising the picture (CVPR 2016)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inst.arguments import check_at_least
from inst.errors import UsageError
from inst.evaluation.methods.method import OnStep, Repaint, RepaintResult
from inst.evaluation.metrics.gram import gram_matrix
from inst.evaluation.networks.vgg import VGG19Features
from inst.pictures.reading import Photo
from inst.pictures.resizing import resize_short_side


@dataclass(frozen=True, eq=False)
class Gatys:
    """The method "gatys" of `inst.evaluation.compare`.

    Minimises content + style_weight x style by L-BFGS, starting from the photo (eq. 7). Content is the mean squared
    difference of the features at relu4_1, relative to their mean square. (The paper uses conv4_2; relu4_1 is the next
    lower layer that this network returns.) Style is the mean over relu1_1 to relu5_1 of |G(x) - G(y)|^2 / |G(y)|^2
    (eq. 4 and 5, with each layer weighted by its own size).

    Attributes:
        network: network with loaded weights.
        size: short side in pixels.
        steps: number of evaluations of the loss.
        style_weight: beta / alpha of eq. 7, for the relative losses above.
    """

    network: VGG19Features
    size: int = 256
    steps: int = 200
    style_weight: float = 10.0
    name: str = "gatys"

    def __post_init__(self) -> None:
        check_at_least(1, steps=self.steps)
        if self.style_weight < 0:
            raise UsageError(f"A style weight of {self.style_weight} cannot be used", "give 0 (the photo) or more")

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"size": self.size, "steps": self.steps, "style_weight": self.style_weight}

    def start(self, painting: Photo, folder: Path, on_step: OnStep) -> Repaint:
        with torch.no_grad():
            targets = [gram_matrix(features) for features in self.network(self._prepare(painting))]

        def repaint(photo: Photo) -> RepaintResult:
            return RepaintResult(self._optimise(self._prepare(photo), targets, on_step)[0])

        return repaint

    def _prepare(self, photo: Photo) -> Tensor:
        return resize_short_side(photo.picture[None], self.size).to(self.network.conv0.weight.device)

    @torch.enable_grad()
    def _optimise(self, photo: Tensor, targets: list[Tensor], on_step: OnStep) -> Tensor:
        with torch.no_grad():
            content = self.network(photo)[3]
        picture = photo.clone().requires_grad_()
        optimiser = torch.optim.LBFGS(
            [picture], max_iter=self.steps, max_eval=self.steps, history_size=20, line_search_fn="strong_wolfe"
        )

        taken = 0

        def loss() -> Tensor:
            nonlocal taken
            optimiser.zero_grad()
            features = self.network(picture)
            content_loss = (features[3] - content).square().mean() / content.square().mean()
            style_losses = [
                (gram_matrix(x) - target).square().sum() / target.square().sum()
                for x, target in zip(features, targets, strict=True)
            ]
            total = content_loss + self.style_weight * torch.stack(style_losses).mean()
            total.backward()
            taken += 1
            on_step(min(taken, self.steps), self.steps)  # a line search may take a few more evaluations
            return total

        optimiser.step(loss)
        return picture.detach().clamp(-1, 1)
