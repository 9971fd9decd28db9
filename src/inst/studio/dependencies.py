"""What the routes of the service take from the request: the studio, the person, and a job of theirs."""

from __future__ import annotations

from typing import Annotated, cast

from fastapi import Depends, Path, Request

from inst.studio.job_store import Job
from inst.studio.metrics import Metrics
from inst.studio.people import person_of
from inst.studio.studio import Studio


def _studio(request: Request) -> Studio:
    return cast(Studio, request.app.state.studio)


def _metrics(request: Request) -> Metrics:
    return cast(Metrics, request.app.state.metrics)


def _person(request: Request) -> str:
    return person_of(request)


TheStudio = Annotated[Studio, Depends(_studio)]
TheMetrics = Annotated[Metrics, Depends(_metrics)]
Person = Annotated[str, Depends(_person)]


def _mine(studio: TheStudio, person: Person, id: Annotated[str, Path(description="The job's id.")]) -> Job:
    return studio.jobs.job(id, person)


Mine = Annotated[Job, Depends(_mine)]
"""The job that the path names. The answer is 404 if it belongs to somebody else."""
