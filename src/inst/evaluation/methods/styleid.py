"""The baseline StyleID: style injection into a diffusion model, without learning (Chung et al., CVPR 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inst.arguments import check_at_least
from inst.backbone.model import Backbone
from inst.backbone.text import TextEmbedding
from inst.evaluation.methods.method import OnStep, Repaint, RepaintResult, backbone_mark
from inst.pictures.reading import Photo
from inst.pictures.resizing import resize_short_side
from inst.runs import complete
from inst.sampling.attention import AttentionSettings, Reference, StyleAttention
from inst.sampling.content import ddim_inversion
from inst.sampling.denoiser import guided
from inst.sampling.noise import timestep_grid
from inst.sampling.solvers import ddim
from inst.sampling.tiles import decode_any_size, encode_any_size
from inst.synthesis.tone import adain, channel_statistics

_PUBLISHED = AttentionSettings(weight=1.0, query_preservation=0.75, temperature=1.5, blocks="fine")


@dataclass(frozen=True, eq=False)
class StyleID:
    """The method "styleid" of `inst.evaluation.compare` (arXiv 2312.09008).

    Photo and painting go from their clean latents to the last timestep T by DDIM inversion. The start latents are those
    of the photo at T with the channel statistics of those of the painting at T (sec. 4.3). DDIM sampling takes them
    down again. In its self-attention, Q is partly that of the photo's inverted latents, and K and V are those of the
    painting's, at the same timestep (sec. 4.1, 4.2). The prompt is always empty, and there is no guidance.

    As published, the painting is its centre square. The photo keeps its proportions, unlike there.

    Attributes:
        backbone: the frozen model.
        size: short side of photo and result, and side of the painting's square, in pixels.
        steps: steps of each inversion, and of the sampling.
        attention: the settings of the self-attention; the defaults are the published ones.

    Raises:
        UsageError: the size is too small for the backbone, or the number of steps is out of range.
    """

    backbone: Backbone
    size: int
    steps: int = 50
    attention: AttentionSettings = _PUBLISHED
    name: str = "styleid"

    def __post_init__(self) -> None:
        check_at_least(self.backbone.size_multiple, pixels=self.size)
        self._timesteps()  # checks the steps

    @property
    def settings(self) -> Mapping[str, Any]:
        return {
            "backbone": backbone_mark(self.backbone),
            "size": self.size,
            "steps": self.steps,
            "attention": asdict(self.attention),
        }

    @torch.no_grad()
    def start(self, painting: Photo, folder: Path, on_step: OnStep) -> Repaint:
        backbone, timesteps = self.backbone, self._timesteps()
        text = backbone.embed_text([""])
        painted = self._invert(_centre_square(self._prepare(painting)), text, on_step)
        reference = Reference(painted.__getitem__, text)
        mean, std = channel_statistics(painted[timesteps[0]])

        @torch.no_grad()
        def repaint(photo: Photo) -> RepaintResult:
            content = self._prepare(photo)
            inverted = self._invert(content, text, on_step)
            attention = StyleAttention(backbone, self.attention, [reference], timesteps, inverted.__getitem__)
            styled = guided(attention.with_painting(backbone.predict_noise), text, negative=None, guidance=1)
            start = adain(inverted[timesteps[0]], mean, std)
            sampling = ddim(attention.with_content(styled), start, timesteps, backbone.alphas_cumprod)
            latents = complete(sampling, lambda step: on_step(step.index + 1, step.total))
            height, width = content.shape[2:]
            return RepaintResult(decode_any_size(backbone, latents, height, width)[0])

        return repaint

    def _timesteps(self) -> list[int]:
        return timestep_grid(len(self.backbone.alphas_cumprod), self.steps)

    def _prepare(self, photo: Photo) -> Tensor:
        return resize_short_side(photo.picture[None].to(self.backbone.device), self.size)

    def _invert(self, picture: Tensor, text: TextEmbedding, on_step: OnStep) -> dict[int, Tensor]:
        """Return the latents of a picture [1, 3, H, W] at each timestep, [1, C, h, w]."""
        denoise = guided(self.backbone.predict_noise, text, negative=None, guidance=1)
        clean = encode_any_size(self.backbone, picture)
        latents = {}
        # No refinement, as published: a baseline is what its authors made, neither better nor slower.
        for step in ddim_inversion(denoise, clean, self._timesteps(), self.backbone.alphas_cumprod, refinements=0):
            latents[step.timestep] = step.latents
            on_step(step.index + 1, step.total)
        return latents


def _centre_square(picture: Tensor) -> Tensor:
    """Cut the centre square out of [1, 3, H, W]."""
    height, width = picture.shape[2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return picture[..., top : top + side, left : left + side]
