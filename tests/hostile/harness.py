"""Runs a case: a command of `inst` in this process, on the kit, with something bad in one place.

Whatever is bad, these must hold; `Outcome.faults` lists what does not:

- The exit code is 0, 1 or 2; or 130 after the Ctrl-C that `Case.endless` sends.
- A failure is one line on the standard error that begins with "Error: " (lines with "Warning: " may stand before it),
  and nothing on the standard output. There is never a trace, a line of more than 1,500 characters, or a character that
  a terminal obeys.
- Files that were there keep their bytes. Nothing unfinished, no lock and no empty file is left.
- It ends within `SECONDS` of the processor's time and three times as many on the clock, which a busy computer needs;
  and its memory grows by less than `BYTES`.
"""

from __future__ import annotations

import io
import os
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from inst.cli import main

from .commands import ENDS_WITH_1, PARTIAL, Name, line

SECONDS = 10.0
BYTES = 1 << 30
_ADDRESSES = 4 << 30  # of address space, which a bomb in C code ends at
_TICK = 0.2
_LONGEST_LINE = 1500
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_NOTES = ("Warning: ", "Failed: ", "Left out: ", "Further failures are only in the manifest.", "Other settings than")


@dataclass(frozen=True)
class Case:
    """One bad input.

    Attributes:
        id: unique; words of the recipe, the command and the place.
        command: the words that name the command.
        changes: the parameters that differ from the command's good line, by name (`commands.GOOD`).
        prepare: makes bad files in the current folder, which holds the kit.
        refused: whether it must fail. Otherwise it may also be something that can be used.
        endless: whether what it asks for may take for ever. It gets a Ctrl-C as soon as it has written a file: whoever
            asks for a billion pictures gets the first one at once, without memory for the rest.
        environment: variables to set; None removes one.
    """

    id: str
    command: Name
    changes: Mapping[str, Any] = field(default_factory=dict)
    prepare: Callable[[], object] = lambda: None
    refused: bool = False
    endless: bool = False
    environment: Mapping[str, str | None] = field(default_factory=dict)


