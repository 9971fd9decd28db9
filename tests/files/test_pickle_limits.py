"""Pickles and archives that would build far more than they hold are refused before anything is built."""

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bounded import bounded_memory  # noqa: F401  # a fixture for all tests here
from inst import InstError
from inst.files import pickle_limits
from inst.files.pickle_limits import DamagedPickleError, UnsafePickleError, check_pickle, check_torch_file
from inst.files.pickles import read_numpy_pickle, read_torch_pickle, read_torchscript_tensors


def check(data: bytes) -> None:
    check_pickle(io.BytesIO(data))


def doubled(container: str, times: int = 60) -> bytes:
    """A pickle of tuples, lists or dicts that each hold the one before twice."""
    kinds = {"tuple": lambda one: (one, one), "list": lambda one: [one, one], "dict": lambda one: {"a": one, "b": one}}
    value: object = ()
    for _ in range(times):
        value = kinds[container](value)
    return pickle.dumps({"weights": value}, 2)


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=20,
)


@given(_values, st.integers(0, 5))
def test_ordinary_pickles_pass_and_end_where_they_end(value: object, protocol: int) -> None:
    file = io.BytesIO(pickle.dumps(value, protocol) + b"more")
    check_pickle(file)
    assert file.read() == b"more"


@pytest.mark.parametrize("container", ["tuple", "list", "dict"])
def test_what_is_used_twice_counts_twice(container: str) -> None:
    check(doubled(container, 10))
    with pytest.raises(UnsafePickleError, match="too many parts"):
        check(doubled(container))


def test_a_key_that_python_would_hash_for_ever_is_refused_also_if_it_is_dropped() -> None:
    twice = b"".join(b"h" + bytes([n]) + b"h" + bytes([n]) + b"\x86q" + bytes([n + 1]) + b"0" for n in range(60))
    with pytest.raises(UnsafePickleError, match="too many parts"):
        check(b"\x80\x02)q\x000" + twice + b"}h\x3cNs0N.")


def test_what_holds_itself_is_refused() -> None:
    own: list[object] = []
    own.append([own])
    with pytest.raises(UnsafePickleError, match="holds itself"):
        check(pickle.dumps(own))


def test_deep_nesting_is_refused() -> None:
    check(b"\x80\x02" + b")" + b"\x85" * 100 + b".")
    with pytest.raises(UnsafePickleError, match="too deeply"):
        check(b"\x80\x02" + b")" + b"\x85" * 100_000 + b".")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b".",
        b"\x80\x02",
        b"\x80\x02h\x05.",  # an object that was never kept
        b"\x80\x02\x86.",  # a pair of nothing
        b"\x80\x02(\x85.",
        b"\x80\x02Nt.",
        b"\x80\x02X\xff\xff\xff\x7fabc.",
        b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"abc.",
    ],
    ids=repr,
)
def test_a_damaged_pickle_is_said_to_be_damaged(data: bytes) -> None:
    with pytest.raises(DamagedPickleError, match="damaged"):
        check(data)


def test_a_number_for_a_kept_object_makes_no_long_table() -> None:
    with pytest.raises(UnsafePickleError, match="numbers an object"):
        read_numpy_pickle(b"\x80\x02}r\xff\xff\xff\xff.")


