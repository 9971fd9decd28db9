"""Texts of strangers are shown on one line, without anything that a terminal obeys, and cut."""

import copy
import pickle
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from inst.errors import InstError, InstWarning, UsageError, first_line
from inst.texts import LONGEST_LINE, cut, markdown, one_line

READER = MarkdownIt("commonmark").enable(["table", "strikethrough"])
MARKUP = st.text(st.sampled_from("ab 01.)(*_`[]<>!#+-=|~&;\\\n\t\x1b:/"), max_size=24)


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


def shown_by_a_reader(source: str) -> str:
    """The text that a reader of Markdown sees; fails if anything in it is more than text."""
    tokens = READER.parse(source)
    assert [token.type for token in tokens] in ([], ["paragraph_open", "inline", "paragraph_close"])
    parts = [part for token in tokens for part in token.children or []]
    assert {part.type for part in parts} <= {"text", "text_special"}
    return "".join(part.content for part in parts)


@given(MARKUP | st.text(max_size=24))
def test_markdown_shows_any_text_as_it_is(text: str) -> None:
    assert shown_by_a_reader(markdown(text)) == one_line(text).strip().replace("\0", "\N{REPLACEMENT CHARACTER}")


@given(MARKUP)
def test_a_cell_of_a_table_holds_any_text(text: str) -> None:
    html = READER.render(f"| a | b |\n| --- | --- |\n| {markdown(text)} | end |\n")
    assert html.count("<td>") == 2
    assert html.count("<tr>") == 2


@pytest.mark.parametrize("text", ["inst", "method_of_2024", "no-attention", "A & B", "a (b) c", "50 %", "1.5", "3d"])
def test_ordinary_names_stay_readable_in_markdown(text: str) -> None:
    assert markdown(text) == text
