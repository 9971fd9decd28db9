"""The tab with all styles: search, names and tags, where a style comes from, export, import and delete."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.concurrency import run_in_threadpool

from inst.errors import InstError
from inst.studio.entry import tidy_name
from inst.studio.page.follow import hint, link_html
from inst.studio.page.inputs import keep, picture_input, style_input
from inst.studio.page.problems import told
from inst.studio.page.tab import Tab
from inst.studio.page.texts import Texts
from inst.studio.people import person_of
from inst.studio.studio import Studio
from inst.texts import markdown

_SHOWN = 60


def build_library(studio: Studio, texts: Texts) -> Tab:
    """Make the tab."""
    library = studio.library
    with gr.Row(equal_height=False):
        with gr.Column(scale=7, min_width=320):
            with gr.Row():
                search = gr.Textbox("", label=texts.search, info=texts.search_info, elem_id="library-search")
                tag = gr.Dropdown([(texts.any_tag, "")], value="", label=texts.tag, elem_id="library-tag")
            gallery = gr.Gallery(
                label=texts.styles,
                interactive=False,
                allow_preview=False,
                columns=4,
                fit_columns=False,
                height="auto",
                buttons=[],
                elem_id="library-styles",
            )
            empty = gr.Markdown(texts.no_styles, visible=False, elem_id="library-empty")
            with gr.Accordion(texts.search_by_picture, open=False, elem_id="library-nearest"):
                by_picture = picture_input(
                    label=texts.search_by_picture,
                    sources=["upload", "clipboard"],
                    height=180,
                    buttons=[],
                    elem_id="library-by-picture",
                )
            imported = style_input(label=texts.import_, elem_id="library-import")
            gr.Markdown(texts.import_info, elem_classes="inst-note")
        with gr.Column(scale=4, min_width=320):
            message = gr.HTML("", elem_id="library-message")
            undo = gr.Button(texts.undo, visible=False, elem_id="library-undo")
            about = gr.Markdown(texts.choose_style, elem_id="library-about")
            with gr.Column(visible=False) as details:
                name = gr.Textbox("", label=texts.rename, max_length=100, elem_id="library-name")
                tags = gr.Textbox("", label=texts.tags, info=texts.tags_info, max_length=500, elem_id="library-tags")
                save = gr.Button(texts.save, variant="primary", elem_id="library-save")
                to = gr.Dropdown(
                    list(texts.formats), value=texts.formats[0][1], label=texts.export_as, elem_id="library-format"
                )
                export = gr.HTML("", elem_id="library-export")
                delete = gr.Button(texts.delete, variant="stop", elem_id="library-delete")
    shown = gr.State([])  # ids in the order of the gallery
    current = gr.State("")
    listing = [gallery, shown, tag, empty, undo]
    panel = [about, details, name, tags, current, export]

    def listed(entries: Any, tag_now: str, *, filtered: bool = True) -> dict[Any, Any]:
        """Return the updates that show styles in the gallery."""
        entries = list(entries)[:_SHOWN]
        counts = [(f"{one} ({count})", one) for one, count in library.tags()]
        return {
            gallery: gr.update(value=[(_thumbnail(studio, one.id), one.name) for one in entries], selected_index=None),
            shown: [one.id for one in entries],
            tag: gr.update(choices=[(texts.any_tag, ""), *counts], value=tag_now),
            empty: gr.update(value=texts.nothing_found if filtered else texts.no_styles, visible=not entries),
            undo: gr.update(visible=bool(library.deleted())),
        }

    def found(text: str, tag_now: str) -> dict[Any, Any]:
        found = library.styles(text or "", tag_now or None)
        return listed(found, tag_now or "", filtered=bool(text or tag_now))

    def nearest(request: gr.Request, given: tuple[str, str] | None) -> dict[Any, Any]:
        person = person_of(request)
        if given is None:
            return found("", "")
        if not studio.is_ready:
            return {message: hint(texts.loading)}
        try:
            ref = keep(studio, person, given)
            assert ref is not None
            return listed([entry for entry, _ in studio.nearest(person, ref["upload"])], "")
        except InstError as error:
            return {message: hint(told(texts, error))}

    def shown_style(id: str) -> dict[Any, Any]:
        try:
            entry = library.entry(id)
        except LookupError as error:
            return {**closed(), message: hint(told(texts, error))}
        lines = [f"### {texts.provenance}", *(f"- {markdown(line)}" for line in _provenance(entry))]
        return {
            about: "\n".join(lines),
            details: gr.update(visible=True),
            name: entry.name,
            tags: ", ".join(entry.tags),
            current: id,
        }

    def selected(event: gr.SelectData, ids: list[str]) -> dict[Any, Any]:
        index = event.index if isinstance(event.index, int) else -1
        return {message: "", **(shown_style(ids[index]) if 0 <= index < len(ids) else closed())}

    def closed() -> dict[Any, Any]:
        return {about: texts.choose_style, details: gr.update(visible=False), current: ""}

    def saved(id: str, new_name: str, new_tags: str, text: str, tag_now: str) -> dict[Any, Any]:
        try:
            if new_name != library.entry(id).name:
                library.rename(id, new_name)
            library.set_tags(id, new_tags.replace("\uff0c", ",").split(","))
        except InstError as error:
            return {message: hint(told(texts, error))}
        return {message: hint(texts.saved), **shown_style(id), **found(text, tag_now)}

    def removed(id: str, text: str, tag_now: str) -> dict[Any, Any]:
        try:
            old = library.entry(id).name
            library.delete(id)
        except InstError as error:
            return {message: hint(told(texts, error))}
        return {
            message: hint(texts.deleted.format(name=old)),
            **closed(),
            **found(text, tag_now),
        }

    def undone(text: str, tag_now: str) -> dict[Any, Any]:
        """Bring back the style that was deleted last, by whomever: the library is everybody's."""
        try:
            entry = library.restore(library.deleted()[0].id)
        except (InstError, IndexError) as error:
            return {message: hint(told(texts, error) if isinstance(error, InstError) else ""), **found(text, tag_now)}
        sentence = texts.undone.format(name=entry.name)
        return {message: hint(sentence), **shown_style(entry.id), **found(text, tag_now)}

    def exported(id: str, to: str) -> str:
        return link_html(f"../api/styles/{id}/export?to={to}", texts.download_style) if id else ""

    def taken(given: tuple[str, str] | None, text: str, tag_now: str) -> dict[Any, Any]:
        if given is None:
            return {message: ""}
        if not studio.is_ready:
            return {message: hint(texts.loading)}
        path, name = Path(given[0]), Path(given[1])
        try:
            entry = library.import_file(path, studio.backbone())
            if entry.name == path.stem:  # an embedding that holds no name has that of its file
                entry = library.rename(entry.id, tidy_name(name.stem))
        except InstError as error:
            return {message: hint(told(texts, error).replace(str(path), name.name).replace(path.name, name.name))}
        sentence = texts.imported.format(name=entry.name)
        return {message: hint(sentence), **found(text, tag_now), **shown_style(entry.id)}

    async def opened(request: gr.Request) -> AsyncIterator[dict[Any, Any]]:
        yield await run_in_threadpool(found, "", "")

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    common: dict[str, Any] = {**quiet, "concurrency_limit": None}
    everything = [*listing, *panel, message]
    gr.on([search.change, tag.input], found, [search, tag], listing, trigger_mode="always_last", **common)
    by_picture.change(nearest, by_picture, [*listing, message], **common)
    gallery.select(selected, shown, [*panel, message], **common)
    gr.on([name.input, tags.input], lambda: "", None, message, queue=False, **quiet)
    save.click(saved, [current, name, tags, search, tag], everything, **common)
    delete.click(removed, [current, search, tag], everything, **common)
    undo.click(undone, [search, tag], everything, **common)
    imported.upload(taken, [imported, search, tag], everything, **common)
    gr.on([to.input, current.change], exported, [current, to], export, **common)
    return Tab(opened, everything)


def _thumbnail(studio: Studio, id: str) -> Any:
    from PIL import Image

    data = studio.library.thumbnail(id)
    if data is None:
        return Image.new("RGB", (256, 256), "#94a3b8")
    from inst.pictures.stored import decode_image

    return decode_image(data)


def _provenance(entry: Any) -> list[str]:
    parts = [
        ", ".join(entry.paintings),
        f"{entry.backbone}" if entry.backbone else "",
        f"{entry.variant}, {entry.steps} steps" if entry.steps else entry.variant,
        f"{entry.vectors} vectors, text space {entry.fingerprint}" if entry.has_word else "",
    ]
    return [part for part in parts if part]
