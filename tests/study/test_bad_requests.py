"""Whatever is sent to the study's server, it answers without an error of its own, and goes on."""

import json
import logging
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inst.listening import listen
from inst.serving import Server
from inst.study import begins, server, sessions
from inst.study.begins import Begins
from inst.study.database import Database
from inst.study.server import make_app
from inst.study.sessions import Refused, begin, describe_session, rank, vote
from study_server import served

TOKEN = "a" * 64


@dataclass
class Running:
    """The server of a study, in a thread."""

    port: int
    database: Database

    def send(self, data: bytes, *, wait: bool = True) -> bytes:
        """Send bytes, and return what comes until the server closes the connection or is silent for a moment."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as connection:
            try:
                connection.sendall(data)
                if not wait:
                    return b""
                answer = connection.recv(65536)
                while b"\r\n\r\n" not in answer and (more := connection.recv(65536)):
                    answer += more
            except (TimeoutError, ConnectionError):
                return b""
        return answer

    def ask(self, method: str, path: str, body: bytes = b"", token: str = TOKEN, *more: str) -> bytes:
        head = [f"{method} {path} HTTP/1.1", "Host: x", f"Authorization: Bearer {token}", "Connection: close", *more]
        head += [f"Content-Length: {len(body)}"] if body else []
        return self.send("\r\n".join([*head, "", ""]).encode("latin-1", "replace") + body)


@pytest.fixture
def running(make_study: Callable[..., Path]) -> Iterator[Running]:
    with Database(make_study(trials=4)) as database:
        begin(database, TOKEN)
        listener = listen("127.0.0.1", 0)
        runner = Server(make_app(database), 50)
        thread = threading.Thread(target=runner.run, args=([listener],))
        thread.start()
        try:
            yield Running(listener.getsockname()[1], database)
        finally:
            runner.should_exit = True
            thread.join(30)
            listener.close()


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["first", "colour", "0" * 32]),
    lambda part: st.lists(part, max_size=3) | st.dictionaries(st.text(max_size=5), part, max_size=3),
    max_leaves=6,
)
NUMBERS = st.sampled_from([1, 2, 0, -1, 1e308, 10**30, float("inf"), float("nan"), True, "1", None, [1], 0.5])
BODIES = (
    st.fixed_dictionaries(
        {},
        optional={
            "key": JSON | st.sampled_from(["0" * 32, "\ud800" * 32, "F" * 32]),
            "position": JSON | NUMBERS,
            "choice": JSON | st.sampled_from(["first", "second"]),
            "seconds": JSON | NUMBERS,
            "ranking": JSON | st.just(["colour", "colour"]) | st.just(["colour", ["colour"]]),
        },
    ).map(lambda value: json.dumps(value).encode())
    | JSON.map(lambda value: json.dumps(value).encode())
    | st.binary(max_size=200)
    | st.sampled_from([b"[" * 12_000, b'{"key":' * 2000, b"1" * 10_000, b'"\\ud800"', b"-1e999", b" " * 20_000])
)
PATHS = st.sampled_from(
    [
        *(
            "/api/vote",
            "/api/ranking",
            "/api/begin",
            "/api/session",
            "/api/study",
            "/api/admin/progress",
            "/pictures/a",
        ),
        *("/", "/admin", "/page/study.js", "/page/%00", "/page/..%2f..%2fserver.py", "/page/" + "a" * 5000, "/page"),
        *("/pictures/%00", "/pictures/%ff", "/api/admin/%0d%0a", "//", "*", "http://x/", "/api/vote/", "/pictures/"),
    ]
) | st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=60).map(lambda text: f"/{text}")
METHODS = st.sampled_from(
    ["GET", "POST", "POST", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE", "CONNECT", "X", "get"]
)
HEADERS = st.sampled_from(
    [
        *("Range: bytes=0-1,5-6,-1", "Range: bytes=9-1", "Range: x", "If-Modified-Since: x", "Expect: 100-continue"),
        *("Content-Length: -1", "Content-Length: 99999999999999", "Transfer-Encoding: chunked", "Upgrade: websocket"),
        *("Accept: \x00", "Content-Type: multipart/form-data", "X: " + "a" * 20_000, "Host: y", "Connection: Upgrade"),
        *("X-Forwarded-For: \xff, <b>", "X-Forwarded-For: 1.2.3.4:99999", "If-None-Match: \xff", "Origin: null"),
    ]
)
TOKENS = st.sampled_from([TOKEN, "b" * 64, "", "\xff" * 64, "a" * 10_000, "é", "A" * 64]) | st.text(max_size=20).map(
    lambda text: text.replace("\r", "").replace("\n", "")
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(method=METHODS, path=PATHS, body=BODIES, token=TOKENS, more=st.lists(HEADERS, max_size=2))
def test_no_request_makes_the_server_fail(
    running: Running, caplog: pytest.LogCaptureFixture, method: str, path: str, body: bytes, token: str, more: list[str]
) -> None:
    slow = any(name in header for header in more for name in ("9999999999", "chunked"))  # it waits for more
    if slow:
        head = "\r\n".join([f"{method} {path} HTTP/1.1", "Host: x", *more, "", ""])
        running.send(head.encode("latin-1", "replace") + body, wait=False)
        return
    answer = running.ask(method, path, body, token, *more)
    if answer:
        status = int(answer.split()[1])
        assert 100 <= status < 500
    assert not [record for record in caplog.records if record.exc_info or record.levelno >= logging.ERROR]


def test_a_client_that_leaves_in_the_middle_of_its_request_is_no_error(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    for path in ("/api/vote", "/api/ranking", "/api/begin"):
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 100\r\n\r\n{{"
        running.send(head.encode(), wait=False)
    time.sleep(0.3)
    assert running.ask("GET", "/api/study").startswith(b"HTTP/1.1 200")
    assert not [record for record in caplog.records if record.exc_info or record.levelno >= logging.ERROR]


def test_a_body_that_comes_too_slowly_is_given_up(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_REQUEST_SECONDS", 0.2)
    head = f"POST /api/vote HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 100\r\n\r\n{{"
    assert running.send(head.encode()).startswith(b"HTTP/1.1 408")


def test_a_file_that_stays_locked_is_one_line_for_all(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    running.database.value("PRAGMA busy_timeout = 100")
    other = sqlite3.connect(running.database.path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    try:
        for method, path in (("POST", "/api/begin"), ("GET", "/api/session")):
            answer = running.ask(method, path, b"{}" if method == "POST" else b"")
            assert answer.startswith(b"HTTP/1.1 503")
    finally:
        other.close()
    assert running.ask("GET", "/api/session").startswith(b"HTTP/1.1 200")


def status_of(action: Callable[..., Any], *arguments: Any) -> int:
    try:
        action(*arguments)
    except Refused as refused:
        return refused.status
    return 200


def test_one_address_cannot_begin_for_ever_and_others_can_begin(
    make_study: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(begins, "MOST_OF_ADDRESS", 3)
    known = Begins()
    with Database(make_study(trials=2)) as database:

        def begun(number: int, address: str) -> int:
            return status_of(begin, database, f"{number:064x}", known, address)

        assert [begun(number, "192.0.2.1") for number in range(5)] == [200, 200, 200, 429, 429]
        assert begun(0, "192.0.2.1") == 200  # who has begun comes back
        assert begun(7, "192.0.2.2") == 200
        assert [begun(10 + number, f"2001:db8:1:2::{number}") for number in range(5)].count(429) == 2
        for position in (1, 2):
            vote(database, f"{1:064x}", f"{position:032x}", position, "first", 1.0)
        rank(database, f"{1:064x}", None)
        known.finished(f"{1:064x}")
        assert [begun(number, "192.0.2.1") for number in (3, 4)] == [200, 429]
        assert database.value("SELECT count(*) FROM participants") == 8
        later = time.monotonic() + begins.PERIOD + 1
        monkeypatch.setattr(begins.time, "monotonic", lambda: later)
        assert begun(4, "192.0.2.1") == 200


def test_all_together_cannot_begin_for_ever(make_study: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with Database(make_study(trials=2)) as database:
        monkeypatch.setattr(sessions, "MOST_OF_ALL", 4)
        assert [status_of(begin, database, f"{one:064x}") for one in range(6)] == [200] * 4 + [429] * 2
        monkeypatch.setattr(sessions, "MOST_OF_ALL", 100)
        monkeypatch.setattr(sessions, "MOST_PARTICIPANTS", 5)
        assert [status_of(begin, database, f"{one:064x}") for one in range(6)] == [200] * 5 + [429]
        assert describe_session(database, f"{5:064x}") is None


def test_a_trial_takes_no_answers_without_end(make_study: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "_MOST_ANSWERS", 3)
    with Database(make_study(trials=2)) as database:
        begin(database, TOKEN)
        answers = [status_of(vote, database, TOKEN, f"{one:032x}", 1, "first", 1.0) for one in range(5)]
        assert answers == [200, 200, 200, 409, 409]
        assert status_of(vote, database, TOKEN, "0" * 32, 1, "first", 1.0) == 200  # a repeated request
        assert status_of(vote, database, TOKEN, "f" * 32, 2, "first", 1.0) == 200
        assert database.value("SELECT count(*) FROM answers") == 4


def test_a_port_that_cannot_be_used_leaves_the_file_as_it_is(make_study: Callable[..., Path]) -> None:
    path = make_study()
    before = path.read_bytes()
    with served(path) as first:
        port = int(first.page.rsplit(":", 1)[1].strip("/"))
        with pytest.raises(json.JSONDecodeError), served(path, port):
            pass
    with Database(path):
        pass
    assert len(path.read_bytes()) == len(before)
