"""The tab on which a painting and a photo become a picture."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import gradio as gr
from starlette.concurrency import run_in_threadpool

from inst.errors import InstError
from inst.studio.job_store import ENDED, Job, JobState
from inst.studio.jobs import Wish
from inst.studio.page.address import keep_in_address, read_address
from inst.studio.page.common_settings import LONGEST_PROMPT, build_common_settings
from inst.studio.page.examples import EXAMPLES, example_pictures, example_uploads
from inst.studio.page.follow import follow, hint, job_links, newest, picture_html, running, status, submit
from inst.studio.page.inputs import keep, keep_mask, picture_input
from inst.studio.page.latest import Latest
from inst.studio.page.problems import shown_problems
from inst.studio.page.style_choice import build_style_choice
from inst.studio.page.tab import Tab
from inst.studio.page.texts import Texts
from inst.studio.people import person_of
from inst.studio.requests import KINDS, TRANSFER
from inst.studio.studio import Studio

SIZE = 512


def build_transfer(studio: Studio, texts: Texts) -> Tab:
    """Make the tab."""
    examples = example_uploads(studio)
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=320, elem_classes="inst-left"):
            with gr.Row():
                with gr.Column(min_width=240):
                    choice = build_style_choice(studio, texts, "transfer")
                with gr.Column(min_width=240):
                    photo = picture_input(
                        label=texts.photo,
                        sources=["upload", "clipboard", "webcam"],
                        height=240,
                        buttons=["fullscreen"],
                        alt_text=texts.photo_alt,
                        elem_id="transfer-photo",
                    )
            with gr.Row():
                paint = gr.Button(texts.paint, variant="primary", elem_id="transfer-paint", min_width=100)
                stop = gr.Button(texts.stop, interactive=False, elem_id="transfer-stop", min_width=100)
                sheet = gr.Button(texts.sheet, elem_id="transfer-sheet", min_width=100)
            with gr.Column(elem_classes="inst-settings"):
                strength = gr.Slider(
                    0,
                    1,
                    TRANSFER["strength"],
                    step=0.05,
                    label=texts.strength,
                    info=texts.strength_info,
                    elem_id="transfer-strength",
                )
                tone = gr.Dropdown(
                    list(texts.tones),
                    value=TRANSFER["tone"],
                    label=texts.tone,
                    info=texts.tone_info,
                    elem_id="transfer-tone",
                )
                with gr.Row():
                    size = gr.Dropdown(list(texts.sizes), value=SIZE, label=texts.size, info=texts.size_info)
                    count = gr.Slider(1, studio.limits.count, 1, step=1, label=texts.count)
                with gr.Accordion(texts.more_settings, open=False, elem_id="transfer-more"):
                    common_settings = build_common_settings(texts, TRANSFER)
                    steps = gr.Slider(0, 60, 0, step=1, label=texts.steps, info=texts.steps_auto)
                    prompt = gr.Textbox("", label=texts.prompt, info=texts.prompt_info, max_length=LONGEST_PROMPT)
                with gr.Accordion(texts.mask, open=False, elem_id="transfer-mask-part") as mask_part:
                    gr.Markdown(texts.mask_info)
                    mask = gr.ImageEditor(
                        label=texts.mask,
                        type="pil",
                        image_mode="RGBA",
                        sources=[],
                        transforms=[],
                        layers=False,
                        brush=gr.Brush(colors=["#e4572e"], default_size=40, color_mode="fixed"),
                        buttons=[],
                        height=360,
                        elem_id="transfer-mask",
                    )
        with gr.Column(scale=6, min_width=320, elem_classes="inst-right"):
            state = gr.HTML("", elem_id="transfer-status")
            preview = gr.HTML("", visible=False, elem_id="transfer-preview")
            compare = gr.ImageSlider(
                label=texts.before_after, interactive=False, buttons=["fullscreen"], elem_id="transfer-compare"
            )
            sheet_picture = gr.Image(
                label=texts.sheet,
                visible=False,
                interactive=False,
                buttons=["download", "fullscreen"],
                elem_id="transfer-sheet-result",
            )
            everything = gr.Gallery(
                label=texts.all_results,
                visible=False,
                interactive=False,
                columns=4,
                buttons=["download", "fullscreen"],
                elem_id="transfer-all",
            )
            download = gr.HTML("", elem_id="transfer-download")
            shown = gr.Gallery(
                list(zip(example_pictures(examples), texts.example_names, strict=True)),
                label=texts.examples,
                interactive=False,
                allow_preview=False,
                columns=3,
                height="auto",
                buttons=[],
                elem_id="transfer-examples",
            )
            gr.Markdown(texts.link_info, elem_classes="inst-note")
    latest = Latest()
    others = gr.State({})
    settings: dict[str, Any] = {
        "strength": strength,
        "tone": tone,
        "size": size,
        "count": count,
        **common_settings,
        "steps": steps,
        "prompt": prompt,
    }
    addressed = {**settings, "style": choice.saved}
    keep_in_address(addressed, {name: component.value for name, component in settings.items()} | {"style": []})
    results = [state, preview, compare, sheet_picture, everything, download, stop]

    async def show(request: gr.Request, job: Job) -> AsyncIterator[dict[Any, Any]]:
        latest.follow(request, job.id)
        yield {stop: gr.update(value=texts.stop, interactive=True), state: status(studio, texts, job)}
        picture: bytes | None = None
        async for now in follow(studio, job):
            if latest.of(request) != job.id:
                return
            update: dict[Any, Any] = {state: status(studio, texts, now)}
            newer = studio.jobs.preview(now.id)
            if newer is not None and newer is not picture:
                picture = newer
                update |= {
                    preview: gr.update(value=picture_html(newer, texts.result_alt), visible=True),
                    compare: gr.update(visible=False),
                    sheet_picture: gr.update(visible=False),
                }
            if now.state in ENDED:
                update |= await run_in_threadpool(finished, now)
            yield update

    def finished(job: Job) -> dict[Any, Any]:
        """Return the updates that show the pictures of a job that has ended."""
        update: dict[Any, Any] = {
            stop: gr.update(value=texts.stop, interactive=False),
            preview: gr.update(value="", visible=False),
        }
        if job.state is not JobState.DONE:
            return {**update, compare: gr.update(visible=True)}
        files = [str(studio.jobs.folder(job.id) / name) for name in job.result["files"]]
        is_sheet = job.kind == "sheet"
        before = _before(studio, job)
        update |= {
            sheet_picture: gr.update(value=files[0] if is_sheet else None, visible=is_sheet),
            compare: gr.update(value=(before, files[0]) if before and not is_sheet else None, visible=not is_sheet),
            everything: gr.update(value=files if len(files) > 1 else None, visible=len(files) > 1),
            download: job_links(texts, job),
        }
        return update

    def submitted(
        request: gr.Request,
        kind: str,
        photo: tuple[str, str],
        editor: Any,
        hidden: dict[str, Any],
        refs: Any,
        named: Any,
    ) -> Job:
        person = person_of(request)
        if (before := running(studio, latest, request)) is not None:
            studio.jobs.wish(before.id, Wish.CANCEL)
        body: dict[str, Any] = {"photo": keep(studio, person, photo), "styles": refs}
        # Settings of a picture that was dropped back may be those of a sheet, or of one picture.
        fields = KINDS[kind].model_fields
        body |= {name: value for name, value in (hidden | named).items() if name in fields}
        if kind == "transfer":
            body |= {"steps": named["steps"] or None, "prompt": named["prompt"].strip() or None}
            body["mask"] = keep_mask(studio, person, editor) or hidden.get("mask")
        body["size"] = int(named["size"])
        return submit(studio, person, kind, body)

    async def run(
        request: gr.Request, kind: str, is_drop: bool, given: tuple[Any, ...]
    ) -> AsyncIterator[dict[Any, Any]]:
        taken, styles = given[: len(settings) + 3], given[len(settings) + 3 :]
        photo, editor, hidden, *values = taken
        with shown_problems(texts):
            refs = await run_in_threadpool(choice.refs, person_of(request), *styles)
        if photo is None or not refs:
            # Gradio empties the outputs of a handler that yields nothing.
            missing = texts.need_photo if photo is None else texts.need_style
            yield {state: gr.skip() if is_drop else hint(missing)}
            return
        named = dict(zip(settings, values, strict=True))
        with shown_problems(texts):
            job = await run_in_threadpool(submitted, request, kind, photo, editor, hidden, refs, named)
        async for update in show(request, job):
            yield update

    async def painted(request: gr.Request, *given: Any) -> AsyncIterator[dict[Any, Any]]:
        async for update in run(request, "transfer", False, given):
            yield update

    async def dropped(request: gr.Request, *given: Any) -> AsyncIterator[dict[Any, Any]]:
        async for update in run(request, "transfer", True, given):
            yield update

    async def sheeted(request: gr.Request, *given: Any) -> AsyncIterator[dict[Any, Any]]:
        async for update in run(request, "sheet", False, given):
            yield update

    def cancel(request: gr.Request) -> str | Any:
        if (job := running(studio, latest, request)) is None:
            return gr.skip()
        studio.jobs.wish(job.id, Wish.CANCEL)
        return hint(texts.stopping)

    def without_mask(hidden: dict[str, Any]) -> dict[str, Any]:
        """Forget the mask of a restored picture: it belongs to another photo."""
        return {name: value for name, value in hidden.items() if name != "mask"}

    def choose_example(event: gr.SelectData) -> tuple[str, str, dict[str, Any], list[Any], str]:
        painting, one = EXAMPLES[event.index if isinstance(event.index, int) else 0]
        return str(examples[painting].path), str(examples[one].path), {}, [], ""

    def show_photo(picture: tuple[str, str] | None) -> Any:
        """Put the photo below the brush, reduced, when the part for masks is opened."""
        from inst.pictures.reading import open_picture

        if picture is None:
            return None
        reduced = open_picture(picture[0], reduce_to=1024)
        reduced.thumbnail((1024, 1024))
        return reduced

    async def opened(request: gr.Request) -> AsyncIterator[dict[Any, Any]]:
        yield {**read_address(request, addressed), **await run_in_threadpool(choice.from_address, request, "style")}
        job = newest(studio, person_of(request), "transfer", "sheet")
        if job is not None and job.state not in ENDED:
            async for update in show(request, job):
                yield update
        elif job is not None and job.state is JobState.DONE:
            latest.follow(request, job.id)
            yield await run_in_threadpool(finished, job)

    everything_given = [photo, mask, others, *settings.values(), *choice.inputs]
    common: dict[str, Any] = {"show_progress": "hidden", "concurrency_limit": None, "api_visibility": "private"}
    paint.click(painted, everything_given, results, trigger_mode="multiple", **common)
    sheet.click(sheeted, everything_given, results, trigger_mode="multiple", **common)
    gr.on(
        [photo.input, choice.painting.input, choice.saved.input],
        dropped,
        everything_given,
        results,
        trigger_mode="multiple",
        **common,
    )
    stop.click(cancel, None, state, queue=False, api_visibility="private")
    photo.input(without_mask, others, others, queue=False, api_visibility="private")
    shown.select(choose_example, None, [choice.painting, photo, others, choice.recorded, choice.note], **common).then(
        dropped, everything_given, results, **common
    )
    gr.on([mask_part.expand, photo.change], show_photo, photo, mask, **common)
    return Tab(opened, [*results, *settings.values(), choice.saved], choice, settings, others, photo)


def _before(studio: Studio, job: Job) -> str | None:
    try:
        return str(studio.uploads.find(job.request["photo"]["upload"]))
    except InstError:
        return None
