"""The page inside the service: where Gradio keeps its files, and which of its routes are open."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import aclosing
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Literal

from fastapi import APIRouter, FastAPI, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from inst.errors import InstError, UsageError
from inst.files.writing import make_folder
from inst.studio.answers import problem
from inst.studio.bodies import FILES_AT_ONCE
from inst.studio.dependencies import TheMetrics, TheStudio
from inst.studio.disk import NoSpace, NotKept, kept_errors
from inst.studio.editors import Editors
from inst.studio.multipart import form_with_file, received
from inst.studio.people import person_of
from inst.studio.studio import Studio
from inst.studio.uploads import Receiver, TooLarge

if TYPE_CHECKING:
    import gradio

_log = logging.getLogger(__name__)

Language = Literal["en", "zh"]
PageBuilder = Callable[[Studio, Language], "gradio.Blocks"]

_PAGES = ("/en", "/zh")
# What the page and gradio_client need. Left out, among others: /proxy= and /file=http, with which the server would
# fetch from other hosts; deep links, recordings and streams, which write files; monitoring and development.
_OPEN = {
    "GET": re.compile(
        r"/?|/(config|theme\.css|favicon\.ico|robots\.txt|manifest\.json)/?|/(assets|static|svelte)/.*|/gradio_api/("
        r"(info|app_id|startup-events|upload_progress|queue/(data|status))/?|heartbeat/\w+|call/\w+/\w+|file=.*)",
        re.DOTALL,
    ),
    "POST": re.compile(
        r"/gradio_api/(upload|component_server|(queue/join|cancel|reset)/?|(run|call|call/v2)/\w+/?)",
    ),
}
_FORMS = ("/gradio_api/upload", "/gradio_api/component_server")  # a / at the end would be Gradio's own routes
_UPLOADS = "uploads"
_STYLES = (".safetensors", ".pt", ".pth", ".bin")
_STATUS: dict[type[InstError], int] = {TooLarge: 413, NoSpace: 507, NotKept: 500}
_FILE = "/gradio_api/file="

_MOST_PATHS = 64  # of one request of the page
_SESSION = re.compile(r"[\w.-]{1,100}", re.ASCII)
_QUEUED, _QUEUED_PER_JOB = 100, 4  # calls of the page that may wait
_LOOK_SECONDS, _TELL_SECONDS = 0.02, 0.1
"""Seconds between two looks of Gradio's queues for a call, and for progress."""

router = APIRouter(include_in_schema=False)
"""The routes that come before Gradio's."""


def page_files(folder: Path) -> Path:
    """Return the folder of Gradio's files in the data folder. Everything in it can be made again."""
    return folder.resolve() / "page"


def prepare(folder: Path) -> None:
    """Give Gradio its folder, empty, and let it speak to nobody. Call this before `gradio` is imported.

    Raises:
        InstError: the folder cannot be made.
    """
    files = page_files(folder)
    shutil.rmtree(files, ignore_errors=True)
    make_folder(files / _UPLOADS)
    os.environ |= {
        "GRADIO_TEMP_DIR": str(files),
        "GRADIO_EXAMPLES_CACHE": str(files / "examples"),
        "GRADIO_ANALYTICS_ENABLED": "False",
        "GRADIO_RUN_HISTORY": "False",
        "GRADIO_SSR_MODE": "False",
        "GRADIO_MCP_SERVER": "False",
    }


def mount_page(app: FastAPI, studio: Studio, build: PageBuilder | None) -> None:
    """Mount the page in both languages at /en and /zh.

    Args:
        app: the app of the service.
        studio: what the page shows.
        build: makes the page; None for the studio's own.
    """
    import gradio

    appearance: dict[str, Any] = {}
    if build is None:
        from inst.studio.page.shell import build_page, look

        build, appearance = build_page, look()
    languages: tuple[Language, ...] = ("en", "zh")
    app.state.pages, app.state.editors = {}, Editors()
    for language in languages:
        page = build(studio, language)
        page.queue(max_size=_QUEUED_PER_JOB * studio.limits.queue + _QUEUED)
        # By itself, each looks a thousand times a second, and takes time from the pictures even if nobody is here.
        page._queue.sleep_when_free, page._queue.progress_update_sleep_when_free = _LOOK_SECONDS, _TELL_SECONDS
        app.state.pages[language] = page
        page.has_launched = True  # Gradio checks paths of files only then, and does not set it when it is mounted
        gradio.mount_gradio_app(
            app,
            page,
            path=f"/{language}",
            # Handlers return files of jobs. Gradio copies them into its folder and gives the copies to the browser.
            allowed_paths=[str(studio.folder.resolve() / "jobs"), str(studio.uploads.folder)],
            max_file_size=studio.limits.upload_bytes,
            footer_links=[],
            run_history=False,
            ssr_mode=False,
            mcp_server=False,
            show_error=True,
            **appearance,
        )


