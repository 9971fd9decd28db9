"""From whatever a picture file holds to 8-bit sRGB, and what of it is transparent."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageCms

from inst.errors import InstError

_SRGB = ImageCms.createProfile("sRGB")


def to_srgb(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Split an image of any mode into sRGB colours (mode RGB) and opacity (mode L, 255 = opaque).

    An embedded colour profile is converted; without one, or with a broken one, the numbers are taken for sRGB. The
    opacity is None where every pixel is opaque. The colours are not multiplied by it.

    Raises:
        InstError: 32 bits a channel.
    """
    colours, alpha = split_alpha(image)
    colours = _apply_profile(colours)
    colours.info = {}  # the old profile, which no longer holds, and whatever else Pillow would write out again
    return colours, alpha


def split_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Split an image into colours as they are stored, at most 8 bits a channel, and opacity (None: all opaque)."""
    if image.mode == "F" or (image.mode == "I" and image.format != "PNG"):
        raise InstError("has 32 bits a channel, whose white is unknown", "export it with 8 or 16 bits")
    if image.mode.startswith("I"):
        image = _reduce_to_8_bits(image)
    if not image.has_transparency_data:
        return image, None
    alpha = image.convert("RGBA").getchannel("A")
    colours = image.convert("L" if image.mode in ("L", "LA", "1") else "RGB")  # a grey profile fits grey levels only
    colours.info["icc_profile"] = image.info.get("icc_profile")
    return colours, None if alpha.getextrema() == (255, 255) else alpha


def flatten(colours: Image.Image, alpha: Image.Image | None) -> Image.Image:
    """Lay colours over white."""
    if alpha is None:
        return colours
    white = Image.new("RGB", colours.size, "white")
    white.paste(colours, mask=alpha)
    return white


def extend(colours: Image.Image, alpha: Image.Image) -> Image.Image:
    """Let the colours go on where nothing shows, so that no other colour gets into their edges when they are resized.

    Each hidden pixel gets the mean colour of the smallest block around it, of 2, 4, 8, ... pixels a side, in which
    something shows, interpolated between blocks. What shows at all stays as it is. Where nothing does, all is white.

    Args:
        colours: mode RGB.
        alpha: the opacity, mode L, of the same size.
    """
    shows = [0] + [255] * 255
    level = colours.convert("RGB")
    level.putalpha(alpha.point(shows))
    if level.getchannel("A").getbbox() is None:
        return Image.new("RGB", colours.size, "white")
    levels = [level]
    while max(levels[-1].size) > 1:
        level = levels[-1].reduce(2)  # the mean by opacity
        level.putalpha(level.getchannel("A").point(shows))
        levels.append(level)
    extended = levels.pop()
    for level in reversed(levels):
        extended = Image.alpha_composite(extended.resize(level.size, Image.Resampling.BILINEAR), level)
    return extended.convert("RGB")


def _reduce_to_8_bits(image: Image.Image) -> Image.Image:
    """16-bit grey -> 8-bit grey: 65535 becomes 255. Pillow's own conversion clips at 255 instead."""
    levels = (np.asarray(image).astype(np.uint32) * 255 + 32767) // 65535
    reduced = Image.fromarray(levels.astype(np.uint8))
    reduced.info = dict(image.info)
    reduced.info.pop("transparency", None)  # a 16-bit level
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
