"""How fast the variants of the inversion module learn (the paper's Fig. 5), as curves over steps and seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inst.backbone.loading.image_encoder import how_to_give
from inst.backbone.model import Backbone
from inst.errors import InstError
from inst.evaluation.collection import check_names
from inst.evaluation.evaluate import PAINTING, PHOTO
from inst.evaluation.judging import cover, demo_stranger
from inst.evaluation.methods.styles import check_transfer, learned
from inst.evaluation.metrics.clip import PictureTextEncoder, cosine
from inst.learning.loop import learn
from inst.pictures.io import Photo, read_photo, resize_short_side, to_image, to_tensor
from inst.runs import complete
from inst.synthesis.from_photo import transfer
from inst.synthesis.from_prompt import generate

VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "pretrained": {"pretrained": True},
    "attention": {"variant": "attention", "pretrained": False},
    "pooled": {"variant": "pooled", "pretrained": False},
    "direct": {"variant": "direct", "pretrained": False},
}
"""Arguments of `learn` by the name of the curve. "pretrained" starts from the backbone's module: a row of its own."""


@dataclass(frozen=True)
class CurvePoint:
    """A style on the way, and how good it is.

    Attributes:
        painting: the painting's name.
        sha256: of the painting's file.
        variant: one of `VARIANTS`.
        seed: of the learning.
        step: learning steps so far.
        seconds: of learning so far, its own validations among them, without the time that the other figures took.
        loss: the validation loss (fixed crops, timesteps and noise, which are not learned from).
        gram: mean distance to the painting of the photos transferred with it, lower is closer.
        wrong_gram: as `gram`, but to another painting.
        wrong: that painting's name.
        accuracy: mean cosine of the image embeddings of pictures generated from "[C]" and of the painting.
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
    """What can be had without learning, measured as a point is.

    Attributes:
        painting: the painting's name.
        sha256: of the painting's file.
        control: "photo unchanged" or "painting unchanged": what stands in the place of the pictures.
        gram: mean distance to the painting.
        accuracy: mean cosine of the image embeddings of these pictures and of the painting.
    """

    painting: str
    sha256: str
    control: str
    gram: float
    accuracy: float


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
    """Check what `learning_curves` is given, before anything is learned.

    Raises:
        UsageError: names that results cannot be called by (`inst.evaluation.collection.check_names`), or arguments
            that `inst.learn` or `inst.transfer` cannot use.
        InstError: the backbone has no image encoder.
    """
    if backbone.image_encoder is None:
        raise InstError(
            f"{backbone.name or 'This backbone'} has no image encoder, which the variants attention and pooled look "
            f"through",
            *how_to_give(backbone.text_encoder.config),
        )
    check_names("photos", [Path(photo.name) for photo in photos])
    check_names("paintings", [Path(painting.name) for painting in paintings])
    for seed in seeds:
        learned(backbone, **_learning(steps, every, seed))  # begun and not run
    check_transfer(backbone, transferred)


def _learning(steps: int, every: int, seed: int) -> dict[str, Any]:
    """The arguments of `learn` that every variant has: none stops early."""
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
    """Learn each painting with each variant and seed, and measure the style every `every` steps.

    Args:
        backbone: has an image encoder.
        paintings: each learned by itself.
        photos: transferred with each style; few will do.
        gram_distance: ([B, 3, H, W], [1, 3, H', W']) -> [B], such as `inst.evaluation.metrics.gram.GramDistance`.
        steps: of each learning, none of which stops early.
        every: steps between two points.
        seeds: of the learnings; the same for every variant.
        size: pixels that the short side of paintings and photos is brought to for the Gram distance, by default as
            `inst.evaluation.evaluate.evaluate` brings them: figures of different sizes cannot be compared.
        pictures: generated from "[C]" for the accuracy, always with the same noise.
        variants: which of `VARIANTS`; None is all that the backbone has the parts for.
        transferred: arguments of `inst.transfer` for the photos; None leaves the tone alone, as the other ablations
            do: with the painting's palette even a poor style would be close to the painting.
        encoder: embeds pictures for the accuracy; None takes the backbone's own image encoder.
        done: which learnings (painting's name, variant, seed) to leave out, because they are known; None is none.
        keep: is given each point and its photos transferred, each [1, 3, H, W], before the point is yielded.

    Yields:
        The points of one learning after the other, in the order of their steps.

    Raises:
        UsageError: as `check_curves` does.
        InstError: the backbone has no image encoder; or what `learn` raises while it runs.
    """
    if transferred is None:
        transferred = {"tone": "none"}
    check_curves(backbone, paintings, photos, transferred, steps=steps, every=every, seeds=seeds)
    if encoder is None:
        encoder = PictureTextEncoder.of_backbone(backbone)
    if variants is None:
        variants = [name for name in VARIANTS if name != "pretrained" or backbone.inversion is not None]
    for seed in seeds:
        for place, painting in enumerate(paintings):
            stranger = _wrong_painting(paintings, place)
            target, wrong = (
                resize_short_side(one.picture[None], size).to(backbone.device) for one in (painting, stranger)
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
                    shown = [complete(transfer(backbone, photo.picture, style, **transferred)) for photo in photos]
                    made = complete(generate(backbone, "[C]", style, seed=range(pictures)))
                    with torch.inference_mode():
                        judged = [resize_short_side(one, size).to(backbone.device) for one in shown]
                        gram, wrong_gram = (
                            torch.cat([gram_distance(one, other) for one in judged]).mean().item()
                            for other in (target, wrong)
                        )
                        accuracy = cosine(encoder.pictures(made), embedded).mean().item()
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
                        wrong=stranger.name,
                        accuracy=accuracy,
                    )
                    if keep is not None:
                        keep(point, shown)
                    yield point
                    measuring += time.perf_counter() - begin


def _wrong_painting(paintings: Sequence[Photo], place: int) -> Photo:
    """The painting after that at `place`, and after the last one the first; where there is no other, the demo's."""
    if len(paintings) > 1:
        return paintings[(place + 1) % len(paintings)]
    return read_photo(demo_stranger(to_image(paintings[place].picture)), flattened=True)


@torch.inference_mode()
def curve_controls(
    backbone: Backbone,
    painting: Photo,
    photos: Sequence[Photo],
    gram_distance: Callable[[Tensor, Tensor], Tensor],
    encoder: PictureTextEncoder,
    size: int,
) -> Iterator[CurveControl]:
    """Measure the photos as they are, and the painting cut to their shapes, in the place of results.

    `size` and the rest are as for `learning_curves`.
    """
    target = resize_short_side(painting.picture[None], size).to(backbone.device)
    embedded = encoder.pictures(target)
    seen = [resize_short_side(photo.picture[None], size) for photo in photos]
    image = to_image(painting.picture)
    cut = [to_tensor(cover(image, (photo.shape[3], photo.shape[2])))[None] for photo in seen]
    unchanged = {PHOTO: seen, PAINTING: cut}
    for control, pictures in unchanged.items():
        there = [one.to(backbone.device) for one in pictures]
        yield CurveControl(
            painting=painting.name,
            sha256=painting.sha256,
            control=control,
            gram=torch.cat([gram_distance(one, target) for one in there]).mean().item(),
            accuracy=torch.cat([cosine(encoder.pictures(one), embedded) for one in there]).mean().item(),
        )
