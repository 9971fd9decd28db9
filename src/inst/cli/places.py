"""Choose the file that a command writes: the file that `-o` names, or a new name. No source file is overwritten."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from inst.errors import InstError, UsageError
from inst.files.writing import reserve_path

OUTPUTS = Path("outputs")
"""The folder for pictures and styles if `-o` is not given."""


def check_output(
    out: Path | None,
    sources: Iterable[Path | None],
    check: Callable[[Path], object],
    written: Sequence[Path] | None = None,
) -> None:
    """Check that `out` can be written and that no source would be overwritten, before anything is computed.

    Args:
        out: a file, an existing folder, or None.
        sources: all files that are read; None stands for an option that was not given.
        check: raises if the file name has an ending that cannot be written.
        written: the files that will be written; None means `out` alone.

    Raises:
        InstError: the folder of `out` does not exist.
        UsageError: a source would be overwritten.
    """
    if out is None or out.is_dir():
        return
    check(out)
    if not out.parent.is_dir():
        raise InstError(f"{out} cannot be written: the folder {out.parent} does not exist", "create it first")
    existing = [source for source in sources if source is not None and source.exists()]
    for path in [out] if written is None else written:
        if path.exists() and any(path.samefile(source) for source in existing):
            raise UsageError(f"{path} is an input file and would be overwritten", "give another name with -o")


def numbered_path(out: Path, number: int) -> Path:
    """Return the path of one of several pictures: `shot.png` -> `shot-1.png`."""
    return out.with_stem(f"{out.stem}-{number}")


@contextmanager
def output_path(out: Path | None, stem: str, suffix: str, number: int | None = None) -> Iterator[Path]:
    """Yield the file to write: `out`; a new name in `out` if it is a folder; or a new name in `outputs` if it is None.

    `number` is the picture's number if several are made (`numbered_path`).
    """
    if out is not None and not out.is_dir():
        yield out if number is None else numbered_path(out, number)
        return
    with reserve_path(OUTPUTS if out is None else out, stem, suffix) as path:
        yield path
