"""Transfer and generation against diffusers' pipelines on the same weights, worked cases, and what they promise."""

import copy
import dataclasses
import itertools
import re
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from diffusers.utils.torch_utils import randn_tensor

from inst import Backbone, InstError, UsageError
from inst.backbone.text import TextEmbedding
from inst.errors import InstWarning
from inst.pictures.oklab import srgb_to_oklab
from inst.pictures.resizing import resize
from inst.pictures.stored import encode_painting
from inst.runs import complete
from inst.sampling.content import INVERSIONS, invert_content
from inst.sampling.masks import feather
from inst.sampling.noise import draw_noise
from inst.sampling.solvers import SOLVERS, SamplingStep, StopSampling
from inst.styles.style import Style
from inst.synthesis.from_photo import transfer
from inst.synthesis.from_prompt import generate
from inst.synthesis.prompts import complete_prompt, embed_prompts
from inst.synthesis.tone import Palette, match_palette
from schedules import LIKE_DIFFUSERS
from tiny import POSITIONS, WIDTH, idle_copy, write_tiny_backbone

NATIVE = 64  # pixels of the tiny model's native side
VECTORS = 3
FEW = {"steps": 3}
WORD_ALONE: dict[str, Any] = {"tone": "none", "style_attention": 0, "size": NATIVE}


def picture(height: int = NATIVE, width: int = NATIVE, seed: int = 0) -> torch.Tensor:
    coarse = torch.rand(1, 3, 5, 5, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0]


def make_style(backbone: Backbone, seed: int = 0, **changes: Any) -> Style:
    style = Style(
        torch.randn(VECTORS, WIDTH, generator=torch.Generator().manual_seed(seed)) * 0.5,
        backbone.fingerprint,
        backbone.denoiser_fingerprint,
        {"name": f"style {seed}"},
        (encode_painting(picture(80, 70, seed=100 + seed)),),
    )
    return dataclasses.replace(style, **changes)


@pytest.fixture
def style(tiny_backbone: Backbone) -> Style:
    return make_style(tiny_backbone)


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_backbone(tmp_path_factory.mktemp(request.param), request.param)


def close(found: torch.Tensor, expected: torch.Tensor, atol: float = 1e-4) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=atol)


# The method


def pipeline_of(kind: Any, folder: Path) -> Any:
    pipeline = kind.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = DDIMScheduler.from_config(
        pipeline.scheduler.config, timestep_spacing="trailing", set_alpha_to_one=True, clip_sample=False
    )
    return pipeline


def test_generating_gives_the_same_pictures_as_diffusers(folder: Path) -> None:
    backbone = Backbone.load(folder, "cpu", "float32")
    style, seeds = make_style(backbone), [3, 4]
    prompts = ["a river in the style of [C]", "[C] by a dog"]
    found = complete(
        generate(
            backbone,
            prompts,
            style,
            steps=5,
            guidance=3.0,
            negative_prompt="a photo",
            seed=seeds,
            solver="ddim",
            style_attention=0,
        )
    )
    expected = pipeline_of(StableDiffusionPipeline, folder)(
        prompt_embeds=backbone.embed_text(prompts, {"[C]": style.vectors}).tokens,
        negative_prompt_embeds=backbone.embed_text(["a photo"] * 2).tokens,
        latents=draw_noise((4, 8, 8), seeds),
        num_inference_steps=5,
        guidance_scale=3.0,
        output_type="pt",
    ).images
    close(found, expected * 2 - 1)


def test_transfer_from_plain_noise_gives_the_same_picture_as_diffusers(folder: Path) -> None:
    backbone = Backbone.load(folder, "cpu", "float32")
    style, photo = make_style(backbone), picture(NATIVE, 96)
    settings = {"guidance": 3.0, "negative_prompt": "a photo", "seed": 7, "solver": "ddim", **WORD_ALONE}
    settings |= LIKE_DIFFUSERS
    found = complete(transfer(backbone, photo, style, strength=0.5, steps=5, inversion="none", **settings))
    expected = pipeline_of(StableDiffusionImg2ImgPipeline, folder)(
        image=backbone.encode(photo[None]),
        prompt_embeds=backbone.embed_text(["[C]"], {"[C]": style.vectors}).tokens,
        negative_prompt_embeds=backbone.embed_text(["a photo"]).tokens,
        strength=0.5,
        num_inference_steps=10,  # of which it takes the last 5
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(7),
        output_type="pt",
    ).images
    close(found, expected * 2 - 1)


