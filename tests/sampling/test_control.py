"""Structure control against diffusers' ControlNet pipelines on the same weights, worked cases, and what it promises."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    ControlNetModel,
    DDIMScheduler,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionXLControlNetPipeline,
)

from inst import Backbone, InstError, Style, UsageError, complete, generate, transfer
from inst.diffusers.pipeline import InSTPipeline
from inst.pictures.edges import canny
from inst.pictures.stored import encode_painting
from inst.sampling.control import Control, load_controlnet, with_control_channels, with_controlnet
from inst.sampling.noise import draw_noise
from inst.sampling.tiles import tiled
from schedules import LIKE_DIFFUSERS
from tiny import WIDTH, edit_json, save_family, tiny_controlnet, write_tiny_backbone

FEW = {"steps": 3, "seed": 7}
WORD_ALONE: dict[str, Any] = {"tone": "none", "style_attention": 0, "size": 64}


def picture(height: int = 64, width: int = 64, seed: int = 0) -> torch.Tensor:
    coarse = torch.rand(1, 3, 5, 5, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0]


@pytest.fixture(scope="module")
def controlnet(tiny_backbone: Backbone) -> ControlNetModel:
    return tiny_controlnet(tiny_backbone.unet)


@pytest.fixture
def style(tiny_backbone: Backbone) -> Style:
    vectors = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(0)) * 0.5
    return Style(vectors, tiny_backbone.fingerprint, "", {}, (encode_painting(picture(seed=100)),))


@pytest.fixture
def depth(controlnet: ControlNetModel) -> Control:
    return Control(controlnet, picture(seed=5), "depth", 0.8)


def close(found: torch.Tensor, expected: torch.Tensor, atol: float = 1e-4) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=atol)


# The method


def pipeline_of(kind: Any, folder: Path, controlnet: ControlNetModel) -> Any:
    pipeline = kind.from_pretrained(folder, controlnet=controlnet, safety_checker=None, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = DDIMScheduler.from_config(
        pipeline.scheduler.config, timestep_spacing="trailing", set_alpha_to_one=True, clip_sample=False
    )
    return pipeline


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_generating_with_control_gives_the_same_pictures_as_diffusers(tmp_path: Path, prediction: str) -> None:
    folder = write_tiny_backbone(tmp_path, prediction)
    backbone = Backbone.load(folder, "cpu", "float32")
    model = tiny_controlnet(backbone.unet)
    style = Style(torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(0)), backbone.fingerprint)
    prompts, seeds, hint = ["a river in the style of [C]", "[C] by a dog"], [3, 4], picture(seed=5)
    settings = {"steps": 4, "guidance": 3.0, "negative_prompt": "a photo", "seed": seeds, "solver": "ddim"}
    found = complete(generate(backbone, prompts, style, control=Control(model, hint, "depth", 0.7), **settings))
    expected = pipeline_of(StableDiffusionControlNetPipeline, folder, model)(
        prompt_embeds=backbone.embed_text(prompts, {"[C]": style.vectors}).tokens,
        negative_prompt_embeds=backbone.embed_text(["a photo"] * 2).tokens,
        image=hint[None] / 2 + 0.5,
        controlnet_conditioning_scale=0.7,
        latents=draw_noise((4, 8, 8), seeds),
        num_inference_steps=4,
        guidance_scale=3.0,
        output_type="pt",
    ).images
    close(found, expected * 2 - 1)
    assert not torch.allclose(found, complete(generate(backbone, prompts, style, **settings)), atol=1e-2)


def test_transfer_from_plain_noise_with_control_gives_the_same_picture_as_diffusers(
    tiny_backbone_folder: Path, tiny_backbone: Backbone, controlnet: ControlNetModel, style: Style
) -> None:
    photo, hint = picture(64, 96), picture(64, 96, seed=5)
    settings = {"guidance": 3.0, "negative_prompt": "a photo", "seed": 7, "solver": "ddim", **WORD_ALONE}
    settings |= LIKE_DIFFUSERS
    control = Control(controlnet, hint, "depth")
    found = complete(
        transfer(tiny_backbone, photo, style, strength=0.5, steps=5, inversion="none", control=control, **settings)
    )
    expected = pipeline_of(StableDiffusionControlNetImg2ImgPipeline, tiny_backbone_folder, controlnet)(
        image=tiny_backbone.encode(photo[None]),
        control_image=hint[None] / 2 + 0.5,
        height=64,
        width=96,
        prompt_embeds=tiny_backbone.embed_text(["[C]"], {"[C]": style.vectors}).tokens,
        negative_prompt_embeds=tiny_backbone.embed_text(["a photo"]).tokens,
        strength=0.5,
        num_inference_steps=10,  # of which it takes the last 5
        guidance_scale=3.0,
        controlnet_conditioning_scale=1.0,
        generator=torch.Generator().manual_seed(7),
        output_type="pt",
    ).images
    close(found, expected * 2 - 1)


@pytest.mark.parametrize("inversion", ["stochastic", "none", "ddim"])
def test_a_control_scale_of_0_gives_exactly_the_picture_without_control(
    tiny_backbone: Backbone, style: Style, depth: Control, inversion: str
) -> None:
    none = dataclasses.replace(depth, scale=0.0)
    plain, off, on = (
        complete(transfer(tiny_backbone, picture(), style, inversion=inversion, control=control, **FEW))
        for control in (None, none, depth)
    )
    assert torch.equal(off, plain)
    assert not torch.allclose(on, plain, atol=1e-2)


@torch.no_grad()
def test_the_controlnet_at_a_scale_of_0_does_not_change_the_predicted_noise(
    tiny_backbone: Backbone, depth: Control
) -> None:
    latents, text = draw_noise((4, 8, 8), [0, 1]), tiny_backbone.embed_text(["a river"])
    predict = with_controlnet(tiny_backbone, dataclasses.replace(depth, scale=0.0))
    steered = with_control_channels(lambda z, t: predict(z, t, text), picture(seed=5)[None] / 2 + 0.5, 8)
    assert torch.equal(steered(latents, 500), tiny_backbone.predict_noise(latents, 500, text))


@torch.no_grad()
def test_stochastic_inversion_does_not_use_the_control(tiny_backbone: Backbone, style: Style, depth: Control) -> None:
    """One step, worked by hand: the start is predicted by the UNet alone, the step is taken under control."""
    photo = picture()
    found = complete(
        transfer(
            tiny_backbone,
            photo,
            style,
            strength=0.5,
            steps=1,
            guidance=3.0,
            seed=5,
            solver="ddim",
            control=depth,
            **WORD_ALONE,
        )
    )
    text, empty = tiny_backbone.embed_text(["[C]"], {"[C]": style.vectors}), tiny_backbone.embed_text([""])
    t, clean = 499, tiny_backbone.encode(photo[None])
    alpha, sigma = tiny_backbone.alphas_cumprod[t].sqrt(), (1 - tiny_backbone.alphas_cumprod[t]).sqrt()
    noisy = alpha * clean + sigma * draw_noise((4, 8, 8), [5])
    start = alpha * clean + sigma * tiny_backbone.predict_noise(noisy, t, text)

    def under_control(words: Any) -> torch.Tensor:
        assert depth.picture is not None
        residuals = depth.model(
            start, t, words.tokens, depth.picture[None] / 2 + 0.5, conditioning_scale=0.8, return_dict=False
        )
        return tiny_backbone.predict_noise(start, t, words, residuals=residuals)

    without, with_text = under_control(empty), under_control(text)
    noise = without + 3.0 * (with_text - without)
    close(found, tiny_backbone.decode((start - sigma * noise) / alpha))


def test_ddim_inversion_uses_the_control_so_that_sampling_restores_the_photo(
    tiny_backbone: Backbone, style: Style, depth: Control
) -> None:
    settings = {"inversion": "ddim", "solver": "ddim", "guidance": 1.0, "tone": "none", "steps": 40}
    back = complete(transfer(tiny_backbone, picture(), style, strength=0.6, control=depth, **settings))
    there = complete(transfer(tiny_backbone, picture(), style, strength=0))
    assert (back - there).abs().mean() < 0.02


def test_each_tile_sees_its_own_part_of_the_control_picture() -> None:
    """A denoiser that looks at each position alone, and at the picture there, does not notice the tiles."""
    hint, latents = picture(160, 240)[None] / 2 + 0.5, draw_noise((4, 20, 30), [0, 1])

    def denoise(carried: torch.Tensor, timestep: int) -> torch.Tensor:
        latents, cells = carried[:, :4], torch.nn.functional.pixel_shuffle(carried[:, 4:], 8)
        return latents * torch.nn.functional.avg_pool2d(cells, 8).sum(dim=1, keepdim=True) + timestep

    whole = with_control_channels(denoise, hint, 8)(latents, 3)
    close(whole, latents * torch.nn.functional.avg_pool2d(hint, 8).sum(dim=1, keepdim=True) + 3)
    close(with_control_channels(tiled(lambda frame: denoise, 8, 2), hint, 8)(latents, 3), whole)


def test_control_works_in_tiles_and_at_any_size(
    tiny_backbone: Backbone, style: Style, controlnet: ControlNetModel
) -> None:
    control = Control(controlnet, picture(50, 75, seed=5), "depth")
    found = complete(transfer(tiny_backbone, picture(100, 150), style, size=100, tile=64, control=control, **FEW))
    assert found.shape == (1, 3, 100, 150)
    assert found.isfinite().all()


def test_a_generated_picture_takes_the_proportions_of_the_control_picture(
    tiny_backbone: Backbone, style: Style, controlnet: ControlNetModel
) -> None:
    control = Control(controlnet, picture(40, 80), "depth")
    assert complete(generate(tiny_backbone, "[C]", style, control=control, **FEW)).shape == (1, 3, 64, 128)
    wide = complete(generate(tiny_backbone, "[C]", style, size=(96, 48), control=control, **FEW))
    assert wide.shape == (1, 3, 48, 96)


# Edges


def test_canny_finds_the_edges_of_a_square_and_nothing_else() -> None:
    pytest.importorskip("cv2")
    photo = torch.full((2, 3, 40, 60), -1.0)
    photo[1, :, 10:30, 20:40] = 1
    found = canny(photo)
    assert found.shape == photo.shape
    assert set(found.unique().tolist()) == {-1.0, 1.0}
    assert (found[0] == -1).all()
    rows, columns = torch.nonzero(found[1, 0] == 1).T
    assert (rows.min().item(), rows.max().item()) in {(9, 29), (10, 29), (9, 30), (10, 30)}
    assert (columns.min().item(), columns.max().item()) in {(19, 39), (20, 39), (19, 40), (20, 40)}
    assert (found[1, :, 13:27, 23:37] == -1).all()
    assert torch.equal(found[1, 0], found[1, 2])


def test_without_a_control_picture_the_photos_own_edges_are_used(
    tiny_backbone: Backbone, style: Style, controlnet: ControlNetModel
) -> None:
    pytest.importorskip("cv2")
    photo = torch.full((3, 64, 64), -1.0)
    photo[:, 20:50, 10:40] = 1
    given = Control(controlnet, canny(photo))
    own, same, other = (
        complete(transfer(tiny_backbone, photo, style, control=control, size=64, **FEW))
        for control in (Control(controlnet), given, Control(controlnet, picture()))
    )
    assert torch.equal(own, same)
    assert not torch.allclose(own, other, atol=1e-2)
    both = torch.stack([photo, photo.flip(-1)])  # of several photos, each its own
    together = complete(transfer(tiny_backbone, both, style, control=Control(controlnet), size=64, **FEW))
    close(together[0], own[0])


def test_without_opencv_taking_edges_is_refused_but_a_given_picture_works(
    tiny_backbone: Backbone, style: Style, controlnet: ControlNetModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(InstError, match=r"pip install 'inst\[control\]'"):
        transfer(tiny_backbone, picture(), style, control=Control(controlnet))
    complete(transfer(tiny_backbone, picture(), style, control=Control(controlnet, picture()), **FEW))


def test_the_diffusers_pipeline_with_control_gives_the_same_pictures_as_inst(
    tiny_backbone_folder: Path, tiny_backbone: Backbone, style: Style, depth: Control
) -> None:
    pipe = InSTPipeline.from_pretrained(tiny_backbone_folder)
    pipe.set_progress_bar_config(disable=True)
    settings = {"style": style, "num_inference_steps": 3, "control": depth, "output_type": "pt"}
    for image in (None, picture() / 2 + 0.5):
        found = pipe("[C]", image, generator=torch.Generator().manual_seed(7), **settings).images
        function, subject = (generate, "[C]") if image is None else (transfer, picture())
        close(found * 2 - 1, complete(function(tiny_backbone, subject, style, control=depth, **FEW)))


def test_control_with_two_text_encoders_gives_the_same_picture_as_diffusers(tmp_path: Path) -> None:
    folder = save_family(tmp_path, "sdxl")
    backbone = Backbone.load(folder, "cpu", "float32")
    model = tiny_controlnet(backbone.unet)
    style = Style(torch.randn(3, backbone.text_width, generator=torch.Generator().manual_seed(0)), backbone.fingerprint)
    control = Control(model, picture(seed=5), "depth", 0.7)
    settings = {"steps": 4, "guidance": 3.0, "negative_prompt": "a photo", "seed": 3, "solver": "ddim"}
    found = complete(generate(backbone, "[C]", style, control=control, **settings))
    text, negative = backbone.embed_text(["[C]"], {"[C]": style.vectors}), backbone.embed_text(["a photo"])
    pipeline = StableDiffusionXLControlNetPipeline.from_pretrained(folder, controlnet=model, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = DDIMScheduler.from_config(
        pipeline.scheduler.config, timestep_spacing="trailing", set_alpha_to_one=True, clip_sample=False
    )
    expected = pipeline(
        prompt_embeds=text.tokens,
        pooled_prompt_embeds=text.pooled,
        negative_prompt_embeds=negative.tokens,
        negative_pooled_prompt_embeds=negative.pooled,
        image=picture(seed=5)[None] / 2 + 0.5,
        controlnet_conditioning_scale=0.7,
        latents=draw_noise((4, 8, 8), [3]),
        num_inference_steps=4,
        guidance_scale=3.0,
        output_type="pt",
    ).images
    close(found, expected * 2 - 1)


# Wrong use


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"picture": None}, 'cannot compute a control picture of the kind "depth"'),
        ({"scale": -1.0}, "control scale of -1.0"),
        ({"scale": float("nan")}, "control scale of nan"),
        ({"picture": torch.zeros(64, 64)}, r"shape \[64, 64\]"),
        ({"picture": torch.full((3, 64, 64), 255.0)}, "values cannot be used"),
        ({"picture": torch.zeros(3, 64, 80)}, "80 x 64 pixels does not fit 64 x 64"),
    ],
)
def test_wrong_controls_are_refused_with_the_reason(
    tiny_backbone: Backbone, style: Style, depth: Control, changes: dict[str, Any], message: str
) -> None:
    control = dataclasses.replace(depth, **changes)
    with pytest.raises(UsageError, match=message):
        transfer(tiny_backbone, picture(), style, control=control)
    with pytest.raises(UsageError, match=message):
        generate(tiny_backbone, "[C]", style, size=64, control=control)


def test_generating_with_edges_but_without_a_photo_is_refused(
    tiny_backbone: Backbone, style: Style, controlnet: ControlNetModel
) -> None:
    with pytest.raises(UsageError, match="no photo to find edges in"):
        generate(tiny_backbone, "[C]", style, control=Control(controlnet))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cross_attention_dim": 48}, r"cross_attention_dim is 48, not 32"),
        ({"in_channels": 9}, "in_channels"),
        ({"layers_per_block": 2}, "layers_per_block"),
        ({"conditioning_embedding_out_channels": [16, 32]}, "2 times as large"),
        ({"global_pool_conditions": True}, "pools its picture"),
        ({"conditioning_channels": 4}, "control pictures of 4 channels, not 3"),
        ({"num_class_embeds": 10}, r"needs inputs that InST does not support \(num_class_embeds\)"),
    ],
)
def test_a_controlnet_that_does_not_fit_the_backbone_is_refused(
    tiny_backbone: Backbone, style: Style, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    model = tiny_controlnet(tiny_backbone.unet, **changes)
    with pytest.raises(UsageError, match=message):
        transfer(tiny_backbone, picture(), style, control=Control(model, picture(), "depth"))
    model.save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=message):
        load_controlnet(tmp_path, tiny_backbone)


def test_a_controlnet_is_loaded_from_its_folder_unchanged_and_frozen(
    tiny_backbone: Backbone, controlnet: ControlNetModel, tmp_path: Path
) -> None:
    controlnet.save_pretrained(tmp_path)
    model = load_controlnet(tmp_path, tiny_backbone)
    assert model.dtype == torch.float32
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    for key, tensor in controlnet.state_dict().items():
        assert torch.equal(model.state_dict()[key], tensor)


def test_folders_that_hold_no_usable_controlnet_are_refused(
    tiny_backbone: Backbone, tiny_backbone_folder: Path, controlnet: ControlNetModel, tmp_path: Path
) -> None:
    with pytest.raises(InstError, match="no such folder"):
        load_controlnet(tmp_path / "nowhere", tiny_backbone)
    with pytest.raises(InstError, match="not the ControlNetModel that is needed"):
        load_controlnet(tiny_backbone_folder / "unet", tiny_backbone)
    with pytest.raises(InstError, match=r"config\.json is missing"):
        load_controlnet(tiny_backbone_folder, tiny_backbone)
    controlnet.save_pretrained(tmp_path / "pickled", safe_serialization=False)
    with pytest.raises(InstError, match="pickle"):
        load_controlnet(tmp_path / "pickled", tiny_backbone)
    file = tmp_path / "control.safetensors"
    file.touch()
    with pytest.raises(InstError, match="no such folder"):
        load_controlnet(file, tiny_backbone)
    controlnet.save_pretrained(tmp_path / "broken")
    edit_json(tmp_path / "broken" / "config.json", cross_attention_dim=48)
    with pytest.raises(InstError):
        load_controlnet(tmp_path / "broken", tiny_backbone)
