"""How much the studio may keep on the disk."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from inst.errors import InstError
from inst.studio.limits import Limits

_FREE_BYTES = 500 * 2**20
"""What stays free on the disk."""
_SECONDS = 60.0  # that a size counts


class NoSpace(InstError):
    """There is no room for more files."""


class NotKept(InstError):
    """A file cannot be written for another reason."""


class Disk:
    """The data folder's share of its disk. Its methods may be called from any thread."""

    def __init__(self, folder: Path, limits: Limits) -> None:
        self._folder = folder
        self._most = limits.disk_bytes
        self._lock = threading.Lock()
        self._size, self._counted = 0, -_SECONDS

    def check(self) -> None:
        """Raise NoSpace if the folder has its largest size, or the disk is almost full."""
        with self._lock:
            if time.monotonic() - self._counted > _SECONDS:
                self._size, self._counted = _size_of(self._folder), time.monotonic()
        self.check_quickly()

    def check_quickly(self) -> None:
        """The same without looking through the folder, while a file is written. Raises NoSpace."""
        with self._lock:
            full = self._size >= self._most
        with contextlib.suppress(OSError):
            full = full or shutil.disk_usage(self._folder).free < _FREE_BYTES
        if full:
            raise NoSpace("The studio's disk is full", "delete styles, or wait until old jobs are removed")

    def add(self, size: int) -> None:
        """Note that so many bytes were written, or removed, until the folder is looked through again."""
        with self._lock:
            self._size += size


@contextlib.contextmanager
def kept_errors() -> Iterator[None]:
    """Turn errors of writing a file into one line. It names no path, because other people read it.

    Raises:
        NoSpace: the disk is full.
        NotKept: the file cannot be written for another reason.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpace("The studio's disk is full", "try again later") from None
        raise NotKept(f"The file cannot be kept ({error.strerror or 'error'})", "check the studio's folder") from None


def _size_of(folder: Path) -> int:
    """Return the bytes of all files below a folder. A file with several names counts once."""
    total, seen, folders = 0, set(), [os.fspath(folder)]
    while folders:
        with contextlib.suppress(OSError), os.scandir(folders.pop()) as found:
            for item in found:
                with contextlib.suppress(OSError):
                    if item.is_dir(follow_symlinks=False):
                        folders.append(item.path)
                        continue
                    about = item.stat(follow_symlinks=False)
                    if about.st_nlink > 1:
                        if about.st_ino in seen:
                            continue
                        seen.add(about.st_ino)
                    total += about.st_size
    return total