def test_encoded_prompts_give_the_pictures_of_their_texts(folder: Path) -> None:
    backbone = Backbone.load(folder, "cpu", "float32")
    style, photo = make_style(backbone), picture()
    prompts, vectors = ["a river in the style of [C]", "[C] by a dog"], {"[C]": style.vectors}
    text, negative = backbone.embed_text(prompts, vectors), backbone.embed_text(["a photo"])
    settings: dict[str, Any] = {"steps": 3, "seed": [3, 4], "tone": "painting"}
    expected = complete(generate(backbone, prompts, style, negative_prompt="a photo", **settings))
    close(complete(generate(backbone, text, style, negative_prompt=negative, **settings)), expected)
    close(complete(generate(backbone, text, style, negative_prompt="a photo", **settings)), expected)
    expected = complete(transfer(backbone, photo, style, prompt=prompts[0], seed=3, steps=3))
    close(complete(transfer(backbone, photo, style, prompt=text[:1], seed=3, steps=3)), expected)


def test_given_noise_takes_the_place_of_that_of_the_seed(tiny_backbone: Backbone, style: Style) -> None:
    noise = draw_noise((4, 8, 8), [3, 4])
    settings: dict[str, Any] = {"steps": 3, "solver": "ddim", "eta": 0.5}
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    for generator in generators:
        torch.randn(4, 8, 8, generator=generator)
    expected = complete(generate(tiny_backbone, ["[C]"] * 2, style, seed=[3, 4], **settings))
    close(complete(generate(tiny_backbone, ["[C]"] * 2, style, seed=generators, noise=noise, **settings)), expected)
    expected = complete(transfer(tiny_backbone, picture(), style, seed=3, steps=3, size=64))
    close(complete(transfer(tiny_backbone, picture(), style, noise=noise[:1], steps=3, size=64)), expected)


@torch.no_grad()
def test_one_step_from_stochastic_inversion_equals_an_example_worked_out_by_hand(
    tiny_backbone: Backbone, style: Style
) -> None:
    """One step from strength 0.5: the noise predicted without guidance starts it, guidance is for the step itself."""
    photo = picture()
    found = complete(
        transfer(tiny_backbone, photo, style, strength=0.5, steps=1, guidance=3, seed=5, solver="ddim", **WORD_ALONE)
    )
    text, empty = tiny_backbone.embed_text(["[C]"], {"[C]": style.vectors}), tiny_backbone.embed_text([""])
    t, clean = 499, tiny_backbone.encode(photo[None])
    alpha, sigma = tiny_backbone.alphas_cumprod[t].sqrt(), (1 - tiny_backbone.alphas_cumprod[t]).sqrt()
    noisy = alpha * clean + sigma * draw_noise((4, 8, 8), [5])
    start = alpha * clean + sigma * tiny_backbone.predict_noise(noisy, t, text)
    without, with_text = (tiny_backbone.predict_noise(start, t, words) for words in (empty, text))
    noise = without + 3.0 * (with_text - without)
    close(found, tiny_backbone.decode((start - sigma * noise) / alpha))


@pytest.mark.parametrize("tone", ["none", "painting"])
@torch.no_grad()
def test_strength_0_gives_the_autoencoders_reconstruction_of_the_photo(
    tiny_backbone: Backbone, style: Style, tone: str
) -> None:
    photo = picture(100, 150)
    found = complete(transfer(tiny_backbone, photo, style, strength=0, tone=tone))
    resized = resize(photo[None], (2 * NATIVE, 3 * NATIVE))
    assert torch.equal(found, tiny_backbone.decode(tiny_backbone.encode(resized)))


def test_ddim_inversion_yields_its_steps_before_those_of_sampling(tiny_backbone: Backbone, style: Style) -> None:
    steps = {kind: list(transfer(tiny_backbone, picture(), style, inversion=kind, **FEW)) for kind in INVERSIONS}
    assert [(step.phase, step.index, step.total) for step in steps["ddim"]] == [
        *(("inversion", i, 3) for i in range(3)),
        *(("sampling", i, 3) for i in range(3)),
    ]
    timesteps = [step.timestep for step in steps["ddim"]]
    assert timesteps == sorted(timesteps[:3]) + sorted(timesteps[3:], reverse=True)
    assert {step.phase for kind in ("stochastic", "none") for step in steps[kind]} == {"sampling"}


@pytest.mark.parametrize("solver", SOLVERS)
def test_sampling_continues_from_latents_sent_into_the_generator(
    tiny_backbone: Backbone, style: Style, solver: str
) -> None:
    settings = {"solver": solver, "steps": 2, "tone": "none"}
    plain = complete(generate(tiny_backbone, "[C]", style, **settings))
    sampling = generate(tiny_backbone, "[C]", style, **settings)
    step = next(sampling)
    step = sampling.send(step.latents.clone())  # the same again changes nothing
    with pytest.raises(StopIteration) as end:
        next(sampling)
    assert torch.equal(end.value.value, plain)

    sampling, other = generate(tiny_backbone, "[C]", style, **settings), torch.ones(1, 4, 8, 8)
    next(sampling)
    sampling.send(other)
    with pytest.raises(StopIteration) as end:
        sampling.send(other)
    assert torch.equal(end.value.value, tiny_backbone.decode(other))


