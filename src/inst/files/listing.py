"""Find the picture files in a folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from inst.errors import InstError

PICTURE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif")
"""A file in a folder counts as a picture if its name has one of these endings, in lower or upper case."""


def pictures_in(folder: Path) -> list[Path]:
    """Return the files in a folder that have a picture's ending, sorted by name.

    Hidden files are left out: on disks of other systems, macOS adds a file `._shot.jpg` to `shot.jpg`, and it is not a
    picture.
    """
    return [folder / name for name in picture_names(folder)]


def picture_names(folder: Path) -> list[str]:
    """Return the names of the files of `pictures_in`. For 100,000 files, names need a fifth of the memory of paths."""
    with os.scandir(folder) as entries:
        # No `Path` for each file: Python would intern the name and keep it in memory.
        found = (entry for entry in entries if os.path.splitext(entry.name)[1].lower() in PICTURE_ENDINGS)
        return sorted(entry.name for entry in found if not entry.name.startswith(".") and not entry.is_dir())


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
