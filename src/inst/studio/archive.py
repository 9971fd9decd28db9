"""A ZIP file that is made while it is sent."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

_PIECE = 1 << 18  # bytes


def zipped(files: Iterable[tuple[str, Path]]) -> Iterator[bytes]:
    """Yield the bytes of a ZIP file of these names and files. They are stored as they are: pictures are compressed."""
    sink = _Sink()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:
        for name, path in files:
            with path.open("rb") as source, archive.open(name, "w", force_zip64=True) as target:
                while data := source.read(_PIECE):
                    target.write(data)
                    yield sink.take()
    yield sink.take()


class _Sink(io.RawIOBase):
    """Takes what is written, and gives it away."""

    def __init__(self) -> None:
        self._data = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        added = bytes(memoryview(data))  # type: ignore[arg-type]
        self._data += added
        return len(added)

    def take(self) -> bytes:
        data = bytes(self._data)
        self._data.clear()
        return data
