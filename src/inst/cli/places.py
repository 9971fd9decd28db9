"""Choose the file that a command writes: the file that `-o` names, or a new name. No source file is overwritten."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from typer.models import OptionInfo

from inst.errors import InstError, UsageError
from inst.files.claiming import reserve_name, reserve_path
from inst.files.holding import sweep_once
from inst.files.writing import folder_of

OUTPUTS = Path("outputs")
"""The folder for pictures and styles if `-o` is not given."""


class _EmptyPath(InstError):
    """A wrong argument, but no ValueError as `UsageError` is: typer would print a ValueError in a box of its own."""

    exit_code = UsageError.exit_code


def read_path(text: str) -> Path:
    """Return the path that an argument names. Raises InstError if it is empty: Python takes "" for the current folder.

    This is a parser for typer; `checks_paths` puts it where a command takes paths.
    """
    if not text:
        raise _EmptyPath("An argument cannot be used: the path is empty", "give the name of a file or a folder")
    return Path(text)


def with_read_path(annotation: Any) -> Any:
    """Return the annotation of an argument; if it is of the type Path, or a list of these, `read_path` parses it."""
    kind, *options = get_args(annotation) or (annotation,)
    if not options or Path not in (kind, *get_args(kind)) or options[0].parser is not None:
        return annotation
    option = copy(options[0])
    option.parser = read_path
    if isinstance(option, OptionInfo):  # an argument shows its own name
        option.metavar = option.metavar or "<path>"
    return Annotated[kind, option]


def checks_paths(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command refuse empty paths (`read_path`). `inst.cli.session.with_session` includes this."""

    @wraps(command)
    def run(**values: Any) -> None:
        command(**values)

    own = inspect.signature(command, eval_str=True)
    parameters = [one.replace(annotation=with_read_path(one.annotation)) for one in own.parameters.values()]
    run.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    return run


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
        return cls(read_path(text), os.path.isdir(text) or text.endswith(("/", os.sep)))

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
    *,
    replace: bool = False,
) -> None:
    """Check that `out` can be written and that no source would be overwritten, before anything is computed.

    Args:
        out: what `-o` names, or None.
        sources: all files that are read; None stands for an option that was not given.
        check: raises if the file name has an ending that cannot be written.
        written: the files that will be written, if their names are derived from `out`; None means `out` alone.
        replace: whether files of these derived names may be replaced. `out` itself, which the user named, always is.

    Raises:
        InstError: the folder of `out` does not exist; or a file of a derived name is there already.
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
    if not folder_of(path).is_dir():
        raise InstError(f"{path} cannot be written: the folder {folder_of(path)} does not exist", "create it first")
    sweep_once(folder_of(path))  # a killed command may have left names without content
    existing = [source for source in sources if source is not None and source.exists()]
    for file in [path] if written is None else written:
        if file.exists() and any(file.samefile(source) for source in existing):
            raise UsageError(f"{file} is an input file and would be overwritten", "give another name with -o")
        if written is not None and not replace and file.exists():
            raise InstError(f"{file} is there already and would be overwritten", "give another name with -o")


def numbered_path(path: Path, number: int) -> Path:
    """Return the path of one of several pictures: `shot.png` -> `shot-1.png`."""
    return path.with_stem(f"{path.stem}-{number}")


@contextmanager
def output_path(
    out: Output | None, stem: str, suffix: str, number: int | None = None, beside: Sequence[str] = ()
) -> Iterator[Path]:
    """Yield the file to write: `out`; a new name in `out` if it is a folder; or a new name in `outputs` if it is None.

    Args:
        out: what `-o` names, or None.
        stem: the new name without its ending.
        suffix: the ending of the new name.
        number: the picture's number if several are made (`numbered_path`). No file of such a name is overwritten.
        beside: endings of files that may belong to an earlier output (`inst.files.claiming.reserve_path`).

    Raises:
        InstError: a file of the numbered name has appeared, or the folder is not writable.
    """
    if out is None or out.is_folder:
        with reserve_path(OUTPUTS if out is None else out.path, stem, suffix, beside) as path:
            yield path
    elif number is None:
        yield out.path
    else:
        with reserve_name(numbered_path(out.path, number)) as path:
            yield path
