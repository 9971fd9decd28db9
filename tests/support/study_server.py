"""A folder of compared pictures, and a study server in its own process."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from PIL import Image, PngImagePlugin

PHOTOS, PAINTINGS, OTHERS = ("bridge", "castle"), ("night", "tulips"), ("adain", "gatys")


def write_comparison(folder: Path, photos: tuple[str, ...] = PHOTOS, paintings: tuple[str, ...] = PAINTINGS) -> Path:
    """Write a folder of compared pictures. Each has its own single colour, and a text that names the method."""
    names = [("photos", name) for name in photos] + [("paintings", name) for name in paintings]
    names += [(method, f"{a}__{b}") for method in ("inst", *OTHERS) for a in photos for b in paintings]
    for number, (kind, name) in enumerate(names):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        info = PngImagePlugin.PngInfo()
        info.add_text("method", kind)
        size = (96, 96) if kind == "gatys" else (120, 80)
        Image.new("RGB", size, (5 * number, 255 - 5 * number, 128)).save(folder / kind / f"{name}.png", pnginfo=info)
    return folder


@dataclass
class Served:
    """A study server in its own process."""

    process: subprocess.Popen[str]
    page: str
    admin: str

    def ask(self, path: str, token: str = "", body: object = None, **headers: str) -> tuple[int, Any]:
        """Return the status, and the JSON or bytes of the answer."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        request = Request(self.page + path, data, {"Authorization": f"Bearer {token}"} | headers)
        try:
            with urlopen(request, timeout=30) as answer:
                content = answer.read()
                return answer.status, json.loads(content) if "json" in answer.headers["Content-Type"] else content
        except HTTPError as error:
            content = error.read()
            return error.code, json.loads(content) if "json" in error.headers["Content-Type"] else content

    def begin(self, token: str) -> Any:
        return self.ask("api/begin", token, {})[1]

    def vote(self, token: str, position: int, choice: str, key: str, seconds: object = 2.5) -> tuple[int, Any]:
        return self.ask("api/vote", token, {"key": key, "position": position, "choice": choice, "seconds": seconds})

    def stop(self, number: int) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout=30)


@contextmanager
def served(path: Path, port: int = 0) -> Iterator[Served]:
    """Serve a study until the end of the block."""
    program = "import sys; from inst.cli import main; sys.argv[0] = 'inst'; main()"
    arguments = ["study", "serve", str(path), "--port", str(port), "--json"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(one for one in sys.path if one)}
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    try:
        yield Served(process, **json.loads(process.stdout.readline()))
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