def test_stopped_sampling_returns_the_picture_of_the_latents_at_that_step(
    tiny_backbone: Backbone, style: Style
) -> None:
    mask = torch.zeros(64, 64)
    mask[:, 32:] = 1
    for sampling in (
        generate(tiny_backbone, "[C]", style),
        transfer(tiny_backbone, picture(), style, mask=mask, tone="photo", size=NATIVE),
    ):
        step = next(sampling)
        with pytest.raises(StopIteration) as end:
            sampling.throw(StopSampling(step.latents))
        found = end.value.value
        assert found.shape == (1, 3, 64, 64)
    assert torch.equal(found[0, :, :, :32], picture()[:, :, :32])


def test_noise_is_drawn_from_torch_generators_as_in_diffusers(tiny_backbone: Backbone, style: Style) -> None:
    def noise_of(**settings: Any) -> torch.Tensor:
        [step] = generate(tiny_backbone, solver="ddim", steps=1, guidance=1, style=style, style_attention=0, **settings)
        return step.latents

    def generator(seed: int) -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    for prompts, given, shape in (
        (["[C]"], generator(5), (1, 4, 8, 8)),
        (["[C]"] * 3, generator(5), (3, 4, 8, 8)),
        (["[C]"] * 2, [generator(5), generator(6)], (2, 4, 8, 8)),
        (["[C]"], [generator(5), generator(6)], (2, 4, 8, 8)),
    ):
        drawn = randn_tensor(shape, [generator(5), generator(6)] if isinstance(given, list) else generator(5))
        text = tiny_backbone.embed_text(["[C]"], {"[C]": style.vectors})
        with torch.no_grad():
            predicted = tiny_backbone.predict_noise(drawn, 999, text)
        abar = tiny_backbone.alphas_cumprod[999]
        close(noise_of(prompt=prompts, seed=given), (drawn - (1 - abar).sqrt() * predicted) / abar.sqrt(), atol=1e-3)
    one = generator(5)
    first, second = noise_of(prompt="[C]", seed=one), noise_of(prompt="[C]", seed=one)
    assert torch.equal(first, noise_of(prompt="[C]", seed=5))
    assert not torch.equal(first, second)  # a generator goes on; it does not start anew


def test_each_photo_can_have_its_own_prompt(tiny_backbone: Backbone, style: Style) -> None:
    photos, prompts = torch.stack([picture(), picture(seed=1)]), ["a river", "a dog"]
    found = complete(transfer(tiny_backbone, photos, style, prompt=prompts, **FEW))
    for i in range(2):
        close(found[i], complete(transfer(tiny_backbone, photos[i], style, prompt=prompts[i], **FEW))[0])
    with pytest.raises(UsageError, match="2 prompts do not fit 1 photos"):
        transfer(tiny_backbone, picture(), style, prompt=prompts)


def test_every_inversion_and_solver_gives_a_different_picture(tiny_backbone: Backbone, style: Style) -> None:
    found = [
        complete(transfer(tiny_backbone, picture(), style, inversion=inversion, solver=solver, **FEW))
        for inversion in INVERSIONS
        for solver in SOLVERS
    ]
    for one, other in itertools.combinations(found, 2):
        assert not torch.allclose(one, other, atol=1e-4)
    assert all(one.isfinite().all() and one.abs().max() <= 1 for one in found)


def test_each_sampling_step_is_yielded_once(tiny_backbone: Backbone, style: Style) -> None:
    steps: list[SamplingStep] = []
    complete(transfer(tiny_backbone, picture(70, 64), style, steps=4, strength=0.8, size=NATIVE), steps.append)
    assert [(step.index, step.total) for step in steps] == [(0, 4), (1, 4), (2, 4), (3, 4)]
    assert steps[0].timestep == 799
    assert steps[-1].latents.shape == (1, 4, 10, 8)


def test_a_backbone_without_image_encoder_gives_the_same_picture(tiny_backbone: Backbone, style: Style) -> None:
    bare = copy.copy(tiny_backbone)
    bare.image_encoder = bare.feature_extractor = bare.inversion = None
    found = complete(transfer(bare, picture(), style, **FEW))
    assert torch.equal(found, complete(transfer(tiny_backbone, picture(), style, **FEW)))


def test_a_backbone_in_bfloat16_gives_finite_float32_pictures(tiny_backbone_folder: Path) -> None:
    backbone = Backbone.load(tiny_backbone_folder, "cpu", "bfloat16")
    found = complete(transfer(backbone, picture(), make_style(backbone), style_weight=1.2, **FEW))
    assert found.dtype == torch.float32
    assert found.isfinite().all()


# Batches and seeds


def test_a_picture_does_not_depend_on_the_batch(tiny_backbone: Backbone, style: Style) -> None:
    photos = torch.stack([picture(48, 80), picture(48, 80, seed=1)])
    both = complete(transfer(tiny_backbone, photos, style, seed=[5, 9], **FEW))
    for photo, seed, found in zip(photos, (5, 9), both, strict=True):
        close(found, complete(transfer(tiny_backbone, photo, style, seed=seed, **FEW))[0])
    same_seed = complete(transfer(tiny_backbone, photos, style, seed=5, **FEW))
    close(same_seed[0], both[0])
    assert not torch.allclose(same_seed[1], both[1], atol=1e-3)


