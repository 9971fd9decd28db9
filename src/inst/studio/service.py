"""The HTTP service of the studio: its routes, its errors, and what stands around them."""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

from inst.errors import InstError, UsageError, use_wording
from inst.studio import gradio_mount, job_routes, style_routes
from inst.studio.addresses import Addresses
from inst.studio.answers import json_wording, problem
from inst.studio.bodies import Bodies
from inst.studio.dependencies import TheMetrics, TheStudio
from inst.studio.disk import NoSpace, NotKept
from inst.studio.early_script import EarlyScript
from inst.studio.gradio_mount import PageBuilder, PageGuard, early_scripts, mount_page
from inst.studio.guard import Guard
from inst.studio.headers import SecurityHeaders
from inst.studio.job_routes import NotAPicture
from inst.studio.jobs import Refused, UnknownJob
from inst.studio.library import UnknownStyle
from inst.studio.logs import log_job
from inst.studio.metrics import Counted, Metrics, route_of
from inst.studio.people import People
from inst.studio.streams import Streams
from inst.studio.studio import Studio
from inst.studio.uploads import TooLarge
from inst.version import __version__

_log = logging.getLogger(__name__)

_ABOUT = """Turn paintings into styles, and photos into paintings, with the same jobs as the studio's page.

Upload pictures, submit a job that names them, follow it, and download its files. Every error is JSON with one line:
`{"error": "..."}`.

Your uploads and jobs are yours by a name that you choose: send the same random text (8 to 64 letters, digits, - and _)
as the header `X-Inst-Person` with every request. Whoever knows it sees your jobs. Without it, they belong to your
address.

If the studio was started with a token, send it as `Authorization: Bearer TOKEN`.
"""

_STATUS: tuple[tuple[type[InstError], int], ...] = (
    (UnknownJob, 404),
    (UnknownStyle, 404),
    (TooLarge, 413),
    (NotAPicture, 415),
    (NoSpace, 507),
    (NotKept, 500),
    (UsageError, 422),
    (InstError, 400),
)
"""Statuses of errors; the first that fits is taken."""


class Health(BaseModel):
    """Whether the studio works."""

    status: str
    version: str


def make_app(studio: Studio, *, token: str | None = None, page: PageBuilder | None = None) -> FastAPI:
    """Return the service of a studio, with its page. The studio is closed when the service stops.

    Call `inst.studio.gradio_mount.prepare` first.

    Args:
        studio: what is served.
        token: what requests must know (`inst.studio.guard`); None serves this computer only.
        page: makes the page; None for the studio's own.
    """
    metrics = Metrics(studio.jobs)
    studio.jobs.listeners.append(log_job)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        studio.jobs.stop()

    app = FastAPI(
        title="InST studio",
        version=__version__,
        description=_ABOUT,
        docs_url=None,  # their pages come from another host
        redoc_url=None,
        lifespan=lifespan,
        # The first is the outermost.
        middleware=[
            Middleware(Counted, metrics=metrics),
            Middleware(SecurityHeaders),
            Middleware(Addresses, refused=metrics.refused),
            Middleware(Bodies, limits=studio.limits, refused=metrics.refused),
            Middleware(Guard, token=token, refused=metrics.refused),
            Middleware(PageGuard, folder=studio.folder, refused=metrics.refused),
            Middleware(People),
            Middleware(EarlyScript, scripts={} if page else early_scripts()),
            Middleware(Streams, refused=metrics.refused),
        ],
        exception_handlers={
            InstError: _user_error,
            RequestValidationError: _wrong_form,
            HTTPException: _http_error,
            Exception: _bug,
        },
    )
    app.state.studio, app.state.metrics = studio, metrics
    app.get(
        "/healthz",
        tags=["server"],
        summary="Whether the model is loaded",
        responses={503: {"model": Health, "description": "It is loading, cannot be loaded, or does no jobs any more."}},
    )(health)
    app.get("/metrics", tags=["server"], summary="Metrics for Prometheus", response_class=Response)(show_metrics)
    app.include_router(job_routes.router)
    app.include_router(style_routes.router)
    app.include_router(gradio_mount.router)
    mount_page(app, studio, page)
    return app


async def health(studio: TheStudio, response: Response) -> Health:
    """Needs no token."""
    status = "loading" if not studio.is_ready else "ready" if studio.jobs.is_alive else "stopped"
    if status != "ready":
        response.status_code = 503
    return Health(status=status, version=__version__)


def show_metrics(metrics: TheMetrics) -> Response:
    """Jobs, queue, uploads, refusals, answers and memory, as text."""
    return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def _user_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, InstError)
    with use_wording(json_wording):
        line = str(error)
    if isinstance(error, Refused):
        request.app.state.metrics.refused(error.reason)
        _note(request, 429, error.reason)
        return problem(429, line, {"Retry-After": str(error.retry_after)})
    if isinstance(error, NoSpace):
        request.app.state.metrics.refused("disk")
    # Readers must not see where the studio keeps its files.
    folder = str(request.app.state.studio.folder.resolve())
    line = re.sub(re.escape(folder) + r"[^\s:;,()'\"]*", "The file", line)
    status = next(status for kind, status in _STATUS if isinstance(error, kind))
    _note(request, status)
    return problem(status, line)


async def _wrong_form(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if part != "body")
    text = first["msg"].removeprefix("Value error, ")
    _note(request, 422)
    return problem(422, f"{place}: {text}" if place else text)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    _note(request, error.status_code)
    return problem(error.status_code, str(error.detail), error.headers)


async def _bug(request: Request, error: Exception) -> Response:
    _log.error("request failed", exc_info=error, extra={"route": route_of(request.scope), "status": 500})
    return problem(500, f"Something went wrong that should not ({type(error).__name__}). The server's log has more.")


def _note(request: Request, status: int, reason: str | None = None) -> None:
    extra = {"method": request.method, "route": route_of(request.scope), "status": status}
    _log.info("request refused", extra=extra if reason is None else extra | {"reason": reason})
