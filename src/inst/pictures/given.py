"""Convert pictures of any type (path, PIL image, array, tensor) to tensors, for all public functions of the package."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from inst.arguments import check_path, check_type, with_article
from inst.errors import InstError, UsageError
from inst.files.listing import pictures_of
from inst.pictures.masks import mask_of, read_mask
from inst.pictures.opening import translate_errors
from inst.pictures.reading import Photo, read_image, read_painting
from inst.pictures.resizing import fit_size, resize
from inst.pictures.srgb import upright
from inst.pictures.stored import PAINTING_SIDES, encode_painting

Picture = str | os.PathLike[str] | Image.Image | np.ndarray[Any, Any] | Tensor | Photo
"""A picture of any type:

- the path of a file, or a PIL image (8 or 16 bits per channel): it is turned upright, converted to sRGB and laid over
  white;
- an array [H, W, 3], [H, W, 4], [H, W, 1] or [H, W] (grey): uint8 from 0 to 255, or floating point from 0 to 1;
- a tensor [3, H, W]: floating point from -1 to 1, as this package returns it, or uint8 from 0 to 255;
- a `Photo`; its opacity is ignored.
"""

Mask = str | os.PathLike[str] | Image.Image | np.ndarray[Any, Any] | Tensor
"""A mask of any type: the path of a file, a PIL image, or an array or tensor [H, W] in [0, 1] or
uint8 (levels from 0 to 255, or a map of the labels 0 and 1)."""

FORMS = (str, os.PathLike, Image.Image, np.ndarray, Tensor, Photo)
"""The types of `Picture`."""

KEPT_BYTES = 2**28
"""Total size of the paintings that stay in memory while they are learned from: 16 of 1,024 x 1,365 pixels."""


def to_photo(given: Picture, what: str = "photo", reduce_to: int | None = None) -> Photo:
    """Convert one picture to a `Photo`.

    Args:
        given: the picture.
        what: its name in messages.
        reduce_to: for files and PIL images, as for `read_photo`.

    Raises:
        UsageError: the picture is not a `Picture`, or its shape or its values are wrong.
        InstError: the file cannot be read.
    """
    if isinstance(given, Painting):
        return Photo(given.picture, None, given.name, given.sha256)
    if isinstance(given, Photo):
        return replace(given, picture=to_photo(given.picture, what).picture)
    if isinstance(given, str | os.PathLike):
        return read_painting(given, reduce_to)
    if isinstance(given, Image.Image):
        return read_image(given, f"The {what}", reduce_to)
    if isinstance(given, np.ndarray):
        return Photo(_read_array(given, what))
    check_type(with_article(what), given, Tensor, "give a path, a PIL image, an array, a tensor or an inst.Photo")
    picture = _read_tensor(given, what)
    if picture.dim() != 3:
        raise UsageError(
            f"{with_article(what)} of the shape {list(given.shape)} cannot be used", "give one picture [3, H, W]"
        )
    return Photo(picture)


def to_photos(given: Picture | Sequence[Picture], what: str = "photo", reduce_to: int | None = None) -> list[Photo]:
    """Convert one picture or several to a list: a sequence of pictures, a tensor [B, 3, H, W] or array [B, H, W, 3].

    `what` and `reduce_to` are as for `to_photo`.

    Raises:
        UsageError: there is no picture, or an error of `to_photo`.
        InstError: a file cannot be read.
    """
    return [to_photo(picture, what, reduce_to) for picture in _to_list(given, what)]


def _to_list(given: Picture | Sequence[Picture], what: str) -> Sequence[Picture]:
    if isinstance(given, Tensor | np.ndarray) and given.ndim == 4:
        given = list(given)
    pictures = [given] if not isinstance(given, Sequence) or isinstance(given, str | bytes) else given
    if not pictures:
        raise UsageError(f"No {what} is given", "give at least one")
    return pictures


class Painting(Photo):
    """A painting in the size that learning needs. It is in memory, or is read again each time that it is looked at.

    Attributes:
        size: (height, width) of the picture.
        encoded: the larger picture that a style keeps (`inst.pictures.stored.encode_painting`); empty if it keeps none.
    """

    size: tuple[int, int]
    encoded: bytes

    def __init__(self, read: Tensor | Callable[[], Photo], photo: Photo, encoded: bytes) -> None:
        height, width = photo.picture.shape[-2:]
        own = {"size": (height, width), "encoded": encoded, "_read": read}
        for name, value in {"alpha": None, "name": photo.name, "sha256": photo.sha256, **own}.items():
            object.__setattr__(self, name, value)

    @property
    def picture(self) -> Tensor:
        """[3, H, W] float32 in [-1, 1]. Raises InstError if its file has changed or is gone."""
        read: Tensor | Callable[[], Photo] = self._read  # type: ignore[attr-defined]
        if isinstance(read, Tensor):
            return read
        photo = read()
        if photo.sha256 != self.sha256:
            raise InstError(f"The file of the painting {self.name} has changed", "start again")
        return photo.picture


def to_paintings(
    given: Picture | Sequence[Picture],
    short_side: int | None = None,
    *,
    keep: bool = True,
    kept_bytes: int = KEPT_BYTES,
) -> list[Painting]:
    """Convert paintings to a list as `to_photos` does. The path of a folder stands for all pictures in it.

    Each painting is reduced when it is read. Of many, only the encoded pictures stay in memory.

    Args:
        given: the paintings.
        short_side: the short side in pixels to which larger paintings are reduced; None reduces none.
        keep: encode the picture that a style keeps.
        kept_bytes: size of the paintings that stay in memory. The others are read again when they are looked at.

    Raises:
        UsageError, InstError: as `to_photos`; a folder contains no picture.
    """
    files: Any = given
    if isinstance(given, str | os.PathLike):
        check_path("A painting", given)
        files = pictures_of([Path(given)])
    paintings: list[Painting] = []
    for one in _to_list(files, "painting"):
        if isinstance(one, Painting) and bool(one.encoded) == keep:
            paintings.append(one)
            continue
        read = partial(to_photo, one, "painting", None if short_side is None else max(short_side, PAINTING_SIDES[0]))
        photo = read()
        encoded = encode_painting(photo.picture) if keep else b""
        small = _reduced(photo, short_side)
        kept_bytes -= small.picture.nbytes
        # A pipe is read once.
        if kept_bytes >= 0 or (isinstance(one, str | os.PathLike) and not os.path.isfile(one)):
            paintings.append(Painting(small.picture, small, encoded))
        else:
            paintings.append(Painting(partial(_read_reduced, read, short_side), small, encoded))
    return paintings


def _read_reduced(read: Callable[[], Photo], short_side: int | None) -> Photo:
    return _reduced(read(), short_side)


def _reduced(photo: Photo, short_side: int | None) -> Photo:
    height, width = photo.picture.shape[-2:]
    if short_side is None or min(height, width) <= short_side:
        return photo
    width, height = fit_size(width, height, short_side)
    return replace(photo, picture=resize(photo.picture, (height, width)))


def to_batch(given: Picture | Sequence[Picture], what: str = "photo", reduce_to: int | None = None) -> Tensor:
    """Convert one picture, or several of the same size, to a batch [B, 3, H, W] in [-1, 1].

    `what`, `reduce_to` and the errors are those of `to_photos`.
    """
    if isinstance(given, Tensor) and given.dim() == 4 and len(given):
        return _read_tensor(given, what)
    pictures = [photo.picture for photo in to_photos(given, what, reduce_to)]
    sizes = sorted({(picture.shape[2], picture.shape[1]) for picture in pictures})
    if len(sizes) > 1:
        (width, height), (other_width, other_height) = sizes[:2]
        raise UsageError(
            f"{what.capitalize()}s of {width} x {height} and {other_width} x {other_height} pixels cannot form a batch",
            "give only pictures of the same size",
        )
    return torch.stack(pictures)


def to_mask(given: Mask, size: tuple[int, int]) -> Tensor:
    """Convert a mask to [H, W] in [0, 1]; the style is applied where it is 1. Takes a path, PIL image, array or tensor.

    A mask from a file or PIL image is resized to `size` (height, width) if it has the same proportions.

    Raises:
        UsageError: the mask has another type, does not fit, or is 0 everywhere.
        InstError: the file cannot be read.

    Warns:
        InstWarning: see `read_mask`.
    """
    height, width = size
    if isinstance(given, str | os.PathLike):
        given = read_mask(given, size)
    elif isinstance(given, Image.Image):
        with translate_errors("The mask"):
            given = mask_of(upright(given), size)
    if isinstance(given, np.ndarray):
        if given.dtype.kind not in "biuf":
            raise UsageError(
                "The mask's values cannot be used", "give numbers from 0 (the photo stays) to 1 (the style)"
            )
        given = torch.from_numpy(given.astype(np.uint8 if given.dtype == np.uint8 else np.float32))
    check_type("A mask", given, Tensor, "give a path, a PIL image, an array or a tensor")
    if given.dtype == torch.uint8:
        given = given.float() / (255 if (given > 1).any() else 1)  # levels, or a map of the labels 0 and 1
    if tuple(given.shape) != (height, width):
        raise UsageError(
            f"A mask of the shape {list(given.shape)} does not fit a photo of [{height}, {width}] (height, width)",
            "resize it to the photo's size",
        )
    if given.is_complex() or not ((given >= 0) & (given <= 1)).all():  # also false for NaN
        raise UsageError(
            "The mask's values cannot be used", "give numbers from 0 (keep the photo) to 1 (apply the style)"
        )
    if not given.any():
        raise UsageError(
            "The mask is black everywhere, so nothing would be repainted", "paint white where the style is applied"
        )
    mask: Tensor = given
    return mask


def _read_tensor(picture: Tensor, what: str) -> Tensor:
    """Convert a picture [3, H, W] or a batch [B, 3, H, W] to float32 in [-1, 1]. Raises UsageError if it is neither."""
    if picture.dim() not in (3, 4) or picture.shape[-3] != 3 or 0 in picture.shape:
        raise UsageError(
            f"{with_article(what)} of the shape {list(picture.shape)} cannot be used", "give a picture [3, H, W]"
        )
    if picture.dtype == torch.uint8:
        return picture.float() / 127.5 - 1
    if not picture.is_floating_point() or not (picture.abs() <= 1).all():  # False for NaN, so NaN is refused
        raise UsageError(
            f"The {what}'s values cannot be used", "give floating point numbers from -1 to 1, or uint8 from 0 to 255"
        )
    return picture.detach().float()


def _read_array(given: np.ndarray[Any, Any], what: str) -> Tensor:
    if given.ndim not in (2, 3) or (given.ndim == 3 and given.shape[2] not in (1, 3, 4)) or 0 in given.shape:
        raise UsageError(
            f"{with_article(what)} of the shape {list(given.shape)} cannot be used",
            "give an array [H, W, 3], or a tensor [3, H, W]",
        )
    if given.dtype != np.uint8 and not (given.dtype.kind == "f" and ((given >= 0) & (given <= 1)).all()):
        raise UsageError(
            f"The {what}'s values cannot be used", "give uint8 from 0 to 255, or floating point numbers from 0 to 1"
        )
    levels = given if given.ndim == 3 else given[:, :, None]
    values = torch.from_numpy(levels.astype(np.float32)) / (255 if given.dtype == np.uint8 else 1)
    values = values.permute(2, 0, 1)
    if len(values) == 4:  # lay over white
        values = values[:3] * values[3:] + 1 - values[3:]
    return (values.expand(3, -1, -1) * 2 - 1).contiguous()
