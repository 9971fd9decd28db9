"""The picture formats that are read, and checks of picture files that come before Pillow's.

Pillow bounds the number of pixels and the texts of a PNG file. It does not bound what a file says about its own parts:
a small file may name millions of strips, tiles or segments, each of which costs memory or time before a pixel is
decoded.
"""

from __future__ import annotations

import re
import struct
from typing import IO, Any

from inst.errors import InstError

READABLE = ("PNG", "JPEG", "WEBP", "AVIF", "JPEG2000", "TIFF", "BMP", "GIF", "PPM", "TGA")
"""The formats that are read, by Pillow's names: those of `inst.files.listing.PICTURE_ENDINGS`. No other decoder of
Pillow sees a file: some start programs (PostScript), and others are hardly ever used. TGA has no signature, so it is
last."""

MOST_BYTES = 2**30
"""Largest picture file in bytes."""

_MOST_READS = 500_000
"""How often a decoder may read from a file: it reads the parts of a file one by one. A PNG of 1 GB in parts of 8 kB
needs 400,000."""
_MOST_STRIPS = 500_000
_MOST_TILES = 4_096
_MOST_SCANS = 100
"""Scans of a JPEG file, in each of which the decoder goes through all pixels. Progressive files have about ten."""
_MARK = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
"""The marker of a segment of a JPEG file; the others have no segment, or are part of the pixels' data."""

_OTHERS = (
    (rb"%!PS|\xc5\xd0\xd3\xc6", "a PostScript file"),
    (rb"%PDF", "a PDF file"),
    (rb"(?s).{4}ftyp(hei[cxms]|hev[cxms]|mif1|msf1)", "a HEIC file"),
    (rb"(?s).{4}ftypcrx |FUJIFILMCCD-RAW|IIU\0|IIRO|MMOR", "a raw file of a camera"),
    (rb"(?s).{4}(ftyp|moov|mdat)|\x1aE\xdf\xa3|(?s:RIFF....AVI )|FLV\x01", "a film"),
    (rb"\xff\x0a|\0\0\0\x0cJXL ", "a JPEG XL file"),
    (rb"8BPS", "a Photoshop file"),
    (rb"gimp xcf", "a GIMP file"),
    (rb"v/1\x01", "an OpenEXR file"),
    (rb"#\?(RADIANCE|RGBE)", "a Radiance HDR file"),
    (rb"\0\0[\x01\x02]\0|icns", "an icon file"),
    (rb"DDS ", "a DDS file"),
    (rb"\xd7\xcd\xc6\x9a|\x01\0\0\0(?s:.{36}) EMF", "a Windows metafile"),
    (rb"(?i)(\xef\xbb\xbf)?\s*(<\?xml|<svg|<!--)", "an SVG or XML file"),
    (rb"(?i)\s*<(!doctype|html)", "a web page"),
    (rb"PK\x03\x04|\x1f\x8b|BZh|7z\xbc\xaf|\xfd7zXZ|Rar!", "an archive"),
)
"""How files begin that are taken for pictures."""


def format_of(start: bytes) -> str:
    """Return what a file is that no picture decoder reads, such as "a PDF file", by its first bytes; "" if unknown."""
    return next((name for pattern, name in _OTHERS if re.match(pattern, start)), "")


class CountedFile:
    """A binary file whose number of reads is limited, so that a file in millions of parts does not take hours."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._left = _MOST_READS

    def read(self, size: int = -1) -> bytes:
        """Read as a file does. Raises InstError after too many times."""
        self._left -= 1
        if self._left < 0:
            raise InstError("has too many parts", "export it again")
        return self._file.read(size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def check_parts(file: IO[bytes]) -> None:
    """Check how many parts a TIFF, JPEG or JPEG 2000 file has, before its decoder looks for them.

    The file is at its beginning, before and after.

    Raises:
        InstError: there are too many.
    """
    start = file.read(16)
    try:
        if start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            _check_strips(file, start)
        elif start[4:12] == b"jP  \r\n\x87\n" or start[:4] == b"\xff\x4f\xff\x51":
            _check_tiles(file, start)
        elif start[:2] == b"\xff\xd8":
            _check_scans(start + file.read())
    except struct.error:
        pass  # the decoder says what is missing
    finally:
        file.seek(0)


def _check_strips(file: IO[bytes], start: bytes) -> None:
    """Check the first directory of a TIFF or BigTIFF file."""
    order, big = ("<" if start[:2] == b"II" else ">"), start[2:4] in (b"+\0", b"\0+")
    (at,) = struct.unpack_from(f"{order}{'Q' if big else 'I'}", start, 8 if big else 4)
    entry = struct.Struct(f"{order}HHQQ" if big else f"{order}HHII")
    head = struct.Struct(f"{order}{'Q' if big else 'H'}")
    file.seek(min(at, MOST_BYTES))
    (count,) = head.unpack(file.read(head.size))
    for _ in range(min(count, 2**16)):
        _, kind, values, _ = entry.unpack(file.read(entry.size))
        if kind not in (1, 2, 6, 7) and values > _MOST_STRIPS:  # these are texts and data: bytes, that are not unpacked
            raise InstError(f"has {values:,} values for one tag", "export it again")


def _check_tiles(file: IO[bytes], start: bytes) -> None:
    """Check the size of the tiles of a JPEG 2000 file, for each of which its decoder reserves 10 kB."""
    at, kind = 0, b""
    if start[:1] == b"\0":  # a container: go to its box with the picture
        for _ in range(1_000):
            file.seek(at)
            length, kind = struct.unpack(">I4s", file.read(8))
            body = at + 8
            if length == 1:
                (length,) = struct.unpack(">Q", file.read(8))
                body += 8
            if kind == b"jp2c" or length < 8:
                break
            at += length
        if kind != b"jp2c":
            raise InstError("has no picture", "export it again")
        at = body
    file.seek(at)
    marks, _, _, right, bottom, _, _, width, height, left, top = struct.unpack(">IHHIIIIIIII", file.read(40))
    if marks == 0xFF4FFF51 and width and height:
        tiles = -(-(right - left) // width) * -(-(bottom - top) // height)
        if tiles > _MOST_TILES:
            raise InstError(f"has {tiles:,} tiles", "export it with larger ones")


def _check_scans(data: bytes) -> None:
    """Check how many scans a JPEG file has."""
    at, scans = 2, 0
    while (found := _MARK.search(data, at)) and found[0] != b"\xff\xd9":  # the end of the picture
        at = found.end() + int.from_bytes(data[found.end() : found.end() + 2])
        scans += found[0] == b"\xff\xda"
        if scans > _MOST_SCANS:
            raise InstError(f"has more than {_MOST_SCANS} scans", "export it again")
