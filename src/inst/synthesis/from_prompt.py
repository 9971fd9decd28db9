"""From a prompt and a style to pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from inst.arguments import check_choice, check_type
from inst.backbone.model import Backbone
from inst.pictures.io import fit_size
from inst.sampling.control import Control, check_kind
from inst.sampling.noise import Seed
from inst.sampling.solvers import Sampling, stoppable
from inst.sampling.tiles import decode_any_size
from inst.styles.style import Style
from inst.synthesis.plan import make_plan, square
from inst.synthesis.prompts import check_prompts, embed_prompts, name_styles, read_prompts
from inst.synthesis.tone import adain, paintings_of, palette


def generate(
    backbone: Backbone,
    prompt: str | Sequence[str],
    style: Style | Mapping[str, Style],
    *,
    steps: int = 20,
    guidance: float = 5.0,
    negative_prompt: str = "",
    seed: Seed = 0,
    solver: str = "dpm++",
    tone: str = "none",
    style_weight: float = 1.0,
    size: int | tuple[int, int] | None = None,
    tile: int | None = None,
    control: Control | None = None,
) -> Sampling:
    """Make pictures from prompts, in the style of a painting.

    Args:
        backbone: the frozen model.
        prompt: a text, or one for each picture, with the style's placeholder: "a castle in the style of [C]".
        style: stands for `[C]`; or several, by placeholder.
        steps, guidance, negative_prompt, solver, style_weight, tile: as for `transfer`.
        seed: an integer for all pictures, or one for each. Several for one prompt give as many pictures. PyTorch's
            generators can be given instead (`inst.sampling.noise.Seed`).
        tone: "none", or "painting" (toward the painting's palette).
        size: pixels of a square's side, or (width, height); None is a square of the backbone's native size, or with a
            control picture its proportions.
        control: a ControlNet and a picture of the structure to keep to (`inst.sampling.control`).

    Yields:
        `SamplingStep`.

    Returns:
        [B, 3, H, W] in [-1, 1] on the backbone's device.

    Raises:
        UsageError: an argument that cannot be used, among them a prompt without the style's placeholder, before
            anything is computed.

    Warns:
        InstWarning: a style was learned with another denoiser over the same text space, or carries no painting for
            the tone.
    """
    styles = name_styles(backbone, style)
    prompts = [one or "" for one in read_prompts(prompt, negative_prompt)]
    check_prompts(backbone, prompts, negative_prompt, styles, style_weight, guidance)
    check_choice("tone", tone, ("none", "painting"))
    paintings = paintings_of(styles) if tone == "painting" else []
    out = square(backbone.native_size if size is None else size)
    if control is not None:
        check_type("A control", control, Control, "make one with inst.Control")
        check_kind(control.kind, given=control.picture is not None, photo=False)
        control.check(backbone, None if size is None else (out[1], out[0]))
        if size is None and control.picture is not None:
            out = fit_size(control.picture.shape[2], control.picture.shape[1], backbone.native_size)
    plan = make_plan(backbone, out, len(prompts), seed, 1.0, steps, guidance, solver, tile)

    @torch.no_grad()
    def run() -> Sampling:
        text, negative = (
            embed_prompts(backbone, texts, styles, style_weight) for texts in (prompts, [negative_prompt])
        )
        held = plan.held(backbone, control, None)
        denoise = plan.denoiser(backbone, text, negative, guidance, held)
        latents = yield from stoppable(plan.solve(denoise, plan.noise, plan.timesteps, backbone.alphas_cumprod))
        if paintings:
            latents = adain(latents, *palette(backbone, paintings))
        return decode_any_size(backbone, latents, plan.height, plan.width)

    return run()
