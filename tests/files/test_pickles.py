import io
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from inst.files.pickle_limits import UnsafePickleError
from inst.files.pickles import read_numpy_pickle, read_torchscript_tensors


def test_numpy_pickles_are_read_as_numpy_reads_them() -> None:
    rng = np.random.default_rng(0)
    content = {
        "net": {"kernel": rng.standard_normal((3, 3, 2, 5), dtype=np.float32), "bias": np.zeros(5, np.float32)},
        "fortran": np.asfortranarray(rng.standard_normal((4, 6), dtype=np.float32)),
    }
    for protocol in (3, 4):
        arrays = read_numpy_pickle(pickle.dumps(content, protocol=protocol))
        assert arrays.keys() == {"net.kernel", "net.bias", "fortran"}
        np.testing.assert_array_equal(arrays["net.kernel"], content["net"]["kernel"])
        np.testing.assert_array_equal(arrays["fortran"], content["fortran"])


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return os.mkdir, (str(self.path),)


def test_a_malicious_numpy_pickle_is_refused_and_runs_no_code(tmp_path: Path) -> None:
    data = pickle.dumps({"kernel": np.ones(3, np.float32), "extra": Malicious(tmp_path / "canary")})
    with pytest.raises(UnsafePickleError, match=r"mkdir, which is not on the allow-list"):
        read_numpy_pickle(data)
    assert not (tmp_path / "canary").exists()
    pickle.loads(data)  # the ordinary reader does run it: the test would notice
    assert (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    "value", [np.ones(3), np.ones(3, ">f4"), np.array([{}], dtype=object), np.array(["a"])], ids=str
)
def test_only_little_endian_float32_is_taken(value: np.ndarray) -> None:
    with pytest.raises(UnsafePickleError):
        read_numpy_pickle(pickle.dumps({"kernel": value}, protocol=3))


@pytest.mark.parametrize("cut", [0, 1, 40, 200])
def test_a_damaged_pickle_is_refused(cut: int) -> None:
    data = pickle.dumps({"kernel": np.ones(100, np.float32)}, protocol=3)
    with pytest.raises(pickle.UnpicklingError):
        read_numpy_pickle(data[:cut])


def test_a_pickle_that_holds_itself_is_refused() -> None:
    content: dict[str, object] = {}
    content["again"] = content
    with pytest.raises(UnsafePickleError, match="cannot be read"):
        read_numpy_pickle(pickle.dumps(content))


class Normalised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 3, 3))
        self.mean = nn.Parameter(torch.randn(4))
        self.padding = 1

    def forward(self, x: Tensor) -> Tensor:
        return torch.conv2d(x, self.weight, padding=self.padding) - self.mean.view(1, 4, 1, 1)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = Normalised()
        self.rest = nn.Sequential(nn.Conv2d(4, 2, 1), nn.GroupNorm(1, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.first(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_tensors_are_read_exactly() -> None:
    net = Net()
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(net), buffer)
    arrays = read_torchscript_tensors(buffer.getvalue())
    assert arrays.keys() == net.state_dict().keys()
    for name, tensor in net.state_dict().items():
        np.testing.assert_array_equal(arrays[name], tensor.numpy())


def _torchscript(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("net/data.pkl", data)
    return buffer.getvalue()


def test_a_malicious_torchscript_file_is_refused_and_runs_no_code(tmp_path: Path) -> None:
    with pytest.raises(UnsafePickleError, match="allow-list"):
        read_torchscript_tensors(_torchscript(pickle.dumps(Malicious(tmp_path / "canary"), protocol=2)))
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    "data",
    [b"", b"no zip file", _torchscript(b"\x80\x02"), _torchscript(b"")],
    ids=["empty", "no zip file", "truncated pickle", "empty pickle"],  # a zip file's bytes hold the time
)
def test_a_damaged_torchscript_file_is_refused(data: bytes) -> None:
    with pytest.raises(pickle.UnpicklingError):
        read_torchscript_tensors(data)


_ARRAYS = pickle.dumps({"net": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}}, protocol=3)


def _module() -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(Normalised()), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("good", "read"),
    [(_ARRAYS, read_numpy_pickle), (_module(), read_torchscript_tensors)],
    ids=["numpy", "torchscript"],
)
@given(data=st.data())
@settings(deadline=None)
def test_broken_bytes_give_arrays_or_are_refused(
    good: bytes, read: Callable[[bytes], dict[str, np.ndarray]], data: st.DataObject
) -> None:
    place = data.draw(st.integers(0, len(good) - 1))
    removed = data.draw(st.integers(0, 20))
    broken = good[:place] + data.draw(st.binary(max_size=20)) + good[place + removed :]
    try:
        arrays = read(broken)
    except UnsafePickleError:
        return
    assert all(array.dtype == np.float32 for array in arrays.values())
