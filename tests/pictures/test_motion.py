"""Motion between frames: found where it is known by construction, and not trusted where it cannot be known."""

import pytest
import torch
import torch.nn.functional as F

from inst.pictures import motion
from inst.pictures.motion import motion_between, move


def scene(height: int = 96, width: int = 128, seed: int = 0) -> torch.Tensor:
    """A picture with details of several sizes."""
    made = torch.zeros(1, 3, height, width)
    for size in (6, 12, 24):
        coarse = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(seed + size)) - 0.5
        made += F.interpolate(coarse, (height, width), mode="bicubic")
    return made[0].clamp(-1, 1)


def test_values_move_by_whole_and_by_half_pixels() -> None:
    values = torch.arange(20.0).repeat(1, 8, 1)
    flow = torch.zeros(2, 8, 20)
    assert move(values, flow) is values
    flow[0] = 3
    torch.testing.assert_close(move(values, flow)[:, :, :16], values[:, :, 3:19])
    flow[0] = 0.5
    torch.testing.assert_close(move(values, flow)[:, :, 2:17], values[:, :, 2:17] + 0.5)
    flow[0], flow[1] = 0, 2
    rows = torch.arange(8.0)[:, None].repeat(1, 1, 20)
    torch.testing.assert_close(move(rows, flow)[:, :5], rows[:, 2:7])


def test_a_shift_is_found_and_trusted_where_both_frames_show_it() -> None:
    world = scene(96, 140)
    earlier, later = world[:, :, :128], world[:, :, 5:133]  # everything goes 5 pixels to the left
    found = motion_between(earlier, later)
    inner = slice(10, -10), slice(10, -20)
    assert (found.back[0][inner] - 5).abs().mean() < 0.2
    assert (found.forth[0][inner[0], 15:-10] + 5).abs().mean() < 0.2
    assert found.back[1][inner].abs().mean() < 0.2
    assert found.trust[inner].mean() > 0.9
    assert found.trust[:, -4:].max() < 0.1  # came into sight
    assert (move(earlier, found.back) - later)[:, *inner].abs().mean() < 0.02


def test_motions_follow_each_other() -> None:
    world = scene(96, 150)
    frames = [world[:, :, start : start + 128] for start in (0, 4, 9)]
    first, second = (motion_between(*frames[i : i + 2]) for i in (0, 1))
    back, forth = second.after(first)
    assert (back[0, 10:-10, 10:-25] - 9).abs().mean() < 0.4
    assert (forth[0, 10:-10, 25:-10] + 9).abs().mean() < 0.4
    direct = motion_between(frames[0], frames[2], (back, forth))
    assert (direct.back[0, 10:-10, 10:-25] - 9).abs().mean() < 0.2


def test_what_was_hidden_is_not_trusted_and_what_stands_still_is() -> None:
    earlier, later = scene(), scene()
    earlier[:, 30:60, 20:50] = later[:, 30:60, 70:100] = torch.tensor([1.0, -1.0, -1.0])[:, None, None]
    found = motion_between(earlier, later)
    assert found.trust[32:58, 22:48].max() < 0.05  # a red block was before it
    assert found.trust[:20].min() == 1
    assert not found.back[:, :20].any()


@pytest.mark.parametrize("without", [False, True])
def test_frames_that_are_equal_have_not_moved(without: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if without:
        monkeypatch.setattr(motion, "opencv", lambda: None)
    found = motion_between(scene(), scene())
    assert not found.back.any()
    assert not found.forth.any()
    assert found.trust.min() == 1


def test_without_opencv_only_what_stands_still_is_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(motion, "opencv", lambda: None)
    earlier = scene()
    later = earlier.clone()
    later[:, 40:80, 40:80] = scene(seed=7)[:, 40:80, 40:80]
    found = motion_between(earlier, later)
    assert not found.back.any()
    assert found.trust[:30].min() == 1
    assert found.trust[44:76, 44:76].mean() < 0.3


def test_another_picture_is_not_trusted() -> None:
    assert motion_between(scene(), scene(seed=50)).trust.mean() < 0.2
