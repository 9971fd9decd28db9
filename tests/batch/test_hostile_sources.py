"""Sources from strangers: archives, tables, lists and folders that would take all memory, or lead elsewhere."""

import gzip
import io
import os
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from inst.batch.items import Item
from inst.batch.places import LARGEST_PACKED, Place
from inst.batch.sources import open_source
from inst.errors import InstError


def extended(kind: bytes, **fields: object) -> bytes:
    """An extended header of a tar file, with the fields of the next member or of all."""
    body = b""
    for name, value in fields.items():
        record = f" {name.replace('__', '.')}={value}\n".encode()
        length = len(record)
        while len(str(length)) + len(record) != length:
            length = len(str(length)) + len(record)
        body += str(length).encode() + record
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, len(body)
    return info.tobuf(tarfile.USTAR_FORMAT) + body + b"\0" * (-len(body) % 512)


def member(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.USTAR_FORMAT)


def problems(items: list[Item]) -> list[str]:
    return [str(item.problem) for item in items if item.problem is not None]


@pytest.mark.parametrize("size", [-1, -(10**6)])
def test_a_member_of_a_negative_size_is_a_damaged_shard(tmp_path: Path, size: int) -> None:
    (tmp_path / "s.tar").write_bytes(
        extended(tarfile.XHDTYPE, size=size) + member("a.jpg", 3) + b"abc" + b"\0" * 509 + b"\0" * 1024
    )
    with pytest.raises(InstError, match="a member has a negative size"):
        open_source(tmp_path / "s.tar")


def test_the_endless_list_of_a_sparse_member_is_not_read(tmp_path: Path) -> None:
    fields = {"GNU__sparse__major": 1, "GNU__sparse__minor": 0, "GNU__sparse__name": "a.jpg"}
    with gzip.open(tmp_path / "s.tar.gz", "wb", 1) as file:
        file.write(extended(tarfile.XHDTYPE, **fields, GNU__sparse__realsize=10) + member("a.jpg", 1 << 30))
        file.write(b"1000000000000\n" + b"0\n" * (1 << 22))  # 8 MB, and would go on
    items = list(open_source(tmp_path / "s.tar.gz"))
    assert "is sparse" in problems(items)[0]


def test_headers_with_fields_for_all_members_do_not_fill_the_memory(tmp_path: Path) -> None:
    many = b"".join(
        extended(tarfile.XGLTYPE, **{f"k{k}-{n}": 1 for n in range(100)}) + (member("a.jpg", 0) if k % 10 == 9 else b"")
        for k in range(30)
    )
    (tmp_path / "fields.tar").write_bytes(many + b"\0" * 1024)
    row = extended(tarfile.XGLTYPE, a=1) * 20 + member("a.jpg", 0) + b"\0" * 1024
    (tmp_path / "row.tar").write_bytes(row)
    assert "its headers have too many fields" in problems(list(open_source(tmp_path / "fields.tar")))[0]
    with pytest.raises(InstError, match="a header is too large"):
        open_source(tmp_path / "row.tar")


def test_a_member_that_unpacks_to_much_is_passed_over(tmp_path: Path) -> None:
    class Zeros(io.RawIOBase):
        def read(self, size: int = -1) -> bytes:
            return bytes(size)

    with tarfile.open(tmp_path / "s.tar.gz", "w:gz", compresslevel=1) as archive:
        info = tarfile.TarInfo("huge.jpg")
        info.size = LARGEST_PACKED + 1
        archive.addfile(info, Zeros())
        info = tarfile.TarInfo("b.jpg")
        info.size = 1
        archive.addfile(info, io.BytesIO(b"b"))
    items = list(open_source(tmp_path / "s.tar.gz"))
    assert [item.name for item in items] == ["huge", "b"]
    assert "make it smaller, or give it as a file" in problems(items)[0]


@pytest.mark.parametrize(
    "value", [{"bytes": None, "path": 7}, {"bytes": None, "path": {"a": 1}}, {"bytes": b"x", "path": [1]}]
)
def test_a_struct_whose_path_is_no_text(tmp_path: Path, value: dict[str, object]) -> None:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.array([value["path"]]).type)])
    pq.write_table(pa.table({"image": pa.array([value], kind)}), tmp_path / "p.parquet")
    (item,) = open_source(tmp_path / "p.parquet")
    assert item.name == "p/0"
    assert (item.problem is None) == (value["bytes"] is not None)


def test_a_text_that_is_no_unicode_is_a_damaged_table(tmp_path: Path) -> None:
    texts = pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe"))
    pq.write_table(pa.table({"photo": texts}), tmp_path / "p.parquet")
    with pytest.raises(InstError, match="is damaged, or no Parquet file"):
        open_source(tmp_path / "p.parquet")


def test_very_many_columns_are_read_at_once(tmp_path: Path) -> None:
    columns = {f"c{k}": pa.array([1], pa.int8()) for k in range(5000)}
    pq.write_table(pa.table(columns), tmp_path / "p.parquet")
    with pytest.raises(InstError, match="has no column of pictures") as caught:
        open_source(tmp_path / "p.parquet")
    assert len(str(caught.value)) < 700


def test_folders_that_link_to_one_another_come_to_an_end(tmp_path: Path) -> None:
    """They have 9! paths without a circle."""
    for k in range(9):
        (tmp_path / str(k)).mkdir()
        (tmp_path / str(k) / "a.jpg").touch()
        for j in range(9):
            (tmp_path / str(k) / f"to{j}").symlink_to(f"../{j}")
    items = list(open_source(tmp_path, recursive=True))
    assert len(items) < 30_000
    assert "Too many levels of symbolic links" in problems(items)[0]


@pytest.mark.parametrize(
    "line",
    ["ssh://host/a.jpg", "zip://a.jpg::s3://b/z.zip", "reference://a.jpg", "github://o:r@x/a.jpg", "ftp://h/a.jpg"],
)
def test_a_list_opens_no_other_kinds_of_urls(tmp_path: Path, line: str) -> None:
    (tmp_path / "l.txt").write_text(f"{line}\nb.jpg\n")
    first, second = open_source(tmp_path / "l.txt")
    assert "line 1 names a URL of the kind" in str(first.problem)
    assert (second.name, second.problem) == ("b", None)


def test_file_systems_that_open_what_another_file_names_are_refused() -> None:
    for url in ("reference://x.jpg::https://host/r.json", "reference://x"):
        with pytest.raises(InstError, match="cannot be used: give the files that it refers to"):
            Place.of(url).file_system()


@pytest.mark.parametrize("start", ["file://", "local://"])
def test_a_pipe_behind_a_url_of_this_computer_is_not_opened(tmp_path: Path, start: str) -> None:
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(InstError, match="is not a file"):
        open_source(f"{start}{tmp_path}/a.jpg")