def early_scripts() -> dict[str, str]:
    """Return the scripts that must run before Gradio's own, by language."""
    from inst.studio.page.shell import early_script

    return {"en": early_script("en"), "zh": early_script("zh")}


@router.get("/")
async def choose_language(request: Request) -> Response:
    """Send a visitor to the page in their language."""
    given = request.scope["query_string"].decode("latin-1")
    query = f"?{given}" if given else ""
    return RedirectResponse(f"/{_language(request.headers.get('Accept-Language', ''))}/{query}", 307)


@router.get("/favicon.ico")
async def icon() -> Response:
    """Say that there is none: browsers ask every server for it."""
    return Response(status_code=204, headers={"Cache-Control": "private, max-age=86400"})


@router.get("/manifest.json")
async def manifest() -> Response:
    """Give the page the name that Gradio's page asks for at this address."""
    return JSONResponse({"name": "InST studio", "start_url": "/", "display": "browser", "icons": []})


@router.post("/{language}/gradio_api/upload")
async def upload(
    request: Request, studio: TheStudio, metrics: TheMetrics, language: Language, upload_id: str | None = None
) -> Response:
    """Take the place of Gradio's route, which keeps files under the names that people gave them."""
    from gradio.routes import file_upload_statuses

    if upload_id is not None:  # the page asks how far it is
        file_upload_statuses.track(upload_id)
    paths: list[str] = []
    try:
        await run_in_threadpool(studio.disk.check)
        async with aclosing(received(request, studio.uploads, "files")) as files:
            async for name, receiver in files:
                if len(paths) == FILES_AT_ONCE:
                    raise UsageError(f"These are more than {FILES_AT_ONCE} files", "choose fewer")
                kept = await run_in_threadpool(_keep, studio, person_of(request), receiver, name)
                paths.append(str(kept))
                studio.disk.add(receiver.size)
                metrics.upload_bytes.inc(receiver.size)
    except InstError as error:
        status = _status_of(error, 422)
        _log.info("request refused", extra={"reason": "upload", "status": status})
        from inst.studio.page.problems import told
        from inst.studio.page.texts import TEXTS

        return PlainTextResponse(told(TEXTS[language], error), status)
    finally:
        if upload_id is not None:
            file_upload_statuses.set_done(upload_id)
    return JSONResponse(paths)


@router.post("/{language}/gradio_api/component_server")
async def component_server(request: Request, studio: TheStudio, language: Language) -> Response:
    """Take the place of Gradio's route, which calls any function of a component and keeps what it gets for ever."""
    state = request.app.state
    try:
        async with form_with_file(request, studio.uploads, "file") as (fields, receiver):
            await run_in_threadpool(studio.uploads.check_picture, receiver)
            data = await run_in_threadpool(receiver.path.read_bytes)
            state.editors.take(state.pages[language], fields, data)
    except InstError as error:
        status = _status_of(error, 400)
        _log.info("request refused", extra={"reason": "editor", "status": status})
        return problem(status, str(error))
    return JSONResponse(None)


def _keep(studio: Studio, person: str, receiver: Receiver, name: str) -> Path:
    """Keep a file, and return a second name of it in Gradio's own folder, where Gradio may delete it.

    Whoever knows that name gets the file, and the hash in it is in the record of every picture that is given away. So
    the name has a part that nobody can know.
    """
    folder = page_files(studio.folder) / _UPLOADS / secrets.token_hex(16)
    if PurePath(name).suffix.lower() in _STYLES:  # among the uploads, it might be taken for a picture
        source, path = receiver.path, folder / f"{receiver.digest()}{studio.uploads.check_style(receiver, name)}"
    else:
        source = studio.uploads.keep_shown(receiver, person).path
        path = folder / source.name
    with kept_errors():
        folder.mkdir()
        os.link(source, path)
    return path


def _status_of(error: InstError, otherwise: int) -> int:
    return next((status for kind, status in _STATUS.items() if isinstance(error, kind)), otherwise)


