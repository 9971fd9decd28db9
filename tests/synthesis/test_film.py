"""Films: frames hold what earlier ones show, one at a time, and a run goes on where another one stopped."""

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from inst import Backbone, InstError, InstWarning, Style, UsageError, save_picture
from inst.evaluation.metrics.flicker import flicker
from inst.pictures import motion
from inst.pictures.stored import encode_painting
from inst.pictures.tensors import to_image, to_tensor
from inst.runs import complete
from inst.sampling import attention as attention_module
from inst.synthesis import film as film_module
from inst.synthesis.film import transfer_film
from inst.synthesis.from_photo import transfer
from tiny import idle_copy, sharpen

FEW: dict[str, Any] = {"steps": 2, "size": 64}


def world(height: int = 80, width: int = 120, seed: int = 0) -> torch.Tensor:
    made = torch.zeros(1, 3, height, width)
    for size in (6, 12, 24):
        coarse = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(seed + size)) - 0.5
        made += F.interpolate(coarse, (height, width), mode="bicubic")
    return made[0].clamp(-1, 1)


def pan(count: int = 5, step: int = 3) -> list[torch.Tensor]:
    return [world()[:, 8:72, step * i : step * i + 80] for i in range(count)]


@pytest.fixture(scope="module")
def backbone(tiny_backbone_folder: Path) -> Backbone:
    return sharpen(Backbone.load(tiny_backbone_folder, "cpu", "float32"))


@pytest.fixture(scope="module")
def style(backbone: Backbone) -> Style:
    vectors = torch.randn(3, backbone.text_width, generator=torch.Generator().manual_seed(0)) * 0.5
    return Style(vectors, backbone.fingerprint, paintings=(encode_painting(world(80, 70, seed=100)),))


def rounded(picture: torch.Tensor) -> torch.Tensor:
    return to_tensor(to_image(picture))


def test_the_first_frame_is_the_transfer_of_its_photo_in_8_bits(backbone: Backbone, style: Style) -> None:
    first = next(transfer_film(backbone, pan(), style, seed=3, **FEW))
    assert torch.equal(first, rounded(complete(transfer(backbone, pan()[0], style, seed=3, **FEW))[0]))


def test_a_photo_that_stands_still_gives_nearly_the_same_frame(backbone: Backbone, style: Style) -> None:
    frames = list(transfer_film(backbone, [world()] * 4, style, **FEW))
    assert len(frames) == 4
    for one, other in itertools.pairwise(frames):
        assert (one - other).abs().max() < 0.1


@pytest.mark.parametrize("without_opencv", [False, True])
def test_a_film_flickers_less_than_its_frames_one_by_one(
    backbone: Backbone, style: Style, monkeypatch: pytest.MonkeyPatch, without_opencv: bool
) -> None:
    photos = [world() for _ in range(4)] if without_opencv else pan()
    alone = [complete(transfer(backbone, photo, style, seed=i, **FEW))[0] for i, photo in enumerate(photos)]
    before = flicker(photos, alone).warped
    if without_opencv:
        monkeypatch.setattr(motion, "opencv", lambda: None)
        with pytest.warns(InstWarning, match="OpenCV is not installed"):
            film = transfer_film(backbone, photos, style, **FEW)
    else:
        film = transfer_film(backbone, photos, style, **FEW)
    found = flicker(photos, film).warped
    assert before is not None
    assert found is not None
    assert found < before / 2


@pytest.mark.parametrize("stopped", [1, 3, 5, 9])
def test_a_run_goes_on_to_the_same_bits(backbone: Backbone, style: Style, tmp_path: Path, stopped: int) -> None:
    """Also behind a cut, and where the anchor is not the first frame any more."""
    photos = [*pan(7, step=6), *(world(seed=9)[:, 8:72, 2 * i : 2 * i + 80] for i in range(3))]
    frames = list(transfer_film(backbone, photos, style, **FEW))
    paths = [save_picture(frame, tmp_path / f"{i}.png") for i, frame in enumerate(frames[:stopped])]
    rest = list(transfer_film(backbone, photos, style, finished=paths, **FEW))
    assert len(rest) == len(frames) - stopped
    assert all(torch.equal(one, other) for one, other in zip(rest, frames[stopped:], strict=True))


def test_nothing_is_held_across_a_cut(backbone: Backbone, style: Style) -> None:
    other = world(seed=9)[:, 8:72, :80]
    behind = list(transfer_film(backbone, [*pan(2), other], style, **FEW))[2]
    assert torch.equal(behind, next(transfer_film(backbone, [other], style, **FEW)))


