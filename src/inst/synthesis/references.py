"""The paintings of styles as references for style attention: their size, their latents, and their prompts."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from torch import Tensor

from inst.arguments import checked
from inst.backbone.devices import copy_to
from inst.backbone.model import Backbone
from inst.backbone.text import TextEmbedding
from inst.errors import Argument, InstWarning, UsageError
from inst.pictures.resizing import resize
from inst.sampling.attention import AttentionSettings, Reference, StyleAttention
from inst.sampling.noise import add_noise, draw_noise
from inst.sampling.tiles import encode_in_tiles
from inst.styles.style import Style
from inst.synthesis.plan import Plan
from inst.synthesis.prompts import Prompts, embed_prompts
from inst.synthesis.series import Series

_LARGEST_ENLARGEMENT = 1.5
"""A smaller painting enters smaller than `style_scale` says: enlarged further, its strokes would be blurred."""

_SEED = 0
"""The painting's noise is the same for every seed of the user, so that its keys and values can be shared."""


Paintings = Mapping[str, Sequence[tuple[Tensor, float]]]
"""The main paintings of each style, by placeholder: [3, H, W] in [-1, 1] and the share in the style."""


def uses_paintings(tone: str, style_attention: float) -> bool:
    """Return whether a picture takes something from the paintings of its styles."""
    return tone in ("painting", "adain") or style_attention > 0


def read_paintings(styles: Mapping[str, Style], prompts: Prompts, tone: str, style_attention: float) -> Paintings:
    """Decode the paintings that tone and style attention take something from.

    A style that only the negative prompt names gives nothing. With an encoded prompt, every style counts as named.

    Warns with `InstWarning` if a painting is needed, but a style has none.

    Raises:
        UsageError: nothing of a style would be used: it has no pseudo-word, and its painting is missing or not used.
        InstError: a painting is damaged.
    """
    used = uses_paintings(tone, style_attention)
    paintings = {}
    for name, style in styles.items():
        if not style.has_word and not (used and style.paintings):
            problem = f'The style "{style.name}" has no pseudo-word, and its painting '
            if not style.paintings:
                raise UsageError(problem + "is missing", "give the painting itself as the style")
            raise UsageError(
                problem + "takes no part",
                "set ",
                Argument("style_attention"),
                " above 0, or use the tone of the painting (",
                Argument("tone", "painting"),
                ")",
            )
        named = isinstance(prompts, TextEmbedding) or any(name in prompt for prompt in prompts)
        if not used or (style.has_word and not named):
            continue
        if not style.paintings:
            warnings.warn(
                f'The style "{style.name}" has no picture of its painting, so its palette and its strokes are not '
                "transferred.",
                InstWarning,
                stacklevel=3,
            )
        else:
            paintings[name] = style.main_paintings()
    return paintings


def make_references(
    backbone: Backbone,
    styles: Mapping[str, Style],
    paintings: Paintings,
    size: tuple[int, int],
    field: int | None,
    style_scale: float,
    style_weight: float,
) -> list[Reference]:
    """Make the references of paintings. Several styles have equal parts.

    Args:
        backbone: encodes the paintings and their prompts.
        styles: the styles by placeholder. The prompt of a painting is its pseudo-word, or empty without one.
        paintings: their paintings.
        size: (height, width) of the results in pixels.
        field: side in pixels of the tiles of the denoiser; None without tiles.
        style_scale: the short side of the painting, as a share of the short side of the result. A painting with more
            pixels than the denoiser sees at once is cropped in its centre.
        style_weight: the weight of the pseudo-words (`inst.synthesis.prompts.embed_prompts`).
    """
    area = math.prod(size) if field is None else min(math.prod(size), field**2)
    parts = [(styles[name], *part) for name, group in paintings.items() for part in group]
    total = sum(share for _, _, share in parts)
    return [
        _reference(backbone, style, painting, min(size) * style_scale, area, share / total, style_weight)
        for style, painting, share in parts
    ]


def check_style_scale(style_scale: float) -> None:
    """Raise UsageError unless `style_scale` is a number from 0.1 to 10."""
    if not 0.1 <= checked("style scale", style_scale, "float") <= 10:  # False for NaN too
        raise UsageError(f"A style scale of {style_scale} cannot be used", "give 0.1 (fine strokes) to 10 (large ones)")


def prepare_attention(
    backbone: Backbone,
    styles: Mapping[str, Style],
    paintings: Paintings,
    plan: Plan,
    settings: AttentionSettings,
    style_scale: float,
    style_weight: float,
    content_at: Callable[[int], Tensor] | None,
    series: Series | None = None,
    text: TextEmbedding | None = None,
) -> StyleAttention | None:
    """Prepare the style attention of a run; None if its weight is 0, or there is no painting or no step.

    Args:
        styles, paintings, style_scale, style_weight: as for `make_references`.
        content_at: the latents of the photos at a timestep, for query preservation; None if there is no photo.
        series: keeps the references to the paintings, and has those to other frames of a film; None for one picture.
        text: the prompt of these frames.
    """
    if settings.weight == 0 or not plan.timesteps:
        return None
    field = None if plan.tile is None else plan.tile * backbone.downscale
    size = plan.height, plan.width
    make = partial(make_references, backbone, styles, paintings, size, field, style_scale, style_weight)
    if series is None:
        references = make()
    else:
        named = (*styles.items(), *paintings)
        fixed = (backbone, backbone.options, named, size, field, style_scale, style_weight, settings.blocks)
        references = series.references(fixed, make)
    if not references:
        return None
    if series is not None and text is not None:
        neighbours = series.neighbours(backbone, plan.noise, text)
        left = 1 - sum(neighbour.share for neighbour in neighbours)
        references = [replace(reference, share=left * reference.share) for reference in references] + neighbours
    preserved = content_at if settings.query_preservation else None
    return StyleAttention(backbone, settings, references, plan.timesteps, preserved, plan.fresh)


def _reference(
    backbone: Backbone,
    style: Style,
    painting: Tensor,
    short_side: float,
    area: int,
    share: float,
    style_weight: float,
) -> Reference:
    picture = _fit(copy_to(painting, backbone.device), short_side, area, backbone.size_multiple)
    clean = encode_in_tiles(backbone, picture[None])
    noise = draw_noise((clean.shape[1], clean.shape[2], clean.shape[3]), [_SEED], clean.device)
    prompt, options = "[C]" if style.has_word else "", backbone.options
    text = embed_prompts(backbone, [prompt], {"[C]": style}, style_weight, clip_skip=options.clip_skip)
    text = text.with_images(options.no_images)
    return Reference(lambda t: add_noise(clean, noise, t, backbone.alphas_cumprod), text, share)


def _fit(painting: Tensor, short_side: float, area: int, multiple: int) -> Tensor:
    """Resize a painting [3, H, W] to a short side in pixels, and cut out its centre if it has more than `area` pixels.

    Both sides of the result are multiples of `multiple`.
    """
    height, width = painting.shape[1:]
    scale = min(short_side / min(height, width), _LARGEST_ENLARGEMENT)
    height, width = (max(multiple, round(side * scale)) for side in (height, width))
    # First the long side is cut. A square that is still too large is cut on both sides.
    short = min(height, width, math.isqrt(area))
    inside = [max(multiple, min(side, area // short) // multiple * multiple) for side in (height, width)]
    picture = resize(painting, (height, width))
    top, left = (height - inside[0]) // 2, (width - inside[1]) // 2
    return picture[:, top : top + inside[0], left : left + inside[1]]
