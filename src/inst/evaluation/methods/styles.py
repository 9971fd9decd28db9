"""This project's methods that repaint photos in the style of a painting, for `inst compare`."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from inst.backbone.model import Backbone
from inst.errors import InstWarning, UsageError
from inst.evaluation.methods.method import OnStep, Repaint, RepaintResult, backbone_mark
from inst.files.listing import plain_name
from inst.files.provenance import FORMAT
from inst.files.writing import LONGEST_NAME, cut_name
from inst.learning.instant import instant_style
from inst.learning.loop import learn
from inst.pictures.reading import Photo
from inst.pictures.stored import encode_painting
from inst.runs import complete
from inst.styles.style import Style
from inst.synthesis.from_photo import transfer
from inst.synthesis.painter import paint
from inst.texts import cut

_BLANK = Photo(torch.zeros(3, 64, 64), name="blank.png")


@dataclass(frozen=True, eq=False)
class StyleMaker:
    """A way to make a style of a painting. Its name is part of the names of style files."""

    name: str
    settings: Mapping[str, Any]
    make: Callable[[Photo, OnStep], Style]


@dataclass(frozen=True, eq=False)
class StyleMethod:
    """A method that makes a style once for each painting and calls `inst.transfer` with fixed arguments.

    Methods with the same maker share styles. Styles are saved in the folder given to `start`; the file names contain a
    digest of the settings and the painting.

    Raises:
        UsageError: arguments that `inst.transfer` cannot use.
    """

    name: str
    backbone: Backbone
    maker: StyleMaker
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_transfer(self.backbone, self.arguments)  # now, so that no time is spent on learning styles first

    @property
    def settings(self) -> Mapping[str, Any]:
        return {
            "backbone": backbone_mark(self.backbone),
            "style": {"maker": self.maker.name, **self.maker.settings},
            "transfer": dict(self.arguments),
            "format": FORMAT,  # of the records: arguments that are left out have the defaults of this version
        }

    def start(self, painting: Photo, folder: Path, on_step: OnStep) -> Repaint:
        made_with = json.dumps([self.settings["backbone"], self.settings["style"], painting.sha256], sort_keys=True)
        digest = hashlib.sha256(made_with.encode()).hexdigest()[:8]
        ending = f"-{self.maker.name}-{digest}.safetensors"
        place = folder / f"{cut_name(Path(painting.name).stem, LONGEST_NAME - len(ending.encode()))}{ending}"
        if place.is_file():
            style = Style.load(place)
        else:
            style = self.maker.make(painting, on_step)
            style.save(place)

        def repaint(photo: Photo) -> RepaintResult:
            painted = complete(paint(self.backbone, {"[C]": style}, self.arguments, photo=photo))
            return RepaintResult(painted.picture, painted.record.texts())

        return repaint


def check_transfer(backbone: Backbone, arguments: Mapping[str, Any]) -> None:
    """Raise UsageError for arguments that `inst.transfer` cannot use with any photo and style."""
    # Created but not run: only the arguments are checked.
    transfer(backbone, _BLANK.picture, caption_style(backbone, "a", _BLANK), **arguments)


def learned(backbone: Backbone, name: str = "learned", **arguments: Any) -> StyleMaker:
    """Return a maker of styles learned by `inst.learn` with these arguments. Raises UsageError for wrong arguments."""
    with warnings.catch_warnings(action="ignore", category=InstWarning):  # they are shown when a style is learned
        learn(backbone, [_BLANK], **arguments)

    def make(painting: Photo, on_step: OnStep) -> Style:
        run = learn(backbone, [painting], **arguments)
        return complete(run, lambda step: on_step(step.step, step.total))

    return StyleMaker(name, arguments, make)


def instant(backbone: Backbone) -> StyleMaker:
    """Return a maker of instant styles, by the backbone's pretrained inversion module."""
    return StyleMaker("instant", {}, lambda painting, on_step: instant_style(backbone, [painting]))


def captioned(backbone: Backbone, captions: Mapping[str, str]) -> StyleMaker:
    """Return a maker of styles from written captions: the token embeddings of the caption are the style's vectors.

    Args:
        captions: captions by the painting's name without ending. A painting without a caption gets the caption of the
            name ""; if there is none, the caption is made from the file name.
    """

    def make(painting: Photo, on_step: OnStep) -> Style:
        stem = plain_name(painting.name)
        caption = captions.get(stem) or captions.get("") or f"a painting, {stem.replace('-', ' ').replace('_', ' ')}"
        return caption_style(backbone, caption, painting)

    return StyleMaker("caption", {"captions": dict(captions)}, make)


def caption_style(backbone: Backbone, caption: str, painting: Photo) -> Style:
    """Return a style whose vectors are the tokens of a caption, so that the prompt "[C]" stands for that caption.

    Raises:
        UsageError: the caption has no word.
    """
    ids = backbone.tokenizer(caption, add_special_tokens=False)["input_ids"]
    if not ids:
        raise UsageError(
            f'The caption "{cut(caption, 60)}" of {painting.name} has no word', "describe what the painting shows"
        )
    return Style(
        vectors=backbone.token_table[ids],
        fingerprint=backbone.fingerprint,
        denoiser=backbone.denoiser_fingerprint,
        about={"name": Path(painting.name).stem, "backbone": backbone.name, "variant": "caption", "caption": caption},
        paintings=(encode_painting(painting.picture),),
        widths=backbone.text_widths,
    )
