"""The limits of the servers, with real sockets."""

import asyncio
import http.client
import logging
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from inst import serving
from inst.listening import listen
from inst.serving import Server, Unrepeated

HALF = b"POST / HTTP/1.1\r\nHost: x\r\n"
LARGE = 24 * 2**20  # more than the buffers of two sockets


async def _hello(_: Request) -> Response:
    return PlainTextResponse("hello")


async def _large(_: Request) -> Response:
    return Response(bytes(LARGE))


async def _ticks(_: Request) -> Response:
    async def parts() -> AsyncIterator[bytes]:
        while True:
            yield b"tick\n"
            await asyncio.sleep(0.05)

    return StreamingResponse(parts())


@contextmanager
def running(most: int) -> Iterator[tuple[int, Server]]:
    """Serve until the end of the block; yields the port."""
    app = Starlette(routes=[Route("/", _hello), Route("/large", _large), Route("/ticks", _ticks)])
    server = Server(app, most, lifespan="off")
    listener = listen("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        yield listener.getsockname()[1], server
    finally:
        server.should_exit = True
        thread.join(30)
        listener.close()
    assert not thread.is_alive()


def connect(port: int, sent: bytes = b"", address: str = "127.0.0.1") -> socket.socket:
    found = socket.create_connection(("127.0.0.1", port), timeout=20, source_address=(address, 0))
    found.sendall(sent)
    return found


def ask(port: int, path: str = "/") -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", path)
    answer = connection.getresponse().read()
    connection.close()
    return answer


def until(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + 20
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


def test_many_half_requests_shut_nobody_out() -> None:
    with running(most=40) as (port, server), ExitStack() as stack:
        for _ in range(150):
            stack.enter_context(connect(port, HALF))
        assert ask(port) == b"hello"
        assert until(lambda: len(server.server_state.connections) <= 40)


def test_the_address_with_the_most_connections_loses_them_first() -> None:
    with running(most=40) as (port, _), ExitStack() as stack:
        patient = stack.enter_context(connect(port, HALF, "127.0.0.2"))
        for _ in range(150):
            stack.enter_context(connect(port, HALF))
        patient.sendall(b"Content-Length: 0\r\n\r\n")
        assert patient.recv(100).startswith(b"HTTP/1.1 405")


def test_an_answer_that_is_under_way_is_not_cut_off() -> None:
    with running(most=40) as (port, _), ExitStack() as stack:
        stream = stack.enter_context(connect(port, b"GET /ticks HTTP/1.1\r\nHost: x\r\n\r\n"))
        read = len(stream.recv(1000))
        for _ in range(150):
            stack.enter_context(connect(port, HALF))
        while read < 1000:
            data = stream.recv(1000)
            assert data
            read += len(data)
        stream.close()


@pytest.mark.parametrize("sent", [b"", HALF, b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n1"])
def test_a_request_that_does_not_come_is_given_up(sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "HEAD_SECONDS", 0.5)
    with running(most=40) as (port, server), connect(port, sent) as connection:
        assert until(lambda: bool(server.server_state.connections))
        for _ in range(20):  # a byte now and then does not keep it open
            if not server.server_state.connections:
                break
            with suppress(OSError):
                connection.sendall(b"a")
            time.sleep(0.2)
        assert until(lambda: not server.server_state.connections)


def test_an_answer_that_nobody_reads_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "READ_SECONDS", 1.0)
    request = b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n"
    with running(most=40) as (port, server), connect(port, request) as idle, connect(port, request) as slow:
        read = 0
        while read < LARGE:  # for about three seconds
            data = slow.recv(400_000)
            assert data
            read += len(data)
            time.sleep(0.05)
        assert until(lambda: len(server.server_state.connections) <= 1)
        assert idle.recv(1)  # what its system had taken already


def test_a_slow_reader_is_heard_although_the_system_takes_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "READ_SECONDS", 1.0)
    with running(most=40) as (port, server), socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # the system keeps megabytes, and then waits
        slow.connect(("127.0.0.1", port))
        slow.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        end = time.monotonic() + 5
        while time.monotonic() < end:
            assert slow.recv(1500)
            time.sleep(0.05)
        assert server.server_state.connections


def test_a_body_without_an_end_is_not_read_after_its_answer() -> None:
    with running(most=40) as (port, _), connect(port, HALF + b"Transfer-Encoding: chunked\r\n\r\n") as endless:
        assert endless.recv(1000).startswith(b"HTTP/1.1 405")
        sent = 0
        with suppress(OSError):
            while sent < 20 * LARGE:
                endless.sendall(b"1\r\na\r\n" * 10_000)
                sent += 60_000
        assert sent < LARGE


@pytest.mark.parametrize("descriptors", [64, 128, 256, 1024, 4096, 10**6])
def test_there_is_a_file_descriptor_for_everything(descriptors: int) -> None:
    backlog, most = serving._room(descriptors)
    assert 32 <= most <= 1000
    assert 1 <= backlog <= 100
    assert descriptors < 256 or 2 * most + 3 * backlog < descriptors - 50
    assert descriptors < 4096 or most == 1000


@pytest.mark.parametrize("path", ["/", "/large", "/ticks"])
def test_nonsense_after_a_request_is_no_error(path: str, caplog: pytest.LogCaptureFixture) -> None:
    with running(most=40) as (port, server):
        with connect(port, b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n\x00\r\n\r\n"):
            pass
        for nonsense in (b"\x00\r\n\r\n", b"GET\r\n\r\n"):
            for head in (b"Content-Length: 1\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n", b"\r\n"):
                request = b"GET " + path.encode() + b" HTTP/1.1\r\nHost: x\r\n" + head
                with connect(port, request + b"1" + nonsense), connect(port, request) as later:
                    time.sleep(0.02)
                    with suppress(OSError):
                        later.sendall(b"1" + nonsense)
                        later.recv(1000)
        assert ask(port) == b"hello"
        assert until(lambda: not server.server_state.connections)
    assert not [record for record in caplog.records if record.exc_info or record.levelno >= logging.ERROR]


def test_what_repeats_itself_is_logged_some_times_only(caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("uvicorn.error")
    once = Unrepeated()
    log.addFilter(once)
    try:
        with running(most=40) as (port, _), caplog.at_level(logging.WARNING, "uvicorn.error"):
            for _ in range(100):
                with connect(port, b"\x16\x03\x01\r\n\r\n") as connection:
                    connection.recv(1000)
            log.error("something else")
    finally:
        log.removeFilter(once)
    lines = [record.getMessage() for record in caplog.records if record.name == "uvicorn.error"]
    assert lines.count("Invalid HTTP request received.") == 29
    assert lines[29:] == [
        "Invalid HTTP request received. (and more, which are not shown for a minute)",
        "something else",
    ]


def test_the_log_tells_how_much_it_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(serving.time, "monotonic", lambda: now)
    unrepeated = Unrepeated()

    def record(**more: object) -> logging.LogRecord:
        made = logging.LogRecord("name", logging.WARNING, "file.py", 7, "line %d", (1,), None)
        made.__dict__.update(more)
        return made

    assert sum(unrepeated.filter(record()) for _ in range(1000)) == 30
    assert unrepeated.filter(record(reason="other"))
    assert all(unrepeated.filter(record(job="1")) for _ in range(50))
    now = 61.0
    later = record()
    assert unrepeated.filter(later)
    assert later.getMessage() == "line 1 (and 970 more before that were not shown)"
