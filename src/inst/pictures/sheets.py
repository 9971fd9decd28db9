"""Sheets of labelled pictures, for a comparison side by side."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from inst.pictures.io import to_image

LABEL_HEIGHT = 34
_GAP = 8
_BACKGROUND, _INK = "white", "black"


def make_sheet(rows: Sequence[Sequence[tuple[str, Tensor] | None]], cell: int = 256) -> Image.Image:
    """Make one image of pictures in rows. Each picture has its label (at most two lines) below it.

    Args:
        rows: sequences of (label, picture [3, H, W] in [-1, 1]); None leaves a cell empty.
        cell: longest side of a picture on the sheet, in pixels; smaller pictures are not enlarged.
    """
    font = ImageFont.load_default(13)
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
            lines = _wrap(label, cell, font)
            draw.multiline_text((left, top + height + 2), lines, fill=_INK, font=font, spacing=2)
        top += height + LABEL_HEIGHT + _GAP
    return page


def _fit(image: Image.Image, side: int) -> Image.Image:
    scale = min(1.0, side / max(image.size))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image if size == image.size else image.resize(size, Image.Resampling.LANCZOS)


def _wrap(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """Break `text` at spaces into at most two lines of `width` pixels. A longer text is cut and ends in "..."."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        elif len(lines) < 2:
            lines.append(word)
        else:
            lines[-1] += "..."
            break
    return "\n".join(lines)
