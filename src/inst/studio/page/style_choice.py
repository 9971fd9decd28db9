"""The choice of a style: a painting that is used at once, saved styles, or both as a mixture by weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from inst.studio.page.inputs import keep, picture_input
from inst.studio.page.texts import Texts
from inst.studio.studio import Studio

_MOST = 4  # of saved styles at once


@dataclass
class StyleChoice:
    """The components of the choice.

    Attributes:
        painting: a painting.
        saved: ids of styles in the library.
        recorded: styles from a picture that was dropped back, as parts of a request; empty otherwise.
        note: says that these are used.
        weights: a weight for the painting and for each saved style, in this order; shown if there are several.
    """

    studio: Studio
    texts: Texts
    painting: gr.Image
    saved: gr.Dropdown
    recorded: gr.State
    note: gr.HTML
    weights: list[gr.Slider]

    @property
    def inputs(self) -> list[gr.components.Component]:
        """The components whose values `refs` takes, after the person."""
        return [self.painting, self.saved, self.recorded, *self.weights]

    def refs(
        self,
        person: str,
        painting: tuple[str, str] | None,
        saved: Sequence[str],
        recorded: Sequence[Any],
        *weights: float,
    ) -> list[dict[str, Any]]:
        """Return the styles that a person chose as parts of a request; empty if there are none."""
        refs: list[dict[str, Any]] = list(recorded)
        if painting is not None:
            refs.append({"paintings": [keep(self.studio, person, painting)]})
        refs += [{"id": id} for id in saved or ()]
        if len(refs) > 1 and not recorded:
            for ref, weight in zip(refs, weights, strict=False):
                ref["weight"] = weight
        return refs

    def from_address(self, request: gr.Request, name: str) -> dict[Any, Any]:
        """Return the update for the saved styles that the address of the page names; unknown ones are left out."""
        choices = self.choices()
        known = {id for _, id in choices}
        ids = [id for id in request.query_params.get(name, "").split(",") if id in known]
        return {self.saved: gr.update(choices=choices, value=ids)}

    def renewed(self, ids: Sequence[str]) -> Any:
        """Return the update for the saved styles after the library may have changed."""
        choices = self.choices()
        known = {id for _, id in choices}
        return gr.update(choices=choices, value=[id for id in ids or () if id in known])

    def choices(self) -> list[tuple[str, str]]:
        """Return the names and ids of all saved styles."""
        return [(entry.name, entry.id) for entry in self.studio.library.styles()]


def build_style_choice(studio: Studio, texts: Texts, prefix: str) -> StyleChoice:
    """Make the components. `prefix` makes their ids in the page unique."""
    painting = picture_input(
        label=texts.painting,
        sources=["upload", "clipboard", "webcam"],
        height=240,
        buttons=["fullscreen"],
        elem_id=f"{prefix}-painting",
    )
    saved = gr.Dropdown(
        [],
        label=texts.saved_styles,
        info=texts.saved_styles_info,
        multiselect=True,
        max_choices=_MOST,
        elem_id=f"{prefix}-saved",
    )
    recorded = gr.State([])
    note = gr.HTML("", elem_id=f"{prefix}-recorded")
    weights = [
        gr.Slider(0, 2, 1, step=0.05, label=texts.weights, visible=False, elem_id=f"{prefix}-weight-{number}")
        for number in range(_MOST + 1)
    ]
    choice = StyleChoice(studio, texts, painting, saved, recorded, note, weights)

    def show_weights(painting: tuple[str, str] | None, ids: Sequence[str]) -> list[Any]:
        names = {id: name for name, id in choice.choices()}
        sources = [texts.the_painting] if painting is not None else []
        sources += [f"“{names[id]}”" for id in ids or () if id in names]
        shown = len(sources) > 1
        labels = [texts.weight_of.format(name=name.strip("“”")) for name in sources]
        return [
            gr.update(visible=shown and number < len(labels), label=labels[number] if number < len(labels) else "")
            for number in range(len(weights))
        ]

    gr.on(
        [painting.change, saved.change],
        show_weights,
        [painting, saved],
        weights,
        show_progress="hidden",
        queue=False,
        api_visibility="private",
    )
    # Another painting or another saved style takes the place of the styles of a picture.
    gr.on(
        [painting.input, saved.input],
        lambda: ([], ""),
        None,
        [recorded, note],
        queue=False,
        api_visibility="private",
    )
    return choice
