"""What `inst.transfer` and `inst.generate` have in common: arguments checked, and made into what sampling needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from inst.arguments import LARGEST_FACTOR, checked
from inst.backbone.model import Backbone
from inst.backbone.text import Frame, TextEmbedding
from inst.errors import UsageError
from inst.sampling.control import Control, carrying, controlled
from inst.sampling.denoiser import Denoise, guided
from inst.sampling.noise import Seed, draw_noise, timestep_grid
from inst.sampling.solvers import Solver, choose_solver
from inst.sampling.tiles import latent_size, round_up, tiled

LARGEST_PICTURE = 100_000_000
"""Pixels of the largest picture that is made: a size beyond it is taken for a slip."""


@dataclass(frozen=True)
class Plan:
    """How pictures are sampled.

    Attributes:
        height, width: of the results, in pixels.
        timesteps: falling; none at strength 0.
        solve: takes the steps.
        noise: [B, C, h, w], on the backbone's device.
        tile: side of the tiles that the denoiser sees, in latent positions, or None for no tiles.
    """

    height: int
    width: int
    timesteps: list[int]
    solve: Solver
    noise: Tensor
    tile: int | None

    def held(self, backbone: Backbone, control: Control | None, photos: Tensor | None) -> tuple[Control, Tensor] | None:
        """A control that counts and what it looks at, in pixels of the padded pictures."""
        if control is None or control.scale == 0:
            return None
        return control, control.look(photos, (self.height, self.width), backbone.size_multiple)

    def denoiser(
        self,
        backbone: Backbone,
        text: TextEmbedding,
        negative: TextEmbedding | None,
        guidance: float,
        held: tuple[Control, Tensor] | None,
    ) -> Denoise:
        """Make a denoiser with guidance; of tiles if need be, and under control."""
        predict_noise = backbone.predict_noise if held is None else controlled(backbone, held[0])

        def of_tile(frame: Frame | None) -> Denoise:
            return guided(partial(predict_noise, frame=frame), text, negative, guidance)

        denoise = of_tile(None) if self.tile is None else tiled(of_tile, self.tile, self.tile // 4)
        return denoise if held is None else carrying(denoise, held[1], backbone.downscale)


def square(size: int | Sequence[int]) -> tuple[int, int]:
    """Return (width, height) of a size, which may be the side of a square. Raises UsageError for something else."""
    width, height = size if isinstance(size, list | tuple) and len(size) == 2 else (size, size)
    return checked("size", width, "int"), checked("size", height, "int")


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
) -> Plan:
    """Check what `transfer` and `generate` have in common, and make of it what sampling needs.

    Args:
        out: (width, height) of the results, in pixels.
        pictures: how many there are, unless there are several seeds for one.

    The other arguments and the errors are theirs.
    """
    width, height = out
    if min(width, height) < backbone.size_multiple:
        raise UsageError(
            f"A picture of {width} x {height} pixels is too small", f"give {backbone.size_multiple} or more"
        )
    if width * height > LARGEST_PICTURE:
        raise UsageError(
            f"A picture of {width} x {height} pixels is too large: the limit is {LARGEST_PICTURE // 10**6} million."
        )
    if not 0 <= checked("guidance", guidance, "float") <= LARGEST_FACTOR:  # NaN is not either
        raise UsageError(f"A guidance of {guidance} cannot be used", f"give 1 (none) to {LARGEST_FACTOR}, such as 3")
    tile = None if tile is None else checked("size of tiles", tile, "int")
    if tile and tile < backbone.size_multiple:
        raise UsageError(
            f"Tiles of {tile} pixels cannot be used", f"give {backbone.size_multiple} or more, or 0 for none"
        )
    if tile is None and max(width, height) > 2 * backbone.native_size:
        tile = backbone.native_size

    timesteps = timestep_grid(len(backbone.alphas_cumprod), steps, strength)
    solve = choose_solver(solver)
    shape = (backbone.latent_channels, *latent_size(backbone, height, width))
    return Plan(
        height=height,
        width=width,
        timesteps=timesteps,
        solve=solve,
        noise=_noise(shape, seed, pictures).to(backbone.device),
        tile=round_up(tile, backbone.size_multiple) // backbone.downscale if tile else None,
    )


def _noise(shape: tuple[int, int, int], seed: Seed, pictures: int) -> Tensor:
    """Draw noise [B, *shape] for so many pictures, or for as many as there are seeds for one."""
    if isinstance(seed, torch.Generator):
        # All at once: on an accelerator, one after another would draw other numbers than diffusers does.
        return torch.randn((pictures, *shape), generator=seed, device=seed.device)
    seeds: list[int | torch.Generator] = list(seed) if isinstance(seed, Sequence) else [seed]
    if pictures > 1 and len(seeds) not in (1, pictures):
        raise UsageError(f"{len(seeds)} seeds do not fit {pictures} pictures", "give one for all, or one for each")
    return draw_noise(shape, seeds).expand(max(pictures, len(seeds)), -1, -1, -1)
