"""Every route of the service, with the tiny random model behind it."""

from __future__ import annotations

import io
import json
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

import inst
from inst.studio.limits import Limits
from inst.synthesis.record import read_record
from studio_server import PERSON, Served, png, serving


@pytest.fixture(scope="module")
def served(tiny_backbone: inst.Backbone, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("service") / "data", lambda: tiny_backbone) as one:
        yield one


@pytest.fixture
def slow(tiny_backbone: inst.Backbone, tmp_path: Path) -> Iterator[tuple[Served, threading.Event]]:
    """A service whose model is loaded when the event is set: until then, all jobs wait."""
    gate = threading.Event()

    def load() -> inst.Backbone:
        gate.wait(60)
        return tiny_backbone

    with serving(tmp_path / "data", load, Limits(queue=3, jobs_per_person=2), wait=False) as one:
        try:
            yield one, gate
        finally:
            gate.set()


def error(answer: httpx.Response) -> str:
    """Return the one line of an error."""
    body = answer.json()
    assert list(body) == ["error"]
    assert "\n" not in body["error"]
    return str(body["error"])


def learned(served: Served) -> str:
    """Learn a style and return its id."""
    body = {"paintings": [{"upload": served.key(), "name": "waves.png"}], "name": "Waves", "steps": 2, "batch_size": 1}
    job = served.wait(served.submit("learn", body).json()["id"])
    assert job["state"] == "done", job
    return str(job["style"])


def test_an_uploaded_picture_is_described(served: Served) -> None:
    answer = served.upload(png(80, 60), "holiday photos/lake.png")
    assert answer.status_code == 201
    body = answer.json()
    assert (body["name"], body["width"], body["height"], body["format"]) == ("lake.png", 80, 60, "PNG")
    assert served.upload(png(80, 60)).json()["upload"] == body["upload"]


def test_a_job_is_accepted_followed_and_downloaded(served: Served) -> None:
    answer = served.submit(body=served.transfer(seed=4, count=2))
    assert answer.status_code == 202
    assert answer.headers["Location"] == f"/api/jobs/{answer.json()['id']}"
    job = served.wait(answer.json()["id"])
    assert job["state"] == "done"
    assert [file["name"] for file in job["files"]] == ["picture-1.png", "picture-2.png"]
    assert job["request"]["seed"] == 4
    file = served.client.get(job["files"][1]["url"])
    assert file.headers["Content-Type"] == "image/png"
    assert file.headers["Content-Disposition"] == f'attachment; filename="transfer-{job["id"][:8]}-picture-2.png"'
    assert Image.open(io.BytesIO(file.content)).format == "PNG"


def test_a_downloaded_picture_says_how_it_was_made(served: Served, tmp_path: Path) -> None:
    job = served.wait(served.submit(body=served.transfer(seed=11)).json()["id"])
    path = tmp_path / "made.png"
    path.write_bytes(served.client.get(job["files"][0]["url"]).content)
    assert read_record(path).settings["seed"] == 11


def test_all_files_of_a_job_come_as_one_archive(served: Served) -> None:
    job = served.wait(served.submit(body=served.transfer(count=2)).json()["id"])
    answer = served.client.get(job["archive"])
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        assert [archive.read(name) for name in names] == [
            served.client.get(file["url"]).content for file in job["files"]
        ]
    assert names == [f"transfer-{job['id'][:8]}-picture-{number}.png" for number in (1, 2)]


@pytest.mark.parametrize("kind", ["sheet", "generate", "learn"])
def test_every_kind_of_job_is_done(served: Served, kind: str) -> None:
    upload = {"upload": served.key()}
    styles = [{"paintings": [upload]}]
    bodies: dict[str, dict[str, Any]] = {
        "sheet": {"photo": upload, "styles": styles, "strengths": [0.5], "guidances": [1.0], "size": 64},
        "generate": {"prompt": "a river, [C]", "styles": styles, "steps": 2, "size": 64},
        "learn": {"paintings": [upload], "steps": 2, "batch_size": 1},
    }
    job = served.wait(served.submit(kind, bodies[kind]).json()["id"])
    assert job["state"] == "done", job["error"]
    assert job["files"]
    for file in job["files"]:
        assert served.client.get(file["url"]).status_code == 200


