"""What is written down: plain values, exactly, and no folder names."""

import hashlib
import json
import math
import os
from pathlib import Path, PureWindowsPath

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inst import InstError
from inst.files.provenance import LARGEST_SOURCE, SourceFile, base_name, describe, read_entry, reason, to_plain


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/home/ann/photos/boat.jpg", "boat.jpg"),
        ("C:\\Users\\Ann\\boat.jpg", "boat.jpg"),
        ("\\\\server\\share\\boat.jpg", "boat.jpg"),
        ("C:/Users/Ann\\boat.jpg", "boat.jpg"),
        ("../boat.jpg", "boat.jpg"),
        ("/models/stable-diffusion/", "stable-diffusion"),
        ("boat.jpg", "boat.jpg"),
        ("", ""),
        ("/", ""),
        (Path("/home/ann/boat.jpg"), "boat.jpg"),
        (PureWindowsPath("C:/Users/Ann/boat.jpg"), "boat.jpg"),
    ],
)
def test_the_base_name_is_the_last_part_of_posix_and_windows_paths(path, expected: str) -> None:
    assert base_name(path) == expected
    assert SourceFile(str(path), "00").name == expected


def test_plain_values_hold_no_folder_names_and_other_types_are_refused() -> None:
    value = {
        "size": (512, 768),
        "path": Path("/home/ann/x"),
        "text": "a/b",
        "prompt": "black/white",
        "n": torch.tensor(3),
    }
    assert to_plain(value) == {"size": [512, 768], "path": "x", "text": "b", "prompt": "white", "n": 3}
    assert to_plain(value, frozenset({"prompt"}))["prompt"] == "black/white"
    assert to_plain({"deep": [{"prompt": ("a/b", "c/d")}]}, frozenset({"prompt"})) == {
        "deep": [{"prompt": ["a/b", "c/d"]}]
    }
    assert to_plain({"prompt": Path("a/b")}, frozenset({"prompt"})) == {"prompt": "b"}
    for wrong in (object(), {1, 2}, b"bytes", torch.float32):
        with pytest.raises(TypeError, match="cannot be recorded"):
            to_plain([wrong])
    for wrong in (math.nan, math.inf, torch.tensor([1.0, math.nan])):
        with pytest.raises(ValueError, match="only finite"):
            to_plain({"loss": wrong})


def test_titles_and_labels_may_hold_a_slash() -> None:
    made_of = {"title": "Ours / theirs?", "labels": ["oil/canvas"], "photo": "/home/ann/a.png"}
    said = json.loads(describe("plot", "inst", **made_of)["inst"])
    assert (said["title"], said["labels"], said["photo"]) == ("Ours / theirs?", ["oil/canvas"], "a.png")


_words = st.text(st.characters(exclude_characters="/\\", exclude_categories=["Cs"]))
_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _words,
    lambda inner: st.lists(inner) | st.dictionaries(_words, inner),
    max_leaves=8,
)


@given(_values)
def test_plain_values_come_back_exactly(value: object) -> None:
    assert json.loads(json.dumps(to_plain(value))) == value == to_plain(to_plain(value))


@given(st.text(st.characters(exclude_characters="/\\")))
def test_every_text_can_be_stored_as_utf8(text: str) -> None:
    plain = to_plain({"name": text})
    assert json.loads(json.dumps(plain, ensure_ascii=False).encode()) == plain == to_plain(plain)


def test_a_byte_of_a_name_is_shown_and_another_lone_surrogate_is_replaced() -> None:
    assert base_name(os.fsdecode(b"caf\xe9.png")) == "caf%E9.png"
    assert base_name("a\ud800\udc41") == "a\ufffd\ufffd"


def test_a_source_file_has_its_base_name_and_sha256_or_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    path.write_bytes(b"content")
    assert SourceFile.of(path) == SourceFile("mask.png", hashlib.sha256(b"content").hexdigest())
    for wrong, said in ((tmp_path, "is a folder"), (tmp_path / "nowhere", "no such file")):
        with pytest.raises(InstError, match=said):
            SourceFile.of(wrong)


def test_a_missing_or_mistyped_entry_is_reported_with_a_short_reason() -> None:
    assert read_entry({"a": "x"}, "a", str) == "x"
    with pytest.raises(TypeError, match="a is a int, not a str"):
        read_entry({"a": 1}, "a", str)
    with pytest.raises(KeyError) as caught:
        read_entry({}, "a", str)
    assert reason(caught.value) == "'a' is missing"
    assert reason(ValueError("first\nsecond")) == "first"
    assert reason(RecursionError()) == "RecursionError"


def test_a_file_that_says_it_is_huge_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "sparse.png").open("wb") as file:
        file.truncate(LARGEST_SOURCE + 1)
    with pytest.raises(InstError, match=r"sparse\.png is larger than 1,024 MB"):
        SourceFile.of(tmp_path / "sparse.png")
