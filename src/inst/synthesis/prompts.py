"""Conditioning: what the denoiser is told, from prompts and the styles that their placeholders stand for."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

from inst.arguments import LARGEST_FACTOR, check_type, checked
from inst.backbone.model import Backbone
from inst.backbone.text import TextEmbedding, coarse_word
from inst.backbone.tokens import PLACEHOLDER, check_placeholders
from inst.errors import InstWarning, UsageError
from inst.styles.style import Style


def name_styles(backbone: Backbone, style: Style | Mapping[str, Style]) -> dict[str, Style]:
    """Give every style its placeholder (a single one's is `[C]`), and check that it fits the backbone.

    Warns with `InstWarning` where a style was learned with another denoiser over the same text space.

    Raises:
        UsageError: no style, a name that is no placeholder, a style of another text space, or something that is no
            backbone or no style.
    """
    check_type("A backbone", backbone, Backbone, "load one with inst.Backbone.load")
    styles = dict(style) if isinstance(style, Mapping) else {"[C]": style}
    if not styles:
        raise UsageError("No style is given", 'give one, or several by placeholder: {"[C1]": one, "[C2]": other}')
    check_placeholders(styles)
    for one in styles.values():
        check_type("A style", one, Style, "read one with inst.Style.load")
        warning = one.check(backbone)
        if warning is not None:
            warnings.warn(warning, InstWarning, stacklevel=3)
    return styles


def read_prompts(prompt: str | Sequence[str | None] | None, negative_prompt: str) -> list[str | None]:
    """Return prompts as a list. Raises UsageError where one of them, or the negative prompt, is no text."""
    checked("negative prompt", negative_prompt, "str")
    prompts = prompt if isinstance(prompt, Sequence) and not isinstance(prompt, str) else [prompt]
    return [None if one is None else checked("prompt", one, "str") for one in prompts]


def complete_prompt(prompt: str | None, negative_prompt: str, styles: Mapping[str, Style]) -> str:
    """Return a prompt that names the styles: of `None` (or nothing) `[C]`, of a text `TEXT in the style of [C]`.

    A prompt that has a placeholder stays as it is; a style that the negative prompt names needs no place in the prompt.
    """
    prompt = (prompt or "").strip()
    if PLACEHOLDER.search(prompt):
        return prompt
    names = " and ".join(name for name in styles if name not in negative_prompt)
    return f"{prompt} in the style of {names}" if prompt and names else prompt or names


def check_prompts(
    backbone: Backbone,
    prompts: Sequence[str],
    negative_prompt: str,
    styles: Mapping[str, Style],
    style_weight: float,
    guidance: float,
) -> None:
    """Check the arguments of `embed_prompts` without computing anything.

    Raises:
        UsageError: no prompt; a prompt that is too long, has a placeholder without a style, or does not name a style
            that the negative prompt does not name either, or names where no guidance leads away from it; a style
            weight that is negative or not finite.
    """
    if not prompts:
        raise UsageError("No prompt is given", "give at least one text")
    if not 0 <= checked("style weight", style_weight, "float") <= LARGEST_FACTOR:  # NaN is not either
        raise UsageError(
            f"A style weight of {style_weight} cannot be used",
            f"give 0 (no style), 1 (as learned) or more, up to {LARGEST_FACTOR}",
        )
    backbone.tokenize([*prompts, negative_prompt], {name: len(one.vectors) for name, one in styles.items()})
    for prompt in prompts:
        unused = [name for name in styles if name not in prompt and name not in negative_prompt]
        if unused:
            example = f"{prompt.strip() or 'a castle'} in the style of {' and '.join(unused)}"
            raise UsageError(
                f'The prompt "{prompt}" does not say where the style goes',
                f'write {" and ".join(unused)} in it, such as "{example}"',
            )
        idle = [name for name in styles if name not in prompt]
        if idle and guidance == 1:
            raise UsageError(
                f"The negative prompt alone names {' and '.join(idle)}, and with a guidance of 1 (none) it has no "
                f"effect",
                "give more guidance, such as 4, or name the style in the prompt",
            )


def embed_prompts(
    backbone: Backbone, prompts: Sequence[str], styles: Mapping[str, Style], style_weight: float = 1.0
) -> TextEmbedding:
    """Encode prompts, with the styles at a weight w: plain + w (styled - plain).

    `plain` is the same prompt with the coarse word "painting" at every position of a pseudo-word. To leave the
    placeholder out instead would move all later words to other positions, and a mean of two different words at one
    position is neither. 0 is exactly plain, 1 exactly as learned; above 1 the style is
    exaggerated, until it falls apart (with mini between 1.5 and 2).
    """
    vectors = {name: style.vectors for name, style in styles.items()}
    styled = backbone.embed_text(prompts, vectors)
    if style_weight == 1:
        return styled
    word = coarse_word(backbone)
    plain = backbone.embed_text(prompts, {name: word.expand(len(rows), -1) for name, rows in vectors.items()})
    return plain.lerp(styled, style_weight)
