"""Pictures of another system as a method of a comparison."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inst.errors import InstError
from inst.evaluation.collection import SEPARATOR
from inst.evaluation.methods.method import PICTURES, OnStep, Repaint, RepaintResult
from inst.files.listing import pictures_in, plain_name
from inst.pictures.reading import Photo, read_picture


@dataclass(frozen=True, eq=False)
class FolderMethod:
    """Outputs of another system: a folder of pictures named PHOTO__PAINTING, in any readable format."""

    name: str
    folder: Path

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"folder": self.folder.name, PICTURES: {path.name: _mark(path) for path in pictures_in(self.folder)}}

    def start(self, painting: Photo, folder: Path, on_step: OnStep) -> Repaint:
        # In reverse, so that the first of two files with the same name and different endings is used.
        pictures = {plain_name(path.name): path for path in reversed(pictures_in(self.folder))}

        def repaint(photo: Photo) -> RepaintResult:
            stem = f"{plain_name(photo.name)}{SEPARATOR}{plain_name(painting.name)}"
            if stem not in pictures:
                raise InstError(f"{self.folder} contains no picture named {stem}", "add it")
            return RepaintResult(read_picture(pictures[stem]))

        return repaint


def _mark(path: Path) -> list[int]:
    """Return the size and the time of a picture; zeros for a broken link, which is reported when it is used."""
    try:
        status = path.stat()
    except OSError:
        return [0, 0]
    return [status.st_size, status.st_mtime_ns]