def test_several_seeds_of_one_photo_or_prompt_give_the_picture_of_each_seed(
    tiny_backbone: Backbone, style: Style
) -> None:
    found = complete(transfer(tiny_backbone, picture(), style, seed=range(3), **FEW))
    assert found.shape == (3, 3, 2 * NATIVE, 2 * NATIVE)
    close(found[2], complete(transfer(tiny_backbone, picture(), style, seed=2, **FEW))[0])
    made = complete(generate(tiny_backbone, "[C]", style, seed=[8, 2], **FEW))
    close(made[1], complete(generate(tiny_backbone, ["a dog, [C]", "[C]"], style, seed=2, **FEW))[1])


def test_two_runs_with_one_seed_give_the_same_picture(tiny_backbone: Backbone, style: Style) -> None:
    one, other = (complete(transfer(tiny_backbone, picture(), style, **FEW)) for _ in range(2))
    assert torch.equal(one, other)


# Sizes and tiles


@pytest.mark.parametrize(
    ("photo", "size", "expected"),
    [
        ((64, 64), None, (128, 128)),
        ((200, 300), None, (128, 192)),
        ((131, 60), None, (262, 120)),  # at most twice the photo's size
        ((3, 4), None, (16, 21)),  # but not too small for the model
        ((50, 77), 50, (50, 77)),
        ((50, 77), 17, (17, 26)),
        ((333, 1), 16, (5328, 16)),
        ((3, 4), 90, (90, 120)),
    ],
)
def test_the_result_has_the_size_asked_for(
    tiny_backbone: Backbone, style: Style, photo: tuple[int, int], size: int | None, expected: tuple[int, int]
) -> None:
    found = complete(transfer(tiny_backbone, picture(*photo), style, size=size, steps=1))
    assert found.shape == (1, 3, *expected)


@pytest.mark.parametrize(("size", "expected"), [(None, (64, 64)), (40, (40, 40)), ((90, 33), (33, 90))])
def test_a_generated_picture_has_the_size_asked_for(
    tiny_backbone: Backbone, style: Style, size: Any, expected: Any
) -> None:
    assert complete(generate(tiny_backbone, "[C]", style, size=size, steps=1)).shape == (1, 3, *expected)


@pytest.fixture
def seen_by_unet(tiny_backbone: Backbone) -> Any:
    """The heights and widths of what the UNet is called with."""
    sizes: list[tuple[int, ...]] = []
    handle = tiny_backbone.unet.register_forward_pre_hook(lambda unet, given: sizes.append(tuple(given[0].shape[2:])))
    yield sizes
    handle.remove()


@pytest.mark.parametrize(
    ("size", "tile", "expected"),
    [
        ((256, 64), None, {(8, 32)}),  # twice the default side: still at once
        ((257, 64), None, {(8, 16)}),
        ((320, 320), None, {(16, 16)}),
        ((512, 64), 0, {(8, 64)}),
        ((128, 128), 100, {(14, 14)}),  # 112 pixels: the next multiple of what the UNet takes
        ((64, 64), 1000, {(8, 8)}),
    ],
)
def test_large_pictures_are_denoised_in_tiles(
    tiny_backbone: Backbone, style: Style, seen_by_unet: list[tuple[int, ...]], size: Any, tile: Any, expected: Any
) -> None:
    found = complete(generate(tiny_backbone, "[C]", style, size=size, tile=tile, steps=1, style_attention=0))
    assert found.shape == (1, 3, size[1], size[0])
    assert set(seen_by_unet) == expected
    seen_by_unet.clear()
    photo, settings = picture(size[1], size[0]), {"size": min(size), "tile": tile, "steps": 1}
    complete(transfer(tiny_backbone, photo, style, style_attention=0, **settings))
    assert set(seen_by_unet) == expected


# Prompts and styles


@pytest.mark.parametrize(
    ("prompt", "names", "expected"),
    [
        (None, ["[C]"], "[C]"),
        ("  ", ["[C]"], "[C]"),
        ("a dog", ["[C]"], "a dog in the style of [C]"),
        ("a dog by [C]", ["[C]"], "a dog by [C]"),
        (None, ["[C1]", "[C2]"], "[C1] and [C2]"),
        ("a dog", ["[C1]", "[C2]"], "a dog in the style of [C1] and [C2]"),
        ("[C2] dog", ["[C1]", "[C2]"], "[C2] dog"),
    ],
)
def test_a_prompt_that_names_no_style_is_completed_with_all_styles(
    style: Style, prompt: str | None, names: list[str], expected: str
) -> None:
    assert complete_prompt(prompt, "", dict.fromkeys(names, style)) == expected


