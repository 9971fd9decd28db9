"""Routes of uploads and jobs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request, Response
from fastapi import Path as InPath
from fastapi.sse import EventSourceResponse, ServerSentEvent
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, StreamingResponse

from inst.errors import InstError, UsageError
from inst.files.provenance import base_name
from inst.studio.answers import JobAnswer, Problem, UploadAnswer, download_name, files_of, job_answer
from inst.studio.archive import zipped
from inst.studio.dependencies import Mine, Person, TheMetrics, TheStudio
from inst.studio.disk import NoSpace, NotKept
from inst.studio.jobs import Wish
from inst.studio.multipart import received
from inst.studio.requests import GenerateRequest, LearnRequest, SheetRequest, TransferRequest
from inst.studio.requests import Request as JobRequest
from inst.studio.studio import Studio
from inst.studio.uploads import PICTURE_FORMATS, Receiver

Responses = dict[int | str, dict[str, Any]]

_LONGEST_NAME = 200
_UNKNOWN: Responses = {404: {"model": Problem, "description": "There is no such job of yours."}}
_SUBMIT: Responses = {
    422: {"model": Problem, "description": "A value is wrong, or an upload or a style is not there."},
    429: {"model": Problem, "description": "The queue is full; the header Retry-After says when to try again."},
    507: {"model": Problem, "description": "The studio's disk is full."},
}
_FULL: Responses = {429: {"model": Problem, "description": "The queue is full, or too many jobs are paused."}}
_SUBMITTED = "The job waits for its turn. Follow it at the address in the header Location."
_SOON = "It takes effect before the job's next step. A job that has ended stays as it is."

router = APIRouter()


class NotAPicture(InstError):
    """An upload that is no picture in one of the formats that are taken."""


def file_form(what: str) -> dict[str, Any]:
    """Return the documentation of a form with one file, which a route reads as a stream."""
    field = {"type": "string", "format": "binary", "description": what}
    schema = {"type": "object", "required": ["file"], "properties": {"file": field}}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


def bytes_of(kind: str) -> Responses:
    """Return the documentation of an answer that is a file."""
    return {200: {"content": {kind: {"schema": {"type": "string", "format": "binary"}}}}}


@router.post(
    "/api/uploads",
    tags=["uploads"],
    status_code=201,
    summary="Upload a picture",
    responses={
        413: {"model": Problem, "description": "The file is too large."},
        415: {"model": Problem, "description": "The file is no picture, or it is damaged."},
        422: {"model": Problem, "description": "The picture has too many pixels, or the form is wrong."},
        507: {"model": Problem, "description": "The studio's disk is full."},
    },
    openapi_extra=file_form("PNG, JPEG, WebP, TIFF, BMP or GIF."),
)
async def upload(request: Request, studio: TheStudio, person: Person, metrics: TheMetrics) -> UploadAnswer:
    """Send a picture in the field `file` of a form. Name the returned key in requests.

    Only whoever uploaded it can name it. It is kept for some days after its last use.
    """
    await run_in_threadpool(studio.disk.check)
    async with aclosing(received(request, studio.uploads, "file")) as files:
        async for name, receiver in files:
            answer = await run_in_threadpool(_keep, studio, person, receiver, name)
            studio.disk.add(receiver.size)
            metrics.upload_bytes.inc(receiver.size)
            return answer
    raise UsageError('The form has no field "file" with a file', "add it")


def _keep(studio: Studio, person: str, receiver: Receiver, name: str) -> UploadAnswer:
    from inst.pictures.opening import look_at  # imports PyTorch, for which the page does not wait

    try:
        kept = studio.uploads.keep_picture(receiver, person)
    except (UsageError, NoSpace, NotKept):
        raise
    except InstError as error:
        raise NotAPicture(error.problem, *error.remedy) from None
    width, height, kind = look_at(kept.path, PICTURE_FORMATS)
    return UploadAnswer(upload=kept.key, name=base_name(name)[:_LONGEST_NAME], width=width, height=height, format=kind)


IdempotencyKey = Annotated[
    str | None,
    Header(
        max_length=200,
        description="Any text of your own. Another request with the same key gets the same job and starts no other.",
    ),
]


def _add_submit_route(form: type[JobRequest], summary: str) -> None:
    """Add the route that takes requests of a form."""

    def submit(
        studio: TheStudio, person: Person, response: Response, body: Any, idempotency_key: IdempotencyKey = None
    ) -> JobAnswer:
        job = studio.submit(person, body, idempotency_key)
        response.headers["Location"] = f"/api/jobs/{job.id}"
        return job_answer(studio.jobs, job)

    submit.__annotations__["body"] = form  # from which FastAPI reads and documents the body
    router.post(
        f"/api/jobs/{form.kind}",
        tags=["jobs"],
        status_code=202,
        responses=_SUBMIT,
        summary=summary,
        description=_SUBMITTED,
        name=f"submit_{form.kind}",
    )(submit)


_add_submit_route(TransferRequest, "Repaint a photo")
_add_submit_route(SheetRequest, "Repaint a photo at several strengths and guidance scales")
_add_submit_route(GenerateRequest, "Make pictures from a prompt")
_add_submit_route(LearnRequest, "Learn a style from paintings")


@router.get("/api/jobs", tags=["jobs"], summary="List your jobs")
def list_jobs(studio: TheStudio, person: Person) -> list[JobAnswer]:
    """All unfinished jobs and the last 100 finished ones, the newest first."""
    return [job_answer(studio.jobs, job) for job in studio.jobs.jobs(person)]


@router.get("/api/jobs/{id}", tags=["jobs"], summary="Look at a job", responses=_UNKNOWN)
def look(studio: TheStudio, job: Mine) -> JobAnswer:
    """Its state, progress and files."""
    return job_answer(studio.jobs, job)


@router.get(
    "/api/jobs/{id}/events",
    tags=["jobs"],
    summary="Follow a job",
    responses=_UNKNOWN,
    response_class=EventSourceResponse,
)
async def follow(
    studio: TheStudio,
    job: Mine,
    last_event_id: Annotated[int | None, Header(description="Id of the last event that you received.")] = None,
) -> AsyncIterator[ServerSentEvent]:
    """Server-sent events: the job now and after each change, until it has ended or the server stops.

    Events have the type `job`, the job as JSON, and ids that count up. A comment every 15 seconds keeps the connection
    open. Close the connection after the job's end: a browser would open it again.
    """
    number = 0 if last_event_id is None else last_event_id + 1
    async with aclosing(studio.jobs.watch(job.id, places=True)) as changes:
        async for now in changes:
            yield ServerSentEvent(data=job_answer(studio.jobs, now), event="job", id=str(number))
            number += 1


@router.get(
    "/api/jobs/{id}/preview",
    tags=["jobs"],
    summary="See what is under way",
    response_class=Response,
    responses={**_UNKNOWN, **bytes_of("image/webp")},
)
def preview(studio: TheStudio, job: Mine) -> Response:
    """A small picture of the job's current step, as WebP. 404 if there is none yet, or the job has ended."""
    data = studio.jobs.preview(job.id)
    if data is None:
        raise HTTPException(404, "There is no preview now.")
    return Response(data, media_type="image/webp")