def test_an_array_whose_shape_is_no_shape_is_refused() -> None:
    head = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n\x85R(K\x01"
    for shape in (
        b"X\x03\x00\x00\x00abcJ\xff\xff\xff\x7f\x86",
        b")J\xff\xff\xff\x7f\x86",
        b"J\xff\xff\xff\xff\x85",
        b"N",
    ):
        with pytest.raises(UnsafePickleError, match="without a shape"):
            read_numpy_pickle(head + shape + b"N\x89Ntb.")


def torch_file(path: Path, value: object = None, *, legacy: bool = False) -> Path:
    value = {"a": torch.arange(6.0).reshape(2, 3)} if value is None else value
    torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    return path


def repacked(path: Path, compression: int, extra: dict[str, bytes] | None = None) -> Path:
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in (contents | (extra or {})).items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize("legacy", [False, True])
def test_files_of_torch_are_read_as_torch_reads_them(tmp_path: Path, legacy: bool) -> None:
    value = {"a": torch.randn(3, 4), "shared": (), "deep": OrderedDict(b=[torch.ones(2, dtype=torch.float16)])}
    path = torch_file(tmp_path / "a.pt", value, legacy=legacy)
    assert check_torch_file(path) is not legacy
    found = read_torch_pickle(path, {})
    assert isinstance(found, dict)
    assert torch.equal(found["a"], value["a"])
    assert torch.equal(found["deep"]["b"][0], torch.ones(2, dtype=torch.float16))
    assert check_torch_file(repacked(torch_file(tmp_path / "b.pt"), zipfile.ZIP_STORED))


def test_a_compressed_archive_is_refused_however_small_it_is(tmp_path: Path) -> None:
    path = repacked(torch_file(tmp_path / "a.pt"), zipfile.ZIP_DEFLATED, {"a/more": bytes(200_000_000)})
    assert path.stat().st_size < 1_000_000
    with pytest.raises(UnsafePickleError, match="compressed"):
        check_torch_file(path)
    stored = repacked(torch_file(tmp_path / "b.pt"), zipfile.ZIP_STORED, {"b/data.pkl": doubled("tuple")})
    with pytest.raises(UnsafePickleError, match="too many parts"):
        read_torch_pickle(stored, {})


def test_entries_that_overlap_or_have_one_name_are_refused(tmp_path: Path) -> None:
    path = torch_file(tmp_path / "a.pt")
    data = bytearray(path.read_bytes())
    entries = [place for place in range(len(data)) if data[place : place + 4] == b"PK\x01\x02"]
    data[entries[1] + 42 : entries[1] + 46] = data[entries[0] + 42 : entries[0] + 46]  # where its content is
    path.write_bytes(data)
    with pytest.raises(UnsafePickleError, match=r"overlap|not a readable archive"):
        check_torch_file(path)
    with pytest.raises(UnsafePickleError, match=r"not one data\.pkl"):
        check_torch_file(repacked(torch_file(tmp_path / "b.pt"), zipfile.ZIP_STORED, {"c/DATA.PKL": b"N."}))


def test_an_archive_whose_directory_two_readers_may_find_at_two_places_is_refused(tmp_path: Path) -> None:
    path = torch_file(tmp_path / "a.pt")
    whole = path.read_bytes()
    for other in (whole + b"more", whole[:64] + bytes(8) + whole[64:], whole[:-30], whole[:4]):
        path.write_bytes(other)
        with pytest.raises(DamagedPickleError, match="not a readable archive"):
            check_torch_file(path)


def test_more_numbers_than_the_file_has_bytes_are_refused(tmp_path: Path) -> None:
    path = torch_file(tmp_path / "a.pt", legacy=True)
    data = path.read_bytes()
    number = b"K\x06N"  # six numbers in the storage
    assert data.count(number) == 1
    path.write_bytes(data.replace(number, b"\x8a\x06\x00\x00\x00\x00\x00\x10N"))
    with pytest.raises(UnsafePickleError, match="announces more numbers"):
        read_torch_pickle(path, {})


def test_a_tensor_that_repeats_one_number_is_not_taken_for_a_whole_one(tmp_path: Path) -> None:
    path = torch_file(tmp_path / "a.pt", {"a": torch.ones(1).expand(1_000_000, 1_000_000), "b": torch.ones(4)[1:3]})
    found = read_torch_pickle(path, {})
    assert isinstance(found, dict)
    from inst.files.pickles import is_dense

    assert [is_dense(found["a"]), is_dense(found["b"])] == [False, True]


def test_a_torchscript_archive_may_compress_only_its_code() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("net/code/net.py", "pass")
        archive.writestr("net/data.pkl", pickle.dumps({}, 2), zipfile.ZIP_STORED)
    assert read_torchscript_tensors(buffer.getvalue()) == {}
    with zipfile.ZipFile(buffer, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("net/data/0", bytes(1_000_000))
    with pytest.raises(UnsafePickleError, match="compressed"):
        read_torchscript_tensors(buffer.getvalue())


def test_devices_and_pipes_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path, Path("/dev/zero")):
        with pytest.raises(InstError, match=r"is a folder|is not a regular file|no such file"):
            read_torch_pickle(path, {})


def test_the_number_of_instructions_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickle_limits, "MOST_PARTS", 1000)
    with pytest.raises(UnsafePickleError, match="instructions"):
        check(pickle.dumps(list(range(2000))))
