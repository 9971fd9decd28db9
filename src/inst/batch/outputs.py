"""The folder that a batch writes to: on this machine, or on a store that fsspec knows."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from inst.batch.places import Place, is_url, local_path, without_secrets
from inst.errors import InstError, first_line
from inst.files.writing import make_folder, write_bytes_atomically

_OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "az", "abfs"}
"""Stores without folders, by fsspec's names. To make a folder there would make a bucket with a mistyped name."""


class Outputs:
    """A folder of outputs. It can be sent to other processes.

    A file on this machine is written completely or not at all (`inst.files.writing`). A file on a store is sent in one
    piece, which object stores such as S3 show when it is complete.

    Args:
        place: the path of a folder, which is created with the first file; or a URL, such as `s3://bucket/folder`.
    """

    def __init__(self, place: str) -> None:
        self.place = local_path(place)

    @cached_property
    def _store(self) -> tuple[Any, str] | None:
        return Place.of(self.place).file_system() if is_url(self.place) else None

    @contextmanager
    def _answers(self) -> Iterator[None]:
        """Convert the errors of a store, each of which has its own, to an InstError of one line."""
        try:
            yield
        except Exception as error:
            reason = without_secrets(first_line(error).replace(self.place, self.shown))[:300]
            raise InstError(
                f"{self.shown} cannot be used ({reason})", "check the address, the network and the credentials"
            ) from None

    def __getstate__(self) -> dict[str, Any]:
        return {"place": self.place}  # connections stay in their process

    @property
    def shown(self) -> str:
        """The folder for people, without passwords."""
        return Place.of(self.place).shown

    @property
    def is_local(self) -> bool:
        """Whether the folder is on this machine."""
        return not is_url(self.place)

    def path(self, name: str) -> str:
        """Return the path or URL of an output, for people."""
        return str(Path(self.place, name)) if self.is_local else f"{self.shown.rstrip('/')}/{name}"

    def has(self, name: str) -> bool:
        """Return whether an output is there. A local file without a byte, as a broken copy leaves, is none.

        Raises:
            InstError: the store does not answer.
        """
        if self._store is None:
            with suppress(OSError):
                found = os.stat(Path(self.place, name))
                return stat.S_ISREG(found.st_mode) and found.st_size > 0
            return False
        store, root = self._store
        with self._answers():
            return bool(store.isfile(f"{root}/{name}"))

    def fetch(self, name: str, copy: Path) -> Path | None:
        """Return a local file with the content of an output: itself, or `copy`; None if it is not there.

        Raises:
            InstError: the store does not answer.
        """
        if self._store is None:
            path = Path(self.place, name)
            return path if path.is_file() else None
        store, root = self._store
        with self._answers():
            if not store.isfile(f"{root}/{name}"):
                return None
            store.get_file(f"{root}/{name}", str(copy))
        return copy

    def put(self, name: str, path: Path) -> None:
        """Write an output from a local file, however large. Raises InstError as `write` does."""
        if self._store is None:
            with path.open("rb") as file:
                write_bytes_atomically(Path(self.place, name), iter(lambda: file.read(1 << 20), b""))
            return
        store, root = self._store
        with self._answers():
            store.put_file(str(path), f"{root}/{name}")

    def write(self, name: str, data: bytes) -> None:
        """Write an output, and the folders that it needs.

        Raises:
            InstError: the folder or the store takes no file.
        """
        if self._store is None:
            path = Path(self.place, name)
            make_folder(path.parent)
            write_bytes_atomically(path, data)
            return
        store, root = self._store
        with self._answers():
            if not _OBJECT_STORES & {*([store.protocol] if isinstance(store.protocol, str) else store.protocol)}:
                store.makedirs(os.path.dirname(f"{root}/{name}"), exist_ok=True)
            store.pipe_file(f"{root}/{name}", data)

    def remove(self, name: str) -> None:
        """Delete an output. Raises InstError if that fails."""
        if self._store is None:
            try:
                Path(self.place, name).unlink(missing_ok=True)
            except OSError as error:
                raise InstError(f"{self.path(name)} cannot be deleted ({error.strerror or error})") from None
            return
        store, root = self._store
        with self._answers():
            store.rm_file(f"{root}/{name}")

    def names(self, folder: str, ending: str) -> list[str]:
        """Return the sorted names of the files with an ending in a folder of the outputs, for few files only."""
        if self._store is None:
            place = Path(self.place, folder)
            return sorted(one for one in os.listdir(place) if one.endswith(ending)) if place.is_dir() else []
        store, root = self._store
        with self._answers():
            store.invalidate_cache()
            if not store.isdir(f"{root}/{folder}"):
                return []
            found = (os.path.basename(path) for path in store.ls(f"{root}/{folder}", detail=False))
            return sorted(one for one in found if one.endswith(ending))
