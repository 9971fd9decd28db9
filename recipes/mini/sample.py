"""Sample pictures from text with guided DDIM, and write labelled sheets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from inst.backbone.text import TextEmbedding
from inst.files.provenance import describe
from inst.pictures.sheets import make_sheet
from inst.pictures.writing import save_png
from inst.runs import complete
from inst.sampling.denoiser import guided
from inst.sampling.noise import timestep_grid
from inst.sampling.solvers import ddim


@torch.no_grad()
def sample(
    predict: Callable[[Tensor, int, TextEmbedding], Tensor],
    text: TextEmbedding,
    null: TextEmbedding,
    alphas_cumprod: Tensor,
    shape: tuple[int, int, int, int],
    *,
    steps: int = 30,
    guidance: float = 4.0,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Sample the latents of one picture for each text, [B, C, h, w] in float32.

    Args:
        predict: the denoiser: (z_t [B, C, h, w], t, B texts) -> epsilon [B, C, h, w].
        text: the embeddings of B texts.
        null: the embedding of the empty text.
        alphas_cumprod: [T], the noise schedule of the denoiser.
        shape: (B, C, h, w) of the latents.
        steps: number of denoiser steps, evenly spaced from the last timestep down.
        generator: a generator on the CPU, so that a seed gives the same noise on every device.
    """
    noise = torch.randn(shape, generator=generator).to(device)
    timesteps = timestep_grid(len(alphas_cumprod), steps)
    return complete(ddim(guided(predict, text, null, guidance), noise, timesteps, alphas_cumprod))


def sheet(pictures: Sequence[Tensor] | Tensor, labels: Sequence[str], path: str | Path, columns: int = 4) -> None:
    """Write pictures [3, H, W] in [-1, 1] at their own size as a PNG of `columns` columns, with a label under each."""
    labelled = list(zip(labels, pictures, strict=True))
    rows = [labelled[start : start + columns] for start in range(0, len(labelled), columns)]
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = describe("sheet of samples", "recipes/mini", labels=list(labels))
    save_png(make_sheet(rows, cell=max(max(picture.shape[-2:]) for picture in pictures)), path, texts=texts)
