"""Find the picture files in a folder, and make names of files readable."""

from __future__ import annotations

import os
import re
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from inst.errors import InstError, InstWarning
from inst.files.holding import temporary_folder

PICTURE_ENDINGS = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".avif", ".jp2", ".tif", ".tiff", ".bmp", ".gif"),
    *(".pgm", ".ppm", ".pnm", ".tga"),
)
"""A file in a folder counts as a picture if its name has one of these endings, in lower or upper case."""

UNREADABLE_PICTURES = (
    *(".heic", ".heif", ".jxl", ".psd", ".xcf", ".kra", ".svg", ".exr", ".hdr"),
    *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2"),
)
"""Endings of pictures that cannot be read."""


def readable_name(name: str) -> str:
    """Return a file's name as text that can be stored and drawn: a byte that is not UTF-8 becomes its value, as `%FF`.

    Python gives such a byte as a lone surrogate (PEP 383), which no file of text, database or font takes. Any other
    lone surrogate, as JSON may hold it, becomes U+FFFD.
    """
    return re.sub(r"[\ud800-\udfff]", lambda lone: _shown_byte(ord(lone[0])), name)


def _shown_byte(code: int) -> str:
    return f"%{code - 0xDC00:02X}" if 0xDC80 <= code <= 0xDCFF else "\ufffd"


@contextmanager
def readable_path(path: Path) -> Iterator[Path]:
    """Yield a path in UTF-8, which the library safetensors needs: `path` itself, or else a link to it for this time."""
    if readable_name(str(path)) == str(path):
        yield path
        return
    with temporary_folder() as folder:
        link = folder / "link"
        link.symlink_to(path.absolute())
        yield link


def plain_name(name: str) -> str:
    """Return the name of a file without its ending, readable (`readable_name`) and in the form NFC.

    macOS stores "é" as a letter and an accent (NFD), and other systems as one letter. Names are compared in one form.
    """
    return unicodedata.normalize("NFC", readable_name(os.path.splitext(name)[0]))


def pictures_in(folder: Path) -> list[Path]:
    """Return the files in a folder that have a picture's ending, sorted by name.

    Hidden files are left out: on disks of other systems, macOS adds a file `._shot.jpg` to `shot.jpg`, and it is not a
    picture.
    """
    return [folder / name for name in picture_names(folder)]


def picture_names(folder: Path) -> list[str]:
    """Return the names of the files of `pictures_in`. For 100,000 files, names need a fifth of the memory of paths.

    Warns:
        InstWarning: there are pictures that cannot be read, such as `.heic`.
    """
    names: list[str] = []
    passed_over: list[str] = []
    with os.scandir(folder) as entries:
        # No `Path` for each file: Python would intern the name and keep it in memory.
        for entry in entries:
            ending = os.path.splitext(entry.name)[1].lower()
            if ending not in PICTURE_ENDINGS + UNREADABLE_PICTURES or entry.name.startswith(".") or entry.is_dir():
                continue
            (names if ending in PICTURE_ENDINGS else passed_over).append(entry.name)
    if passed_over:
        more = f" and {len(passed_over) - 1} more" if passed_over[1:] else ""
        warnings.warn(
            InstWarning(
                f"{folder / min(passed_over)}{more} cannot be read and is passed over", "export it as PNG or JPEG"
            ),
            stacklevel=2,
        )
    return sorted(names)


def pictures_of(places: Sequence[Path]) -> list[Path]:
    """Return the given files, and the pictures in the given folders. Raises InstError if a folder has no picture."""
    files: list[Path] = []
    for place in places:
        if not os.path.isdir(place):  # False also for a path that is too long, unlike Path.is_dir
            files.append(place)
            continue
        pictures = pictures_in(place)
        if not pictures:
            raise InstError(
                f"{place} contains no picture ({', '.join(PICTURE_ENDINGS)})", "give another folder, or a file"
            )
        files += pictures
    return files
