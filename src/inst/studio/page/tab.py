"""What the page knows of each of its tabs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from inst.studio.page.style_choice import StyleChoice


@dataclass
class Tab:
    """A tab that has been built.

    Attributes:
        opened: called when the page is opened; yields updates of `outputs`.
        outputs: the components that it changes.
        choice: the choice of styles, which is renewed when the library has changed; None if there is none.
        settings: components by the name of the argument of `inst.transfer` or `inst.generate`.
        others: settings that came with a picture and have no component, by the same names.
        photo: the input for the photo; None if there is none.
    """

    opened: Callable[[gr.Request], AsyncIterator[dict[Any, Any]]]
    outputs: list[Any]
    choice: StyleChoice | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    others: gr.State | None = None
    photo: gr.Image | None = None
