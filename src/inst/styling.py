"""Transfer a style to photos, and generate pictures in it (paper sec. 3.1 and 3.3).

Both check every argument when they are called, and return a generator that yields a `SamplingStep` after each step and
ends with the pictures. `inst.sampling.complete` runs one to its end.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from inst.backbone import Backbone
from inst.conditioning import check_prompts, complete_prompt, embed_prompts, name_styles
from inst.errors import InstWarning, UsageError
from inst.images import fit_size, resize, resize_mask
from inst.masks import check_mask, feather, masked, to_latents
from inst.sampling import Denoise, Sampling, Solver, choose_solver, draw_noise, guided, timestep_grid
from inst.stochastic import INVERSIONS, invert_content
from inst.style import Style
from inst.tiles import decode_any_size, encode_any_size, latent_size, round_up, tiled
from inst.tone import TONES, adain, keep_colours, palette

LARGEST_PICTURE = 100_000_000
"""Pixels of the largest picture that is made: a size beyond it is taken for a slip."""


def transfer(
    backbone: Backbone,
    photo: Tensor,
    style: Style | Mapping[str, Style],
    *,
    strength: float = 0.5,
    steps: int = 20,
    guidance: float = 4.0,
    prompt: str | None = None,
    negative_prompt: str = "",
    seed: int | Sequence[int] = 0,
    inversion: str = "stochastic",
    solver: str = "dpm++",
    tone: str = "painting",
    style_weight: float = 1.0,
    size: int | None = None,
    mask: Tensor | None = None,
    tile: int | None = None,
) -> Sampling:
    """Give photos the style of a painting; their content is kept by stochastic inversion (paper sec. 3.3).

    Args:
        backbone: the frozen model.
        photo: [3, H, W] or [B, 3, H, W] in [-1, 1], of any size and proportions.
        style: stands for `[C]` in the prompt; or several, by placeholder: `{"[C1]": one, "[C2]": other}`.
        strength: in [0, 1], how far from the photo the result may go. 0 is the photo as the autoencoder sees it, 1
            starts from nearly pure noise.
        steps: calls of the denoiser, at every strength.
        guidance: scale of the classifier-free guidance; 1 is none, and twice as fast.
        prompt: what the result shows. Without a placeholder " in the style of [C]" is added; None is "[C]" alone.
        negative_prompt: what the guidance leads away from; may name a style of its own.
        seed: an integer for all pictures, or one for each. Several for one photo give as many results. A picture
            depends on its seed only, not on what else is in the batch.
        inversion: how the photo's content goes into the noise: "stochastic", "none" or "ddim" (`inst.stochastic`).
        solver: "ddim" or "dpm++" (`inst.sampling`).
        tone: "none", "painting" (toward the painting's palette; below strength 0.5 in proportion) or "photo" (the
            photo's colours); see `inst.tone`.
        style_weight: 1 is the style as learned, 0 none, more exaggerates it (`inst.conditioning.embed_prompts`).
        size: pixels of the results' short side; None is the size that the backbone was made for.
        mask: [H, W] in [0, 1] of the photo's size: 1 where the style is wanted; where it is 0, the (resized) photo
            stays as it is to the bit. Edges are softened inwards.
        tile: pixels of the side of the tiles that the denoiser sees, rounded up to what it takes; 0 is no tiles. None
            is the backbone's native size for pictures with a side of more than twice that, else no tiles.

    Yields:
        `SamplingStep`; nothing at strength 0. Latents are those of pictures padded at the right and bottom.

    Returns:
        [B, 3, H', W'] in [-1, 1] on the backbone's device, of the photo's proportions.

    Raises:
        UsageError: an argument that cannot be used, before anything is computed.

    Warns:
        InstWarning: a style was learned with another denoiser over the same text space, or carries no painting for
            the tone.
    """
    styles = name_styles(backbone, style)
    prompts = [complete_prompt(prompt, negative_prompt, styles)]
    check_prompts(backbone, prompts, negative_prompt, styles, style_weight)
    _check_name("inversion", inversion, INVERSIONS)
    _check_name("tone", tone, TONES)
    paintings = _paintings(styles) if tone == "painting" else []
    photos = _check_photos(photo)
    height, width = photos.shape[2:]
    if mask is not None:
        check_mask(mask, height, width)
    out = fit_size(width, height, backbone.native_size if size is None else size)
    plan = _plan(backbone, out, len(photos), seed, strength, steps, guidance, solver, tile)

    @torch.no_grad()  # around each step, never between two; inference mode's tensors would be of little use to callers
    def run() -> Sampling:
        text, negative = (
            embed_prompts(backbone, texts, styles, style_weight) for texts in (prompts, [negative_prompt])
        )
        content = resize(photos.to(backbone.device), (plan.height, plan.width))
        clean = encode_any_size(backbone, content).expand_as(plan.noise)
        region = None if mask is None else resize_mask(mask.to(clean), (plan.height, plan.width))
        inside = None if region is None else to_latents(region, backbone.size_multiple, backbone.downscale)

        target = clean
        if paintings:
            target = clean.lerp(adain(clean, *palette(backbone, paintings)), min(1.0, 2 * strength))
            if inside is not None:
                target = clean.lerp(target, inside)
        unguided = plan.denoiser(guided(backbone.predict_noise, text, None, 1))
        start = invert_content(inversion, unguided, target, plan.timesteps, backbone.alphas_cumprod, plan.noise)

        denoise = plan.denoiser(guided(backbone.predict_noise, text, negative, guidance))
        if inside is not None:
            denoise = masked(denoise, inside, clean, backbone.alphas_cumprod)
        latents = yield from plan.solve(denoise, start, plan.timesteps, backbone.alphas_cumprod)

        result = decode_any_size(backbone, latents, plan.height, plan.width)
        if tone == "photo":
            result = keep_colours(result, content)
        if region is not None:
            result = content.lerp(result, feather(region, backbone.downscale // 2))
        return result

    return run()


def generate(
    backbone: Backbone,
    prompt: str | Sequence[str],
    style: Style | Mapping[str, Style],
    *,
    steps: int = 20,
    guidance: float = 5.0,
    negative_prompt: str = "",
    seed: int | Sequence[int] = 0,
    solver: str = "dpm++",
    tone: str = "none",
    style_weight: float = 1.0,
    size: int | tuple[int, int] | None = None,
    tile: int | None = None,
) -> Sampling:
    """Make pictures from prompts, in the style of a painting.

    Args:
        backbone: the frozen model.
        prompt: a text, or one for each picture, with the style's placeholder: "a castle in the style of [C]".
        style: stands for `[C]`; or several, by placeholder.
        steps, guidance, negative_prompt, solver, style_weight, tile: as for `transfer`.
        seed: an integer for all pictures, or one for each. Several for one prompt give as many pictures.
        tone: "none", or "painting" (toward the painting's palette).
        size: pixels of a square's side, or (width, height); None is a square of the backbone's native size.

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
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    check_prompts(backbone, prompts, negative_prompt, styles, style_weight)
    _check_name("tone", tone, ("none", "painting"))
    paintings = _paintings(styles) if tone == "painting" else []
    side = backbone.native_size if size is None else size
    out = (side, side) if isinstance(side, int) else side
    plan = _plan(backbone, out, len(prompts), seed, 1.0, steps, guidance, solver, tile)

    @torch.no_grad()
    def run() -> Sampling:
        text, negative = (
            embed_prompts(backbone, texts, styles, style_weight) for texts in (prompts, [negative_prompt])
        )
        denoise = plan.denoiser(guided(backbone.predict_noise, text, negative, guidance))
        latents = yield from plan.solve(denoise, plan.noise, plan.timesteps, backbone.alphas_cumprod)
        if paintings:
            latents = adain(latents, *palette(backbone, paintings))
        return decode_any_size(backbone, latents, plan.height, plan.width)

    return run()


@dataclass(frozen=True)
class _Plan:
    """What both need to sample: sizes in pixels, timesteps, the solver, noise [B, C, h, w], and how to use tiles."""

    height: int
    width: int
    timesteps: list[int]
    solve: Solver
    noise: Tensor
    tile: int | None  # in latent positions

    def denoiser(self, denoise: Denoise) -> Denoise:
        return denoise if self.tile is None else tiled(denoise, self.tile, self.tile // 4)


def _plan(
    backbone: Backbone,
    out: tuple[int, int],
    pictures: int,
    seed: int | Sequence[int],
    strength: float,
    steps: int,
    guidance: float,
    solver: str,
    tile: int | None,
) -> _Plan:
    """Check what `transfer` and `generate` have in common, and make of it what sampling needs."""
    width, height = out
    if min(width, height) < backbone.size_multiple:
        raise UsageError(f"A picture of {width} x {height} pixels is too small: give {backbone.size_multiple} or more.")
    if width * height > LARGEST_PICTURE:
        raise UsageError(
            f"A picture of {width} x {height} pixels is too large: the limit is {LARGEST_PICTURE // 10**6} million."
        )
    if not (math.isfinite(guidance) and guidance >= 0):
        raise UsageError(f"A guidance of {guidance} cannot be used: give 1 (none) or more, such as 3.")
    if tile is not None and tile != 0 and tile < backbone.size_multiple:
        raise UsageError(
            f"Tiles of {tile} pixels cannot be used: give {backbone.size_multiple} or more, or 0 for none."
        )
    if tile is None and max(width, height) > 2 * backbone.native_size:
        tile = backbone.native_size

    seeds = list(seed) if isinstance(seed, Sequence) else [seed]
    if pictures > 1 and len(seeds) not in (1, pictures):
        raise UsageError(f"{len(seeds)} seeds do not fit {pictures} pictures: give one for all, or one for each.")
    timesteps = timestep_grid(len(backbone.alphas_cumprod), steps, strength)
    solve = choose_solver(solver)
    noise = draw_noise((backbone.latent_channels, *latent_size(backbone, height, width)), seeds, backbone.device)
    return _Plan(
        height=height,
        width=width,
        timesteps=timesteps,
        solve=solve,
        noise=noise.expand(max(pictures, len(seeds)), -1, -1, -1),
        tile=round_up(tile, backbone.size_multiple) // backbone.downscale if tile else None,
    )


def _check_photos(photo: Tensor) -> Tensor:
    photos = photo[None] if photo.dim() == 3 else photo
    if photos.dim() != 4 or photos.shape[1] != 3 or 0 in photos.shape:
        raise UsageError(f"A photo of the shape {list(photo.shape)} cannot be used: give [3, H, W] or [B, 3, H, W].")
    if not photos.is_floating_point() or not (photos.abs() <= 1).all():  # NaN is not either
        raise UsageError("The photo's values cannot be used: give floating point numbers from -1 to 1.")
    return photos.float()


def _paintings(styles: Mapping[str, Style]) -> list[Tensor]:
    """The paintings whose palette is wanted; warns of a style that carries none."""
    for style in styles.values():
        if style.thumbnail is None:
            warnings.warn(
                f'The style "{style.name}" carries no picture of its painting: its palette is not transferred.',
                InstWarning,
                stacklevel=3,
            )
    return [painting for painting in (style.painting() for style in styles.values()) if painting is not None]


def _check_name(what: str, name: str, known: Sequence[str]) -> None:
    """Raise UsageError unless `name` is one of the `known`."""
    if name not in known:
        raise UsageError(f'The {what} "{name}" is unknown: use one of {", ".join(known)}.')
