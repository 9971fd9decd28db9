"""Pictures with known colours, to write and to read again."""

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

# Four quarters of four colours make every rotation and flip visible.
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


def png_bytes(width: int, height: int, depth: int, colour_type: int, rows: np.ndarray) -> bytes:
    """Return a PNG of a kind that Pillow does not write: 16-bit colour, or a wrong size in the header."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def swapped_primaries_profile() -> bytes:
    """Return the sRGB profile with the tags of its red and blue colorants exchanged."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    (count,) = struct.unpack_from(">I", profile, 128)
    tags = {bytes(profile[132 + 12 * i : 136 + 12 * i]): 132 + 12 * i for i in range(count)}
    profile[tags[b"rXYZ"] : tags[b"rXYZ"] + 4], profile[tags[b"bXYZ"] : tags[b"bXYZ"] + 4] = b"bXYZ", b"rXYZ"
    return bytes(profile)


def linear_grey_profile() -> bytes:
    """Return a profile of linear grey levels. Pillow cannot make a profile for grey."""
    white = struct.pack(">3i", 0xF6D6, 0x10000, 0xD32D)
    tags = {b"wtpt": b"XYZ \0\0\0\0" + white, b"kTRC": b"curv\0\0\0\0" + struct.pack(">IH", 1, 0x100) + b"\0\0"}
    table, body, place = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        table += name + struct.pack(">II", place + len(body), len(content))
        body += content
    header = (
        struct.pack(">I4xI4s4s4s12x4s28x", place + len(body), 0x02100000, b"mntr", b"GRAY", b"XYZ ", b"acsp") + white
    )
    return header.ljust(128, b"\0") + table + body
