"""Routes of the library of styles, which all people share."""

from __future__ import annotations

import re
from contextlib import aclosing
from pathlib import PurePath
from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Query, Request, Response
from fastapi import Path as InPath
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from inst.errors import InstError, UsageError
from inst.files.provenance import base_name
from inst.studio.answers import NearStyleAnswer, Problem, StyleAnswer, style_answer
from inst.studio.dependencies import Person, TheMetrics, TheStudio
from inst.studio.entry import StyleEntry, tidy_name
from inst.studio.job_routes import Responses, bytes_of, file_form
from inst.studio.library import THUMBNAIL_SIDES
from inst.studio.multipart import received
from inst.studio.requests import UploadRef
from inst.studio.studio import Studio
from inst.studio.uploads import Receiver

_UNKNOWN: Responses = {404: {"model": Problem, "description": "There is no such style."}}
_LOADING: Responses = {503: {"model": Problem, "description": "The model is still loading."}}
_NEAREST = 12

Id = Annotated[str, InPath(description="The style's id.")]

router = APIRouter(tags=["styles"])


class StyleChange(BaseModel):
    """What to change of a style. What is left out stays."""

    model_config = ConfigDict(extra="forbid")

    name: str | None = Field(None, max_length=200)
    tags: list[Annotated[str, Field(max_length=200)]] | None = Field(None, max_length=100)


class NearestRequest(UploadRef):
    """The picture to compare with."""

    count: int = Field(_NEAREST, ge=1, le=100, description="Largest number of styles.")


@router.get("/api/styles", summary="List styles")
def list_styles(
    studio: TheStudio,
    text: Annotated[str, Query(max_length=200, description="Words that must occur in name, tags or paintings.")] = "",
    tag: Annotated[str | None, Query(max_length=200, description="A tag that they must have.")] = None,
) -> list[StyleAnswer]:
    """The newest first."""
    return [_answer(studio, entry) for entry in studio.library.styles(text, tag)]


@router.post(
    "/api/styles",
    status_code=201,
    summary="Import a style",
    responses={
        **_LOADING,
        413: {"model": Problem, "description": "The file is too large."},
        422: {"model": Problem, "description": "The file is no style, or does not fit the studio's model."},
        507: {"model": Problem, "description": "The studio's disk is full."},
    },
    openapi_extra=file_form("A style file, or an embedding of another program (.safetensors, .pt, .bin, .png)."),
)
async def import_style(request: Request, studio: TheStudio, metrics: TheMetrics) -> StyleAnswer:
    """Send the file in the field `file` of a form. Nothing in it is ever run."""
    _check_ready(studio)
    await run_in_threadpool(studio.disk.check)
    async with aclosing(received(request, studio.uploads, "file")) as files:
        async for name, receiver in files:
            entry = await run_in_threadpool(_import, studio, receiver, name)
            studio.disk.add(receiver.size)
            metrics.upload_bytes.inc(receiver.size)
            return _answer(studio, entry)
    raise UsageError('The form has no field "file" with a file', "add it")


def _import(studio: Studio, receiver: Receiver, name: str) -> StyleEntry:
    with studio.uploads.style_file(receiver, name) as upload:
        try:
            entry = studio.library.import_file(upload.path, studio.backbone())
        except InstError as error:  # readers must not see where the studio keeps its files
            kind = UsageError if isinstance(error, UsageError) else InstError
            place = re.compile(f"(?:{re.escape(str(upload.path.parent))}/)?{re.escape(upload.path.name)}")
            raise kind(place.sub("The file", error.problem), *error.remedy) from None
    if entry.name == upload.key:  # an embedding that holds no name has that of its file
        entry = studio.library.rename(entry.id, tidy_name(PurePath(base_name(name)).stem))
    return entry


@router.post(
    "/api/styles/nearest",
    summary="Find styles that look like a picture",
    responses={**_LOADING, 422: {"model": Problem, "description": "The upload is not there."}},
)
def nearest(studio: TheStudio, person: Person, body: NearestRequest) -> list[NearStyleAnswer]:
    """The picture is an upload, named by its key. The most similar first."""
    _check_ready(studio)
    found = studio.nearest(person, body.upload, body.count)
    return [NearStyleAnswer(style=_answer(studio, entry), similarity=cosine) for entry, cosine in found]


@router.get("/api/styles/{id}", summary="Look at a style", responses=_UNKNOWN)
def look(studio: TheStudio, id: Id) -> StyleAnswer:
    """What the library knows about it."""
    return _answer(studio, studio.library.entry(id))


@router.patch(
    "/api/styles/{id}",
    summary="Change name or tags",
    responses={**_UNKNOWN, 422: {"model": Problem, "description": "The name or a tag cannot be used."}},
)
def change(studio: TheStudio, id: Id, body: StyleChange) -> StyleAnswer:
    """They are changed in the style's file."""
    entry = studio.library.entry(id)
    if body.name is not None:
        entry = studio.library.rename(id, body.name)
    if body.tags is not None:
        entry = studio.library.set_tags(id, body.tags)
    return _answer(studio, entry)


@router.delete("/api/styles/{id}", status_code=204, summary="Delete a style", responses=_UNKNOWN)
def delete(studio: TheStudio, id: Id) -> None:
    """It can be restored for 30 days."""
    studio.library.delete(id)


@router.post("/api/styles/{id}/restore", summary="Restore a deleted style", responses=_UNKNOWN)
def restore(studio: TheStudio, id: Id) -> StyleAnswer:
    """Bring a deleted style back."""
    return _answer(studio, studio.library.restore(id))


@router.get(
    "/api/styles/{id}/thumbnail",
    summary="See the painting of a style",
    response_class=Response,
    responses={**_UNKNOWN, **bytes_of("image/webp")},
)
def thumbnail(
    studio: TheStudio,
    id: Id,
    side: Annotated[int, Query(description=f"Longest side: one of {', '.join(map(str, THUMBNAIL_SIDES))}.")] = 256,
) -> Response:
    """Its first painting as a small WebP picture. 404 if it has none."""
    data = studio.library.thumbnail(id, side)
    if data is None:
        raise HTTPException(404, "The style has no painting.")
    return Response(data, media_type="image/webp", headers={"Cache-Control": "private, max-age=3600"})


@router.get(
    "/api/styles/{id}/export",
    summary="Download a style",
    response_class=Response,
    responses={**_UNKNOWN, **bytes_of("application/octet-stream")},
)
def export(
    studio: TheStudio,
    id: Id,
    to: Annotated[str, Query(max_length=40, description="inst, diffusers, a1111, comfyui or a1111-png.")] = ("inst"),
) -> Response:
    """As a style file, or as an embedding for another program."""
    data, name = studio.library.export(id, to)
    return Response(
        data,
        media_type="application/octet-stream",
        headers={"Content-Disposition": f"attachment; filename*=UTF-8''{quote(name)}"},
    )


def _answer(studio: Studio, entry: StyleEntry) -> StyleAnswer:
    return style_answer(entry, studio.backbone().fingerprint if studio.is_ready else None)


def _check_ready(studio: Studio) -> None:
    if not studio.is_ready:
        raise HTTPException(503, "The model is still loading: try again in some seconds.", {"Retry-After": "5"})