def test_a_style_without_a_word_works_through_its_painting_alone(tiny_backbone: Backbone, style: Style) -> None:
    bare = dataclasses.replace(style, vectors=style.vectors[:0], fingerprint="another text space")
    found = complete(transfer(tiny_backbone, picture(), bare, prompt="a castle", tone="none", **FEW))
    plain = {**FEW, "tone": "none"}
    worded = dataclasses.replace(bare, vectors=tiny_backbone.token_table[:1], fingerprint=tiny_backbone.fingerprint)
    other = complete(transfer(tiny_backbone, picture(), worded, prompt="a castle [C]", **plain))
    assert not torch.allclose(found, other, atol=1e-4)
    made = complete(generate(tiny_backbone, "a castle", bare, **FEW))
    assert made.isfinite().all()
    two = {"[C1]": bare, "[C2]": style}
    assert complete_prompt("a castle", "", two) == "a castle in the style of [C2]"
    assert complete(transfer(tiny_backbone, picture(), two, **FEW)).isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": "a castle in the style of [C]"}, "has no pseudo-word, so [C] cannot stand in a prompt"),
        ({"negative_prompt": "[C]"}, "has no pseudo-word, so [C] cannot stand in a prompt"),
        ({"style_attention": 0.0, "tone": "none"}, "has no pseudo-word, and its painting takes no part"),
    ],
)
def test_a_style_without_a_word_says_what_it_cannot_do(
    tiny_backbone: Backbone, style: Style, arguments: dict[str, Any], message: str
) -> None:
    bare = dataclasses.replace(style, vectors=style.vectors[:0])
    with pytest.raises(UsageError, match=re.escape(message)):
        transfer(tiny_backbone, picture(), bare, **arguments)


def test_a_style_without_word_and_painting_is_refused(tiny_backbone: Backbone, style: Style) -> None:
    nothing = dataclasses.replace(style, vectors=style.vectors[:0], paintings=(), shares=())
    with pytest.raises(UsageError, match="its painting is missing"):
        transfer(tiny_backbone, picture(), nothing)


def test_a_style_named_in_the_negative_prompt_is_not_added_to_the_prompt(tiny_backbone: Backbone) -> None:
    styles = {"[C]": make_style(tiny_backbone), "[bad]": make_style(tiny_backbone, 1)}
    assert complete_prompt("a dog", "[bad]", styles) == "a dog in the style of [C]"
    found = complete(transfer(tiny_backbone, picture(), styles, negative_prompt="[bad]", **FEW))
    other = complete(transfer(tiny_backbone, picture(), styles["[C]"], negative_prompt="bad", **FEW))
    assert not torch.allclose(found, other, atol=1e-3)


def test_transfer_completes_a_prompt_without_placeholder(tiny_backbone: Backbone, style: Style) -> None:
    found, expected = (
        complete(transfer(tiny_backbone, picture(), style, prompt=prompt, **FEW))
        for prompt in ("a dog", "a dog in the style of [C]")
    )
    assert torch.equal(found, expected)


def test_exchanging_two_styles_in_one_prompt_changes_the_picture(tiny_backbone: Backbone) -> None:
    one, other = make_style(tiny_backbone), make_style(tiny_backbone, 1)
    found, swapped = (
        complete(generate(tiny_backbone, "[C1] and [C2]", styles, **FEW))
        for styles in ({"[C1]": one, "[C2]": other}, {"[C1]": other, "[C2]": one})
    )
    assert not torch.allclose(found, swapped, atol=1e-3)


@torch.no_grad()
def test_the_style_weight_interpolates_between_plain_words_and_the_style(tiny_backbone: Backbone, style: Style) -> None:
    prompt = "a dog in the style of [C] and [C]"
    styles = {"[C]": style}
    words = " ".join(["painting"] * VECTORS)
    plain = tiny_backbone.embed_text([prompt.replace("[C]", words)]).tokens
    styled = tiny_backbone.embed_text([prompt], {"[C]": style.vectors}).tokens
    assert torch.equal(embed_prompts(tiny_backbone, [prompt], styles).tokens, styled)
    for weight, expected in ((0.0, plain), (0.5, (plain + styled) / 2), (2.0, 2 * styled - plain)):
        close(embed_prompts(tiny_backbone, [prompt], styles, weight).tokens, expected)
    other = make_style(tiny_backbone, 1)
    assert torch.equal(
        complete(generate(tiny_backbone, "[C]", style, style_weight=0, style_attention=0, **FEW)),
        complete(generate(tiny_backbone, "[C]", other, style_weight=0, style_attention=0, **FEW)),
    )


def test_a_style_of_another_unet_gives_one_warning(tiny_backbone: Backbone) -> None:
    other = make_style(tiny_backbone, denoiser="another")
    with pytest.warns(InstWarning, match="another UNet") as caught:
        complete(transfer(tiny_backbone, picture(), other, steps=1))
    assert len(caught) == 1
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        complete(transfer(tiny_backbone, picture(), make_style(tiny_backbone), steps=1))


