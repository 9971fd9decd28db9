"""Another system's pictures as a method of a comparison."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inst.errors import InstError
from inst.evaluation.collection import SEPARATOR
from inst.evaluation.methods.method import PICTURES, OnStep, Repaint, Repainted
from inst.files.listing import pictures_in
from inst.pictures.io import Photo, read_picture


@dataclass(frozen=True, eq=False)
class FolderMethod:
    """Another system's outputs: a folder of pictures named PHOTO__PAINTING, in any format that can be read."""

    name: str
    folder: Path

    @property
    def settings(self) -> Mapping[str, Any]:
        marks = {one.name: [one.stat().st_size, one.stat().st_mtime_ns] for one in pictures_in(self.folder)}
        return {"folder": self.folder.name, PICTURES: marks}

    def start(self, painting: Photo, folder: Path, on_step: OnStep) -> Repaint:
        # Reversed, so that of two endings the first counts.
        pictures = {one.stem: one for one in reversed(pictures_in(self.folder))}

        def repaint(photo: Photo) -> Repainted:
            stem = f"{Path(photo.name).stem}{SEPARATOR}{Path(painting.name).stem}"
            if stem not in pictures:
                raise InstError(f"{self.folder} holds no picture named {stem}.")
            return Repainted(read_picture(pictures[stem]))

        return repaint
