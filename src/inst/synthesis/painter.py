"""Make a picture together with its record, so that both can be saved in one file."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from inst.backbone.devices import copy_to
from inst.backbone.model import Backbone
from inst.files.provenance import SourceFile
from inst.pictures.reading import Photo
from inst.pictures.resizing import resize, resize_mask
from inst.pictures.writing import encode_picture, save_picture
from inst.sampling.control import Control
from inst.sampling.solvers import Sampling, SamplingStep
from inst.styles.style import Style
from inst.synthesis.from_photo import result_size, transfer
from inst.synthesis.from_prompt import generate
from inst.synthesis.plan import check_size
from inst.synthesis.record import ControlRecord, PictureRecord
from inst.synthesis.references import uses_paintings
from inst.synthesis.series import Series


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

    def encode(self, path: str | Path) -> bytes:
        """Return the bytes of the file that `save` writes. Nothing is written; the ending of `path` is the format."""
        return encode_picture(self.picture, path, self.alpha, self.record.texts())

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


def fit_photo(backbone: Backbone, photo: Photo, size: int | None) -> Photo:
    """Resize a photo to the size of its result, which `paint_batch` needs. `size` is that argument of `inst.transfer`.

    The opacity keeps its size. Raises UsageError if `size` is not a positive number, or the result would be too large.
    """
    height, width = photo.picture.shape[1:]
    width, height = result_size(backbone, (height, width), size)
    check_size(backbone, (width, height))
    return replace(photo, picture=resize(copy_to(photo.picture, backbone.device), (height, width)))


def paint_batch(
    backbone: Backbone,
    styles: Mapping[str, Style],
    settings: Mapping[str, Any],
    seeds: Sequence[int],
    *,
    photos: Sequence[Photo] | None = None,
    prompts: Sequence[str] | None = None,
    series: Series | None = None,
) -> Generator[SamplingStep, Tensor | None, list[PaintedPicture]]:
    """Make several pictures and their records in one batch, as `paint` makes one.

    Args:
        backbone: the frozen model.
        styles: the styles by placeholder.
        settings: as for `paint`, without seed; for `inst.generate` also without prompt.
        seeds: the seed of each picture.
        photos: the photos for `inst.transfer`, from `fit_photo`, all of one size.
        prompts: the prompts for `inst.generate`, instead of photos.
        series: what the batches of one style share (`inst.synthesis.series`); for photos only.

    Raises:
        UsageError: the function cannot use an argument. It is raised before anything is computed.
    """
    if photos is None:
        prompts = list(prompts or ())
        sampling = generate(backbone, prompts, styles, seed=list(seeds), **settings)
        each = [{"prompt": text, **settings, "seed": seed} for text, seed in zip(prompts, seeds, strict=True)]
        sources: Sequence[Photo | None] = [None] * len(prompts)
    else:
        size = min(photos[0].picture.shape[1:])
        sampling = transfer(backbone, photos, styles, seed=list(seeds), series=series, **{**settings, "size": size})
        each = [
            {**settings, "seed": seed, "flatten": photo.alpha is None}
            for photo, seed in zip(photos, seeds, strict=True)
        ]
        sources = photos
    function = generate if photos is None else transfer
    paintings = _takes_from_paintings(function, settings)
    records = [
        PictureRecord.of(function.__name__, backbone, own, styles, photo=photo, paintings=paintings)
        for own, photo in zip(each, sources, strict=True)
    ]
    return _paint_batch(sampling, sources, records)


def _paint_batch(
    sampling: Sampling, photos: Sequence[Photo | None], records: Sequence[PictureRecord]
) -> Generator[SamplingStep, Tensor | None, list[PaintedPicture]]:
    pictures = yield from sampling
    return [_painted(picture, photo, record) for picture, photo, record in zip(pictures, photos, records, strict=True)]


def _takes_from_paintings(function: Callable[..., Sampling], settings: Mapping[str, Any]) -> bool:
    """Return whether `inst.transfer` or `inst.generate` uses the paintings of the styles with these arguments."""
    parameters = inspect.signature(function).parameters
    return uses_paintings(*(settings.get(name, parameters[name].default) for name in ("tone", "style_attention")))


def _paint(sampling: Sampling, photo: Photo | None, record: PictureRecord) -> PaintingRun:
    return _painted((yield from sampling)[0], photo, record)


def _painted(picture: Tensor, photo: Photo | None, record: PictureRecord) -> PaintedPicture:
    alpha = None if photo is None else photo.alpha
    height, width = picture.shape[1:]
    return PaintedPicture(picture, None if alpha is None else resize_mask(alpha, (height, width)), record)
