"""The tab on which a style is learned, while its previews appear."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

import gradio as gr

from inst.errors import InstError
from inst.studio.job_store import ENDED, Job, JobState
from inst.studio.jobs import Wish
from inst.studio.page.follow import find, follow, hint, link_html, newest, running, status, submit
from inst.studio.page.inputs import keep_all, pictures_input
from inst.studio.page.latest import Latest
from inst.studio.page.problems import shown_problems, told
from inst.studio.page.tab import Tab
from inst.studio.page.texts import Texts
from inst.studio.people import person_of
from inst.studio.requests import LEARN, MOST_PAINTINGS
from inst.studio.studio import Studio
from inst.studio.work import CURVE, STYLE, read_curve

_PREVIEW_EVERY = 20
_PLOT_SECONDS = 1.0  # between two drawings of the plot, each of which is sent whole


def build_learn(studio: Studio, texts: Texts) -> Tab:
    """Make the tab."""
    gr.Markdown(texts.learn_info)
    with gr.Row(equal_height=False):
        with gr.Column(scale=4, min_width=320):
            paintings = pictures_input(
                label=texts.paintings,
                interactive=True,
                file_types=["image"],
                columns=3,
                height=260,
                object_fit="contain",
                buttons=[],
                elem_id="learn-paintings",
            )
            name = gr.Textbox(
                "", label=texts.style_name, info=texts.style_name_info, max_length=100, elem_id="learn-name"
            )
            steps = gr.Slider(
                10,
                min(2000, studio.limits.learning_steps),
                LEARN["steps"],
                step=10,
                label=texts.learning_steps,
                info=texts.learning_steps_info,
                elem_id="learn-steps",
            )
            with gr.Accordion(texts.more_settings, open=False, elem_id="learn-more"):
                every = gr.Slider(0, 100, _PREVIEW_EVERY, step=5, label=texts.preview_every, elem_id="learn-every")
                seed = gr.Number(LEARN["seed"], label=texts.seed, precision=0, minimum=0, maximum=2**53)
            start = gr.Button(texts.start, variant="primary", elem_id="learn-start")
        with gr.Column(scale=7, min_width=320):
            mine = gr.Dropdown([], label=texts.your_learnings, visible=False, elem_id="learn-mine")
            state = gr.HTML("", elem_id="learn-status")
            with gr.Row(visible=False) as buttons:
                pause = gr.Button(texts.pause, elem_id="learn-pause")
                resume = gr.Button(texts.resume, visible=False, elem_id="learn-resume")
                finish = gr.Button(texts.keep_best, elem_id="learn-finish")
                cancel = gr.Button(texts.cancel, variant="stop", elem_id="learn-cancel")
            plot = gr.LinePlot(
                x="step",
                y="loss",
                color="kind",
                x_title=texts.loss_step,
                y_title=texts.loss_value,
                color_map={texts.loss_learning: "#6366f1", texts.loss_validation: "#e4572e"},
                label=texts.loss,
                height=240,
                visible=False,
                elem_id="learn-plot",
            )
            previews = gr.Gallery(
                label=texts.previews,
                visible=False,
                interactive=False,
                columns=4,
                fit_columns=False,
                height=300,
                object_fit="contain",
                elem_id="learn-previews",
            )
            download = gr.HTML("", elem_id="learn-download")
    latest = Latest()
    results = [mine, state, buttons, pause, resume, plot, previews, download]

    async def show(request: gr.Request, job: Job) -> AsyncIterator[dict[Any, Any]]:
        """Yield the updates that show a learning, until it has ended or is paused, or another one is shown."""
        latest.follow(request, job.id)
        yield {mine: listed(job.person, job.id), **pictures(job), plot: curve(job), download: ""}
        files: tuple[str, ...] = ()
        drawn_at = time.monotonic()
        async for now in follow(studio, job):
            if latest.of(request) != job.id:
                return
            update: dict[Any, Any] = {state: status(studio, texts, now), **controls(now)}
            if now.progress is not None and now.progress.files != files:
                files = now.progress.files
                update |= pictures(now)
            if now.state in ENDED or now.state is JobState.PAUSED or time.monotonic() - drawn_at > _PLOT_SECONDS:
                update[plot] = curve(now)
                drawn_at = time.monotonic()
            if now.state is JobState.DONE:
                update |= {mine: listed(now.person, now.id), **learned(now)}
            yield update

    def learned(job: Job) -> dict[Any, Any]:
        sentence = texts.learned.format(name=job.result["name"])
        return {
            state: status(studio, texts, job) + hint(sentence),
            download: link_html(f"../api/jobs/{job.id}/files/{STYLE}", texts.download_style),
            **pictures(job),
        }

    def controls(job: Job) -> dict[Any, Any]:
        ended, paused = job.state in ENDED, job.state is JobState.PAUSED
        return {
            buttons: gr.update(visible=not ended),
            pause: gr.update(visible=not paused),
            resume: gr.update(visible=paused),
        }

    def pictures(job: Job) -> dict[Any, Any]:
        names = job.progress.files if job.progress is not None else ()
        found = [(str(studio.jobs.folder(job.id) / one), f"{int(one[8:14])}") for one in names]
        return {previews: gr.update(value=found or None, visible=bool(found))}

    def curve(job: Job) -> Any:
        import pandas as pd

        rows = read_curve(studio.jobs.folder(job.id) / CURVE)
        points = [(step, smoothed, texts.loss_learning) for step, _, smoothed, _ in rows]
        points += [(step, value, texts.loss_validation) for step, _, _, value in rows if value is not None]
        return gr.update(value=pd.DataFrame(points, columns=["step", "loss", "kind"]), visible=len(rows) > 1)

    def listed(person: str, chosen: str) -> Any:
        jobs = [job for job in studio.jobs.jobs(person) if job.kind == "learn"]
        choices = [(_label(job, texts), job.id) for job in jobs]
        return gr.update(choices=choices, value=chosen, visible=len(jobs) > 1)

    def started(request: gr.Request, given: Any, name: str, steps: float, every: float, seed: float) -> str:
        if not given:
            raise gr.Error(texts.need_painting, print_exception=False)
        body = {"name": name, "steps": int(steps), "preview_every": int(every), "seed": int(seed or 0)}
        with shown_problems(texts):
            paintings = keep_all(studio, person_of(request), given[: MOST_PAINTINGS + 1])
            job = submit(studio, person_of(request), "learn", body | {"paintings": paintings})
        latest.follow(request, job.id)
        return status(studio, texts, job)

    async def followed(request: gr.Request) -> AsyncIterator[dict[Any, Any]]:
        job = find(studio, latest.of(request), person_of(request))
        if job is None:
            yield {state: gr.skip()}
        else:
            async for update in show(request, job):
                yield update

    def chosen(request: gr.Request, id: str) -> None:
        latest.follow(request, id)

    def wished(wish: Wish) -> Any:
        def ask(request: gr.Request) -> Any:
            if (job := running(studio, latest, request)) is None:
                return gr.skip()
            try:
                studio.jobs.wish(job.id, wish)
            except InstError as error:
                return hint(told(texts, error))
            return hint(texts.pausing if wish is Wish.PAUSE else texts.stopping)

        return ask

    def resumed(request: gr.Request) -> Any:
        job = find(studio, latest.of(request), person_of(request))
        if job is None:
            return gr.skip()
        try:
            return status(studio, texts, studio.jobs.resume(job.id))
        except InstError as error:
            return hint(told(texts, error))

    async def opened(request: gr.Request) -> AsyncIterator[dict[Any, Any]]:
        job = newest(studio, person_of(request), "learn")
        if job is None:
            yield {state: ""}
        else:
            async for update in show(request, job):
                yield update

    common: dict[str, Any] = {"show_progress": "hidden", "concurrency_limit": None, "api_visibility": "private"}
    start.click(started, [paintings, name, steps, every, seed], state, trigger_mode="once", **common).success(
        followed, None, results, **common
    )
    mine.input(chosen, mine, None, queue=False, api_visibility="private").then(followed, None, results, **common)
    resume.click(resumed, None, state, **common).then(followed, None, results, **common)
    # A paused learning is no longer followed, and one that was paused before is not followed yet.
    for button, wish in ((pause, Wish.PAUSE), (finish, Wish.FINISH), (cancel, Wish.CANCEL)):
        after = button.click(wished(wish), None, state, queue=False, api_visibility="private")
        after.then(followed, None, results, **common)
    return Tab(opened, results)


def _label(job: Job, texts: Texts) -> str:
    paintings = job.request["paintings"]
    name = job.result.get("name") or job.request["name"] or paintings[0]["name"] or texts.painting
    return f"{time.strftime('%Y-%m-%d %H:%M', time.localtime(job.created))}  {name}"
