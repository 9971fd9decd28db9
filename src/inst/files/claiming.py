"""Claim an output for this process, so that no other one writes it at the same time, and find unused file names."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import re
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from inst.errors import InstError
from inst.files.holding import LOCK_END, LOCK_START, RESERVED, is_at, lock, sweep_once, sweep_one
from inst.files.listing import readable_name
from inst.files.writing import LONGEST_NAME, cannot_write, cut_name, is_there, make_folder

_NO_FILE_NAME = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f]')
"""Characters that a common operating system does not allow in a file name."""

_LONGEST_STEM = 200
"""Largest stem in bytes: a number and an ending must fit too."""

_PATIENCE = 0.5
"""Seconds to wait for a lock: whoever looks for leftovers holds each file for an instant."""


@contextlib.contextmanager
def held(path: str | Path, shown: Path | None = None) -> Iterator[None]:
    """Keep other processes, and other threads, from writing the same file or folder during this block.

    A hidden file beside `path` names the process. It is deleted at the end. If the process is killed, the next one
    takes the file over.

    Args:
        path: the file or folder to write. It need not exist, but the folder that it is in does.
        shown: what an error says is being written; None is `path`.

    Raises:
        InstError: another process writes it, or the lock file cannot be written.
    """
    path = Path(path)
    shown = shown or path
    place, end = _lock_path(path), time.monotonic() + _PATIENCE
    try:
        while (file := _locked(place)) is None:
            if time.monotonic() > end:
                raise InstError(
                    f"{shown} is being written by {_holder(place)}", "wait until it ends, or choose another name"
                )
            time.sleep(_PATIENCE / 20)
    except OSError as error:
        if isinstance(error, PermissionError) and os.path.lexists(place):
            raise InstError(
                f"{shown} cannot be written: {place} is the lock of another user",
                "wait until that user's process ends, or choose another name",
            ) from None
        raise cannot_write(shown, error) from None
    with file:
        try:
            yield
        finally:
            # Before it is closed: afterwards it may be that of the next process.
            with contextlib.suppress(OSError):
                place.unlink()


def _lock_path(path: Path) -> Path:
    real = Path(os.path.realpath(path))
    name, most = readable_name(real.name), LONGEST_NAME - len(LOCK_START + LOCK_END)
    if len(name.encode()) > most:  # long names that begin alike have locks of their own
        digest = hashlib.sha256(name.encode()).hexdigest()[:16]
        name = f"{cut_name(name, most - len(digest) - 1)}-{digest}"
    return real.parent / f"{LOCK_START}{name}{LOCK_END}"


def _holder(place: Path) -> str:
    """Say who holds a lock file."""
    try:
        with place.open("rb") as file:
            process, computer, *_ = file.read(300).decode(errors="replace").split()
    except (OSError, ValueError):  # it was deleted, or is not written yet
        return "another process"
    return f"process {process} on {computer}"


def _locked(place: Path, *more: bytes) -> IO[bytes] | None:
    """Return the open lock file, which names this process; None if another holds it. Raises OSError."""
    # No link is followed: it could lead to a file that is not ours to write.
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(place, flags, 0o666)
    except PermissionError:
        sweep_one(place)  # it is another user's, who may have been killed
        if os.path.lexists(place):
            raise
        descriptor = os.open(place, flags, 0o666)
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, descriptor)
        # Whoever held it may have deleted it after it was opened here.
        if lock(descriptor) is False or not is_at(descriptor, place):
            return None
        os.ftruncate(descriptor, 0)
        try:
            os.write(descriptor, b" ".join([str(os.getpid()).encode(), socket.gethostname().encode(), *more]))
        except OSError:  # the disk is full
            place.unlink()
            raise
        stack.pop_all()
        return os.fdopen(descriptor, "r+b")


@contextlib.contextmanager
def reserve_path(folder: str | Path, stem: str, suffix: str, beside: Sequence[str] = ()) -> Iterator[Path]:
    """Reserve an unused file name during this block: `stem.suffix`, or `stem-2.suffix`, `stem-3.suffix`, and so on.

    An empty file is created in the same step that finds the name unused. So two processes never get the same name, and
    no file is ever overwritten. Write the content to the path that is yielded. An empty file to which nothing was
    written is deleted: at the end of the block, or, if the process is killed, by `inst.files.holding.sweep`.

    Args:
        folder: created if it is missing.
        stem: any text. Characters that are not allowed in a file name become `_`; a long text is cut.
        suffix: the ending with its dot, such as ".png".
        beside: endings of other files that belong to the one that is written. A name for which one of these exists is
            in use, too.

    Raises:
        InstError: the folder cannot be created or is not writable.
    """
    folder = make_folder(folder)
    sweep_once(folder)
    text = stem.encode(errors="replace").decode()  # a name that is not valid Unicode has lone surrogates
    stem = cut_name(_NO_FILE_NAME.sub("_", text), _LONGEST_STEM).strip(" .") or "picture"
    taken = set[str]()
    with contextlib.suppress(OSError):  # a folder may be writable and not readable
        taken.update(os.listdir(folder))  # to ask for each of many names takes long
    try:
        numbered = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
        reserved = None
        while reserved is None:
            name = next(numbered)
            used = f"{name}{suffix}" in taken or any(os.path.lexists(folder / f"{name}{ending}") for ending in beside)
            reserved = None if used else _reserved(folder / f"{name}{suffix}")
    except OSError as error:
        raise cannot_write(folder, error) from None
    with _freed_if_empty(*reserved) as path:
        yield path


@contextlib.contextmanager
def reserve_name(path: str | Path) -> Iterator[Path]:
    """Reserve exactly this file name during this block, as `reserve_path` does: no file is ever overwritten.

    Raises:
        InstError: the name is in use, or the folder does not exist or is not writable.
    """
    path = Path(path)
    try:
        reserved = _reserved(path)
    except OSError as error:
        raise cannot_write(path, error) from None
    if reserved is None:
        raise is_there(path)
    with _freed_if_empty(*reserved):
        yield path


@contextlib.contextmanager
def _freed_if_empty(path: Path, file: IO[bytes]) -> Iterator[Path]:
    with file:
        try:
            yield path
        finally:
            with contextlib.suppress(OSError):
                if path.stat().st_size == 0:
                    path.unlink()
            with contextlib.suppress(OSError):
                _lock_path(path).unlink()


def _reserved(path: Path) -> tuple[Path, IO[bytes]] | None:
    """Create an empty file, and return it with its open lock file; None if the name is in use. Raises OSError."""
    if os.path.lexists(path):  # also a broken link
        return None
    file = _locked(_lock_path(path), RESERVED)
    if file is None:
        return None
    try:
        path.open("xb").close()  # O_CREAT and O_EXCL: fails if the name exists
    except BaseException as error:
        with contextlib.suppress(OSError):
            _lock_path(path).unlink()
        file.close()
        if isinstance(error, FileExistsError):
            return None
        raise
    return path, file
