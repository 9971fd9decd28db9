"""What the service answers: the models of its JSON, which are its documentation too, and its errors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from pydantic import BaseModel, Field
from starlette.responses import JSONResponse

from inst.errors import Argument, Call
from inst.studio.entry import StyleEntry
from inst.studio.job_store import ENDED, Job, JobState
from inst.studio.jobs import JobRunner


class Problem(BaseModel):
    """Every error has this form."""

    error: str = Field(description="What is wrong and what to do, in one line.")


def problem(status: int, line: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Return the answer to a request that failed."""
    return JSONResponse({"error": line}, status, headers=dict(headers or {}))


def json_wording(piece: Argument | Call) -> str:
    """Return the name of an argument in a message: as a field of the request's JSON."""
    if isinstance(piece, Call):
        return piece.name
    return f'"{piece.name}"' if piece.value is None else f'"{piece.name}": {_json(piece.value)}'


def _json(value: str | bool) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value).lower()


class UploadAnswer(BaseModel):
    """An uploaded picture."""

    upload: str = Field(description="Its key, to be named in requests: the SHA-256 of its bytes.")
    name: str = Field(description="Its own name, as it was sent, without folders. No file gets this name.")
    width: int = Field(description="In pixels.")
    height: int = Field(description="In pixels.")
    format: str = Field(description='Such as "PNG", found from the content.')


class FileAnswer(BaseModel):
    """A file of a job."""

    name: str
    url: str = Field(description="Where it can be downloaded.")


class ProgressAnswer(BaseModel):
    """How far a job is."""

    step: int = Field(description="Finished steps.")
    total: int = Field(description="All steps.")
    remaining: float | None = Field(description="Estimated seconds until the end; null if unknown.")
    loss: float | None = Field(description="Smoothed loss of a learning.")


class JobAnswer(BaseModel):
    """A job as it is at one moment."""

    id: str
    kind: str
    state: JobState = Field(description="done, failed and cancelled are the end.")
    ahead: int = Field(description="How many jobs come before it, while it is queued.")
    created: float = Field(description="Unix time in seconds.")
    started: float | None
    ended: float | None
    seconds: float = Field(description="Time on the device so far.")
    progress: ProgressAnswer | None
    preview: str | None = Field(description="Address of a picture of what is under way; null if there is none.")
    error: str | None = Field(description="One line, if it has failed.")
    files: list[FileAnswer] = Field(description="Finished files. Pictures are PNG files with their record inside.")
    archive: str | None = Field(description="Address of all files as one ZIP file; null without files.")
    style: str | None = Field(description="Id of the style that was learned, in the library.")
    request: dict[str, Any] = Field(description="What was asked for, with defaults.")


def job_answer(jobs: JobRunner, job: Job) -> JobAnswer:
    """Describe a job."""
    base = f"/api/jobs/{job.id}"
    names = files_of(job)
    progress = job.progress
    return JobAnswer(
        id=job.id,
        kind=job.kind,
        state=job.state,
        ahead=jobs.ahead(job.id),
        created=job.created,
        started=job.started,
        ended=job.ended,
        seconds=round(job.seconds, 3),
        progress=None
        if progress is None
        else ProgressAnswer(step=progress.step, total=progress.total, remaining=progress.remaining, loss=progress.loss),
        preview=f"{base}/preview" if job.state not in ENDED and jobs.preview(job.id) else None,
        error=job.error,
        files=[FileAnswer(name=name, url=f"{base}/files/{name}") for name in names],
        archive=f"{base}/files.zip" if names else None,
        style=job.result.get("style"),
        request=dict(job.request),
    )


def files_of(job: Job) -> list[str]:
    """Return the names of the finished files of a job, in its folder."""
    if "files" in job.result:
        return [*job.result["files"]]
    return [] if job.progress is None else [*job.progress.files]


def download_name(job: Job, name: str) -> str:
    """Return a name for a downloaded file that tells it from those of other jobs. Nothing in it comes from a person."""
    path = PurePath(name)
    return f"{job.kind}-{job.id[:8]}-{path.stem}{path.suffix}"


class StyleAnswer(BaseModel):
    """A style of the library."""

    id: str
    name: str
    tags: list[str]
    backbone: str = Field(description="The model that it was learned with.")
    variant: str = Field(description='How it was made, such as "attention" or "imported".')
    steps: int = Field(description="Learning steps; 0 if unknown.")
    fits: bool | None = Field(description="Whether it fits the studio's model; null while the model is loading.")
    vectors: int = Field(description="Number of vectors of its pseudo-word; 0 if it has none.")
    paintings: list[str] = Field(description="Names of its paintings.")
    added: float = Field(description="Unix time in seconds.")
    bytes: int = Field(description="Size of its file.")
    thumbnail: str | None = Field(description="Address of its first painting as a small picture.")


class NearStyleAnswer(BaseModel):
    """A style, and how much its painting looks like a picture."""

    style: StyleAnswer
    similarity: float = Field(description="Cosine of CLIP's embeddings, from -1 to 1.")


def style_answer(entry: StyleEntry, fingerprint: str | None) -> StyleAnswer:
    """Describe a style. `fingerprint` is the text space of the studio's backbone, or None if it is not loaded."""
    return StyleAnswer(
        id=entry.id,
        name=entry.name,
        tags=[*entry.tags],
        backbone=entry.backbone,
        variant=entry.variant,
        steps=entry.steps,
        fits=True if not entry.has_word else None if fingerprint is None else entry.fingerprint == fingerprint,
        vectors=entry.vectors,
        paintings=[*entry.paintings],
        added=entry.added,
        bytes=entry.bytes,
        thumbnail=f"/api/styles/{entry.id}/thumbnail" if entry.paintings else None,
    )
