"""Conditioning: check prompts, put styles in the place of their placeholders, and encode the prompts."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from inst.arguments import check_factor, check_type, checked
from inst.backbone.model import Backbone, check_backbone
from inst.backbone.text import TextEmbedding, coarse_word
from inst.backbone.tokens import PLACEHOLDER, check_placeholders
from inst.backbone.weights import read_weights
from inst.errors import Call, InstWarning, UsageError
from inst.styles.style import Style
from inst.synthesis.plan import MOST_PICTURES

_LONGEST_PROMPT = 10_000
"""Longest prompt in characters. A model reads about 75 words."""


def name_styles(backbone: Backbone, style: Style | Mapping[str, Style]) -> dict[str, Style]:
    """Return the styles by placeholder (`[C]` for a single style), and check that they fit the backbone.

    Warns with `InstWarning` if a style was learned with another UNet with the same text space.

    Raises:
        UsageError: there is no style, a key is not a placeholder, a style has another text space, or an argument is not
            a backbone or not a style.
    """
    check_backbone(backbone)
    styles = dict(style) if isinstance(style, Mapping) else {"[C]": style}
    if not styles:
        raise UsageError("No style is given", 'give one style, or several by placeholder: {"[C1]": one, "[C2]": other}')
    check_placeholders(styles)
    for given in styles.values():
        check_type("A style", given, Style, "read it with inst.read_style")
        warning = given.check(backbone)
        if warning is not None:
            warnings.warn(warning, InstWarning, stacklevel=3)
    return styles


Prompts = list[str] | TextEmbedding
"""The prompts of a run, still to be encoded or already encoded. What an encoded prompt names is not known."""


def read_prompts(
    prompt: str | Sequence[str | None] | TextEmbedding | None, negative_prompt: str | Sequence[str] | TextEmbedding
) -> tuple[list[str | None] | TextEmbedding, Prompts]:
    """Return B prompts and B or 1 negative prompts as lists; encoded ones as they are.

    Raises:
        UsageError: a prompt is neither text nor encoded, or the negative prompts do not fit the prompts.
    """
    prompts, negatives = (_listed(given) for given in (prompt, negative_prompt))
    if (most := max(len(prompts), len(negatives))) > MOST_PICTURES:
        raise UsageError(f"{most} prompts cannot be used at once", f"give {MOST_PICTURES} or fewer, in several calls")
    if not isinstance(negatives, TextEmbedding):
        negatives = [_check_text("negative prompt", text) for text in negatives]
    if not isinstance(prompts, TextEmbedding):
        prompts = [None if text is None else _check_text("prompt", text) for text in prompts]
    if len(prompts) and len(negatives) not in (1, len(prompts)):
        raise UsageError(
            f"{len(negatives)} negative prompts do not fit {len(prompts)} prompts",
            "give one text for all, or one for each",
        )
    return prompts, negatives


def _check_text(what: str, text: Any) -> str:
    """Return a prompt. Raises UsageError for one that no model reads: to count its tokens would take long."""
    checked_text: str = checked(what, text, "str")
    if len(checked_text) > _LONGEST_PROMPT:
        raise UsageError(
            f"The {what} has {len(checked_text):,} characters", f"shorten it; {_LONGEST_PROMPT:,} are the limit"
        )
    return checked_text


def _listed(given: Any) -> Any:
    return (
        given
        if isinstance(given, TextEmbedding) or (isinstance(given, Sequence) and not isinstance(given, str))
        else [given]
    )


def _each(negatives: Prompts, count: int) -> list[str]:
    """Return the text of the negative prompt of each of `count` prompts; "" for encoded ones."""
    if isinstance(negatives, TextEmbedding):
        return [""] * count
    return negatives * count if len(negatives) == 1 else negatives


def complete_prompts(
    prompts: list[str | None] | TextEmbedding, negatives: Prompts, styles: Mapping[str, Style]
) -> Prompts:
    """Return prompts that name the styles (`complete_prompt`); encoded ones as they are."""
    if isinstance(prompts, TextEmbedding):
        return prompts
    pairs = zip(prompts, _each(negatives, len(prompts)), strict=True)
    return [complete_prompt(prompt, negative, styles) for prompt, negative in pairs]


def complete_prompt(prompt: str | None, negative_prompt: str, styles: Mapping[str, Style]) -> str:
    """Return a prompt that names the styles: `[C]` for `None` or an empty text, else `TEXT in the style of [C]`.

    A prompt with a placeholder does not change. A style that the negative prompt names is not added to the prompt, and
    neither is a style without a pseudo-word.
    """
    prompt = (prompt or "").strip()
    if PLACEHOLDER.search(read_weights(prompt).text):
        return prompt
    negative = read_weights(negative_prompt).text
    names = " and ".join(name for name, style in styles.items() if style.has_word and name not in negative)
    return f"{prompt} in the style of {names}" if prompt and names else prompt or names


def check_prompts(
    backbone: Backbone,
    prompts: Prompts,
    negatives: Prompts,
    styles: Mapping[str, Style],
    style_weight: float,
    guidance: float,
) -> None:
    """Check the arguments of `embed_prompts` without computing anything.

    Raises:
        UsageError: there is no prompt; a prompt is too long, or has a placeholder without a style or of a style without
            a pseudo-word; a style is in neither prompt, or only in the negative prompt while the guidance is 1; an
            encoded prompt does not fit the denoiser or the other prompts; or the style weight is negative, not finite
            or too large.
    """
    if not len(prompts):
        raise UsageError("No prompt is given", "give at least one text")
    check_factor("style weight", style_weight, "give 0 (no style), 1 (as learned) or more")
    _check_encoded(backbone, prompts, negatives)
    given = [] if isinstance(prompts, TextEmbedding) else prompts
    unwanted = [] if isinstance(negatives, TextEmbedding) else negatives
    named = [read_weights(text).text for text in (*given, *unwanted)]
    for name, style in styles.items():
        if not style.has_word and any(name in text for text in named):
            raise UsageError(
                f'The style "{style.name}" has no pseudo-word, so {name} cannot stand in a prompt',
                f"leave {name} out, or learn the style with ",
                Call("learn"),
            )
    words = [name for name, style in styles.items() if style.has_word]
    lengths = {name: len(styles[name].vectors) for name in words}
    backbone.tokenize(given, lengths)
    backbone.tokenize(unwanted, lengths, what="negative prompt")
    for pair in zip(given, _each(negatives, len(given)), strict=True):
        prompt, negative = (read_weights(text).text for text in pair)
        unused = [name for name in words if name not in prompt and name not in negative]
        if unused:
            example = f"{prompt.strip() or 'a castle'} in the style of {' and '.join(unused)}"
            raise UsageError(
                f'The prompt "{prompt}" does not say where the style goes',
                f'write {" and ".join(unused)} in it, such as "{example}"',
            )
        only_negative = [name for name in words if name not in prompt]
        if only_negative and guidance == 1:
            raise UsageError(
                f"Only the negative prompt names {' and '.join(only_negative)}, and with a guidance of 1 (none) it has "
                f"no effect",
                "give more guidance, such as 4, or name the style in the prompt",
            )


def _check_encoded(backbone: Backbone, prompts: Prompts, negatives: Prompts) -> None:
    """Raise UsageError unless encoded prompts have the shapes that the denoiser takes, and one length."""
    width, encoder_2 = backbone.unet.config["cross_attention_dim"], backbone.text_encoder_2
    lengths = []
    for text in (prompts, negatives):
        if not isinstance(text, TextEmbedding):
            lengths.append(backbone.tokenizer.model_max_length)
            continue
        if text.tokens.dim() != 3 or text.tokens.shape[-1] != width:
            raise UsageError(
                f"An encoded prompt of the shape {list(text.tokens.shape)} cannot be used", f"give [B, L, {width}]"
            )
        lengths.append(text.tokens.shape[1])
        pooled = None if text.pooled is None else list(text.pooled.shape)
        needed = None if encoder_2 is None else [len(text), encoder_2.config.projection_dim]
        if pooled != needed:
            found = "without pooled vectors" if pooled is None else f"with pooled vectors of the shape {pooled}"
            raise UsageError(
                f"An encoded prompt {found} cannot be used",
                "leave the pooled vectors out" if needed is None else f"give pooled vectors of the shape {needed}",
            )
    if lengths[0] != lengths[1]:
        raise UsageError(
            f"The prompt has {lengths[0]} tokens, and the negative prompt {lengths[1]}",
            "give both encoded, with one length",
        )


def embed_both(
    backbone: Backbone,
    prompts: Prompts,
    negatives: Prompts,
    styles: Mapping[str, Style],
    style_weight: float,
) -> tuple[TextEmbedding, TextEmbedding]:
    """Encode the prompts and the negative prompts of a run, with the options of the backbone; encoded ones stay."""
    options = backbone.options
    text, negative = prompts, negatives
    if not isinstance(text, TextEmbedding):
        text = embed_prompts(backbone, text, styles, style_weight, clip_skip=options.clip_skip)
    if not isinstance(negative, TextEmbedding):
        negative = embed_prompts(backbone, negative, styles, style_weight)
    return text.with_images(options.images), negative.with_images(options.no_images)


def embed_prompts(
    backbone: Backbone,
    prompts: Sequence[str],
    styles: Mapping[str, Style],
    style_weight: float = 1.0,
    *,
    clip_skip: int = 0,
) -> TextEmbedding:
    """Encode prompts, with the styles at a style weight w: plain + w (styled - plain).

    `plain` is the same prompt with the coarse word "painting" at every position of a pseudo-word. If the placeholder
    were left out instead, all later words would move to other positions, and the mean of two different words at one
    position has no meaning. 0 is exactly plain, 1 exactly as learned. Above 1 the style is exaggerated; at some weight
    the picture breaks down (with mini between 1.5 and 2).
    """
    vectors = {name: style.vectors for name, style in styles.items() if style.has_word}
    styled = backbone.embed_text(prompts, vectors, clip_skip=clip_skip)
    if style_weight == 1 or not vectors:
        return styled
    word = coarse_word(backbone)
    words = {name: word.expand(len(rows), -1) for name, rows in vectors.items()}
    plain = backbone.embed_text(prompts, words, clip_skip=clip_skip)
    return plain.lerp(styled, style_weight)
