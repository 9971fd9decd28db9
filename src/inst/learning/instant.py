"""The instant style: what the pretrained inversion module sees in paintings, without learning."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from inst.arguments import checked
from inst.backbone.model import Backbone
from inst.errors import Call, InstError
from inst.learning.data import look_at, word_of
from inst.learning.start import about_style, check_given, style_name
from inst.pictures.io import Photo, make_thumbnail
from inst.styles.style import Style


def instant_style(backbone: Backbone, paintings: Sequence[Photo], name: str | None = None) -> Style:
    """The style that the backbone's pretrained inversion module sees in paintings, without any learning.

    Args:
        backbone: has an inversion module and an image encoder.
        paintings: one, or several of one style, whose words are averaged.
        name: the style's name; None takes the first painting's.

    Raises:
        UsageError: no painting.
        InstError: the backbone has no pretrained inversion module.
    """
    check_given(backbone, paintings)
    name = None if name is None else checked("name", name, "str")
    if backbone.inversion is None:
        raise InstError(
            f"The backbone {backbone.name} has no pretrained inversion module, which an instant style needs",
            "learn the style with ",
            Call("learn"),
            ", and give that",
        )
    with torch.inference_mode():
        vectors = word_of(backbone.inversion, *look_at(backbone, paintings))
    return Style(
        vectors=vectors,
        widths=backbone.text_widths,
        fingerprint=backbone.fingerprint,
        denoiser=backbone.denoiser_fingerprint,
        about=about_style(name or style_name(paintings[0]), backbone, paintings, "instant", 0),
        thumbnail=make_thumbnail(paintings[0].picture),
    )
