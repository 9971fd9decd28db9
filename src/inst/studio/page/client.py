"""The endpoints for programs that use Gradio's client (`gradio_client`): transfer, generate and learn.

They wait until the job has ended and return its files. The HTTP API of the studio does more.
"""

from __future__ import annotations

from typing import Any

import gradio as gr

from inst.studio.job_store import Job, JobState
from inst.studio.page.follow import submit
from inst.studio.page.inputs import keep, picture_input
from inst.studio.page.problems import shown_problems
from inst.studio.page.texts import ENGLISH
from inst.studio.people import person_of
from inst.studio.requests import LEARN, TRANSFER
from inst.studio.studio import Studio


def build_client_endpoints(studio: Studio) -> None:
    """Add the endpoints to the page that is being built. Nothing of them is shown."""
    with gr.Row(visible=False):
        photo = picture_input(label="photo")
        painting = picture_input(label="painting, or None with a style")
        style = gr.Textbox("", label="style: the id of a style in the library, instead of a painting")
        strength = gr.Number(TRANSFER["strength"], label="strength")
        size = gr.Number(0, label="size: short side in pixels; 0 is that of the model", precision=0)
        seed = gr.Number(0, label="seed", precision=0)
        prompt = gr.Textbox(label="prompt, with [C] for the style")
        steps = gr.Number(LEARN["steps"], label="steps", precision=0)
        name = gr.Textbox("", label="name of the style")
        picture = gr.Image(label="picture")
        style_file = gr.File(label="style file")
        trigger = gr.Button()

    def styles(request: gr.Request, painting: tuple[str, str] | None, style: str) -> list[dict[str, Any]]:
        if style:
            return [{"id": style}]
        if painting is None:
            raise gr.Error("Give a painting or the id of a style")
        return [{"paintings": [keep(studio, person_of(request), painting)]}]

    async def finished(job: Job) -> str:
        """Wait for a job, and return the path of its first file."""
        async for now in studio.jobs.watch(job.id):
            job = now
        if job.state is not JobState.DONE:
            raise gr.Error(job.error or f"The job was {job.state.value}")
        return str(studio.jobs.folder(job.id) / job.result["files"][0])

    async def transfer(
        request: gr.Request,
        photo: tuple[str, str] | None,
        painting: tuple[str, str] | None,
        style: str,
        strength: float,
        size: int | None,
        seed: int,
    ) -> str:
        """Repaint a photo in the style of a painting, or of a style of the library."""
        if photo is None:
            raise gr.Error("Give a photo")
        body: dict[str, Any] = {"strength": strength, "size": size or None, "seed": seed}
        with shown_problems(ENGLISH):
            body |= {"photo": keep(studio, person_of(request), photo), "styles": styles(request, painting, style)}
            job = submit(studio, person_of(request), "transfer", body)
        return await finished(job)

    async def generate(
        request: gr.Request, prompt: str, painting: tuple[str, str] | None, style: str, size: int | None, seed: int
    ) -> str:
        """Make a picture from a prompt in the style of a painting, or of a style of the library."""
        body: dict[str, Any] = {"prompt": prompt, "size": size or None, "seed": seed}
        with shown_problems(ENGLISH):
            body["styles"] = styles(request, painting, style)
            job = submit(studio, person_of(request), "generate", body)
        return await finished(job)

    async def learn(request: gr.Request, painting: tuple[str, str] | None, name: str, steps: int) -> str:
        """Learn the style of a painting; it is added to the library, and its file is returned."""
        if painting is None:
            raise gr.Error("Give a painting")
        body: dict[str, Any] = {"name": name, "steps": steps, "preview_every": 0}
        with shown_problems(ENGLISH):
            body["paintings"] = [keep(studio, person_of(request), painting)]
            job = submit(studio, person_of(request), "learn", body)
        return await finished(job)

    common: dict[str, Any] = {"concurrency_limit": None, "api_visibility": "public"}
    trigger.click(transfer, [photo, painting, style, strength, size, seed], picture, api_name="transfer", **common)
    trigger.click(generate, [prompt, painting, style, size, seed], picture, api_name="generate", **common)
    trigger.click(learn, [painting, name, steps], style_file, api_name="learn", **common)
