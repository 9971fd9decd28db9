"""Files that appear as a whole or not at all, and errors as one line."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist
from safetensors import SafetensorError

from inst.errors import InstError, first_line


def need(folder: Path) -> Path:
    """`folder`, which an earlier stage writes; an InstError where it is not there."""
    if not folder.is_dir():
        raise InstError(f"{folder}: no such folder; run the stage that writes it first")
    return folder


def write_folder(folder: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a new folder beside `folder`, then put it in the place of what was there before, as a whole.

    Raises:
        InstError: it cannot be written; what was at `folder` is untouched.
    """
    beside = folder.with_name(f".{folder.name}.part")
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        write(beside)
        old = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        beside.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise InstError(f"{folder}: cannot be written ({error}); make room, then run the same command again") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def guarded(main: Callable[[], None]) -> None:
    """Run a stage; a user's mistake, a full disk or an interrupt is one line on standard error, from one process."""
    message, code = "", 0
    try:
        main()
    except InstError as error:
        message, code = str(error), error.exit_code
    except OSError as error:
        reason = error.strerror or first_line(error)
        message, code = f"{error.filename or 'a file'}: {reason}; mend that and run the same command again", 1
    except KeyboardInterrupt:
        message, code = "interrupted; the same command goes on from its last checkpoint, if it has one", 130
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    if message and int(os.environ.get("RANK", 0)) == 0:
        print(f"error: {message}", file=sys.stderr, flush=True)
    sys.exit(code)
