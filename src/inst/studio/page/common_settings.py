"""The settings that the tabs for transfer and for generation share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr

from inst.studio.page.texts import Texts

LONGEST_PROMPT = 2000


def build_common_settings(texts: Texts, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Make the components, and return them by the names of the library's arguments.

    Args:
        texts: the words of the page.
        defaults: the defaults of the library's function.
    """
    return {
        "style_attention": gr.Slider(
            0,
            1,
            defaults["style_attention"],
            step=0.05,
            label=texts.style_attention,
            info=texts.style_attention_info,
        ),
        "style_weight": gr.Slider(
            0, 2, defaults["style_weight"], step=0.05, label=texts.style_weight, info=texts.style_weight_info
        ),
        "guidance": gr.Slider(1, 12, defaults["guidance"], step=0.5, label=texts.guidance, info=texts.guidance_info),
        "seed": gr.Number(
            defaults["seed"], label=texts.seed, info=texts.seed_info, precision=0, minimum=0, maximum=2**53
        ),
        "negative_prompt": gr.Textbox(
            "", label=texts.negative_prompt, info=texts.negative_prompt_info, max_length=LONGEST_PROMPT
        ),
    }
