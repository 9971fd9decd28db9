"""Photos of one series share the keys and values of the painting, and come out as they do alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from inst import Backbone, Style
from inst.pictures.stored import encode_painting
from inst.runs import complete
from inst.sampling import attention as attention_module
from inst.synthesis import series as series_module
from inst.synthesis.from_photo import transfer
from inst.synthesis.series import Held, Series
from tiny import sharpen

FEW: dict[str, Any] = {"steps": 2, "size": 64}


def picture(height: int = 64, width: int = 64, seed: int = 0) -> torch.Tensor:
    coarse = torch.rand(1, 3, 5, 5, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return F.interpolate(coarse, (height, width), mode="bilinear")[0]


@pytest.fixture(scope="module")
def backbone(tiny_backbone_folder: Path) -> Backbone:
    return sharpen(Backbone.load(tiny_backbone_folder, "cpu", "float32"))


def make_style(backbone: Backbone, seed: int) -> Style:
    vectors = torch.randn(3, backbone.text_width, generator=torch.Generator().manual_seed(seed)) * 0.5
    return Style(vectors, backbone.fingerprint, paintings=(encode_painting(picture(80, 70, seed=100 + seed)),))


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The timesteps at which keys and values of a reference are computed from here on."""
    found: list[int] = []
    record = attention_module.StyleAttention._record_reference

    def counting(self: Any, reference: Any, timesteps: Any) -> Any:
        found.extend(timesteps)
        return record(self, reference, timesteps)

    monkeypatch.setattr(attention_module.StyleAttention, "_record_reference", counting)
    return found


def test_a_series_computes_the_painting_once_and_changes_no_bit(backbone: Backbone, recorded: list[int]) -> None:
    style, series = make_style(backbone, 0), Series()
    photos = [picture(seed=i) for i in range(3)]
    alone = [complete(transfer(backbone, photo, style, **FEW)) for photo in photos]
    once = len(recorded) // 3
    recorded.clear()
    together = [complete(transfer(backbone, photo, style, series=series, **FEW)) for photo in photos]
    assert len(recorded) == once > 0
    assert all(torch.equal(one, other) for one, other in zip(together, alone, strict=True))


@pytest.mark.parametrize(
    "change",
    [
        {"style_scale": 0.5},
        {"attention_blocks": "all"},
        {"style_weight": 0.5},
        {"strength": 0.8},
        {"size": 96},
        {"style": 1},
        {"photo": (64, 96)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_is_kept_is_not_used_for_something_else(backbone: Backbone, change: dict[str, Any]) -> None:
    styles, series = [make_style(backbone, seed) for seed in (0, 1)], Series()
    complete(transfer(backbone, picture(), styles[0], series=series, **FEW))
    settings = {**FEW, **change}
    style, photo = styles[settings.pop("style", 0)], picture(*settings.pop("photo", (64, 64)))
    found = complete(transfer(backbone, photo, style, series=series, **settings))
    assert torch.equal(found, complete(transfer(backbone, photo, style, **settings)))


def test_a_backbone_with_low_memory_keeps_nothing(tiny_backbone_folder: Path, recorded: list[int]) -> None:
    backbone = Backbone.load(tiny_backbone_folder, "cpu", "float32", low_memory=True)
    style, series = make_style(backbone, 0), Series()
    for seed in range(2):
        complete(transfer(backbone, picture(seed=seed), style, series=series, **FEW))
    half = len(recorded) // 2
    assert recorded[:half] == recorded[half:] != []


def test_a_held_picture_keeps_its_strokes_and_takes_the_light_of_the_result() -> None:
    strokes = (torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0)) - 0.5) * 0.4
    result = torch.full((1, 3, 64, 64), 0.3)
    over = Held((), strokes, torch.ones(64, 64)).over(result)
    least = round(64 * series_module._STROKE)
    assert F.avg_pool2d(over, least).sub(0.3).abs().max() < 0.1
    assert (over - 0.3 - strokes).abs().mean() < 0.03
    half = Held((), strokes, torch.cat([torch.zeros(64, 32), torch.ones(64, 32)], 1)).over(result)
    assert torch.equal(half[..., :32], result[..., :32])
    torch.testing.assert_close(half[..., 44:], over[..., 44:], atol=0.05, rtol=0)
