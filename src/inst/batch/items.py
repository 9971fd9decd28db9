"""One input of a batch: its name, where it is, and its bytes."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from copy import copy
from dataclasses import dataclass, field

from inst.batch.places import LARGEST_PACKED, Place, printable
from inst.errors import InstError
from inst.files.git_lfs import refuse_start
from inst.files.listing import readable_name
from inst.files.writing import cut_name

_NO_PART = re.compile(r'[<>:"|?*\\]')
"""Characters that a common operating system does not allow in a file name."""

_LONGEST_PART = 200
"""Largest part of a name in bytes: a number and an ending must fit too."""

_LONGEST_NAME = 800
"""Largest name in bytes, so that a path made from it is no longer than systems allow."""


@dataclass(frozen=True, slots=True)
class Item:
    """One picture or style file of a source. It can be pickled, and read in another process.

    Attributes:
        name: readable text from which a path can be made: parts joined by "/", without a picture's ending. No part is
            empty or "..", starts or ends with a dot, or is longer than 200 bytes. Names can be equal.
        place: where it is, for messages and records: "photos/a.jpg", "shard.tar/key.jpg", "pictures.parquet row 12"
            (counted from 0). It has no credentials and no control characters.
        data: the bytes, if they travel with the item.
        file: the file, if they do not.
        problem: what is wrong, if that is already known; `read` raises it.
    """

    name: str
    place: str
    data: bytes | None = field(default=None, repr=False)
    file: Place | None = field(default=None, repr=False)
    problem: InstError | None = None

    def read(self) -> bytes:
        """Return the bytes of the file.

        Raises:
            InstError: the file is missing, empty, a folder, too large or a pointer of git-lfs; or the system or the
                server does not give it.
        """
        if self.problem is not None:
            raise copy(self.problem)  # an exception keeps the traceback of each time that it is raised
        data = self.data
        if data is None and self.file is not None:
            data = self.file.read()
        if not data:
            raise InstError(f"{self.place} is empty (0 bytes)", "copy or export the picture again")
        refuse_start(self.place, data[:64])
        return data


def too_large(place: str, size: int) -> InstError:
    """Return the error for a picture of this size in bytes in a shard or a Parquet file."""
    return InstError(
        f"{place} has {size:,} bytes, more than {LARGEST_PACKED:,}", "make it smaller, or give it as a file"
    )


def safe_name(text: str, endings: Collection[str] = ()) -> str:
    """Return a name from which an output path can be made (`Item.name`); "picture" if nothing is left.

    Args:
        text: any text: a path, or a name from an archive.
        endings: one of these is removed from the end, in lower or upper case.
    """
    text = text.rstrip("/")
    stem, ending = os.path.splitext(text)
    if ending.lower() in endings:
        text = stem
    # Only the end of a very long text is looked at: it comes from an archive that can hold anything.
    parts = (_safe_part(part) for part in readable_name(text[-10 * _LONGEST_NAME :]).split("/"))
    name = "/".join(part for part in parts if part)
    while len(name.encode()) > _LONGEST_NAME:
        name = name.partition("/")[2]  # a part alone is shorter
    return name or "picture"


def _safe_part(part: str) -> str:
    clean = _NO_PART.sub("_", printable(part)).strip(" .")
    return cut_name(clean, _LONGEST_PART).strip(" .")
