"""Pictures of any size: padded to what the model takes, and large ones in overlapping tiles.

The seams of the tiles cannot be seen, and the model needs the memory of one tile, however large the picture is.
Source: MultiDiffusion (Bar-Tal et al. 2023, arXiv 2302.08113, sec. 4): at each step the denoiser looks at overlapping
tiles of the latents, each of the size that it was trained at, and its predictions are averaged where tiles overlap.
There is one noise field for the whole picture, so neighbours agree on what they share. Here the average is weighted
with a window that falls to zero at a tile's edge, where the denoiser sees least of the surroundings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from inst.backbone.text import Frame

if TYPE_CHECKING:
    from inst.backbone.model import Backbone
    from inst.sampling.denoiser import Denoise


def tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """Spread tiles evenly over `length` positions.

    Args:
        length: positions to cover, at least 1.
        tile: positions of a tile.
        overlap: positions that neighbours share at least, below `tile`.

    Returns:
        Where each tile starts; one tile where `tile` reaches `length`.
    """
    if tile >= length:
        return [0]
    count = math.ceil((length - overlap) / (tile - overlap))
    return [round(i * (length - tile) / (count - 1)) for i in range(count)]


def map_tiles(
    function: Callable[[Tensor, int, int], Tensor],
    inputs: Tensor,
    tile: int,
    overlap: int,
    *,
    shrink: int = 1,
    grow: int = 1,
) -> Tensor:
    """Apply `function` to overlapping tiles, one after another, and blend the results.

    The grid that tiles are laid on is that of the latents, whether `function` maps latents to latents, pictures to
    latents (`shrink`) or latents to pictures (`grow`).

    Args:
        function: [B, C, a * shrink, b * shrink] -> [B, C', a * grow, b * grow]; given the grid positions, too, at
            which the tile starts: top and left.
        inputs: [B, C, h * shrink, w * shrink].
        tile: side of a tile in grid positions; the picture's side where that is shorter.
        overlap: grid positions that neighbours share at least, below `tile`.
        shrink: input values of a side per grid position.
        grow: output values of a side per grid position.

    Returns:
        [B, C', h * grow, w * grow]; exactly `function(inputs, 0, 0)` where one tile covers it all.
    """
    height, width = (side // shrink for side in inputs.shape[-2:])
    if tile >= height and tile >= width:
        return function(inputs, 0, 0)
    high, wide = min(tile, height), min(tile, width)
    total = weights = torch.empty(0)
    for top, left in _corners(height, width, tile, overlap):
        part = function(_cut(inputs, top, left, high, wide, shrink), top, left)
        if total.numel() == 0:
            total = part.new_zeros(*part.shape[:2], height * grow, width * grow)
            weights = part.new_zeros(height * grow, width * grow)
        window = _window(high * grow, part)[:, None] * _window(wide * grow, part)
        _cut(total, top, left, high, wide, grow).add_(part * window)
        _cut(weights, top, left, high, wide, grow).add_(window)
    return total.div_(weights)


def tiled(of_tile: Callable[[Frame], Denoise], tile: int, overlap: int) -> Denoise:
    """Let a denoiser see no more than `tile` x `tile` positions of the latents at once.

    Args:
        of_tile: the denoiser of a tile, by where that lies.
        tile: side in latent positions, such as the side that the denoiser was trained at.
        overlap: positions that neighbours share at least.

    Returns:
        The denoiser for latents of any size; for a denoiser that looks at each position alone, the very same.
    """

    def denoise_in_tiles(latents: Tensor, timestep: int) -> Tensor:
        height, width = latents.shape[-2:]

        def denoise(part: Tensor, top: int, left: int) -> Tensor:
            return of_tile(Frame(height, width, top, left))(part, timestep)

        return map_tiles(denoise, latents, tile, overlap)

    return denoise_in_tiles


def latent_size(backbone: Backbone, height: int, width: int) -> tuple[int, int]:
    """Return (h, w) of the latents that `encode_any_size` makes of a picture of height x width pixels."""
    multiple, downscale = backbone.size_multiple, backbone.downscale
    return round_up(height, multiple) // downscale, round_up(width, multiple) // downscale


def encode_any_size(backbone: Backbone, pictures: Tensor) -> Tensor:
    """Encode pictures of any size into latents that the UNet takes.

    Args:
        backbone: its autoencoder sees tiles of the pictures where they are large.
        pictures: [B, 3, H, W] in [-1, 1], both sides at least `backbone.size_multiple`. At the right and the bottom
            they are reflected up to multiples of that.

    Returns:
        [B, C, h, w], of `latent_size`.
    """
    return encode_in_tiles(backbone, pad_to_multiple(pictures, backbone.size_multiple))


def encode_in_tiles(backbone: Backbone, pictures: Tensor) -> Tensor:
    """Encode pictures [B, 3, H, W], of sides that are multiples of `backbone.downscale`: large ones in tiles."""
    tile = _autoencoder_tile(backbone)
    return map_tiles(lambda part, *_: backbone.encode(part), pictures, tile, tile // 4, shrink=backbone.downscale)


def decode_any_size(backbone: Backbone, latents: Tensor, height: int, width: int) -> Tensor:
    """Decode latents [B, C, h, w] of `encode_any_size` into pictures [B, 3, height, width] in [-1, 1]."""
    tile = _autoencoder_tile(backbone)
    pictures = map_tiles(lambda part, *_: backbone.decode(part), latents, tile, tile // 4, grow=backbone.downscale)
    return pictures[..., :height, :width]


def pad_to_multiple(pictures: Tensor, multiple: int) -> Tensor:
    """Reflect [B, C, H, W] at the right and the bottom until both sides are multiples of `multiple`."""
    height, width = pictures.shape[-2:]
    padding = (0, round_up(width, multiple) - width, 0, round_up(height, multiple) - height)
    return F.pad(pictures, padding, mode="reflect")


def round_up(length: int, multiple: int) -> int:
    """Return the smallest multiple that is at least `length`."""
    return -(-length // multiple) * multiple


def _autoencoder_tile(backbone: Backbone) -> int:
    # The autoencoder normalises over its whole input (GroupNorm, and attention in Stable Diffusion's), so its tiles
    # should be as large as memory allows. Measured with mini on 1536 x 1024 pixels: the photo comes back at 29.6 dB
    # PSNR whole, 29.5 dB in tiles of 512 pixels.
    if backbone.low_memory:
        return min(backbone.native_size, 512) // backbone.downscale
    return min(2 * backbone.native_size, max(backbone.native_size, 1024)) // backbone.downscale


def _corners(height: int, width: int, tile: int, overlap: int) -> Iterator[tuple[int, int]]:
    for top in tile_starts(height, tile, overlap):
        for left in tile_starts(width, tile, overlap):
            yield top, left


def _cut(field: Tensor, top: int, left: int, height: int, width: int, scale: int) -> Tensor:
    return field[..., top * scale : (top + height) * scale, left * scale : (left + width) * scale]


def _window(length: int, like: Tensor) -> Tensor:
    """A tent, [length]: where two of them overlap, one tile fades into the other as slowly as the overlap allows."""
    ramp = torch.arange(length, device=like.device, dtype=like.dtype) + 0.5
    return torch.minimum(ramp, ramp.flip(0))
