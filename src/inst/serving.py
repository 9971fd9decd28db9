"""Serve a web application to strangers: slow and idle connections are closed, and the log stays small.

uvicorn limits how long a connection may be idle between two requests, but not how long a request may take to come or
how slowly an answer is read. Too many such connections would leave no file descriptor for anybody else.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
import time
from collections import Counter, OrderedDict
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

if TYPE_CHECKING:
    from starlette.types import ASGIApp

HEAD_SECONDS = 30.0
"""Seconds until a request must have come, without its body: from the beginning of the connection, or from the end of
the answer before."""
READ_SECONDS, READ_BYTES = 60.0, 6_000
"""How slowly an answer may be read: this many bytes, or the rest, in each of these periods. A phone with a poor
connection of 2 kB/s that loads six pictures at once reads each with a third of a kB/s, and stands still for a while."""

_UNWANTED = 256 * 1024
"""Bytes of a body that are read after its answer: a client that is cut off at once sees no answer."""

_CONNECTIONS = 1000
_ROOM = 32
"""How many connections are closed at once if there are too many."""
_BACKLOG = 100
"""Largest number of connections that are accepted before the first of them is looked at."""
_BACKLOGS = 3
"""How many times as many can be open above the limit: accepted, made, and aborted but not closed yet."""
_WAITING = 1000
"""Connections that the system keeps until they are accepted."""
_OTHER_FILES = 64
"""File descriptors for everything that belongs to no connection."""
_FILES_EACH = 2
"""File descriptors of a connection: the socket, and a file that is sent or received."""
_END_SECONDS = 2  # that open requests get when the server stops

_LOG_PERIOD, _LOG_MOST = 60.0, 30
_LOG_PLACES = 1000


class Server(uvicorn.Server):
    """uvicorn's server with limits.

    If there are more connections than file descriptors allow, those close that have waited longest for their client:
    first those of the address with most of them.

    Args:
        app: the application. It limits the size of a request's body, and how long that may take.
        most: largest number of connections; None for as many as the system allows, up to 1000.
        options: further settings of `uvicorn.Config`.
    """

    def __init__(self, app: ASGIApp, most: int | None = None, **options: Any) -> None:
        backlog, allowed = _room(_descriptors())
        super().__init__(
            uvicorn.Config(
                app,
                http=_Connection,
                ws="none",
                access_log=False,
                server_header=False,
                log_config=None,
                backlog=backlog,
                timeout_graceful_shutdown=_END_SECONDS,
                **options,
            )
        )
        self.server_state = _State(most or allowed)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for one in sockets or ():
            one.listen(_WAITING)

    async def on_tick(self, counter: int) -> bool:
        if counter % 10 == 0:  # once a second
            now = time.monotonic()
            for one in list(_of(self.server_state.connections)):
                if one.is_overdue(now):
                    one.transport.abort()
        return await super().on_tick(counter)


class _State(ServerState):
    """What all connections share."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most


class _Connection(H11Protocol):
    """A connection, and since when it has been waiting for its client."""

    server_state: _State

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._ended = self._heard = time.monotonic()
        self._unwanted = 0  # bytes of a body that came after the answer
        self._unread: tuple[float, int] | None = None  # a time, and the bytes that the client had not read then
        super().connection_made(transport)
        if len(self.connections) > self.server_state.most:
            _make_room(self.connections, self.server_state.most)

    def data_received(self, data: bytes) -> None:
        self._heard = time.monotonic()
        if self.cycle is not None and self.cycle.response_complete and self.conn.their_state is h11.SEND_BODY:
            self._unwanted += len(data)
            if self._unwanted > _UNWANTED:
                self.transport.abort()
                return
        super().data_received(data)

    def resume_writing(self) -> None:
        self._unread = None
        super().resume_writing()

    def on_response_complete(self) -> None:
        self._ended = time.monotonic()
        self._unwanted = 0
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        # What follows a request is none, and the request may be under way: nothing more can be answered.
        if self.cycle is not None:
            self.cycle.disconnected = True
        try:
            super().send_400_response(msg)
        except h11.LocalProtocolError:  # an answer has begun, or may have no content
            self.transport.abort()

    @property
    def address(self) -> str | None:
        return self.client[0] if self.client else None

    def waits_since(self) -> float | None:
        """Return since when the connection has been waiting for its client; None if the server has to do something."""
        if self.cycle is None or self.cycle.response_complete:
            return self._ended
        if self.cycle.more_body:
            return self._heard
        return None if self._unread is None else self._unread[0]

    def is_overdue(self, now: float) -> bool:
        """Whether a client has taken too long. Called every second."""
        left = self.transport.get_write_buffer_size()
        if left:
            left += _unsent(self.transport)
        else:
            self._unread = None
            is_idle = self.cycle is None or self.cycle.response_complete
            return is_idle and now - self._ended > HEAD_SECONDS
        if self._unread is None:
            self._unread = now, left
        elif now - self._unread[0] > READ_SECONDS:
            before, self._unread = self._unread[1], (now, left)
            return left > before - READ_BYTES
        return False


