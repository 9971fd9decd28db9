"""Writing files whole or not at all, names that are still free, and which names are those of pictures."""

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
"""What one of the common systems refuses in a file's name."""

_LONGEST_STEM = 200
"""Bytes of a stem: leaves room for a number and an ending within the 255 bytes that file systems take."""


def write_bytes_atomically(path: str | Path, data: bytes | memoryview | Iterable[bytes]) -> Path:
    """Write a file: whole, or not at all. What stood there before stays until the new content is safe on the disk.

    Several pieces of `data` are written one after the other, so that they need not be in memory all at once.

    A link is followed, so that it stays a link; a file that is replaced keeps its permissions. Returns `path`.

    Raises:
        InstError: the folder does not exist or may not be written to, the disk is full, or `path` is a folder, a
            device, or protected from writing.
    """
    path = Path(path)
    try:
        target = Path(os.path.realpath(path))
        if target.exists():
            if not target.is_file():
                kind = "a folder" if target.is_dir() else "no ordinary file"
                raise InstError(f"{path} cannot be written: it is {kind}", "choose another name")
            if not os.access(target, os.W_OK):
                # Renaming needs the folder's permission only, and would take no notice of the file's own.
                raise PermissionError(errno.EACCES, "the file is protected from writing")
        unfinished = target.with_name(f".{secrets.token_hex(8)}.part")
        try:
            with unfinished.open("xb") as file:
                if target.exists():
                    unfinished.chmod(stat.S_IMODE(target.stat().st_mode))
                file.writelines([data] if isinstance(data, bytes | memoryview) else data)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(target)
        except BaseException:
            with contextlib.suppress(OSError):
                unfinished.unlink(missing_ok=True)
            raise
    except FileNotFoundError:
        raise InstError(
            f"{path} cannot be written: the folder {path.parent} does not exist", "make it, or choose another place"
        ) from None
    except OSError as error:
        raise _cannot_write(path, error) from None
    return path


def make_folder(path: str | Path) -> Path:
    """Make a folder, and those above it, unless it is there. Returns `path`; raises InstError where that cannot be."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InstError(f"{path} cannot be made ({error.strerror or error})", "give another folder") from None
    return path


def free_path(folder: str | Path, stem: str, suffix: str) -> Path:
    """Claim a file name that nothing has: `stem.suffix`, or `stem-2.suffix`, `stem-3.suffix`, and so on.

    The file is made, empty, in the same step that finds the name free: two processes never get the same one, and no
    file is ever overwritten. Writing to it replaces the claim; see `reserve_path`, which takes an unused claim back.

    Args:
        folder: is made where it is missing.
        stem: any text; what cannot stand in a file's name becomes `_`, and what is too long is cut.
        suffix: the ending with its dot, such as ".png".

    Raises:
        InstError: the folder cannot be made or written to.
    """
    folder = Path(folder)
    stem = _NO_FILE_NAME.sub("_", stem).encode()[:_LONGEST_STEM].decode(errors="ignore").strip(" .") or "picture"
    number = 1
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise InstError(f"{folder} is a file", "choose another place, which is a folder") from None
        while True:
            path = folder / (f"{stem}{suffix}" if number == 1 else f"{stem}-{number}{suffix}")
            try:
                path.open("xb").close()  # O_CREAT and O_EXCL: fails where anything has the name, a broken link too
            except FileExistsError:
                number += 1
            else:
                return path
    except OSError as error:
        raise _cannot_write(folder, error) from None


@contextlib.contextmanager
def reserve_path(folder: str | Path, stem: str, suffix: str) -> Iterator[Path]:
    """Claim a name as `free_path` does, and take the claim back where nothing was written to it in the end."""
    path = free_path(folder, stem, suffix)
    try:
        yield path
    finally:
        with contextlib.suppress(OSError):
            if path.stat().st_size == 0:
                path.unlink()


def _cannot_write(path: Path, error: OSError) -> InstError:
    remedy = "make room on the disk" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "choose another place"
    return InstError(f"{path} cannot be written ({error.strerror or error})", remedy)
