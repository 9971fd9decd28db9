"""Convert images of any mode to upright images, and to 8-bit sRGB colours and opacity."""

from __future__ import annotations

import io

import numpy as np
from PIL import ExifTags, Image, ImageCms, TiffImagePlugin

from inst.errors import InstError
from inst.pictures.resizing import strips

_SRGB = ImageCms.createProfile("sRGB")
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""How an image is turned upright, by its EXIF orientation."""
_BITS, _PHOTOMETRIC, _WHITE_IS_ZERO = TiffImagePlugin.BITSPERSAMPLE, TiffImagePlugin.PHOTOMETRIC_INTERPRETATION, 0


def upright(image: Image.Image) -> Image.Image:
    """Return an image as it was opened, turned as its EXIF orientation says, with at most 8 bits per channel.

    Only the pixels are turned. Pillow's own function writes the EXIF data again, which fails for some values that
    cameras write. The image itself does not change.

    Raises:
        InstError: the image has 32 bits per channel.
    """
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # EXIF data may be broken in any way, and the pixels are fine
        turn = None
    levels = _reduce_to_8_bits(image)
    return levels if turn is None else levels.transpose(turn)


def to_srgb(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Split an image of any mode into sRGB colours (mode RGB) and opacity (mode L, 255 = opaque).

    An embedded colour profile is converted. If there is none, or it is broken, the values count as sRGB. The opacity is
    None if every pixel is opaque. The colours are not multiplied by it. The image is one of `upright`.
    """
    colours, alpha = split_alpha(image)
    colours = _apply_profile(colours)
    colours.info = {}  # drop the old profile, which is now wrong, and other data that Pillow would write again
    return colours, alpha


def split_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Split an image of `upright` into stored colours and opacity (None if every pixel is opaque)."""
    if not image.has_transparency_data:
        return image, None
    alpha = image.convert("RGBA").getchannel("A")
    colours = image.convert("L" if image.mode in ("L", "LA", "1") else "RGB")  # a grey profile fits only grey levels
    colours.info["icc_profile"] = image.info.get("icc_profile")
    return colours, None if alpha.getextrema() == (255, 255) else alpha


def flatten(colours: Image.Image, alpha: Image.Image | None) -> Image.Image:
    """Lay the colours over white."""
    if alpha is None:
        return colours
    white = Image.new("RGB", colours.size, "white")
    white.paste(colours, mask=alpha)
    return white


def extend(colours: Image.Image, alpha: Image.Image) -> Image.Image:
    """Fill transparent pixels with nearby visible colours, so that resizing mixes no hidden colour into the edges.

    Each transparent pixel gets the mean colour of the smallest block around it, with a side of 2, 4, 8, ... pixels,
    that contains a visible pixel. Colours are interpolated between blocks. Visible pixels do not change. An image
    without visible pixels becomes white.

    Args:
        colours: mode RGB.
        alpha: the opacity, mode L, of the same size.
    """
    is_visible = [0] + [255] * 255
    level = colours.convert("RGB")
    level.putalpha(alpha.point(is_visible))
    if level.getchannel("A").getbbox() is None:
        return Image.new("RGB", colours.size, "white")
    levels = [level]
    while max(levels[-1].size) > 1:
        level = levels[-1].reduce(2)  # the mean, weighted by opacity
        level.putalpha(level.getchannel("A").point(is_visible))
        levels.append(level)
    extended = levels.pop()
    for level in reversed(levels):
        extended = Image.alpha_composite(extended.resize(level.size, Image.Resampling.BILINEAR), level)
    return extended.convert("RGB")


def _reduce_to_8_bits(image: Image.Image) -> Image.Image:
    """Convert grey of more than 8 bits to 8-bit grey: white becomes 255. Pillow's own conversion would clip at 255."""
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        raise InstError("has 32 bits per channel, so its white level is unknown", "export it with 8 or 16 bits")
    if not image.mode.startswith("I"):
        return image
    tags = getattr(image, "tag_v2", {})  # of a TIFF file; Pillow does not apply these two to more than 8 bits
    white = 2 ** tags.get(_BITS, (16,))[0] - 1
    levels = np.empty((image.height, image.width), np.uint8)
    top = 0
    for part in strips(image):
        values = (np.asarray(part).astype(np.uint32).clip(max=white) * 255 + white // 2) // white
        levels[top : top + part.height] = 255 - values if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else values
        top += part.height
    reduced = Image.fromarray(levels)
    reduced.info = dict(image.info)
    reduced.info.pop("transparency", None)  # it is a 16-bit level
    return reduced


def _apply_profile(image: Image.Image) -> Image.Image:
    embedded = image.info.get("icc_profile")
    if embedded:
        try:
            profile = ImageCms.ImageCmsProfile(io.BytesIO(embedded))
            mode = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}.get(profile.profile.xcolor_space.strip())
            if mode == "RGB" and image.mode in ("L", "P", "1"):
                image = image.convert("RGB")
            if mode == image.mode:
                converted = ImageCms.profileToProfile(image, profile, _SRGB, outputMode="RGB")
                assert converted is not None  # None only with inPlace
                return converted
        except (ImageCms.PyCMSError, OSError):
            pass
    return image.convert("RGB")
