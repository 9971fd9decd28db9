"""A model hub on this machine, with the part of the interface that huggingface_hub needs to download a model."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from local_server import SilentHandler, serving


def read_tree(folder: Path) -> dict[str, bytes]:
    """Return the files of a folder by relative path, as in a repository."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@dataclass
class Hub:
    """The content and the behaviour of the server. Tests change the attributes."""

    files: dict[str, bytes]
    name: str = "someone/tiny"
    commit: str = "0123456789abcdef0123456789abcdef01234567"
    next_commit: str | None = None
    """The model changes to this commit after its files have been listed."""
    revisions: tuple[str, ...] = ("main", "v1.0")
    token: str | None = None
    """If set, only requests with this token can read the model."""
    gated: bool = False
    status: int | None = None
    """If set, every request gets this status."""
    broken: set[str] = field(default_factory=set)
    """Names of files during whose download the connection closes."""
    requests: list[str] = field(default_factory=list)
    address: str = ""

    @property
    def fetched(self) -> list[str]:
        """The files whose content was requested."""
        return sorted(
            path.split("/", 5)[5] for path in self.requests if path.startswith("GET /") and "/resolve/" in path
        )


@contextmanager
def serve(hub: Hub) -> Iterator[str]:
    """Serve until the end of the block. Yields the address for HF_ENDPOINT."""

    class Handler(SilentHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append(f"{self.command} {path}")
            api, files = f"/api/models/{hub.name}", f"/{hub.name}/resolve/"
            if hub.status:
                self.refuse(hub.status)
            elif not path.startswith((f"{api}/", files)) and path != api:
                self.refuse(401, "RepoNotFound")  # as the hub does, to hide private models
            elif hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
                self.refuse(401, "RepoNotFound")
            elif path.startswith(files):
                revision, _, file = path.removeprefix(files).partition("/")
                if hub.gated:
                    self.refuse(403, "GatedRepo")
                elif file not in hub.files:
                    self.refuse(404, "EntryNotFound")
                else:
                    self.send_file(file, revision if len(revision) == 40 else hub.commit)
            else:
                revision = path.removeprefix(api).removeprefix("/revision/").removeprefix("/tree/") or "main"
                if revision not in hub.revisions and len(revision) != 40:
                    self.refuse(404, "RevisionNotFound")
                elif "/tree/" in path:
                    entries = [self.entry(file) for file in sorted(hub.files)]
                    self.answer(json.dumps(entries).encode())
                else:
                    siblings = [{"rfilename": file, "size": len(hub.files[file])} for file in sorted(hub.files)]
                    info = {"_id": "1", "id": hub.name, "modelId": hub.name, "sha": hub.commit, "siblings": siblings}
                    self.answer(json.dumps(info | {"private": False, "tags": [], "downloads": 0, "likes": 0}).encode())
                    hub.commit, hub.next_commit = hub.next_commit or hub.commit, None

        def entry(self, file: str) -> dict[str, object]:
            content = hub.files[file]
            return {"type": "file", "path": file, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}

        def send_file(self, file: str, commit: str) -> None:
            content = hub.files[file]
            self.send_response(200)
            self.send_header("X-Repo-Commit", commit)
            self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content[: len(content) // 2] if file in hub.broken else content)

        def answer(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def refuse(self, status: int, code: str | None = None) -> None:
            self.send_response(status)
            if code:
                self.send_header("X-Error-Code", code)
                self.send_header("X-Error-Message", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

    with serving(Handler) as place:
        hub.address = f"http://{place}"
        yield hub.address
