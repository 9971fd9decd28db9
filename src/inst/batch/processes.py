"""Use several devices of one machine: a process for each device takes every n-th chunk."""

from __future__ import annotations

import multiprocessing
import signal
import traceback
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from inst.batch.engine import do_chunks
from inst.batch.orders import Order, Row
from inst.errors import InstError

_RESTARTS = 3
"""Number of times that a process which died is started again without having done anything in between."""

_PATIENCE = 60  # seconds for a process to complete what it is writing

_GO, _STOP = "go", "stop"


@dataclass
class _Member:
    """A process and what it has done.

    Attributes:
        device: its device.
        share: its number, and the number of all processes.
        chunk: the number of the chunk that its latest row came from.
        seen: the inputs and styles of that chunk whose rows came.
        restarts: how often it was started again since its latest row.
    """

    device: str
    share: tuple[int, int]
    process: BaseProcess
    connection: Connection
    chunk: int = 0
    seen: set[tuple[str, str]] = field(default_factory=set)
    restarts: int = 0

    def take(self, number: int, row: Row) -> bool:
        """Note a row; return False if it came before from a process that died."""
        if number != self.chunk:
            self.chunk, self.seen = number, set()
        key = row.input, row.style
        if key in self.seen:
            return False
        self.seen.add(key)
        self.restarts = 0
        return True


def process_rows(order: Order, devices: Sequence[str]) -> Generator[Row | None, None, None]:
    """Yield None when all processes are ready, and then the rows of all of them.

    A process that dies is started again at its latest chunk.

    Raises:
        InstError: an error of a process, or one that dies again and again.
    """
    members = [_start(order, device, (number, len(devices)), 0) for number, device in enumerate(devices)]
    try:
        for member in members:
            _receive(member, member.connection)
        yield None
        for member in members:
            member.connection.send(_GO)
        yield from _rows_of(order, members)
    finally:
        _stop(members)


def _start(order: Order, device: str, share: tuple[int, int], first: int) -> _Member:
    context = multiprocessing.get_context("spawn")  # CUDA cannot be used in a forked process
    here, there = context.Pipe()
    process = context.Process(target=_work, args=(order, device, share, first, there), daemon=True)
    process.start()
    there.close()  # so that its end is noticed when the process dies
    return _Member(device, share, process, here)


def _rows_of(order: Order, members: list[_Member]) -> Iterator[Row]:
    working = list(members)
    while working:
        ready = wait([member.connection for member in working])
        for member in [member for member in working if member.connection in ready]:
            try:
                message = _receive(member, member.connection)
            except EOFError:
                _restart(order, member)
                continue
            if message is None:
                working.remove(member)
            elif member.take(*message):
                yield message[1]


def _receive(member: _Member, connection: Connection) -> Any:
    """Return the next message of a process: (number of the chunk, row); or None, when it is ready and at its end.

    Raises:
        InstError: the error that ended its work.
        EOFError: it has died.
    """
    message = connection.recv()
    if isinstance(message, BaseException):
        raise message
    return message


def _restart(order: Order, member: _Member) -> None:
    member.process.join(_PATIENCE)
    if member.restarts >= _RESTARTS:
        raise InstError(
            f"The process for {member.device} ends without a result (exit code {member.process.exitcode})",
            "look for its cause above; what is done stays, and the same command goes on",
        )
    again = _start(order, member.device, member.share, member.chunk)
    with suppress(EOFError):  # noticed at the next message
        _receive(member, again.connection)
        again.connection.send(_GO)
    member.process, member.connection, member.restarts = again.process, again.connection, member.restarts + 1


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
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first one stops the others
    try:
        from inst.backbone.model import Backbone

        worker = order.worker(Backbone.load(**{**order.backbone, "device": device}))
        connection.send(None)
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
        connection.send(error)
    except Exception:
        traceback.print_exc()
        raise SystemExit(1) from None
