"""Files that appear as a whole or not at all, and errors as one line.

Imports no PyTorch: a stage imports this first, see `guarded`.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from safetensors import SafetensorError

from inst.errors import InstError, first_line


def need(folder: Path) -> Path:
    """`folder`, which an earlier stage writes; an InstError where it is not there."""
    if not folder.is_dir():
        raise InstError(f"{folder}: no such folder; run the stage that writes it first")
    return folder


def refuse_files(folder: Path) -> None:
    """Raise an InstError where `folder` cannot be made, or replaced, because it or one above it is a file."""
    for place in (folder, *folder.parents):
        if place.exists() and not place.is_dir():
            raise InstError(f"{folder}: cannot be written: {place} is a file; give another place")


def write_folder(folder: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a new folder beside `folder`, then put it in the place of what was there before, as a whole.

    Raises:
        InstError: it cannot be written; what was at `folder` is untouched.
    """
    refuse_files(folder)
    beside, old = (folder.with_name(f".{folder.name}.{ending}") for ending in ("part", "old"))
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        write(beside)
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        beside.rename(folder)
    except (OSError, SafetensorError) as error:
        reason = str(error)
        if isinstance(error, shutil.Error):  # of the copy of a folder: a list of (source, copy, what was said)
            reason = error.args[0][0][2]
        known = isinstance(error, OSError) and error.errno not in (None, errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        remedy = "mend that" if known else "make room"
        raise InstError(f"{folder}: cannot be written ({reason}); {remedy}, then run the same command again") from error
    finally:
        if old.exists() and not folder.exists():  # interrupted between the two renames
            old.rename(folder)
        for rest in (beside, old):
            shutil.rmtree(rest, ignore_errors=True)


def guarded(stage: str) -> NoReturn:
    """Import the module `stage` and run its `main`: called above a stage's own imports, which take seconds, so that
    they are guarded too.

    A user's mistake, a full disk or an interrupt is one line on standard error, from one process.
    """
    message, code = "", 0
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        try:
            import_module(stage).main()
        finally:
            print(end="", flush=True)
    except InstError as error:
        message, code = str(error), error.exit_code
    except OSError as error:
        reason = error.strerror or first_line(error)
        if str(error.filename).startswith(os.environ.get("TORCHINDUCTOR_CACHE_DIR", "\0")):
            reason += " (TORCHINDUCTOR_CACHE_DIR, the cache of torch.compile, must be a folder that can be written to)"
        place = error.filename or ("standard output" if isinstance(error, BrokenPipeError) else "a file")
        message, code = f"{place}: {reason}; mend that and run the same command again", 1
        # Where it is the output that cannot be written, what is still to be printed would fail again at the exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    except KeyboardInterrupt:
        message, code = "interrupted; the same command goes on from its last checkpoint, if it has one", 130
    except Exception as error:
        compiling = sys.modules.get("torch._dynamo.exc")
        if compiling is None or not isinstance(error, compiling.BackendCompilerFailed):
            raise
        reason = f"{type(error.inner_exception).__name__}: {first_line(error.inner_exception)}"
        cache = os.environ["TORCHINDUCTOR_CACHE_DIR"]  # PyTorch sets it where it is not set
        message, code = f"torch.compile failed ({reason}); delete its cache, {cache}, or give --no-compile", 1
    finally:
        distributed = sys.modules.get("torch.distributed")
        if distributed is not None and distributed.is_initialized():
            distributed.destroy_process_group()
    if message and int(os.environ.get("RANK", 0)) == 0:
        print(f"error: {message}", file=sys.stderr, flush=True)
    sys.exit(code)


def _interrupt(number: int, frame: object) -> None:
    """End the stage as Ctrl-C does; what follows (torchrun sends one more) shall not cut short the tidying up."""
    for stopping in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stopping, signal.SIG_IGN)
    raise KeyboardInterrupt
