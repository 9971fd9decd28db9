"""Make a picture together with its record, so that both can be saved in one file."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Mapping
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
from inst.synthesis.references import uses_paintings


@dataclass(frozen=True, eq=False)
class PaintedPicture:
    """A picture and its record.

    Attributes:
        picture: [3, H, W] in [-1, 1].
        alpha: [H, W] in [0, 1], the opacity of the photo; None if the photo is opaque everywhere.
        record: the settings, styles and files that made the picture.
    """

    picture: Tensor
    alpha: Tensor | None
    record: PictureRecord

    def save(self, path: str | Path) -> Path:
        """Write the picture; a PNG file also gets the record. The errors are those of `inst.save_picture`."""
        return save_picture(self.picture, path, self.alpha, self.record.texts())


PaintingRun = Generator[SamplingStep, Tensor | None, PaintedPicture]
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
    """Make one picture and its record, with `inst.transfer` if a photo is given, otherwise with `inst.generate`.

    Args:
        backbone: the frozen model.
        styles: the styles by placeholder.
        settings: the other arguments of that function as plain values, with one seed.
        photo: the photo. The picture gets its opacity.
        mask: [H, W] in [0, 1], and the file of the mask.
        control: the structure control, and its record.
        command: the command name in the record; None is the name of the function.

    Raises:
        UsageError: the function cannot use an argument. It is raised before anything is computed.
    """
    arguments = {**settings, "control": None if control is None else control[0]}
    if photo is None:
        sampling = generate(backbone, style=styles, **arguments)
    else:
        sampling = transfer(backbone, photo, styles, mask=None if mask is None else mask[0], **arguments)
    function = generate if photo is None else transfer
    record = PictureRecord.of(
        command or function.__name__,
        backbone,
        dict(settings) if photo is None else {**settings, "flatten": photo.alpha is None},
        styles,
        photo=photo,
        mask=None if mask is None else mask[1],
        control=None if control is None else control[1],
        paintings=_takes_from_paintings(function, settings),
    )
    return _paint(sampling, photo, record)


def _takes_from_paintings(function: Callable[..., Sampling], settings: Mapping[str, Any]) -> bool:
    """Return whether `inst.transfer` or `inst.generate` uses the paintings of the styles with these arguments."""
    parameters = inspect.signature(function).parameters
    return uses_paintings(*(settings.get(name, parameters[name].default) for name in ("tone", "style_attention")))


def _paint(sampling: Sampling, photo: Photo | None, record: PictureRecord) -> PaintingRun:
    picture = (yield from sampling)[0]
    alpha = None if photo is None else photo.alpha
    height, width = picture.shape[1:]
    return PaintedPicture(picture, None if alpha is None else resize_mask(alpha, (height, width)), record)
