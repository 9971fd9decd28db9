"""Flicker: 0 for what moves along, known values for noise, None where there is nothing to measure."""

import math

import pytest
import torch
import torch.nn.functional as F

from inst.evaluation.metrics.flicker import flicker
from inst.pictures.motion import Motion


def world(seed: int = 0) -> torch.Tensor:
    made = torch.zeros(1, 3, 96, 160)
    for size in (6, 12, 24):
        coarse = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(seed + size)) - 0.5
        made += F.interpolate(coarse, (96, 160), mode="bicubic")
    return made[0].clamp(-1, 1)


def windows(picture: torch.Tensor, step: int, count: int = 4) -> list[torch.Tensor]:
    return [picture[:, :, step * i : step * i + 128] for i in range(count)]


def test_a_painting_that_moves_with_the_photo_does_not_flicker() -> None:
    found = flicker(windows(world(), 4), windows(world(3), 4))
    assert found.warped == pytest.approx(0, abs=0.01)
    assert found.static is None


def test_a_painting_that_stays_while_the_photo_moves_flickers() -> None:
    moving, staying = windows(world(3), 4), windows(world(3), 0)
    found = flicker(windows(world(), 4), staying)
    assert found.warped is not None
    assert found.warped > 3 * (flicker(windows(world(), 4), moving).warped or 0)


def test_noise_on_a_still_photo_has_its_known_value() -> None:
    """The mean absolute difference of two normal values is 2 sd / sqrt(pi); colours in [0, 1] halve it."""
    generator = torch.Generator().manual_seed(0)
    photos = [world()[:, :, :128]] * 5
    results = [torch.randn(3, 96, 128, generator=generator) * 0.1 for _ in photos]
    found = flicker(photos, results)
    assert found.static == pytest.approx(0.1 / math.sqrt(math.pi), rel=0.01)
    assert found.warped == pytest.approx(found.static, rel=1e-6)


def test_places_near_motion_do_not_count_as_static() -> None:
    photos = [torch.zeros(3, 64, 64) for _ in range(2)]
    photos[1][:, :16, :] = 0.5
    results = [torch.zeros(3, 64, 64), torch.zeros(3, 64, 64)]
    results[1][:, :20, :] = 1  # within the reach of a stroke from what moves
    results[1][:, 40:, :] = 0.2
    assert flicker(photos, results).static == pytest.approx(0.1 * 24 / 40)


def test_a_known_motion_can_be_given() -> None:
    flow = torch.zeros(2, 96, 128)
    flow[0] = 4
    trust = torch.zeros(96, 128)
    trust[:, :120] = 1
    found = flicker(windows(world(), 4), windows(world(3), 4), lambda *_: Motion(flow, -flow, trust))
    assert found.warped == pytest.approx(0, abs=1e-4)


def test_photos_are_resized_to_the_results_and_one_frame_has_no_flicker() -> None:
    photos = [world()[:, :, :128]] * 2
    small = [torch.full((3, 48, 64), value) for value in (0.0, 0.5)]
    assert flicker(photos, small).static == pytest.approx(0.25)
    alone = flicker(photos[:1], small[:1])
    assert alone.static is None
    assert alone.warped is None
    with pytest.raises(ValueError, match="shorter"):
        flicker(photos, small[:1])
