"""Choose the file that a command writes: the file that `-o` names, or a new name. No source file is overwritten."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from inst.errors import InstError, UsageError
from inst.files.writing import reserve_path

OUTPUTS = Path("outputs")
"""The folder for pictures and styles if `-o` is not given."""


@dataclass(frozen=True)
class Output:
    """What `-o` names.

    Attributes:
        path: a file; or a folder, in which the file gets a new name.
        is_folder: whether it is a folder: one that exists, or a name with a slash at its end, which is created.
    """

    path: Path
    is_folder: bool

    @classmethod
    def of(cls, text: str) -> Output:
        """Read the value of `-o`."""
        return cls(Path(text), os.path.isdir(text) or text.endswith(("/", os.sep)))

    def __str__(self) -> str:
        return f"{self.path}{os.sep if self.is_folder else ''}"


def output_option(text: str, *, optional: bool = False) -> Any:
    """Return the option `-o`, for an argument of the type `Output`.

    `text` is its help. If it is optional, the help says what else may be given (`output_path`).
    """
    places = ", or a folder: one that exists, or FOLDER/. By default a new file in outputs/." if optional else ""
    return typer.Option("-o", "--out", parser=Output.of, metavar="<path>", help=text + places)


def new_file(out: Output) -> Path:
    """Return the file that `out` names, for a command that chooses no name in a folder. Raises UsageError."""
    if out.is_folder:
        raise UsageError(f"{out} is a folder", "give the name of a file with -o")
    return out.path


def check_output(
    out: Output | None,
    sources: Iterable[Path | None],
    check: Callable[[Path], object],
    written: Sequence[Path] | None = None,
) -> None:
    """Check that `out` can be written and that no source would be overwritten, before anything is computed.

    Args:
        out: what `-o` names, or None.
        sources: all files that are read; None stands for an option that was not given.
        check: raises if the file name has an ending that cannot be written.
        written: the files that will be written; None means `out` alone.

    Raises:
        InstError: the folder of `out` does not exist.
        UsageError: a source would be overwritten.
    """
    if out is None:
        return
    if out.is_folder:
        if out.path.is_file():
            raise InstError(f"{out.path} is a file", "choose a folder")
        return
    path = out.path
    check(path)
    if not path.parent.is_dir():
        raise InstError(f"{path} cannot be written: the folder {path.parent} does not exist", "create it first")
    existing = [source for source in sources if source is not None and source.exists()]
    for file in [path] if written is None else written:
        if file.exists() and any(file.samefile(source) for source in existing):
            raise UsageError(f"{file} is an input file and would be overwritten", "give another name with -o")


def numbered_path(path: Path, number: int) -> Path:
    """Return the path of one of several pictures: `shot.png` -> `shot-1.png`."""
    return path.with_stem(f"{path.stem}-{number}")


@contextmanager
def output_path(out: Output | None, stem: str, suffix: str, number: int | None = None) -> Iterator[Path]:
    """Yield the file to write: `out`; a new name in `out` if it is a folder; or a new name in `outputs` if it is None.

    `number` is the picture's number if several are made (`numbered_path`).
    """
    if out is not None and not out.is_folder:
        yield out.path if number is None else numbered_path(out.path, number)
        return
    with reserve_path(OUTPUTS if out is None else out.path, stem, suffix) as path:
        yield path
