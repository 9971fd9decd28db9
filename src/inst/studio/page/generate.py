"""The tab on which a prompt becomes pictures in a style."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import gradio as gr
from starlette.concurrency import run_in_threadpool

from inst.studio.job_store import ENDED, Job, JobState
from inst.studio.jobs import Wish
from inst.studio.page.address import keep_in_address, read_address
from inst.studio.page.common_settings import LONGEST_PROMPT, build_common_settings
from inst.studio.page.follow import follow, hint, job_links, newest, picture_html, running, status, submit
from inst.studio.page.latest import Latest
from inst.studio.page.problems import shown_problems
from inst.studio.page.style_choice import build_style_choice
from inst.studio.page.tab import Tab
from inst.studio.page.texts import Texts
from inst.studio.people import person_of
from inst.studio.requests import GENERATE
from inst.studio.studio import Studio


def build_generate(studio: Studio, texts: Texts) -> Tab:
    """Make the tab."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=320, elem_classes="inst-left"):
            prompt = gr.Textbox(
                texts.generate_default,
                label=texts.generate_prompt,
                info=texts.generate_prompt_info,
                lines=2,
                max_length=LONGEST_PROMPT,
                elem_id="generate-prompt",
            )
            choice = build_style_choice(studio, texts, "generate")
            with gr.Row():
                make = gr.Button(texts.make, variant="primary", elem_id="generate-make")
                stop = gr.Button(texts.stop, interactive=False, elem_id="generate-stop")
            with gr.Column(elem_classes="inst-settings"):
                count = gr.Slider(1, studio.limits.count, 1, step=1, label=texts.count, elem_id="generate-count")
                with gr.Accordion(texts.more_settings, open=False, elem_id="generate-more"):
                    common_settings = build_common_settings(texts, GENERATE)
                    size = gr.Dropdown(
                        list(texts.sizes), value=texts.sizes[0][1], label=texts.size, info=texts.size_info
                    )
                    steps = gr.Slider(1, 60, GENERATE["steps"], step=1, label=texts.steps)
        with gr.Column(scale=6, min_width=320, elem_classes="inst-right"):
            state = gr.HTML("", elem_id="generate-status")
            preview = gr.HTML("", visible=False, elem_id="generate-preview")
            gallery = gr.Gallery(
                label=texts.all_results,
                interactive=False,
                columns=2,
                object_fit="contain",
                buttons=["download", "fullscreen"],
                elem_id="generate-gallery",
            )
            download = gr.HTML("", elem_id="generate-download")
            gr.Markdown(texts.link_info, elem_classes="inst-note")
    latest = Latest()
    others = gr.State({})
    settings: dict[str, Any] = {
        "prompt": prompt,
        "count": count,
        **common_settings,
        "size": size,
        "steps": steps,
    }
    addressed = {**{f"generate.{name}": one for name, one in settings.items()}, "generate.style": choice.saved}
    keep_in_address(addressed, {name: one.value for name, one in addressed.items()} | {"generate.style": []})
    results = [state, preview, gallery, download, stop]

    async def show(request: gr.Request, job: Job) -> AsyncIterator[dict[Any, Any]]:
        latest.follow(request, job.id)
        yield {stop: gr.update(value=texts.stop, interactive=True)}
        picture: bytes | None = None
        files: tuple[str, ...] = ()
        async for now in follow(studio, job):
            if latest.of(request) != job.id:
                return
            update: dict[Any, Any] = {state: status(studio, texts, now)}
            newer = studio.jobs.preview(now.id)
            if newer is not None and newer is not picture:
                picture = newer
                update[preview] = gr.update(value=picture_html(newer, texts.result_alt), visible=True)
            if now.progress is not None and now.progress.files != files:
                files = now.progress.files
                update[gallery] = paths(now, files)
            if now.state in ENDED:
                update |= finished(now)
            yield update

    def finished(job: Job) -> dict[Any, Any]:
        update: dict[Any, Any] = {
            stop: gr.update(value=texts.stop, interactive=False),
            preview: gr.update(value="", visible=False),
        }
        if job.state is JobState.DONE:
            update |= {gallery: paths(job, job.result["files"]), download: job_links(texts, job)}
        return update

    def paths(job: Job, names: Any) -> list[tuple[str, str]]:
        first = int(job.request["seed"])
        return [(str(studio.jobs.folder(job.id) / name), f"{texts.seed} {first + k}") for k, name in enumerate(names)]

    def submitted(request: gr.Request, hidden: dict[str, Any], given: tuple[Any, ...]) -> Job | None:
        """Submit the job; None if there is no style."""
        person = person_of(request)
        named = dict(zip(settings, given[: len(settings)], strict=True))
        refs = choice.refs(person, *given[len(settings) :])
        if not refs:
            return None
        if (before := running(studio, latest, request)) is not None:
            studio.jobs.wish(before.id, Wish.CANCEL)
        return submit(studio, person, "generate", {**hidden, **named, "styles": refs})

    async def made(request: gr.Request, hidden: dict[str, Any], *given: Any) -> AsyncIterator[dict[Any, Any]]:
        if not given[0].strip():
            yield {state: hint(texts.need_prompt)}
            return
        with shown_problems(texts):
            job = await run_in_threadpool(submitted, request, hidden, given)
        if job is None:
            yield {state: hint(texts.need_style)}
            return
        async for update in show(request, job):
            yield update

    def cancel(request: gr.Request) -> Any:
        if (job := running(studio, latest, request)) is None:
            return gr.skip()
        studio.jobs.wish(job.id, Wish.CANCEL)
        return hint(texts.stopping)

    async def opened(request: gr.Request) -> AsyncIterator[dict[Any, Any]]:
        chosen = await run_in_threadpool(choice.from_address, request, "generate.style")
        yield {**read_address(request, addressed), **chosen}
        job = newest(studio, person_of(request), "generate")
        if job is not None and job.state not in ENDED:
            async for update in show(request, job):
                yield update
        elif job is not None:
            latest.follow(request, job.id)
            yield finished(job)

    common: dict[str, Any] = {"show_progress": "hidden", "concurrency_limit": None, "api_visibility": "private"}
    gr.on(
        [make.click, prompt.submit],
        made,
        [others, *settings.values(), *choice.inputs],
        results,
        trigger_mode="multiple",
        **common,
    )
    stop.click(cancel, None, state, queue=False, api_visibility="private")
    return Tab(opened, [*results, *settings.values(), choice.saved], choice, settings, others)
