"""Transfer a style to photos, and generate pictures in it (paper sec. 3.1 and 3.3).

Both check every argument when they are called, and return a generator that yields a `SamplingStep` after each step and
ends with the pictures. `inst.runs.complete` runs one to its end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from inst.arguments import check_choice, check_type
from inst.backbone.model import Backbone
from inst.errors import UsageError
from inst.pictures.given import Picture, read_batch, read_mask
from inst.pictures.io import fit_size, resize, resize_mask
from inst.sampling.content import INVERSIONS, invert_content
from inst.sampling.control import Control, check_kind
from inst.sampling.masks import feather, masked, to_latents
from inst.sampling.noise import Seed
from inst.sampling.solvers import Sampling, stoppable
from inst.sampling.tiles import decode_any_size, encode_any_size
from inst.styles.style import Style
from inst.synthesis.plan import make_plan
from inst.synthesis.prompts import check_prompts, complete_prompt, embed_prompts, name_styles, read_prompts
from inst.synthesis.tone import TONES, adain, keep_colours, paintings_of, palette


def transfer(
    backbone: Backbone,
    photo: Picture | Sequence[Picture],
    style: Style | Mapping[str, Style],
    *,
    strength: float = 0.5,
    steps: int = 20,
    guidance: float = 4.0,
    prompt: str | Sequence[str] | None = None,
    negative_prompt: str = "",
    seed: Seed = 0,
    inversion: str = "stochastic",
    solver: str = "dpm++",
    tone: str = "painting",
    style_weight: float = 1.0,
    size: int | None = None,
    mask: Picture | None = None,
    tile: int | None = None,
    control: Control | None = None,
) -> Sampling:
    """Give photos the style of a painting; their content is kept by stochastic inversion (paper sec. 3.3).

    Args:
        backbone: the frozen model.
        photo: a photo of any size and proportions, or several of one size: a path, a PIL image, an array, a tensor
            [3, H, W] or [B, 3, H, W] in [-1, 1], or an `inst.Photo` (`inst.pictures.given.Picture`).
        style: stands for `[C]` in the prompt; or several, by placeholder: `{"[C1]": one, "[C2]": other}`.
        strength: in [0, 1], how far from the photo the result may go. 0 is the photo as the autoencoder sees it, 1
            starts from nearly pure noise.
        steps: sampling steps, each a call of the denoiser; as many at every strength (fewer only where fewer timesteps
            are left: at a tiny one). The inversion "stochastic" takes one call more, "ddim" two for each step.
        guidance: scale of the classifier-free guidance; 1 is none, and twice as fast.
        prompt: what the result shows, a text for all photos or one for each. Without a placeholder " in the style of
            [C]" is added; None is "[C]" alone.
        negative_prompt: what the guidance leads away from; may name a style of its own.
        seed: an integer for all pictures, or one for each. Several for one photo give as many results. A picture
            depends on its seed only, not on what else is in the batch. PyTorch's generators can be given instead
            (`inst.sampling.noise.Seed`).
        inversion: how the photo's content goes into the noise: "stochastic", "none" or "ddim"
            (`inst.sampling.content`).
        solver: "ddim" or "dpm++" (`inst.sampling.solvers`).
        tone: "none", "painting" (toward the painting's palette; below strength 0.5 in proportion) or "photo" (the
            photo's colours); see `inst.synthesis.tone`.
        style_weight: 1 is the style as learned, 0 none, more exaggerates it (`inst.synthesis.prompts.embed_prompts`).
        size: pixels of the results' short side; None is the size that the backbone was made for.
        mask: a path, a PIL image, an array or a tensor [H, W] in [0, 1], of the photo's size: 1 where the style is
            wanted; where it is 0, the (resized) photo
            stays as it is to the bit. Edges are softened inwards.
        tile: pixels of the side of the tiles that the denoiser sees, rounded up to what it takes; 0 is no tiles. None
            is the backbone's native size for pictures with a side of more than twice that, else no tiles.
        control: a ControlNet that keeps the photo's structure (`inst.sampling.control`); each tile sees its part of the
            control picture. The stochastic inversion goes without it: as in the paper, the start is to hold what the
            model does not know of the photo, and a model that is told the structure leaves less of it there. DDIM
            inversion goes with it, because only the denoiser that leads back down is inverted.

    Yields:
        `SamplingStep`; nothing at strength 0. Latents are those of pictures padded at the right and bottom. The steps
        of the inversion "ddim" come first and are marked by their phase.

    Returns:
        [B, 3, H', W'] in [-1, 1] on the backbone's device, of the photo's proportions.

    Raises:
        UsageError: an argument that cannot be used, before anything is computed.

    Warns:
        InstWarning: a style was learned with another denoiser over the same text space, or carries no painting for
            the tone.
    """
    styles = name_styles(backbone, style)
    texts = read_prompts(prompt, negative_prompt)
    prompts = [complete_prompt(one, negative_prompt, styles) for one in texts]
    check_prompts(backbone, prompts, negative_prompt, styles, style_weight, guidance)
    check_choice("inversion", inversion, INVERSIONS)
    check_choice("tone", tone, TONES)
    paintings = paintings_of(styles) if tone == "painting" else []
    photos = read_batch(photo)
    if len(prompts) not in (1, len(photos)):
        raise UsageError(f"{len(prompts)} prompts do not fit {len(photos)} photos", "give one for all, or one for each")
    height, width = photos.shape[2:]
    inside_of = None if mask is None else read_mask(mask, (height, width))
    if control is not None:
        check_type("A control", control, Control, "make one with inst.Control")
        check_kind(control.kind, given=control.picture is not None, photo=True)
        control.check(backbone, (height, width))
    out = fit_size(width, height, backbone.native_size if size is None else size)
    plan = make_plan(backbone, out, len(photos), seed, strength, steps, guidance, solver, tile)

    @torch.no_grad()  # around each step, never between two; inference mode's tensors would be of little use to callers
    def run() -> Sampling:
        text, negative = (
            embed_prompts(backbone, texts, styles, style_weight) for texts in (prompts, [negative_prompt])
        )
        content = resize(photos.to(backbone.device), (plan.height, plan.width))
        clean = encode_any_size(backbone, content).expand_as(plan.noise)
        region = None if inside_of is None else resize_mask(inside_of.to(clean), (plan.height, plan.width))
        inside = None if region is None else to_latents(region, backbone.size_multiple, backbone.downscale)

        target = clean
        if paintings:
            target = clean.lerp(adain(clean, *palette(backbone, paintings)), min(1.0, 2 * strength))
            if inside is not None:
                target = clean.lerp(target, inside)
        held = plan.held(backbone, control, content)
        unguided = plan.denoiser(backbone, text, None, 1, held if inversion == "ddim" else None)
        start = yield from invert_content(
            inversion, unguided, target, plan.timesteps, backbone.alphas_cumprod, plan.noise
        )

        denoise = plan.denoiser(backbone, text, negative, guidance, held)
        if inside is not None:
            denoise = masked(denoise, inside, clean, backbone.alphas_cumprod)
        latents = yield from stoppable(plan.solve(denoise, start, plan.timesteps, backbone.alphas_cumprod))

        result = decode_any_size(backbone, latents, plan.height, plan.width)
        if tone == "photo":
            result = keep_colours(result, content)
        if region is not None:
            result = content.lerp(result, feather(region, backbone.downscale // 2))
        return result

    return run()