def test_frames_are_taken_one_by_one(backbone: Backbone, style: Style) -> None:
    taken = 0

    def photos() -> Iterator[torch.Tensor]:
        nonlocal taken
        for photo in pan():
            taken += 1
            yield photo

    for number, _ in enumerate(transfer_film(backbone, photos(), style, **FEW), 1):
        assert taken == number


def test_the_keys_and_values_of_the_painting_are_computed_once(
    backbone: Backbone, style: Style, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = []
    record = attention_module.StyleAttention._record_reference

    def counting(self: Any, reference: Any, timesteps: Any) -> Any:
        recorded.extend((reference.text, t) for t in timesteps)
        return record(self, reference, timesteps)

    monkeypatch.setattr(attention_module.StyleAttention, "_record_reference", counting)
    monkeypatch.setattr(film_module, "_SHARE", 0)
    list(transfer_film(backbone, pan(3), style, **FEW))
    alone = len(recorded)
    complete(transfer(backbone, pan()[0], style, **FEW))
    assert alone == len(recorded) - alone  # three frames took as many as one photo
    recorded.clear()
    monkeypatch.setattr(film_module, "_SHARE", 0.1)
    list(transfer_film(backbone, pan(3), style, **FEW))
    assert len(recorded) == 3 * alone  # the painting, and the two frames that others looked at


def test_the_denoiser_looks_at_finished_frames(
    backbone: Backbone, style: Style, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(film_module.Held, "over", lambda self, result: result)
    frames = {}
    for share in (0, 0.3):
        monkeypatch.setattr(film_module, "_SHARE", share)
        frames[share] = list(transfer_film(backbone, pan(2), style, **FEW))
    assert torch.equal(frames[0][1], next(transfer_film(backbone, pan(2)[1:], style, **FEW)))
    assert not torch.equal(frames[0][1], frames[0.3][1])


def test_outside_of_a_mask_the_photo_stays(backbone: Backbone, style: Style) -> None:
    mask = torch.zeros(64, 80)
    mask[:, 40:] = 1
    for photo, frame in zip(pan(3), transfer_film(backbone, pan(3), style, mask=mask, **FEW), strict=True):
        assert torch.equal(frame[:, :, :40], rounded(photo)[:, :, :40])
        assert not torch.equal(frame[:, :, 56:], rounded(photo)[:, :, 56:])


def test_the_settings_of_transfer_are_taken(backbone: Backbone, style: Style) -> None:
    """Two styles, a text, no style attention, another tone, tiles, fresh noise in every step."""
    two = {"[C1]": style, "[C2]": dataclasses.replace(style)}
    more: dict[str, Any] = {"prompt": "a dog by [C1] and [C2]", "tone": "photo", "tile": 32, "eta": 0.5}
    runs = [
        list(transfer_film(backbone, pan(3), two, solver="ddim", style_attention=0, **more, **FEW)) for _ in range(2)
    ]
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))
    assert list(transfer_film(backbone, pan(2), style, strength=0, **FEW))[1].shape == (3, 64, 80)


def test_wrong_arguments_are_refused_before_anything_is_computed(
    backbone: Backbone, style: Style, monkeypatch: pytest.MonkeyPatch
) -> None:
    idle = idle_copy(backbone, monkeypatch)
    for settings, words in (
        ({"strength": 2}, "strength"),
        ({"seed": [1, 2]}, "seed"),
        ({"noise": torch.zeros(1)}, "noise"),
        ({"tone": "loud"}, "tone"),
    ):
        with pytest.raises(UsageError, match=words):
            transfer_film(idle, pan(), style, **settings)
    with pytest.raises(UsageError, match="No frame is given"):
        transfer_film(idle, [], style)
    with pytest.raises(InstError, match="no such file"):
        transfer_film(idle, ["none.png"], style)


def test_a_warning_comes_once(backbone: Backbone, style: Style) -> None:
    word = dataclasses.replace(style, paintings=(), shares=())
    with pytest.warns(InstWarning, match="no picture of its painting") as warned:
        list(transfer_film(backbone, pan(3), word, **FEW))
    assert len(warned) == 1


def test_a_frame_of_another_size_is_named(backbone: Backbone, style: Style) -> None:
    run = transfer_film(backbone, [*pan(1), world()[:, :64, :64]], style, **FEW)
    next(run)
    with pytest.raises(UsageError, match="Frame 2 has 64 x 64 pixels, the first one 80 x 64"):
        next(run)


def test_finished_frames_of_another_size_are_refused(backbone: Backbone, style: Style) -> None:
    with pytest.raises(UsageError, match="does not belong to a film of 80 x 64"):
        next(transfer_film(backbone, pan(3), style, finished=[world()], **FEW))
