"""Tiles: they cover everything, stay small, change nothing for what looks at each place alone, and leave no seams."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from inst import Backbone
from inst.runs import complete
from inst.sampling.denoiser import Denoise
from inst.sampling.noise import draw_noise, timestep_grid
from inst.sampling.solvers import ddim
from inst.sampling.tiles import decode_any_size, encode_any_size, latent_size, map_tiles, tile_starts, tiled

TILE = 16


@given(st.integers(1, 400), st.integers(2, 64), st.data())
def test_tiles_cover_a_length_and_overlap(length: int, tile: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, tile - 1))
    starts = tile_starts(length, tile, overlap)
    assert starts[0] == 0
    if tile >= length:
        assert starts == [0]
        return
    assert starts[-1] == length - tile
    assert all(0 < later - earlier <= tile - overlap for earlier, later in itertools.pairwise(starts))


def test_no_more_tiles_than_needed_are_used() -> None:
    assert tile_starts(64, 32, 0) == [0, 32]
    assert tile_starts(56, 32, 8) == [0, 24]
    assert len(tile_starts(57, 32, 8)) == 3


@pytest.mark.parametrize("size", [(40, 56), (16, 50), (50, 9), (16, 16), (7, 5)])
def test_a_local_denoiser_gives_the_same_result_in_tiles(size: tuple[int, int]) -> None:
    def denoise(latents: torch.Tensor, timestep: int) -> torch.Tensor:
        return latents.sin() * timestep + latents.flip(1)

    latents = draw_noise((4, *size), [0, 1])
    found = tiled(lambda frame: denoise, TILE, 4)(latents, 7)
    torch.testing.assert_close(found, denoise(latents, 7), rtol=1e-5, atol=1e-5)


def test_tiles_can_be_reduced_or_enlarged_on_the_way() -> None:
    pictures = draw_noise((3, 8 * 21, 8 * 40), [0])
    shrunk = map_tiles(lambda part, *_: F.avg_pool2d(part, 8), pictures, 16, 4, shrink=8)
    torch.testing.assert_close(shrunk, F.avg_pool2d(pictures, 8))
    grown = map_tiles(lambda part, *_: F.interpolate(part, scale_factor=8), shrunk, 16, 4, grow=8)
    torch.testing.assert_close(grown, F.interpolate(shrunk, scale_factor=8))


def test_no_tile_is_larger_than_asked_for() -> None:
    seen = []

    def denoise(latents: torch.Tensor, timestep: int) -> torch.Tensor:
        seen.append(tuple(latents.shape))
        return latents

    tiled(lambda frame: denoise, TILE, 4)(draw_noise((4, 90, 12), [0, 1, 2]), 5)
    assert set(seen) == {(3, 4, 16, 12)}
    assert len(seen) == len(tile_starts(90, TILE, 4))


def test_latents_that_fit_into_one_tile_are_passed_on_unchanged() -> None:
    latents = draw_noise((4, 16, 12), [0])
    assert tiled(lambda frame: lambda part, timestep: part, TILE, 4)(latents, 5) is latents


ALPHAS = torch.linspace(0.9999, 0.02, 100)
NATIVE = 32


def paint(latents: torch.Tensor, timestep: int) -> torch.Tensor:
    """A denoiser that sees where its tile ends, as convolutions do, and gives what it sees a shade of its own."""
    texture = F.conv2d(latents, torch.full((1, 1, 3, 3), 1 / 9), padding=1)
    shade = latents.mean(dim=(-2, -1), keepdim=True).tanh()
    abar = ALPHAS[timestep]
    return (latents - abar.sqrt() * (texture + shade)) / (1 - abar).sqrt()


def side_by_side(latents: torch.Tensor, timestep: int) -> torch.Tensor:
    return torch.cat([paint(part, timestep) for part in latents.split(NATIVE, dim=-1)], dim=-1)


def column_steps(denoise: Denoise) -> torch.Tensor:
    """How steep results are between columns k and k + 1, away from the picture's own border.

    Many noise fields are denoised. What shows is a step that all of a column shares: that of the means over rows.
    """
    latents = draw_noise((1, NATIVE, 4 * NATIVE), range(150))
    result = complete(ddim(denoise, latents, timestep_grid(100, 6), ALPHAS))
    return result.mean(dim=-2).diff(dim=-1).square().mean(dim=(0, 1)).sqrt()[2:-2]


def test_seams_between_tiles_are_no_steeper_than_other_places() -> None:
    usual = column_steps(paint)  # the whole at once
    in_tiles = column_steps(tiled(lambda frame: paint, NATIVE, NATIVE // 4))
    assert column_steps(side_by_side).max() > 3 * usual.max(), "this measure does not see seams"
    assert in_tiles.max() < 1.15 * usual.max()
    assert in_tiles.mean() < 1.05 * usual.mean()


@torch.inference_mode()
def test_the_autoencoder_in_tiles_is_close_to_the_whole_and_exact_for_small_pictures(tiny_backbone: Backbone) -> None:
    """Large pictures: close to what the autoencoder makes of them at once. Others: the very same."""
    small = torch.rand(1, 3, 64, 128, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = tiny_backbone.encode(small)
    assert torch.equal(encode_any_size(tiny_backbone, small), latents)
    assert torch.equal(decode_any_size(tiny_backbone, latents, 64, 128), tiny_backbone.decode(latents))

    # A tile's content changes all of it (GroupNorm, attention), most of all with random weights: every tile's is alike.
    wide = small.repeat(1, 1, 1, 5)
    found, expected = encode_any_size(tiny_backbone, wide), tiny_backbone.encode(wide)
    assert (found - expected).square().mean() < 0.1 * expected.var()
    latents = draw_noise((tiny_backbone.latent_channels, 8, 16), [0]).repeat(1, 1, 1, 5)
    found, expected = decode_any_size(tiny_backbone, latents, 64, 640), tiny_backbone.decode(latents)
    assert (found - expected).square().mean() < 0.1 * expected.var()


@pytest.mark.parametrize(("height", "width"), [(64, 64), (65, 79), (17, 40), (100, 16)])
@torch.inference_mode()
def test_pictures_of_any_size_are_decoded_to_the_same_size(tiny_backbone: Backbone, height: int, width: int) -> None:
    pictures = torch.zeros(2, 3, height, width)
    latents = encode_any_size(tiny_backbone, pictures)
    assert latents.shape[2:] == latent_size(tiny_backbone, height, width)
    assert all(side * tiny_backbone.downscale % tiny_backbone.size_multiple == 0 for side in latents.shape[2:])
    assert decode_any_size(tiny_backbone, latents, height, width).shape == pictures.shape
