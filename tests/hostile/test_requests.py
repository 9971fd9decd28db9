"""Bad requests to the studio and to the server of a study: each gets a short refusal, and the server goes on."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

import inst
from inst.studio.limits import Limits
from inst.studio.requests import KINDS
from inst.study.database import Database
from inst.study.server import make_app
from studio_server import Served, serving

from .embeddings import PROGRAMS
from .harness import is_chosen
from .kit import copy_kit
from .pictures import CONTENTS, USABLE
from .styles import CONTROLS, DEEP, FILES

VALUES: dict[str, str] = {
    "null": "null",
    "text": '"x"',
    "controls": json.dumps(CONTROLS),
    "surrogate": '"\\ud800"',
    "negative": "-1",
    "huge": "1000000000",
    "huger": "1" * 400,
    "overflow": "-1e400",
    "nan": "NaN",
    "list": "[]",
    "deep": DEEP[:5000] + "]" * 5000,
    "object": "{}",
    "long": json.dumps("x" * 100_000),
}
"""Values in JSON, or nearly."""
FIELDS = [(kind, name) for kind, form in KINDS.items() for name in form.model_fields]
BODIES: dict[str, bytes] = {
    "empty": b"",
    "text": b"no JSON",
    "list": b"[]",
    "deep": DEEP.encode(),
    "no-utf8": b"\xff\xfe",
    "long": b'{"key": "' + b"x" * 3_000_000 + b'"}',
    "many": json.dumps({f"k{n}": n for n in range(20_000)}).encode(),
    "controls": json.dumps({CONTROLS: CONTROLS}).encode(),
}
TOKEN = "0" * 64


@pytest.fixture(scope="module")
def studio(tiny_backbone: inst.Backbone, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    limits = Limits(jobs_per_person=1000, queue=1000, upload_bytes=2**21, picture_pixels=10**7, job_seconds=2)
    with serving(tmp_path_factory.mktemp("studio") / "data", lambda: tiny_backbone, limits) as one:
        yield one


@pytest.fixture(scope="module")
def good(studio: Served) -> dict[str, Any]:
    """A request of each kind that the studio takes."""
    upload = {"upload": studio.key()}
    styles = [{"paintings": [upload]}]
    small = {"steps": 1, "size": 64}
    return {
        "transfer": {"photo": upload, "styles": styles, **small},
        "sheet": {"photo": upload, "styles": styles, "strengths": [0.5], "guidances": [1.0], "size": 64},
        "generate": {"prompt": "[C]", "styles": styles, **small},
        "learn": {"paintings": [upload], "steps": 1},
    }


def check(answer: httpx.Response, *, refused: bool) -> None:
    assert answer.status_code < 500 or answer.status_code == 507, answer.text[:500]
    if refused:
        assert answer.status_code >= 400, answer.text[:500]
    if answer.status_code >= 400:
        line = str(answer.json()["error"])
        assert 0 < len(line) < 1500
        assert not re.search("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e]", line)
        assert "Traceback" not in answer.text
        assert "/tmp" not in line


@pytest.mark.parametrize(
    ("kind", "name", "value"), [(*one, value) for one in FIELDS for value in VALUES if is_chosen(f"{one}{value}")]
)
def test_a_field_with_a_bad_value(kind: str, name: str, value: str, studio: Served, good: dict[str, Any]) -> None:
    body = json.dumps(good[kind] | {name: "here"}).replace('"here"', VALUES[value]).encode()
    answer = studio.client.post(f"/api/jobs/{kind}", content=body, headers={"Content-Type": "application/json"})
    check(answer, refused=value in ("overflow", "nan", "huger", "deep", "object"))
    if answer.status_code == 202:
        studio.client.post(f"/api/jobs/{answer.json()['id']}/cancel")


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("path", ["jobs/transfer", "jobs/learn", "styles/nearest", "uploads", "styles"])
def test_a_bad_body(path: str, body: str, studio: Served) -> None:
    for kind in ("application/json", "multipart/form-data; boundary=x", "multipart/form-data", "text/plain"):
        answer = studio.client.post(f"/api/{path}", content=BODIES[body], headers={"Content-Type": kind})
        check(answer, refused=True)


@pytest.mark.parametrize("kind", CONTENTS)
def test_a_bad_picture_is_uploaded(kind: str, studio: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check(studio.upload(CONTENTS[kind](), f"{CONTROLS}.png"), refused=kind not in USABLE)


@pytest.mark.parametrize("kind", [*FILES, *PROGRAMS])
def test_a_bad_style_is_imported(kind: str, studio: Served) -> None:
    data = FILES[kind]() if kind in FILES else PROGRAMS[kind]
    for name in ("a.safetensors", "a.pt", f"../{CONTROLS}.bin"):
        check(studio.client.post("/api/styles", files={"file": (name, data)}), refused=kind != "long-key")
    assert not Path("made-by-a-pickle").exists()


@pytest.mark.parametrize("id", ["%2e%2e%2fx", "0" * 16, "0" * 5000, "%00", "%ff", "-1", "%1b%5d0", "🎨"])
def test_a_bad_address(id: str, studio: Served) -> None:
    for path in ("jobs/{}", "jobs/{}/events", "jobs/{}/files/x", "styles/{}/thumbnail?side=9", "styles/{}/export?to=x"):
        check(studio.client.get(f"/api/{path.format(id)}"), refused=True)


@pytest.fixture(scope="module")
def study(
    tiny_backbone: inst.Backbone, tiny_backbone_folder: Path, kit: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TestClient]:
    """The study's application. An exception that it does not handle is raised here."""
    folder = copy_kit(kit, tmp_path_factory.mktemp("study") / "place")
    with Database(folder / "study.db") as database, TestClient(make_app(database), "http://127.0.0.1") as client:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        assert client.post("/api/begin", headers=headers).status_code == 200
        yield client


def _refused(answer: httpx.Response) -> None:
    assert 400 <= answer.status_code < 500, answer.text[:300]
    assert len(answer.text) < 1500


_VOTE = {"key": "0" * 32, "position": 1, "choice": "first", "seconds": 2.5}


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("name", [*_VOTE, "ranking"])
def test_a_bad_answer(name: str, value: str, study: TestClient) -> None:
    body = json.dumps(_VOTE | {name: "here"}).replace('"here"', VALUES[value])
    path = "ranking" if name == "ranking" else "vote"
    _refused(study.post(f"/api/{path}", content=body, headers={"Authorization": f"Bearer {TOKEN}"}))


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("path", ["vote", "ranking"])
def test_a_bad_answer_as_a_whole(path: str, body: str, study: TestClient) -> None:
    _refused(study.post(f"/api/{path}", content=BODIES[body], headers={"Authorization": f"Bearer {TOKEN}"}))


@pytest.mark.parametrize("token", ["", "x", "0" * 63, "0" * 100_000, "\x1b]0;", "é", "٣" * 64, "A" * 64])
@pytest.mark.parametrize("ask", ["begin", "session", "vote", "admin/progress", "admin/answers.csv"])
def test_a_bad_token(ask: str, token: str, study: TestClient) -> None:
    send: Callable[..., httpx.Response] = study.post if ask in ("begin", "vote") else study.get
    more = {"json": _VOTE} if ask == "vote" else {}
    _refused(send(f"/api/{ask}", headers={"Authorization": b"Bearer " + token.encode()}, **more))
