"""Record where a style or a picture came from: plain values and hashes, without folder names.

This module does not import PyTorch.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from inst.errors import first_line
from inst.files.listing import readable_name
from inst.files.reading import open_file, translate_reading
from inst.version import __version__

KEYWORD = "inst"
"""The keyword of the PNG text chunk with the record of how a picture was made."""

FORMAT = 3
"""The version of the record's format: the one that this package writes, and the newest that it can read."""

PROSE_KEYS = frozenset(
    {"prompt", "negative_prompt", "caption", "captions", "template", "templates", "note", "title", "labels", "tags"}
)
"""Keys with free text as their value. The text is kept unchanged: it may contain a slash, but it is not a path."""

LARGEST_SOURCE = 2**30
"""Largest picture or embedding in bytes that is recorded. A film can be larger."""

_LIBRARIES = ("torch", "diffusers", "transformers")


@dataclass(frozen=True)
class SourceFile:
    """A file that was used: its base name without folders, and the sha256 of its bytes in hexadecimal."""

    name: str
    sha256: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", base_name(self.name))

    @classmethod
    def of(cls, path: str | Path, most: int | None = LARGEST_SOURCE) -> SourceFile:
        """Make the record of a file. Raises InstError if it cannot be read, is a device, or has more bytes than `most`.

        The whole file is read, and a file of no more than a few blocks on the disk can say that it has terabytes.
        """
        with open_file(path, most) as file, translate_reading(Path(path)):
            digest = hashlib.file_digest(file, "sha256")  # type: ignore[arg-type]  # IO lacks a method that files have
            return cls(str(path), digest.hexdigest())


def base_name(path: str | os.PathLike[str]) -> str:
    """Return the last part of a path of any operating system, as `readable_name`; other names are unchanged."""
    return readable_name(re.split(r"[\\/]", os.fspath(path).rstrip("\\/"))[-1])


def to_plain(value: Any, verbatim: frozenset[str] = frozenset()) -> Any:
    """Convert a value to types that JSON stores exactly: None, bool, int, float, str, lists, dicts with string keys.

    Paths, and strings that look like paths, are cut to their base names. Tuples become lists; tensors and arrays become
    numbers or lists of numbers.

    Args:
        value: the value to copy and convert.
        verbatim: keys of free text, which may contain a slash; their strings are kept unchanged.

    Raises:
        TypeError: a value has another type.
        ValueError: a number is not finite, which JSON cannot store.
    """
    match value:
        case None | bool() | int():
            return value
        case float():
            if not math.isfinite(value):
                raise ValueError(f"{value} cannot be recorded: only finite numbers can")
            return value
        case str() | os.PathLike():
            return base_name(value)
        case Mapping():
            return {
                str(key): _prose(entry) if key in verbatim else to_plain(entry, verbatim)
                for key, entry in value.items()
            }
        case Sequence() if not isinstance(value, bytes | bytearray | memoryview):
            return [to_plain(entry, verbatim) for entry in value]
    if hasattr(value, "tolist") and not isinstance(value, memoryview):  # a tensor, or a NumPy number or array
        return to_plain(value.tolist())
    raise TypeError(f"a {type(value).__name__} cannot be recorded: {value!r:.80}")


def describe(kind: str, command: str, **details: Any) -> dict[str, str]:
    """Return the PNG texts for a picture that `inst repeat` cannot make again.

    Args:
        kind: the kind of picture, such as "sheet of a comparison".
        command: the command that makes it again, such as "inst compare".
        details: its contents and settings, as values for `to_plain`.
    """
    content = {
        "format": FORMAT,
        "kind": kind,
        "command": command,
        **to_plain(details, PROSE_KEYS),
        "versions": versions(),
    }
    return {KEYWORD: json.dumps(content, allow_nan=False)}


def versions(*more: str) -> dict[str, str]:
    """Return the versions of inst, Python, torch, diffusers, transformers and `more` libraries."""
    libraries = {library: version(library) for library in (*_LIBRARIES, *more)}
    return {"inst": __version__, "python": platform.python_version(), **libraries}


def read_entry(content: Mapping[str, Any], key: str, kind: type) -> Any:
    """Return a value of a record. Raises KeyError if it is missing, TypeError if it is not of the type `kind`."""
    if not isinstance(content[key], kind):
        raise TypeError(f"{key} is a {type(content[key]).__name__}, not a {kind.__name__}")
    return content[key]


def reason(error: BaseException) -> str:
    """Return one line that says what is wrong with a record."""
    if isinstance(error, KeyError):
        return f"{error} is missing"
    return first_line(error)


def _prose(value: Any) -> Any:
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple):
        return [_prose(entry) for entry in value]
    if isinstance(value, Mapping):
        return {str(key): _prose(entry) for key, entry in value.items()}
    return to_plain(value)
