"""Read photos and paintings.

A picture from any file is returned upright, in sRGB, with 8 bits per channel; as a tensor, [3, H, W] in [-1, 1].
"""

from __future__ import annotations

import hashlib
import io
import os
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from inst.arguments import check_path
from inst.errors import InstError, UsageError
from inst.files.git_lfs import refuse_start
from inst.files.listing import readable_name
from inst.files.provenance import SourceFile
from inst.pictures.opening import decoded, opened, source_of, translate_errors
from inst.pictures.resizing import reduced_size, resize_strips
from inst.pictures.srgb import extend, flatten, to_srgb, upright
from inst.pictures.tensors import alpha_image, to_image, to_tensor

USUAL_SIZE = 1536
"""The short side in pixels to which large photos are reduced if no size of the result is given: at least 1.5 times the
default size of every backbone.

The photo is resized again to the default size, which a command knows only when the backbone is loaded. Compared with
one resizing from 4,000 x 6,000, a pixel of a result of 512 changes by 0.03 of 255 levels (at most 0.9), of 1,024 by 0.2
(at most 3)."""


@dataclass(frozen=True, eq=False)
class Photo:
    """A picture and its source file: a photo to transfer a style to, or a painting to learn from.

    Attributes:
        picture: [3, H, W] float32 in [-1, 1].
        alpha: [H, W] float32 in [0, 1], 1 = opaque; None if every pixel is opaque. The picture is not multiplied by it.
        name: the file's base name, without folders (`readable_name`); empty if the picture does not come from a file.
        sha256: sha256 of the file's bytes, in hexadecimal; empty if the picture does not come from a file.
    """

    picture: Tensor
    alpha: Tensor | None = None
    name: str = ""
    sha256: str = ""


def read_photo(path: str | os.PathLike[str], *, flattened: bool = False, reduce_to: int | None = None) -> Photo:
    """Read a picture file, with its transparency and the hash of its bytes.

    Fully transparent pixels get the colours of the visible pixels around them, not the hidden colours of the file. So
    resizing mixes no hidden colour into the edges of the visible part.

    Args:
        path: the picture file.
        flattened: lay the picture over white, as `read_picture` does; `alpha` is then None.
        reduce_to: the short side in pixels to which a picture of more than 16 million pixels (`LARGE`) is reduced while
            it is read, which takes much less memory. A smaller picture stays as it is. None reduces none. The result is
            that of resizing the whole (bicubic, antialiased), to the bit, with two exceptions. A JPEG file is decoded
            at a half, a quarter or an eighth of its size if that is at least twice the wanted one: a pixel changes by
            0.1 to 0.2 of 255 levels, at most by 2. The colours of transparent pictures are weighted by the opacity.

    Raises:
        InstError: an error of `open_picture`.
    """
    check_path("A picture", path)
    path = Path(path)
    with opened(path, reduce_to) as (file, image, size):
        return _to_photo(image, size, source_of(path, file), flattened)


def reading_size(size: Any) -> int:
    """Return `reduce_to` for a photo whose result has the short side `size`: an argument that is not checked yet.

    It depends on nothing else, so that Python, the command line and batches make the same picture of a photo.
    """
    return int(size) if isinstance(size, Integral) and int(size) > 0 else USUAL_SIZE


def decode_photo(data: bytes, place: str, *, flattened: bool = False, reduce_to: int | None = None) -> Photo:
    """Decode the bytes of a picture file as `read_photo` reads a file.

    Args:
        data: the whole file.
        place: the path or URL of the file, for messages; the name of the photo is its last part.
        flattened, reduce_to: as for `read_photo`.

    Raises:
        InstError: an error of `open_picture`.
    """
    with translate_errors(place):
        if not data:
            raise InstError(f"{place} is empty (0 bytes)", "copy or export the picture again")
        refuse_start(Path(place), data[:64])
        with decoded(io.BytesIO(data), reduce_to) as (image, size):
            return _to_photo(image, size, SourceFile(place, hashlib.sha256(data).hexdigest()), flattened)


