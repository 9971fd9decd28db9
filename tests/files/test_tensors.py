"""Safetensors files from strangers: what the library would wait for or allocate is refused before it opens them."""

import os
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from inst import InstError
from inst.files.tensors import HEADER_BYTES, is_real, open_tensors

GOOD = save({"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.float16)}, {"note": "water"})


def read(path: Path) -> dict[str, torch.Tensor]:
    with open_tensors(path) as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def refusal(path: Path) -> str:
    with pytest.raises(InstError) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_good_file_is_read_whatever_its_name(tmp_path: Path) -> None:
    for name in (b"a.safetensors", b"caf\xe9.safetensors"):
        path = tmp_path / os.fsdecode(name)
        path.write_bytes(GOOD)
        assert torch.equal(read(path)["a"], torch.arange(6.0).reshape(2, 3))


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX")
def test_what_is_no_regular_file_is_refused_without_a_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "is not a regular file" in refusal(tmp_path / "pipe")
    assert "is not a regular file" in refusal(Path("/dev/zero"))
    assert "is a folder" in refusal(tmp_path)
    assert "no such file" in refusal(tmp_path / "none")


def test_a_long_header_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    length = HEADER_BYTES + 8
    path.write_bytes(struct.pack("<Q", length) + b"{}".ljust(length))
    assert "header of more than 16 MB" in refusal(path)


@given(st.integers(0, len(GOOD) - 1), st.binary(max_size=12), st.integers(0, 12))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_broken_bytes_give_one_line_or_tensors(tmp_path: Path, place: int, new: bytes, removed: int) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(GOOD[:place] + new + GOOD[place + removed :])
    try:
        read(path)
    except InstError as error:
        message = str(error)
    else:
        message = ""
    assert "\n" not in message


def test_a_type_that_cannot_be_converted_is_not_real() -> None:
    assert all(is_real(torch.ones(2, dtype=dtype)) for dtype in (torch.float16, torch.bfloat16, torch.float8_e4m3fn))
    assert not any(is_real(torch.ones(2, dtype=dtype)) for dtype in (torch.int8, torch.bool, torch.complex64))
    packed = torch.zeros(2, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    assert packed.is_floating_point()
    assert not is_real(packed)
