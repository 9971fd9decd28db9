"""Whatever is sent to the studio, it answers without an error of its own, and goes on."""

import json
import logging
import socket
import time
from collections.abc import Iterator

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import inst
from studio_server import Served, png, serving


@pytest.fixture(scope="module")
def served(tiny_backbone: inst.Backbone, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("calls") / "data", lambda: tiny_backbone) as one:
        yield one


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda part: st.lists(part, max_size=3) | st.dictionaries(st.text(max_size=5), part, max_size=3),
    max_leaves=6,
)
ODD = JSON | st.sampled_from([1e308, -1, 10**30, float("nan"), float("inf"), "\ud800", "x" * 5000, "\x00", [[[]]]])
STYLE = st.fixed_dictionaries({}, optional={"id": ODD, "paintings": ODD, "record": ODD, "weight": ODD})
FIELDS = (
    *("photo", "prompt", "styles", "seed", "count", "steps", "size", "strength", "guidance", "solver", "name", "tile"),
    *("paintings", "tags", "upload", "mask", "data", "fn_index", "session_hash", "event_id", "strengths", "content"),
)
BODIES = (
    st.dictionaries(st.sampled_from(FIELDS), ODD | st.lists(STYLE, max_size=2), max_size=5).map(json.dumps)
    | JSON.map(json.dumps)
    | st.sampled_from(["[" * 50_000, '{"a":' * 20_000, "1" * 10_000, '"\\ud800"', "-1e999", "", "{", "\x00"])
)
ID = "0" * 32
PATHS = st.sampled_from(
    [
        *(f"/api/jobs/{kind}" for kind in ("transfer", "sheet", "generate", "learn", "x", "%00", "a" * 3000)),
        *(f"/api/jobs/{ID}{end}" for end in ("", "/pause", "/events", "/files/x", "/files.zip", "/preview", "/finish")),
        *(f"/api/styles{end}" for end in ("", "?text=%00", "/nearest", f"/{ID[:16]}", f"/{ID[:16]}/export?to=x")),
        *("/api/styles/0/thumbnail?side=1e9", "/api/styles/0/thumbnail?side=-1", "/api/uploads", "/api/jobs", "/login"),
        *("/en/gradio_api/queue/join", "/zh/gradio_api/run/repeat", "/en/gradio_api/call/show", "/en/config", "/"),
        *("/en/gradio_api/upload", "/en/gradio_api/component_server", "/en/gradio_api/file=/etc/passwd", "/metrics"),
        *("/en/gradio_api/queue/data?session_hash=x", "/openapi.json", "/healthz", "/en/assets/%2e%2e/x", "//"),
    ]
)
METHODS = st.sampled_from(["GET", "POST", "POST", "POST", "PATCH", "DELETE", "PUT", "HEAD", "OPTIONS", "TRACE", "X"])
KINDS = st.sampled_from(
    ["application/json", "multipart/form-data; boundary=x", "text/plain", "", "multipart/form-data"]
)
HEADERS = st.dictionaries(
    st.sampled_from(["Range", "Last-Event-ID", "Cookie", "X-Inst-Person", "Idempotency-Key", "Origin", "Accept"]),
    st.sampled_from(["bytes=5-1", "bytes=0-,0-,0-", "-1", "inst_person=\x7f", "a" * 9000, "é", "null", "http://["]),
    max_size=2,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(method=METHODS, path=PATHS, body=BODIES, kind=KINDS, headers=HEADERS)
def test_no_request_makes_the_studio_fail(
    served: Served,
    caplog: pytest.LogCaptureFixture,
    method: str,
    path: str,
    body: str,
    kind: str,
    headers: dict[str, str],
) -> None:
    sent = {"Content-Type": kind, **{name: value.encode() for name, value in headers.items()}}
    with httpx.Client(base_url=served.address, headers={"X-Inst-Person": "a-test-person"}, timeout=60) as client:
        try:
            with client.stream(method, path, content=body.encode("utf-8", "replace"), headers=sent) as answer:
                assert answer.status_code < 500, answer.read()
        except httpx.RemoteProtocolError:
            pass  # closed without an answer
    assert not [record for record in caplog.records if record.exc_info or record.levelno >= logging.ERROR]


def test_a_stream_of_a_session_that_is_gone_ends_without_an_error(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    address = "/en/gradio_api/queue/data?session_hash=before-the-restart"
    with served.client.stream("GET", address) as answer:
        assert answer.status_code == 200
        text = answer.read().decode()
    assert '"session_not_found":true' in text
    assert not [record for record in caplog.records if record.exc_info or record.levelno >= logging.ERROR]


def test_a_client_that_leaves_in_the_middle_of_its_request_is_no_error(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    start = b"--x\r\nContent-Disposition: form-data; name=file; filename=a.png\r\n\r\n" + png()[:40]
    forms = ("/api/uploads", "/api/styles", "/en/gradio_api/upload", "/en/gradio_api/component_server")
    calls = ("/api/jobs/transfer", "/en/gradio_api/queue/join", "/login")
    for path in (*forms, *calls):
        kind = "multipart/form-data; boundary=x" if path in forms else "application/json"
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {kind}\r\nContent-Length: 9999\r\n\r\n"
        with socket.create_connection(("127.0.0.1", int(served.address.rpartition(":")[2])), 20) as connection:
            connection.sendall(head.encode() + (start if path in forms else b"{"))
            time.sleep(0.05)
    time.sleep(0.3)
    assert served.client.get("/healthz").status_code == 200
    assert not [record for record in caplog.records if record.exc_info or record.levelno >= logging.ERROR]
    assert not list(served.studio.uploads.folder.glob(".inst-*"))
