"""Write files completely or not at all, and make folders."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from inst.errors import InstError
from inst.files.holding import new_part, sweep_once

LONGEST_NAME = 255
"""Largest name of a file in bytes, on all common file systems."""


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
def replace_when_finished(path: str | os.PathLike[str], *, exclusive: bool = False) -> Iterator[Path]:
    """Yield an empty file in the folder of `path`, and give it that name at the end of the block. An old file stays
    until then, and for good if the block fails.

    A link is followed and stays a link. A file that is replaced keeps its permissions. What killed processes left in
    the folder is deleted (`inst.files.holding.sweep`).

    Args:
        path: the file to write.
        exclusive: replace no file: not one that is there, and not one that appears before the end of the block.

    Raises:
        InstError: the folder does not exist or is not writable, the disk is full, or `path` is a folder, a device or
            write-protected; or, if `exclusive`, `path` exists.
    """
    path = Path(path)
    try:
        target = Path(os.path.realpath(path))
        if target.exists():
            if exclusive:
                raise is_there(path)
            if not target.is_file():
                kind = "a folder" if target.is_dir() else "not a regular file"
                raise InstError(f"{path} cannot be written: it is {kind}", "choose another name")
            if not os.access(target, os.W_OK):
                # Renaming needs only the folder's permission and would ignore the permission of the file.
                raise InstError(f"{path} cannot be written: it is write-protected", "choose another name")
        sweep_once(target.parent)
        unfinished, locked = new_part(target.parent)
        with locked:
            try:
                if target.exists():
                    unfinished.chmod(stat.S_IMODE(target.stat().st_mode))
                yield unfinished
                with unfinished.open("r+b") as file:  # which creates none: if it was deleted, nothing is replaced
                    os.fsync(file.fileno())
                if exclusive:
                    _give_new_name(unfinished, target)
                else:
                    unfinished.replace(target)
            except BaseException:
                with contextlib.suppress(OSError):
                    unfinished.unlink(missing_ok=True)
                raise
    except FileExistsError:
        raise is_there(path) from None
    except FileNotFoundError as error:
        if folder_of(path).is_dir():  # somebody deleted the unfinished file
            raise cannot_write(path, error) from None
        raise InstError(
            f"{path} cannot be written: the folder {folder_of(path)} does not exist",
            "create it, or choose another folder",
        ) from None
    except OSError as error:
        raise cannot_write(path, error) from None


def is_there(path: Path) -> InstError:
    """Return the error for a file that would be overwritten."""
    return InstError(f"{path} is there already and would be overwritten", "give another name")


def _give_new_name(unfinished: Path, target: Path) -> None:
    """Rename a file. Raises FileExistsError if the new name is in use, which renaming alone would not."""
    try:
        os.link(unfinished, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        target.open("xb").close()
        unfinished.replace(target)
    else:
        unfinished.unlink()


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


def cannot_write(path: Path, error: OSError) -> InstError:
    """Return the error for a file or folder that the system does not let write."""
    remedies = {
        errno.ENOSPC: "free space on the disk",
        errno.EDQUOT: "free space on the disk",
        errno.ENAMETOOLONG: "choose a shorter name",
    }
    remedy = remedies.get(error.errno or 0, "choose another folder")
    return InstError(f"{path} cannot be written ({error.strerror or error})", remedy)
