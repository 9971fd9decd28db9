"""Notice that a file which stays open was removed, replaced or cut: what is written to it then is lost.

An open file lives on without a name, and SQLite writes to it as before.
"""

from __future__ import annotations

import os
from pathlib import Path


class Watched:
    """An open database of SQLite that is never made smaller, and the write-ahead log beside it.

    Args:
        path: the file; it exists.
    """

    def __init__(self, path: Path) -> None:
        self._path = os.path.abspath(path)  # the working folder may change
        self._file = _Seen(self._path)
        self._log = _Seen(f"{self._path}-wal")

    def is_replaced(self) -> bool:
        """Whether something else is at the path now, or nothing."""
        return not (self._file.is_the_same() and self._log.is_the_same())

    def is_cut(self) -> bool:
        """Whether the file or the log was seen smaller than before. SQLite overwrites a log, and does not cut it."""
        return self._file.is_cut or self._log.is_cut


class _Seen:
    """What was seen at a path: nothing yet, or a file.

    Attributes:
        is_cut: whether the file was ever smaller than before.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._identity: tuple[int, int] | None = None
        self._size = 0
        self.is_cut = False
        self.is_the_same()

    def is_the_same(self) -> bool:
        """Look again; return whether the same file is at the path, or still none."""
        try:
            about = os.stat(self._path)
        except OSError:
            return self._identity is None
        identity = about.st_dev, about.st_ino
        if self._identity is None:
            self._identity = identity
        self.is_cut |= about.st_size < self._size
        self._size = about.st_size
        return identity == self._identity