def test_events_tell_of_every_change_until_the_end(slow: tuple[Served, threading.Event]) -> None:
    served, gate = slow
    id = served.submit().json()["id"]
    threading.Timer(0.5, gate.set).start()
    events = served.events(id)
    assert [number for number, _ in events] == [str(number) for number in range(len(events))]
    states = [job["state"] for _, job in events]
    assert states[0] == "queued"
    assert states[-1] == "done"
    assert events[-1][1]["files"]
    assert events[-1][1]["progress"]["step"] == events[-1][1]["progress"]["total"]


def test_a_place_in_the_queue_is_told(slow: tuple[Served, threading.Event]) -> None:
    served, _ = slow
    first, second = (served.submit().json() for _ in range(2))
    assert (first["ahead"], second["ahead"]) == (0, 1)
    served.client.post(f"/api/jobs/{first['id']}/cancel")
    assert served.client.get(f"/api/jobs/{second['id']}").json()["ahead"] == 0


def test_two_requests_with_one_key_are_one_job(slow: tuple[Served, threading.Event]) -> None:
    served, gate = slow
    body = served.transfer()
    key = {"Idempotency-Key": "the same"}
    first, second = (served.submit(body=body, headers=key) for _ in range(2))
    assert first.status_code == second.status_code == 202
    assert first.json()["id"] == second.json()["id"]
    assert len(served.client.get("/api/jobs").json()) == 1
    somebody = {"X-Inst-Person": "another-person"}
    other = served.submit(body=served.transfer(somebody), headers=key | somebody)
    assert other.json()["id"] != first.json()["id"]
    changed = served.submit(body={**body, "seed": 5}, headers=key)
    assert changed.status_code == 422
    assert "key" in error(changed)
    gate.set()
    served.wait(first.json()["id"])
    assert served.submit(body=body, headers=key).json()["id"] == first.json()["id"]


def test_too_many_jobs_are_refused_with_a_time(slow: tuple[Served, threading.Event]) -> None:
    served, _ = slow
    body = served.transfer()
    assert [served.submit(body=body).status_code for _ in range(2)] == [202, 202]
    third = served.submit(body=body)
    assert third.status_code == 429
    assert int(third.headers["Retry-After"]) >= 1
    assert "2 unfinished jobs" in error(third)
    people = [{"X-Inst-Person": f"person-number-{number}"} for number in range(3)]
    answers = [served.submit(body=served.transfer(one), headers=one) for one in people]
    assert [answer.status_code for answer in answers] == [202, 429, 429]
    text = served.client.get("/metrics").text
    assert 'inst_refused_total{reason="person"} 1.0' in text
    assert 'inst_refused_total{reason="queue"} 2.0' in text
    assert "inst_queue_length 3.0" in text


def test_waiting_jobs_are_paused_resumed_and_cancelled(slow: tuple[Served, threading.Event]) -> None:
    served, _ = slow
    base = f"/api/jobs/{served.submit().json()['id']}"
    assert served.client.post(f"{base}/pause").json()["state"] == "paused"
    assert served.client.post(f"{base}/resume").json()["state"] == "queued"
    assert served.client.post(f"{base}/cancel").json()["state"] == "cancelled"
    assert served.client.post(f"{base}/finish").json()["state"] == "cancelled"


