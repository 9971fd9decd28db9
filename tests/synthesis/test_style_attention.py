"""Style attention in transfer and generation: what it changes, what it leaves alone, and with what it goes together."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from inst import Backbone, InstError, UsageError
from inst.pictures.resizing import resize
from inst.pictures.stored import encode_painting
from inst.runs import complete
from inst.sampling import attention as attention_module
from inst.sampling.attention import StyleAttention
from inst.sampling.control import Control
from inst.sampling.noise import draw_noise
from inst.styles.style import Style
from inst.synthesis import from_photo
from inst.synthesis.from_photo import transfer
from inst.synthesis.from_prompt import generate
from inst.synthesis.plan import default_steps
from tiny import FAMILIES, idle_copy, save_family, sharpen, tiny_controlnet

pytestmark = pytest.mark.filterwarnings("ignore:.*no picture of its painting:inst.InstWarning")

FEW: dict[str, Any] = {"steps": 2, "size": 64}


def picture(height: int = 64, width: int = 64, seed: int = 0) -> torch.Tensor:
    coarse = torch.rand(1, 3, 5, 5, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0]


def make_style(backbone: Backbone, seed: int = 0, **changes: Any) -> Style:
    vectors = torch.randn(3, backbone.text_width, generator=torch.Generator().manual_seed(seed)) * 0.5
    style = Style(vectors, backbone.fingerprint, paintings=(encode_painting(picture(80, 70, seed=100 + seed)),))
    return dataclasses.replace(style, **changes)


@pytest.fixture(scope="module")
def backbone(tiny_backbone_folder: Path) -> Backbone:
    return sharpen(Backbone.load(tiny_backbone_folder, "cpu", "float32"))


@pytest.fixture
def style(backbone: Backbone) -> Style:
    return make_style(backbone)


@pytest.fixture
def untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on, nothing may replace a processor."""

    def refuse(*arguments: Any) -> None:
        pytest.fail("a processor was touched")

    monkeypatch.setattr(attention_module, "handled", refuse)


def close(found: torch.Tensor, expected: torch.Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=atol)