def run_good(command: Name, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a command as it is, which must work: otherwise its cases would fail for reasons of their own."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["inst", *line(command, {})])
    with _as_in_a_shell() as printed:
        code = _exit_code()
    assert code == (command in ENDS_WITH_1), printed


def _exit_code() -> int:
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def is_chosen(words: str) -> bool:
    """Whether a case is in the third that is always run; INST_TEST_ALL=1 runs all, which takes minutes."""
    return bool(os.environ.get("INST_TEST_ALL")) or zlib.crc32(words.encode("utf-8", "replace")) % 3 == 0


def chosen(cases: Iterable[Case]) -> Iterator[Case]:
    """Yield the chosen cases, and the first for each parameter of each command."""
    seen: set[tuple[Name, frozenset[str]]] = set()
    for case in cases:
        place = case.command, frozenset(case.changes)
        if place not in seen or is_chosen(case.id):
            yield case
        seen.add(place)


class Stopped(BaseException):
    """What ends a command that takes too long or too much memory. Nothing in the product catches it."""


def run_case(case: Case, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Run a case in the current folder, and return what is wrong with how it ended."""
    for name, value in case.environment.items():
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    case.prepare()
    monkeypatch.setattr(sys, "argv", ["inst", *line(case.command, case.changes)])
    before = _files()
    faults: list[str] = []
    code, printed, watch = -1, ["", ""], _Watch(case, set(before))
    try:
        with _as_in_a_shell() as printed, _limits(watch):
            code = _exit_code()
    except Stopped as stopped:
        faults.append(str(stopped))
    except BaseException as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        faults.append(f"a trace: {type(error).__name__}: {str(error)[:300]!r} at {frame.filename}:{frame.lineno}")
    if not faults:
        faults += _wrong_end(case, code, *printed)
    if watch.grown() > BYTES:
        faults.append(f"its memory grew by {watch.grown() / 1e6:,.0f} MB")
    # A study that is served is open for writing.
    written = {Path(case.changes.get("study", "study.db"))} if case.command == ("study", "serve") else set()
    return [*faults, *_wrong_files(before, written)]


def _wrong_end(case: Case, code: int, out: str, err: str) -> Iterator[str]:
    allowed = {1, 2} if case.refused else {0, 1, 2, 130} if case.endless else {0, 1, 2}
    if code not in allowed:
        yield f"exit code {code}"
    if "Traceback (most recent" in out + err:
        yield f"a trace is printed: {err[-300:]!r}"
    for value in case.changes.values():  # a path that was given is printed as it is
        out = out.replace(str(value), "")
    if found := _OBEYED.search(err) or _OBEYED.search(out):
        yield f"{found[0]!r} is printed: {err[:300]!r} {out[:200]!r}"
    lines = err.splitlines()
    if (longest := max((len(one) for one in [*lines, *out.splitlines()]), default=0)) > _LONGEST_LINE:
        yield f"a line of {longest} characters: {err[:100]!r}"
    if "not enough memory" in err:
        yield "it needs all memory"
    errors = [one for one in lines if not one.startswith(_NOTES)]
    if case.command in PARTIAL:  # they say before what they do
        errors = errors[-1:]
    partial = case.command in PARTIAL and out
    if code in (1, 2) and not partial and (len(errors) != 1 or not errors[0].startswith("Error: ") or out):
        yield f"no failure of one line: exit code {code}, {err[:400]!r} {out[:200]!r}"
    if code == 0 and errors and case.command not in PARTIAL:
        yield f"unexpected words: {err[:400]!r}"


def _files() -> dict[Path, bytes | int]:
    """The regular files below the current folder with their bytes; with their time of change if they are large."""
    found: dict[Path, bytes | int] = {}
    for folder, _, names in os.walk("."):
        for path in (Path(folder, name) for name in names):
            if path.is_file() and not path.is_symlink():
                state = path.stat()
                found[path] = path.read_bytes() if state.st_size < 1 << 22 else state.st_mtime_ns
    return found


def _wrong_files(before: Mapping[Path, bytes | int], written: set[Path]) -> Iterator[str]:
    after = _files()
    for path, content in before.items():
        if path not in after and path.name != "manifest.jsonl":  # which becomes a table at the end of a batch
            yield f"{str(path)[:100]!r} is gone"
        elif path in after and after[path] != content and path not in written:
            yield f"{str(path)[:100]!r} is changed"
    for path in after.keys() - before.keys():
        name = path.name
        if name.startswith(".") or name.endswith((".part", ".lock")):
            yield f"{str(path)[:100]!r} is left"
        elif not after[path] and b"" not in before.values():  # an empty input may be copied as it is
            yield f"{str(path)[:100]!r} is left, and is empty"


@contextmanager
def _as_in_a_shell() -> Iterator[list[str]]:
    """Give a command streams of its own, and let warnings go there, as in a process of its own.

    Yields a list that holds what was printed on the standard output and on the standard error, after the block.
    """
    printed: list[str] = []
    kept, folder = (sys.stdout, sys.stderr, os.dup(1), os.dup(2)), tempfile.tempdir  # which the studio changes
    with ExitStack() as stack:
        files = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(2)]
        stack.enter_context(warnings.catch_warnings())
        warnings.resetwarnings()
        for hidden in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", hidden)
        warnings.showwarning = _show_warning
        try:
            for number, file in enumerate(files, 1):
                os.dup2(file.fileno(), number)
            sys.stdout, sys.stderr = (
                io.TextIOWrapper(io.FileIO(number, "w", closefd=False), "utf-8", write_through=True)
                for number in (1, 2)
            )
            yield printed
        finally:
            sys.stdout, sys.stderr, tempfile.tempdir = *kept[:2], folder
            for number, place in enumerate(kept[2:], 1):
                os.dup2(place, number)
                os.close(place)
            for file in files:
                file.seek(0)
                printed.append(file.read(1 << 24).decode(errors="replace"))


def _show_warning(message: Any, category: type[Warning], filename: str, number: int, *_: Any) -> None:
    print(warnings.formatwarning(message, category, filename, number), file=sys.stderr)


class _Watch:
    """Looks at the running command several times a second."""

    def __init__(self, case: Case, before: set[Path]) -> None:
        self.endless, self.before, self.asked = case.endless, before, False
        self.begin, self.worked = time.monotonic(), time.process_time()
        self.is_peak_known = _reset_peak()
        self.bytes = self.seen = _memory("VmRSS")

    def grown(self) -> int:
        """The bytes by which the memory of this process has grown at most."""
        return (_memory("VmHWM") if self.is_peak_known else self.seen) - self.bytes

    def look(self, *_: object) -> None:
        seconds, worked = time.monotonic() - self.begin, time.process_time() - self.worked
        self.seen = max(self.seen, _memory("VmRSS"))
        if self.seen - self.bytes > BYTES:
            self._stop("its memory grows without a bound")
        if worked > SECONDS or seconds > 3 * SECONDS:
            self._stop(f"it is not finished after {worked:.0f} s of work, {seconds:.0f} s on the clock")
        if self.endless and not self.asked and seconds > 0.5 and self._has_made_something():
            self.asked = True
            os.kill(os.getpid(), signal.SIGINT)

    def _stop(self, why: str) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)  # nothing must interrupt what tidies up
        raise Stopped(why)

    def _has_made_something(self) -> bool:
        return any(
            path.stat().st_size for path in Path().rglob("[!.]*.*") if path not in self.before and path.is_file()
        )


@contextmanager
def _limits(watch: _Watch) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_memory("VmSize") + _ADDRESSES, hard))
    handler = signal.signal(signal.SIGALRM, watch.look)
    # As in a terminal: a shell lets what it starts in the background ignore Ctrl-C.
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = signal.setitimer(signal.ITIMER_REAL, _TICK, _TICK)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, handler)
        signal.signal(signal.SIGINT, interrupt)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _memory(name: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at most since `_reset_peak`, VmSize of addresses."""
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def _reset_peak() -> bool:
    """Let VmHWM begin anew. Returns False where the system does not allow it, as in some containers."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True
