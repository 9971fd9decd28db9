"""One photo at several strengths and guidance scales and in several styles, on one labelled sheet with its record."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from inst.arguments import checked
from inst.backbone.model import Backbone
from inst.errors import UsageError
from inst.pictures.reading import Photo
from inst.pictures.sheets import make_sheet
from inst.pictures.writing import save_picture
from inst.styles.style import Style
from inst.synthesis.from_photo import transfer
from inst.synthesis.painter import fit_photo
from inst.synthesis.record import PictureRecord

_PAINTINGS = 4_000_000
"""Largest total size in bytes of the paintings in a sheet's record. One is 0.1 to 0.4 MB, one with its cells 1 MB."""

_MOST_CELLS = 400
"""Largest number of pictures on a sheet."""


@dataclass(frozen=True, eq=False)
class SheetStep:
    """A finished sampling step of a sheet.

    Attributes:
        pictures: number of finished pictures.
        total: number of pictures.
        clean: the z_0 predicted in this step, [1, C, h, w]; None after the last step of a picture.
    """

    pictures: int
    total: int
    clean: Tensor | None


@dataclass(frozen=True, eq=False)
class PaintedSheet:
    """A sheet and its record."""

    page: Image.Image
    record: PictureRecord

    def save(self, path: str | Path) -> Path:
        """Write the sheet; a PNG file also gets the record. The errors are those of `inst.save_picture`."""
        return save_picture(self.page, path, texts=self.record.texts())


def paint_sheet(
    backbone: Backbone, photo: Photo, styles: Sequence[Style], settings: Mapping[str, Any]
) -> Generator[SheetStep, None, PaintedSheet]:
    """Make a sheet. Each style has its rows, with the painting and the photo at their left.

    Args:
        backbone: the frozen model.
        photo: the photo; its opacity is ignored.
        styles: the styles.
        settings: "strengths" (columns) and "guidances" (rows) are sequences of numbers. The others are arguments of
            `inst.transfer`.

    Raises:
        UsageError: an argument cannot be used. It is raised before anything is computed.
    """
    strengths, guidances = settings["strengths"], settings["guidances"]
    for name, numbers in (("strengths", strengths), ("guidances", guidances)):
        if not isinstance(numbers, Sequence) or isinstance(numbers, str) or not numbers:
            raise UsageError(f"The {name} of a sheet cannot be used", "give a list of numbers")
    if (count := len(styles) * len(guidances) * len(strengths)) > _MOST_CELLS:
        raise UsageError(f"A sheet of {count:,} pictures cannot be made", f"give at most {_MOST_CELLS}")
    size = None if settings.get("size") is None else checked("size", settings["size"], "int")
    small = fit_photo(backbone, photo, size).picture  # of which each cell has a copy
    shared = {name: value for name, value in settings.items() if name not in ("strengths", "guidances")}
    shared["size"] = min(small.shape[1:])
    # All transfers are created before the first one runs, so that a wrong argument is reported at once.
    cells = [(style, guidance, strength) for style in styles for guidance in guidances for strength in strengths]
    runs = [transfer(backbone, small, style, strength=s, guidance=g, **shared) for style, g, s in cells]

    def run() -> Generator[SheetStep, None, PaintedSheet]:
        pictures: list[tuple[str, Tensor]] = []
        for (_, guidance, strength), sampling in zip(cells, runs, strict=True):
            while True:
                try:
                    step = next(sampling)
                except StopIteration as end:
                    pictures.append((f"strength {strength:g}, guidance {guidance:g}", end.value[0]))
                    break
                yield SheetStep(len(pictures), len(runs), step.clean)
            yield SheetStep(len(pictures), len(runs), None)
        rows: list[list[tuple[str, Tensor] | None]] = []
        for style in styles:
            painting = (style.name, style.painting()) if style.paintings else None
            sources = [painting, ("the photo", photo.picture)]
            for _, head in zip_longest(guidances, sources[: len(guidances)]):
                done = len(rows) * len(strengths)
                rows.append([head, *pictures[done : done + len(strengths)]])
        paintings = sum(len(painting) for style in styles for painting in style.paintings) <= _PAINTINGS
        by_placeholder = {f"[C{number}]": style for number, style in enumerate(styles, start=1)}
        recorded = {**settings, "flatten": True, "paintings": paintings}
        record = PictureRecord.of("sheet", backbone, recorded, by_placeholder, photo=photo, paintings=paintings)
        return PaintedSheet(make_sheet(rows), record)

    return run()
