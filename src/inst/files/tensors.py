"""Open safetensors files of unknown origin."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from inst.errors import InstError, first_line
from inst.files.listing import readable_path
from inst.files.reading import check_regular, translate_reading

HEADER_BYTES = 16 * 2**20
"""Longest header that is read. That of the largest models has 1 MB; the library itself takes 100 MB, which is a million
tensors and needs gigabytes."""


_ERRORS = (SafetensorError, OSError, AttributeError, TypeError, ValueError, RuntimeError)
"""What the library raises for a damaged file. AttributeError, TypeError: the framework has no such type of numbers."""


def is_real(tensor: Any) -> bool:
    """Return whether a tensor of PyTorch holds floating point numbers that it can convert.

    Two 4-bit numbers in a byte count as floating point numbers too, but nothing can be done with them.
    """
    return bool(tensor.is_floating_point()) and "float4" not in str(tensor.dtype)


@contextmanager
def open_tensors(
    path: str | os.PathLike[str], remedy: str = "copy or download the file again", framework: str = "pt"
) -> Iterator[Any]:
    """Open a safetensors file with `safe_open`, after a check of what the library would wait for or allocate.

    The library itself checks that the tensors lie in the file one after another, without gaps and overlaps, and that
    each has as many bytes as its shape says.

    Args:
        path: the file; its name may be anything, also not UTF-8.
        remedy: what to do about a damaged file.
        framework: "pt" for tensors, "np" for arrays.

    Raises:
        InstError: it is missing, not a regular file, not readable, damaged, or has a header of more than
            `HEADER_BYTES`; or a tensor read in the block has a type that the framework does not have.
    """
    path = Path(path)
    check_regular(path)
    with translate_reading(path), path.open("rb") as file:
        start = file.read(8)
    if len(start) == 8 and HEADER_BYTES < struct.unpack("<Q", start)[0] <= os.path.getsize(path):
        raise InstError(f"{path} has a header of more than {HEADER_BYTES // 2**20} MB", remedy)
    try:
        with readable_path(path) as place, safe_open(place, framework) as tensors:
            yield tensors
    except InstError:
        raise
    except _ERRORS as error:
        raise InstError(f"{path} is damaged or not a safetensors file ({first_line(error)})", remedy) from None
