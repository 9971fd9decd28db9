"""Read files from strangers: no more bytes than fit, no devices, no pipe without an end, and JSON of any kind.

Libraries that open files themselves (safetensors, torch, SQLite) get a path after `check_regular`.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import select
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from inst.errors import InstError

TEXT_BYTES = 64 * 2**20
"""Largest file of text or JSON that is read: a prompt each for a million pictures."""

_PIPE_WAIT = 10_000
"""Milliseconds to wait until a program opens the other end of a pipe."""
_PIECE = 2**20


@contextlib.contextmanager
def open_file(path: str | os.PathLike[str], most: int | None = None) -> Iterator[IO[bytes]]:
    """Open a file for reading. A pipe is read whole and given as a file in memory.

    Args:
        path: the file or the pipe.
        most: largest number of bytes that is read; None for no limit, for files that are read in pieces.

    Raises:
        InstError: it is missing, a folder, a device, not readable, or larger; or no program writes into the pipe.
    """
    with _open(Path(path), most) as file:
        yield file


def _open(path: Path, most: int | None) -> IO[bytes]:
    with translate_reading(path), contextlib.ExitStack() as stack:
        # Without O_NONBLOCK, opening a pipe waits until a program opens its other end.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        file = stack.enter_context(open(descriptor, "rb"))
        status = os.fstat(descriptor)
        if stat.S_ISFIFO(status.st_mode):
            return _read_pipe(path, descriptor, most)
        if not stat.S_ISREG(status.st_mode):
            raise InstError(f"{path} is neither a file nor a pipe", "give a file")
        if most is not None and status.st_size > most:
            raise _too_large(path, most)
        stack.pop_all()
        return file


def read_bytes(path: str | os.PathLike[str], most: int = TEXT_BYTES) -> bytes:
    """Return the bytes of a file or a pipe. Raises InstError as `open_file` does."""
    with open_file(path, most) as file, translate_reading(Path(path)):
        content = file.read(most + 1)  # the file may grow
        if len(content) > most:
            raise _too_large(Path(path), most)
        return content


def read_text(path: str | os.PathLike[str], most: int = TEXT_BYTES) -> str:
    """Return the text of a file or a pipe in UTF-8, without a byte order mark.

    Raises:
        InstError: an error of `open_file`, or the file is not UTF-8 text.
    """
    try:
        return read_bytes(path, most).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InstError(f"{path} is not a text file in UTF-8", "save it as UTF-8") from None


def read_json(path: str | os.PathLike[str], most: int = TEXT_BYTES) -> Any:
    """Return the content of a JSON file. Raises InstError as `read_text` and `parse_json` do."""
    return parse_json(read_text(path, most), str(path))


def parse_json(text: str | bytes, name: str) -> Any:
    """Return the value of a JSON text from an unknown source.

    Raises:
        InstError: it is not JSON, nested too deeply, or has a number of thousands of digits; the message calls it
            `name`.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise InstError(f"{name} cannot be read: its JSON is nested too deeply", "give another file") from None
    except ValueError as error:  # also UnicodeDecodeError
        raise InstError(f"{name} is not valid JSON ({error})", "give another file") from None


def check_regular(path: str | os.PathLike[str]) -> None:
    """Check that a library can open a file without waiting for ever.

    Raises:
        InstError: it is missing, a folder, a pipe, a device, or not readable.
    """
    path = Path(path)
    with translate_reading(path):
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError
        if not stat.S_ISREG(status.st_mode):
            raise InstError(f"{path} is not a regular file", "copy it to a file first")
        if not os.access(path, os.R_OK):
            raise PermissionError


@contextlib.contextmanager
def translate_reading(path: Path) -> Iterator[None]:
    """Convert what the system raises while a file is read to an InstError of one line."""
    try:
        yield
    except FileNotFoundError:
        raise InstError(f"{path}: no such file", "check the path") from None
    except IsADirectoryError:
        raise InstError(f"{path} is a folder", "give a file") from None
    except PermissionError:
        raise InstError(f"{path} cannot be read (permission denied)", "change its permissions") from None
    except MemoryError:
        raise InstError(f"{path} does not fit in memory", "give a smaller file") from None
    except OSError as error:
        raise InstError(f"{path} cannot be read ({error.strerror or error})", "check the path") from None


def _read_pipe(path: Path, descriptor: int, most: int | None) -> io.BytesIO:
    """Read a pipe to its end. The program at its other end may take any time, but it must be there."""
    content, poller = io.BytesIO(), select.poll()
    poller.register(descriptor, select.POLLIN)
    wait: int | None = _PIPE_WAIT
    while True:
        ready = poller.poll(wait)
        try:
            piece = os.read(descriptor, _PIECE)
        except BlockingIOError:  # a program has the other end open, and is silent
            wait = None
            continue
        if not ready and not piece:
            raise InstError(f"{path} is a pipe into which no program writes", "give a file")
        if not piece:
            content.seek(0)
            return content
        content.write(piece)
        wait = None
        if most is not None and content.tell() > most:
            raise _too_large(path, most)


def _too_large(path: Path, most: int) -> InstError:
    size = f"{most / 2**20:,.0f} MB" if most >= 2**20 else f"{most:,} bytes"
    return InstError(f"{path} is larger than {size}", "give a smaller file")
