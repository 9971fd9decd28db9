"""The common part of `inst.transfer` and `inst.generate`: check the arguments and prepare the sampling."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial

import psutil
import torch
from torch import Tensor

from inst.arguments import check_factor, check_type, checked
from inst.backbone.model import Backbone
from inst.backbone.text import Frame, TextEmbedding
from inst.errors import Argument, UsageError
from inst.sampling.attention import StyleAttention
from inst.sampling.control import Control, with_control_channels, with_controlnet
from inst.sampling.denoiser import Denoise, guided
from inst.sampling.noise import Seed, as_generators, draw_noise, timestep_grid
from inst.sampling.solvers import Solver, choose_solver
from inst.sampling.tiles import latent_size, round_up, tiled

_MORE_STEPS_ABOVE = (0.4, 0.65, 0.9)
"""Strengths above which one more step is taken by default. 6 steps are taken up to the first one."""

_REACH = 120  # timesteps; further below, guidance and style attention have changed too much to be used again

LARGEST_PICTURE = 100_000_000
"""Number of pixels of the largest picture. A larger size is treated as a typing error."""

MOST_PICTURES = 1000
"""Largest number of pictures of one call. All of them go through the denoiser at once."""

_BYTES = 60
"""Memory that a transfer needs at least for each pixel of its results, beside that of the model (measured)."""

_LONGEST = 400
"""Largest proportion of the sides. A longer picture takes many tiles, in which there is nothing to see."""


@dataclass(frozen=True)
class Plan:
    """How pictures are sampled.

    Attributes:
        height, width: size of the results in pixels.
        timesteps: falling timesteps; empty at strength 0.
        solve: the solver.
        noise: [B, C, h, w], on the device of the backbone.
        tile: side of the tiles of the denoiser in latent positions; None means no tiles.
        fresh: the timesteps at which guidance and style attention compute everything anew; see `cache_interval` of
            `transfer`.
    """

    height: int
    width: int
    timesteps: list[int]
    solve: Solver
    noise: Tensor
    tile: int | None
    fresh: Collection[int]

    def prepare_control(
        self, backbone: Backbone, control: Control | None, photos: Tensor | None
    ) -> tuple[Control, Tensor] | None:
        """Return the control and its control pictures, in pixels of the padded pictures; None if there is no control.

        A control of scale 0 is no control.
        """
        if control is None or control.scale == 0:
            return None
        return control, control.control_pictures(photos, (self.height, self.width), backbone.size_multiple)

    def denoiser(
        self,
        backbone: Backbone,
        text: TextEmbedding,
        negative: TextEmbedding | None,
        guidance: float,
        prepared_control: tuple[Control, Tensor] | None,
        attention: StyleAttention | None = None,
    ) -> Denoise:
        """Make the denoiser: guidance, tiles if the plan has them, and the ControlNet and style attention if given."""
        predict_noise: Callable[..., Tensor] = (
            backbone.predict_noise if prepared_control is None else with_controlnet(backbone, prepared_control[0])
        )
        if attention is not None:
            predict_noise = attention.with_painting(predict_noise)

        @cache  # each tile keeps its own difference of guidance
        def tile_denoiser(frame: Frame | None) -> Denoise:
            predict, together = partial(predict_noise, frame=frame), not backbone.low_memory
            return guided(predict, text, negative, guidance, self.fresh.__contains__, together)

        denoise = tile_denoiser(None) if self.tile is None else tiled(tile_denoiser, self.tile, self.tile // 4)
        if prepared_control is not None:
            denoise = with_control_channels(denoise, prepared_control[1], backbone.downscale)
        return denoise if attention is None else attention.with_content(denoise)


def read_size(size: int | Sequence[int]) -> tuple[int, int]:
    """Return (width, height) from a pair or from the side of a square. Raises UsageError for other values."""
    width, height = size if isinstance(size, list | tuple) and len(size) == 2 else (size, size)
    width, height = checked("size", width, "int"), checked("size", height, "int")
    if min(width, height) < 1:
        raise UsageError(f"A picture of {width} x {height} pixels is too small", "give positive numbers of pixels")
    return width, height


def check_pictures(count: int) -> None:
    """Raise UsageError if one call cannot make so many pictures (`MOST_PICTURES`)."""
    if count > MOST_PICTURES:
        raise UsageError(f"{count} pictures cannot be made at once", f"give {MOST_PICTURES} or fewer, in several calls")


def make_plan(
    backbone: Backbone,
    out: tuple[int, int],
    pictures: int,
    seed: Seed,
    strength: float,
    steps: int,
    guidance: float,
    solver: str,
    tile: int | None,
    eta: float,
    noise: Tensor | None,
    spacing: str,
    cache_interval: int,
) -> Plan:
    """Check the common arguments of `transfer` and `generate`, and make a plan from them.

    Args:
        out: (width, height) of the results in pixels.
        pictures: the number of pictures; if it is 1, several seeds give several pictures.

    The other arguments and the errors are those of `transfer` and `generate`.
    """
    width, height = out
    pictures = max(pictures, len(seed) if isinstance(seed, Sequence) and pictures == 1 else 1)
    check_pictures(pictures)
    check_size(backbone, out, pictures)
    check_factor("guidance", guidance, "give 1 (none) or more, such as 3")
    tile = None if tile is None else checked("size of tiles", tile, "int")
    if tile and tile < backbone.size_multiple:
        raise UsageError(
            f"Tiles of {tile} pixels cannot be used", f"give {backbone.size_multiple} or more, or 0 for no tiles"
        )
    if tile is None and max(width, height) > 2 * backbone.default_size:
        tile = backbone.default_size

    timesteps = timestep_grid(len(backbone.alphas_cumprod), steps, strength, spacing)
    cache_interval = checked("cache interval", cache_interval, "int")
    if cache_interval < 1:
        raise UsageError(f"A cache interval of {cache_interval} cannot be used", "give 1 (nothing is reused) or more")
    shape = (backbone.latent_channels, *latent_size(backbone, height, width))
    draw = _drawer(shape, seed, pictures, backbone.device)
    solve = choose_solver(solver, eta, draw)
    multiple = backbone.size_multiple
    padded = width % multiple or height % multiple
    padding = f": {width} x {height} pixels are padded to multiples of {multiple}" if padded else ""
    return Plan(
        height=height,
        width=width,
        timesteps=timesteps,
        solve=solve,
        noise=draw() if noise is None else _check_noise(noise, (pictures, *shape), padding).to(backbone.device),
        tile=round_up(tile, backbone.size_multiple) // backbone.downscale if tile else None,
        fresh=frozenset(_fresh(timesteps, cache_interval)),
    )


def check_size(backbone: Backbone, out: tuple[int, int], pictures: int = 1) -> None:
    """Raise UsageError unless so many pictures of (width, height) can be made at once."""
    width, height = out
    if min(width, height) < backbone.size_multiple:
        raise UsageError(
            f"A picture of {width} x {height} pixels is too small",
            f"give sides of {backbone.size_multiple} pixels or more",
        )
    if width * height > LARGEST_PICTURE:
        raise UsageError(
            f"A picture of {width} x {height} pixels is too large",
            f"give a smaller size; the limit is {LARGEST_PICTURE // 10**6} million pixels",
        )
    if max(width, height) > _LONGEST * min(width, height):
        raise UsageError(
            f"A picture of {width} x {height} pixels is too long and thin",
            f"crop the photo, or give another size; the long side may be {_LONGEST} times the short one",
        )
    needed, there = _BYTES * pictures * width * height, psutil.virtual_memory().total
    if backbone.device.type == "cpu" and needed > there:
        what = "A picture" if pictures == 1 else f"A batch of {pictures} pictures"
        raise UsageError(
            f"{what} of {width} x {height} pixels needs {needed / 1e9:.0f} GB of memory, and this computer has "
            f"{there / 1e9:.0f} GB",
            "give a smaller size" if pictures == 1 else "give fewer pictures, or a smaller size",
        )


def default_steps(strength: float) -> int:
    """Return the number of sampling steps for a strength in [0, 1]. Raises UsageError unless it is a number."""
    strength = checked("strength", strength, "float")
    return 6 + sum(strength > limit for limit in _MORE_STEPS_ABOVE)


def _fresh(timesteps: Sequence[int], interval: int) -> Iterator[int]:
    """Yield every `interval`-th timestep, and those that are more than `_REACH` below the latest yielded one."""
    waited, latest = interval, math.inf
    for t in timesteps:
        if waited == interval or latest - t > _REACH:
            waited, latest = 0, t
            yield t
        waited += 1


def _drawer(shape: tuple[int, int, int], seed: Seed, pictures: int, device: torch.device) -> Callable[[], Tensor]:
    """Return a function that draws fresh noise for all pictures at each call, [B, *shape] on a device."""
    if isinstance(seed, torch.Generator):
        # The generator draws all noise at once: on an accelerator, separate draws would differ from those of diffusers.
        return lambda: torch.randn((pictures, *shape), generator=seed, device=seed.device).to(device)
    seeds: Sequence[int | torch.Generator] = seed if isinstance(seed, Sequence) else [seed]
    if len(seeds) not in (0, 1, pictures):
        raise UsageError(f"{len(seeds)} seeds do not fit {pictures} pictures", "give one seed for all, or one for each")
    generators = as_generators(seeds)
    return lambda: draw_noise(shape, generators, device).expand(pictures, -1, -1, -1)


def _check_noise(noise: Tensor, shape: tuple[int, ...], padding: str) -> Tensor:
    """Return given noise as float32. Raises UsageError unless it is a finite tensor of this shape.

    `padding` says why the shape is larger than that of the pictures; "" if it is not.
    """
    check_type("Noise", noise, Tensor, "give a tensor")
    if noise.shape != shape or not noise.is_floating_point():
        raise UsageError(
            f"Noise of the shape {list(noise.shape)} and the type {noise.dtype} cannot be used",
            "give ",
            Argument("noise"),
            f" of the shape {list(shape)}, in floating point{padding}",
        )
    if not noise.isfinite().all():
        raise UsageError("Noise with values that are not finite cannot be used", "give other ", Argument("noise"))
    return noise.float()