def _of(connections: Iterable[object]) -> Iterable[_Connection]:
    return (one for one in connections if isinstance(one, _Connection))


def _make_room(connections: Iterable[object], most: int) -> None:
    """Close some connections if there are more than `most`."""
    living = [one for one in _of(connections) if not one.transport.is_closing()]
    if len(living) <= most:
        return
    waiting = [(one, since) for one in living if (since := one.waits_since()) is not None]
    of_address = Counter(one.address for one, _ in waiting)
    waiting.sort(key=lambda pair: (-of_address[pair[0].address], pair[1]))
    for one, _ in waiting[: min(_ROOM, (len(waiting) + 1) // 2)]:
        one.transport.abort()


def _unsent(transport: asyncio.Transport) -> int:
    """Return the bytes that the system keeps until the client has taken them; 0 where it does not say.

    It may keep megabytes, and then takes nothing more from us for minutes although the client reads.
    """
    try:
        import fcntl
        import termios
    except ImportError:
        return 0
    try:
        handle = transport.get_extra_info("socket").fileno()
        return int.from_bytes(fcntl.ioctl(handle, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
    except OSError:
        return 0


def _room(descriptors: int) -> tuple[int, int]:
    """Return the connections that are accepted at once, and the largest number of connections."""
    backlog = min(_BACKLOG, max(1, descriptors // 16))
    allowed = (descriptors - _OTHER_FILES - _BACKLOGS * backlog) // _FILES_EACH
    return backlog, min(_CONNECTIONS, max(_ROOM, allowed))


def _descriptors() -> int:
    """Return how many file descriptors this process may have, after asking for enough."""
    wanted = _FILES_EACH * _CONNECTIONS + _BACKLOGS * _BACKLOG + _OTHER_FILES
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    except (OSError, ValueError):
        return soft
    return allowed


class Unrepeated(logging.Filter):
    """Keeps a log small: of what one place in the code writes, 30 records a minute are kept.

    A record's field `reason` belongs to the place. Records with the field `job` are all kept.
    """

    def __init__(self) -> None:
        super().__init__()
        self._seen: OrderedDict[tuple[object, ...], tuple[float, int]] = OrderedDict()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is kept. The last that is kept says so, and the next tells how many were not."""
        if hasattr(record, "job"):
            return True
        place = record.name, record.pathname, record.lineno, getattr(record, "reason", None)
        now = time.monotonic()
        begin, count = self._seen.pop(place, (now, 0))
        note = "and more, which are not shown for a minute" if count == _LOG_MOST - 1 else ""
        if now - begin > _LOG_PERIOD:
            note = f"and {count - _LOG_MOST:,} more before that were not shown" if count > _LOG_MOST else ""
            begin, count = now, 0
        self._seen[place] = begin, count + 1
        if len(self._seen) > _LOG_PLACES:
            self._seen.popitem(last=False)
        if note:
            record.msg, record.args = f"{record.getMessage()} ({note})", ()
        return count < _LOG_MOST


def write_logs(levels: dict[str, int], form: logging.Formatter | None = None) -> None:
    """Write the logs of these names, from a level on, on the standard error, without repetitions (`Unrepeated`)."""
    handler = logging.StreamHandler()
    handler.addFilter(Unrepeated())
    handler.setFormatter(form or logging.Formatter("%(levelname)s: %(message)s"))
    for name, level in levels.items():
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.propagate = False
        logger.setLevel(level)


WEB_LOGS = {"uvicorn.error": logging.WARNING, "asyncio": logging.WARNING}
"""The logs of the web server itself, for `write_logs`."""