def _language(accepted: str) -> Language:
    """Return the first language of Accept-Language that the page has."""
    for part in accepted.lower().split(","):
        for language in ("zh", "en"):
            if part.strip().startswith(language):
                return "zh" if language == "zh" else "en"
    return "en"


class PageGuard:
    """ASGI middleware that closes those routes of Gradio that the page does not use.

    Args:
        app: what it guards.
        folder: the data folder. Only Gradio's files in it are given out.
        refused: called with the reason of each refusal: "closed", "file" or "json".
    """

    def __init__(self, app: ASGIApp, folder: Path, refused: Callable[[str], None]) -> None:
        self._app = app
        self._files = page_files(folder)
        self._refused = refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(_PAGES):
            await self._app(scope, receive, send)
            return
        rest, method = scope["path"][len(_PAGES[0]) :], "GET" if scope["method"] == "HEAD" else scope["method"]
        is_open = method in _OPEN and _OPEN[method].fullmatch(rest)
        if not is_open or (rest in ("", "/") and "deep_link=" in scope["query_string"].decode("latin-1")):
            await self._refuse("closed", 404, "There is nothing here.")(scope, receive, send)
        elif rest.startswith(_FILE) and not self._is_shown(rest.removeprefix(_FILE)):
            await self._refuse("file", 403, "This file is not shown.")(scope, receive, send)
        elif method == "POST" and rest not in _FORMS:
            await self._check_payload(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _is_shown(self, path: str) -> bool:
        """Whether a path, which may be any text, is that of one of Gradio's files."""
        with contextlib.suppress(ValueError, OSError):
            return Path(path).is_absolute() and Path(path).resolve().is_relative_to(self._files)
        return False

    async def _check_payload(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse files that were not uploaded: Gradio would read any file here, or fetch it from an address."""
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return
            body, more = body + message.get("body", b""), message.get("more_body", False)
        try:
            content = json.loads(body or b"{}")
            json.dumps(content, ensure_ascii=False).encode()  # half of a letter (\ud800) would fail later
            paths = list(_paths_in(content))
        except (ValueError, RecursionError):
            await self._refuse("json", 400, "The request is not JSON.")(scope, receive, send)
            return
        if len(paths) > _MOST_PATHS:
            await self._refuse("file", 400, f"The request names more than {_MOST_PATHS} files.")(scope, receive, send)
            return
        if not await run_in_threadpool(_has_form, scope, content):
            await self._refuse("json", 400, "The request is not one of the page.")(scope, receive, send)
            return
        if not all(isinstance(path, str) and self._is_shown(path) for path in paths):
            await self._refuse("file", 400, "A file must be uploaded first.")(scope, receive, send)
            return
        given = False

        async def receive_again() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, receive_again, send)

    def _refuse(self, reason: str, status: int, line: str) -> Response:
        self._refused(reason)
        _log.warning("request refused", extra={"reason": reason, "status": status})
        return problem(status, line)


def _paths_in(value: Any) -> Iterator[Any]:
    """Yield the paths of all files in a JSON value, which are objects with a path."""
    if isinstance(value, dict):
        if value.get("path"):
            yield value["path"]
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from _paths_in(one)


def _has_form(scope: Scope, content: Any) -> bool:
    """Whether the page has what a call of Gradio's names. Gradio's own errors are those of a bug."""
    if not isinstance(content, dict):
        return False
    _, language, _, kind, *rest = scope["path"].rstrip("/").split("/")
    session, number = content.get("session_hash"), content.get("fn_index")
    if session is not None and not (isinstance(session, str) and _SESSION.fullmatch(session)):
        return False
    if kind in ("cancel", "reset"):
        return True
    page = scope["app"].state.pages[language]
    if kind == "queue":
        return isinstance(content.get("data"), list) and type(number) is int and number in page.fns
    names = {call.api_name for call in page.fns.values() if isinstance(call.api_name, str)}
    name = rest[-1]
    if rest[0] == "v2" and len(rest) == 2:
        return name in names and _fits(page, f"/{name}", content)
    if type(number) is int:
        return number in page.fns
    return number is None and name in names


def _fits(page: Any, name: str, content: dict[str, Any]) -> bool:
    """Whether an object has the arguments of a named function."""
    known = page.get_api_info()["named_endpoints"].get(name)
    if known is None:
        return False
    parameters = {one["parameter_name"]: one["parameter_has_default"] for one in known["parameters"]}
    needed = {one for one, has_default in parameters.items() if not has_default}
    return needed <= content.keys() <= parameters.keys() | {"oauth_token", "session_hash"}
