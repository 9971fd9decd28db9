"""Teach the denoiser to repaint a photo like its reference, on the latents that the sampling gives it.

The loss of denoising teaches what two crops of one picture have in common. It never shows a photo beside a painting.
Here the denoiser sees such pairs as `inst.transfer` does: the photo gets the palette of the painting, then noise as the
model predicts it (stochastic inversion), then a part of the sampling with guidance and with the painting as the
reference. The picture that it predicts is compared with the photo (LPIPS) and with the painting (Gram matrices).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from data import Pictures, cut, random_squares
from encoders import PICTURE_CROP, WORD_CROP, Encoders
from inst.backbone.inversion import AttentionInversion
from inst.backbone.text import encode_text
from inst.errors import InstError
from inst.evaluation.metrics.gram import GramDistance
from inst.evaluation.metrics.lpips import LPIPS
from inst.synthesis.tone import Palette, match_palette
from pair import SIZE
from reference import REFERENCE_CROP, ReferenceAttention

STRENGTHS = (0.15, 0.55)
"""The noise level at which the sampling starts, as a share of all."""
GUIDANCE = (1.0, 4.0)
CELLS = 3
"""Cells a side, in which `local_distance` compares textures."""
LOCAL_LEVELS = 4
"""Levels of VGG-16 that it compares. A cell of the fifth has too few places."""
FIRST_SHARE = 0.25
"""Share of the pairs whose first prediction is compared. For the others, it is the second: the noise level of the
second call is drawn from all below that of the first."""


@dataclass(eq=False)
class Stylisation:
    """The loss of photos that are repainted like paintings.

    Only the last call of the denoiser has a gradient (DRaFT-1; Clark et al., ICLR 2024). The network behind both
    distances is VGG-16. `GramDistance` itself measures with VGG-19, so its figure is not what is trained.

    Attributes:
        frozen: the frozen parts of mini.
        unet, inversion: the trained parts.
        reference: the processor of the self-attention of `unet` that reads the reference.
        perceptual: LPIPS with VGG-16, frozen.
        pictures: the training pictures, photos and art.
        word_prompt, empty_prompt: ids and slots of the prompts "[C]" and "", each [1, L].
        abar: the noise schedule, [T].
        gram_weight, local_weight: weights of the distance of the Gram matrices and of `local_distance`. LPIPS has
            weight 1.

    Raises:
        InstError: there are no photos, or no paintings.
    """

    frozen: Encoders
    unet: UNet2DConditionModel
    inversion: AttentionInversion
    reference: ReferenceAttention
    perceptual: LPIPS
    pictures: Pictures
    word_prompt: tuple[Tensor, Tensor]
    empty_prompt: tuple[Tensor, Tensor]
    abar: Tensor
    gram_weight: float
    local_weight: float

    def __post_init__(self) -> None:
        art = torch.tensor([kind == "art" for kind in self.pictures.kinds], device=self.abar.device)
        self.photos, self.paintings = (kind.nonzero().flatten() for kind in (~art, art))
        if not (len(self.photos) and len(self.paintings)):
            raise InstError(
                '--style-pairs needs photos and paintings: give --data pictures of the kinds "photo" and "art"'
            )

    def loss(self, count: int, generator: torch.Generator) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return the loss of `count` pairs, an even number, and the values to log."""
        device = self.abar.device
        # Without its cache, autocast does not use a weight that it cast without a gradient where one is needed.
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda", cache_enabled=False):
            photo, painting, made = self._repaint(count, generator)
            with torch.no_grad():
                of_photo, of_painting = self.perceptual.network(photo), self.perceptual.network(painting)
            of_made = self.perceptual.network(made)
        lpips = self.perceptual.compare(of_made, of_photo).mean()
        gram = GramDistance.compare(of_made, of_painting).mean()
        local = local_distance(of_made[:LOCAL_LEVELS], of_painting[:LOCAL_LEVELS]).mean()
        loss = lpips + self.gram_weight * gram + self.local_weight * local
        return loss, {"lpips": lpips, "gram": gram, "local": local}

    def _repaint(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Return photos in the palettes of paintings, the paintings, and the photos repainted; [count, 3, S, S]."""

        def uniform(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator, device=self.abar.device)

        def noise_like(latents: Tensor) -> Tensor:
            return torch.randn(latents.shape, generator=generator, device=latents.device)

        at_photo, at_painting = (kind[(uniform(count) * len(kind)).long()] for kind in (self.photos, self.paintings))
        with torch.no_grad():
            painting = self._crops(at_painting, REFERENCE_CROP, generator)
            photo = self._crops(at_photo, PICTURE_CROP, generator)
            with torch.autocast(photo.device.type, enabled=False):
                photo = match_palette(photo, Palette.of_each(painting))
            clean, style = self.frozen.latents(torch.cat([photo, painting]), generator).chunk(2)
            seen = self.frozen.tokens(self._crops(at_painting, WORD_CROP, generator))
        word = self._text(self.word_prompt, count, self.inversion(*seen))
        # Every photo has two rows, with its word and with the empty prompt. Each row has its own row of the painting.
        texts = torch.cat(
            [torch.stack([word, self._text(self.empty_prompt, count)], dim=1).flatten(0, 1), _twice(word)]
        )
        style_noise = noise_like(style)
        guidance = GUIDANCE[0] + (GUIDANCE[1] - GUIDANCE[0]) * uniform(count, 1, 1, 1)

        def predict(latents: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            """Return the predicted clean latents and noise of the photos, with guidance and reference."""
            signal, sigma = self._levels(t)
            rows = torch.cat([_twice(latents), _twice(signal * style + sigma * style_noise)])
            with self.reference.paired():
                v = self.unet(rows, _twice(t).repeat(2), texts).sample[: 2 * count].float()
            with_word, without = v.unflatten(0, (count, 2)).unbind(1)
            v = without + guidance * (with_word - without)
            return signal * latents - sigma * v, sigma * latents + signal * v

        strength = STRENGTHS[0] + (STRENGTHS[1] - STRENGTHS[0]) * uniform(count)
        start = (strength * len(self.abar)).long()
        t = (start * (uniform(count) / (1 - FIRST_SHARE)).clamp(max=1)).long()
        with torch.no_grad():
            signal, sigma = self._levels(start)
            noisy = signal * clean + sigma * noise_like(clean)
            v = self.unet(noisy, start, word).sample.float()
            latents = signal * clean + sigma * (sigma * noisy + signal * v)
            predicted, noise = predict(latents, start)
            signal, sigma = self._levels(t)
            latents = signal * predicted + sigma * noise  # a DDIM step; from t to t it changes nothing
        predicted, _ = predict(latents, t)
        return photo, painting, self.frozen.vae.decode(predicted / self.frozen.vae.config.scaling_factor).sample

    def _crops(self, index: Tensor, scale: tuple[float, float], generator: torch.Generator) -> Tensor:
        return cut(self.pictures, index, *random_squares(self.pictures, index, scale, generator), SIZE)

    def _text(self, prompt: tuple[Tensor, Tensor], count: int, words: Tensor | None = None) -> Tensor:
        ids, slots = (x.expand(count, -1) for x in prompt)
        text, _ = encode_text(self.frozen.text, ids, slots, words)
        return text

    def _levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return the factors of the signal and of the noise at timesteps [B], each [B, 1, 1, 1]."""
        abar = self.abar[t].view(-1, 1, 1, 1)
        return abar.sqrt(), (1 - abar).sqrt()


def local_distance(made: list[Tensor], painting: list[Tensor]) -> Tensor:
    """Return how far the textures of the cells of pictures are from the mean texture of the cells of paintings, [B].

    The texture of a cell are the covariances of the features in it. Unlike Gram matrices of whole pictures, they ask
    for brushwork in every place, and leave a place its mean colour. The distance is relative, as in `GramDistance`.

    Args:
        made, painting: features of VGG-16, each [B, C, h, w].
    """
    total = made[0].new_zeros(len(made[0]), dtype=torch.float32)
    for x, y in zip(made, painting, strict=True):
        target = _cell_covariances(y).mean(dim=1, keepdim=True)
        distances = (_cell_covariances(x) - target).norm(dim=(2, 3)) / target.norm(dim=(2, 3)).clamp_min(1e-12)
        total = total + distances.mean(dim=1)
    return total / len(made)


def _cell_covariances(features: Tensor) -> Tensor:
    """Return the covariances [B, CELLS^2, C, C] of the cells of [B, C, h, w]. What is left over is cut off."""
    height, width = (side // CELLS for side in features.shape[2:])
    cells = features.float()[:, :, : height * CELLS, : width * CELLS].unflatten(3, (CELLS, width))
    cells = cells.unflatten(2, (CELLS, height)).permute(0, 2, 4, 1, 3, 5).flatten(4).flatten(1, 2)  # [B, cells, C, n]
    cells = cells - cells.mean(dim=-1, keepdim=True)
    return cells @ cells.mT / cells.shape[-1]


def _twice(rows: Tensor) -> Tensor:
    return rows.repeat_interleave(2, dim=0)
