"""Refusals in the language of the page: every sentence that the page can show is there in Chinese."""

# Chinese has its own punctuation.
# ruff: noqa: RUF001

from __future__ import annotations

import ast
import re
import string
from collections.abc import Iterator
from pathlib import Path

import pytest

import inst.studio
from inst.errors import UsageError
from inst.studio.page.problems import CHINESE_PROBLEMS, told
from inst.studio.page.texts import CHINESE, ENGLISH

STUDIO = Path(inst.studio.__file__).parent
NOT_SHOWN = {
    # Forms that the page does not send, the start of the server, and calls of the library by programs.
    "multipart.py",
    "editors.py",
    "server.py",
    "similarity.py",
    "library_index.py",
    "style_routes.py",
    "job_routes.py",
    "Another request had this key",
    "is of another version of inst",
    "is damaged and cannot be renamed",
    "cannot be used",
    "cannot be the id of a style",
    "The format ",
    "A thumbnail of ",
    "is a link, which is not followed",
    "days cannot be used",
    "Another studio uses the folder",
}


def holes(sentence: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(sentence) if name}


def text_of(node: ast.expr) -> str | None:
    """Return a text of the code, with a word in place of what differs."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(str(one.value) if isinstance(one, ast.Constant) else "thing" for one in node.values)
    return None


def problems_of(path: Path) -> Iterator[str]:
    """Yield every sentence with which a module refuses something."""
    errors = {"InstError", "UsageError", "Refused", "TooLarge", "NoSpace", "NotKept", "cls", "__init__"}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            if name in errors and len(node.args) > 1 and (problem := text_of(node.args[0])) is not None:
                yield f"{problem}: {text_of(node.args[1]) or 'thing'}."
        # What a failed job says.
        if path.name == "jobs.py" and isinstance(node, ast.Assign | ast.keyword):
            target = node.arg if isinstance(node, ast.keyword) else getattr(node.targets[0], "id", "")
            if target in ("line", "error") and (text := text_of(node.value)):
                yield text


def test_every_refusal_that_the_page_shows_is_said_in_chinese() -> None:
    sentences = {
        sentence.replace("The thing ", "The name ")
        for path in [*STUDIO.glob("*.py"), *(STUDIO / "page").glob("*.py")]
        if path.name not in NOT_SHOWN
        for sentence in problems_of(path)
        if not any(part in sentence for part in NOT_SHOWN)
    }
    assert len(sentences) > 30
    assert [sentence for sentence in sorted(sentences) if told(CHINESE, sentence) == sentence] == []
    assert all(told(ENGLISH, sentence) == sentence for sentence in sentences)


@pytest.mark.parametrize("english", CHINESE_PROBLEMS)
def test_a_refusal_in_chinese_says_what_differs(english: str) -> None:
    chinese = CHINESE_PROBLEMS[english]
    assert holes(chinese) <= holes(english)
    assert re.search("[\u4e00-\u9fff]", chinese)
    said = told(CHINESE, english.format(**{name: f"<{name}>" for name in holes(english)}))
    assert said == chinese.format(**{name: f"<{name}>" for name in holes(chinese)})


def test_a_refusal_that_has_no_chinese_is_shown_as_it_is() -> None:
    assert told(CHINESE, "Nobody has translated this: try it.") == "Nobody has translated this: try it."
    assert told(CHINESE, UsageError("The tag has 90 characters", "give 40 at most")) == "标签有 90 个字符：最多 40 个。"
