"""Methods that repaint photos in the style of a painting, by name: this project's in its forms, for `inst compare`."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from inst.backbone import Backbone
from inst.errors import InstError, InstWarning, UsageError
from inst.evaluation.collection import SEPARATOR
from inst.files import pictures_in
from inst.images import Photo, make_thumbnail, read_picture
from inst.learning import instant_style, learn
from inst.record import PictureRecord
from inst.sampling import complete
from inst.style import Style
from inst.styling import transfer

_BLANK = Photo(torch.zeros(3, 64, 64), name="blank.png")
OnStep = Callable[[int, int], object]
"""Told (steps taken, steps in all) while a method prepares, or makes a picture that takes many steps."""


@dataclass(frozen=True, eq=False)
class Repainted:
    """A result, [3, H, W] in [-1, 1], and the texts that its PNG file carries."""

    picture: Tensor
    texts: Mapping[str, str] = field(default_factory=dict)


Repaint = Callable[[Photo], Repainted]
PICTURES = "pictures"
"""Among a method's settings, marks of the pictures that it takes from elsewhere, by name: there may come more."""


class Method(Protocol):
    """A way to repaint photos.

    Attributes:
        name: what its folder of results is called.
        settings: all that its results depend on besides the pictures, as plain JSON values.
    """

    @property
    def name(self) -> str: ...

    @property
    def settings(self) -> Mapping[str, Any]: ...

    def start(self, painting: Photo, folder: Path, on_step: OnStep) -> Repaint:
        """Do what is to be done once for a painting.

        Args:
            painting: laid over white.
            folder: exists; for files worth keeping for a later call, such as learned styles.
            on_step: is told how far the preparation is, and later, where a picture takes minutes, how far that one is.
        """
        ...


@dataclass(frozen=True, eq=False)
class StyleMaker:
    """A way to make a style of a painting; its name is that of the files that keep the styles."""

    name: str
    settings: Mapping[str, Any]
    make: Callable[[Photo, OnStep], Style]


@dataclass(frozen=True, eq=False)
class StyleMethod:
    """A style, made once for a painting, and `inst.transfer` with fixed arguments.

    Methods with the same maker share the styles, which are kept as files in the folder that `start` is given; the names
    hold a digest of what the styles were made with and of.

    Raises:
        UsageError: arguments that `inst.transfer` cannot use.
    """

    name: str
    backbone: Backbone
    maker: StyleMaker
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_transfer(self.backbone, self.arguments)  # now, and not after every style has been learned

    @property
    def settings(self) -> Mapping[str, Any]:
        return {
            "backbone": f"{self.backbone.fingerprint} {self.backbone.denoiser_fingerprint}",
            "style": {"maker": self.maker.name, **self.maker.settings},
            "transfer": dict(self.arguments),
        }

    def start(self, painting: Photo, folder: Path, on_step: OnStep) -> Repaint:
        made_with = json.dumps([self.settings["backbone"], self.settings["style"], painting.sha256], sort_keys=True)
        digest = hashlib.sha256(made_with.encode()).hexdigest()[:8]
        place = folder / f"{Path(painting.name).stem}-{self.maker.name}-{digest}.safetensors"
        if place.is_file():
            style = Style.load(place)
        else:
            style = self.maker.make(painting, on_step)
            style.save(place)

        def repaint(photo: Photo) -> Repainted:
            pictures = complete(transfer(self.backbone, photo.picture, style, **self.arguments))
            settings = {**self.arguments, "flatten": photo.alpha is None}
            record = PictureRecord.of("transfer", self.backbone, settings, {"[C]": style}, photo=photo, thumbnails=True)
            return Repainted(pictures[0], record.texts())

        return repaint


def check_transfer(backbone: Backbone, arguments: Mapping[str, Any]) -> None:
    """Raise UsageError for arguments that `inst.transfer` cannot use with any photo and style."""
    transfer(backbone, _BLANK.picture, caption_style(backbone, "a", _BLANK), **arguments)  # begun and not run


def learned(backbone: Backbone, name: str = "learned", **arguments: Any) -> StyleMaker:
    """Styles learned by `inst.learn` with these arguments. Raises UsageError for those that it cannot use."""
    with warnings.catch_warnings(action="ignore", category=InstWarning):  # they come when a style is learned
        learn(backbone, [_BLANK], **arguments)

    def make(painting: Photo, on_step: OnStep) -> Style:
        run = learn(backbone, [painting], **arguments)
        return complete(run, lambda step: on_step(step.step, step.total))

    return StyleMaker(name, arguments, make)


def instant(backbone: Backbone) -> StyleMaker:
    """Styles as the backbone's pretrained inversion module sees them."""
    return StyleMaker("instant", {}, lambda painting, on_step: instant_style(backbone, [painting]))


def captioned(backbone: Backbone, captions: Mapping[str, str]) -> StyleMaker:
    """Written captions in the place of learned words: their ordinary tokens are the style's vectors.

    Args:
        captions: a caption for each painting's name without ending; one that has none gets that of
            the name "", or is called after its file's name.
    """

    def make(painting: Photo, on_step: OnStep) -> Style:
        stem = Path(painting.name).stem
        caption = captions.get(stem) or captions.get("") or f"a painting, {stem.replace('-', ' ').replace('_', ' ')}"
        return caption_style(backbone, caption, painting)

    return StyleMaker("caption", {"captions": dict(captions)}, make)


def caption_style(backbone: Backbone, caption: str, painting: Photo) -> Style:
    """A "style" whose vectors are the tokens of a caption, so that the prompt "[C]" is that caption to the denoiser.

    Raises:
        UsageError: a caption without a word.
    """
    ids = backbone.tokenizer(caption, add_special_tokens=False)["input_ids"]
    if not ids:
        raise UsageError(f'The caption "{caption}" of {painting.name} has no word: write what the painting shows.')
    return Style(
        vectors=backbone.token_table[ids],
        fingerprint=backbone.fingerprint,
        denoiser=backbone.denoiser_fingerprint,
        about={"name": Path(painting.name).stem, "backbone": backbone.name, "variant": "caption", "caption": caption},
        thumbnail=make_thumbnail(painting.picture),
        widths=backbone.text_widths,
    )


@dataclass(frozen=True, eq=False)
class FolderMethod:
    """Another system's outputs: a folder of pictures named PHOTO__PAINTING, in any format that can be read."""

    name: str
    folder: Path

    @property
    def settings(self) -> Mapping[str, Any]:
        marks = {one.name: [one.stat().st_size, one.stat().st_mtime_ns] for one in pictures_in(self.folder)}
        return {"folder": self.folder.name, PICTURES: marks}

    def start(self, painting: Photo, folder: Path, on_step: OnStep) -> Repaint:
        # Reversed, so that of two endings the first counts.
        pictures = {one.stem: one for one in reversed(pictures_in(self.folder))}

        def repaint(photo: Photo) -> Repainted:
            stem = f"{Path(photo.name).stem}{SEPARATOR}{Path(painting.name).stem}"
            if stem not in pictures:
                raise InstError(f"{self.folder} holds no picture named {stem}.")
            return Repainted(read_picture(pictures[stem]))

        return repaint
