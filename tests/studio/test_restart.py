"""The command: what its options do, and what happens when it is stopped, killed and started again."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from PIL import Image

from inst.styles.style import Style
from studio_program import Program, running, start
from studio_server import png

STEPS = 120


def learning(program: Program) -> str:
    """Begin a learning and return its id."""
    upload = program.client.post("/api/uploads", files={"file": ("painting.png", png(64, 64))}).json()["upload"]
    body = {"paintings": [{"upload": upload}], "steps": STEPS, "batch_size": 1, "preview_every": 0, "seed": 5}
    return str(program.client.post("/api/jobs/learn", json=body).json()["id"])


def learned_vectors(program: Program, job: dict[str, Any], folder: Path) -> torch.Tensor:
    path = folder / f"{job['id']}.safetensors"
    path.write_bytes(program.client.get(f"/api/jobs/{job['id']}/files/style.safetensors").content)
    return Style.load(path).vectors


def is_under_way(job: dict[str, Any]) -> bool:
    return job["state"] == "running" and job["progress"] is not None and job["progress"]["step"] >= 10


def test_a_killed_learning_goes_on_to_the_same_style(tiny_backbone_folder: Path, tmp_path: Path) -> None:
    with running(tiny_backbone_folder, tmp_path / "data") as program:
        id = learning(program)
        program.wait(id, is_under_way)
        time.sleep(0.2)
        program.stop(signal.SIGKILL)
    assert (tmp_path / "data" / "jobs" / id / "state.safetensors").exists()
    with running(tiny_backbone_folder, tmp_path / "data") as program:
        job = program.wait(id)
        assert job["state"] == "done", job["error"]
        curve = program.client.get(f"/api/jobs/{id}/files/loss.csv").text.splitlines()
        assert [line.split(",")[0] for line in curve[1:]] == [str(step) for step in range(1, STEPS + 1)]
        continued = learned_vectors(program, job, tmp_path)
        whole = learned_vectors(program, program.wait(learning(program)), tmp_path)
        assert torch.equal(continued, whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_and_keeps_the_jobs(tiny_backbone_folder: Path, tmp_path: Path, number: int) -> None:
    data = tmp_path / "data"
    with running(tiny_backbone_folder, data) as program:
        id = learning(program)
        waiting = learning(program)
        job = program.wait(id, is_under_way)
        ends: list[str] = []

        def follow() -> None:
            with program.client.stream("GET", f"/api/jobs/{id}/events", timeout=60) as answer:
                ends.append([line for line in answer.iter_lines() if line.startswith("data: ")][-1])

        follower = threading.Thread(target=follow)
        follower.start()
        time.sleep(0.3)
        code = program.stop(number)
        follower.join(10)
        assert code == 0
        assert json.loads(ends[0].removeprefix("data: "))["id"] == id  # the stream came to a proper end
    with running(tiny_backbone_folder, data) as program:
        assert program.client.get(f"/api/jobs/{id}").json()["progress"]["step"] >= job["progress"]["step"]
        assert program.wait(id)["state"] == "done"
        assert program.wait(waiting)["state"] == "done"


def test_it_can_be_stopped_while_the_model_is_loading(tiny_backbone_folder: Path, tmp_path: Path) -> None:
    with running(tiny_backbone_folder, tmp_path / "data") as program:
        code = program.stop()
    assert code == 0


def test_a_second_signal_ends_it_at_once(tiny_backbone_folder: Path, tmp_path: Path) -> None:
    with running(tiny_backbone_folder, tmp_path / "data") as program:
        with program.client.stream("GET", "/en/gradio_api/heartbeat/abc", timeout=60):
            program.process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
            code = program.stop(signal.SIGTERM)
        assert code in (0, 128 + signal.SIGTERM)


def failed(process: Any) -> tuple[int, str]:
    """Wait for the end of the command; return its exit code and its one line."""
    _, line = process.communicate(timeout=60)
    assert "Traceback" not in line
    lines = [one for one in line.splitlines() if one.startswith("Error: ")]  # libraries may have warnings of their own
    assert len(lines) == 1, line
    return process.returncode, lines[0]


def test_what_cannot_be_used_gets_one_line(tiny_backbone_folder: Path, tmp_path: Path) -> None:
    common = ("--backbone", tiny_backbone_folder, "--port", 0)
    (tmp_path / "file").write_text("")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, line = failed(start("--data", tmp_path / "a", "--backbone", tiny_backbone_folder, "--port", port))
        assert (code, f"port {port}" in line, "--port" in line) == (1, True, True)
    code, line = failed(start("--data", tmp_path / "file", *common))
    assert (code, "is a file" in line) == (1, True)
    code, line = failed(start("--data", tmp_path / "b", "--host", "0.0.0.0", *common))
    assert (code, "--token" in line) == (2, True)
    code, line = failed(start("--data", tmp_path / "b", "--port", 70000))
    assert (code, "70000" in line) == (2, True)
    code, line = failed(start("--data", tmp_path / "c", "--backbone", tmp_path / "nothing", "--port", 0))
    assert code in (1, 2)
    assert "nothing" in line
    code, line = failed(start("--data", tmp_path / "d", "--token-file", tmp_path / "nothing", *common))
    assert (code, "nothing: no such file" in line) == (1, True)


def test_a_second_studio_in_one_folder_is_refused(tiny_backbone_folder: Path, tmp_path: Path) -> None:
    with running(tiny_backbone_folder, tmp_path / "data") as program:
        shown = list((tmp_path / "data" / "page").rglob("*"))
        code, line = failed(start("--data", tmp_path / "data", "--backbone", tiny_backbone_folder, "--port", 0))
        assert (code, "Another studio" in line) == (1, True)
        assert list((tmp_path / "data" / "page").rglob("*")) == shown
        assert program.client.get("/healthz").status_code in (200, 503)


@pytest.mark.skipif(os.name != "posix", reason="permissions are those of POSIX")
@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_gets_one_line(tiny_backbone_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    code, _ = failed(start("--data", tmp_path / "locked" / "data", "--backbone", tiny_backbone_folder, "--port", 0))
    assert code == 1


def test_the_log_is_json_without_secrets(tiny_backbone_folder: Path, tmp_path: Path) -> None:
    token = "a-very-secret-token"
    (tmp_path / "token").write_text(f"{token}\n")
    arguments = ("--log-format", "json", "--token-file", tmp_path / "token")
    with running(tiny_backbone_folder, tmp_path / "data", *arguments) as program:
        client = program.client
        wrong = {"Authorization": "Bearer secret-guess"}
        assert httpx.get(f"{program.address}api/jobs", headers=wrong).status_code == 401
        client.headers["Authorization"] = f"Bearer {token}"
        upload = client.post("/api/uploads", files={"file": ("secret name.png", png())}).json()["upload"]
        styles = [{"paintings": [{"upload": upload}]}]
        body = {"photo": {"upload": upload, "name": "secret name.png"}, "styles": styles, "prompt": "secret words [C]"}
        id = client.post("/api/jobs/transfer", json={**body, "steps": 2, "size": 64}).json()["id"]
        assert program.wait(id)["state"] == "done"
        assert program.stop() == 0
        assert program.process.stderr is not None
        text = program.process.stderr.read()
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    assert all({"time", "level", "event"} <= line.keys() for line in lines)
    states = [line["state"] for line in lines if line.get("job") == id]
    assert states == ["queued", "running", "done"]
    assert [line for line in lines if line.get("reason") == "token"]
    for secret in (token, "secret", "127.0.0.1", "a-test-person"):
        assert secret not in text


def test_the_data_folder_has_a_largest_size(tiny_backbone_folder: Path, tmp_path: Path) -> None:
    picture = io.BytesIO()
    Image.effect_noise((4000, 3000), 100).save(picture, "PNG")
    with running(tiny_backbone_folder, tmp_path / "data", "--max-disk-gb", 0.01) as program:
        answers = [
            program.client.post("/api/uploads", files={"file": data})
            for data in (picture.getvalue(), b"the disk is full before this is looked at")
        ]
    assert [answer.status_code for answer in answers] == [201, 507]
    assert "disk is full" in answers[1].json()["error"]


def test_the_headers_of_a_proxy_are_believed_only_on_request(tiny_backbone_folder: Path, tmp_path: Path) -> None:
    token = "a token of some length"
    visitor = {"X-Forwarded-Proto": "https", "X-Forwarded-For": "10.0.0.200"}

    def guesses(program: Program) -> set[int]:
        """Return the answers to wrong tokens, each of which claims to come from another address."""
        return {
            program.client.get(
                "/api/jobs", headers={"Authorization": "Bearer guess", "X-Forwarded-For": f"10.0.0.{number}"}
            ).status_code
            for number in range(12)
        }

    def cookie(program: Program) -> str:
        return program.client.get(f"/en/?token={token}", headers=visitor).headers["Set-Cookie"]

    with running(tiny_backbone_folder, tmp_path / "data", "--token", token, "--behind-proxy") as program:
        assert guesses(program) == {401}
        assert "Secure" in cookie(program)
    with running(tiny_backbone_folder, tmp_path / "data", "--token", token) as program:
        assert guesses(program) == {401, 429}
        assert "Secure" not in cookie(program)
