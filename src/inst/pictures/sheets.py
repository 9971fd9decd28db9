"""Sheets of labelled pictures, for a comparison side by side."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw
from torch import Tensor

from inst.pictures.lettering import Lettering
from inst.pictures.tensors import to_image

LABEL_HEIGHT = 34
_GAP = 8
_LETTERS = 12  # pixels
_BACKGROUND, _INK = "white", "black"


def make_sheet(rows: Sequence[Sequence[tuple[str, Tensor] | None]], cell: int = 256) -> Image.Image:
    """Make one image of pictures in rows. Each picture has its label (at most two lines) below it.

    Args:
        rows: sequences of (label, picture [3, H, W] in [-1, 1]); None leaves a cell empty.
        cell: longest side of a picture on the sheet, in pixels; smaller pictures are not enlarged.
    """
    lettering = Lettering(_LETTERS)
    tiles = [[None if item is None else (item[0], _fit(to_image(item[1]), cell)) for item in row] for row in rows]
    columns = max(len(row) for row in tiles)
    heights = [max(tile[1].height for tile in row if tile) if any(row) else 0 for row in tiles]
    width = columns * (cell + _GAP) + _GAP
    page = Image.new("RGB", (width, sum(h + LABEL_HEIGHT + _GAP for h in heights) + _GAP), _BACKGROUND)
    draw, top = ImageDraw.Draw(page), _GAP
    for row, height in zip(tiles, heights, strict=True):
        for column, tile in enumerate(row):
            if tile is None:
                continue
            label, image = tile
            left = _GAP + column * (cell + _GAP)
            page.paste(image, (left + (cell - image.width) // 2, top + height - image.height))
            for number, line in enumerate(lettering.wrap(label, cell, lines=2)):
                lettering.draw(draw, left, top + height + number * LABEL_HEIGHT // 2, line, _INK)
        top += height + LABEL_HEIGHT + _GAP
    return page


def _fit(image: Image.Image, side: int) -> Image.Image:
    scale = min(1.0, side / max(image.size))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image if size == image.size else image.resize(size, Image.Resampling.LANCZOS)
