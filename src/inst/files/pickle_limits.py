"""Check how much a pickle or an archive of PyTorch would build, before anything of it is built."""

from __future__ import annotations

import os
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

MOST_PARTS = 2_000_000
"""Most objects in a pickle, where one that is used several times counts each time. A model has some 10,000."""

_DEEPEST = 200
_PICKLE_BYTES = 64 * 2**20  # that of a model, without its tensors, has 1 MB
_MOST_ENTRIES = 100_000
_DIRECTORY_BYTES = 32 * 2**20
_LEGACY_PICKLES = 5  # of a file without a zip archive: magic number, version, system, content, names of the storages

_MARK = -1
_KEEP = frozenset(["PUT", "BINPUT", "LONG_BINPUT"])
_FETCH = frozenset(["GET", "BINGET", "LONG_BINGET"])
_FILL = frozenset(["APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"])
_TAKES = {code.name: len(code.stack_before) for code in pickletools.opcodes}
_TAKES_TO_MARK = frozenset(code.name for code in pickletools.opcodes if pickletools.markobject in code.stack_before)
_GIVES = frozenset(code.name for code in pickletools.opcodes if code.stack_after)


class UnsafePickleError(pickle.UnpicklingError):
    """The pickle names an object that is not on the allow-list, or contains data that the reader does not accept."""


class DamagedPickleError(UnsafePickleError):
    """The file is truncated or damaged, or no pickle at all."""


def check_pickle(file: IO[bytes], most_numbers: int | None = None) -> None:
    """Check the pickle at the position of a file, and move behind it. Nothing of it is built.

    A pickle of a few hundred bytes can hold a list that holds itself, or 40 tuples that each hold the one before twice:
    2^40 parts for whoever walks through it, and for Python itself, which hashes the keys of a dictionary.

    Args:
        file: the file, at the start of the pickle.
        most_numbers: most numbers in the storages of tensors that it refers to, all together; None for no limit.

    Raises:
        DamagedPickleError: it is damaged.
        UnsafePickleError: it holds itself, has more than `MOST_PARTS` parts, or is nested too deeply.
    """
    try:
        parts, numbers = _graph(file)
    except UnsafePickleError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError) as error:
        raise DamagedPickleError(f"the pickle is damaged ({type(error).__name__})") from None
    if most_numbers is not None and numbers > most_numbers:
        raise UnsafePickleError("the pickle announces more numbers than its file holds")
    _check_size(parts)


def _graph(file: IO[bytes]) -> tuple[list[list[int]], int]:
    """Return the parts of each object that a pickle builds, and how many numbers its storages should have."""
    parts: list[list[int]] = []
    constants: dict[int, object] = {}
    stack: list[int] = []
    memo: dict[int, int] = {}
    storages: dict[object, int] = {}

    def take(name: str) -> list[int]:
        """Take the arguments of an instruction from the stack, without what it only changes."""
        if name in _TAKES_TO_MARK:
            mark = len(stack) - 1 - stack[::-1].index(_MARK)
            taken = stack[mark + 1 :]
            del stack[mark:]
            return taken
        count = _TAKES[name] - (name in _FILL)
        if count > len(stack):
            raise IndexError
        taken = stack[len(stack) - count :]
        del stack[len(stack) - count :]
        return taken

    argument: Any
    for count, (code, argument, _) in enumerate(pickletools.genops(file)):
        name = code.name
        if count > MOST_PARTS:
            raise UnsafePickleError(f"the pickle has more than {MOST_PARTS:,} instructions")
        if name == "MARK":
            stack.append(_MARK)
        elif name in _KEEP:
            if not 0 <= argument <= MOST_PARTS:  # Python would make a table of this length
                raise UnsafePickleError(f"the pickle numbers an object {argument}")
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in _FETCH:
            stack.append(memo[argument])
        elif name == "DUP":
            stack.append(stack[-1])
        elif name == "POP":
            stack.pop()
        elif name in _FILL:
            taken = take(name)
            parts[stack[-1]] += taken
        else:
            taken = take(name)
            if name == "BINPERSID" and len(entry := parts[taken[0]]) > 4:
                numel = constants.get(entry[4])
                storages[constants.get(entry[2])] = numel if isinstance(numel, int) else 0
            if name in _GIVES:
                if argument is not None:
                    constants[len(parts)] = argument if isinstance(argument, int | str | bytes) else None
                stack.append(len(parts))
                parts.append(taken)
    return parts, sum(storages.values())


