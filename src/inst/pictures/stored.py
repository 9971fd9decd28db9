"""The pictures of paintings that a style file holds: WebP files of a bounded size."""

from __future__ import annotations

import io

from PIL import Image
from torch import Tensor

from inst.pictures.opening import decoded, translate_errors
from inst.pictures.resizing import resize
from inst.pictures.srgb import flatten, to_srgb
from inst.pictures.tensors import to_image, to_tensor

PAINTING_SIDES = 1024, 4096
"""Short and long side in pixels of the largest painting in a style file."""


def encode_painting(picture: Tensor, short_side: int = PAINTING_SIDES[0], long_side: int = PAINTING_SIDES[1]) -> bytes:
    """Encode [3, H, W] in [-1, 1] as WebP, reduced to these sides in pixels at most; a smaller picture keeps its size.

    At quality 90, a painting of 1,024 pixels takes 0.1 to 0.4 MB.
    """
    height, width = picture.shape[-2:]
    scale = min(1.0, short_side / min(height, width), long_side / max(height, width))
    small = resize(picture, (max(1, round(height * scale)), max(1, round(width * scale))))
    encoded = io.BytesIO()
    to_image(small).save(encoded, format="WEBP", quality=90, method=4)
    return encoded.getvalue()


def decode_picture(data: bytes, name: str) -> Tensor:
    """Decode the bytes of the painting of a style to [3, H, W] float32 in [-1, 1].

    Raises:
        InstError: an error of `open_picture`, with `name` as the picture's name in the message; or the picture is
            larger than `encode_painting` makes it.
    """
    short_side, long_side = PAINTING_SIDES
    with translate_errors(name), decoded(io.BytesIO(data), most_pixels=short_side * long_side) as (image, _):
        return to_tensor(flatten(*to_srgb(image)))


def decode_image(data: bytes) -> Image.Image:
    """Decode the bytes of a picture file that this package wrote. Raises InstError as `decode_picture`."""
    return to_image(decode_picture(data, "The picture"))
