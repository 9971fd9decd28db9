"""The data that learning computes once: latents of crops, picture tokens, caption tokens, and validation data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from inst.backbone.inversion import Inversion
from inst.backbone.model import Backbone
from inst.backbone.offload import offload_part
from inst.backbone.text import TextEmbedding
from inst.backbone.tokens import TokenizedPrompts
from inst.pictures.given import Painting
from inst.pictures.reading import Photo
from inst.pictures.resizing import resize
from inst.pictures.stored import PAINTING_SIDES
from inst.sampling.noise import add_noise

CAPTIONS = ("[C]", "a painting in the style of [C]", "a picture in the style of [C]", "[C] style")
"""Captions of a painting. Half of the time `[C]` alone is used, otherwise a sentence: the word must work in prompts."""

_SMALLEST_CROP = 0.6  # of the short side
_LARGEST_PAINTING = 2  # short side, as a multiple of the native size: the smallest crop is still reduced
_MAX_ENLARGEMENT = 1.25  # small paintings are enlarged up to this factor; otherwise only one crop would be possible
_VIEWS_PER_PAINTING, _MAX_VIEWS, _VIEWS_PER_STEP = 8, 64, 4
_MOST_SEEN = 512
"""Most paintings whose views the module sees; of more, these are spread evenly. The patch tokens of a view stay in
memory, 1 MB with CLIP ViT-L/14. The crops come from all paintings."""
_ENCODER_BATCH = 4  # pictures
_VALIDATION_PAIRS, _VALIDATION_CROPS = 16, 4


@dataclass(frozen=True)
class Square:
    """A square crop of a picture, in pixels. It may be mirrored left to right."""

    top: int
    left: int
    side: int
    mirrored: bool = False

    def cut(self, picture: Tensor, size: int) -> Tensor:
        """Cut the square out of a picture [3, H, W], and resize it to [3, size, size]."""
        crop = picture[:, self.top : self.top + self.side, self.left : self.left + self.side]
        crop = resize(crop, (size, size))
        return crop.flip(-1) if self.mirrored else crop


def random_square(height: int, width: int, size: int, generator: torch.Generator) -> Square:
    """Draw a square of 60 to 100 % of the short side, mirrored half of the time.

    In a small picture the square is larger, so that it is enlarged by a factor of 1.25 at most, if possible.

    Args:
        height: height of the picture in pixels.
        width: width of the picture in pixels.
        size: side of the square in pixels after it is resized.
        generator: draws side, position and mirroring.
    """
    short = min(height, width)
    smallest = min(1.0, max(_SMALLEST_CROP, size / _MAX_ENLARGEMENT / short))
    scale, down, right, mirror = torch.rand(4, generator=generator).tolist()
    side = max(1, round(short * (smallest + (1 - smallest) * scale)))
    return Square(round((height - side) * down), round((width - side) * right), side, mirror < 0.5)


def painting_size(backbone: Backbone) -> int:
    """Return the short side, in pixels, to which larger paintings can be reduced before crops are taken."""
    views = 0 if backbone.feature_extractor is None else backbone.feature_extractor.size
    return _LARGEST_PAINTING * max(backbone.native_size, views)


def largest_painting(backbone: Backbone) -> int:
    """Return the short side, in pixels, to which a painting can be reduced before it is encoded and learned from."""
    return max(painting_size(backbone), PAINTING_SIDES[0])


def view_squares(height: int, width: int, size: int, count: int) -> list[Square]:
    """Return the `count` squares of a painting that its word is computed from (the mean of their words).

    The squares are those of `random_square`, with a fixed seed.

    Measured with mini's pretrained module on 10 held-out paintings, with 24 pairs of timestep and noise. The loss is
    compared with that of the centre square alone:

        mean of 8 such squares                                0.09 % lower (on 10 of 10 paintings)
        the same, with paintings cropped to 2 : 1             0.18 % lower (on 9 of 10)
        the two squares that just cover a 2 : 1 painting      0.08 % higher
        the whole painting, squeezed into a square            0.55 % higher

    For comparison, 200 steps of learning lower the loss by 0.4 to 0.8 %.
    """
    generator = torch.Generator().manual_seed(0)
    return [random_square(height, width, size, generator) for _ in range(count)]


def denoising_loss(backbone: Backbone, text: TextEmbedding, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """Compute the latent diffusion loss of each sample, [B]: mean (eps - eps_theta(z_t, t, text))^2.

    Source: paper sec. 3.2, eq. 1.

    Args:
        backbone: predicts the noise; a v prediction is converted.
        text: text embedding of B prompts, or of one prompt for all.
        clean: z_0, [B, C, h, w].
        noise: eps, [B, C, h, w].
        timesteps: t, [B]. Those on an accelerator are not checked.
    """
    noisy = add_noise(clean, noise, timesteps, backbone.alphas_cumprod)
    return (backbone.predict_noise(noisy, timesteps, text) - noise).square().mean(dim=(1, 2, 3))


def mean_word(inversion: Callable[..., Any], pooled: Tensor, tokens: Tensor, kept: Tensor | None = None) -> Tensor:
    """Compute the pseudo-word [n, d] of several views: the mean of their words.

    Args:
        inversion: the inversion module, or a function with the same inputs and outputs.
        pooled: [V, P], pooled embeddings of the views.
        tokens: [V, N, W], patch tokens of the views.
        kept: what dropout keeps (`Inversion.draw_dropout`).
    """
    words: Tensor = inversion(pooled, tokens, kept)
    return words.mean(dim=0)


@dataclass(frozen=True, eq=False)
class LearningData:
    """The paintings as data for learning: K crops, V views, N patch tokens; all on one device.

    Attributes:
        mean: [K, C, h, w], mean of the posterior of the latents of each crop.
        std: [K, C, h, w], standard deviation of this posterior.
        pooled: [V, P], pooled embeddings of the views that the word is computed from. P is 0 if the word is not
            computed from views.
        tokens: [V, N, W], patch tokens of the views.
        captions: tokens of `CAPTIONS` for each text encoder.
    """

    mean: Tensor
    std: Tensor
    pooled: Tensor
    tokens: Tensor
    captions: tuple[TokenizedPrompts, ...]

    def latents(self, crops: Tensor, noise: Tensor) -> Tensor:
        """Draw samples [B, C, h, w] from the posteriors of `crops` [B], with Gaussian noise [B, C, h, w]."""
        crops = crops.to(self.mean.device)
        return self.mean[crops] + self.std[crops] * noise.to(self.mean)

    def draw_views(self, generator: torch.Generator) -> Tensor:
        """Draw the indices of 4 random views, or return those of all views if there are 4 or fewer; on the CPU."""
        if len(self.pooled) <= _VIEWS_PER_STEP:
            return torch.arange(len(self.pooled))
        return torch.randperm(len(self.pooled), generator=generator)[:_VIEWS_PER_STEP]

    def embed_captions(self, backbone: Backbone, word: Tensor, captions: Tensor) -> TextEmbedding:
        """Encode `captions` [B], indices of `CAPTIONS`, with the vectors of one word, [n, d], or of B words, [B, n, d].

        Gradients flow to the vectors.
        """
        captions = captions.to(self.mean.device)
        return backbone.encode_tokens(
            [tokens[captions] for tokens in self.captions], word.expand(len(captions), -1, -1)
        )


@dataclass(frozen=True, eq=False)
class Validation:
    """The validation data: M fixed pairs of timestep and noise, on crops that learning does not use.

    Attributes:
        clean: [M, C, h, w], latents z_0: the mean of the posterior.
        noise: [M, C, h, w].
        timesteps: [M], evenly spread, on the CPU.
        captions: [M], indices of `CAPTIONS`, on the CPU.
    """

    clean: Tensor
    noise: Tensor
    timesteps: Tensor
    captions: Tensor


def validation_losses(
    backbone: Backbone, data: LearningData, validations: Sequence[Validation], words: Tensor, most: int = _ENCODER_BATCH
) -> list[float]:
    """Compute the mean denoising losses of the words of S styles on their validation data.

    Args:
        backbone: predicts the noise.
        data: gives the tokens of the captions.
        validations: the validation data of each style.
        words: [S, n, d].
        most: number of samples in one call of the UNet.
    """
    count = len(CAPTIONS)
    texts = data.embed_captions(backbone, words.repeat_interleave(count, dim=0), torch.arange(count).repeat(len(words)))
    parts = [
        (one.clean, one.noise, one.timesteps, one.captions + number * count) for number, one in enumerate(validations)
    ]
    joined = [torch.cat(part).split(most) for part in zip(*parts, strict=True)]
    losses = [
        denoising_loss(backbone, texts[captions.to(clean.device)], clean, noise, timesteps)
        for clean, noise, timesteps, captions in zip(*joined, strict=True)
    ]
    return [float(own.mean()) for own in torch.cat(losses).split(_VALIDATION_PAIRS)]


def embed_paintings(
    backbone: Backbone, paintings: Sequence[Photo], *, keep_encoder: bool = False
) -> tuple[Tensor, Tensor]:
    """Compute the pooled embeddings [V, P] and patch tokens [V, N, W] of the views of the paintings, at most 512.

    Every painting has the same number of views. At the end the image encoder is moved off the accelerator, because the
    rest of learning or transfer does not need it, unless `keep_encoder`.

    Raises:
        InstError: the backbone has no image encoder, or a painting cannot be read again.
    """
    seen = min(len(paintings), _MOST_SEEN)
    embedded = list(_embedded(backbone, [paintings[i * len(paintings) // seen] for i in range(seen)]))
    if not keep_encoder:
        offload_part(backbone.image_encoder)
    return torch.cat([pooled for pooled, _ in embedded]), torch.cat([tokens for _, tokens in embedded])


def instant_word(backbone: Backbone, paintings: Sequence[Photo]) -> Tensor:
    """Compute the pseudo-word [n, d] of paintings with the backbone's inversion module: the mean over their views.

    Of many paintings, the tokens of all views do not fit in memory, so the mean is that of groups of views.
    """
    assert backbone.inversion is not None
    if len(paintings) <= _MAX_VIEWS:
        return mean_word(backbone.inversion, *embed_paintings(backbone, paintings))
    words = [backbone.inversion(*batch, None).sum(dim=0) for batch in _embedded(backbone, paintings)]
    offload_part(backbone.image_encoder)
    return torch.stack(words).sum(dim=0) / len(paintings)


def _embedded(backbone: Backbone, paintings: Sequence[Photo]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the embeddings of the views of paintings in batches."""
    size = backbone.native_size if backbone.feature_extractor is None else backbone.feature_extractor.size
    count = max(1, min(_VIEWS_PER_PAINTING, _MAX_VIEWS // len(paintings)))
    views = ((one, square) for one in paintings for square in view_squares(*_size(one), size, count))
    for batch in _batches(views, size):
        yield backbone.embed_picture(batch)


def prepare(
    backbone: Backbone,
    paintings: Sequence[Photo],
    inversion: Inversion,
    crops: int,
    generator: torch.Generator,
    *,
    keep_encoder: bool = False,
) -> tuple[LearningData, Validation]:
    """Compute the learning data and the validation data from the paintings.

    Args:
        backbone: its autoencoder and image encoder encode the paintings.
        paintings: one or more paintings of one style.
        inversion: the module; it gives the number of vectors and says whether views are needed.
        crops: number of random square crops, taken from the paintings in turn, at least one of each (K in all). Their
            latents are kept, so no step encodes anything. Validation uses other crops. 1 takes the centre of each
            painting, for learning and for validation.
        generator: draws the crops and the noise for validation.
        keep_encoder: leave the image encoder on the accelerator.
    """
    size = backbone.native_size
    if crops == 1:
        squares = [(painting, _centre(*_size(painting))) for painting in paintings]
        validation_squares = squares[:_VALIDATION_CROPS]
    else:
        crops = max(crops, len(paintings))
        in_turn = [paintings[i % len(paintings)] for i in range(crops + _VALIDATION_CROPS)]
        drawn = [(painting, random_square(*_size(painting), size, generator)) for painting in in_turn]
        squares, validation_squares = drawn[:crops], drawn[crops:]
    moments = [backbone.encode_moments(batch) for batch in _batches((*squares, *validation_squares), size)]
    mean, std = (torch.cat(parts) for parts in zip(*moments, strict=True))

    if inversion.config.pooled_width:
        pooled, tokens = embed_paintings(backbone, paintings, keep_encoder=keep_encoder)
    else:
        pooled, tokens = mean.new_zeros(1, 0), mean.new_zeros(1, 0, 0)
    device = backbone.device
    captions = backbone.tokenize(CAPTIONS, {"[C]": inversion.config.vectors})
    data = LearningData(
        mean[: len(squares)], std[: len(squares)], pooled, tokens, tuple(prompts.to(device) for prompts in captions)
    )

    pairs = torch.arange(_VALIDATION_PAIRS)
    clean = mean[len(squares) :][(pairs % len(validation_squares)).to(device)]
    total = len(backbone.alphas_cumprod)
    validation = Validation(
        clean=clean,
        noise=torch.randn(clean.shape, generator=generator).to(device),
        timesteps=((pairs + 0.5) / len(pairs) * total).long(),
        captions=draw_captions(len(pairs), generator),
    )
    return data, validation


def draw_captions(count: int, generator: torch.Generator) -> Tensor:
    """Draw indices of `CAPTIONS`, [count] on the CPU: the first half of the time, otherwise the others evenly."""
    sentence = torch.randint(1, len(CAPTIONS), (count,), generator=generator)
    return sentence * (torch.rand(count, generator=generator) < 0.5)


def _size(painting: Photo) -> tuple[int, int]:
    if isinstance(painting, Painting):  # without reading it
        return painting.size
    height, width = painting.picture.shape[-2:]
    return height, width


def _centre(height: int, width: int) -> Square:
    side = min(height, width)
    return Square((height - side) // 2, (width - side) // 2, side)


def _batches(crops: Iterable[tuple[Photo, Square]], size: int) -> Iterator[Tensor]:
    """Cut squares out of paintings, and yield them in batches [B, 3, size, size]. One painting is read at a time."""
    last: Photo | None = None
    picture = torch.empty(0)
    rest = iter(crops)
    while batch := list(islice(rest, _ENCODER_BATCH)):
        cut = []
        for painting, square in batch:
            if painting is not last:
                last, picture = painting, painting.picture
            cut.append(square.cut(picture, size))
        yield torch.stack(cut)
