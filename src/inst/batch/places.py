"""A file or folder on this computer, or elsewhere through fsspec (`s3://`, `gs://`, `https://`)."""

from __future__ import annotations

import errno
import os
import posixpath
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from inst.errors import InstError, first_line
from inst.files.listing import readable_name
from inst.texts import OBEYED, cut

LARGEST_FILE = 1 << 30
"""The largest file that is read as a whole, in bytes. The largest picture that Pillow opens is about as large."""

LARGEST_PACKED = 1 << 28
"""The largest picture in a shard or a Parquet file, in bytes. A small archive can hold many, each of zeros."""

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*(::[A-Za-z][A-Za-z0-9+.\-]*)*://")
"""The start of a URL: `s3://`, and for file systems in each other `simplecache::s3://`."""

_LOCAL = re.compile(r"(file|local)://")

_STORES = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "hf", "oss", "oci", "http", "https", "memory"}
"""What a file may name: a stranger's list does not log in to computers, and opens no file systems in each other."""

_SECRETS = re.compile(
    r"(?<=://)(?:[^/\s]*|[^/\s:@]*:(?!\d+/)[^\s@]*)@|[?#][^\s\"'=]*=[^\s\"']*?(?=[:,.)]*(?:\s|[\"']|$))"
)
"""User and password in a URL, and its query, which can hold a signature or a token. A password can have slashes."""

_EXTRAS = {"s3fs": "s3", "gcsfs": "gs", "fsspec": "batch", "pyarrow": "batch"}
"""The extras of the package that install a library."""


def printable(text: str) -> str:
    """Return a text for one line of a message or a name: readable, with `_` for what a terminal obeys."""
    return OBEYED.sub("_", readable_name(text))


def is_url(text: str) -> bool:
    """Whether a text is a URL of another place than this computer's disks."""
    return _URL.match(text) is not None and _LOCAL.match(text) is None


def local_path(text: str) -> str:
    """Return a path, without the `file://` that it may have."""
    return _LOCAL.sub("", text, count=1) if _LOCAL.match(text) else text


def resolve(file: str, text: str) -> str:
    """Return what a text in a file names: a URL or an absolute path as it is, or a path relative to the file's folder.

    Args:
        file: path or URL of the file.
        text: the text in it. In a file behind a URL, an absolute path is relative to its folder too.
    """
    if is_url(text):
        return text
    text = local_path(text)
    if not is_url(file):
        return os.path.join(os.path.dirname(local_path(file)), text)
    systems = file.split("::")  # file systems in each other: the first path is that of the file
    k = next(k for k, system in enumerate(systems) if "://" in system)
    scheme, _, path = systems[k].partition("://")
    path = path.partition("?")[0] if scheme.startswith("http") else path  # a signature of this file alone
    systems[k] = f"{scheme}://{_joined(path, text)}"
    return "::".join(systems)


def check_named(text: str, file: str, where: str) -> None:
    """Check what a list or a table names: it may come from strangers, and the user has not read each of its lines.

    A path, and a URL of a store or of the web, is allowed; so is another URL of the kind that the file itself has.

    Args:
        text: the path or URL.
        file: path or URL of the file that names it.
        where: its line or row, for the message.

    Raises:
        InstError: the URL is of another kind, or the text can be no path.
    """
    if "\0" in text:
        raise InstError(f"{where} names no file: {cut(printable(text), 200)}", "correct the line")
    scheme = text.partition(":")[0].lower()
    if is_url(text) and ("::" in text.partition("://")[0] or scheme not in {*_STORES, file.partition(":")[0].lower()}):
        raise InstError(
            f"{where} names a URL of the kind {cut(text.partition('//')[0], 60)}//, which lists and tables may not",
            "give it with an option, or copy the file to this computer",
        )


def _joined(path: str, text: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(path), text.lstrip("/")))


def without_secrets(text: str) -> str:
    """Return a text without the passwords and tokens of the URLs in it."""
    return printable(_SECRETS.sub("", text)) if "://" in text else printable(text)


def missing_library(error: ImportError) -> InstError:
    """Return the error that says which extra installs a library."""
    text = f"{error.name} {error}"
    name = next((name for name in _EXTRAS if name in text), None)
    if name is None:
        return InstError(f"A library is missing ({first_line(error)})", "install it with pip")
    return InstError(f"The library {name} is missing", f'install it with pip install "inst[{_EXTRAS[name]}]"')


