"""Measure how fast the variants of the inversion module learn (the paper's Fig. 5): curves over steps and seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inst.backbone.loading.image_encoder import image_encoder_remedy
from inst.backbone.model import Backbone
from inst.errors import InstError, UsageError
from inst.evaluation.collection import check_sources
from inst.evaluation.judging import other_demo_painting, resize_and_crop
from inst.evaluation.methods.styles import check_transfer, learned
from inst.evaluation.metrics.clip import PictureTextEncoder, cosine
from inst.evaluation.results import PAINTING, PHOTO
from inst.learning.loop import learn
from inst.pictures.reading import Photo, read_photo
from inst.pictures.resizing import resize_short_side
from inst.pictures.tensors import to_image, to_tensor
from inst.runs import complete
from inst.synthesis.from_photo import transfer
from inst.synthesis.from_prompt import generate

VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "pretrained": {"pretrained": True},
    "attention": {"variant": "attention", "pretrained": False},
    "pooled": {"variant": "pooled", "pretrained": False},
    "direct": {"variant": "direct", "pretrained": False},
}
"""Arguments of `learn` by the name of the curve; "pretrained" starts from the backbone's pretrained module."""


@dataclass(frozen=True)
class CurvePoint:
    """The scores of a style after some learning steps.

    Attributes:
        painting: name of the painting.
        sha256: hash of the painting's file.
        variant: one of `VARIANTS`.
        seed: random seed of the learning.
        step: number of learning steps so far.
        seconds: learning time so far, with its validations but without the time for the other scores.
        loss: validation loss (fixed crops, timesteps and noise, which are not used for learning).
        gram: mean Gram distance between the painting and photos transferred with the style; lower is closer.
        wrong_gram: the same distance to a wrong painting.
        wrong: name of the wrong painting.
        accuracy: mean cosine between the image embeddings of the painting and of pictures generated from "[C]".
    """

    painting: str
    sha256: str
    variant: str
    seed: int
    step: int
    seconds: float
    loss: float
    gram: float
    wrong_gram: float
    wrong: str
    accuracy: float


@dataclass(frozen=True)
class CurveControl:
    """The scores of unchanged pictures, which need no learning.

    Attributes:
        painting: name of the painting.
        sha256: hash of the painting's file.
        control: "photo unchanged" or "painting unchanged": the pictures that replace the results.
        gram: mean Gram distance to the painting.
        accuracy: mean cosine between the image embeddings of these pictures and of the painting.
    """

    painting: str
    sha256: str
    control: str
    gram: float
    accuracy: float


MOST_SEEDS = 1_000
"""Each seed is a learning of its own for every painting and variant."""


def check_curves(
    backbone: Backbone,
    paintings: Sequence[Photo],
    photos: Sequence[Photo],
    transferred: Mapping[str, Any],
    *,
    steps: int,
    every: int,
    seeds: Sequence[int],
) -> None:
    """Check the arguments of `learning_curves` before anything is learned.

    Raises:
        UsageError: names that cannot be names of results (`inst.evaluation.collection.check_sources`), or arguments
            that `inst.learn` or `inst.transfer` cannot use, or more than 1,000 seeds.
        InstError: the backbone has no image encoder.
    """
    if backbone.image_encoder is None:
        raise InstError(
            f"{backbone.name or 'This backbone'} has no image encoder, which the variants attention and pooled need",
            *image_encoder_remedy(backbone.text_encoder.config),
        )
    if seeds[MOST_SEEDS:]:  # the length of a range may be too large for `len`
        raise UsageError(f"More than {MOST_SEEDS} seeds cannot be used", "give fewer")
    check_sources([Path(photo.name) for photo in photos], [Path(painting.name) for painting in paintings])
    for seed in seeds:
        learned(backbone, **_learning(steps, every, seed))  # created but not run, to check the arguments
    check_transfer(backbone, transferred)


def _learning(steps: int, every: int, seed: int) -> dict[str, Any]:
    """Return the arguments of `learn` for every variant; they prevent early stopping."""
    return {"steps": steps, "validate_every": every, "patience": steps, "seed": seed}


