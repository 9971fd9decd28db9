"""Write files completely or not at all, make folders, and find unused file names."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from inst.errors import InstError

_NO_FILE_NAME = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f]')
"""Characters that a common operating system does not allow in a file name."""

LONGEST_NAME = 255
"""Largest name of a file in bytes, on all common file systems."""

_LONGEST_STEM = 200
"""Largest stem in bytes: a number and an ending must fit too."""


def write_bytes_atomically(path: str | Path, data: bytes | memoryview | Iterable[bytes]) -> Path:
    """Write a file completely or not at all, and return `path`. An old file stays until the new data is on the disk.

    `data` can be an iterable of pieces. They are written one by one and need not be in memory together.

    Raises:
        InstError: as `replace_when_finished`.
    """
    with replace_when_finished(path) as unfinished, unfinished.open("wb") as file:
        file.writelines([data] if isinstance(data, bytes | memoryview) else data)
    return Path(path)


@contextlib.contextmanager
def replace_when_finished(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield an empty file in the folder of `path`, and give it that name at the end of the block. An old file stays
    until then, and for good if the block fails.

    A link is followed and stays a link. A file that is replaced keeps its permissions.

    Raises:
        InstError: the folder does not exist or is not writable, the disk is full, or `path` is a folder, a device or
            write-protected.
    """
    path = Path(path)
    try:
        target = Path(os.path.realpath(path))
        if target.exists():
            if not target.is_file():
                kind = "a folder" if target.is_dir() else "not a regular file"
                raise InstError(f"{path} cannot be written: it is {kind}", "choose another name")
            if not os.access(target, os.W_OK):
                # Renaming needs only the folder's permission and would ignore the permission of the file.
                raise InstError(f"{path} cannot be written: it is write-protected", "choose another name")
        unfinished = target.with_name(f".{secrets.token_hex(8)}.part")
        try:
            unfinished.open("xb").close()
            if target.exists():
                unfinished.chmod(stat.S_IMODE(target.stat().st_mode))
            yield unfinished
            with unfinished.open("ab") as file:
                os.fsync(file.fileno())
            unfinished.replace(target)
        except BaseException:
            with contextlib.suppress(OSError):
                unfinished.unlink(missing_ok=True)
            raise
    except FileNotFoundError:
        raise InstError(
            f"{path} cannot be written: the folder {folder_of(path)} does not exist",
            "create it, or choose another folder",
        ) from None
    except OSError as error:
        raise cannot_write(path, error) from None


def folder_of(path: Path) -> Path:
    """Return the folder in which a file is written: for a link, that of its target."""
    return Path(os.path.realpath(path) if path.is_symlink() else path).parent


def make_folder(path: str | Path) -> Path:
    """Create a folder and its parents if they are missing; return `path`. Raises InstError if it cannot be created."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise InstError(f"{path} is a file", "choose a folder") from None
    except OSError as error:
        raise InstError(f"{path} cannot be created ({error.strerror or error})", "give another folder") from None
    return path


def cut_name(name: str, most: int) -> str:
    """Return the beginning of a file's name, at most this number of bytes."""
    return name.encode()[:most].decode(errors="ignore")


def free_path(folder: str | Path, stem: str, suffix: str) -> Path:
    """Reserve an unused file name: `stem.suffix`, or `stem-2.suffix`, `stem-3.suffix`, and so on.

    An empty file is created in the same step that finds the name unused. So two processes never get the same name, and
    no file is ever overwritten. Write the content to the returned path. `reserve_path` deletes the empty file if
    nothing is written.

    Args:
        folder: created if it is missing.
        stem: any text. Characters that are not allowed in a file name become `_`; a long text is cut.
        suffix: the ending with its dot, such as ".png".

    Raises:
        InstError: the folder cannot be created or is not writable.
    """
    folder = Path(folder)
    text = stem.encode(errors="replace").decode()  # a name that is not valid Unicode has lone surrogates
    stem = cut_name(_NO_FILE_NAME.sub("_", text), _LONGEST_STEM).strip(" .") or "picture"
    number = 1
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise InstError(f"{folder} is a file", "choose a folder") from None
        while True:
            path = folder / (f"{stem}{suffix}" if number == 1 else f"{stem}-{number}{suffix}")
            try:
                path.open("xb").close()  # O_CREAT and O_EXCL: fails if the name exists, even as a broken link
            except FileExistsError:
                number += 1
            else:
                return path
    except OSError as error:
        raise cannot_write(folder, error) from None


@contextlib.contextmanager
def reserve_path(folder: str | Path, stem: str, suffix: str) -> Iterator[Path]:
    """Reserve a name as `free_path` does, and delete the empty file at the end if nothing was written to it."""
    path = free_path(folder, stem, suffix)
    try:
        yield path
    finally:
        with contextlib.suppress(OSError):
            if path.stat().st_size == 0:
                path.unlink()


def cannot_write(path: Path, error: OSError) -> InstError:
    """Return the error for a file or folder that the system does not let write."""
    remedies = {
        errno.ENOSPC: "free space on the disk",
        errno.EDQUOT: "free space on the disk",
        errno.ENAMETOOLONG: "choose a shorter name",
    }
    remedy = remedies.get(error.errno or 0, "choose another folder")
    return InstError(f"{path} cannot be written ({error.strerror or error})", remedy)
