"""Sources of many pictures: what each kind yields, and one clear line for what is wrong."""

import io
import os
import pickle
import subprocess
import sys
import tarfile
import tracemalloc
import warnings
from collections.abc import Iterable
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from git_lfs import write_pointer
from inst.batch import folders, places, remote
from inst.batch.items import Item, safe_name
from inst.batch.sources import STYLE_ENDINGS, file_item, open_source
from inst.errors import InstError, InstWarning, UsageError
from s3_server import serving_s3


def fill(folder: Path, *names: str) -> Path:
    """Write files whose content is their name."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return folder


def names(items: Iterable[Item]) -> list[str]:
    return [item.name for item in items]


def contents(items: Iterable[Item]) -> dict[str, str]:
    return {item.place: item.read().decode() for item in items}


def problem_of(item: Item) -> str:
    with pytest.raises(InstError) as caught:
        item.read()
    text = str(caught.value)
    assert "\n" not in text
    assert "\x1b" not in text
    return text


def shard(path: Path, *members: tuple[tarfile.TarInfo | str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for member, data in members:
            info = tarfile.TarInfo(member) if isinstance(member, str) else member
            if isinstance(member, str):
                info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def parquet(path: Path, **columns: object) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


# Folders, files and globs


def test_a_folder_yields_its_pictures_in_order_and_not_those_of_its_folders(tmp_path: Path) -> None:
    fill(tmp_path, "b.jpg", "a.PNG", ".hidden.jpg", "notes.md", "sub/c.jpg")
    source = open_source(tmp_path)
    assert names(source) == ["a", "b"]
    assert names(source) == ["a", "b"]  # again
    assert contents(source) == {f"{tmp_path}/a.PNG": "a.PNG", f"{tmp_path}/b.jpg": "b.jpg"}


def test_a_folder_is_read_with_its_folders_on_request(tmp_path: Path) -> None:
    fill(tmp_path, "b.jpg", "a/z.jpg", "a/y/x.jpg", "c/w.jpg", ".git/v.jpg")
    assert names(open_source(tmp_path, recursive=True)) == ["b", "a/z", "a/y/x", "c/w"]


def test_a_link_to_a_folder_is_followed_and_a_circle_ends(tmp_path: Path) -> None:
    fill(tmp_path, "photos/a.jpg", "photos/sub/b.jpg", "elsewhere/c.jpg")
    (tmp_path / "photos" / "sub" / "up").symlink_to("..")
    (tmp_path / "photos" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "photos" / "itself.jpg").symlink_to("itself.jpg")
    items = list(open_source(tmp_path / "photos", recursive=True))
    assert names(items) == ["a", "itself", "linked/c", "sub/b"]
    assert "itself.jpg cannot be read" in problem_of(items[1])


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is closed to the administrator")
def test_a_folder_that_is_closed_becomes_an_item_with_a_problem(tmp_path: Path) -> None:
    fill(tmp_path, "a.jpg", "closed/b.jpg", "open/c.jpg")
    (tmp_path / "closed").chmod(0)
    items = list(open_source(tmp_path, recursive=True))
    (tmp_path / "closed").chmod(0o700)
    assert names(items) == ["a", "closed", "open/c"]
    assert "Permission denied" in problem_of(items[1])


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.jpg", ["a"]),
        ("?.*", ["a", "b"]),
        ("sub/[c-d].jpg", ["c", "d"]),
        ("**/*.jpg", ["a", "sub/c", "sub/d", "sub/deep/e"]),
        ("**/deep/*", ["sub/deep/e"]),
        ("*/*/e.jpg", ["sub/deep/e"]),
        ("sub/**", ["c", "d", "deep/e"]),
    ],
)
def test_a_glob_yields_what_matches(
    pattern: str, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, "a.jpg", "b.png", "c.txt", "sub/c.jpg", "sub/d.jpg", "sub/deep/e.jpg", ".hid/f.jpg", "sub/.g.jpg")
    assert names(open_source(str(tmp_path / pattern))) == expected
    monkeypatch.chdir(tmp_path)
    source = open_source(pattern)
    monkeypatch.chdir("/")
    assert [item.read().decode() for item in source] == [item.place for item in source]


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path: Path) -> None:
    fill(tmp_path, "a[1].jpg", "a1.jpg", "x*.lst")
    assert contents(open_source(str(tmp_path / "a[1].jpg"))) == {f"{tmp_path}/a[1].jpg": "a[1].jpg"}
    (tmp_path / "x*.lst").write_text("a1.jpg\n")
    assert names(open_source(str(tmp_path / "x*.lst"))) == ["a1"]


def test_several_sources_follow_each_other(tmp_path: Path) -> None:
    fill(tmp_path, "one/a.jpg", "two/a.png", "b.jpg")
    assert names(open_source([tmp_path / "two", tmp_path / "one", str(tmp_path / "b.jpg")])) == ["a", "a", "b"]


def test_styles_are_style_files_and_paintings_but_no_states_of_learning(tmp_path: Path) -> None:
    fill(tmp_path, "night.safetensors", "half.state.safetensors", "castle.v2.webp")
    assert names(open_source(tmp_path, endings=STYLE_ENDINGS)) == ["castle.v2", "night"]


def test_pictures_that_cannot_be_read_are_passed_over_with_one_warning(tmp_path: Path) -> None:
    fill(tmp_path, "a.jpg", "b.heic", "c.CR2")
    source = open_source(tmp_path)
    with pytest.warns(InstWarning, match=r"b\.heic and 1 more in .* cannot be read and is passed over") as caught:
        assert names(source) == ["a"]
    assert len(caught) == 1


def test_an_item_is_read_in_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, "photos/a.jpg")
    monkeypatch.chdir(tmp_path)
    (item,) = open_source("photos")
    code = "import pickle, sys; print(pickle.load(sys.stdin.buffer).read().decode())"
    done = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(item), cwd="/", capture_output=True)
    assert (done.stdout, item.place) == (b"photos/a.jpg\n", "photos/a.jpg"), done.stderr


def test_more_names_than_a_block_come_in_the_same_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, *(f"{k * 37 % 101:03}.jpg" for k in range(101)), "é.jpg", "sub/x.jpg")
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.jpg"))).write_text("x")
    expected = names(open_source(tmp_path, recursive=True))
    monkeypatch.setattr(folders, "_BLOCK", 10)
    assert names(open_source(tmp_path, recursive=True)) == expected
    assert expected == [*(f"{k:03}" for k in range(101)), "é", "%FF", "sub/x"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("missing", "missing: no such file: check the path."),
        ("empty", "empty contains no picture"),
        ("*.gif", r"\*.gif contains no picture"),
        ("empty/*.tar", "contains no picture"),
        ("a.zip", "a.zip is no source of pictures: give a folder"),
        ("", "the path is empty"),
        ("fifo.jpg", "fifo.jpg is not a file"),
        ("empty.txt", "empty.txt contains no picture"),
    ],
)
def test_a_source_without_pictures_is_refused_at_once(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, "empty/notes.md", "a.zip", "a.jpg")
    (tmp_path / "empty.txt").write_text("\n# nothing\n")
    os.mkfifo(tmp_path / "fifo.jpg")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InstError, match=message):
        open_source(["a.jpg", text])


def test_no_source_at_all_is_refused() -> None:
    with pytest.raises(UsageError, match="No source of pictures is given"):
        open_source([])


def test_what_cannot_be_read_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, "large.jpg", "gone.jpg")
    (tmp_path / "empty.jpg").touch()
    write_pointer(tmp_path / "pointer.jpg")
    monkeypatch.setattr(places, "LARGEST_FILE", 300)
    (tmp_path / "large.jpg").write_bytes(b"x" * 301)
    items = {item.name: item for item in open_source(tmp_path)}
    (tmp_path / "gone.jpg").unlink()
    assert "is empty (0 bytes)" in problem_of(items["empty"])
    assert "only a pointer of git-lfs" in problem_of(items["pointer"])
    assert "has more than 300 bytes" in problem_of(items["large"])
    assert "no such file" in problem_of(items["gone"])
    assert "is a folder" in problem_of(file_item(str(tmp_path)))


def test_a_file_that_says_it_is_huge_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "sparse.jpg").open("wb") as file:
        file.truncate(places.LARGEST_FILE + 1)
    (item,) = open_source(tmp_path)
    tracemalloc.start()
    assert "has more than 1,073,741,824 bytes" in problem_of(item)
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


# List files


def test_a_list_names_files_and_urls_and_a_missing_file_stays_in_it(tmp_path: Path) -> None:
    fill(tmp_path, "lists/a.jpg", "b.jpg")
    path = tmp_path / "lists" / "l.txt"
    lines = ["\ufeffa.jpg", "", "# a comment", "../b.jpg", "no.jpg", str(tmp_path / "b.jpg"), "memory://x/c.jpg", "."]
    path.write_text("\r\n".join(lines), encoding="utf-8")
    fsspec.filesystem("memory").pipe("/x/c.jpg", b"far")
    items = list(open_source(path))
    assert names(items) == ["a", "b", "no", "b", "c", "picture"]
    assert [items[k].read() for k in (0, 1, 3, 4)] == [b"lists/a.jpg", b"b.jpg", b"b.jpg", b"far"]
    assert problem_of(items[2]) == f"{tmp_path}/lists/no.jpg: no such file: check the path."
    assert "is a folder" in problem_of(items[5])


def test_a_damaged_list_keeps_the_items_before(tmp_path: Path) -> None:
    fill(tmp_path, "a.jpg")
    (tmp_path / "l.txt").write_bytes(b"a.jpg\n\xff\xfe\n")
    items = list(open_source(tmp_path / "l.txt"))
    assert names(items) == ["a", "l"]
    assert "l.txt line 2 is not UTF-8 text" in problem_of(items[1])
    (tmp_path / "l.txt").write_bytes(b"\x00\x01")
    with pytest.raises(InstError, match="line 1 has NUL characters"):
        open_source(tmp_path / "l.txt")
    (tmp_path / "l.txt").write_bytes(b"x" * (1 << 21))
    with pytest.raises(InstError, match="line 1 is longer than"):
        open_source(tmp_path / "l.txt")


# Names


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a/b.jpg", "a/b"),
        ("a/b.JPG", "a/b"),
        ("a/b.5", "a/b.5"),
        ("../../etc/passwd", "etc/passwd"),
        ("/abs/./x.png", "abs/x"),
        ("..\\..\\x.png", "_.._x"),
        ("C:\\x.png", "C__x"),
        ("a\n\x1b[31m\u202eb.png", "a__[31m_b"),
        ("a//b/.../c", "a/b/c"),
        ("\udcff.png", "%FF"),
        (" . ", "picture"),
        ("", "picture"),
    ],
)
def test_a_name_is_safe_to_make_a_path_from(text: str, name: str) -> None:
    assert safe_name(text, (".jpg", ".png")) == name


def test_a_long_name_is_cut() -> None:
    assert len(safe_name("é" * 1000).encode()) == 200
    assert safe_name("/".join("abcdefghij" * 30 for _ in range(10_000))).count("/") == 2


# Shards


@pytest.mark.parametrize(("ending", "mode"), [(".tar", "w"), (".tar.gz", "w:gz"), (".tgz", "w:gz")])
def test_a_shard_yields_its_pictures_alone(ending: str, mode: str, tmp_path: Path) -> None:
    members = [("k1.jpg", b"1"), ("k1.txt", b"t"), ("k1.mask.png", b"m"), ("sub/k2.JPG", b"2"), ("._k1.jpg", b"mac")]
    path = shard(tmp_path / f"s{ending}", *members, mode=mode)
    items = [pickle.loads(pickle.dumps(item)) for item in open_source(path)]
    assert names(items) == ["k1", "k1.mask", "sub/k2"]
    assert [item.read() for item in items] == [b"1", b"m", b"2"]
    assert items[2].place == f"{path}/sub/k2.JPG"


def test_a_damaged_shard_of_several_loses_no_other(tmp_path: Path) -> None:
    for k in range(3):
        shard(tmp_path / f"s{k}.tar", ("a.jpg", b"x" * 2000), (f"b{k}.jpg", b"y" * 2000))
    whole = (tmp_path / "s1.tar").read_bytes()
    source = open_source(str(tmp_path / "*.tar"))
    for cut in (512 * 9, 512 * 5 + 100, 512 * 5, 100, 0):  # in the data, in a header, between members, at the start
        (tmp_path / "s1.tar").write_bytes(whole[:cut])
        items = list(source)
        assert names(items)[-3:] == ["s1", "a", "b2"], cut
        assert names(items)[:2] == ["a", "b0"]
        assert "s1.tar is damaged" in problem_of(items[-3])
    (tmp_path / "s1.tar").write_bytes(whole[: 512 * 5] + b"garbage!" * 64 + whole[512 * 6 :])
    assert "invalid header" in problem_of(list(source)[-3])
    (tmp_path / "s1.tar").unlink()
    assert len(list(source)) == 4


def test_hostile_members_take_no_memory_and_lead_nowhere(tmp_path: Path) -> None:
    def member(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, link: str = "") -> tarfile.TarInfo:
        info = tarfile.TarInfo(name)
        info.type, info.size, info.linkname = kind, size, link
        return info

    path = tmp_path / "s.tar"
    shard(
        path,
        ("../../up.jpg", b"1"),
        ("/abs.jpg", b"2"),
        ("new\nline\x1b[2J.jpg", b"3"),
        (member("link.jpg", tarfile.SYMTYPE, link="/etc/passwd"), b""),
        (member("hard.jpg", tarfile.LNKTYPE, link="/etc/passwd"), b""),
        (member("device.jpg", tarfile.CHRTYPE), b""),
        ("folder.jpg/x.jpg", b"4"),
        ("empty.jpg", b""),
    )
    end = path.read_bytes().rstrip(b"\0")
    end += b"\0" * (-len(end) % 512)
    path.write_bytes(end + member("huge.jpg", size=10**12).tobuf(tarfile.GNU_FORMAT) + b"\0" * 1024)
    items = list(open_source(path))
    assert names(items) == ["up", "abs", "new_line_[2J", "folder.jpg/x", "empty", "huge", "s"]
    assert [item.read() for item in items[:4]] == [b"1", b"2", b"3", b"4"]
    assert all("\n" not in item.place and "\x1b" not in item.place for item in items)
    assert "is empty" in problem_of(items[4])
    assert "has 1,000,000,000,000 bytes, more than" in problem_of(items[5])
    assert "s.tar is damaged (unexpected end of data)" in problem_of(items[6])


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_SPARSE])
def test_a_header_that_would_fill_the_memory_is_refused(kind: bytes, tmp_path: Path) -> None:
    info = tarfile.TarInfo("x.jpg")
    info.type, info.size = kind, 10**11
    (tmp_path / "s.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + b"\0" * 10240)
    with pytest.raises(InstError, match=r"s\.tar is damaged"):
        open_source(tmp_path / "s.tar")


def test_a_million_nested_headers_are_one_line(tmp_path: Path) -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1
    (tmp_path / "s.tar").write_bytes((info.tobuf(tarfile.GNU_FORMAT) + b"\0" * 512) * 5000)
    with pytest.raises(InstError, match=r"s\.tar is damaged"):
        open_source(tmp_path / "s.tar")


def test_a_file_that_is_no_shard_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, "s.tar")
    with pytest.raises(InstError, match=r"s\.tar is damaged"):
        open_source(tmp_path / "s.tar")
    shard(tmp_path / "t.tar", ("a.txt", b"x"))
    with pytest.raises(InstError, match=r"t\.tar contains no picture"):
        open_source(tmp_path / "t.tar")


# Parquet files


def test_bytes_in_a_parquet_file_with_names(tmp_path: Path) -> None:
    path = parquet(tmp_path / "p.parquet", image=[b"1", None, b""], key=["a/b.jpg", "../x", None], thumb=[b"t"] * 3)
    items = [pickle.loads(pickle.dumps(item)) for item in open_source(path)]
    assert names(items) == ["a/b", "x", "p/2"]
    assert [item.place for item in items] == [f"{path} row {k}" for k in range(3)]
    assert items[0].read() == b"1"
    assert "row 1 has no picture" in problem_of(items[1])
    assert "row 2 is empty" in problem_of(items[2])


def test_structs_as_in_datasets_of_hugging_face(tmp_path: Path) -> None:
    fill(tmp_path, "c.jpg")
    rows = [{"bytes": b"1", "path": "a.jpg"}, {"bytes": b"2", "path": None}, {"bytes": None, "path": "c.jpg"}, None]
    items = list(open_source(parquet(tmp_path / "p.parquet", image=rows, label=[1, 2, 3, 4])))
    assert names(items) == ["a", "p/1", "c", "p/3"]
    assert [item.read() for item in items[:3]] == [b"1", b"2", b"c.jpg"]
    assert "row 3 has no picture" in problem_of(items[3])


def test_paths_in_a_parquet_file_are_relative_to_it(tmp_path: Path) -> None:
    fill(tmp_path, "d/a.jpg")
    path = parquet(tmp_path / "d" / "p.parquet", Photo=["a.jpg", "no.jpg", "x\0y"], id=[7, 8, 9])
    items = list(open_source(path))
    assert names(items) == ["7", "8", "9"]
    assert items[0].read() == b"d/a.jpg"
    assert "no.jpg: no such file" in problem_of(items[1])
    assert "row 2 names no file" in problem_of(items[2])


def test_the_column_of_pictures_is_chosen_or_found(tmp_path: Path) -> None:
    path = parquet(tmp_path / "p.parquet", left=[b"1"], right=[b"2"], number=[3], text=["x"])
    with pytest.raises(UsageError, match=r"several columns of pictures \(left, right\): name the column with `column`"):
        open_source(path)
    assert [item.read() for item in open_source(path, column="right")] == [b"2"]
    with pytest.raises(UsageError, match=r'no column "up": use one of left, right, number, text'):
        open_source(path, column="up")
    with pytest.raises(UsageError, match=r'column "number" of .* cannot hold pictures'):
        open_source(path, column="number")
    dictionary = pa.array(["a.jpg", "a.jpg"]).dictionary_encode()
    assert names(open_source(parquet(tmp_path / "q.parquet", only=dictionary))) == ["a", "a"]


def test_parquet_files_without_pictures_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InstError, match=r"p\.parquet has no column of pictures: .*it has x, y"):
        open_source(parquet(tmp_path / "p.parquet", x=[1], y=[2.0]))
    fill(tmp_path, "q.parquet")
    with pytest.raises(InstError, match=r"q\.parquet is damaged, or no Parquet file"):
        open_source(tmp_path / "q.parquet")
    parquet(tmp_path / "a.parquet", image=[b"1"])
    items = list(open_source(str(tmp_path / "*.parquet")))
    assert names(items) == ["a/0", "p", "q"]
    assert "no column of pictures" in problem_of(items[1])


# URLs


def test_a_memory_file_system_is_read_as_a_disk_is() -> None:
    system = fsspec.filesystem("memory")
    for name in ("b.jpg", "a.jpg", "sub/c.jpg", ".h.jpg", "l.txt"):
        system.pipe(f"/photos/{name}", name.encode())
    system.pipe("/photos/l.txt", b"a.jpg\nsub/../b.jpg\n")
    assert names(open_source("memory://photos")) == ["a", "b"]
    assert names(open_source("memory://photos", recursive=True)) == ["a", "b", "sub/c"]
    assert names(open_source("memory://ph*/**/c.jpg")) == ["photos/sub/c"]
    assert contents(open_source("memory://photos/l.txt")) == {
        "memory://photos/a.jpg": "a.jpg",
        "memory://photos/b.jpg": "b.jpg",
    }
    assert contents(open_source("memory://photos/*.txt")) == {
        "memory:///photos/a.jpg": "a.jpg",
        "memory:///photos/b.jpg": "b.jpg",
    }
    with pytest.raises(InstError, match="memory://nothing: no such file"):
        open_source("memory://nothing")
    system.rm("/photos", recursive=True)


def test_a_bucket_of_s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = shard(tmp_path / "s.tar", ("k.jpg", b"k")).read_bytes()
    table = parquet(tmp_path / "p.parquet", photo=["d/0.jpg", "no.jpg"]).read_bytes()
    objects = {f"d/{k}.jpg": b"%d" % k for k in range(8)}
    objects |= {"d/sub/y.png": b"y", "d/sub/": b"", "d/l.txt": b"\n0.jpg\n../top.jpg\n", "top.jpg": b"t"}
    objects |= {"s.tar": packed, "p.parquet": table, "w?.jpg": b"w", "d/.h.jpg": b"h"}
    calls = []
    with serving_s3(monkeypatch, objects) as address:
        pages = remote._s3_names
        monkeypatch.setattr(remote, "_s3_names", lambda *given, **more: calls.append(given) or pages(*given, **more))
        assert names(open_source("s3://pictures/d")) == [str(k) for k in range(8)]
        assert names(open_source("s3://pictures/d/", recursive=True)) == [*map(str, range(8)), "sub/y"]
        assert names(open_source("s3://pictures/*/[2-4].jpg")) == ["d/2", "d/3", "d/4"]
        assert calls, "the listing in pages is not used"
        assert contents(open_source("s3://pictures/d/l.txt")) == {
            "s3://pictures/d/0.jpg": "0",
            "s3://pictures/top.jpg": "t",
        }
        assert contents(open_source("s3://pictures/*.tar")) == {"s3://pictures/s.tar/k.jpg": "k"}
        assert contents(open_source("s3://pictures/w?.jpg")) == {"s3://pictures/w?.jpg": "w"}
        items = list(open_source("s3://pictures/p.parquet"))
        assert items[0].read() == b"0"
        assert "s3://pictures/no.jpg: no such file" in problem_of(items[1])
        (picture,) = open_source("s3://pictures/d/7.jpg")
        code = "import pickle, sys; print(pickle.load(sys.stdin.buffer).read().decode())"
        done = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(picture), capture_output=True)
        assert done.stdout == b"7\n", done.stderr
        for missing in ("s3://nothing/d", "s3://pictures/d/9.jpg"):
            with pytest.raises(InstError, match=f"{missing}: no such file"):
                open_source(missing)
        with pytest.raises(InstError, match="s3://pictures/none contains no picture"):
            open_source("s3://pictures/none")
        web = address.replace("http://", "http://reader:secret@") + "/pictures/d/7.jpg?signature=abc"
        (item,) = open_source(web)
        assert (item.name, item.place, item.read()) == ("7", f"{address}/pictures/d/7.jpg", b"7")
        assert "secret" not in repr(item)
        assert "abc" not in repr(item)


def test_credentials_are_in_no_message() -> None:
    for url in ("http://user:p@ss@127.0.0.1:1/a.jpg", "http://127.0.0.1:1/a.jpg?X-Signature=p@ss", "bad://u:p@ss@h/x"):
        with pytest.raises(InstError) as caught:
            open_source(url)
        assert "ss" not in str(caught.value).split("://")[1].replace("address", "").replace("pass", "")
        assert "p@" not in str(caught.value)


def test_a_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(InstError, match=r'gcsfs is missing: install it with pip install "inst\[gs\]"'):
        open_source("gs://bucket/photos")
    path = parquet(tmp_path / "p.parquet", image=[b"1"])
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(InstError, match=r'pyarrow is missing: install it with pip install "inst\[batch\]"'):
        open_source(path)


# Memory


def peak(source: Iterable[Item]) -> int:
    """The most bytes that Python held while a source was iterated."""
    tracemalloc.start()
    for _ in source:
        pass
    found = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return found


def test_a_long_list_takes_no_more_memory_than_a_short_one(tmp_path: Path) -> None:
    peaks = []
    for count in (1000, 100_000):
        (tmp_path / "l.txt").write_text("".join(f"photos/{k}.jpg\n" for k in range(count)))
        peaks.append(peak(open_source(tmp_path / "l.txt")))
    assert peaks[1] < peaks[0] + 100_000


def test_a_large_folder_takes_no_more_memory_than_a_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "_BLOCK", 1000)
    peaks = []
    for count in (2000, 100_000):
        folder = tmp_path / str(count)
        folder.mkdir()
        for k in range(count):
            os.close(os.open(folder / f"{k}.jpg", os.O_CREAT))
        peaks.append(peak(open_source(folder)))
    assert peaks[1] < peaks[0] + 100_000


def test_a_long_shard_takes_no_more_memory_than_a_short_one(tmp_path: Path) -> None:
    peaks = []
    for count in (300, 6000):
        path = shard(tmp_path / f"{count}.tar", *((f"{k}.jpg", b"x") for k in range(count)))
        peaks.append(peak(open_source(path)))
    assert peaks[1] < peaks[0] + 100_000


def test_a_large_row_group_is_not_in_memory_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    rows = [os.urandom(200_000) for _ in range(200)]  # 40 MB in one row group
    pq.write_table(pa.table({"image": rows}), path, compression="none", data_page_size=1 << 20, write_batch_size=8)
    del rows
    most = 0
    before = pa.total_allocated_bytes()
    for _ in open_source(path):
        most = max(most, pa.total_allocated_bytes() - before)
    assert most < 15_000_000


def test_no_warning_is_given_for_ordinary_sources(tmp_path: Path) -> None:
    fill(tmp_path, "a.jpg", "notes.md")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert names(open_source(tmp_path)) == ["a"]
