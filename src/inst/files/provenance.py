"""What is written down about where a style or a picture came from: plain values, hashes, and no folder names.

Nothing here imports PyTorch.
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

from inst.errors import InstError, first_line
from inst.version import __version__

KEYWORD = "inst"
"""The keyword of the PNG text chunk that says what made a picture."""

FORMAT = 1
"""The version of what this package writes there, and the newest that it reads."""

PROSE = frozenset(
    {"prompt", "negative_prompt", "caption", "captions", "template", "templates", "note", "title", "labels"}
)
"""Keys whose texts are kept to the letter: they may hold a slash, and are no paths."""

_LIBRARIES = ("torch", "diffusers", "transformers")


@dataclass(frozen=True)
class SourceFile:
    """A file that was used: its base name, without folders, and the sha256 of its bytes in hexadecimal."""

    name: str
    sha256: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", base_name(self.name))

    @classmethod
    def of(cls, path: str | Path) -> SourceFile:
        """Note down a file. Raises InstError where it cannot be read."""
        try:
            with open(path, "rb") as file:
                return cls(str(path), hashlib.file_digest(file, "sha256").hexdigest())
        except OSError as error:
            raise InstError(f"{path} cannot be read ({error.strerror or error})", "give another file") from None


def base_name(path: str | os.PathLike[str]) -> str:
    """Return the last part of a path, whichever system it comes from. A name that is no path comes back as it is."""
    return re.split(r"[\\/]", os.fspath(path).rstrip("\\/"))[-1]


def plain(value: Any, verbatim: frozenset[str] = frozenset()) -> Any:
    """Copy a value into what JSON can hold exactly: None, bool, int, float, str, lists, and dicts with string keys.

    Paths, and strings that look like one, are cut to their base names. Tuples become lists, tensors and arrays the
    numbers they hold.

    Args:
        verbatim: keys whose strings are kept whole, because they are prose, which may hold a slash.

    Raises:
        TypeError: a value of another type.
        ValueError: a number that is not finite, which JSON has no word for.
    """
    match value:
        case None | bool() | int():
            return value
        case float():
            if not math.isfinite(value):
                raise ValueError(f"{value} cannot be written down: only finite numbers can")
            return value
        case str() | os.PathLike():
            return base_name(value)
        case Mapping():
            return {
                str(key): _prose(entry) if key in verbatim else plain(entry, verbatim) for key, entry in value.items()
            }
        case Sequence() if not isinstance(value, bytes | bytearray | memoryview):
            return [plain(entry, verbatim) for entry in value]
    if hasattr(value, "tolist") and not isinstance(value, memoryview):  # a tensor, or a number or array of NumPy's
        return plain(value.tolist())
    raise TypeError(f"a {type(value).__name__} cannot be written down: {value!r:.80}")


def describe(kind: str, command: str, **made_of: Any) -> dict[str, str]:
    """Say what a picture is that `inst repeat` does not make again, as the texts of a PNG file.

    Args:
        kind: what it is, such as "sheet of a comparison".
        command: what makes it again, such as "inst compare".
        made_of: what it shows and was made with, as values for `plain`.
    """
    content = {"format": FORMAT, "kind": kind, "command": command, **plain(made_of, PROSE), "versions": versions()}
    return {KEYWORD: json.dumps(content, allow_nan=False)}


def versions() -> dict[str, str]:
    """Return the versions of inst, of Python, and of the libraries that compute."""
    libraries = {library: version(library) for library in _LIBRARIES}
    return {"inst": __version__, "python": platform.python_version(), **libraries}


def entry(content: Mapping[str, Any], key: str, kind: type) -> Any:
    """Look up a value that was written down. Raises KeyError or TypeError where it is missing or no `kind`."""
    if not isinstance(content[key], kind):
        raise TypeError(f"{key} is a {type(content[key]).__name__}, not a {kind.__name__}")
    return content[key]


def reason(error: BaseException) -> str:
    """Return in one line what is wrong with something that was written down."""
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
    return plain(value)
