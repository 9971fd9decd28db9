"""Use several devices of one machine: a process for each device takes every n-th chunk."""

from __future__ import annotations

import multiprocessing
import signal
import warnings
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from inst.batch.engine import do_chunks
from inst.batch.orders import Order, Row
from inst.errors import InstError, InstWarning, UsageError, first_line

_RESTARTS = 3
"""Number of times that a process which died is started again without having done anything in between."""

_PATIENCE = 60  # seconds for a process to complete what it is writing

_MOST_DEVICES = 256
"""More devices than a computer has. Each gets a process with a model of its own."""

_KILLED = 9  # SIGKILL, which Windows does not have

_GO, _STOP = "go", "stop"


@dataclass
class _Member:
    """A process and what it has done.

    Attributes:
        device: its device.
        share: its number, and the number of all processes.
        chunk: the number of the chunk that its latest row came from.
        seen: the inputs and styles of that chunk whose rows came, and how many. An input can be listed twice.
        again: those that come a second time, because the process was started again at that chunk.
        restarts: how often it was started again since its latest new row.
        problem: what it said before it died; "" if nothing.
    """

    device: str
    share: tuple[int, int]
    process: BaseProcess
    connection: Connection
    chunk: int = 0
    seen: Counter[tuple[str, str]] = field(default_factory=Counter)
    again: Counter[tuple[str, str]] = field(default_factory=Counter)
    restarts: int = 0
    problem: str = ""

    def take(self, number: int, row: Row) -> bool:
        """Note a row; return False if it came before from a process that died."""
        if number != self.chunk:
            self.chunk, self.seen, self.again = number, Counter(), Counter()
        key = row.input, row.style
        if self.again[key]:
            self.again[key] -= 1
            return False
        self.seen[key] += 1
        self.restarts = 0
        return True


def process_rows(order: Order, devices: Sequence[str]) -> Generator[Row | None, None, None]:
    """Yield None when all processes are ready, and then the rows of all of them.

    A process that dies is started again at its latest chunk.

    Warns:
        InstWarning: a warning of the first process about its model.

    Raises:
        UsageError: there are too many devices.
        InstError: an error of a process, or one that dies again and again.
    """
    if len(devices) > _MOST_DEVICES:
        raise UsageError(f"{len(devices):,} devices cannot be used", f"give {_MOST_DEVICES} or fewer")
    members: list[_Member] = []
    try:
        for number, device in enumerate(devices):
            share = number, len(devices)
            members.append(_Member(device, share, *_start(order, device, share, 0)))
        for member in members:
            _until_ready(order, member)
        yield None
        for member in members:
            with suppress(OSError):  # it has died, which the next message shows
                member.connection.send(_GO)
        yield from _rows_of(order, members)
    finally:
        _stop(members)


def _start(order: Order, device: str, share: tuple[int, int], first: int) -> tuple[BaseProcess, Connection]:
    context = multiprocessing.get_context("spawn")  # CUDA cannot be used in a forked process
    here, there = context.Pipe()
    process = context.Process(target=_work, args=(order, device, share, first, there), daemon=True)
    with _without_ctrl_c():
        process.start()
    there.close()  # so that its end is noticed when the process dies
    return process, here


@contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """Block Ctrl-C in this block, and in the processes that it starts for ever: the first process stops them."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # `multiprocessing` starts it when it is needed, and then unblocks Ctrl-C
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _until_ready(order: Order, member: _Member) -> None:
    """Wait until a process has loaded its model."""
    while True:
        try:
            message = _receive(member)
        except (EOFError, OSError):
            _restart(order, member)
            continue
        if message is None:
            return
        for warning in message if member.share[0] == 0 else ():
            warnings.warn(warning, stacklevel=1)


def _rows_of(order: Order, members: list[_Member]) -> Iterator[Row]:
    working = list(members)
    while working:
        ready = wait([member.connection for member in working])
        for member in [member for member in working if member.connection in ready]:
            try:
                message = _receive(member)
            except (EOFError, OSError):
                _restart(order, member)
                _until_ready(order, member)
                with suppress(OSError):
                    member.connection.send(_GO)
                continue
            if message is None:
                working.remove(member)
            elif member.take(*message):
                yield message[1]


def _receive(member: _Member) -> Any:
    """Return the next message: warnings, None when it is ready, (number of the chunk, row), or None at the end.

    Raises:
        InstError: the error that ended its work.
        EOFError, OSError: it has died.
    """
    message = member.connection.recv()
    if isinstance(message, BaseException):
        raise message
    if isinstance(message, str):
        member.problem = message
        raise EOFError
    return message


def _restart(order: Order, member: _Member) -> None:
    member.process.join(_PATIENCE)
    if member.restarts >= _RESTARTS:
        code = member.process.exitcode
        killed = code == -_KILLED
        why = member.problem or ("it was killed, as when memory runs out" if killed else f"exit code {code}")
        raise InstError(
            f"The process for {member.device} ends again and again ({why})",
            "what is done stays, and the same command goes on",
        )
    member.connection.close()
    member.process, member.connection = _start(order, member.device, member.share, member.chunk)
    member.again, member.restarts, member.problem = Counter(member.seen), member.restarts + 1, ""


def _stop(members: Sequence[_Member]) -> None:
    for member in members:
        with suppress(OSError):
            member.connection.send(_STOP)
    for member in members:
        while member.process.is_alive() and not member.connection.closed:
            try:  # what it still sends would keep it waiting
                if not member.connection.poll(_PATIENCE):
                    break
                member.connection.recv()
            except (EOFError, OSError):
                break
        member.process.join(_PATIENCE)
        if member.process.is_alive():
            member.process.terminate()


def _work(order: Order, device: str, share: tuple[int, int], first: int, connection: Connection) -> None:
    """Do every n-th chunk from the number `first` on. This is the main function of a process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # where `_without_ctrl_c` can do nothing
    try:
        from inst.backbone.model import Backbone

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default", InstWarning)
            worker = order.worker(Backbone.load(**{**order.backbone, "device": device}))
        connection.send([one.message for one in caught if isinstance(one.message, InstWarning)])
        connection.send(None)
        warnings.simplefilter("ignore", InstWarning)  # the first process reads the sources too, and warns
        if connection.recv() != _GO:
            return
        number, total = share
        chunks = islice(enumerate(order.chunks()), number, None, total)
        for message in do_chunks(worker, ((index, chunk) for index, chunk in chunks if index >= first)):
            if connection.poll():
                return
            connection.send(message)
        connection.send(None)
    except (EOFError, BrokenPipeError):
        return  # the first process has gone
    except InstError as error:
        with suppress(OSError):
            connection.send(error)
    except Exception as error:  # such as too little memory; another process may have more luck
        with suppress(OSError):
            connection.send(f"{type(error).__name__}: {first_line(error)}")
