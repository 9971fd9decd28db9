"""Files that people upload: checked by their content and kept under the hash of their bytes, never under their name."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import shutil
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from inst.errors import InstError, UsageError
from inst.files.holding import lock, part_name, sweep, temporary_folder
from inst.files.writing import make_folder
from inst.studio.disk import Disk, kept_errors
from inst.studio.limits import Limits
from inst.studio.owners import Owners

_KEY = re.compile(r"[0-9a-f]{64}")
_PICTURES = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp", "TIFF": ".tif", "BMP": ".bmp", "GIF": ".gif"}
"""The endings of the picture formats that are taken, by Pillow's names. Pillow tries no other decoder."""
PICTURE_FORMATS = tuple(_PICTURES)
"""The picture formats that are taken, by Pillow's names."""
_STYLES = (".safetensors", ".pt", ".pth", ".bin")
"""Endings of style files and of embeddings of other programs."""
_STYLE_PICTURES = {".png": "PNG", ".webp": "WEBP"}
"""Endings and formats of pictures that may hold an embedding."""

GONE = "The picture is not here any more", "upload it again"
"""Problem and remedy of an upload that was removed, never was here, or is somebody else's: nobody can tell which."""

_DECODED_AT_ONCE = 2
_COUNTED_EVERY = 2**20
"""Bytes of a file that comes after which the disk is asked again."""


class TooLarge(InstError):
    """An upload is larger than the studio takes."""


@dataclass(frozen=True)
class Upload:
    """An uploaded file.

    Attributes:
        key: sha256 of its bytes, 64 hexadecimal digits.
        path: where it is.
    """

    key: str
    path: Path


class Uploads:
    """A folder of uploaded files. Its methods may be called from any thread.

    Args:
        folder: it is made if it does not exist.
        limits: see `Limits`.
        disk: what says whether there is room for a file that comes; None is only the system.

    Raises:
        InstError: the folder cannot be made.
    """

    def __init__(self, folder: Path, limits: Limits, disk: Disk | None = None) -> None:
        self.folder = make_folder(folder).resolve()
        self._disk = disk
        self._limits = limits
        self._lock = threading.Lock()
        # A picture of the largest size takes hundreds of megabytes while it is decoded.
        self._decoding = threading.Semaphore(_DECODED_AT_ONCE)
        self._styles = self.folder / "styles"
        make_folder(self._styles)
        for place in (self.folder, self._styles):
            sweep(place)
        self._owners = Owners(self.folder / "owners")

    @contextlib.contextmanager
    def receive(self) -> Iterator[Receiver]:
        """Yield a receiver of the bytes of one upload. The partial file is removed at the end.

        Raises:
            NoSpace, NotKept: no file can be written.
        """
        with kept_errors():
            path = self.folder / part_name()
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
        lock(handle, wait=True)
        receiver = Receiver(handle, path, self._limits.upload_bytes, self._disk)
        try:
            yield receiver
        finally:
            receiver.uncount()
            with contextlib.suppress(OSError):
                os.close(handle)
                path.unlink(missing_ok=True)

    def keep_picture(self, receiver: Receiver, person: str | None) -> Upload:
        """Keep a received picture as an upload of a person; None keeps one that nobody can name in a request.

        Raises:
            UsageError: it has too many pixels.
            InstError: it is damaged, or not a picture in one of the usual formats. A page or a drawing in XML is none,
                whatever its name is.
        """
        found = self.check_picture(receiver)
        key = receiver.digest()
        path = self.folder / f"{key}{_PICTURES[found]}"
        with self._lock, kept_errors():  # the same file may come twice at once
            if path.exists():
                os.utime(path)
            else:
                os.link(receiver.path, path)
                path.chmod(0o644)
            if person is not None:
                self._owners.add(key, person)
        return Upload(key, path)

    def keep_shown(self, receiver: Receiver, person: str | None) -> Upload:
        """Keep a received picture in a format that browsers show: a TIFF becomes a PNG. Raises as `keep_picture`."""
        from inst.pictures.reading import open_picture

        kept = self.keep_picture(receiver, person)
        if kept.path.suffix != _PICTURES["TIFF"]:
            return kept
        png = io.BytesIO()
        with self._decoding:
            open_picture(kept.path).save(png, "PNG")
        with self.receive() as converted:
            converted.write(png.getvalue())
            return self.keep_picture(converted, person)

    def check_picture(self, receiver: Receiver, formats: Iterable[str] = PICTURE_FORMATS) -> str:
        """Decode a received picture, without keeping it, and return its format by Pillow's name.

        Raises UsageError and InstError as `keep_picture`.
        """
        from inst.pictures.opening import check_picture  # imports PyTorch, for which the page does not wait

        with self._decoding:
            return check_picture(receiver.path, list(formats), self._limits.picture_pixels)

    @contextlib.contextmanager
    def style_file(self, receiver: Receiver, name: str) -> Iterator[Upload]:
        """Yield a received style file or embedding in a folder of its own, which is removed at the end.

        No request finds it, so that no style file is taken for a picture. Only the ending of its name is used.

        Raises:
            UsageError: the ending is not one of a style file or an embedding; or it is a picture with too many pixels.
            InstError: it is none by its content either.
        """
        key, suffix = receiver.digest(), self.check_style(receiver, name)
        with contextlib.ExitStack() as stack:
            with kept_errors():
                folder = stack.enter_context(temporary_folder(self._styles))
                os.link(receiver.path, folder / f"{key}{suffix}")
            yield Upload(key, folder / f"{key}{suffix}")

    def check_style(self, receiver: Receiver, name: str) -> str:
        """Return the ending of a received style file or embedding. Raises as `style_file`."""
        suffix = Path(name).suffix.lower()
        if suffix in _STYLE_PICTURES:
            self.check_picture(receiver, [_STYLE_PICTURES[suffix]])
        elif suffix not in _STYLES:
            endings = ", ".join((*_STYLES, *_STYLE_PICTURES))
            raise UsageError("This is not a style file", f"give a file that ends in {endings}")
        elif not _may_be_style(receiver.path):
            raise InstError("The file is not a style file, whatever its name is", "choose another one")
        return suffix

    def find(self, key: str, person: str | None = None) -> Path:
        """Return the path of an upload. `key` may be any text.

        Args:
            key: sha256 of its bytes.
            person: whose upload it must be; None for what the studio itself has accepted already.

        Raises:
            UsageError: the person has no such upload, or it was removed.
        """
        places = [self.folder / f"{key}{ending}" for ending in _PICTURES.values()] if _KEY.fullmatch(key) else []
        found = [place for place in places if place.exists()]
        if not found or (person is not None and not self._owners.has(key, person)):
            raise UsageError(*GONE)
        with contextlib.suppress(OSError):
            os.utime(found[0])  # it is in use, so it is kept for a while
        return found[0]

    def remove_older(self, before: float) -> None:
        """Remove the files that were last used before a Unix time, and what interrupted uploads left."""
        self._owners.remove_older(before)
        for folder in self._styles.iterdir():
            with contextlib.suppress(OSError):
                if folder.stat().st_mtime < time.time() - 3600:
                    shutil.rmtree(folder, ignore_errors=True)
        for path in self.folder.iterdir():
            with contextlib.suppress(OSError):
                age_limit = max(before, time.time() - 3600) if path.name.startswith(".inst-") else before
                if path.is_file() and path.stat().st_mtime < age_limit:
                    path.unlink()


