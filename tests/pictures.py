"""Pictures with colours that are known, to write into files and to find again."""

import struct
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

# Four quarters of four colours: any turn or flip shows.
RED, GREEN, BLUE, YELLOW = (220, 30, 40), (20, 180, 60), (30, 50, 200), (230, 220, 50)


def quarters() -> Image.Image:
    image = Image.new("RGB", (48, 32), RED)
    image.paste(GREEN, (24, 0, 48, 16))
    image.paste(BLUE, (0, 16, 24, 32))
    image.paste(YELLOW, (24, 16, 48, 32))
    return image


def corners(image: Image.Image) -> list[tuple[int, ...]]:
    w, h = image.size
    return [image.getpixel(at) for at in ((4, 4), (w - 5, 4), (4, h - 5), (w - 5, h - 5))]


def near(found: list[tuple[int, ...]], expected: list[tuple[int, ...]], tolerance: int) -> bool:
    return bool(np.abs(np.array(found) - np.array(expected)).max() <= tolerance)


def saved(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


def swapped_primaries_profile() -> bytes:
    """sRGB's profile with the tags of its red and blue colorants exchanged."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    (count,) = struct.unpack_from(">I", profile, 128)
    tags = {bytes(profile[132 + 12 * i : 136 + 12 * i]): 132 + 12 * i for i in range(count)}
    profile[tags[b"rXYZ"] : tags[b"rXYZ"] + 4], profile[tags[b"bXYZ"] : tags[b"bXYZ"] + 4] = b"bXYZ", b"rXYZ"
    return bytes(profile)