@router.get(
    "/api/jobs/{id}/files.zip",
    tags=["jobs"],
    summary="Download all files",
    response_class=Response,
    responses={**_UNKNOWN, **bytes_of("application/zip")},
)
def archive(studio: TheStudio, job: Mine) -> Response:
    """All finished files of the job as one ZIP file."""
    names = files_of(job)
    if not names:
        raise HTTPException(404, "The job has no files yet.")
    files = [(download_name(job, name), studio.jobs.folder(job.id) / name) for name in names]
    disposition = f'attachment; filename="{download_name(job, "files.zip")}"'
    return StreamingResponse(zipped(files), media_type="application/zip", headers={"Content-Disposition": disposition})


@router.get(
    "/api/jobs/{id}/files/{name}",
    tags=["jobs"],
    summary="Download a file",
    response_class=Response,
    responses={**_UNKNOWN, **bytes_of("application/octet-stream")},
)
def download(
    studio: TheStudio, job: Mine, name: Annotated[str, InPath(description="A name in the job's `files`.")]
) -> Response:
    """Pictures are PNG files with the record of how they were made; `inst repeat` makes them again."""
    if name not in files_of(job):
        raise HTTPException(404, "The job has no such file.")
    return FileResponse(
        studio.jobs.folder(job.id) / name,
        media_type="image/png" if Path(name).suffix == ".png" else "application/octet-stream",
        filename=download_name(job, name),
    )


@router.post("/api/jobs/{id}/cancel", tags=["jobs"], summary="Cancel a job", responses=_UNKNOWN, description=_SOON)
def cancel(studio: TheStudio, job: Mine) -> JobAnswer:
    return job_answer(studio.jobs, studio.jobs.wish(job.id, Wish.CANCEL))


@router.post(
    "/api/jobs/{id}/pause",
    tags=["jobs"],
    summary="Pause a job",
    responses={**_UNKNOWN, **_FULL},
    description=f"A learning saves where it is; a picture that was begun is begun again. {_SOON}",
)
def pause(studio: TheStudio, job: Mine) -> JobAnswer:
    return job_answer(studio.jobs, studio.jobs.wish(job.id, Wish.PAUSE))


@router.post(
    "/api/jobs/{id}/finish",
    tags=["jobs"],
    summary="Finish a learning early",
    responses={**_UNKNOWN, **_FULL},
    description=f"Its best style so far is kept. Other jobs are cancelled. {_SOON}",
)
def finish(studio: TheStudio, job: Mine) -> JobAnswer:
    return job_answer(studio.jobs, studio.jobs.wish(job.id, Wish.FINISH))


@router.post(
    "/api/jobs/{id}/resume",
    tags=["jobs"],
    summary="Resume a paused job",
    responses={**_UNKNOWN, **_FULL},
)
def resume(studio: TheStudio, job: Mine) -> JobAnswer:
    """It waits for its turn again."""
    return job_answer(studio.jobs, studio.jobs.resume(job.id))