# Tone


@torch.no_grad()
@pytest.mark.parametrize(("strength", "share"), [(0.1, 0.4), (0.3, 1.0)])
def test_the_paintings_palette_is_given_to_the_photo_before_noising(
    tiny_backbone: Backbone, style: Style, monkeypatch: pytest.MonkeyPatch, strength: float, share: float
) -> None:
    noised = []
    module = sys.modules[transfer.__module__]
    original = invert_content

    def spy(kind: str, denoise: Any, clean: torch.Tensor, *others: Any) -> torch.Tensor:
        noised.append(clean)
        return original(kind, denoise, clean, *others)

    monkeypatch.setattr(module, "invert_content", spy)
    complete(transfer(tiny_backbone, picture(), style, strength=strength, tone="painting", size=NATIVE, **FEW))
    photo = picture()[None]
    toned = match_palette(photo, Palette.of([style.painting()]))
    close(noised[0], tiny_backbone.encode(photo + share * (toned - photo)))


@torch.no_grad()
def test_a_generated_picture_takes_the_mean_palette_of_its_paintings(tiny_backbone: Backbone) -> None:
    styles = {"[C1]": make_style(tiny_backbone), "[C2]": make_style(tiny_backbone, 1)}
    steps: list[SamplingStep] = []
    found = complete(generate(tiny_backbone, "[C1] [C2]", styles, tone="painting", **FEW), steps.append)
    palette = Palette.of([style.painting() for style in styles.values()], (1.0, 1.0))
    close(found, match_palette(tiny_backbone.decode(steps[-1].latents), palette))


def test_the_tone_photo_keeps_the_photos_colours(tiny_backbone: Backbone, style: Style) -> None:
    grey = picture().mean(dim=0, keepdim=True).expand(3, -1, -1)
    found, plain = (complete(transfer(tiny_backbone, grey, style, tone=tone, **FEW)) for tone in ("photo", "none"))
    assert (found.amax(dim=1) - found.amin(dim=1)).max() < 2e-3
    close(srgb_to_oklab(found)[:, 0], srgb_to_oklab(plain)[:, 0], atol=2e-3)


def test_a_style_without_a_painting_gives_a_warning_and_no_tone(tiny_backbone: Backbone) -> None:
    bare = make_style(tiny_backbone, paintings=())
    with pytest.warns(InstWarning, match="has no picture of its painting"):
        found = complete(transfer(tiny_backbone, picture(), bare, tone="painting", **FEW))
    plain = transfer(tiny_backbone, picture(), bare, tone="none", style_attention=0.0, **FEW)
    assert torch.equal(found, complete(plain))


# Masks


def test_outside_of_the_mask_the_photo_stays(tiny_backbone: Backbone, style: Style) -> None:
    photo = picture(64, 96)
    mask = torch.zeros(64, 96)
    mask[:, 40:] = 1
    for size in (64, 80):
        out = resize(photo[None], (size, round(96 * size / 64)))
        edge = round(40 * out.shape[3] / 96)
        found = complete(transfer(tiny_backbone, photo, style, mask=mask, size=size, strength=0.8, **FEW))
        assert torch.equal(found[..., : edge - 2], out[..., : edge - 2])
        changed = (found - out).abs().amax(dim=(0, 1, 2))
        assert changed[edge + 8 :].min() > 0.01
        assert changed[edge] < changed.max()  # the edge is soft


def test_a_mask_of_ones_gives_the_same_picture_as_no_mask(tiny_backbone: Backbone, style: Style) -> None:
    one, other = (
        complete(transfer(tiny_backbone, picture(), style, mask=mask, **FEW)) for mask in (None, torch.ones(64, 64))
    )
    close(one, other)


@torch.no_grad()
def test_latents_outside_of_the_mask_end_as_those_of_the_photo(tiny_backbone: Backbone, style: Style) -> None:
    """Blended latent diffusion: at every step they are the photo's, at that step's noise level."""
    mask = torch.zeros(64, 64)
    mask[:, 32:] = 1
    for settings in ({"solver": "ddim"}, {"solver": "dpm++"}, {"inversion": "ddim"}):
        steps: list[SamplingStep] = []
        run = transfer(tiny_backbone, picture(), style, mask=mask, steps=4, size=NATIVE, **settings)
        complete(run, steps.append)
        clean = tiny_backbone.encode(picture()[None])
        for step in steps[-4:]:
            close(step.clean[..., :4], clean[..., :4])
        close(steps[-1].latents[..., :4], clean[..., :4])
        assert not torch.allclose(steps[-1].latents[..., 4:], clean[..., 4:], atol=1e-2)


