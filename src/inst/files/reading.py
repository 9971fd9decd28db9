"""Read files from strangers: no more bytes than fit, no devices, no pipe without an end, and JSON of any kind.

Libraries that open files themselves (safetensors, torch, SQLite) get a path after `check_regular`.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import select
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from inst.errors import InstError
from inst.texts import cut

TEXT_BYTES = 64 * 2**20
"""Largest file of text or JSON that is read: a prompt each for a million pictures."""

DEEPEST = 200
"""Most levels of lists and objects in a JSON text. Functions that call themselves for each level can take them all."""

_MOST_PARTS = 2_000_000
"""Most lists and objects in a JSON text. An empty one has two bytes in the text, and more than fifty in memory."""
_PIPE_BYTES = 2**30
"""Most bytes that are read from a pipe, which is kept in memory, if the caller sets no limit."""

_PIPE_WAIT = 10_000
"""Milliseconds to wait until a program opens the other end of a pipe."""
_PIECE = 2**20


@contextlib.contextmanager
def open_file(path: str | os.PathLike[str], most: int | None = None) -> Iterator[IO[bytes]]:
    """Open a file for reading. A pipe is read whole and given as a file in memory.

    Args:
        path: the file or the pipe.
        most: largest number of bytes that is read; None for no limit, for files that are read in pieces. A pipe may
            then have 1 GB.

    Raises:
        InstError: it is missing, a folder, a device, not readable, or larger; or no program writes into the pipe.
    """
    with _open(Path(path), most) as file:
        yield file


def _open(path: Path, most: int | None) -> IO[bytes]:
    with translate_reading(path), _checked_path(path), contextlib.ExitStack() as stack:
        # Without O_NONBLOCK, opening a pipe waits until a program opens its other end.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        file = stack.enter_context(open(descriptor, "rb"))
        status = os.fstat(descriptor)
        if stat.S_ISFIFO(status.st_mode):
            return _read_pipe(path, descriptor, _PIPE_BYTES if most is None else most)
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


def read_json(path: str | os.PathLike[str], most: int = TEXT_BYTES, *, finite: bool = False) -> Any:
    """Return the content of a JSON file. Raises InstError as `read_text` and `parse_json` do."""
    return parse_json(read_text(path, most), str(path), finite=finite)


def parse_json(
    text: str | bytes | bytearray,
    name: str,
    *,
    finite: bool = False,
    hook: Callable[[dict[str, Any]], Any] | None = None,
) -> Any:
    """Return the value of a JSON text from an unknown source.

    Args:
        text: the text; bytes are UTF-8.
        name: its name in messages.
        finite: refuse numbers that are not finite: NaN and Infinity, which Python reads, and numbers such as 1e999.
        hook: returns the value for each object, as `object_hook` of `json.loads`. It may raise ValueError.

    Raises:
        InstError: it is not JSON, it has more than `DEEPEST` levels, millions of lists and objects, a number of
            thousands of digits, or one that is not finite.
    """
    brackets = (b"[", b"{") if isinstance(text, bytes | bytearray) else ("[", "{")
    checks: dict[str, Any] = {"parse_float": _finite, "parse_constant": _finite} if finite else {}
    try:
        if sum(map(text.count, brackets)) > _MOST_PARTS:  # type: ignore[arg-type]  # both are bytes, or both text
            raise InstError(
                f"{cut(name, 200)} holds more than {_MOST_PARTS:,} lists and objects", "give a smaller file"
            )
        value = json.loads(text, object_hook=hook, **checks)
        levels = _has_more_levels(value, DEEPEST)
    except RecursionError:
        levels = True
    except MemoryError:
        raise InstError(f"{cut(name, 200)} does not fit in memory", "give a smaller file") from None
    except ValueError as error:  # also UnicodeDecodeError
        raise InstError(f"{cut(name, 200)} is not valid JSON ({cut(str(error), 200)})", "give another file") from None
    if levels:
        raise InstError(f"{cut(name, 200)} cannot be read: its JSON is nested too deeply", "give another file")
    return value


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {cut(text, 30)} is not finite")
    return number


def _has_more_levels(value: Any, most: int) -> bool:
    level = [value]
    for _ in range(most):
        inner = (one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list))
        level = [child for one in inner for child in one if isinstance(child, dict | list)]
        if not level:
            return False
    return True


def check_regular(path: str | os.PathLike[str]) -> None:
    """Check that a library can open a file without waiting for ever.

    Raises:
        InstError: it is missing, a folder, a pipe, a device, or not readable.
    """
    path = Path(path)
    with translate_reading(path), _checked_path(path):
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError
        if not stat.S_ISREG(status.st_mode):
            raise InstError(f"{path} is not a regular file", "copy it to a file first")
        if not os.access(path, os.R_OK):
            raise PermissionError


@contextlib.contextmanager
def _checked_path(path: Path) -> Iterator[None]:
    """Convert the ValueError for a path that no system has, such as one with a null character."""
    try:
        yield
    except ValueError as error:
        raise InstError(f"{cut(str(path), 200)} cannot be a path ({error})", "check the path") from None


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


def _read_pipe(path: Path, descriptor: int, most: int) -> io.BytesIO:
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
        if content.tell() > most:
            raise _too_large(path, most)


def _too_large(path: Path, most: int) -> InstError:
    size = f"{most / 2**20:,.0f} MB" if most >= 2**20 else f"{most:,} bytes"
    return InstError(f"{path} is larger than {size}", "give a smaller file")
