"""The paintings that style attention looks at: their size, cut, shares, latents and prompts."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from inst import Backbone, UsageError
from inst.pictures.resizing import resize
from inst.pictures.stored import encode_painting
from inst.sampling.attention import AttentionSettings, Reference
from inst.sampling.noise import draw_noise
from inst.styles.style import MOST_PAINTINGS, Style
from inst.synthesis.plan import make_plan
from inst.synthesis.references import _fit, check_style_scale, make_references, prepare_attention
from tiny import WIDTH


def picture(height: int, width: int, seed: int = 0) -> torch.Tensor:
    coarse = torch.rand(1, 3, 5, 5, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0]


def style_of(backbone: Backbone, *sizes: tuple[int, int], **changes: Any) -> Style:
    """A style with a painting of each size (height, width)."""
    vectors = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(0))
    paintings = tuple(encode_painting(picture(*size, seed=i)) for i, size in enumerate(sizes))
    return dataclasses.replace(Style(vectors, backbone.fingerprint, paintings=paintings), **changes)


def references_of(
    backbone: Backbone, styles: dict[str, Style], size: tuple[int, int], tile: int | None, style_scale: float
) -> list[Reference]:
    paintings = {name: style.main_paintings() for name, style in styles.items()}
    return make_references(backbone, styles, paintings, size, tile, style_scale, 1.0)


def grid(reference: Reference) -> tuple[int, ...]:
    return tuple(reference.at(500).shape)


# The size


@pytest.mark.parametrize(
    ("painting", "short_side", "area", "multiple", "expected"),
    [
        ((1024, 1024), 512, 512 * 512, 64, (512, 512)),  # the size of the result
        ((1024, 1024), 256, 512 * 512, 64, (256, 256)),  # smaller strokes
        ((1024, 1024), 1024, 512 * 512, 64, (512, 512)),  # larger strokes: the centre of it
        ((768, 1024), 512, 512 * 512, 64, (512, 512)),  # 512 x 683: cut to the area
        ((1024, 768), 512, 512 * 512, 64, (512, 512)),
        ((768, 1024), 512, 512 * 683, 64, (512, 640)),  # 512 x 683: cut to a multiple only
        ((1024, 1024), 512, 512 * 768, 64, (512, 512)),  # a square in a wide result
        ((300, 300), 512, 512 * 512, 64, (448, 448)),  # enlarged by 1.5, and cut to a multiple
        ((100, 100), 512, 512 * 512, 64, (128, 128)),
        ((256, 4096), 512, 512 * 512, 64, (384, 640)),  # a scroll: enlarged by 1.5, 262144 / 384 = 682 wide
        ((4096, 256), 512, 512 * 512, 64, (640, 384)),
        ((512, 4096), 256, 512 * 512, 64, (256, 1024)),  # 256 x 2048: half of it
        ((10, 10), 512, 512 * 512, 64, (64, 64)),  # never less than a multiple
        ((64, 64), 6.4, 64 * 64, 16, (16, 16)),
    ],
)
def test_a_painting_is_fitted_to_the_size(
    painting: tuple[int, int], short_side: float, area: int, multiple: int, expected: tuple[int, int]
) -> None:
    assert tuple(_fit(torch.zeros(3, *painting), short_side, area, multiple).shape) == (3, *expected)


UNIT = 1 / 150  # the value of one pixel in `ramps`: pictures are in [-1, 1]


def ramps(height: int, width: int) -> torch.Tensor:
    """A picture whose first two channels tell the place of a pixel: its row and its column, with 0 in the centre."""
    rows = (torch.arange(height) + 0.5 - height / 2).view(-1, 1).expand(height, width)
    columns = (torch.arange(width) + 0.5 - width / 2).expand(height, width)
    return torch.stack([rows, columns, torch.zeros(height, width)]) * UNIT


@settings(deadline=None, max_examples=80)
@given(
    painting=st.tuples(st.integers(20, 260), st.integers(20, 260)),
    short_side=st.floats(16, 300),
    result=st.tuples(st.integers(16, 200), st.integers(16, 200)),
    multiple=st.sampled_from([8, 16]),
)
@example(painting=(130, 120), short_side=126.0, result=(63, 65), multiple=16)  # an area between two squares
def test_a_fitted_painting_is_the_centre_of_it_at_one_scale(
    painting: tuple[int, int], short_side: float, result: tuple[int, int], multiple: int
) -> None:
    area = math.prod(result)
    fitted = _fit(ramps(*painting), short_side, area, multiple)
    sides = fitted.shape[1:]
    assert all(side % multiple == 0 for side in sides)
    assert math.prod(sides) <= area or (sides[0] == sides[1] and sides[0] <= math.sqrt(area) + 2)
    scale = min(short_side / min(painting), 1.5)
    for axis in (0, 1):
        whole = max(multiple, round(painting[axis] * scale))
        assert sides[axis] <= whole
        # Away from the borders, resizing keeps a ramp. A pixel of the result is `step` pixels of the painting.
        step = painting[axis] / whole
        edge = sides[axis] // 4
        line = fitted[axis].select(1 - axis, sides[1 - axis] // 2)[edge : sides[axis] - edge] / UNIT
        assert (line[1:] - line[:-1]).mean().item() == pytest.approx(step, rel=0.02)
        # Half a pixel from the centre, if an odd number of pixels is cut off.
        assert abs(line.mean().item()) <= step * 0.51
    # No side is cut without need: with one multiple more on each side that is cut, the picture would be too large.
    whole = [max(multiple, round(side * scale)) for side in painting]
    longer = [min(side + multiple, limit) for side, limit in zip(sides, whole, strict=True)]
    assert math.prod(longer) > area or longer == whole


def test_the_style_scale_is_the_short_side_of_the_painting_in_the_result(tiny_backbone: Backbone) -> None:
    """In latent positions of 8 pixels; the tiny model takes multiples of 16 pixels."""
    style = style_of(tiny_backbone, (400, 400))

    def size(result: tuple[int, int], scale: float, field: int | None = None) -> tuple[int, ...]:
        (one,) = references_of(tiny_backbone, {"[C]": style}, result, field, scale)
        return grid(one)[2:]

    assert size((128, 128), 1.0) == (16, 16)
    assert size((128, 128), 0.5) == (8, 8)
    assert size((128, 256), 1.0) == (16, 16)
    assert size((128, 512), 2.0) == (32, 32)  # twice the short side
    assert size((128, 128), 2.0) == (16, 16)  # twice as large, and its centre
    assert size((256, 256), 1.0, 128) == (16, 16)  # no more than a tile
    assert size((256, 256), 0.5, 128) == (16, 16)
    assert size((256, 256), 0.25, 128) == (8, 8)
    assert size((64, 64), 1.0, 128) == (8, 8)  # nor more than the result


# Which paintings, and how much of each


def test_paintings_share_as_their_styles_say(tiny_backbone: Backbone) -> None:
    style = style_of(tiny_backbone, (64, 64), (64, 96), shares=(0.25, 0.75))
    found = references_of(tiny_backbone, {"[C]": style}, (64, 96), None, 1.0)
    assert {grid(one)[2:]: one.share for one in found} == {(8, 8): 0.25, (8, 12): 0.75}


def test_several_styles_have_equal_parts(tiny_backbone: Backbone) -> None:
    one = style_of(tiny_backbone, (64, 64))
    other = style_of(tiny_backbone, (64, 96), (96, 64))
    found = references_of(tiny_backbone, {"[C1]": one, "[C2]": other}, (64, 96), None, 1.0)
    assert {grid(one)[2:]: one.share for one in found} == {(8, 8): 0.5, (8, 12): 0.25, (12, 8): 0.25}
    word = style_of(tiny_backbone)
    (alone,) = references_of(tiny_backbone, {"[C1]": one, "[C2]": word}, (64, 64), None, 1.0)
    assert alone.share == 1
    assert references_of(tiny_backbone, {"[C]": word}, (64, 64), None, 1.0) == []


def test_of_many_paintings_those_with_the_largest_shares_take_part(tiny_backbone: Backbone) -> None:
    widths = [16, 32, 48, 64, 80, 96]
    shares = (0.05, 0.2, 0.1, 0.3, 0.3, 0.05)
    style = style_of(tiny_backbone, *((64, 64 + width) for width in widths), shares=shares)
    found = references_of(tiny_backbone, {"[C]": style}, (64, 256), None, 1.0)
    assert len(found) == MOST_PAINTINGS == 4
    expected = {64: 0.3 / 0.9, 80: 0.3 / 0.9, 32: 0.2 / 0.9, 48: 0.1 / 0.9}
    assert {grid(one)[3] * 8 - 64: one.share for one in found} == pytest.approx(expected)
    # Another style keeps its half.
    both = references_of(tiny_backbone, {"[C]": style, "[D]": style_of(tiny_backbone, (64, 64))}, (64, 256), None, 1.0)
    expected = {width: share / 2 for width, share in expected.items()} | {0: 0.5}
    assert {grid(one)[3] * 8 - 64: one.share for one in both} == pytest.approx(expected)


@settings(deadline=None, max_examples=20)
@given(parts=st.lists(st.lists(st.integers(0, 5), max_size=6), min_size=1, max_size=3))
def test_the_shares_sum_to_1(tiny_backbone: Backbone, parts: list[list[int]]) -> None:
    styles, painting = {}, encode_painting(picture(16, 16))
    for i, weights in enumerate(parts):
        paintings = (painting,) * len(weights)
        styles[f"[C{i}]"] = style_of(tiny_backbone, paintings=paintings, shares=tuple(map(float, weights)))
    found = references_of(tiny_backbone, styles, (16, 16), None, 1.0)
    assert len(found) == sum(min(MOST_PAINTINGS, sum(weight > 0 for weight in weights)) for weights in parts)
    assert all(reference.share > 0 for reference in found)
    assert sum(reference.share for reference in found) == pytest.approx(1 if found else 0)


def test_a_painting_with_a_share_of_0_is_not_even_read(tiny_backbone: Backbone) -> None:
    style = style_of(tiny_backbone, (64, 64), (64, 64), shares=(1.0, 0.0))
    style = dataclasses.replace(style, paintings=(style.paintings[0], b"damaged"))
    assert [one.share for one in references_of(tiny_backbone, {"[C]": style}, (64, 64), None, 1.0)] == [1.0]


# Latents and prompts


@torch.no_grad()
def test_the_latents_are_those_of_the_noised_painting(tiny_backbone: Backbone) -> None:
    """By diffusers' scheduler, and with the noise of the seed 0."""
    style = style_of(tiny_backbone, (128, 192))
    (found,) = references_of(tiny_backbone, {"[C]": style}, (64, 64), None, 1.0)
    centre = resize(style.painting(), (64, 96))[:, :, 16:80]
    clean, noise = tiny_backbone.encode(centre[None]), draw_noise((4, 8, 8), [0])
    for t in (999, 500, 0):
        expected = tiny_backbone.scheduler.add_noise(clean, noise, torch.tensor([t]))
        torch.testing.assert_close(found.at(t), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_prompt_of_a_painting_is_its_pseudo_word_or_empty(tiny_backbone: Backbone) -> None:
    style = style_of(tiny_backbone, (64, 64))
    word = tiny_backbone.embed_text(["[C]"], {"[C]": style.vectors}).tokens
    empty = tiny_backbone.embed_text([""]).tokens
    without = dataclasses.replace(style, vectors=torch.zeros(0, WIDTH))
    for one, expected in ((style, word), (without, empty)):
        (found,) = references_of(tiny_backbone, {"[D]": one}, (64, 64), None, 1.0)
        assert torch.equal(found.text.tokens, expected)


# Whether there is style attention


def test_there_is_no_style_attention_without_weight_paintings_or_steps(tiny_backbone: Backbone) -> None:
    style, content = style_of(tiny_backbone, (64, 64)), torch.zeros(1, 4, 8, 8)

    def prepare(style: Style, weight: float = 1.0, strength: float = 0.5, **more: Any) -> Any:
        plan = make_plan(tiny_backbone, (64, 64), 1, 0, strength, 3, 4.0, "ddim", None, 0.0, None, "trailing", 1)
        chosen = AttentionSettings(weight, **more)
        return prepare_attention(
            tiny_backbone, {"[C]": style}, {"[C]": style.main_paintings()}, plan, chosen, 1.0, 1.0, lambda t: content
        )

    assert prepare(style).timesteps == [499, 332, 166]
    assert prepare(style).content_at is None
    assert prepare(style, query_preservation=0.1).content_at(5) is content
    assert prepare(style, weight=0, query_preservation=0.5) is None
    assert prepare(style, strength=0) is None
    assert prepare(style_of(tiny_backbone)) is None


def test_the_tiles_of_the_plan_limit_the_painting(tiny_backbone: Backbone) -> None:
    """The tiny model's default size is 128 pixels. Pictures more than twice as large are denoised in tiles of it."""
    style = style_of(tiny_backbone, (400, 400))
    for size, tile, expected in ((272, None, 16), (256, None, 32), (272, 0, 34), (272, 96, 12), (272, 90, 12)):
        plan = make_plan(tiny_backbone, (size, size), 1, 0, 1.0, 3, 4.0, "ddim", tile, 0.0, None, "trailing", 1)
        attention = prepare_attention(
            tiny_backbone, {"[C]": style}, {"[C]": style.main_paintings()}, plan, AttentionSettings(), 1.0, 1.0, None
        )
        assert attention is not None
        assert grid(attention.references[0])[2:] == (expected, expected)


@pytest.mark.parametrize("value", [0, -1, 0.09, 10.1, math.nan, math.inf, "1", True, None])
def test_a_wrong_style_scale_is_refused(value: Any) -> None:
    with pytest.raises(UsageError, match="style scale") as caught:
        check_style_scale(value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [0.1, 1, 1.5, 10])
def test_a_style_scale_from_a_tenth_to_ten_is_taken(value: float) -> None:
    check_style_scale(value)
