"""Labels in many languages: every letter has a shape of its own, and lines fit into their width."""

import io
import warnings

import numpy as np
import pytest
import torch
from fontTools.ttLib import TTFont
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from inst.pictures.lettering import FONTS, Lettering, _is_east_asian, plot_fonts
from inst.pictures.sheets import make_sheet

TEXTS = [
    *("café Größe ñ ø ł ğ ș İ", "Ночь звёздная", "Νύχτα"),
    *("睡莲与星夜", "日本語のカタカナ・ひらがな「」", "１２３！？，。"),  # noqa: RUF001
]


@pytest.mark.parametrize("text", TEXTS)
def test_the_fonts_have_every_letter(text: str) -> None:
    shapes = [TTFont(path).getBestCmap() for path in FONTS]
    assert [letter for letter in text if letter != " " and ord(letter) not in shapes[_is_east_asian(letter)]] == []


def test_each_letter_is_drawn_by_its_font_on_one_baseline() -> None:
    lettering = Lettering(24)

    def drawn(text: str) -> np.ndarray:
        page = Image.new("L", (400, 40), "white")
        lettering.draw(ImageDraw.Draw(page), 0, 0, text, "black")
        return np.asarray(page)

    box = drawn("\ue000")  # a letter that no font has
    for text in "éßЖλ睡あア":
        assert not np.array_equal(drawn(text), box), text
    mixed = drawn("H睡H")
    first, last = drawn("H"), lettering.width("H睡")
    columns = np.flatnonzero(first.min(axis=0) < 128)
    rows = np.flatnonzero(first.min(axis=1) < 128)
    again = mixed[:, round(last) + columns[0] : round(last) + columns[-1] + 1]
    assert abs(np.flatnonzero(again.min(axis=1) < 128)[-1] - rows[-1]) <= 1


@pytest.mark.parametrize(
    "text",
    ["short", "a longer label with several words in it", "睡莲与星夜的长标题没有空格也要换行", "x" * 90, "", "  "],
)
def test_lines_fit_and_nothing_is_lost_without_dots(text: str) -> None:
    lettering = Lettering(12)
    for width in (60, 200):
        lines = lettering.wrap(text, width, lines=2)
        assert 1 <= len(lines) <= 2
        assert all(lettering.width(line) <= width for line in lines)
        if not lines[-1].endswith("..."):
            assert "".join(lines).replace(" ", "") == text.replace(" ", "")


def test_a_decomposed_name_looks_like_the_composed_one() -> None:
    assert Lettering(12).wrap("cafe\u0301", 100, lines=1) == ["café"]


def test_a_sheet_shows_other_labels_as_other_pictures() -> None:
    picture = torch.zeros(3, 20, 200)
    sheets = [np.asarray(make_sheet([[(label, picture)]])) for label in ("睡莲", "星夜", "é", "è")]
    assert len({sheet.tobytes() for sheet in sheets}) == 4


def test_plots_use_the_same_fonts() -> None:
    with plot_fonts():
        figure = Figure()
        title = figure.suptitle("睡莲 café")
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # matplotlib warns of a letter that no font has
            figure.savefig(io.BytesIO(), format="png")
    assert title.get_fontfamily() == ["DejaVu Sans", "Droid Sans Fallback"]