def _check_size(parts: list[list[int]]) -> None:
    """Check the sizes of objects, each counted as often as it is used. `parts` are the numbers of their parts."""
    if any(_MARK in inner for inner in parts):
        raise DamagedPickleError("the pickle is damaged (a mark is left)")
    sizes, depths, begun = [0] * len(parts), [0] * len(parts), bytearray(len(parts))
    for start in range(len(parts)):
        waiting = [start]
        while waiting:
            one = waiting[-1]
            if sizes[one]:
                waiting.pop()
            elif begun[one]:
                sizes[one] = 1 + sum(sizes[inner] for inner in parts[one])
                depths[one] = 1 + max((depths[inner] for inner in parts[one]), default=0)
                if sizes[one] > MOST_PARTS or depths[one] > _DEEPEST:
                    raise UnsafePickleError("the pickle holds too many parts, or is nested too deeply")
                waiting.pop()
            else:
                begun[one] = True
                missing = [inner for inner in parts[one] if not sizes[inner]]
                if any(begun[inner] for inner in missing):
                    raise UnsafePickleError("the pickle cannot be read: it holds itself")
                waiting += missing
    inside = {inner for one in parts for inner in one}
    if sum(size for one, size in enumerate(sizes) if one not in inside) > MOST_PARTS:
        raise UnsafePickleError("the pickle holds too many parts")


def check_torch_file(path: Path) -> bool:
    """Check a file of `torch.save`, and return whether it is a zip archive.

    Raises:
        DamagedPickleError: it is damaged.
        UnsafePickleError: its archive is compressed or has entries that overlap, or its pickle is refused by
            `check_pickle`.
    """
    size = os.path.getsize(path)
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":  # torch decides in the same way
            file.seek(0)
            for count in range(_LEGACY_PICKLES):
                if count == 0 or file.tell() < size:
                    check_pickle(file, most_numbers=size)
            return False
        _check_directory(file, size)
        try:
            with zipfile.ZipFile(file) as archive:
                entries = archive.infolist()
                check_stored(entries, size)
                names = [entry.filename.lower() for entry in entries]  # PyTorch finds names in any case
                pickles = [entry for entry in entries if entry.filename.lower().endswith("/data.pkl")]
                if len(pickles) != 1 or len(set(names)) != len(names):
                    raise UnsafePickleError("not an archive of PyTorch: it has not one data.pkl")
                if sum(entry.file_size for entry in entries if "/data/" not in entry.filename) > _PICKLE_BYTES:
                    raise UnsafePickleError(f"its pickle is larger than {_PICKLE_BYTES // 2**20} MB")
                with archive.open(pickles[0]) as content:
                    check_pickle(content)
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError, ValueError) as error:
            raise DamagedPickleError(f"not a readable archive ({type(error).__name__})") from None
    return True


def _check_directory(file: IO[bytes], size: int) -> None:
    """Check the end of a zip archive: its directory is short, and lies where Python and PyTorch both look for it.

    Source: PKWARE's APPNOTE.TXT, sec. 4.3.14 to 4.3.16.
    """

    def at(place: int, form: str, signature: bytes) -> tuple[int, ...]:
        length = struct.calcsize(form)
        if place < 0:
            raise DamagedPickleError("not a readable archive")
        file.seek(place)
        content = file.read(length)
        if len(content) < length or content[:4] != signature:
            raise DamagedPickleError("not a readable archive (its end is missing)")
        return struct.unpack(form, content)

    place = size - 22
    *_, entries, length, start, _ = at(place, "<4s4H2IH", b"PK\x05\x06")
    file.seek(max(0, size - 42))
    if file.read(4) == b"PK\x06\x07":  # PyTorch always writes the long form too, and prefers it
        _, _, place, _ = at(size - 42, "<4sIQI", b"PK\x06\x07")
        *_, entries, length, start = at(place, "<4sQ2H2I4Q", b"PK\x06\x06")
    if start + length != place:
        raise DamagedPickleError("not a readable archive (its directory is at another place)")
    if entries > _MOST_ENTRIES or length > _DIRECTORY_BYTES:
        raise UnsafePickleError(f"its archive has more than {_MOST_ENTRIES:,} entries")


def check_stored(entries: Iterable[zipfile.ZipInfo], size: int) -> None:
    """Check that entries of a zip archive of `size` bytes are stored as they are, one after another.

    PyTorch writes its archives like this. A compressed entry may have a thousand times the bytes of its file, and
    entries that overlap any number of times.

    Raises:
        UnsafePickleError: they are not.
    """
    free = 0
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise UnsafePickleError("its archive is compressed, which PyTorch's are not")
        if entry.header_offset < free:
            raise UnsafePickleError("its archive has entries that overlap")
        free = entry.header_offset + 30 + len(entry.filename) + entry.file_size  # 30 bytes before the name
        if free > size:
            raise DamagedPickleError("its archive ends within an entry")
