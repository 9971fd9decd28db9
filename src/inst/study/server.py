"""The study's web server: the page for participants, the admin page, and their requests."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from inst.errors import InstError
from inst.listening import listen, page_address
from inst.serving import WEB_LOGS, Server, write_logs
from inst.study import sessions, tables
from inst.study.begins import Begins
from inst.study.database import Database
from inst.texts import one_line

_log = logging.getLogger(__name__)

_PAGE = Path(str(files("inst.study") / "page"))
_LARGEST_REQUEST = 16 * 1024
_REQUEST_SECONDS = 60.0  # a phone may be without a connection for a while
_FOREVER = "private, max-age=604800, immutable"

_HEADERS = {
    # Only this server's own files: no inline scripts or styles, no frames, no other sites.
    "Content-Security-Policy": (
        "default-src 'none'; img-src 'self'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "X-Robots-Tag": "noindex",
}


class _SecurityHeaders:
    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = {name.lower() for name, _ in message["headers"]}
                more = {"Cache-Control": "no-store"} | _HEADERS
                message["headers"] = [
                    *message["headers"],
                    *((k.lower().encode(), v.encode()) for k, v in more.items() if k.lower().encode() not in given),
                ]
            await send(message)

        await self.app(scope, receive, send_with_headers if scope["type"] == "http" else send)


def make_app(database: Database) -> Starlette:
    """Return the web application of a study.

    Participants: `GET api/study`, `POST api/begin`, `GET api/session`, `POST api/vote`, `POST api/ranking`,
    `GET pictures/KEY`. A random token in the Authorization header identifies a participant. Unlike a cookie, it is not
    sent automatically, so other web pages cannot vote. Admin: `GET api/admin/...` with the admin token in that header.
    """
    admin_token = database.settings().admin_token
    begins = Begins()

    def page(name: str) -> Callable[[Request], Awaitable[Response]]:
        async def answer(_: Request) -> Response:
            return FileResponse(_PAGE / name, headers={"Cache-Control": "no-cache"})

        return answer

    async def study(_: Request) -> Response:
        return JSONResponse(await run_in_threadpool(sessions.describe_study, database))

    async def begin(request: Request) -> Response:
        address = request.client.host if request.client else ""
        await run_in_threadpool(sessions.begin, database, _bearer(request), begins, address)
        return await session(request)

    async def session(request: Request) -> Response:
        content = await run_in_threadpool(sessions.describe_session, database, _bearer(request))
        if content is None:
            raise sessions.Refused(401, "no participant has this token")
        return JSONResponse(content)

    async def vote(request: Request) -> Response:
        values = await _read_values(request, "key", "position", "choice", "seconds")
        new = await run_in_threadpool(sessions.vote, database, _bearer(request), *values)
        return JSONResponse({"saved": True, "new": new})

    async def ranking(request: Request) -> Response:
        await run_in_threadpool(sessions.rank, database, _bearer(request), *await _read_values(request, "ranking"))
        begins.finished(_bearer(request))
        return JSONResponse({"saved": True})

    async def picture(request: Request) -> Response:
        key = request.path_params["key"]
        data = await run_in_threadpool(database.value, "SELECT data FROM pictures WHERE key = ?", key)
        if data is None:
            raise HTTPException(404)
        return Response(data, media_type="image/webp", headers={"Cache-Control": _FOREVER})

    async def admin(request: Request) -> Response:
        if not secrets.compare_digest(_bearer(request).encode(), admin_token.encode()):
            raise sessions.Refused(401, "this is not the admin token")
        match request.path_params["what"]:
            case "progress":
                return JSONResponse(await run_in_threadpool(tables.progress, database))
            case "answers.csv":
                content = await run_in_threadpool(tables.answers_csv, database)
            case "rankings.csv":
                content = await run_in_threadpool(tables.rankings_csv, database)
            case _:
                raise HTTPException(404)
        return Response(content, media_type="text/csv")

    async def refuse(_: Request, error: Exception) -> Response:
        assert isinstance(error, sessions.Refused)
        return JSONResponse({"error": str(error)}, error.status)

    async def not_saved(_: Request, error: Exception) -> Response:
        _log.warning("not saved: %s", one_line(str(error)))
        return JSONResponse({"error": f"not saved: {error}"}, 503)

    async def gone(_: Request, error: Exception) -> Response:
        return Response(status_code=400)  # nobody reads it: the client has left in the middle of its request

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        database.close()

    return Starlette(
        routes=[
            Route("/", page("index.html")),
            Route("/admin", page("admin.html")),
            Route("/api/study", study),
            Route("/api/begin", begin, methods=["POST"]),
            Route("/api/session", session),
            Route("/api/vote", vote, methods=["POST"]),
            Route("/api/ranking", ranking, methods=["POST"]),
            Route("/api/admin/{what}", admin),
            Route("/pictures/{key}", picture),
            Mount("/page", StaticFiles(directory=_PAGE)),
        ],
        middleware=[Middleware(_SecurityHeaders)],
        exception_handlers={sessions.Refused: refuse, sqlite3.Error: not_saved, ClientDisconnect: gone},
        lifespan=lifespan,
    )


def serve(database: Database, ready: Callable[[str], None], *, host: str = "127.0.0.1", port: int = 8400) -> None:
    """Serve a study until the process is stopped. Addresses of participants are not stored or logged.

    Slow connections, too many of them, and sessions that begin without an end are refused (`inst.serving`,
    `inst.study.begins`).

    Args:
        database: the study; it is closed at the end.
        ready: called with the page's address when the server listens.
        host: address to listen on; "0.0.0.0" means all addresses of this computer.
        port: port to listen on; 0 chooses a free port.

    Raises:
        UsageError: the port or the host cannot be used.
        InstError: the server cannot listen on the address and port, or the file cannot be written to.
    """
    listener = listen(host, port)
    try:
        database.write_ahead()
    except sqlite3.Error as error:
        listener.close()
        raise InstError(f"{database.path} cannot be written ({error})", "change its permissions, or copy it") from None
    write_logs(WEB_LOGS | {"inst.study": logging.WARNING})
    ready(page_address(host, listener))
    Server(make_app(database)).run(sockets=[listener])


def _bearer(request: Request) -> str:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token if scheme.lower() == "bearer" else ""


async def _read_values(request: Request, *names: str) -> list[Any]:
    """Read the request's JSON object, which must be small, and return its values with these names."""
    body = b""
    try:
        async with asyncio.timeout(_REQUEST_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > _LARGEST_REQUEST:
                    raise sessions.Refused(413, "the request is too large")
    except TimeoutError:
        raise sessions.Refused(408, "the request comes too slowly") from None
    try:
        content = json.loads(body)
        return [content[name] for name in names]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise sessions.Refused(400, f"the request must be a JSON object with {', '.join(names)}") from None
