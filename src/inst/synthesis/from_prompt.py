"""Generate pictures from prompts, in a style."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from inst.arguments import check_choice
from inst.backbone.model import Backbone
from inst.backbone.text import TextEmbedding
from inst.pictures.resizing import fit_size
from inst.sampling.attention import AttentionSettings
from inst.sampling.control import Control, check_control
from inst.sampling.noise import Seed
from inst.sampling.solvers import Sampling, allow_early_stop
from inst.sampling.tiles import decode_any_size
from inst.styles.style import Style
from inst.synthesis.plan import make_plan, read_size
from inst.synthesis.prompts import Prompts, check_prompts, embed_both, name_styles, read_prompts
from inst.synthesis.references import check_style_scale, prepare_attention, read_paintings
from inst.synthesis.tone import adain, latent_statistics, match_palette, palette_of


def generate(
    backbone: Backbone,
    prompt: str | Sequence[str] | TextEmbedding,
    style: Style | Mapping[str, Style],
    *,
    steps: int = 20,
    guidance: float = 5.0,
    negative_prompt: str | Sequence[str] | TextEmbedding = "",
    seed: Seed = 0,
    solver: str = "dpm++",
    tone: str = "none",
    style_weight: float = 1.0,
    size: int | tuple[int, int] | None = None,
    tile: int | None = None,
    control: Control | None = None,
    style_attention: float = 0.5,
    style_scale: float = 1.0,
    attention_temperature: float = 1.0,
    attention_blocks: str = "up",
    eta: float = 0.0,
    noise: Tensor | None = None,
    spacing: str = "trailing",
    cache_interval: int = 1,
) -> Sampling:
    """Generate pictures from prompts, in the style of a painting.

    Args:
        backbone: the frozen model.
        prompt: a text with the placeholder of the style, or one text for each picture: "a castle in the style of [C]";
            or encoded prompts, as in `transfer`.
        style: the style for `[C]`; or several styles by placeholder.
        steps, guidance, negative_prompt, solver, style_weight, tile: the same as in `transfer`.
        style_attention: W, the same as in `transfer`. At 0.5, the picture under way and the painting count equally, and
            the prompt decides what the picture shows. At 1, things that the painting shows come into the picture.
        style_scale, attention_temperature, attention_blocks, eta, noise, spacing, cache_interval: the same as in
            `transfer`.
        seed: random seed; one integer for all pictures, or one for each. Several seeds for one prompt give several
            pictures. PyTorch generators are accepted, too (`inst.sampling.noise.Seed`).
        tone: "none", "painting" (the palette of the painting) or "adain" (`inst.synthesis.tone`).
        size: side of a square in pixels, or (width, height). None is a square of the backbone's native size; with a
            control picture, it is a picture with the proportions of the control picture.
        control: a ControlNet and a control picture, which gives the structure (`inst.sampling.control`).

    Yields:
        `SamplingStep`.

    Returns:
        [B, 3, H, W] in [-1, 1] on the device of the backbone.

    Raises:
        UsageError: an argument cannot be used, such as a prompt without the placeholder of the style. It is raised
            before anything is computed.

    Warns:
        InstWarning: a style was learned with another UNet with the same text space, or has no picture of its painting
            for tone and style attention.
    """
    styles = name_styles(backbone, style)
    settings = AttentionSettings(style_attention, 0.0, attention_temperature, attention_blocks)
    check_style_scale(style_scale)
    texts, negatives = read_prompts(prompt, negative_prompt)
    prompts: Prompts = texts if isinstance(texts, TextEmbedding) else [text or "" for text in texts]
    check_prompts(backbone, prompts, negatives, styles, style_weight, guidance)
    check_choice("tone", tone, ("none", "painting", "adain"))
    paintings = read_paintings(styles, prompts, tone, style_attention)
    palette = palette_of(paintings) if tone == "painting" else None
    out = read_size(backbone.native_size if size is None else size)
    check_control(control, backbone, None if size is None else (out[1], out[0]), photo=False)
    if control is not None and size is None:
        out = fit_size(control.picture.shape[2], control.picture.shape[1], backbone.native_size)
    plan = make_plan(
        backbone, out, len(prompts), seed, 1.0, steps, guidance, solver, tile, eta, noise, spacing, cache_interval
    )

    @torch.no_grad()
    def run() -> Sampling:
        text, negative = embed_both(backbone, prompts, negatives, styles, style_weight)
        prepared_control = plan.prepare_control(backbone, control, None)
        attention = prepare_attention(backbone, styles, paintings, plan, settings, style_scale, style_weight, None)
        denoise = plan.denoiser(backbone, text, negative, guidance, prepared_control, attention)
        latents = yield from allow_early_stop(plan.solve(denoise, plan.noise, plan.timesteps, backbone.schedule))
        if tone == "adain" and paintings:
            latents = adain(latents, *latent_statistics(backbone, paintings))
        result = decode_any_size(backbone, latents, plan.height, plan.width)
        return result if palette is None else match_palette(result, palette)

    return run()
