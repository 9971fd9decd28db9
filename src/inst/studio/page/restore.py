"""Settings back from a picture: a PNG file that was made here, or by the command line, holds how it was made."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import gradio as gr

from inst.errors import InstError
from inst.studio.page.address import fitting
from inst.studio.page.follow import hint
from inst.studio.page.inputs import Ref, keep, picture_input, remember_name
from inst.studio.page.problems import told
from inst.studio.page.tab import Tab
from inst.studio.page.texts import Texts
from inst.studio.people import person_of
from inst.studio.requests import GenerateRequest, SheetRequest, TransferRequest
from inst.studio.studio import Studio
from inst.texts import cut

if TYPE_CHECKING:
    from inst.files.provenance import SourceFile
    from inst.synthesis.record import PictureRecord

_TAB_OF = {"transfer": "transfer", "sheet": "transfer", "generate": "generate", "preview": "generate"}
"""The tab that shows the settings of a picture, by the command in its record."""
_LONGEST_NAMES = 300
"""Characters of the names of a picture's styles."""


def build_restore(studio: Studio, texts: Texts, tabs: Mapping[str, Tab], bar: gr.Tabs) -> None:
    """Make the part of the page into which a picture is dropped. It changes the tabs for transfer and generation."""
    with gr.Accordion(texts.restore, open=False, elem_id="restore-part"):
        gr.Markdown(texts.restore_info)
        made = picture_input(label=texts.restore, sources=["upload"], height=140, buttons=[], elem_id="restore")
        state = gr.HTML("", elem_id="restore-status")

    def restore(request: gr.Request, picture: tuple[str, str] | None) -> dict[Any, Any]:
        if picture is None:
            return {state: ""}
        try:
            ref = keep(studio, person_of(request), picture)
            assert ref is not None
            record = _record(studio, ref)
        except InstError as error:
            return {state: hint(told(texts, error))}
        name = _TAB_OF[record.command]
        tab = tabs[name]
        assert tab.choice is not None
        update: dict[Any, Any] = {bar: gr.Tabs(selected=name)}
        for setting, component in tab.settings.items():
            given = record.settings.get(setting)  # the components' own values are the defaults
            value = component.value if given is None else fitting(component, given)
            if value is not None:
                update[component] = value
        styles = [{"record": ref, "placeholder": placeholder} for placeholder in record.styles]
        update |= {tab.choice.recorded: styles, tab.choice.painting: None, tab.choice.saved: []}
        update[tab.choice.note] = hint(
            texts.style_of_picture.format(name=cut(", ".join(_names(record)), _LONGEST_NAMES))
        )
        others, sentence = _others(record, name, tab.settings), texts.restored
        if record.mask is not None:
            mask = _kept(studio, person_of(request), record.mask)
            if mask is None:
                sentence = texts.restored_without_mask
            else:
                others["mask"] = {"upload": record.mask.sha256, "name": record.mask.name}
        update[tab.others] = others
        if tab.photo is not None:
            photo = _kept(studio, person_of(request), record.photo)
            update[tab.photo] = photo
            sentence = sentence if photo else texts.restored_without_photo
        return {**update, state: hint(sentence)}

    changed: list[Any] = [state, bar]
    for name in set(_TAB_OF.values()):
        tab = tabs[name]
        assert tab.choice is not None
        changed += [*tab.settings.values(), tab.choice.recorded, tab.choice.painting, tab.choice.saved]
        changed += [tab.choice.note, tab.others, *([] if tab.photo is None else [tab.photo])]
    made.input(restore, made, changed, show_progress="hidden", concurrency_limit=None, api_visibility="private")


def _record(studio: Studio, ref: Ref) -> PictureRecord:
    from inst.synthesis.record import read_record

    path = studio.uploads.find(ref["upload"])
    try:
        record = read_record(path)
    except InstError as error:
        raise InstError(error.problem.replace(str(path), "The picture"), *error.remedy) from None
    if record.command not in _TAB_OF:
        raise InstError("The picture is a demonstration, not one picture", "choose another one")
    return record


def _names(record: PictureRecord) -> list[str]:
    return [style.name for style in record.styles.values()]


def _others(record: PictureRecord, tab: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that the page does not show and a request takes, so that the picture becomes the same."""
    fields = {**TransferRequest.model_fields, **SheetRequest.model_fields}
    if tab == "generate":
        fields = GenerateRequest.model_fields
    return {name: value for name, value in record.settings.items() if name in fields and name not in settings}


def _kept(studio: Studio, person: str, source: SourceFile | None) -> str | None:
    """Return the photo or the mask of a picture, if it is still among the person's uploads, and remember its name.

    Nobody else gets it: a picture that was given away must not give away its photo.
    """
    if source is None:
        return None
    with suppress(InstError):
        path = studio.uploads.find(source.sha256, person)
        remember_name(source.sha256, source.name)
        return str(path)
    return None