def learning_curves(
    backbone: Backbone,
    paintings: Sequence[Photo],
    photos: Sequence[Photo],
    gram_distance: Callable[[Tensor, Tensor], Tensor],
    *,
    steps: int = 200,
    every: int = 50,
    seeds: Sequence[int] = (0,),
    size: int = 256,
    pictures: int = 4,
    variants: Sequence[str] | None = None,
    transferred: Mapping[str, Any] | None = None,
    encoder: PictureTextEncoder | None = None,
    done: Callable[[str, str, int], bool] | None = None,
    keep: Callable[[CurvePoint, Sequence[Tensor]], object] | None = None,
) -> Generator[CurvePoint, None, None]:
    """Learn each painting with each variant and seed, and compute the scores of the style every `every` steps.

    Args:
        backbone: a backbone with an image encoder.
        paintings: paintings; each is learned by itself.
        photos: photos transferred with each style; a few are enough.
        gram_distance: ([B, 3, H, W], [1, 3, H', W']) -> [B], such as `inst.evaluation.metrics.gram.GramDistance`.
        steps: steps of each learning; none stops early.
        every: steps between two points.
        seeds: random seeds of the learning, the same for every variant.
        size: short side of paintings and photos for the Gram distance, in pixels. The default is the default of
            `inst.evaluation.evaluate.evaluate`; scores at different sizes cannot be compared.
        pictures: number of pictures generated from "[C]" for the accuracy, always from the same noise.
        variants: names from `VARIANTS`; None uses all that the backbone supports.
        transferred: arguments of `inst.transfer` for the photos; None takes nothing from the painting itself, as in the
            other ablations, because with its palette even a poor style would be close to the painting.
        encoder: embeds pictures for the accuracy; None uses the backbone's own image encoder.
        done: returns whether to skip a finished learning (painting's name, variant, seed); None skips nothing.
        keep: called with each point and its transferred photos, each [1, 3, H, W], before the point is yielded.

    Yields:
        The points of one learning after another, in the order of their steps.

    Raises:
        UsageError: the same as `check_curves`.
        InstError: the backbone has no image encoder; or an error of `learn` while it runs.
    """
    if transferred is None:
        transferred = {"tone": "none", "style_attention": 0.0}
    check_curves(backbone, paintings, photos, transferred, steps=steps, every=every, seeds=seeds)
    if encoder is None:
        encoder = PictureTextEncoder.of_backbone(backbone)
    if variants is None:
        variants = [name for name in VARIANTS if name != "pretrained" or backbone.inversion is not None]
    for seed in seeds:
        for place, painting in enumerate(paintings):
            wrong_painting = _wrong_painting(paintings, place)
            target, wrong_target = (
                resize_short_side(photo.picture[None], size).to(backbone.device) for photo in (painting, wrong_painting)
            )
            with torch.inference_mode():
                embedded = encoder.pictures(target)
            for variant in variants:
                if done is not None and done(painting.name, variant, seed):
                    continue
                run = learn(backbone, [painting], **_learning(steps, every, seed), **VARIANTS[variant])
                measuring = 0.0
                for step in run:
                    if step.validation is None:
                        continue
                    begin = time.perf_counter()
                    style = step.style()
                    results = [complete(transfer(backbone, photo.picture, style, **transferred)) for photo in photos]
                    generated = complete(generate(backbone, "[C]", style, seed=range(pictures), style_attention=0.0))
                    with torch.inference_mode():
                        resized = [resize_short_side(result, size).to(backbone.device) for result in results]
                        gram, wrong_gram = (
                            torch.cat([gram_distance(picture, other) for picture in resized]).mean().item()
                            for other in (target, wrong_target)
                        )
                        accuracy = cosine(encoder.pictures(generated), embedded).mean().item()
                    point = CurvePoint(
                        painting=painting.name,
                        sha256=painting.sha256,
                        variant=variant,
                        seed=seed,
                        step=step.step,
                        seconds=round(step.seconds - measuring, 2),
                        loss=step.validation,
                        gram=gram,
                        wrong_gram=wrong_gram,
                        wrong=wrong_painting.name,
                        accuracy=accuracy,
                    )
                    if keep is not None:
                        keep(point, results)
                    yield point
                    measuring += time.perf_counter() - begin


def _wrong_painting(paintings: Sequence[Photo], place: int) -> Photo:
    """Return the painting after `place` (after the last one, the first); a demo painting if there is no other."""
    if len(paintings) > 1:
        return paintings[(place + 1) % len(paintings)]
    return read_photo(other_demo_painting(to_image(paintings[place].picture)), flattened=True)


@torch.inference_mode()
def curve_controls(
    backbone: Backbone,
    painting: Photo,
    photos: Sequence[Photo],
    gram_distance: Callable[[Tensor, Tensor], Tensor],
    encoder: PictureTextEncoder,
    size: int,
) -> Iterator[CurveControl]:
    """Compute the scores of the unchanged photos, and of the painting cropped to their shapes, in place of results.

    `size` and the other arguments are the same as for `learning_curves`.
    """
    target = resize_short_side(painting.picture[None], size).to(backbone.device)
    embedded = encoder.pictures(target)
    resized = [resize_short_side(photo.picture[None], size) for photo in photos]
    image = to_image(painting.picture)
    cropped = [to_tensor(resize_and_crop(image, (photo.shape[3], photo.shape[2])))[None] for photo in resized]
    unchanged = {PHOTO: resized, PAINTING: cropped}
    for control, control_pictures in unchanged.items():
        pictures = [picture.to(backbone.device) for picture in control_pictures]
        yield CurveControl(
            painting=painting.name,
            sha256=painting.sha256,
            control=control,
            gram=torch.cat([gram_distance(picture, target) for picture in pictures]).mean().item(),
            accuracy=torch.cat([cosine(encoder.pictures(picture), embedded) for picture in pictures]).mean().item(),
        )
