"""Run `inst batch` as a user does, look at what it leaves, and end it in the middle."""

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from inst.cli import main

QUICK = ("--steps", 2, "--size", 64)
"""Options for pictures that take a moment."""

_TIMES = ("seconds", "finished", "status")


def write_pictures(folder: Path, *names: str, size: tuple[int, int] = (64, 64), seed: int = 0) -> Path:
    """Write pictures of noise, each with other pixels, and return the folder."""
    for k, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng([seed, k]).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return folder


def results(out: Path) -> dict[str, bytes]:
    """The outputs in a folder by name, without the manifest, and without what a killed process has left."""
    files = (path for path in out.rglob("*") if path.is_file())
    return {
        str(path.relative_to(out)): path.read_bytes() for path in files if not path.name.startswith(("manifest.", "."))
    }


def rows(out: Path | str) -> list[dict[str, Any]]:
    """The rows of the manifest."""
    return pq.read_table(f"{out}/manifest.parquet").to_pylist()


def facts(out: Path) -> list[tuple[object, ...]]:
    """The rows of the manifest without times, sorted."""
    return sorted(tuple(str(value) for name, value in row.items() if name not in _TIMES) for row in rows(out))


@contextmanager
def started(folder: Path, *arguments: object, prepare: Callable[[], object] = lambda: None) -> Iterator[int]:
    """Run a command of `inst` in a forked process; yields its id. Its output goes to `folder`/printed."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            printed = os.open(folder / "printed", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(printed, 1)
            os.dup2(printed, 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
            signal.signal(signal.SIGINT, signal.default_int_handler)
            sys.argv = ["inst", *map(str, arguments)]
            prepare()
            main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    try:
        yield pid
    finally:
        try:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass


def ended(pid: int) -> int:
    """Wait for the end of a process; return its exit code, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def wait_for_results(out: Path, count: int, most: float = 120) -> None:
    """Wait until a folder has so many outputs."""
    until = time.monotonic() + most
    while len([*out.rglob("*.png"), *out.rglob("*.safetensors")]) < count:
        assert time.monotonic() < until, f"there are no {count} results in {out}"
        time.sleep(0.002)
