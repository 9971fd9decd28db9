"""Where a command writes: the file that is named, or a free name; never onto what is read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from inst.errors import InstError, UsageError
from inst.files.writing import reserve_path

OUTPUTS = Path("outputs")
"""Where pictures and styles go when no place is named."""


def check_output(
    out: Path | None,
    sources: Iterable[Path | None],
    check: Callable[[Path], object],
    written: Sequence[Path] | None = None,
) -> None:
    """Refuse, before anything is computed, a place that cannot be written to or that would destroy a source.

    Args:
        out: a file, a folder that exists, or None.
        sources: every file that is read; None stands for an option that was not given.
        check: raises for a file's name with an ending that cannot be written.
        written: the files that will be written; None is `out` alone.
    """
    if out is None or out.is_dir():
        return
    check(out)
    if not out.parent.is_dir():
        raise InstError(f"{out} cannot be written: the folder {out.parent} does not exist", "make it first")
    there = [source for source in sources if source is not None and source.exists()]
    for path in [out] if written is None else written:
        if path.exists() and any(path.samefile(source) for source in there):
            raise UsageError(f"{path} is what is read", "give another name to -o, or it would be lost")


def numbered(out: Path, number: int) -> Path:
    """Return the name of one of several pictures: `shot.png` -> `shot-1.png`."""
    return out.with_stem(f"{out.stem}-{number}")


@contextmanager
def output_path(out: Path | None, stem: str, suffix: str, number: int | None = None) -> Iterator[Path]:
    """Give the file to write: `out`, or a name that is still free in it if it is a folder, or in `outputs`.

    `number` is that of one of several pictures (`numbered`).
    """
    if out is not None and not out.is_dir():
        yield out if number is None else numbered(out, number)
        return
    with reserve_path(OUTPUTS if out is None else out, stem, suffix) as path:
        yield path