@dataclass(frozen=True, slots=True)
class Place:
    """A file or folder. It can be pickled, and opened in another process.

    Attributes:
        shown: the path or URL for messages, without credentials.
        locator: an absolute path, or a URL as it was given, perhaps with credentials.
        path: the path in the file system of the URL; "" means that of the URL itself.
    """

    shown: str
    locator: str = field(repr=False)
    path: str = field(default="", repr=False)

    @classmethod
    def of(cls, text: str) -> Place:
        """Return the place that a path or URL names."""
        if is_url(text):
            return cls(without_secrets(text), text)
        return cls(printable(local_path(text)), os.path.abspath(local_path(text)))

    @property
    def is_remote(self) -> bool:
        """Whether fsspec opens it."""
        return is_url(self.locator)

    def beside(self, text: str) -> Place:
        """Return the place that a text in this file names (`resolve`)."""
        if is_url(text) or not self.path:
            shown = self.shown if not self.is_remote else self.locator
            found = Place.of(resolve(shown, text))
            return found if found.is_remote else Place(found.shown, os.path.abspath(resolve(self.locator, text)))
        head, mark, path = self.path.rpartition("://")  # the path of a web server is a URL
        _, _, shown = self.shown.rpartition("://")
        scheme = self.shown.removesuffix(shown)
        return Place(scheme + printable(_joined(shown, text)), self.locator, head + mark + _joined(path, text))

    def file_system(self) -> tuple[Any, str]:
        """Return the file system of fsspec, and the path in it. Raises InstError."""
        if any(system.lower().startswith("reference:") for system in self.locator.split("::")):
            # It would open whatever files, of this computer too, another file names.
            raise InstError(f"{self.shown} cannot be used", "give the files that it refers to")
        with reading(self):
            from fsspec.core import url_to_fs

            system, path = url_to_fs(self.locator)
            return system, self.path or path

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """Open the file for reading, and convert the errors of the whole block to InstError."""
        with reading(self):
            if self.is_remote:
                system, path = self.file_system()
                with system.open(path, "rb") as file:
                    yield file
                return
            kind = os.stat(self.locator).st_mode
            if stat.S_ISDIR(kind):
                raise IsADirectoryError
            if not stat.S_ISREG(kind):  # to open a pipe would wait for its writer
                raise InstError(f"{self.shown} is not a file", "give a file")
            with open(self.locator, "rb") as file:
                yield file

    def read(self) -> bytes:
        """Return the bytes of the file, at most `LARGEST_FILE`. Raises InstError."""
        with self.open() as file:
            # Python reserves as much memory as it is asked to read.
            size = LARGEST_FILE if self.is_remote else os.fstat(file.fileno()).st_size
            data = b"" if size > LARGEST_FILE else file.read(size + 1)
        if max(size, len(data)) > LARGEST_FILE:
            raise InstError(f"{self.shown} has more than {LARGEST_FILE:,} bytes", "make it smaller")
        return data


@contextmanager
def reading(place: Place) -> Iterator[None]:
    """Convert every error of the system, of fsspec and of a server to an InstError of one line."""
    shown = place.shown
    try:
        yield
    except (InstError, GeneratorExit):
        raise
    except ImportError as error:
        raise missing_library(error) from None
    except FileNotFoundError:
        remedy = "check the address and the network" if place.is_remote else "check the path"
        raise InstError(f"{shown}: no such file", remedy) from None
    except IsADirectoryError:
        raise InstError(f"{shown} is a folder", "give a file") from None
    except PermissionError as error:
        why = "permission denied" if error.errno is None or not place.is_remote else _reason(error, place)
        raise InstError(f"{shown} cannot be read ({why})", "change its permissions, or log in") from None
    except MemoryError:
        raise InstError(f"{shown} does not fit in memory", "make it smaller") from None
    except Exception as error:  # each file system of fsspec has errors of its own
        if not place.is_remote and not isinstance(error, OSError | ValueError):
            raise
        remedy = "check the address, the network and the credentials" if place.is_remote else "check the path"
        raise InstError(f"{shown} cannot be read ({_reason(error, place)})", remedy) from None


def _reason(error: BaseException, place: Place) -> str:
    if isinstance(error, OSError) and error.errno in errno.errorcode and error.strerror and not place.is_remote:
        return error.strerror
    return without_secrets(first_line(error).replace(place.locator, place.shown))[:300]