def test_feathering_softens_a_mask_only_inwards() -> None:
    mask = torch.zeros(40, 60)
    mask[10:, 20:] = 1  # touches two of the picture's borders
    soft = feather(mask, 4)
    assert (soft[mask == 0] == 0).all()
    assert (soft[18:, 28:] == 1).all()
    row = soft[30]
    assert (row.diff() >= 0).all()
    assert row.diff().max() < 0.15
    torch.testing.assert_close(feather(torch.full((9, 9), 0.3), 3), torch.full((9, 9), 0.3))
    assert torch.equal(feather(mask, 0), mask)


@pytest.mark.parametrize("level", [1.0, 0.4])
def test_feathering_keeps_the_full_level_of_narrow_regions(level: float) -> None:
    for width in range(1, 24):
        mask = torch.zeros(40, 60)
        mask[8:32, 20 : 20 + width] = level
        soft = feather(mask, 4)
        assert (soft[mask == 0] == 0).all()
        assert soft.max() == pytest.approx(level)
        assert (soft <= mask + 1e-6).all()
    mask[19:21] = level  # a line through it, over the whole picture
    soft = feather(mask, 4)
    assert soft[:, 2].max() == pytest.approx(level)
    assert soft[:, -3].max() == pytest.approx(level)
    assert soft[16, 31] == pytest.approx(level)


def test_feathering_is_soft_all_around_a_round_region() -> None:
    away = torch.cartesian_prod(*[torch.arange(-30.0, 31)] * 2).norm(dim=1).view(61, 61)
    soft = feather((away <= 25).float(), 4)
    assert soft[away <= 12].min() == pytest.approx(1)
    assert soft[(away > 23.5) & (away <= 25)].max() < 0.35
    assert max(soft.diff(dim=dim).abs().max() for dim in (0, 1)) < 0.3


def test_the_picture_changes_inside_a_narrow_mask(tiny_backbone: Backbone, style: Style) -> None:
    mask = torch.zeros(64, 64)
    mask[:, 28:36] = 1
    found = complete(transfer(tiny_backbone, picture(), style, mask=mask, strength=1.0, size=NATIVE, **FEW))
    assert (found[0] - picture())[..., 28:36].abs().max() > 0.05


# Wrong use


@pytest.fixture
def idle(tiny_backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> Backbone:
    return idle_copy(tiny_backbone, monkeypatch)


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"strength": 1.2}, "strength of 1.2"),
    ({"strength": -0.1}, "strength of -0.1"),
    ({"strength": float("nan")}, "strength of nan"),
    ({"steps": 0}, "0 sampling steps"),
    ({"steps": 1001}, "1 to 1000"),
    ({"guidance": -1.0}, "guidance of -1.0"),
    ({"guidance": float("nan")}, "guidance of nan"),
    ({"seed": -1}, "seed -1"),
    ({"seed": []}, "No seed"),
    ({"eta": 0.5}, 'The solver "dpm\\+\\+" is deterministic'),
    ({"noise": torch.zeros(1, 4, 8, 9)}, r"Noise of the shape \[1, 4, 8, 9\].* give .* \[1, 4, "),
    ({"noise": 0}, "Noise of the type int"),
    ({"prompt": TextEmbedding(torch.zeros(1, POSITIONS, 5))}, r"shape \[1, 24, 5\] cannot be used: give \[B, L, 32\]"),
    ({"prompt": TextEmbedding(torch.zeros(3, POSITIONS, WIDTH))}, "3 prompts do not fit 1 photo"),
    (
        {"prompt": TextEmbedding(torch.zeros(1, POSITIONS, WIDTH), torch.zeros(1, WIDTH))},
        "leave the pooled",
    ),
    ({"prompt": TextEmbedding(torch.zeros(1, 48, WIDTH))}, "The prompt has 48 tokens, and the negative prompt 24"),
    ({"negative_prompt": TextEmbedding(torch.zeros(2, POSITIONS, WIDTH))}, "2 negative prompts do not fit 1 prompt"),
    ({"seed": [1, 2, 3], "photo": torch.zeros(2, 3, 64, 64)}, "3 seeds do not fit 2 pictures"),
    ({"solver": "euler"}, r'"euler" is unknown: use one of ddim, dpm\+\+'),
    ({"inversion": "null"}, '"null" is unknown: use one of stochastic, none, ddim'),
    ({"tone": "sepia"}, '"sepia" is unknown: use one of none, painting, adain, photo'),
    ({"style_weight": -0.5}, "style weight of -0.5"),
    ({"style_weight": float("inf")}, "style weight of inf"),
    ({"size": 0}, "short side of 0"),
    ({"size": 15}, "15 x 15 pixels is too small: give sides of 16"),
    ({"size": 20_000}, "20000 x 20000 pixels is too large"),
    ({"tile": 8}, "Tiles of 8 pixels"),
    ({"tile": -64}, "Tiles of -64 pixels"),
    ({"mask": torch.ones(64, 32)}, r"\[64, 32\] does not fit a photo of \[64, 64\]"),
    ({"mask": torch.full((64, 64), 1.5)}, "mask's values"),
    ({"mask": torch.full((64, 64), float("nan"))}, "mask's values"),
    ({"photo": torch.zeros(64, 64)}, r"shape \[64, 64\]"),
    ({"photo": torch.zeros(4, 64, 64)}, r"shape \[4, 64, 64\]"),
    ({"photo": torch.zeros(3, 64, 0)}, r"shape \[3, 64, 0\]"),
    ({"photo": torch.full((3, 64, 64), 255.0)}, "from -1 to 1"),
    ({"photo": torch.full((3, 64, 64), float("nan"))}, "from -1 to 1"),
    ({"photo": torch.zeros(3, 64, 64, dtype=torch.int32)}, "from -1 to 1"),
    ({"prompt": "[B] and [C]"}, r"\[B\], which has no style \(known: \[C\]\)"),
    ({"prompt": "[C] " + "river dog " * 20}, '"dog river dog .*" does not fit: shorten'),
    ({"negative_prompt": "river " * 40}, "shorten the negative prompt"),
    ({"negative_prompt": "[B]"}, "which has no style"),
    ({"prompt": "a dog in the style of [D]"}, r"has the placeholder \[D\], which has no style"),
    (
        {"prompt": "a dog", "negative_prompt": "[C]", "guidance": 1},
        r"Only the negative prompt names \[C\], and with a guidance of 1",
    ),
]