class Receiver:
    """Takes the bytes of one upload."""

    def __init__(self, handle: int, path: Path, most: int, disk: Disk | None = None) -> None:
        self.path = path
        self.size = 0
        self._disk = disk
        self._counted = 0  # bytes that the disk knows of
        self._handle = handle
        self._most = most
        self._hash = hashlib.sha256()

    def write(self, data: bytes) -> None:
        """Take the next bytes.

        Raises:
            TooLarge: there are too many.
            NoSpace, NotKept: they cannot be written.
        """
        self.size += len(data)
        if self.size > self._most:
            raise TooLarge(f"The file is larger than {self._most / 2**20:.0f} MB", "choose a smaller one")
        # Many files that come at once must not fill the disk: there was room when each began.
        if self._disk is not None and self.size - self._counted > _COUNTED_EVERY:
            self._disk.check_quickly()
            self._disk.add(self.size - self._counted)
            self._counted = self.size
        self._hash.update(data)
        with kept_errors():
            while data:
                data = data[os.write(self._handle, data) :]

    def uncount(self) -> None:
        """Tell the disk that the partial file is gone. Who keeps it under another name counts that."""
        if self._disk is not None:
            self._disk.add(-self._counted)
            self._counted = 0

    def digest(self) -> str:
        """Return the sha256 of all bytes."""
        return self._hash.hexdigest()


def _may_be_style(path: Path) -> bool:
    """Whether a file starts as those of PyTorch and safetensors do. No picture does, whatever its name is."""
    from inst.files.tensors import open_tensors

    with path.open("rb") as file:
        start = file.read(4)
    # Archives and pickles of PyTorch.
    if start == b"PK\x03\x04" or (start[:1] == b"\x80" and start[1:2] in (b"\2", b"\3", b"\4", b"\5")):
        return True
    try:
        with open_tensors(path, framework="np"):
            return True
    except InstError:
        return False
