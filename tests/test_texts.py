"""Texts of strangers are shown on one line, without anything that a terminal obeys, and cut."""

import copy
import pickle
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inst.errors import InstError, InstWarning, UsageError, first_line
from inst.texts import LONGEST_LINE, cut, one_line


@given(st.text())
def test_what_is_shown_is_one_line_that_no_terminal_obeys(text: str) -> None:
    shown = one_line(text)
    assert len(f"a{shown}a".splitlines()) == 1
    assert not {unicodedata.category(letter) for letter in shown} & {"Cc", "Zl", "Zp"}
    assert not {unicodedata.bidirectional(letter) for letter in shown} & {
        "LRE",
        "RLE",
        "LRO",
        "RLO",
        "LRI",
        "RLI",
        "FSI",
    }
    assert one_line(shown) == shown
    if text.isprintable():
        assert shown == text


@pytest.mark.parametrize("text", ["睡莲", "Ménagère à Paris", "👩‍🎨 at work", "نیم‌فاصله", "a b", "bad\udcff"])
def test_the_letters_of_all_languages_stay(text: str) -> None:
    assert one_line(text) == text


@given(st.text(min_size=0, max_size=300), st.integers(40, 200))
def test_a_long_text_is_cut_in_the_middle_with_its_length(text: str, most: int) -> None:
    shown = cut(text, most)
    assert len(shown) <= most
    if len(text) > most:
        assert f"({len(text)} characters)" in shown
        assert text.startswith(shown[:5])
        assert text.endswith(shown[-1:])
    else:
        assert shown == text
    assert cut(shown, most) == shown


@pytest.mark.parametrize("kind", [InstError, UsageError, InstWarning])
def test_a_message_is_short_and_on_one_line_whatever_it_quotes(kind: type[InstError]) -> None:
    hostile = "\x1b[2J\nError: forged" + "x" * 4_000_000
    for error in (kind(f"{hostile} is wrong", hostile), kind("A", "b").with_prefix(hostile)):
        message = str(error)
        assert len(message) < 3 * LONGEST_LINE
        assert message.isprintable()
        assert "4,000,0" in message
        assert str(copy.copy(error)) == message
        assert str(pickle.loads(pickle.dumps(error))) == message
    assert len(first_line(ValueError(hostile))) < LONGEST_LINE
