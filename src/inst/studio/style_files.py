"""The style files of a library: their ids, reading them in part, and moving them.

This module imports PyTorch only when a style is read.
"""

from __future__ import annotations

import hashlib
import os
import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inst.errors import InstError
from inst.files.listing import readable_name

if TYPE_CHECKING:
    from inst.styles.style import Style

ENDING = ".safetensors"
ID = re.compile(r"[0-9a-f]{16}")
"""What the id of a style looks like."""


def id_of(name: str) -> str:
    """Return the id of a style file: its name without ending if that is 16 hexadecimal digits, else of its hash."""
    stem = name.removesuffix(ENDING)
    return stem if ID.fullmatch(stem) else hashlib.sha256(os.fsencode(name)).hexdigest()[:16]


def read_style_file(path: Path, *, module: bool = True) -> Style:
    """Read a style file. Without its `module`, which is most of its bytes, only the rest of the file is read.

    Raises:
        InstError: as `Style.load`; the message names the file without its folder.
    """
    import safetensors.torch

    from inst.files.tensors import open_tensors
    from inst.styles.style import KEY, Style

    name = readable_name(path.name)
    if not module:
        content = None
        # If this fails, `Style.load` says why.
        with suppress(InstError), open_tensors(path) as file:
            metadata = file.metadata() or {}
            if KEY in metadata:
                kept = [key for key in file.keys() if not key.startswith("module.")]  # noqa: SIM118
                tensors = {key: file.get_tensor(key) for key in kept}
                content = safetensors.torch.save(tensors, {KEY: metadata[KEY]})
        if content is not None:
            return Style.from_bytes(content, name)
    try:
        return Style.load(path)
    except InstError as error:  # readers of a web page must not see where the library lies
        raise InstError(error.problem.replace(str(path), name), *error.remedy) from None


def is_style_file(path: Path) -> bool:
    """Whether a file says that it is a style of inst. It may be damaged otherwise."""
    from inst.files.tensors import open_tensors
    from inst.styles.style import KEY

    try:
        with open_tensors(path) as file:
            return KEY in (file.metadata() or {})
    except InstError:
        return False


def painting_hash(style: Style) -> str | None:
    """Return the sha256 of the picture file of a style's first painting, in hexadecimal; None without paintings."""
    return hashlib.sha256(style.paintings[0]).hexdigest() if style.paintings else None


def with_about(style: Style, **about: Any) -> Style:
    """Return a copy of a style with these entries in its `about`."""
    return replace(style, about={**style.about, **about})


def bytes_of(path: Path) -> bytes:
    """Read a whole file. Raises InstError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise InstError(f"{path.name} cannot be read ({error.strerror or error})", "look at the list again") from None


def move(source: Path, target: Path) -> None:
    """Move a file within the library, at once or not at all. Raises InstError."""
    try:
        source.rename(target)
    except OSError as error:
        raise InstError(f"{source.name} cannot be moved ({error.strerror or error})", "check the folder") from None


def unlink(path: Path) -> None:
    """Delete a file. Raises InstError."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise InstError(f"{path.name} cannot be deleted ({error.strerror or error})", "check the folder") from None
