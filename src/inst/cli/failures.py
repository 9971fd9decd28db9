"""What ends a command before its work is done, as an error of one line with an exit code."""

from __future__ import annotations

import errno
import os

import typer

from inst.errors import InstError, UsageError, first_line
from inst.texts import cut

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of an output that goes to a disk which takes no more."""
_GONE = (errno.EBADF, errno.EIO)
"""Errors of an output that was closed, or whose terminal has gone."""

# Words of PyTorch's own messages. Naming its exception class for an accelerator would import PyTorch.
_OUT_OF_MEMORY = ("DefaultCPUAllocator", "out of memory")

(_WrongUse,) = typer.BadParameter.__bases__
"""The errors of typer's parser, whose class it does not name."""


def failure_of(error: Exception) -> InstError | None:
    """Return the error that a user can fix behind an exception, or None: it is a bug."""
    if isinstance(error, InstError):
        return error
    if isinstance(error, _WrongUse):
        return _wrong_use(error)
    if isinstance(error, OSError):
        return _system_error(error)
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)
    ):
        return _NO_MEMORY
    return None


_NO_MEMORY = InstError(
    "there is not enough memory",
    "use smaller pictures (--size, --tile) or batches (--batch-size), add --low-memory, or choose another --device",
)


def _wrong_use(error: Exception) -> UsageError:
    """Say in one line what typer says in a box below the usage."""
    context = getattr(error, "ctx", None)
    command = "inst" if context is None else context.command_path
    problem = " ".join(error.format_message().split()).rstrip(".")  # type: ignore[attr-defined]
    return UsageError(cut(problem, 400), f"see `{command} --help`")


def _system_error(error: OSError) -> InstError | None:
    reason = error.strerror or first_line(error)
    if error.filename is not None:
        name = os.fsdecode(error.filename) if isinstance(error.filename, bytes) else str(error.filename)
        return InstError(f"{name} cannot be used ({reason})", "give another path")
    if error.errno in (*_FULL, *_GONE):  # files are written by `inst.files.writing`, which names them
        remedy = "free space on the disk" if error.errno in _FULL else "give the command an output"
        return InstError(f"the output cannot be printed ({reason})", f"{remedy}. Files that were written stay")
    if error.errno == errno.ENOMEM:
        return _NO_MEMORY
    try:
        os.getcwd()
    except OSError:
        return InstError("The current folder does not exist any more", "change to another folder")
    return None
