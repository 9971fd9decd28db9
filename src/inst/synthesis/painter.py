"""A picture and its record, made together: for whoever keeps what was painted."""

from __future__ import annotations

import inspect
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from inst.backbone.model import Backbone
from inst.files.provenance import SourceFile
from inst.pictures.io import Photo, resize_mask, save_picture
from inst.sampling.control import Control
from inst.sampling.solvers import Sampling, SamplingStep
from inst.styles.style import Style
from inst.synthesis.from_photo import transfer
from inst.synthesis.from_prompt import generate
from inst.synthesis.record import ControlRecord, PictureRecord


@dataclass(frozen=True, eq=False)
class Painted:
    """A picture, and what made it.

    Attributes:
        picture: [3, H, W] in [-1, 1].
        alpha: [H, W] in [0, 1], the photo's opacity; None where all of it is opaque.
        record: what made it.
    """

    picture: Tensor
    alpha: Tensor | None
    record: PictureRecord

    def save(self, path: str | Path) -> Path:
        """Write the picture; as a PNG file with its record. Raises as `inst.save_picture` does."""
        return save_picture(self.picture, path, self.alpha, self.record.texts())


PaintingRun = Generator[SamplingStep, Tensor | None, Painted]
"""Yields the steps of `inst.transfer` or `inst.generate`, and returns the picture with its record."""


def paint(
    backbone: Backbone,
    styles: Mapping[str, Style],
    settings: Mapping[str, Any],
    *,
    photo: Photo | None = None,
    mask: tuple[Tensor, SourceFile] | None = None,
    control: tuple[Control, ControlRecord] | None = None,
    command: str | None = None,
) -> PaintingRun:
    """Make one picture and its record: of a photo by `inst.transfer`, else of a prompt by `inst.generate`.

    Args:
        backbone: the frozen model.
        styles: by placeholder.
        settings: the other arguments of that function, as plain values; among them one seed.
        photo: its opacity goes into the picture.
        mask: [H, W] in [0, 1], and the file that it came from.
        control: the structure control, and what tells it from others.
        command: what the record calls the making; None is the function's name.

    Raises:
        UsageError: an argument that the function cannot use, before anything is computed.
    """
    more = {**settings, "control": None if control is None else control[0]}
    if photo is None:
        made = generate(backbone, style=styles, **more)
    else:
        made = transfer(backbone, photo, styles, mask=None if mask is None else mask[0], **more)
    function = generate if photo is None else transfer
    tone = settings.get("tone", inspect.signature(function).parameters["tone"].default)
    record = PictureRecord.of(
        command or function.__name__,
        backbone,
        dict(settings) if photo is None else {**settings, "flatten": photo.alpha is None},
        styles,
        photo=photo,
        mask=None if mask is None else mask[1],
        control=None if control is None else control[1],
        thumbnails=tone == "painting",
    )
    return _paint(made, photo, record)


def _paint(made: Sampling, photo: Photo | None, record: PictureRecord) -> PaintingRun:
    picture = (yield from made)[0]
    alpha = None if photo is None else photo.alpha
    height, width = picture.shape[1:]
    return Painted(picture, None if alpha is None else resize_mask(alpha, (height, width)), record)
