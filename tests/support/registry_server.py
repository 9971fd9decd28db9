"""A package index on this machine, with one tiny source distribution."""

import errno
import hashlib
import io
import json
import os
import pickle
import tarfile
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from local_server import SilentHandler, serving

FILENAME = "tiny_weights-1.0.tar.gz"
MEMBER = "tiny_weights-1.0/tiny_weights/net.ckpt"


def sdist(canary: Path, payload: bytes | None = None) -> bytes:
    """Return a source distribution whose setup.py writes `canary` if it is run."""
    if payload is None:
        kernel = np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4)
        payload = pickle.dumps({"net": {"kernel": kernel, "bias": np.ones(4, np.float32)}}, protocol=3)
    members = {
        "tiny_weights-1.0/setup.py": f"open({str(canary)!r}, 'w').write('run')\n".encode(),
        "tiny_weights-1.0/pyproject.toml": b'[build-system]\nrequires = ["setuptools"]\n',
        MEMBER: payload,
    }
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


class FullDisk(io.BytesIO):
    """A file on a full disk."""

    def write(self, data: object, /) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Index:
    """The content and the behaviour of the server. Tests change the attributes."""

    def __init__(self, archive: bytes) -> None:
        self.archive = archive
        self.form = "json"
        """The form of the page: json, html or html-without-hash."""
        self.stated_sha256 = hashlib.sha256(archive).hexdigest()
        self.cut_after: int | None = None
        """The connection closes after this number of bytes of the archive."""
        self.login: tuple[str, str] | None = None
        self.files_at = ""
        """The address of the files on the page; this server if empty."""
        self.address = ""
        self.requests: list[tuple[str, str | None]] = []
        """The path and the Authorization header of each request."""

    def page(self) -> tuple[str, bytes]:
        url = f"{self.files_at}/files/{FILENAME}"
        if self.form == "json":
            files = [{"filename": FILENAME, "url": url, "hashes": {"sha256": self.stated_sha256}}]
            return "application/vnd.pypi.simple.v1+json", json.dumps({"name": "tiny-weights", "files": files}).encode()
        fragment = "" if self.form == "html-without-hash" else f"#sha256={self.stated_sha256}"
        html = f'<!DOCTYPE html><html><body><a href="{url}{fragment}">{FILENAME}</a></body></html>'
        return "text/html", html.encode()


@contextmanager
def serve(index: Index) -> Iterator[str]:
    """Serve until the end of the block. Yields the address of the simple index."""

    class Handler(SilentHandler):
        def do_GET(self) -> None:
            index.requests.append((self.path, self.headers.get("Authorization")))
            if index.login and self.headers.get("Authorization") != _basic(*index.login):
                self.send_response(401)
                self.send_header("WWW-Authenticate", 'Basic realm="index"')
                self.end_headers()
            elif self.path == "/simple/tiny-weights/":
                self.answer(*index.page())
            elif self.path == f"/files/{FILENAME}":
                self.answer("application/gzip", index.archive, index.cut_after)
            else:
                self.send_error(404)

        def answer(self, kind: str, body: bytes, cut_after: int | None = None) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[:cut_after])

    with serving(Handler) as index.address:
        yield f"http://{index.address}/simple"


def _basic(user: str, password: str) -> str:
    return "Basic " + b64encode(f"{user}:{password}".encode()).decode()
