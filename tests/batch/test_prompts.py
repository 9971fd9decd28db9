"""Files of prompts: their names, and one clear line for what is wrong."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from inst.batch.items import Item
from inst.batch.prompts import read_prompts_file
from inst.errors import InstError, UsageError


def test_each_line_of_a_text_file_is_a_prompt(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes("\ufeffa castle/at night, in * style\r\n\r\n  # 1 夜の城 \r\n!?\n".encode())
    assert list(read_prompts_file(tmp_path / "p.txt")) == [
        ("000001-a-castle-at-night-in-style", "a castle/at night, in * style"),
        ("000002-1-夜の城", "# 1 夜の城"),
        ("000003", "!?"),
    ]


def test_tables_can_give_names(tmp_path: Path) -> None:
    expected = [("b", "a castle, at night"), ("000002-a-duck", "a duck"), ("x/y", "a pond")]
    (tmp_path / "p.csv").write_text('name,prompt\nb,"a castle, at night"\n,a duck\n../x/y,a pond\n')
    (tmp_path / "p.jsonl").write_text(
        '{"name": "b", "prompt": "a castle, at night"}\n{"prompt": "a duck"}\n\n{"prompt":"a pond", "name": "x/y"}\n'
    )
    table = pa.table({"prompt": [prompt for _, prompt in expected], "name": ["b", None, "/x//y"]})
    pq.write_table(table, tmp_path / "p.parquet")
    for name in ("p.csv", "p.jsonl", "p.parquet"):
        assert list(read_prompts_file(tmp_path / name)) == expected
    (tmp_path / "n.jsonl").write_text('{"prompt": "a duck", "name": 7}')
    assert list(read_prompts_file(tmp_path / "n.jsonl")) == [("7", "a duck")]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("p.txt", b"\n \n", "p.txt has no rows: give another file."),
        ("p.txt", b"a\n\xff\n", "p.txt line 2 is not UTF-8 text: save the file as UTF-8."),
        ("p.csv", b"text\na\n", "p.csv has no column prompt (only text): name the columns prompt."),
        (
            "p.jsonl",
            b'{"prompt": "a"}\n{"text": "b"}\n',
            "p.jsonl line 2 has no prompt: fill the row, or leave it out.",
        ),
        ("p.jsonl", b'{"prompt": 7}', "p.jsonl line 1 has no text as prompt: correct the row."),
        ("p.jsonl", b'["a"]', "p.jsonl line 1 is no JSON object: write one object in each line."),
        (
            "p.jsonl",
            b'{"prompt":"\\ud800"}',
            "p.jsonl line 1 has a prompt that is not valid Unicode text: correct the row.",
        ),
    ],
)
def test_a_bad_file_is_one_line(
    name: str, data: bytes, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(data)
    try:
        found = next(str(row.problem) for row in read_prompts_file(name) if isinstance(row, Item))
    except InstError as error:
        found = str(error)
    assert found == message


@pytest.mark.parametrize("line", [b"{", b"[" * 100_000, b'{"n": ' + b"9" * 5000 + b"}"])
def test_a_first_line_that_is_not_json_is_named(line: bytes, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_bytes(line)
    with pytest.raises(InstError, match=r"p\.jsonl line 1 .*: write one object in each line"):
        list(read_prompts_file(tmp_path / "p.jsonl"))


def test_lines_after_a_bad_one_are_read_and_keep_their_numbers(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n{"prompt": ""}\n[1]\n{"prom\n{"prompt": "b"}\n')
    rows = list(read_prompts_file(tmp_path / "p.jsonl"))
    assert [row.place[-1] if isinstance(row, Item) else row[0] for row in rows] == [
        "000001-a",
        "2",
        "3",
        "4",
        "000005-b",
    ]


def test_another_ending_is_refused() -> None:
    with pytest.raises(UsageError, match=r"A file of prompts cannot be p\.md: give a file that ends in \.txt, \.csv"):
        read_prompts_file("p.md")
