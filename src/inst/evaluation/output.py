"""Keep a folder of results for one run: of two runs, each would take pictures of the other one for its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from inst.files.claiming import held
from inst.files.writing import make_folder


@contextlib.contextmanager
def folder_held(folder: Path) -> Iterator[None]:
    """Create a folder, and keep other processes from writing results into it during this block.

    The lock (`inst.files.claiming.held`) is in the folder, not beside it: a folder of results may lie in one that is
    not writable, as in a container. If nothing was written, a folder that was created is deleted.

    Raises:
        InstError: another process writes results into it, or it cannot be created or written to.
    """
    created = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        with held(make_folder(folder) / "results", folder):
            yield
    finally:
        with contextlib.suppress(OSError):  # it is not empty
            for place in created:
                place.rmdir()
