"""A sheet is checked before anything is painted, also when its numbers come from a record."""

from typing import Any

import pytest
import torch

from inst import Backbone, InstError, Photo, UsageError
from inst.learning.instant import instant_style
from inst.runs import complete
from inst.synthesis.record import _LONGEST, PictureRecord
from inst.synthesis.sheet import paint_sheet

SETTINGS: dict[str, Any] = {"strengths": [0.3], "guidances": [2.0], "steps": 1, "size": 64}


@pytest.fixture
def photo() -> Photo:
    return Photo(torch.rand(3, 80, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1)


@pytest.mark.parametrize(
    "changes",
    [
        {"strengths": [0.3] * 1000, "guidances": [2.0] * 1000},
        {"strengths": []},
        {"strengths": 0.3},
        {"guidances": "2,4"},
        {"guidances": None},
        {"guidances": {}},
        {"guidances": [float("nan")]},
        {"guidances": [1e300]},
        {"strengths": ["x"]},
        {"strengths": [[0.3]]},
        {"steps": 10**9},
        {"steps": 10**30},
        {"size": 10**9},
        {"size": "64"},
        {"size": float("nan")},
        {"style_scale": 1e300},
        {"style_attention": True},
        {"tone": "x" * 10**6},
    ],
)
def test_absurd_settings_are_refused_before_anything_is_painted(
    tiny_backbone: Backbone, photo: Photo, changes: dict[str, Any]
) -> None:
    with pytest.raises(UsageError) as caught:
        paint_sheet(tiny_backbone, photo, [instant_style(tiny_backbone, photo)], SETTINGS | changes)
    assert len(str(caught.value)) < 3000


def test_the_record_of_a_sheet_keeps_the_settings_as_they_were_given(tiny_backbone: Backbone, photo: Photo) -> None:
    style = instant_style(tiny_backbone, photo)
    painted = complete(paint_sheet(tiny_backbone, photo, [style], SETTINGS | {"size": None}))
    assert painted.record.settings["size"] is None


@pytest.mark.parametrize("size", [(2, 3000), (1, 100_000), (65_500, 1)])
def test_a_photo_that_is_a_line_is_refused(tiny_backbone: Backbone, size: tuple[int, int]) -> None:
    from inst.synthesis.from_photo import transfer

    line = torch.zeros(3, *size)
    with pytest.raises(UsageError, match="too long and thin: crop the photo"):
        transfer(tiny_backbone, line, instant_style(tiny_backbone, torch.zeros(3, 64, 64)))


def test_a_record_of_megabytes_is_refused() -> None:
    text = " " * (_LONGEST + 1)
    with pytest.raises(InstError, match=r"^the record cannot be used: it has 33,554,433 characters"):
        PictureRecord.from_text(text)
