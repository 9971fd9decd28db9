"""Transfer a style to photos (paper sec. 3.1 and 3.3).

`transfer` checks every argument when it is called. It returns a generator that yields a `SamplingStep` after each step
and returns the pictures. `inst.runs.complete` runs a generator to its end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from inst.arguments import check_choice
from inst.backbone.devices import copy_to
from inst.backbone.model import Backbone
from inst.backbone.text import TextEmbedding
from inst.errors import UsageError
from inst.pictures.given import Mask, Picture, to_batch, to_mask
from inst.pictures.reading import reading_size
from inst.pictures.resizing import fit_size, resize, resize_mask
from inst.sampling.attention import AttentionSettings
from inst.sampling.content import INVERSIONS, invert_content
from inst.sampling.control import Control, check_control
from inst.sampling.masks import feather, masked, to_latents
from inst.sampling.noise import Seed, add_noise
from inst.sampling.solvers import Sampling, allow_early_stop
from inst.sampling.tiles import decode_any_size, encode_any_size
from inst.styles.style import Style
from inst.synthesis.plan import default_steps, make_plan
from inst.synthesis.prompts import check_prompts, complete_prompts, embed_both, name_styles, read_prompts
from inst.synthesis.references import check_style_scale, prepare_attention, read_paintings
from inst.synthesis.series import Series
from inst.synthesis.tone import TONES, adain, keep_colours, latent_statistics, match_palette, palette_of


def transfer(
    backbone: Backbone,
    photo: Picture | Sequence[Picture],
    style: Style | Mapping[str, Style],
    *,
    strength: float = 0.3,
    steps: int | None = None,
    guidance: float = 4.0,
    prompt: str | Sequence[str] | TextEmbedding | None = None,
    negative_prompt: str | Sequence[str] | TextEmbedding = "",
    seed: Seed = 0,
    inversion: str = "stochastic",
    solver: str = "dpm++",
    tone: str = "painting",
    style_weight: float = 1.0,
    size: int | None = None,
    mask: Mask | None = None,
    tile: int | None = None,
    control: Control | None = None,
    style_attention: float = 1.0,
    style_scale: float = 1.0,
    query_preservation: float = 0.0,
    attention_temperature: float = 1.0,
    attention_blocks: str = "up",
    eta: float = 0.0,
    noise: Tensor | None = None,
    spacing: str = "power",
    cache_interval: int = 2,
    series: Series | None = None,
) -> Sampling:
    """Give photos the style of a painting. Stochastic inversion keeps their content (paper sec. 3.3).

    Args:
        backbone: the frozen model.
        photo: a photo of any size and proportions, or several photos of one size: a path, a PIL image, an array, a
            tensor [3, H, W] or [B, 3, H, W] in [-1, 1], or an `inst.Photo` (`inst.pictures.given.Picture`).
        style: the style for `[C]` in the prompt; or several styles by placeholder: `{"[C1]": one, "[C2]": other}`. A
            style without a pseudo-word (`inst.instant_style`) only works through its painting.
        strength: how much the photo may change, in [0, 1]. 0 returns the photo as the autoencoder reproduces it; 1
            starts from nearly pure noise.
        steps: sampling steps; each is one call of the denoiser. The number is the same at every strength (lower only
            if a tiny strength leaves fewer timesteps). The inversion "stochastic" needs one more call, "ddim" two more
            for each step. None takes 6 steps, and 7, 8 or 9 at strengths above 0.4, 0.65 or 0.9. With mini at strength
            0.3, they differ from 40 steps with `cache_interval=1` by an LPIPS of at most 0.01.
        guidance: guidance scale of the classifier-free guidance; 1 means no guidance, and twice as fast.
        prompt: description of the result; one text for all photos, or one for each. If it has no placeholder, " in the
            style of [C]" is added, with all styles that the negative prompt does not name. None is "[C]" alone. An
            encoded prompt (`inst.backbone.text.TextEmbedding`) is used as it is: no style is added to it, and tone and
            style attention use the paintings of all styles.
        negative_prompt: what to steer away from; one text for all prompts, or one for each. It may name its own style.
            It may be encoded, too.
        seed: random seed; one integer for all pictures, or one for each. Several seeds for one photo give several
            results. A picture depends on its own seed only, not on the rest of the batch. PyTorch generators are
            accepted, too (`inst.sampling.noise.Seed`).
        inversion: how the content of the photo goes into the noise: "stochastic", "none" or "ddim"
            (`inst.sampling.content`).
        solver: "ddim" or "dpm++" (`inst.sampling.solvers`).
        tone: "none", "painting" (the palette of the painting; below strength 0.25 in proportion), "adain" (the tone of
            InST's reference code) or "photo" (the colours of the photo); see `inst.synthesis.tone`.
        style_weight: 1 is the style as learned, 0 no style; more than 1 exaggerates the style
            (`inst.synthesis.prompts.embed_prompts`).
        size: short side of the results in pixels; None is the default size of the backbone, but at most twice the size
            of the photo.
        mask: a path or a PIL image with the proportions of the photo, which is resized; or an array or tensor [H, W] in
            [0, 1] with the size of the photo (`inst.pictures.given.Mask`). 1 (white) applies the style. At 0 the
            (resized) photo does not change, to the bit. Edges are softened inwards.
        tile: side of the tiles of the denoiser in pixels, rounded up to a size that the denoiser takes; 0 means no
            tiles. None uses the default size of the backbone if a side of the picture is more than twice that;
            otherwise no tiles.
        control: a ControlNet that keeps the structure of the photo (`inst.sampling.control`); each tile gets its part
            of the control picture. The stochastic inversion does not use the ControlNet: as in the paper, the start
            latents hold the structure that the model cannot predict, and with a ControlNet they would hold less of it.
            DDIM inversion uses it, because it inverts the denoiser that the sampling uses.
        style_attention: W in [0, 1], how much the result looks at the painting itself for its strokes and colours
            (`inst.sampling.attention`). 0 uses the pseudo-word only; 1 looks at nothing else. The inversion does not
            use it.
        style_scale: how large the strokes of the painting come out: the short side of the painting in the attention, as
            a share of that of the result.
        query_preservation, attention_temperature, attention_blocks: for researchers
            (`inst.sampling.attention.AttentionSettings`). Query preservation keeps more of the photo; it costs as much
            as one more photo.
        eta: fresh noise in each step of the solver "ddim", from 0 (none) to 1 (as in DDPM), drawn from the seed.
        noise: the noise to use in place of that of the seed, [B, C, h, w] for B results, whose sides are padded to
            multiples of `backbone.size_multiple`.
        spacing: how the timesteps are spread: "power" needs fewer steps, "trailing" is that of diffusers
            (`inst.sampling.noise.timestep_grid`).
        cache_interval: the difference that guidance makes, and the keys and values of the painting, are computed anew
            in every step of this number, and used again in the steps between, up to 120 timesteps below. 1 uses
            nothing again.
        series: shared by the calls for a batch of photos, which is faster (`inst.synthesis.series`). The frames of a
            film are made by `inst.transfer_film`.

    Yields:
        `SamplingStep`; nothing at strength 0. The latents are those of pictures padded at the right and the bottom. The
        steps of the inversion "ddim" come first, with the phase "inversion".

    Returns:
        [B, 3, H', W'] in [-1, 1] on the device of the backbone, with the proportions of the photo.

    Raises:
        UsageError: an argument cannot be used. It is raised before anything is computed.
        InstError: a picture cannot be read, or OpenCV is needed for edges and not installed; during iteration, the
            noise schedule of the model is not between 0 and 1.

    Warns:
        InstWarning: a style was learned with another UNet with the same text space, or has no picture of its painting
            for tone and style attention.
    """
    styles = name_styles(backbone, style)
    attention_settings = AttentionSettings(style_attention, query_preservation, attention_temperature, attention_blocks)
    check_style_scale(style_scale)
    texts, negatives = read_prompts(prompt, negative_prompt)
    prompts = complete_prompts(texts, negatives, styles)
    check_prompts(backbone, prompts, negatives, styles, style_weight, guidance)
    check_choice("inversion", inversion, INVERSIONS)
    check_choice("tone", tone, TONES)
    paintings = read_paintings(styles, prompts, tone, style_attention)
    palette = palette_of(paintings) if tone == "painting" else None
    # An array as mask has the photo's own size.
    reduce_to = None if isinstance(mask, np.ndarray | Tensor) else reading_size(size)
    photos = to_batch(photo, reduce_to=reduce_to)
    if len(prompts) not in (1, len(photos)):
        raise UsageError(
            f"{len(prompts)} prompts do not fit {len(photos)} photos", "give one prompt for all, or one for each"
        )
    height, width = photos.shape[2:]
    pixel_mask = None if mask is None else to_mask(mask, (height, width))
    check_control(control, backbone, (height, width), photo=True)
    out = result_size(backbone, (height, width), size)
    steps = default_steps(strength) if steps is None else steps
    plan = make_plan(
        backbone, out, len(photos), seed, strength, steps, guidance, solver, tile, eta, noise, spacing, cache_interval
    )

    @torch.no_grad()  # applies within each step, not between steps; callers cannot train with inference mode's tensors
    def run() -> Sampling:
        text, negative = embed_both(backbone, prompts, negatives, styles, style_weight)
        content = resize(copy_to(photos, backbone.device), (plan.height, plan.width))
        toned = content
        if palette is not None:
            # A small strength leaves the photo nearly as it is, so its colours must change little, too.
            toned = content.lerp(match_palette(content, palette), min(1.0, 4 * strength))
        target = encode_any_size(backbone, toned).expand_as(plan.noise)
        region = None if pixel_mask is None else resize_mask(pixel_mask.to(target), (plan.height, plan.width))
        latent_mask = None if region is None else to_latents(region, backbone.size_multiple, backbone.downscale)

        clean = target
        if palette is not None and latent_mask is not None:
            clean = encode_any_size(backbone, content).expand_as(plan.noise)
        if tone == "adain" and paintings:
            target = target.lerp(adain(target, *latent_statistics(backbone, paintings)), min(1.0, 2 * strength))
        if latent_mask is not None:
            target = clean.lerp(target, latent_mask)
        attention = prepare_attention(
            backbone,
            styles,
            paintings,
            plan,
            attention_settings,
            style_scale,
            style_weight,
            lambda t: add_noise(target, plan.noise, t, backbone.alphas_cumprod),
            series,
            text,
        )
        prepared_control = plan.prepare_control(backbone, control, content)
        unguided = plan.denoiser(backbone, text, None, 1, prepared_control if inversion == "ddim" else None)
        start = yield from invert_content(inversion, unguided, target, plan.timesteps, backbone.schedule, plan.noise)

        denoise = plan.denoiser(backbone, text, negative, guidance, prepared_control, attention)
        if latent_mask is not None:
            denoise = masked(denoise, latent_mask, clean, backbone.alphas_cumprod)
        latents = yield from allow_early_stop(plan.solve(denoise, start, plan.timesteps, backbone.schedule))

        result = decode_any_size(backbone, latents, plan.height, plan.width)
        if tone == "photo":
            result = keep_colours(result, content)
        if series is not None and series.held is not None:
            result = series.held.over(result)
        if region is not None:
            result = content.lerp(result, feather(region, backbone.downscale // 2))
        return result

    return run()


def result_size(backbone: Backbone, photo: tuple[int, int], size: int | None = None) -> tuple[int, int]:
    """Return (width, height) of the result for a photo of (height, width) pixels; `size` is that of `transfer`.

    Raises UsageError if the size is not a positive number.
    """
    height, width = photo
    if size is None:
        size = max(backbone.size_multiple, min(backbone.default_size, 2 * min(photo)))
    return fit_size(width, height, size)
