"""What people with bad intentions send. Each gets a refusal, which is logged, and nothing is written elsewhere."""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import json
import logging
import os
import pickle
import socket
import struct
import threading
import time
import zipfile
import zlib
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import safetensors.torch
import torch

import inst
from inst.errors import UsageError
from inst.studio.disk import Disk, NoSpace
from inst.studio.editors import Editors
from inst.studio.limits import Limits
from inst.studio.server import check_token
from inst.studio.uploads import Uploads
from studio_server import PERSON, Served, png, serving

TOKEN = "correct-horse-battery"


class Log(logging.Handler):
    """Keeps the records of the studio."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


def files_in(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a secret in it, and the data folder beside it."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "secret.txt").write_text("secret")
    return folder


@pytest.fixture(scope="module")
def server(tiny_backbone: inst.Backbone, place: Path) -> Iterator[Served]:
    limits = Limits(jobs_per_person=100, queue=100, upload_bytes=2**20, picture_pixels=10**7)
    with serving(place / "data", lambda: tiny_backbone, limits) as one:
        yield one


@pytest.fixture(scope="module")
def locked(tiny_backbone: inst.Backbone, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("locked") / "data", lambda: tiny_backbone, token=TOKEN) as one:
        yield one


@pytest.fixture
def log() -> Iterator[Log]:
    handler = Log()
    logger = logging.getLogger("inst.studio")
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.INFO)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(level)


@pytest.fixture
def served(server: Served, place: Path, log: Log) -> Iterator[Served]:
    """The server; afterwards, something was logged, and nothing lies outside of the data folder."""
    before = files_in(place) - files_in(place / "data")
    yield server
    assert files_in(place) - files_in(place / "data") == before
    assert not list((place / "data" / "uploads").glob(".inst-*"))
    assert [record for record in log.records if "refused" in record.getMessage()]
    assert server.client.get("/healthz").status_code == 200


def refused(answer: httpx.Response, *statuses: int) -> str:
    """Check a refusal and return its line."""
    assert answer.status_code in statuses, (answer.status_code, answer.text[:200])
    line = str(answer.json()["error"])
    assert "\n" not in line
    assert "Traceback" not in line
    assert str(Path.cwd()) not in line
    return line


def by_hand(served: Served, path: str, *headers: str, host: str = "127.0.0.1", method: str = "GET") -> bytes:
    """Send a request without a body as it is, because clients tidy paths, and return the whole answer."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", "Connection: close", *headers, "", ""]
    with socket.create_connection(("127.0.0.1", int(served.address.rpartition(":")[2])), 20) as line:
        line.sendall("\r\n".join(lines).encode())
        answer = b""
        while more := line.recv(65536):
            answer += more
    return answer


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def huge_png(width: int = 60_000, height: int = 60_000) -> bytes:
    """A small PNG file of a picture that would take gigabytes."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 10**6)) + chunk(b"IEND", b"")


def png_with_bomb() -> bytes:
    """A PNG file with a compressed text of 200 MB."""
    data = png()
    text = chunk(b"zTXt", b"note\0\0" + zlib.compress(b"x" * (200 * 2**20), 9))
    return data[:33] + text + data[33:]


# Pictures.


@pytest.mark.parametrize(
    ("data", "status"),
    [
        pytest.param(huge_png(), 415, id="huge"),
        pytest.param(huge_png(4000, 4000), 422, id="large"),
        pytest.param(b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>", 415, id="svg"),
        pytest.param(b"<!doctype html><script>alert(1)</script>", 415, id="html"),
        pytest.param(b"", 415, id="empty"),
        pytest.param(png()[:60], 415, id="cut"),
        pytest.param(gzip.compress(b"\0" * 10**7), 415, id="gzip"),
        pytest.param(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n", 415, id="postscript"),
        pytest.param(b"\0" * 100_000, 415, id="zeros"),
    ],
)
def test_what_is_no_picture_is_refused_whatever_its_name_is(served: Served, data: bytes, status: int) -> None:
    refused(served.upload(data, "innocent.png"), status)
    page = served.client.post("/en/gradio_api/upload", files={"files": ("innocent.png", data)})
    assert page.status_code == 422


def test_a_compressed_text_does_not_fill_the_memory(served: Served) -> None:
    answer = served.upload(png_with_bomb())
    assert answer.status_code in (201, 415)
    refused(served.upload(b"no picture"), 415)


def test_a_zip_bomb_is_no_picture_and_no_style(served: Served) -> None:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * (100 * 2**20))
    refused(served.upload(data.getvalue()), 415)
    refused(served.client.post("/api/styles", files={"file": ("x.pt", data.getvalue())}), 400, 422)


def test_a_file_that_is_too_large_is_refused_while_it_comes(served: Served) -> None:
    refused(served.upload(b"\x89PNG" + b"\0" * 2**21), 413)
    page = served.client.post("/zh/gradio_api/upload", files={"files": ("x.png", b"\0" * (2**20 + 1))})
    assert page.status_code == 413


# Names and paths.


@pytest.mark.parametrize(
    "name", ["../../../evil.png", "/etc/cron.d/evil.png", "..\\..\\evil.png", "a\0b.png", "x" * 5000]
)
def test_names_of_files_lead_nowhere(served: Served, name: str) -> None:
    answer = served.upload(png(), name)
    if answer.status_code == 201:
        assert "/" not in answer.json()["name"]
        assert len(answer.json()["name"]) <= 200
    page = served.client.post("/en/gradio_api/upload", files={"files": (name, png())})
    if page.status_code == 200:
        (path,) = page.json()
        assert Path(path).is_relative_to(served.studio.folder / "page")
        assert len(Path(path).stem) == 64
    refused(served.client.get("/api/jobs/none"), 404)


@pytest.mark.parametrize(
    "path",
    [
        "/api/jobs/..%2f..%2fsecret.txt",
        "/api/jobs/%2e%2e/files/secret.txt",
        "/api/styles/..%2f..%2f..%2fsecret.txt/export",
        "/api/styles/%2e%2e/thumbnail",
        "/en/gradio_api/file=SECRET",
        "/en/gradio_api/file=PAGE/../../secret.txt",
        "/en/gradio_api/file=DATA/jobs.sqlite",
        "/en/gradio_api/file=/etc/passwd",
        "/en/gradio_api/file=http://127.0.0.1:1/x",
        "/en/gradio_api/file=https://example.com/",
        "/en/gradio_api/proxy=http://127.0.0.1:1/x",
        "/en/gradio_api/proxy=https://example.hf.space/x",
        "/en/gradio_api/file/etc/passwd",
        "/en/gradio_api/stream/a/b/1/playlist-file",
        "/en/gradio_api/deep_link",
        "/en/gradio_api/vibe-code",
        "/en/gradio_api/dev/reload",
        "/en/gradio_api/openapi.json",
        "/en/monitoring",
        "/en/assets/..%2f..%2f..%2f..%2f..%2fetc/passwd",
        "/en/static/..%2f..%2f..%2fetc/passwd",
        "/en/?deep_link=../../secret",
    ],
)
def test_paths_lead_nowhere(served: Served, place: Path, path: str) -> None:
    data = served.studio.folder
    path = (
        path.replace("SECRET", str(place / "secret.txt")).replace("PAGE", str(data / "page")).replace("DATA", str(data))
    )
    answer = by_hand(served, path)
    assert answer.split(b" ")[1] in (b"400", b"403", b"404"), answer[:200]
    assert b"root:" not in answer
    refused(served.client.get("/api/jobs/none"), 404)


@pytest.mark.parametrize("start", ["/en//", "/zh//", "//en/", "/en/", "/en\\"])
@pytest.mark.parametrize("end", ["%0a", "%0d", "%00", "%e2%80%a8"])
@pytest.mark.parametrize(
    "path",
    ["monitoring/summary", "gradio_api/upload", "gradio_api/deep_link", "gradio_api/file=/etc/passwd", "config"],
)
def test_odd_characters_in_a_path_open_nothing(served: Served, start: str, path: str, end: str) -> None:
    for method in ("GET", "POST"):
        answer = by_hand(served, start + path + end, method=method)
        assert answer.split(b" ")[1] in (b"400", b"404"), answer[:200]


def test_routes_of_gradio_itself_that_have_ours_in_their_place_are_closed(served: Served) -> None:
    for path in ("upload", "component_server"):
        refused(served.client.post(f"/en/gradio_api/{path}/", files={"files": ("x.png", png())}), 404)


def test_only_files_of_a_job_are_given_out(served: Served) -> None:
    job = served.wait(served.submit().json()["id"])
    folder = served.studio.jobs.folder(job["id"])
    (folder / "state.safetensors").write_bytes(b"private")
    for name in ("state.safetensors", "../../jobs.sqlite", "..%2f..%2fjobs.sqlite", "picture-1.png%00.txt"):
        refused(served.client.get(f"/api/jobs/{job['id']}/files/{name}"), 400, 404)
    with zipfile.ZipFile(io.BytesIO(served.client.get(job["archive"]).content)) as archive:
        assert all(not Path(name).is_absolute() and ".." not in name and "/" not in name for name in archive.namelist())


def test_the_page_fetches_nothing_from_addresses(served: Served) -> None:
    file = {"path": "http://127.0.0.1:1/x.png", "meta": {"_type": "gradio.FileData"}}
    for path in ("queue/join", "run/predict", "call/show"):
        body = {"data": [file], "fn_index": 1, "session_hash": "abc"}
        refused(served.client.post(f"/en/gradio_api/{path}", json=body), 400)


def test_the_page_takes_no_files_from_elsewhere(served: Served, place: Path) -> None:
    file = {"path": str(place / "secret.txt"), "meta": {"_type": "gradio.FileData"}}
    for path in ("queue/join", "run/predict", "call/show", "call/v2/show"):
        for value in (file, [file], {"image": file}, {"path": "secret.txt", "url": "x"}):
            body = {"data": [value], "fn_index": 1, "session_hash": "abc"}
            refused(served.client.post(f"/en/gradio_api/{path}", json=body), 400)
    assert not [path for path in files_in(served.studio.folder) if path.name == "secret.txt"]
    refused(served.client.get("/api/jobs/none"), 404)


# Styles.


class Harmful:
    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.place / "harmed"),)


@pytest.mark.parametrize("ending", [".pt", ".bin", ".pth", ".safetensors", ".png", ".exe", ""])
def test_a_pickle_is_never_run(served: Served, place: Path, ending: str) -> None:
    archive = io.BytesIO()
    torch.save({"string_to_param": Harmful(place)}, archive)
    for data in (*(pickle.dumps(Harmful(place), protocol) for protocol in range(6)), archive.getvalue()):
        refused(served.client.post("/api/styles", files={"file": (f"style{ending}", data)}), 400, 422)
    assert not (place / "harmed").exists()


def test_a_name_in_a_style_file_leads_nowhere(served: Served) -> None:
    vectors = {"emb_params": torch.zeros(1, 32)}
    for name in ("../../evil", "/etc/evil"):
        data = safetensors.torch.save(vectors, {"name": name})
        answer = served.client.post("/api/styles", files={"file": (f"{name}.safetensors", data)})
        if answer.status_code == 201:
            export = served.client.get(f"/api/styles/{answer.json()['id']}/export")
            assert "/" not in export.headers["Content-Disposition"].partition("''")[2]
    refused(served.client.post("/api/styles", files={"file": ("x.safetensors", b"\xff" * 100)}), 400, 422)


# Bodies.


def test_a_prompt_of_a_megabyte_is_refused(served: Served) -> None:
    body = served.transfer(prompt="x" * (2**20 - 4000))
    refused(served.submit(body=body), 422)
    refused(served.submit(body={**body, "prompt": "x" * 2**20}), 413)
    assert served.client.get("/api/jobs").status_code == 200


def test_a_huge_body_without_a_length_is_refused(served: Served) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(100):
            yield b" " * 2**16

    for path in ("/api/jobs/transfer", "/en/gradio_api/queue/join", "/api/jobs/x/cancel"):
        answer = served.client.post(path, content=endless(), headers={"Content-Type": "application/json"})
        refused(answer, 413, 404)
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    refused(served.client.post("/api/uploads", content=endless(), headers=form), 413, 422)


def test_deeply_nested_json_is_refused(served: Served) -> None:
    body = "[" * 100_000 + "]" * 100_000
    for path in ("/api/jobs/transfer", "/en/gradio_api/queue/join"):
        refused(served.client.post(path, content=body, headers={"Content-Type": "application/json"}), 400, 422)


def test_two_requests_at_once_for_one_job_make_one(served: Served) -> None:
    body, key = served.transfer(), {"Idempotency-Key": "at once"}
    ids: list[str] = []
    threads = [
        threading.Thread(target=lambda: ids.append(served.submit(body=body, headers=key).json()["id"]))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids) == 8
    assert len(set(ids)) == 1
    served.wait(ids[0])
    refused(served.submit(body={**body, "seed": 8}, headers=key), 422)


def test_a_body_that_does_not_come_is_given_up(
    served: Served, monkeypatch: pytest.MonkeyPatch, tiny_backbone: inst.Backbone
) -> None:
    monkeypatch.setattr("inst.studio.bodies._SILENCE", 0.3)
    with socket.create_connection(("127.0.0.1", int(served.address.rpartition(":")[2])), 20) as line:
        line.sendall(b"POST /api/jobs/transfer HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        begin = time.monotonic()
        answer = b""
        while more := line.recv(65536):  # until it is closed
            answer += more
        assert b" 408 " in answer
        assert time.monotonic() - begin < 5


# Who asks.


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://["},
        {"Origin": "http://localhost:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"},
        {"Referer": "https://evil.example/page"},
    ],
)
def test_other_web_pages_can_change_nothing(served: Served, headers: dict[str, str]) -> None:
    body = served.transfer()
    before = len(served.client.get("/api/jobs").json())
    refused(served.submit(body=body, headers=headers), 403)
    refused(served.client.post("/en/gradio_api/queue/join", json={"data": []}, headers=headers), 403)
    refused(served.client.post("/en/gradio_api/upload", files={"files": ("x.png", png())}, headers=headers), 403)
    assert len(served.client.get("/api/jobs").json()) == before


def test_other_web_pages_can_read_no_events(served: Served) -> None:
    for headers in ({"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors"}):
        refused(served.client.get("/en/gradio_api/queue/data", params={"session_hash": "a"}, headers=headers), 403)
        refused(served.client.get("/api/jobs", headers=headers), 403)


def test_the_own_page_and_links_from_elsewhere_work(served: Served) -> None:
    own = {"Origin": served.address, "Sec-Fetch-Site": "same-origin"}
    assert served.submit(body=served.transfer(), headers=own).status_code == 202
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert served.client.get("/en/", headers=link).status_code == 200
    refused(served.client.get("/api/jobs/none"), 404)


@pytest.mark.parametrize("host", ["evil.example", "evil.example:7860", "127.0.0.1.evil.example", "", "localhost.evil"])
def test_a_foreign_host_name_is_refused(served: Served, host: str) -> None:
    refused(served.client.get("/api/jobs", headers={"Host": host}), 421)


@pytest.mark.parametrize(
    "host", ["[", "[:::::]", "a/b", "a?b", "a#b", "a@b", "localhost:99999", "localhost/healthz?", "::1", "a b"]
)
def test_a_host_of_an_odd_form_is_refused(served: Served, locked: Served, host: str) -> None:
    for one in (served, locked):
        answer = by_hand(one, "/api/jobs", host=host)
        assert answer.split(b" ")[1] == b"400", answer[:200]
        assert b"error" in answer
    refused(served.client.get("/api/jobs/none"), 404)


def test_a_path_in_the_host_opens_nothing(locked: Served) -> None:
    for host in ("127.0.0.1/healthz?", "127.0.0.1/healthz#", "127.0.0.1\\healthz?"):
        assert by_hand(locked, "/api/jobs", host=host).split(b" ")[1] == b"400"


@pytest.mark.parametrize("host", ["localhost", "localhost:1234", "127.0.0.1:7860", "[::1]:80"])
def test_names_of_this_computer_are_taken(served: Served, host: str) -> None:
    assert served.client.get("/api/jobs", headers={"Host": host}).status_code == 200
    refused(served.client.get("/api/jobs/none"), 404)


@pytest.mark.parametrize("name", ["short", "x" * 65, "a b c d e f", "../../../etc", "person\u00e9\u00e9\u00e9"])
def test_a_strange_person_is_refused(served: Served, name: str) -> None:
    refused(served.client.get("/api/jobs", headers={"X-Inst-Person": name.encode()}), 400)
    refused(served.client.get("/api/jobs/none"), 404)


def test_every_answer_has_the_security_headers(served: Served) -> None:
    for path in ("/", "/en/", "/api/jobs", "/api/jobs/none", "/healthz", "/en/gradio_api/proxy=x", "/nothing"):
        headers = served.client.get(path).headers
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        assert "http" not in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"


# The token.


def test_without_the_token_nothing_is_given_out(locked: Served, log: Log) -> None:
    with httpx.Client(base_url=locked.address) as stranger:
        for path in ("/api/jobs", "/metrics", "/openapi.json", "/en/config", "/en/gradio_api/info", "/en/"):
            answer = stranger.get(path)
            assert answer.status_code == 401
            refused(answer, 401)
        assert stranger.post("/en/gradio_api/queue/join", json={}).status_code == 401
        assert stranger.get("/healthz").status_code == 200
        assert stranger.get("/api/jobs", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200


def test_a_browser_without_the_token_sees_a_form_and_gets_in(locked: Served) -> None:
    page = {"Accept": "text/html", "Sec-Fetch-Site": "same-origin"}
    with httpx.Client(base_url=locked.address, headers=page) as browser:
        form = browser.get("/en/")
        assert form.status_code == 401
        assert "<form" in form.text
        assert "令牌" in form.text
        assert "<script" not in form.text
        wrong = browser.post("/login", data={"token": "not the right one"}, headers={"Origin": locked.address})
        assert wrong.status_code == 401
        assert "<form" in wrong.text
        right = browser.post("/login", data={"token": TOKEN}, headers={"Origin": locked.address})
        assert (right.status_code, right.headers["Location"]) == (303, "/")
        assert "HttpOnly" in right.headers["Set-Cookie"]
        assert "SameSite=Strict" in right.headers["Set-Cookie"]
        assert TOKEN not in right.headers["Set-Cookie"]
        assert browser.get("/en/").status_code == 200


def test_an_address_with_the_token_leads_to_one_without(locked: Served) -> None:
    with httpx.Client(base_url=locked.address) as browser:
        answer = browser.get("/en/", params={"token": TOKEN, "style": "ab"})
        assert (answer.status_code, answer.headers["Location"]) == (303, "/en/?style=ab")
        assert browser.get("/en/").status_code == 200
        assert browser.get("/en/", params={"token": "x"}).headers["Location"] == "/en/"
    with httpx.Client(base_url=locked.address) as browser:  # from a link on another page
        link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
        answer = browser.get("/", params={"token": TOKEN}, headers=link)
        assert answer.status_code == 200
        assert 'url=/"' in answer.text
        assert TOKEN not in answer.text
        del browser.cookies["inst_token"]
        assert (
            'url=/zh/?a=%22b"' in browser.get("/zh/", params={"a": '"b'}, headers={**link, "Accept": "text/html"}).text
        )


def test_wrong_tokens_are_logged_without_them_and_slowed_down(
    tiny_backbone: inst.Backbone, tmp_path: Path, log: Log
) -> None:
    with (
        serving(tmp_path / "data", lambda: tiny_backbone, token=TOKEN) as one,
        httpx.Client(base_url=one.address) as stranger,
    ):
        statuses = [
            stranger.get("/api/jobs", headers={"Authorization": f"Bearer guess-{number}"}).status_code
            for number in range(12)
        ]
        assert statuses == [401] * 10 + [429] * 2
        assert "Retry-After" in stranger.get("/", params={"token": "guess"}).headers
        assert one.client.get("/api/jobs").status_code == 200  # the right one is not locked out
        reasons = [record for record in log.records if getattr(record, "reason", "") == "token"]
        assert len(reasons) >= 12
        assert "guess" not in str([record.__dict__ for record in log.records])


def test_other_computers_need_a_token() -> None:
    check_token("127.0.0.1", None)
    check_token("localhost", None)
    check_token("::1", None)
    check_token("0.0.0.0", TOKEN)
    for host in ("0.0.0.0", "::", "192.168.1.5", "studio.example"):
        with pytest.raises(UsageError, match="token"):
            check_token(host, None)
    with pytest.raises(UsageError, match="16"):
        check_token("0.0.0.0", "short")


def test_names_of_people_are_not_in_the_log(served: Served, log: Log) -> None:
    served.wait(served.submit().json()["id"])
    refused(served.client.get("/api/jobs/none"), 404)
    assert PERSON["X-Inst-Person"] not in str([record.__dict__ for record in log.records])


# Files, the disk, and Gradio's own routes.


def test_a_style_file_is_no_upload(served: Served) -> None:
    archive = io.BytesIO()
    torch.save({"x": 1}, archive)
    data = archive.getvalue()
    line = refused(served.client.post("/api/styles", files={"file": ("x.pt", data)}), 400, 422)
    assert "The file" in line
    assert str(served.studio.folder) not in line
    key = hashlib.sha256(data).hexdigest()
    (path,) = served.client.post("/en/gradio_api/upload", files={"files": ("x.pt", data)}).json()
    assert Path(path).read_bytes() == data
    with pytest.raises(UsageError):
        served.studio.uploads.find(key)
    assert not files_in(served.studio.folder / "uploads" / "styles")


@pytest.mark.parametrize("ending", [".bin", ".pt", ".safetensors"])
def test_a_picture_is_no_style_file(served: Served, ending: str) -> None:
    for data in (huge_png(), png(), b"P6 9 9 255 " + b"\0" * 300):
        refused(served.client.post("/api/styles", files={"file": (f"x{ending}", data)}), 400)
        page = served.client.post("/en/gradio_api/upload", files={"files": (f"x{ending}", data)})
        assert page.status_code == 422
    refused(served.client.post("/api/styles", files={"file": ("x.png", huge_png(4000, 4000))}), 422)


def test_a_request_with_very_many_files_is_refused(served: Served) -> None:
    files = [("files", ("x.png", png(seed=number))) for number in range(17)]
    assert served.client.post("/en/gradio_api/upload", files=files[:16]).status_code == 200
    assert served.client.post("/en/gradio_api/upload", files=files).status_code == 422
    refused(served.client.post("/api/uploads", files=[("other", ("x", b"x"))] * 5000), 422)
    head = {"Content-Disposition": 'form-data; name="file"; filename="x"', "X-Long": "x" * 30_000}
    form = "--x\r\n" + "\r\n".join(f"{name}: {value}" for name, value in head.items()) + "\r\n\r\nx\r\n--x--\r\n"
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    refused(served.client.post("/api/uploads", content=form.encode(), headers=kind), 422)


def test_a_full_disk_is_one_line(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    body = served.transfer()

    def full(*_: Any, **__: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("inst.studio.uploads.os.link", full)
        refused(served.upload(png(seed=99)), 507)
    with monkeypatch.context() as patch:
        patch.setattr("inst.studio.uploads.part_name", full)
        refused(served.upload(), 507)
        page = served.client.post("/en/gradio_api/upload", files={"files": ("x.png", png())})
        assert page.status_code == 507
    monkeypatch.setattr(served.studio.disk, "_most", 0)
    refused(served.upload(), 507)
    refused(served.submit(body=body), 507)
    refused(served.client.post("/api/styles", files={"file": ("x.pt", b"x")}), 507)
    monkeypatch.setattr(served.studio.disk, "_most", 2**40)
    monkeypatch.setattr("inst.studio.disk._FREE_BYTES", 2**70)
    refused(served.upload(), 507)


def test_the_size_of_the_data_folder_counts_links_once(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 1000)
    (tmp_path / "folder").mkdir()
    os.link(tmp_path / "a", tmp_path / "folder" / "b")
    (tmp_path / "folder" / "c").write_bytes(b"x" * 10)
    Disk(tmp_path, Limits(disk_bytes=1011)).check()
    with pytest.raises(NoSpace):
        Disk(tmp_path, Limits(disk_bytes=1010)).check()


def test_files_that_come_at_once_do_not_fill_the_disk_together(tmp_path: Path) -> None:
    disk = Disk(tmp_path, Limits(disk_bytes=10 * 2**20))
    uploads = Uploads(tmp_path / "uploads", Limits(upload_bytes=8 * 2**20), disk)
    disk.check()
    with ExitStack() as stack:
        receivers = [stack.enter_context(uploads.receive()) for _ in range(5)]
        pieces = (receiver.write(bytes(2**20 + 1)) for _ in range(6) for receiver in receivers)
        with pytest.raises(NoSpace):
            deque(pieces)
        assert 5 * 2**20 < sum(receiver.size for receiver in receivers) < 17 * 2**20
    disk.check()  # what did not come whole is gone


def test_an_editor_takes_pictures_only_and_not_many(served: Served) -> None:
    page = served.client.get("/en/config").json()
    (editor,) = (one["id"] for one in page["components"] if one["type"] == "imageeditor")
    storage = served.app.state.pages["en"].blocks[editor].blob_storage
    storage.clear()

    def send(data: bytes | None = None, **more: str) -> httpx.Response:
        fields = {"fn_name": "accept_blobs", "component_id": str(editor), "session_hash": "s", "id": "one"}
        fields |= {"type": "layer", "index": "0", **more}
        files = {"file": ("layer.png", png() if data is None else data)}
        return served.client.post("/en/gradio_api/component_server", data=fields, files=files)

    assert send(index="2").status_code == 200
    assert send(type="background", index="null").status_code == 200
    assert storage["one"].layers == [None, None, png()]
    assert storage["one"].background == png()
    wrong: list[dict[str, str]] = [
        {"index": "60000000"},
        {"index": "9"},
        {"index": "-1"},
        {"index": "null"},
        {"index": "9" * 900},
        {"type": "other"},
        {"fn_name": "__init__"},
        {"fn_name": "postprocess"},
        {"component_id": "1"},
        {"component_id": "x"},
        {"component_id": "99999"},
        {"id": ""},
        {"id": "x" * 2000},
    ]
    for one in wrong:
        refused(send(**one), 400)
    for data in (b"", b"no picture", huge_png(), huge_png(4000, 4000)):
        refused(send(data), 400)
    refused(send(b"\0" * (2**20 + 1)), 413)
    refused(served.client.post("/en/gradio_api/component_server", json={"fn_name": "accept_blobs"}), 400)
    for number in range(40):
        assert send(id=f"many-{number}").status_code == 200
    assert list(storage) == [f"many-{number}" for number in range(8, 40)]


def test_pictures_of_editors_do_not_fill_the_memory(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inst.studio.editors._MOST_BYTES", 1000)
    page = served.app.state.pages["zh"]
    (editor,) = (one for one in page.blocks.values() if type(one).__name__ == "ImageEditor")
    fields = {"fn_name": "accept_blobs", "component_id": str(editor._id), "type": "composite", "id": "a"}
    editors = Editors()
    editors.take(page, fields, b"x" * 900)
    editors.take(page, fields, b"x" * 900)  # it takes the place of the first
    assert editors.size() == 900
    editors.take(page, {**fields, "id": "b"}, b"x" * 600)
    assert list(editor.blob_storage) == ["b"]
    refused(served.client.get("/api/jobs/none"), 404)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("call/v2/show", {}),
        ("call/v2/repeat", {"one": "x", "other": 1}),
        ("call/v2/nothing", {}),
        ("call/v2/v2", []),
        ("call/nothing", {"data": []}),
        ("run/nothing", {"data": []}),
        ("run/predict", {"data": [], "fn_index": 99}),
        ("queue/join", {"data": [], "fn_index": 99, "session_hash": "a"}),
        ("queue/join", {"data": [], "fn_index": "0", "session_hash": "a"}),
        ("queue/join", {"data": {}, "fn_index": 0, "session_hash": "a"}),
        ("queue/join", {"data": ["x"], "fn_index": 0, "session_hash": "\ud800"}),
        ("queue/join", {"data": ["\ud800"], "fn_index": 0, "session_hash": "a"}),
        ("queue/join", {"data": ["x"], "fn_index": 0, "session_hash": "x" * 1000}),
        ("queue/join", {"data": ["x"], "fn_index": 0, "session_hash": 5}),
        ("queue/join", [1]),
        ("cancel", {"session_hash": "\ud800", "fn_index": 0, "event_id": "a"}),
        ("queue/join", {"data": [{"path": "/x"}] * 65, "fn_index": 0, "session_hash": "a"}),
        ("queue/join", {"data": [{"path": 5}], "fn_index": 0, "session_hash": "a"}),
    ],
)
def test_calls_of_an_odd_form_are_refused(served: Served, path: str, body: Any) -> None:
    content = json.dumps(body)
    kind = {"Content-Type": "application/json"}
    refused(served.client.post(f"/en/gradio_api/{path}", content=content, headers=kind), 400)


def test_the_calls_of_the_page_that_may_wait_are_bounded(served: Served) -> None:
    for page in served.app.state.pages.values():
        assert page._queue.max_size == 4 * served.studio.limits.queue + 100
    refused(served.client.get("/api/jobs/none"), 404)


def test_too_many_event_streams_are_refused(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def stream() -> Any:
        return served.client.stream("GET", "/en/gradio_api/heartbeat/abc")

    with ExitStack() as stack:
        answers = [stack.enter_context(stream()) for _ in range(9)]
        assert [answer.status_code for answer in answers] == [200] * 8 + [429]
        stranger = {"X-Inst-Person": "somebody-else"}
        with served.client.stream("GET", "/en/gradio_api/heartbeat/abc", headers=stranger) as other:
            assert other.status_code == 200
            monkeypatch.setattr("inst.studio.streams._OF_ALL", 9)
            with served.client.stream("GET", "/en/gradio_api/heartbeat/abc", headers=stranger) as more:
                assert more.status_code == 429
    end = time.monotonic() + 10
    while True:  # they are free again
        with stream() as answer:
            if answer.status_code == 200:
                break
        assert time.monotonic() < end
        time.sleep(0.1)


def test_nobody_chooses_their_address(
    tiny_backbone: inst.Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(tmp_path / "data", lambda: tiny_backbone, token=TOKEN) as one:
        with httpx.Client(base_url=one.address) as stranger:
            statuses = [
                stranger.get(
                    "/api/jobs", headers={"Authorization": "Bearer guess", "X-Forwarded-For": f"10.0.0.{number}"}
                ).status_code
                for number in range(12)
            ]
        assert statuses == [401] * 10 + [429] * 2
        with httpx.Client(base_url=one.address, headers={"Authorization": f"Bearer {TOKEN}"}) as mine:
            claimed = {"X-Forwarded-For": "10.0.0.1"}
            photo = {"upload": mine.post("/api/uploads", files={"file": png()}).json()["upload"]}
            body = {"photo": photo, "styles": [{"paintings": [photo]}], "steps": 1, "size": 64}
            id = mine.post("/api/jobs/transfer", json=body, headers=claimed).json()["id"]
            assert mine.get(f"/api/jobs/{id}", headers=claimed).status_code == 200


def test_a_studio_that_does_no_jobs_is_not_healthy(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(type(served.studio.jobs), "is_alive", False, raising=False)
        answer = served.client.get("/healthz")
        assert (answer.status_code, answer.json()["status"]) == (503, "stopped")
    refused(served.client.get("/api/jobs/none"), 404)


def test_a_file_of_the_page_has_a_name_that_nobody_can_know(served: Served) -> None:
    paths = [served.client.post("/en/gradio_api/upload", files={"files": ("x.png", png())}).json()[0] for _ in "12"]
    key, (known, other) = served.key(), (Path(path) for path in paths)
    assert (known.stem, other.stem) == (key, key)
    assert known.parent != other.parent
    for path in (known, other):
        assert served.client.get(f"/en/gradio_api/file={path}").content == png()
        # Whoever knows the hash alone, from the record of a picture, does not get the photo.
        guessed = path.parents[1] / path.name
        assert served.client.get(f"/en/gradio_api/file={guessed}").status_code in (403, 404)
        refused(served.client.get(f"/en/gradio_api/file={served.studio.uploads.folder / path.name}"), 403)


def test_the_page_refuses_in_its_own_language(served: Served) -> None:
    def answer(language: str) -> str:
        return served.client.post(f"/{language}/gradio_api/upload", files={"files": ("x.png", b"no picture")}).text

    assert answer("en") == "The file is not a picture in a known format: export it as PNG or JPEG."
    assert answer("zh") == "文件不是可识别的图片格式：请导出为 PNG 或 JPEG。"  # noqa: RUF001
