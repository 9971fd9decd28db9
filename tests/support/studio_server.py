"""A studio with the tiny random model, and its service on a port of its own."""

import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI
from PIL import Image

from inst.backbone.model import Backbone
from inst.listening import listen
from inst.studio.gradio_mount import prepare
from inst.studio.limits import Limits
from inst.studio.server import run_server
from inst.studio.service import make_app
from inst.studio.studio import Studio

ENDED = ("done", "failed", "cancelled")
PERSON = {"X-Inst-Person": "a-test-person"}


def stand_in(studio: Studio, language: str) -> Any:
    """A page that only repeats a text and a picture: the real one takes seconds to make."""
    import gradio as gr

    with gr.Blocks(analytics_enabled=False) as page:
        text, picture, made = gr.Textbox(language), gr.Image(type="filepath"), gr.Image()
        gr.ImageEditor()
        text.submit(lambda one: one, text, text, api_name="repeat")
        picture.change(lambda path: path, picture, made, api_name="show")
    return page


@dataclass
class Served:
    """A service that runs, and a client of one person."""

    studio: Studio
    address: str
    client: httpx.Client
    app: FastAPI

    def upload(self, data: bytes | None = None, name: str = "photo.png", **more: Any) -> httpx.Response:
        files = {"file": (name, png() if data is None else data)}
        return self.client.post("/api/uploads", files=files, **more)

    def key(self, data: bytes | None = None, **more: Any) -> str:
        """Upload a picture and return its key."""
        return str(self.upload(data, **more).json()["upload"])

    def transfer(self, headers: dict[str, str] | None = None, **more: Any) -> dict[str, Any]:
        """Return a small request of the person in the headers."""
        photo, painting = self.key(headers=headers), self.key(png(seed=9), headers=headers)
        request = {"photo": {"upload": photo}, "styles": [{"paintings": [{"upload": painting}]}]}
        return {**request, "steps": 2, "size": 64, "style_attention": 0.0, **more}

    def submit(self, kind: str = "transfer", body: dict[str, Any] | None = None, **more: Any) -> httpx.Response:
        return self.client.post(f"/api/jobs/{kind}", json=self.transfer() if body is None else body, **more)

    def wait(self, id: str, until: Callable[[dict[str, Any]], bool] | None = None) -> dict[str, Any]:
        """Wait until a job has ended, or something else is true of it."""
        end = time.monotonic() + 60
        while time.monotonic() < end:
            job: dict[str, Any] = self.client.get(f"/api/jobs/{id}").json()
            if until(job) if until else job["state"] in ENDED:
                return job
            time.sleep(0.02)
        raise AssertionError(f"the job does not end: {job}")

    def events(self, id: str) -> list[tuple[str, dict[str, Any]]]:
        """Follow a job to its end: (id, job) of each event."""
        found, number = [], ""
        with self.client.stream("GET", f"/api/jobs/{id}/events", timeout=60) as answer:
            for line in answer.iter_lines():
                if line.startswith("id: "):
                    number = line.removeprefix("id: ")
                    found[-1] = number, found[-1][1]
                elif line.startswith("data: "):
                    found.append((number, json.loads(line.removeprefix("data: "))))
        return found


def png(width: int = 64, height: int = 48, seed: int = 0) -> bytes:
    """Return a small PNG file."""
    image = Image.radial_gradient("L").resize((width, height)).convert("RGB")
    image.putpixel((0, 0), (seed % 256, 17, 200))
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


@contextmanager
def serving(
    folder: Path,
    load: Callable[[], Backbone],
    limits: Limits | None = None,
    token: str | None = None,
    *,
    wait: bool = True,
) -> Iterator[Served]:
    """Serve a studio until the end of the block; `wait` until its model is loaded."""
    studio = Studio(folder, load, limits or Limits(jobs_per_person=100, queue=100))
    prepare(folder)
    studio.start()
    listener = listen("127.0.0.1", 0)
    address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    app = make_app(studio, token=token, page=stand_in)
    ready, stop = threading.Event(), threading.Event()
    thread = threading.Thread(target=run_server, args=(app, listener, studio.jobs, ready.set, stop))
    thread.start()
    headers = PERSON if token is None else PERSON | {"Authorization": f"Bearer {token}"}
    try:
        assert ready.wait(60)
        with httpx.Client(base_url=address, headers=headers, timeout=60) as client:
            end = time.monotonic() + 60
            while wait and client.get("/healthz").status_code != 200:
                assert time.monotonic() < end
                time.sleep(0.02)
            yield Served(studio, address, client, app)
    finally:
        stop.set()
        thread.join(30)
        studio.close()
