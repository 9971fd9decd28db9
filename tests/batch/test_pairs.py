"""Tables of pairs: photos and styles, and one clear line for what is wrong."""

import os
import re
import tracemalloc
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from inst.batch.items import Item
from inst.batch.pairs import read_pairs
from inst.batch.sources import file_item
from inst.errors import InstError, UsageError


def pairs_of(table: Path) -> list[tuple[str, str]]:
    return [row for row in read_pairs(table) if not isinstance(row, Item)]


def test_the_rows_of_a_csv_file_are_relative_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "a, b.jpg").write_bytes(b"photo")
    text = '\ufeffid, Style ,photo\r\n1,night.webp,"../a, b.jpg"\r\n\r\n2,s3://b/s.safetensors,/abs/c.jpg\r\n3,"x\ny",file:///d\r\n'
    (tmp_path / "t" / "p.csv").write_text(text, encoding="utf-8", newline="")
    monkeypatch.chdir(tmp_path)
    pairs = pairs_of(Path("t/p.csv"))
    assert pairs == [
        ("t/../a, b.jpg", "t/night.webp"),
        ("/abs/c.jpg", "s3://b/s.safetensors"),
        ("/d", "t/x\ny"),
    ]
    item = file_item(pairs[0][0])
    assert (item.name, item.place, item.read()) == ("a, b", "t/../a, b.jpg", b"photo")


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_other_delimiters_of_spreadsheets_are_found(delimiter: str, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text(f"photo{delimiter}style\na,b.jpg{delimiter}c.webp\n")
    assert [os.path.basename(photo) for photo, _ in pairs_of(tmp_path / "p.csv")] == ["a,b.jpg"]


def test_lines_that_excel_puts_above_the_header_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_bytes(b"\xef\xbb\xbfsep=;\r\n;\r\nPhoto;Style\r\na.jpg;c.webp\r\n;\r\n")
    assert [os.path.basename(photo) for photo, _ in pairs_of(tmp_path / "p.csv")] == ["a.jpg"]


def test_parquet_and_json_lines_are_read_too(tmp_path: Path) -> None:
    pq.write_table(pa.table({"photo": ["a.jpg"], "style": ["b.webp"], "n": [1]}), tmp_path / "p.parquet")
    (tmp_path / "p.jsonl").write_text('{"style": "b.webp", "photo": "a.jpg", "n": 1}\n')
    expected = [(f"{tmp_path}/a.jpg", f"{tmp_path}/b.webp")]
    assert list(read_pairs(tmp_path / "p.parquet")) == list(read_pairs(tmp_path / "p.jsonl")) == expected


def test_a_table_behind_a_url_names_what_is_beside_it() -> None:
    fsspec.filesystem("memory").pipe("/tables/p.csv", b"photo,style\na.jpg,../s/b.webp\n")
    assert list(read_pairs("memory://tables/p.csv")) == [("memory://tables/a.jpg", "memory://s/b.webp")]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "p.csv has no rows: give another file."),
        (b"photo,style\n", "p.csv has no rows: give another file."),
        (b"a,b\n", "p.csv has no column photo or style (only a, b): name the columns photo, style."),
        (b"photo,b\nx,y\n", "p.csv has no column style (only photo, b): name the columns photo, style."),
        (b"\n", "p.csv has no rows: give another file."),
        (b'"\n', "p.csv has no column photo or style (no header): name the columns photo, style."),
        (b"sep=,\n\nphoto,style\na,b\nc\n", "p.csv line 5 has no style: fill the row, or leave it out."),
        (b"photo,style\na,b\n\nc\n", "p.csv line 4 has no style: fill the row, or leave it out."),
        (b"photo,style\na, \n", "p.csv line 2 has no style: fill the row, or leave it out."),
        (b"photo,style\na,b\n\xff,c\n", "p.csv line 3 is not UTF-8 text: save the file as UTF-8."),
        (b"photo,style\na,b\nc\0,d\n", "p.csv line 3 has NUL characters: give a text file."),
        (b"\xff\xfep\0h\0o\0", "p.csv line 1 is not UTF-8 text: save the file as UTF-8."),
        (
            b'photo,style\n"a"x,b\n',
            "p.csv line 2 is no row of a CSV file (',' expected after '\"')",
        ),
        (
            b'photo,style\na,"b\nc\n',
            "p.csv line 2 is no row of a CSV file (unexpected end of data)",
        ),
        (
            b"photo,style\na," + b"x" * 200_000 + b"\n",
            "p.csv line 2 is no row of a CSV file (field larger than field limit (131072))",
        ),
        (b"x" * (1 << 21), "p.csv line 1 is longer than 1,048,576 bytes: give a text file."),
    ],
)
def test_a_bad_csv_file_is_one_line_with_its_number(
    data: bytes, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("p.csv").write_bytes(data)
    assert what_is_wrong("p.csv") in (message, f"{message}: correct its quotes.")


def what_is_wrong(table: str | Path) -> str:
    """The error of a table, or of its first bad row."""
    try:
        return next(str(row.problem) for row in read_pairs(table) if isinstance(row, Item))
    except InstError as error:
        return str(error)


def test_rows_after_a_bad_one_are_read(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text(
        "photo,style\na,b\n,c\nd,\nssh://host/x,s\na,zip://x.jpg::https://host/z.zip\ne,f\n"
    )
    rows = list(read_pairs(tmp_path / "p.csv"))
    places = [row.place.rpartition(" ")[2] for row in rows if isinstance(row, Item)]
    assert places == ["3", "4", "5", "6"]
    assert [os.path.basename(row[0]) for row in rows if not isinstance(row, Item)] == ["a", "e"]


def test_other_bad_tables_are_one_line(tmp_path: Path) -> None:
    pq.write_table(pa.table({"photo": ["a", None], "style": ["b", "c"]}), tmp_path / "null.parquet")
    pq.write_table(pa.table({"photo": [1], "style": ["b"]}), tmp_path / "number.parquet")
    pq.write_table(pa.table({"x\x1b": ["a"]}), tmp_path / "other.parquet")
    for name, message in {
        "null.parquet": r"null\.parquet row 1 has no photo",
        "number.parquet": r"number\.parquet has no texts in the column photo",
        "other.parquet": r"other\.parquet has no column photo or style \(only x_\)",
        "missing.csv": r"missing\.csv: no such file",
    }.items():
        assert re.search(message, what_is_wrong(tmp_path / name))
    for wrong in (tmp_path / "p.xlsx", ""):
        with pytest.raises(UsageError):
            read_pairs(wrong)


def test_a_long_table_takes_no_more_memory_than_a_short_one(tmp_path: Path) -> None:
    peaks = []
    for count in (1000, 100_000):
        (tmp_path / "p.csv").write_text("photo,style\n" + "".join(f"photos/{k}.jpg,s.webp\n" for k in range(count)))
        tracemalloc.start()
        assert sum(1 for _ in read_pairs(tmp_path / "p.csv")) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 100_000
