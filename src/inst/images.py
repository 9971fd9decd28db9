"""Reading and writing pictures. Nothing else in the package opens a picture file.

Whatever a file holds, what comes out is upright, sRGB, opaque, 8 bits a channel; as a tensor [3, H, W] in [-1, 1].
"""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError
from torch import Tensor

from inst.errors import InstError

_SRGB = ImageCms.createProfile("sRGB")


def read_picture(path: str | Path) -> Tensor:
    """Read a picture file into [3, H, W] float32 in [-1, 1]. Raises InstError as `open_picture` does."""
    return to_tensor(open_picture(path))


def open_picture(path: str | Path) -> Image.Image:
    """Read a picture file into an sRGB image of mode RGB.

    EXIF orientation is applied, an embedded colour profile converted, transparency flattened on white, 16 bits reduced
    to 8, CMYK, grey and palettes converted. Of an animation, the first frame is taken.

    Raises:
        InstError: the file is missing, empty, truncated, no picture, or too large to be harmless (Pillow's limit of 179
            million pixels).
    """
    path = Path(path)
    try:
        if path.stat().st_size == 0:
            raise InstError(f"{path} is empty (0 bytes): copy or export the picture again.")
        with warnings.catch_warnings():
            # Pillow warns of large pictures, which cameras do make (it refuses those of twice that size), and of
            # damaged details that do not matter here.
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                image.load()
                return _to_srgb(ImageOps.exif_transpose(image))
    except InstError as error:
        raise InstError(str(error) if str(path) in str(error) else f"{path} {error}") from None
    except FileNotFoundError:
        raise InstError(f"{path}: no such file.") from None
    except IsADirectoryError:
        raise InstError(f"{path} is a folder: give a picture file.") from None
    except PermissionError:
        raise InstError(f"{path} may not be read: change its permissions.") from None
    except UnidentifiedImageError:
        raise InstError(f"{path} is no picture in a known format: export it as PNG or JPEG.") from None
    except Image.DecompressionBombError:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        raise InstError(f"{path} has more than {limit} million pixels: make it smaller.") from None
    except MemoryError:
        raise InstError(f"{path} does not fit into memory: make it smaller.") from None
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error and more over broken files
        reason = str(error).strip().split("\n")[0]
        raise InstError(f"{path} is damaged ({reason}): copy or export the picture again.") from error


def to_tensor(image: Image.Image) -> Tensor:
    """RGB image -> [3, H, W] float32 in [-1, 1]."""
    pixels = torch.from_numpy(np.array(image.convert("RGB")))
    return pixels.permute(2, 0, 1).contiguous().float() / 127.5 - 1


def to_image(picture: Tensor) -> Image.Image:
    """[3, H, W] in [-1, 1] (clamped) -> RGB image; the exact inverse of `to_tensor`.

    Raises:
        InstError: the picture is not finite, which half precision can cause.
    """
    if not picture.isfinite().all():
        raise InstError('The picture holds values that are not finite: load the backbone with dtype "float32".')
    levels = ((picture.detach().float().clamp(-1, 1) + 1) * 127.5).round().to("cpu", torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).contiguous().numpy())


def save_png(picture: Tensor | Image.Image, path: str | Path) -> Path:
    """Write [3, H, W] in [-1, 1], or an image, as a PNG file: complete, or not at all.

    Raises:
        InstError: the folder does not exist or may not be written to, or the disk is full.
    """
    path = Path(path)
    image = to_image(picture) if isinstance(picture, Tensor) else picture
    encoded = io.BytesIO()
    image.save(encoded, format="PNG")
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with unfinished.open("wb") as file:
            file.write(encoded.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except FileNotFoundError:
        raise InstError(f"{path} cannot be written: the folder {path.parent} does not exist.") from None
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise InstError(f"{path} cannot be written ({error.strerror}): choose another place or make room.") from None
    return path


def _to_srgb(image: Image.Image) -> Image.Image:
    if image.mode == "F" or (image.mode == "I" and image.format != "PNG"):
        raise InstError("has 32 bits a channel, whose white is unknown: export it with 8 or 16 bits.")
    if image.mode.startswith("I"):
        image = _reduce_to_8_bits(image)

    alpha = None
    if image.has_transparency_data:
        profile = image.info.get("icc_profile")
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
        image = image.convert("RGB")
        image.info["icc_profile"] = profile
    image = _apply_profile(image)
    if alpha is not None:
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=alpha)
        image = white
    return image


def _reduce_to_8_bits(image: Image.Image) -> Image.Image:
    """16-bit grey -> 8-bit grey: 65535 becomes 255. Pillow's own conversion clips at 255 instead."""
    levels = (np.asarray(image).astype(np.uint32) * 255 + 32767) // 65535
    reduced = Image.fromarray(levels.astype(np.uint8))
    reduced.info = dict(image.info)
    reduced.info.pop("transparency", None)  # a 16-bit level
    return reduced


def _apply_profile(image: Image.Image) -> Image.Image:
    """Convert to sRGB by the embedded profile; without one, or with a broken or unfitting one, as if it were sRGB."""
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
