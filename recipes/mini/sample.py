"""Pictures from text for the recipe's sheets: a short deterministic DDIM with guidance, and labelled sheets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from files import write_atomically

Predict = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(noisy latents [B, C, h, w], timesteps [B], text [B, L, d]) -> the predicted noise epsilon [B, C, h, w]."""

LABEL_HEIGHT = 30
_GAP = 4


def ddim(
    predict: Callable[[Tensor, Tensor], Tensor], latents: Tensor, timesteps: Sequence[int], alphas_cumprod: Tensor
) -> Tensor:
    """Denoise `latents` along falling `timesteps` down to clean latents (Song et al. 2021, eq. 12 with sigma 0).

    Args:
        predict: (latents [B, C, h, w], timesteps [B]) -> epsilon [B, C, h, w].
        latents: [B, C, h, w] at the noise level of the first timestep.
        timesteps: indices into `alphas_cumprod` [T].
    """
    abar = alphas_cumprod.to(latents.device, torch.float32)
    ones = torch.ones((), device=latents.device)
    for i, t in enumerate(timesteps):
        here, below = abar[t], abar[timesteps[i + 1]] if i + 1 < len(timesteps) else ones
        epsilon = predict(latents, torch.full((len(latents),), t, device=latents.device)).float()
        clean = (latents - (1 - here).sqrt() * epsilon) / here.sqrt()
        latents = below.sqrt() * clean + (1 - below).sqrt() * epsilon
    return latents


def guided(predict: Predict, text: Tensor, null: Tensor, guidance: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Classifier-free guidance (Ho and Salimans 2022): from the null text's prediction past the text's, in one call.

    `text` is [B, L, d], `null` [1, L, d]; a guidance of 1 is the text's prediction alone.
    """
    if guidance == 1:
        return lambda latents, t: predict(latents, t, text)
    both = torch.cat([null.expand_as(text), text])

    def combined(latents: Tensor, t: Tensor) -> Tensor:
        without, with_text = predict(latents.repeat(2, 1, 1, 1), t.repeat(2), both).chunk(2)
        return without + guidance * (with_text - without)

    return combined


@torch.no_grad()
def sample(
    predict: Predict,
    text: Tensor,
    null: Tensor,
    alphas_cumprod: Tensor,
    shape: tuple[int, int, int],
    *,
    steps: int = 30,
    guidance: float = 4.0,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """One picture's latents for each text, [B, *shape] in float32.

    Args:
        predict: the denoiser.
        text: [B, L, d], and `null` [1, L, d] of the empty text.
        alphas_cumprod: [T], the schedule that the denoiser learned.
        shape: (channels, height, width) of the latents.
        steps: denoiser calls, evenly spaced from the last timestep on.
        generator: of the CPU, so that a seed gives the same noise on every device.
    """
    noise = torch.randn(len(text), *shape, generator=generator).to(device)
    last = len(alphas_cumprod)
    timesteps = [round(last - i * last / steps) - 1 for i in range(steps)]
    return ddim(guided(predict, text, null, guidance), noise, timesteps, alphas_cumprod)


def sheet(pictures: Tensor | Sequence[Tensor], labels: Sequence[str], path: str | Path, columns: int = 4) -> None:
    """Write pictures [3, H, W] in [-1, 1], all of one size, as a PNG of `columns` columns with a label under each."""
    tiles = [(p.float().clamp(-1, 1) * 127.5 + 127.5).round().byte().permute(1, 2, 0).cpu().numpy() for p in pictures]
    height, width = tiles[0].shape[:2]
    rows = -(-len(tiles) // columns)
    page = Image.new(
        "RGB", (columns * (width + _GAP) - _GAP, rows * (height + LABEL_HEIGHT + _GAP) - _GAP), color="white"
    )
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(11)
    for index, (tile, label) in enumerate(zip(tiles, labels, strict=True)):
        left, top = index % columns * (width + _GAP), index // columns * (height + LABEL_HEIGHT + _GAP)
        page.paste(Image.fromarray(tile), (left, top))
        draw.multiline_text(
            (left + 2, top + height + 2), _wrap(label, width - 4, font), fill="black", font=font, spacing=2
        )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda to: page.save(to, format="PNG"))


def _wrap(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, lines: int = 2) -> str:
    """`text` broken at spaces into at most `lines` lines of `width` px; what is left over ends in an ellipsis."""
    out: list[str] = [""]
    for word in text.split():
        longer = f"{out[-1]} {word}".strip()
        if font.getlength(longer) <= width or not out[-1]:
            out[-1] = longer
        elif len(out) < lines:
            out.append(word)
        else:
            out[-1] += "..."
            break
    return "\n".join(out)
