"""Make an instant style, without learning; and read a style from a style file or a painting."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch

from inst.arguments import check_path, checked
from inst.backbone.model import Backbone, check_backbone
from inst.errors import UsageError
from inst.learning.data import instant_word, painting_size
from inst.learning.start import default_style_name, style_provenance
from inst.pictures.given import FORMS, Picture, to_paintings
from inst.styles.style import Style

_NO_PICTURES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".pkl")
"""Endings of style files, and of embeddings and models of other programs, which `Style.load` refuses by their kind."""


def instant_style(backbone: Backbone, paintings: Picture | Sequence[Picture], name: str | None = None) -> Style:
    """Make the style of paintings at once, without learning.

    The pretrained inversion module of the backbone computes the pseudo-word. A backbone without such a module, as
    Stable Diffusion, gives a style without a pseudo-word: its style comes from the paintings themselves, through style
    attention and tone (`inst.transfer`).

    Args:
        backbone: the backbone.
        paintings: a painting, or several of one style, in the forms of `inst.learn`. Their words are averaged.
        name: name of the style; None takes the name of the folder or of the first painting.

    Raises:
        UsageError: there is no painting.
        InstError: a painting cannot be read.
    """
    check_backbone(backbone)
    loaded = to_paintings(paintings, painting_size(backbone))
    name = None if name is None else checked("name", name, "str")
    vectors = torch.empty(0, backbone.text_width)
    if backbone.inversion is not None:
        with torch.inference_mode():
            vectors = instant_word(backbone, loaded)
    return Style(
        vectors=vectors,
        widths=backbone.text_widths,
        fingerprint=backbone.fingerprint,
        denoiser=backbone.denoiser_fingerprint,
        about=style_provenance(name or default_style_name(paintings, loaded), backbone, loaded, "instant", 0),
        paintings=tuple(painting.encoded for painting in loaded),
    )


def read_style(backbone: Backbone, given: Style | Picture | Sequence[Picture]) -> Style:
    """Return a style: the given style, the style of a style file, or the instant style of one or more paintings.

    Args:
        backbone: the backbone.
        given: a style; the path of a style file (.safetensors), of a painting, or of a folder of paintings of one
            style; or paintings in any other form (`inst.pictures.given.Picture`).

    Raises:
        UsageError: `given` is something else.
        InstError: a file cannot be read.
    """
    if isinstance(given, Style):
        return given
    if isinstance(given, str | os.PathLike):
        check_path("A style", given)
        place = Path(given)
        if place.suffix.lower() in _NO_PICTURES:
            return Style.load(place)
        return instant_style(backbone, place)
    paintings = given if isinstance(given, Sequence) else [given]
    if not all(isinstance(painting, FORMS) for painting in paintings):
        raise UsageError(
            f"A style of the type {type(given).__name__} cannot be used",
            "give an inst.Style, the path of a style file, or a painting as a path, a PIL image, an array or a tensor",
        )
    return instant_style(backbone, given)
