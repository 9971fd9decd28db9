"""Write pictures as PNG, JPEG or WebP files."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

from PIL import Image, PngImagePlugin
from torch import Tensor

from inst.arguments import check_path, check_type
from inst.errors import InstError, UsageError
from inst.files.writing import write_bytes_atomically
from inst.pictures.opening import translate_errors
from inst.pictures.reading import Photo
from inst.pictures.srgb import flatten, to_srgb, upright
from inst.pictures.tensors import alpha_image, to_image

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
"""The formats in which pictures can be written, by the ending of the file name."""


def picture_format(path: str | Path) -> str:
    """Return Pillow's name of the format for a file's ending. Raises UsageError for an unknown ending."""
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        ending = f"the ending {path.suffix}" if path.suffix else "no ending"
        raise UsageError(f"{path} has {ending}", f"use a file name that ends in {', '.join(FORMATS)}")
    return FORMATS[path.suffix.lower()]


def save_picture(
    picture: Tensor | Image.Image | Photo,
    path: str | Path,
    alpha: Tensor | None = None,
    texts: Mapping[str, str] | None = None,
) -> Path:
    """Write a picture in the format of the file's ending, completely or not at all.

    PNG is lossless. Only PNG stores `texts`, the record of how the picture was made; `inst repeat` cannot make the
    picture of a JPEG or WebP file again. WebP stores `alpha`; for JPEG the picture is laid over white. Both are written
    at quality 95, JPEG without chroma subsampling.

    Args:
        picture: [3, H, W] or [1, 3, H, W] in [-1, 1], a PIL image of any mode, or a `Photo` with its opacity.
        path: ends in .png, .jpg, .jpeg or .webp.
        alpha: [H, W] in [0, 1], 1 = opaque.
        texts: texts to store in a PNG file, by keyword.

    Raises:
        UsageError: the file has another ending.
        InstError: the folder does not exist or is not writable, or the disk is full.
    """
    check_path("A picture file", path)
    return write_bytes_atomically(path, encode_picture(picture, path, alpha, texts))


def save_png(
    picture: Tensor | Image.Image | Photo,
    path: str | Path,
    alpha: Tensor | None = None,
    texts: Mapping[str, str] | None = None,
) -> Path:
    """Write [3, H, W] in [-1, 1], or an image, as a PNG file. Arguments and errors as `save_picture`."""
    image = _to_image(picture, alpha)
    return write_bytes_atomically(path, _encode_png(image, texts or {}))


def encode_picture(
    picture: Tensor | Image.Image | Photo,
    path: str | Path,
    alpha: Tensor | None = None,
    texts: Mapping[str, str] | None = None,
) -> bytes:
    """Return the bytes of the file that `save_picture` would write. The arguments and errors are the same."""
    kind = picture_format(path)
    image = _to_image(picture, alpha)
    if kind == "PNG":
        return _encode_png(image, texts or {})
    if kind == "JPEG":
        image = flatten(*to_srgb(image))
    encoded = io.BytesIO()
    try:
        image.save(encoded, format=kind, quality=95, **({"subsampling": 0} if kind == "JPEG" else {}))
    except (ValueError, OSError) as error:  # the picture is larger than the format allows
        raise InstError(f"{path} cannot be written as {kind} ({error})", "choose the ending .png") from None
    return encoded.getvalue()


def _to_image(picture: Tensor | Image.Image | Photo, alpha: Tensor | None) -> Image.Image:
    """Return an upright sRGB image, RGB or RGBA, from what `save_picture` takes."""
    check_type("A picture", picture, (Tensor, Image.Image, Photo), "give a tensor, a PIL image or an inst.Photo")
    if isinstance(picture, Photo):
        return to_image(picture.picture, picture.alpha if alpha is None else alpha)
    if isinstance(picture, Tensor):
        return to_image(picture, alpha)
    with translate_errors("The picture"):
        colours, opacity = to_srgb(upright(picture))
        if alpha is not None:
            colours.putalpha(alpha_image(alpha))
        elif opacity is not None:
            colours.putalpha(opacity)
        return colours


def _encode_png(image: Image.Image, texts: Mapping[str, str]) -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add(b"sRGB", b"\0")
    for keyword, text in texts.items():
        # Pillow does not open a file with a compressed text larger than this; an uncompressed text may be larger.
        info.add_text(keyword, text, zip=len(text.encode()) <= PngImagePlugin.MAX_TEXT_CHUNK)
    encoded = io.BytesIO()
    image.save(encoded, format="PNG", pnginfo=info, icc_profile=None)
    return encoded.getvalue()
