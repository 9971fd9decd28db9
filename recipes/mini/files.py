"""Write folders completely or not at all, and show errors as one line.

This module imports no PyTorch, because a stage imports it first (see `guarded`).
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


def require_folder(folder: Path) -> Path:
    """Return `folder`, which an earlier stage writes. Raises InstError if it does not exist."""
    if not folder.is_dir():
        raise InstError(f"{folder}: no such folder; run the stage that writes it first")
    return folder


def refuse_files(folder: Path) -> None:
    """Raise InstError if `folder` cannot be created or replaced because it, or a folder above it, is a file."""
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            raise InstError(f"{folder}: cannot be written: {path} is a file; give another folder")


def write_folder(folder: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a new folder next to `folder`, then replace `folder` with it in one step.

    Raises:
        InstError: the folder cannot be written. The old `folder` is unchanged.
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
        if isinstance(error, shutil.Error):  # an error of copying a folder has a list of (source, copy, message)
            reason = error.args[0][0][2]
        known = isinstance(error, OSError) and error.errno not in (None, errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        remedy = "repair that" if known else "free disk space"
        raise InstError(f"{folder}: cannot be written ({reason}); {remedy}, then run the same command again") from error
    finally:
        if old.exists() and not folder.exists():  # interrupted between the two renames
            old.rename(folder)
        for rest in (beside, old):
            shutil.rmtree(rest, ignore_errors=True)


def guarded(stage: str) -> NoReturn:
    """Import the module `stage`, run its `main`, and show an error as one line on standard error, from one process.

    It handles an error of the user, a full disk and an interrupt. A stage calls it before its own imports, which take
    seconds, so that errors during the imports are handled too.
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
        path = error.filename or ("standard output" if isinstance(error, BrokenPipeError) else "a file")
        message, code = f"{path}: {reason}; repair that, then run the same command again", 1
        # If standard output cannot be written, the output that is still buffered would fail again at the exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    except KeyboardInterrupt:
        message, code = (
            "interrupted; run it again to continue from its last checkpoint, if there is one",
            130,
        )
    except Exception as error:
        compiling = sys.modules.get("torch._dynamo.exc")
        if compiling is None or not isinstance(error, compiling.BackendCompilerFailed):
            raise
        reason = f"{type(error.inner_exception).__name__}: {first_line(error.inner_exception)}"
        cache = os.environ["TORCHINDUCTOR_CACHE_DIR"]  # PyTorch sets it if it is not set
        message, code = f"torch.compile failed ({reason}); delete its cache, {cache}, or give --no-compile", 1
    finally:
        distributed = sys.modules.get("torch.distributed")
        if distributed is not None and distributed.is_initialized():
            distributed.destroy_process_group()
    if message and int(os.environ.get("RANK", 0)) == 0:
        print(f"error: {message}", file=sys.stderr, flush=True)
    sys.exit(code)


def _interrupt(number: int, frame: object) -> None:
    """End the stage as Ctrl-C does. Ignore later signals (torchrun sends one more), so that the cleanup is complete."""
    for stopping in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stopping, signal.SIG_IGN)
    raise KeyboardInterrupt