@pytest.mark.parametrize(("changes", "message"), MISTAKES)
def test_wrong_arguments_of_transfer_are_refused_before_anything_is_computed(
    idle: Backbone, style: Style, changes: dict[str, Any], message: str
) -> None:
    arguments = {"photo": picture(), "style": style} | changes
    with pytest.raises(UsageError, match=message) as caught:
        transfer(idle, **arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": "a castle"}, r'write \[C\] in it, such as "a castle in the style of \[C\]"'),
        ({"prompt": ""}, r'such as "a castle in the style of \[C\]"'),
        ({"prompt": ["[C]", "a dog"]}, r'"a dog" does not say where the style goes'),
        ({"prompt": []}, "No prompt"),
        ({"size": (100, 8)}, "100 x 8 pixels is too small"),
        ({"tone": "photo"}, "use one of none, painting"),
        ({"steps": 0}, "0 sampling steps"),
        ({"prompt": ["[C]"] * 2, "seed": [1, 2, 3]}, "3 seeds do not fit 2 pictures"),
        ({"prompt": "a dog in the style of [D]"}, r"has the placeholder \[D\], which has no style"),
        ({"prompt": "a dog", "negative_prompt": "[C]", "guidance": 1.0}, "has no effect: give more guidance"),
    ],
)
def test_wrong_arguments_of_generate_are_refused_before_anything_is_computed(
    idle: Backbone, style: Style, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        generate(idle, **{"prompt": "[C]", "style": style} | changes)


@pytest.mark.parametrize(
    ("choose", "message"),
    [
        (lambda style: {}, "No style is given"),
        (lambda style: {"C": style}, '"C" is not a placeholder'),
        (lambda style: {"[C]": style, "[D]": style}, r"write \[D\] in it"),
        (lambda style: dataclasses.replace(style, fingerprint="0" * 16), "0000000000000000"),
    ],
)
def test_wrong_styles_are_refused_before_anything_is_computed(
    idle: Backbone, style: Style, choose: Callable[[Style], Style | Mapping[str, Style]], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        transfer(idle, picture(), choose(style), prompt="a dog, [C]")


def test_a_damaged_painting_is_reported_before_anything_is_computed(idle: Backbone, style: Style) -> None:
    damaged = dataclasses.replace(style, paintings=(style.paintings[0][:200],))
    with pytest.raises(InstError, match='The painting of the style "style 0"'):
        transfer(idle, picture(), damaged, tone="painting")


# Generators


@pytest.mark.parametrize("kind", ["transfer", "generate"])
def test_gradients_are_off_inside_and_as_they_were_outside(tiny_backbone: Backbone, style: Style, kind: str) -> None:
    weight = tiny_backbone.unet.conv_in.weight
    weight.requires_grad_(True)
    try:
        if kind == "transfer":
            steps = transfer(tiny_backbone, picture(), style, **FEW)
        else:
            steps = generate(tiny_backbone, "[C]", style, **FEW)
        step = next(steps)
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
        assert not step.latents.requires_grad
        result = complete(steps)
        assert torch.is_grad_enabled()
        assert not result.requires_grad
        result.add_(1)  # an ordinary tensor, which callers may go on with
        (result * torch.ones((), requires_grad=True)).sum().backward()
    finally:
        weight.requires_grad_(False)


def test_stopping_early_leaves_gradients_on_and_yields_no_more_steps(tiny_backbone: Backbone, style: Style) -> None:
    steps = transfer(tiny_backbone, picture(), style, **FEW)
    next(steps)
    steps.close()
    assert torch.is_grad_enabled()
    assert list(steps) == []
