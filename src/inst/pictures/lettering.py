"""Labels on pictures and plots, in the letters of most languages, with the fonts in `fonts/`."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from itertools import groupby
from pathlib import Path

from PIL import ImageDraw, ImageFont

FONTS = tuple(Path(__file__).parent / "fonts" / name for name in ("DejaVuSans.ttf", "DroidSansFallback.ttf"))
"""The font of most languages, and that of Chinese and Japanese."""

_EAST_ASIAN = ((0x2E80, 0x9FFF), (0xF900, 0xFAFF), (0xFE30, 0xFE4F), (0xFF00, 0xFFEF))
"""First and last code points of the letters of the second font."""


class Lettering:
    """Draws text in one size.

    Args:
        size: height of the letters in pixels.
    """

    def __init__(self, size: int) -> None:
        self.fonts = [_font(path, size) for path in FONTS]
        self.ascent = max(font.getmetrics()[0] for font in self.fonts)

    def width(self, text: str) -> float:
        """Return the width of a line of text in pixels."""
        return sum(font.getlength(part) for font, part in self._parts(text))

    def wrap(self, text: str, width: int, lines: int) -> list[str]:
        """Break text into at most `lines` lines of `width` pixels. A longer text is cut and ends in "...".

        Lines break at spaces, and inside of words that are wider than a line, such as Chinese sentences.
        """
        made = [""]
        for word in unicodedata.normalize("NFC", text).split():
            longer = f"{made[-1]} {word}".strip()
            if self.width(longer) <= width:
                made[-1] = longer
                continue
            if made[-1]:
                made.append("")
            for letter in word:
                if made[-1] and self.width(made[-1] + letter) > width:
                    made.append("")
                made[-1] += letter
        if len(made) > lines:
            made = made[:lines]
            while made[-1] and self.width(made[-1] + "...") > width:
                made[-1] = made[-1][:-1]
            made[-1] += "..."
        return made

    def draw(self, page: ImageDraw.ImageDraw, left: float, top: float, text: str, ink: str) -> None:
        """Draw a line of text, all its letters on one baseline."""
        for font, part in self._parts(text):
            page.text((left, top + self.ascent), part, fill=ink, font=font, anchor="ls")
            left += font.getlength(part)

    def _parts(self, text: str) -> list[tuple[ImageFont.FreeTypeFont, str]]:
        """Split a text into parts of one font each."""
        return [(self.fonts[east], "".join(part)) for east, part in groupby(text, _is_east_asian)]


@contextmanager
def plot_fonts() -> Iterator[None]:
    """Let matplotlib draw the text of figures with these fonts, inside of the block."""
    from matplotlib import font_manager, rc_context

    for path in FONTS:
        if str(path) not in {font.fname for font in font_manager.fontManager.ttflist}:
            font_manager.fontManager.addfont(path)
    log = logging.getLogger(font_manager.__name__)
    before = log.level
    log.setLevel(logging.ERROR)  # one of them has no bold face, which is no news to the reader of a figure
    try:
        with rc_context({"font.family": [font_manager.get_font(path).family_name for path in FONTS]}):
            yield
    finally:
        log.setLevel(before)


@cache
def _font(path: Path, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size)


def _is_east_asian(letter: str) -> bool:
    return any(first <= ord(letter) <= last for first, last in _EAST_ASIAN)