def _to_photo(image: Image.Image, size: tuple[int, int] | None, source: SourceFile, flattened: bool) -> Photo:
    """Convert an upright image; `size` is (width, height) to which it is reduced."""
    if size is not None and (flattened or not image.has_transparency_data):
        picture = resize_strips(image, size, lambda part: to_tensor(flatten(*to_srgb(part)))).clamp(-1, 1)
        return Photo(picture, None, source.name, source.sha256)
    colours, alpha = to_srgb(image) if size is None else _reduced(image, size)
    if alpha is None or flattened:
        return Photo(to_tensor(flatten(colours, alpha)), None, source.name, source.sha256)
    opacity = torch.from_numpy(np.array(alpha)).float() / 255
    return Photo(to_tensor(extend(colours, alpha)), opacity, source.name, source.sha256)


def _reduced(image: Image.Image, size: tuple[int, int]) -> tuple[Image.Image, Image.Image | None]:
    """Do what `to_srgb` does, and reduce colours and opacity to `size`. The colours are weighted by the opacity."""

    def weighted(part: Image.Image) -> Tensor:
        colours, alpha = to_srgb(part)
        values = to_tensor(colours)
        opacity = torch.ones_like(values[:1]) if alpha is None else torch.from_numpy(np.array(alpha))[None] / 255
        return torch.cat([values * opacity, opacity])

    *colours, opacity = resize_strips(image, size, weighted)
    alpha = alpha_image(opacity)
    is_opaque = alpha.getextrema() == (255, 255)
    return to_image(torch.stack(colours) / opacity.clamp(min=1 / 255)), None if is_opaque else alpha


def read_painting(path: str | os.PathLike[str], reduce_to: int | None = None) -> Photo:
    """Read the picture file of a painting; transparent parts are laid over white. `reduce_to` is as for `read_photo`.

    Raises:
        InstError: an error of `open_picture`.
    """
    return read_photo(path, flattened=True, reduce_to=reduce_to)


def read_image(image: Image.Image, what: str = "The picture", reduce_to: int | None = None) -> Photo:
    """Convert a PIL image of any mode as `read_painting` does a file. The image itself does not change.

    Raises:
        InstError: the image cannot be decoded; the message calls it by its file name, or `what`.
    """
    name = readable_name(Path(getattr(image, "filename", "") or "").name)
    if 0 in image.size:
        raise UsageError(f"{name or what} is {image.width} x {image.height} pixels", "give a picture with pixels")
    with translate_errors(name or what):
        turned = upright(image)
        return _to_photo(turned, reduced_size(*turned.size, reduce_to), SourceFile(name, ""), flattened=True)


def read_picture(path: str | Path) -> Tensor:
    """Read a picture file as [3, H, W] float32 in [-1, 1]. Raises InstError as `open_picture` does."""
    return to_tensor(open_picture(path))


def open_picture(path: str | Path, reduce_to: int | None = None) -> Image.Image:
    """Read a picture file as an sRGB image of mode RGB.

    The EXIF orientation is applied, an embedded colour profile is converted, transparent parts are laid over white, 16
    bits are reduced to 8, and CMYK, grey and palettes are converted. An animation gives its first frame.

    Args:
        path: the picture file.
        reduce_to: as for `read_photo`.

    Raises:
        InstError: the file is missing, empty, truncated, not a picture in one of the formats that are read
            (`inst.pictures.formats`), or larger than 1 GB or Pillow's safety limit of 179 million pixels.
    """
    check_path("A picture", path)
    with opened(Path(path), reduce_to) as (_, image, size):
        if size is None:
            return flatten(*to_srgb(image))
        return to_image(resize_strips(image, size, lambda part: to_tensor(flatten(*to_srgb(part)))))