def test_a_learning_is_paused_resumed_and_finished_early(served: Served) -> None:
    body = {"paintings": [{"upload": served.key()}], "steps": 5000, "batch_size": 1, "preview_every": 0}
    id = served.submit("learn", body).json()["id"]
    served.wait(id, lambda job: bool(job["progress"]) and job["progress"]["step"] >= 2)
    served.client.post(f"/api/jobs/{id}/pause")
    paused = served.wait(id, lambda job: job["state"] != "running")
    assert paused["state"] == "paused"
    served.client.post(f"/api/jobs/{id}/resume")
    served.wait(id, lambda job: job["state"] == "running" and job["progress"]["step"] > paused["progress"]["step"])
    served.client.post(f"/api/jobs/{id}/finish")
    job = served.wait(id)
    assert job["state"] == "done"
    assert served.client.get(f"/api/styles/{job['style']}").status_code == 200


def test_a_preview_is_shown_while_a_learning_runs(served: Served) -> None:
    body = {"paintings": [{"upload": served.key()}], "steps": 5000, "batch_size": 1, "preview_every": 1}
    id = served.submit("learn", body).json()["id"]
    job = served.wait(id, lambda job: job["preview"] is not None)
    assert Image.open(io.BytesIO(served.client.get(job["preview"]).content)).format == "WEBP"
    served.client.post(f"/api/jobs/{id}/cancel")
    served.wait(id)
    gone = served.client.get(f"/api/jobs/{id}/preview")
    assert gone.status_code == 404
    error(gone)


def test_jobs_of_others_are_not_there(served: Served) -> None:
    job = served.wait(served.submit().json()["id"])
    stranger = {"X-Inst-Person": "somebody-else"}
    for method, path in (
        ("GET", ""),
        ("GET", "/events"),
        ("GET", "/preview"),
        ("GET", "/files.zip"),
        ("GET", "/files/picture-1.png"),
        ("POST", "/cancel"),
        ("POST", "/pause"),
        ("POST", "/resume"),
        ("POST", "/finish"),
    ):
        answer = served.client.request(method, f"/api/jobs/{job['id']}{path}", headers=stranger)
        assert answer.status_code == 404, path
        assert "no such job" in error(answer)
    assert served.client.get("/api/jobs", headers=stranger).json() == []
    assert job["id"] in [one["id"] for one in served.client.get("/api/jobs").json()]


def test_a_style_is_listed_renamed_tagged_deleted_and_restored(served: Served) -> None:
    client, id = served.client, learned(served)
    style = client.get(f"/api/styles/{id}").json()
    assert (style["name"], style["paintings"], style["fits"]) == ("Waves", ["waves.png"], True)
    changed = client.patch(f"/api/styles/{id}", json={"name": "Great wave", "tags": ["japan"]}).json()
    assert (changed["name"], changed["tags"]) == ("Great wave", ["japan"])
    assert [one["id"] for one in client.get("/api/styles", params={"text": "great", "tag": "japan"}).json()] == [id]
    assert client.get("/api/styles", params={"text": "nothing like it"}).json() == []
    assert client.delete(f"/api/styles/{id}").status_code == 204
    assert client.get(f"/api/styles/{id}").status_code == 404
    assert client.post(f"/api/styles/{id}/restore").json()["name"] == "Great wave"


def test_a_style_is_exported_and_imported(served: Served) -> None:
    client, id = served.client, learned(served)
    client.patch(f"/api/styles/{id}", json={"name": "大波"})
    file = client.get(f"/api/styles/{id}/export")
    assert "%E5%A4%A7%E6%B3%A2.safetensors" in file.headers["Content-Disposition"]
    added = client.post("/api/styles", files={"file": ("x.safetensors", file.content)})
    assert added.status_code == 201
    assert added.json()["id"] != id
    assert added.json()["name"] == "大波"
    embedding = client.get(f"/api/styles/{id}/export", params={"to": "a1111"})
    other = client.post("/api/styles", files={"file": ("some wave.safetensors", embedding.content)})
    assert other.json()["variant"] == "imported"
    assert other.json()["name"] == "some wave"
    assert client.get(f"/api/styles/{id}/export", params={"to": "photoshop"}).status_code == 422


