"""Follow a job on the page: its state in words, and its progress as it comes."""

from __future__ import annotations

import base64
import html
from collections.abc import AsyncIterator
from typing import Any

import gradio as gr

from inst.studio.job_store import ENDED, Job, JobState
from inst.studio.jobs import Wish
from inst.studio.page.latest import Latest
from inst.studio.page.problems import told
from inst.studio.page.texts import Texts
from inst.studio.people import person_of
from inst.studio.requests import KINDS
from inst.studio.studio import Studio


def submit(studio: Studio, person: str, kind: str, request: dict[str, Any]) -> Job:
    """Submit a job from the page. Raises as `Studio.submit`, and pydantic.ValidationError if a value is wrong."""
    return studio.submit(person, KINDS[kind].model_validate(request))


def find(studio: Studio, id: str | None, person: str) -> Job | None:
    """Return a job of a person; None without id, or if it is not there any more."""
    try:
        return None if not id else studio.jobs.job(id, person)
    except LookupError:
        return None


def running(studio: Studio, latest: Latest, request: gr.Request) -> Job | None:
    """Return the job that a visit follows, if it has not ended."""
    job = find(studio, latest.of(request), person_of(request))
    return None if job is None or job.state in ENDED else job


def newest(studio: Studio, person: str, *kinds: str) -> Job | None:
    """Return the newest job of a person of these kinds, an unfinished one first; None if there is none."""
    jobs = [job for job in studio.jobs.jobs(person) if job.kind in kinds]
    return next((job for job in jobs if job.state not in ENDED), next(iter(jobs), None))


async def follow(studio: Studio, job: Job) -> AsyncIterator[Job]:
    """Yield a job now and after each change, until it has ended or is paused, also while it moves up in the queue."""
    async for now in studio.jobs.watch(job.id, places=True):
        yield now
        if now.state is JobState.PAUSED:
            return


def status(studio: Studio, texts: Texts, job: Job | None) -> str:
    """Return the state of a job as HTML: a sentence, and a bar if it is under way."""
    if job is None:
        return ""
    progress, bar, sentence = job.progress, "", ""
    match job.state:
        case JobState.QUEUED:
            ahead = studio.jobs.ahead(job.id)
            sentence = texts.waiting.format(ahead=ahead) if ahead else texts.waiting_next
            if not studio.is_ready:
                sentence = f"{texts.loading} {sentence}"
        case JobState.RUNNING if job.wish is not None:
            sentence = texts.pausing if job.wish == Wish.PAUSE else texts.stopping
        case JobState.RUNNING if progress is None:
            sentence, bar = texts.step.format(step=1, total="…"), '<progress value="0" max="1"></progress>'
        case JobState.RUNNING:
            assert progress is not None
            step = min(progress.step + 1, progress.total)
            sentence = texts.step.format(step=step, total=progress.total)
            if progress.remaining is not None:
                left = duration(texts, progress.remaining)
                sentence = texts.step_left.format(step=step, total=progress.total, left=left)
            bar = f'<progress value="{progress.step}" max="{progress.total}"></progress>'
        case JobState.PAUSED:
            step, total = (progress.step, progress.total) if progress else (0, "…")
            sentence = texts.paused.format(step=step, total=total)
        case JobState.DONE:
            sentence = texts.done.format(time=duration(texts, job.seconds))
        case JobState.CANCELLED:
            sentence = texts.cancelled
        case JobState.FAILED:
            sentence = texts.failed.format(error=told(texts, job.error))
    return f'<div class="inst-status inst-{job.state.value}">{bar}<span>{html.escape(sentence)}</span></div>'


def duration(texts: Texts, seconds: float) -> str:
    """Return a time in words."""
    if seconds < 90:
        return texts.seconds.format(n=f"{seconds:.1f}" if seconds < 9.95 else f"{seconds:.0f}")
    return texts.minutes.format(n=f"{seconds / 60:.0f}")


def hint(text: str) -> str:
    """Return a sentence as HTML that a screen reader reads at once."""
    return f'<div class="inst-status" role="alert"><span>{html.escape(text)}</span></div>'


def picture_html(picture: bytes, alt: str) -> str:
    """Return a WebP picture as HTML. Nothing is written to the disk for it."""
    data = base64.b64encode(picture).decode()
    return f'<img class="inst-preview" alt="{html.escape(alt)}" src="data:image/webp;base64,{data}">'


def link_html(address: str, text: str) -> str:
    """Return a link that downloads a file of the API. `address` is relative to the page."""
    return f'<a class="inst-link" href="{html.escape(address)}" download>{html.escape(text)}</a>'


def job_links(texts: Texts, job: Job) -> str:
    """Return the links to the files of a finished job: the first one, and all as one archive if there are several."""
    names = job.result.get("files", [])
    links = [link_html(f"../api/jobs/{job.id}/files/{names[0]}", texts.download)] if names else []
    if len(names) > 1:
        links.append(link_html(f"../api/jobs/{job.id}/files.zip", texts.download_all))
    return " ".join(links)
