"""Pointers of git LFS, which keeps large files elsewhere: without `git lfs pull`, a short text is in their place."""

from __future__ import annotations

import os
from pathlib import Path

from inst.errors import InstError

_START = b"version https://git-lfs.github.com/spec/"
"""How every pointer begins (https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md)."""


def refuse_pointer(path: Path) -> None:
    """Raise InstError if a file is a pointer of git LFS.

    Call it before a file is read, because a reader would call the pointer damaged. A file that cannot be opened, and a
    pipe or a device, is left to its reader, which says why.
    """
    if not os.path.isfile(path):
        return
    try:
        with path.open("rb") as file:
            start = file.read(len(_START))
    except OSError:
        return
    refuse_start(path, start)


def refuse_start(path: Path | str, start: bytes) -> None:
    """Raise InstError if a file that starts with these bytes is a pointer, for a reader that has opened it already."""
    if start.startswith(_START):
        raise InstError(
            f"{path} is only a pointer of git-lfs to the file, which was not downloaded",
            "run `git lfs pull` in its folder, or download the file itself",
        )