def test_a_style_has_a_small_picture(served: Served) -> None:
    answer = served.client.get(f"/api/styles/{learned(served)}/thumbnail", params={"side": 64})
    assert Image.open(io.BytesIO(answer.content)).format == "WEBP"
    assert answer.headers["Content-Type"] == "image/webp"


def test_the_nearest_style_is_that_of_the_same_painting(served: Served) -> None:
    body = {"paintings": [{"upload": served.key(png(64, 64, seed=77))}], "steps": 1, "batch_size": 1}
    id = served.wait(served.submit("learn", body).json()["id"])["style"]
    found = served.client.post("/api/styles/nearest", json={"upload": served.key(png(64, 64, seed=77)), "count": 100})
    near = {one["style"]["id"]: one["similarity"] for one in found.json()}
    assert near[id] == pytest.approx(1, abs=1e-4)
    assert list(near.values()) == sorted(near.values(), reverse=True)


def test_a_learned_style_is_used_by_its_id(served: Served) -> None:
    job = served.wait(served.submit(body=served.transfer(styles=[{"id": learned(served)}])).json()["id"])
    assert job["state"] == "done"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"strength": "much"}, "strength"),
        ({"steps": 100000}, "steps"),
        ({"photo": {"upload": "../../etc/passwd"}}, "photo.upload"),
        ({"photo": {"upload": "0" * 64}}, "upload it again"),
        ({"styles": []}, "styles"),
        ({"styles": [{"id": "0" * 16}]}, "style"),
        ({"unknown": 1}, "unknown"),
        ({"strength": float("nan")}, "strength"),
    ],
)
def test_a_wrong_request_gets_one_line(served: Served, change: dict[str, Any], words: str) -> None:
    content = json.dumps({**served.transfer(), **change})
    answer = served.client.post("/api/jobs/transfer", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code in (404, 422)
    assert words in error(answer)


def test_errors_of_the_library_name_fields_of_the_request(served: Served) -> None:
    job = served.wait(served.submit(body=served.transfer(solver="magic")).json()["id"])
    assert job["state"] == "failed"
    assert "magic" in job["error"]


def test_an_upload_without_a_file_is_refused(served: Served) -> None:
    assert served.client.post("/api/uploads", files={"other": ("x.png", png())}).status_code == 422
    assert served.client.post("/api/uploads", json={}).status_code == 422
    broken = served.client.post(
        "/api/uploads", content=b"--x\r\n", headers={"Content-Type": "multipart/form-data; boundary=x"}
    )
    assert broken.status_code == 422
    error(broken)


def test_unknown_paths_and_methods_get_one_line(served: Served) -> None:
    for method, path, status in (("GET", "/api/nothing", 404), ("PUT", "/api/jobs", 405), ("POST", "/healthz", 405)):
        answer = served.client.request(method, path)
        assert answer.status_code == status
        error(answer)


def test_the_api_is_documented(served: Served) -> None:
    document = served.client.get("/openapi.json").json()
    operations = [one for path in document["paths"].values() for one in path.values()]
    assert len(operations) >= 20
    assert all(one.get("summary") and one.get("description") for one in operations)
    assert not any("gradio" in path for path in document["paths"])


def test_health_says_whether_the_model_is_loaded(slow: tuple[Served, threading.Event]) -> None:
    served, gate = slow
    answer = served.client.get("/healthz")
    assert (answer.status_code, answer.json()["status"]) == (503, "loading")
    nearest = served.client.post("/api/styles/nearest", json={"upload": served.key()})
    assert nearest.status_code == 503
    gate.set()
    end = time.monotonic() + 20
    while served.client.get("/healthz").status_code != 200:
        assert time.monotonic() < end


def test_metrics_count_what_happened(served: Served) -> None:
    served.wait(served.submit().json()["id"])
    text = served.client.get("/metrics").text
    assert 'inst_jobs_total{kind="transfer",state="done"}' in text
    assert 'inst_job_seconds_count{kind="transfer"}' in text
    assert 'inst_http_requests_total{method="GET",route="/api/jobs/{id}",status="200"}' in text
    assert "inst_upload_bytes_total" in text
    assert "process_resident_memory_bytes" in text
    assert PERSON["X-Inst-Person"] not in text


def test_the_page_is_in_the_language_of_the_visitor(served: Served) -> None:
    for accepted, place in (("zh-CN,zh;q=0.9,en;q=0.8", "/zh/"), ("de,en;q=0.5", "/en/"), ("", "/en/")):
        answer = served.client.get("/", params={"style": "ab"}, headers={"Accept-Language": accepted})
        assert (answer.status_code, answer.headers["Location"]) == (307, f"{place}?style=ab")
    assert "gradio-app" in served.client.get("/zh/").text


def test_a_visitor_of_the_page_becomes_a_person(served: Served) -> None:
    with httpx.Client(base_url=served.address) as browser:
        first = browser.get("/en/").headers["Set-Cookie"]
        assert "HttpOnly" in first
        assert len(browser.cookies["inst_person"]) >= 22
        assert "Set-Cookie" not in browser.get("/en/").headers
        name = browser.cookies["inst_person"]
        body = served.transfer({"X-Inst-Person": name})
        id = browser.post("/api/jobs/transfer", json=body).json()["id"]
    assert served.client.get(f"/api/jobs/{id}", headers={"X-Inst-Person": name}).status_code == 200
    assert served.client.get(f"/api/jobs/{id}").status_code == 404


def test_clients_of_gradio_work_and_their_files_get_new_names(tiny_backbone: inst.Backbone, tmp_path: Path) -> None:
    gradio_client = pytest.importorskip("gradio_client")
    picture = tmp_path / "my secret name.png"
    picture.write_bytes(png())
    # Gradio's folder is one for the whole process, that of the last server.
    with serving(tmp_path / "data", lambda: tiny_backbone) as served:
        client = gradio_client.Client(f"{served.address}/en/", verbose=False, download_files=False, headers=PERSON)
        assert client.predict("hello", api_name="/repeat") == "hello"
        made = client.predict(gradio_client.handle_file(picture), api_name="/show")
        assert "secret" not in str(made)
        shown = served.client.get("/en/gradio_api/file=" + made["path"])
        assert Image.open(io.BytesIO(shown.content)).size == (64, 48)
        assert not [path for path in served.studio.folder.rglob("*") if "secret" in path.name]


def test_nobody_names_an_upload_of_somebody_else(served: Served) -> None:
    ann, bob = ({"X-Inst-Person": name} for name in ("ann-and-nobody", "bob-and-nobody"))
    body, missing = served.transfer(ann), "0" * 64
    names = [body | {"photo": {"upload": missing}}, body]
    answers = [served.submit(body=one, headers=bob) for one in names]
    answers += [
        served.submit("learn", {"paintings": [{"upload": key}]}, headers=bob)
        for key in (missing, body["photo"]["upload"])
    ]
    answers += [
        served.client.post("/api/styles/nearest", json={"upload": key}, headers=bob)
        for key in (missing, body["photo"]["upload"])
    ]
    assert {(answer.status_code, error(answer)) for answer in answers} == {
        (422, "The picture is not here any more: upload it again.")
    }
    assert served.submit(body=body, headers=ann).status_code == 202
    # The same content belongs to both.
    assert served.transfer(bob) == body
    for person in (bob, ann):
        assert served.submit(body=body, headers=person).status_code == 202


def test_who_paused_or_finishes_a_job_is_told_of_a_full_queue(served: Served) -> None:
    paths = served.client.get("/openapi.json").json()["paths"]
    for what in ("pause", "finish", "resume"):
        assert "429" in paths[f"/api/jobs/{{id}}/{what}"]["post"]["responses"], what
    assert paths["/api/jobs/sheet"]["post"]["requestBody"]["content"]["application/json"]["schema"] == {
        "$ref": "#/components/schemas/SheetRequest"
    }
