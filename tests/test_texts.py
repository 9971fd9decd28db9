"""Text from strangers is shown as it is, and nothing obeys it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from inst.texts import markdown, one_line

READER = MarkdownIt("commonmark").enable(["table", "strikethrough"])
MARKUP = st.text(st.sampled_from("ab 01.)(*_`[]<>!#+-=|~&;\\\n\t\x1b:/"), max_size=24)


def shown(source: str) -> str:
    """The text that a reader of Markdown sees; fails if anything in it is more than text."""
    tokens = READER.parse(source)
    assert [token.type for token in tokens] in ([], ["paragraph_open", "inline", "paragraph_close"])
    parts = [part for token in tokens for part in token.children or []]
    assert {part.type for part in parts} <= {"text", "text_special"}
    return "".join(part.content for part in parts)


@given(MARKUP | st.text(max_size=24))
def test_markdown_shows_any_text_as_it_is(text: str) -> None:
    assert shown(markdown(text)) == one_line(text).strip().replace("\0", "\N{REPLACEMENT CHARACTER}")


@given(MARKUP)
def test_a_cell_of_a_table_holds_any_text(text: str) -> None:
    html = READER.render(f"| a | b |\n| --- | --- |\n| {markdown(text)} | end |\n")
    assert html.count("<td>") == 2
    assert html.count("<tr>") == 2


@pytest.mark.parametrize("text", ["inst", "method_of_2024", "no-attention", "A & B", "a (b) c", "50 %", "1.5", "3d"])
def test_ordinary_names_stay_readable_in_markdown(text: str) -> None:
    assert markdown(text) == text
