"""The instant style, without learning; and a style from a style file or a painting."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch

from inst.arguments import check_type, checked
from inst.backbone.model import Backbone
from inst.errors import Call, InstError, UsageError
from inst.files.listing import pictures_of
from inst.learning.data import look_at, word_of
from inst.learning.start import about_style, style_name
from inst.pictures.given import FORMS, Picture, read_several
from inst.pictures.io import make_thumbnail
from inst.styles.style import Style


def instant_style(backbone: Backbone, paintings: Picture | Sequence[Picture], name: str | None = None) -> Style:
    """The style that the backbone's pretrained inversion module sees in paintings, without any learning.

    Args:
        backbone: has an inversion module and an image encoder.
        paintings: a painting, or several of one style, whose words are averaged, as for `inst.learn`.
        name: the style's name; None takes the first painting's.

    Raises:
        UsageError: no painting.
        InstError: the backbone has no pretrained inversion module.
    """
    check_type("A backbone", backbone, Backbone, "load one with inst.Backbone.load")
    read = read_several(paintings, "painting")
    name = None if name is None else checked("name", name, "str")
    if backbone.inversion is None:
        raise InstError(
            f"The backbone {backbone.name} has no pretrained inversion module, which an instant style needs",
            "learn the style with ",
            Call("learn"),
            ", and give that",
        )
    with torch.inference_mode():
        vectors = word_of(backbone.inversion, *look_at(backbone, read))
    return Style(
        vectors=vectors,
        widths=backbone.text_widths,
        fingerprint=backbone.fingerprint,
        denoiser=backbone.denoiser_fingerprint,
        about=about_style(name or style_name(read[0]), backbone, read, "instant", 0),
        thumbnail=make_thumbnail(read[0].picture),
    )


def read_style(backbone: Backbone, given: Style | Picture | Sequence[Picture]) -> Style:
    """Read a style: a style as it is, a style file; or the instant style of a painting, or of several.

    Args:
        backbone: has an inversion module where a painting is given.
        given: a style; the path of a style file (.safetensors), of a painting, or of a folder of paintings of one
            style; or paintings in any other form (`inst.pictures.given.Picture`).

    Raises:
        UsageError: something else.
        InstError: a file that cannot be read, or the backbone has no inversion module.
    """
    if isinstance(given, Style):
        return given
    if isinstance(given, str | os.PathLike):
        place = Path(given)
        if place.suffix.lower() == ".safetensors":
            return Style.load(place)
        return instant_style(backbone, pictures_of([place]), place.stem)
    paintings = given if isinstance(given, Sequence) else [given]
    if not all(isinstance(one, FORMS) for one in paintings):
        raise UsageError(
            f"A style of the type {type(given).__name__} cannot be used",
            "give an inst.Style, the path of a style file, or a painting as a path, a PIL image, an array or a tensor",
        )
    return instant_style(backbone, paintings)