def differ(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and not torch.allclose(one, other, atol=1e-3)


# Without


def test_a_style_attention_of_0_leaves_the_unet_alone(backbone: Backbone, style: Style, untouched: None) -> None:
    """The picture is that of the same word without paintings, for which there is nothing to look at."""
    word = dataclasses.replace(style, paintings=(), shares=())
    for run in (
        lambda style, **more: transfer(backbone, picture(), style, tone="none", **FEW, **more),
        lambda style, **more: generate(backbone, "a dog by [C]", style, **FEW, **more),
    ):
        off = complete(run(style, style_attention=0))
        assert torch.equal(off, complete(run(word)))
        assert torch.equal(off, complete(run(style, style_attention=0.0, style_scale=2.0, attention_blocks="all")))
        assert torch.equal(off, complete(run(word, style_attention=0.3, attention_temperature=2.0)))


def test_at_strength_0_there_is_nothing_to_attend(backbone: Backbone, style: Style, untouched: None) -> None:
    found = complete(transfer(backbone, picture(), style, strength=0, query_preservation=0.5, **FEW))
    assert torch.equal(found, complete(transfer(backbone, picture(), style, strength=0, style_attention=0, **FEW)))


# With


SETTINGS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "stochastic, ddim": {"inversion": "stochastic", "solver": "ddim"},
    "none, dpm++": {"inversion": "none", "solver": "dpm++"},
    "ddim": {"inversion": "ddim"},
    "no tone": {"tone": "none"},
    "the photo's tone": {"tone": "photo"},
    "no guidance": {"guidance": 1},
    "full strength": {"strength": 1.0},
    "a negative prompt": {"negative_prompt": "a photo"},
    "a prompt": {"prompt": "a river"},
    "tiles": {"size": 100, "tile": 64},
    "half": {"style_attention": 0.5},
    "a little": {"style_attention": 0.2},
    "queries": {"query_preservation": 0.6},
    "queries, no guidance": {"query_preservation": 0.6, "guidance": 1},
    "queries in tiles": {"query_preservation": 0.6, "size": 100, "tile": 64},
    "sharper": {"attention_temperature": 1.5},
    "all blocks": {"attention_blocks": "all"},
    "fine blocks": {"attention_blocks": "fine"},
    "a larger painting": {"style_scale": 1.5},
    "a smaller painting": {"style_scale": 0.5},
    "an exaggerated word": {"style_weight": 1.3},
    "two seeds": {"seed": [1, 2]},
    "everything in each step": {"cache_interval": 1},
    "even steps": {"spacing": "trailing"},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_style_attention_changes_the_picture_in_every_setting(backbone: Backbone, style: Style, name: str) -> None:
    settings = FEW | SETTINGS[name]
    before = dict(backbone.unet.attn_processors)
    on = complete(transfer(backbone, picture(70, 90), style, **settings))
    off = complete(transfer(backbone, picture(70, 90), style, **settings | {"style_attention": 0}))
    assert on.isfinite().all()
    assert differ(on, off)
    again = complete(transfer(backbone, picture(70, 90), style, **settings))
    assert torch.equal(on, again)
    assert all(backbone.unet.attn_processors[key] is value for key, value in before.items())


def test_the_settings_give_different_pictures(backbone: Backbone, style: Style) -> None:
    found = [
        complete(transfer(backbone, picture(), style, strength=0.14, inversion="none", tone="none", **FEW, **settings))
        for settings in (
            {},
            {"style_attention": 0.5},
            {"query_preservation": 0.5},
            {"query_preservation": 1.0},
            {"attention_temperature": 2.0},
            {"attention_blocks": "all"},
            {"style_scale": 0.5},
            {"cache_interval": 1},
            {"spacing": "trailing"},
        )
    ]
    for i, one in enumerate(found):
        assert not any(torch.allclose(one, other, atol=1e-4) for other in found[:i])


def test_the_smaller_the_weight_the_closer_the_picture_to_the_words(backbone: Backbone, style: Style) -> None:
    word, *found = (
        complete(transfer(backbone, picture(), style, style_attention=weight, **FEW))
        for weight in (0, 1e-6, 0.1, 0.5, 1.0)
    )
    close(found[0], word, 1e-4)
    distances = [(one - word).norm().item() for one in found]
    assert distances == sorted(distances)


def test_style_attention_changes_generated_pictures(backbone: Backbone, style: Style) -> None:
    for settings in (
        {},
        {"guidance": 1},
        {"style_attention": 0.5},
        {"tone": "painting"},
        {"size": (96, 64), "tile": 64},
    ):
        on, off = (
            complete(generate(backbone, "a dog by [C]", style, **FEW | settings | more))
            for more in ({}, {"style_attention": 0})
        )
        assert differ(on, off)
        assert on.isfinite().all()


@pytest.mark.parametrize("query_preservation", [0.0, 0.6])
def test_outside_of_the_mask_no_pixel_changes(backbone: Backbone, style: Style, query_preservation: float) -> None:
    photo, mask = picture(64, 96), torch.zeros(64, 96)
    mask[:, 40:] = 1
    settings = FEW | {"mask": mask, "query_preservation": query_preservation}
    on, off = (complete(transfer(backbone, photo, style, style_attention=w, **settings)) for w in (1, 0))
    assert torch.equal(on[..., :40], resize(photo[None], (64, 96))[..., :40])
    assert differ(on[..., 48:], off[..., 48:])


@pytest.mark.parametrize("query_preservation", [0.0, 0.6])
def test_tiles_that_cover_the_picture_change_nothing(
    backbone: Backbone, style: Style, query_preservation: float
) -> None:
    one, other = (
        complete(transfer(backbone, picture(64, 64), style, tile=tile, query_preservation=query_preservation, **FEW))
        for tile in (0, 64)
    )
    assert torch.equal(one, other)


@pytest.mark.parametrize("query_preservation", [0.0, 0.6])
def test_style_attention_goes_together_with_a_controlnet(
    backbone: Backbone, style: Style, query_preservation: float
) -> None:
    control = Control(tiny_controlnet(backbone.unet), picture(seed=5), "depth")
    off_control = dataclasses.replace(control, scale=0.0)
    settings = FEW | {"query_preservation": query_preservation, "tile": 48}
    both, neither, painted, steered = (
        complete(transfer(backbone, picture(), style, control=one, style_attention=weight, **settings))
        for one, weight in ((control, 1), (None, 0), (None, 1), (control, 0))
    )
    assert both.isfinite().all()
    for other in (neither, painted, steered):
        assert differ(both, other)
    # A ControlNet without effect changes nothing.
    assert torch.equal(complete(transfer(backbone, picture(), style, control=off_control, **settings)), painted)
    generated = [
        complete(generate(backbone, "[C]", style, control=control, style_attention=weight, **FEW)) for weight in (0, 1)
    ]
    assert differ(*generated)


def test_a_controlnet_with_no_residuals_changes_nothing_with_preserved_queries(
    backbone: Backbone, style: Style
) -> None:
    """The channels of the photo and those of the control picture are not confused."""
    model = tiny_controlnet(backbone.unet)
    for part in (*model.controlnet_down_blocks, model.controlnet_mid_block):
        part.weight.data.zero_()
        part.bias.data.zero_()
    settings = FEW | {"query_preservation": 0.6, "tile": 48}
    found = complete(transfer(backbone, picture(), style, control=Control(model, picture(seed=5), "depth"), **settings))
    close(found, complete(transfer(backbone, picture(), style, **settings)))


def test_low_memory_gives_the_same_picture(backbone: Backbone, tiny_backbone_folder: Path) -> None:
    plain, lean = (
        Backbone.load(tiny_backbone_folder, "cpu", "float32", low_memory=low_memory) for low_memory in (False, True)
    )
    for settings in ({}, {"query_preservation": 0.5}):
        pictures = [complete(transfer(one, picture(), make_style(one), **FEW, **settings)) for one in (plain, lean)]
        close(*pictures, atol=1e-4)  # guidance in one call, and in two


@pytest.mark.parametrize("settings", [{}, {"query_preservation": 0.5}, {"size": 100, "tile": 64}])
def test_computing_ahead_gives_the_same_picture(
    backbone: Backbone, style: Style, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    def run() -> torch.Tensor:
        return complete(transfer(backbone, picture(), style, **FEW | {"steps": 10, "cache_interval": 1} | settings))

    one = run()
    prepare = from_photo.prepare_attention

    def prepare_ahead(*arguments: Any) -> StyleAttention:
        attention = prepare(*arguments)
        assert attention is not None
        attention._ahead = 8
        return attention

    monkeypatch.setattr(from_photo, "prepare_attention", prepare_ahead)
    calls: list[int] = []
    handle = backbone.unet.register_forward_pre_hook(lambda module, arguments: calls.append(len(arguments[0])))
    try:
        close(run(), one)
    finally:
        handle.remove()
    assert calls.count(8) == 1  # the paintings at eight timesteps; photos have batches of 1 and 2


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("settings", [{}, {"query_preservation": 0.5}, {"size": 80, "tile": 48}])
def test_a_picture_does_not_depend_on_the_batch(
    backbone: Backbone, style: Style, guidance: float, settings: dict[str, Any]
) -> None:
    photos, more = [picture(seed=seed) for seed in (1, 2, 3)], FEW | {"strength": 0.5, "guidance": guidance} | settings
    rounding = 1e-5 * guidance
    together = complete(transfer(backbone, photos, style, seed=[4, 5, 6], **more))
    for i, photo in enumerate(photos):
        close(together[i], complete(transfer(backbone, photo, style, seed=4 + i, **more))[0], rounding)
    seeds = complete(transfer(backbone, photos[0], style, seed=[4, 5], **more))
    close(seeds[0], together[0], rounding)
    close(seeds[1], complete(transfer(backbone, photos[0], style, seed=5, **more))[0], rounding)
    assert differ(seeds[0], seeds[1])


@pytest.mark.parametrize(
    ("cache_interval", "expected"),  # of 3 photos in 4 tiles, with 2 paintings
    [(1, [1] * 4 * 2 + [6] * 4 * 4), (2, [1] * 2 * 2 + [3] * 2 * 4 + [6] * 2 * 4), (9, [1] * 2 + [3] * 12 + [6] * 4)],
)
def test_the_number_of_denoiser_calls_is_one_more_for_each_fresh_step_and_painting(
    backbone: Backbone, cache_interval: int, expected: list[int]
) -> None:
    """Not for each photo, guidance, or tile. Guidance doubles the batch in fresh steps only."""
    settings: dict[str, Any] = {"steps": 4, "size": 80, "tile": 64, "inversion": "none", "tone": "none"}
    settings["strength"] = 0.1  # the timesteps are near each other
    settings["cache_interval"] = cache_interval
    style = make_style(backbone, paintings=tuple(encode_painting(picture(64, 64, seed)) for seed in (1, 2)), shares=())
    calls: list[int] = []
    handle = backbone.unet.register_forward_pre_hook(lambda module, arguments: calls.append(len(arguments[0])))
    try:
        complete(transfer(backbone, [picture()] * 3, style, **settings))
    finally:
        handle.remove()
    assert sorted(calls) == expected


@pytest.mark.parametrize(
    ("strength", "timesteps", "fresh"),
    [
        (0.3, [299, 189, 108, 52, 18, 2], [299, 108, 18]),
        (0.6, [599, 407, 258, 147, 71, 25, 4], [599, 407, 258, 71, 4]),  # 407 and 258 are more than 120 below
        (0.01, [9, 5, 3, 2, 1, 0], [9, 3, 1]),
    ],
)
def test_the_default_steps_and_what_is_computed_anew_in_them(
    backbone: Backbone, style: Style, strength: float, timesteps: list[int], fresh: list[int]
) -> None:
    calls: list[tuple[int, int]] = []
    handle = backbone.unet.register_forward_pre_hook(
        lambda module, given: calls.append((int(given[1].flatten()[0]), len(given[0])))
    )
    try:
        steps = list(transfer(backbone, picture(), style, strength=strength, size=64, inversion="none", tone="none"))
    finally:
        handle.remove()
    assert [step.timestep for step in steps] == timesteps
    assert [t for t, batch in calls if batch == 2] == fresh
    assert [t for t, batch in calls if batch == 1] == sorted([*fresh, *(t for t in timesteps if t not in fresh)])[::-1]


def test_more_strength_takes_more_steps() -> None:
    for strength, steps in ((0.0, 6), (0.4, 6), (0.41, 7), (0.65, 7), (0.9, 8), (0.91, 9), (1.0, 9)):
        assert default_steps(strength) == steps


def test_the_seed_of_the_user_does_not_change_the_paintings(
    backbone: Backbone, style: Style, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    prepare = from_photo.prepare_attention

    def spy(*arguments: Any) -> StyleAttention | None:
        attention = prepare(*arguments)
        assert attention is not None
        seen.append(attention.references[0].at(500))
        return attention

    monkeypatch.setattr(from_photo, "prepare_attention", spy)
    one, other = (complete(transfer(backbone, picture(), style, seed=seed, **FEW)) for seed in (1, 2))
    assert torch.equal(*seen)
    assert differ(one, other)


@torch.no_grad()
def test_preserved_queries_come_from_the_photos_at_the_same_noise_level(
    backbone: Backbone, style: Style, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By diffusers' scheduler, with the noise of each picture's seed."""
    seen: list[StyleAttention] = []
    prepare = from_photo.prepare_attention
    monkeypatch.setattr(from_photo, "prepare_attention", lambda *given: seen.append(prepare(*given)) or seen[-1])
    photos = torch.stack([picture(seed=1), picture(seed=2)])
    complete(transfer(backbone, photos, style, seed=[4, 5], tone="none", query_preservation=0.5, **FEW))
    content_at = seen[0].content_at
    assert content_at is not None
    for t in seen[0].timesteps:
        noise = draw_noise((4, 8, 8), [4, 5])
        close(content_at(t), backbone.scheduler.add_noise(backbone.encode(photos), noise, torch.tensor([t, t])))


# Several styles


def test_several_styles_show_all_their_paintings(backbone: Backbone) -> None:
    one, other = make_style(backbone, 0), make_style(backbone, 1)
    settings = FEW | {"prompt": "[C1] and [C2]", "tone": "none"}
    found = complete(transfer(backbone, picture(), {"[C1]": one, "[C2]": other}, **settings))
    for gone in ("[C1]", "[C2]"):
        styles = {"[C1]": one, "[C2]": other}
        styles[gone] = dataclasses.replace(styles[gone], paintings=(), shares=())
        assert differ(found, complete(transfer(backbone, picture(), styles, **settings)))
    off = complete(transfer(backbone, picture(), {"[C1]": one, "[C2]": other}, style_attention=0, **settings))
    assert differ(found, off)


@pytest.mark.parametrize("kind", ["transfer", "generate"])
def test_a_painting_of_a_style_to_steer_away_from_does_not_take_part(backbone: Backbone, kind: str) -> None:
    """Only the negative prompt names the style, so the result must not get its strokes."""
    wanted, unwanted = make_style(backbone, 0), make_style(backbone, 1)

    def run(unwanted: Style) -> torch.Tensor:
        styles, settings = {"[C1]": wanted, "[C2]": unwanted}, FEW | {"negative_prompt": "[C2]", "tone": "none"}
        if kind == "transfer":
            return complete(transfer(backbone, picture(), styles, prompt="a dog by [C1]", **settings))
        return complete(generate(backbone, "a dog by [C1]", styles, **settings))

    close(run(unwanted), run(dataclasses.replace(unwanted, paintings=(), shares=())))


def test_a_style_without_a_pseudo_word_works_by_its_painting_alone(backbone: Backbone) -> None:
    one, other = (make_style(backbone, seed, vectors=torch.zeros(0, backbone.text_width)) for seed in (0, 1))
    for run in (
        lambda style, **more: transfer(backbone, picture(), style, tone="none", prompt="a dog", **FEW, **more),
        lambda style, **more: generate(backbone, "a dog", style, **FEW, **more),
    ):
        pictures = [complete(run(style)) for style in (one, other)]
        assert differ(*pictures)
        # Beside a word without a painting, it is the painting of both.
        word = make_style(backbone, 2, paintings=(), shares=())
        assert differ(complete(run({"[C]": one, "[D]": word}, negative_prompt="[D]")), pictures[0])
        with pytest.raises(UsageError, match="has no pseudo-word"):
            run(one, style_attention=0)


# Families


@pytest.mark.parametrize("family", FAMILIES)
def test_style_attention_works_for_every_family(tmp_path: Path, family: str) -> None:
    backbone = Backbone.load(save_family(tmp_path, family), "cpu", "float32")
    for name, module in backbone.unet.named_modules():
        if name.endswith(".attn1"):
            module.to_q.weight.data.mul_(8)
    style = make_style(backbone)
    for settings in ({}, {"query_preservation": 0.5, "attention_blocks": "all"}, {"size": 96, "tile": 64}):
        on, off = (
            complete(transfer(backbone, picture(64, 96), style, style_attention=weight, **FEW | settings))
            for weight in (0.8, 0)
        )
        assert on.isfinite().all()
        assert differ(on, off)
    assert differ(*(complete(generate(backbone, "[C]", style, style_attention=w, **FEW)) for w in (1, 0)))


# The processors


@pytest.mark.parametrize("kind", ["transfer", "generate"])
@pytest.mark.parametrize("blocks", ["up", "all"])
def test_between_two_steps_the_unet_is_as_before(backbone: Backbone, style: Style, kind: str, blocks: str) -> None:
    before = dict(backbone.unet.attn_processors)

    def as_before() -> bool:
        now = backbone.unet.attn_processors
        return now.keys() == before.keys() and all(now[key] is before[key] for key in before)

    def run() -> Any:
        if kind == "generate":
            return generate(backbone, "[C]", style, attention_blocks=blocks, steps=3, size=64)
        settings = {"query_preservation": 0.5, "inversion": "ddim", "attention_blocks": blocks}
        return transfer(backbone, picture(), style, steps=3, size=64, **settings)

    steps = run()
    assert as_before()
    count = 0
    for _ in steps:
        count += 1
        assert as_before()
    assert count == (6 if kind == "transfer" else 3)
    assert as_before()

    steps = run()
    for _ in range(count - 1):
        next(steps)
    steps.close()
    assert as_before()

    calls = []

    def fail(*_: Any) -> None:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt

    handle = backbone.unet.mid_block.register_forward_pre_hook(fail)
    try:
        with pytest.raises(KeyboardInterrupt):
            complete(run())
    finally:
        handle.remove()
    assert as_before()


def test_two_runs_whose_steps_alternate_give_what_each_gives_alone(backbone: Backbone) -> None:
    def run(seed: int) -> Any:
        blocks = ("up", "all")[seed]
        return transfer(backbone, picture(), make_style(backbone, seed), attention_blocks=blocks, steps=3, size=64)

    alone = [complete(run(seed)) for seed in (0, 1)]
    runs, found = [run(0), run(1)], {}
    while len(found) < 2:
        for i, steps in enumerate(runs):
            try:
                next(steps)
            except StopIteration as end:
                found.setdefault(i, end.value)
    for i in (0, 1):
        assert torch.equal(found[i], alone[i])


# Wrong use


@pytest.fixture
def idle(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> Backbone:
    return idle_copy(backbone, monkeypatch)


MISTAKES: list[tuple[str, Any, str]] = [
    *(("style_attention", value, "style attention") for value in (-0.1, 1.1, math.nan, math.inf, "a", True, None)),
    *(("style_scale", value, "style scale") for value in (0, -1, 0.05, 11, math.nan, math.inf, "a", True, None)),
    *(("attention_temperature", value, "attention temperature") for value in (0, -1, math.nan, "a", True)),
    *(("attention_blocks", value, "attention blocks") for value in ("down", "", None, 3)),
    *(("spacing", value, "spacing") for value in ("even", "", None, 3)),
    *(("cache_interval", value, "cache interval") for value in (0, -1, 1.5, "a", True, None)),
]


def start(kind: str, backbone: Backbone, style: Style, **settings: Any) -> Any:
    """Call the function without running its generator."""
    if kind == "transfer":
        return transfer(backbone, picture(), style, **settings)
    return generate(backbone, "[C]", style, **settings)


@pytest.mark.parametrize("kind", ["transfer", "generate"])
@pytest.mark.parametrize(("name", "value", "message"), MISTAKES)
def test_wrong_values_are_refused_in_one_line_before_anything_is_computed(
    idle: Backbone, style: Style, kind: str, name: str, value: Any, message: str
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        start(kind, idle, style, **{name: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [2, -0.1, math.nan, "a", True])
def test_a_wrong_query_preservation_is_refused(idle: Backbone, style: Style, value: Any) -> None:
    with pytest.raises(UsageError, match="query preservation") as caught:
        transfer(idle, picture(), style, query_preservation=value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["transfer", "generate"])
def test_a_damaged_painting_to_look_at_is_reported_before_anything_is_computed(
    idle: Backbone, style: Style, kind: str
) -> None:
    """Also without a tone, which uses them, too."""
    damaged = dataclasses.replace(style, paintings=(style.paintings[0], style.paintings[0][:200]), shares=())
    with pytest.raises(InstError, match="The painting of the style"):
        start(kind, idle, damaged, tone="none")
