"""InSTPipeline against the package's own functions and against diffusers' pipelines on the same weights."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image

from inst import Backbone, InstError, InstWarning, Style, UsageError, complete, generate, instant_style, transfer
from inst.diffusers.pipeline import InSTPipeline
from inst.pictures.reading import Photo
from inst.pictures.stored import encode_painting
from inst.pictures.tensors import to_image, to_tensor
from inst.pictures.writing import save_png
from inst.sampling.solvers import SamplingStep
from tiny import WIDTH, edit_json, save_family

FEW = {"num_inference_steps": 3}


def picture(height: int = 64, width: int = 64, seed: int = 0) -> torch.Tensor:
    coarse = torch.rand(1, 3, 5, 5, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return to_tensor(to_image(torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0]))


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pipe(tiny_backbone_folder: Path) -> InSTPipeline:
    return quiet(InSTPipeline.from_pretrained(tiny_backbone_folder))


@pytest.fixture
def diffusers_pipe(tiny_backbone_folder: Path) -> StableDiffusionPipeline:
    return quiet(StableDiffusionPipeline.from_pretrained(tiny_backbone_folder))


@pytest.fixture
def style(tiny_backbone: Backbone) -> Style:
    vectors = torch.randn(3, WIDTH, generator=generator(0)) * 0.5
    painting = encode_painting(picture(80, 70, seed=100))
    return Style(vectors, tiny_backbone.fingerprint, tiny_backbone.denoiser_fingerprint, {}, (painting,))


def as_tensor(found: Any) -> torch.Tensor:
    return torch.stack([to_tensor(image) for image in found.images])


def same_pictures(found: Any, expected: torch.Tensor) -> None:
    """The very levels of 8-bit pictures, but where rounding is a matter of the last bit."""
    torch.testing.assert_close(as_tensor(found), expected, rtol=0, atol=1.01 / 127.5)


# What it makes


def test_a_photo_is_transferred_as_the_function_transfer_does(
    pipe: InSTPipeline, tiny_backbone: Backbone, style: Style
) -> None:
    photo, mask = picture(80, 100), torch.zeros(80, 100)
    mask[:, 50:] = 1
    expected = complete(transfer(tiny_backbone, photo, style, seed=7))
    found = pipe(image=to_image(photo), style=style, generator=generator(7))
    assert [image.size for image in found.images] == [(160, 128)]
    same_pictures(found, expected)

    settings = {"strength": 0.7, "inversion": "ddim", "solver": "ddim", "tone": "photo", "style_weight": 0.5}
    settings |= {"style_attention": 0.6, "style_scale": 0.8, "query_preservation": 0.3}
    settings |= {"attention_temperature": 1.4, "attention_blocks": "all"}
    expected = complete(
        transfer(
            tiny_backbone,
            photo,
            style,
            prompt="a river",
            negative_prompt="a dog",
            steps=3,
            guidance=2.5,
            size=72,
            mask=mask,
            seed=3,
            tile=48,
            **settings,
        )
    )
    found = pipe(
        "a river",
        to_image(photo),
        style,
        negative_prompt="a dog",
        guidance_scale=2.5,
        size=72,
        mask_image=Image.fromarray((mask.numpy() * 255).astype(np.uint8)),
        generator=generator(3),
        tile=48,
        **settings,
        **FEW,
    )
    same_pictures(found, expected)


def test_pictures_are_generated_as_the_function_generate_does(
    pipe: InSTPipeline, tiny_backbone: Backbone, style: Style
) -> None:
    prompts = ["a river in the style of [C]", "[C]"]
    settings = {"tone": "painting", "style_attention": 0.6, "style_scale": 0.8}
    settings |= {"attention_temperature": 1.4, "attention_blocks": "all"}
    expected = complete(generate(tiny_backbone, prompts, style, seed=[3, 4], size=(80, 64), **settings))
    found = pipe(prompts, style=style, generator=[generator(3), generator(4)], width=80, height=64, **settings)
    same_pictures(found, expected)


def test_generated_pictures_are_those_of_diffusers(diffusers_pipe: StableDiffusionPipeline, style: Style) -> None:
    """From the same generators, several pictures of several prompts: so its noise must be drawn in the same way."""
    pipe = quiet(InSTPipeline.from_pipe(diffusers_pipe))
    prompts = ["a river in the style of [C]", "[C] by a dog"]
    text = pipe.backbone.embed_text(prompts, {"[C]": style.vectors}).tokens
    negative = pipe.backbone.embed_text(["a photo"] * 2).tokens
    diffusers_pipe.scheduler = DDIMScheduler.from_config(
        diffusers_pipe.scheduler.config, timestep_spacing="trailing", set_alpha_to_one=True, clip_sample=False
    )
    settings = {"num_inference_steps": 4, "guidance_scale": 3.0, "num_images_per_prompt": 2, "output_type": "pt"}
    for one_for_all in (True, False):

        def generators() -> Any:
            return generator(5) if one_for_all else [generator(k) for k in range(4)]  # noqa: B023

        expected = diffusers_pipe(
            prompt_embeds=text, negative_prompt_embeds=negative, generator=generators(), **settings
        ).images
        given = {"negative_prompt": "a photo", "solver": "ddim", "style_attention": 0.0, "generator": generators()}
        found = pipe(prompts, style=style, **given, **settings)
        torch.testing.assert_close(found.images, expected, rtol=1e-4, atol=1e-4)


def test_each_of_several_photos_and_prompts_gets_its_own_result(
    pipe: InSTPipeline, tiny_backbone: Backbone, style: Style
) -> None:
    photos, prompts = [picture(), picture(seed=1)], ["a river", "a dog"]
    found = pipe(
        prompts,
        [to_image(photo) for photo in photos],
        style,
        num_images_per_prompt=2,
        generator=[generator(k) for k in range(4)],
        **FEW,
    )
    for k in range(4):
        expected = transfer(tiny_backbone, photos[k // 2], style, prompt=prompts[k // 2], seed=k, steps=3)
        torch.testing.assert_close(as_tensor(found)[k], complete(expected)[0], rtol=0, atol=1.01 / 127.5)
    several = pipe(prompts, to_image(photos[0]), style, generator=generator(0), **FEW)  # one photo, two prompts
    assert len(several.images) == 2


def test_every_form_of_a_photo_gives_the_same_picture(pipe: InSTPipeline, style: Style) -> None:
    photo = picture()
    levels = photo / 2 + 0.5
    forms = [
        to_image(photo),
        [to_image(photo)],
        levels,
        levels[None],
        levels.permute(1, 2, 0).numpy(),
        [levels.permute(1, 2, 0).numpy()],
        np.array(to_image(photo)),
        np.array(to_image(photo))[None],
        [torch.from_numpy(np.array(to_image(photo))).permute(2, 0, 1)],
        torch.from_numpy(np.array(to_image(photo))).permute(2, 0, 1)[None],
    ]
    first, *others = (
        pipe(image=form, style=style, generator=generator(0), output_type="pt", **FEW).images for form in forms
    )
    for other in others:
        torch.testing.assert_close(other, first, rtol=1e-4, atol=1e-4)


def test_every_form_of_a_mask_gives_the_same_picture(pipe: InSTPipeline, style: Style) -> None:
    levels = np.zeros((64, 64), np.uint8)
    levels[:, 40:] = 255
    values = levels.astype(np.float32) / 255
    forms = [
        Image.fromarray(levels),
        levels,
        torch.from_numpy(levels),
        values,
        torch.from_numpy(values),
        values[..., None],
    ]
    settings = {"image": to_image(picture()), "style": style, "output_type": "pt", **FEW}
    first, *others = (pipe(mask_image=form, generator=generator(0), **settings).images for form in forms)
    for other in others:
        assert torch.equal(other, first)


def test_photos_are_turned_upright_and_laid_over_white_as_files_are(pipe: InSTPipeline, style: Style) -> None:
    """Upright, and laid over white where they are transparent."""
    upright = to_image(picture(64, 96))
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    turned.getexif()[0x0112] = 6  # to be turned by 270 degrees
    see_through = upright.convert("RGBA")
    see_through.putalpha(0)

    def of(image: Image.Image) -> torch.Tensor:
        return pipe(image=image, style=style, strength=0, output_type="pt").images

    assert torch.equal(of(turned), of(upright))
    assert torch.equal(of(see_through), of(Image.new("RGB", (96, 64), "white")))


def test_every_form_of_a_style_gives_the_same_picture(
    pipe: InSTPipeline, tiny_backbone: Backbone, style: Style, tmp_path: Path
) -> None:
    painting, other = picture(70, 90, seed=1), picture(70, 90, seed=2)
    file, style_file = save_png(painting, tmp_path / "painting.png"), style.save(tmp_path / "one.safetensors")
    instant = instant_style(tiny_backbone, [Photo(painting)])
    both = instant_style(tiny_backbone, [Photo(painting), Photo(other)])

    def of(given: Any, prompt: str = "[C]") -> torch.Tensor:
        return pipe(prompt, style=given, generator=generator(0), output_type="pt", **FEW).images

    assert torch.equal(of(style_file), of(style))
    assert torch.equal(of(str(style_file)), of(style))
    assert torch.equal(of(file), of(instant))
    assert torch.equal(of(to_image(painting)), of(instant))
    assert torch.equal(of([file, to_image(other)]), of(both))
    levels = np.array(to_image(painting))
    assert torch.equal(of(levels), of(instant))
    assert torch.equal(of(torch.from_numpy(levels).permute(2, 0, 1)), of(instant))
    torch.testing.assert_close(of([painting / 2 + 0.5]), of(instant), rtol=1e-3, atol=1e-3)
    named = {"[A]": style_file, "[B]": to_image(painting)}
    assert torch.equal(of(named, "[A] and [B]"), of({"[A]": style, "[B]": instant}, "[A] and [B]"))


def test_every_output_type_gives_the_same_result(pipe: InSTPipeline, tiny_backbone: Backbone, style: Style) -> None:
    def of(**settings: Any) -> Any:
        return pipe("[C]", style=style, generator=generator(0), **FEW, **settings)

    steps: list[SamplingStep] = []
    pictures = complete(generate(tiny_backbone, "[C]", style, steps=3), steps.append)
    pt, array, [image], latent = (of(output_type=kind).images for kind in ("pt", "np", "pil", "latent"))
    torch.testing.assert_close(pt, pictures / 2 + 0.5)
    np.testing.assert_allclose(array, pt.permute(0, 2, 3, 1).numpy())
    assert np.array_equal(np.array(image), (array[0] * 255).round().astype(np.uint8))
    torch.testing.assert_close(latent, steps[-1].latents)
    assert isinstance(of(return_dict=False), tuple)
    assert of(return_dict=False)[0][0] == image
    assert of()["images"][0] == image


def test_noise_without_a_generator_comes_from_the_global_one_of_pytorch(pipe: InSTPipeline, style: Style) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        found = pipe("[C]", style=style, output_type="pt", **FEW).images
        again = pipe("[C]", style=style, output_type="pt", **FEW).images
    assert torch.equal(found, pipe("[C]", style=style, generator=generator(7), output_type="pt", **FEW).images)
    assert not torch.equal(found, again)


# Callbacks


def test_the_callback_sees_and_changes_the_latents(pipe: InSTPipeline, tiny_backbone: Backbone, style: Style) -> None:
    steps: list[SamplingStep] = []
    complete(generate(tiny_backbone, "[C]", style, steps=3), steps.append)
    seen: list[tuple[int, int]] = []

    def look(given: Any, step: int, timestep: int, tensors: dict[str, torch.Tensor]) -> None:
        assert given is pipe
        assert pipe.num_timesteps == 3
        assert tensors.keys() == {"latents", "clean"}
        torch.testing.assert_close(tensors["latents"], steps[step].latents)
        torch.testing.assert_close(tensors["clean"], steps[step].clean)
        seen.append((step, timestep))

    settings = {"style": style, "output_type": "pt", **FEW}
    names = ["latents", "clean"]
    plain = pipe(
        "[C]",
        generator=generator(0),
        callback_on_step_end=look,
        callback_on_step_end_tensor_inputs=names,
        **settings,
    )
    assert seen == [(step.index, step.timestep) for step in steps]

    def change(given: Any, step: int, timestep: int, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"latents": torch.full_like(tensors["latents"], 0.5)} if step == 2 else tensors

    changed = pipe("[C]", generator=generator(0), callback_on_step_end=change, **settings).images
    expected = tiny_backbone.decode(torch.full((1, 4, 8, 8), 0.5)) / 2 + 0.5
    torch.testing.assert_close(changed, expected.detach())
    assert not torch.allclose(changed, plain.images)


def test_an_interrupt_by_the_callback_gives_the_result_of_that_step(
    pipe: InSTPipeline, tiny_backbone: Backbone, style: Style
) -> None:
    steps: list[SamplingStep] = []
    complete(transfer(tiny_backbone, picture(), style, steps=3, inversion="ddim"), steps.append)
    seen = []

    def stop(given: Any, step: int, timestep: int, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        given._interrupt = step == 1
        seen.append(step)
        return tensors

    settings = {"image": to_image(picture()), "style": style, "inversion": "ddim", "output_type": "pt", **FEW}
    found = pipe(callback_on_step_end=stop, **settings).images
    assert seen == [0, 1]  # the steps of the inversion are not shown
    torch.testing.assert_close(found, (tiny_backbone.decode(steps[4].latents) / 2 + 0.5).detach(), rtol=1e-4, atol=1e-4)
    latents = pipe(callback_on_step_end=stop, **settings | {"output_type": "latent"}).images
    torch.testing.assert_close(latents, steps[4].latents, rtol=1e-4, atol=1e-4)


def test_each_phase_shows_one_progress_bar_unless_disabled(
    tiny_backbone_folder: Path, style: Style, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe = InSTPipeline.from_pretrained(tiny_backbone_folder)
    pipe.set_progress_bar_config(desc="painting", mininterval=0)
    capsys.readouterr()
    pipe(image=to_image(picture()), style=style, inversion="ddim", **FEW)
    lines = capsys.readouterr().err.rstrip().split("\n")
    assert len(lines) == 2
    assert all("3/3" in line for line in lines)
    pipe.set_progress_bar_config(disable=True)
    pipe("[C]", style=style, **FEW)
    assert capsys.readouterr().err == ""


# The pipeline itself


def test_from_pipe_shares_the_parts_of_the_other_pipeline(diffusers_pipe: StableDiffusionPipeline) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        diffusers_pipe.to(dtype=dtype)
        pipe = InSTPipeline.from_pipe(diffusers_pipe)
        for name in ("vae", "unet", "text_encoder", "tokenizer", "image_encoder"):
            assert getattr(pipe, name) is getattr(diffusers_pipe, name)
        assert pipe.backbone.unet is diffusers_pipe.unet
        assert diffusers_pipe.unet.dtype == dtype
        assert pipe.inversion is None
        with pytest.raises(UsageError, match="has no pseudo-word"):
            pipe("[C]", style=to_image(picture()))
        assert pipe("a castle", style=to_image(picture()), num_inference_steps=2).images
        back = StableDiffusionPipeline.from_pipe(pipe, safety_checker=None, requires_safety_checker=False)
        assert back.unet is diffusers_pipe.unet


def test_an_autoencoder_of_other_pictures_is_refused(diffusers_pipe: StableDiffusionPipeline) -> None:
    pipe = InSTPipeline.from_pipe(diffusers_pipe)
    pipe.vae = AutoencoderKL.from_config(pipe.vae.config, in_channels=4)
    with pytest.raises(InstError, match=r"autoencoder of the pipeline is for pictures of 4 channels, not 3"):
        pipe("a castle", style=to_image(picture()), num_inference_steps=2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_fingerprints_are_those_of_the_files(
    tiny_backbone_folder: Path, tiny_backbone: Backbone, dtype: torch.dtype
) -> None:
    found = InSTPipeline.from_pretrained(tiny_backbone_folder, dtype=dtype).backbone
    assert found.dtype == dtype
    assert found.fingerprint == tiny_backbone.fingerprint
    assert found.denoiser_fingerprint == tiny_backbone.denoiser_fingerprint


def test_another_textual_inversion_does_not_change_the_text_space(
    tiny_copy: Path, tmp_path: Path, style: Style, tiny_backbone: Backbone
) -> None:
    """It adds tokens and rows of the table. The pipeline can also be saved with them."""
    pipe = quiet(StableDiffusionPipeline.from_pretrained(tiny_copy))
    pipe.load_textual_inversion({"<sea>": torch.ones(2, tiny_backbone.text_width)}, token="<sea>")
    ours = quiet(InSTPipeline.from_pipe(pipe))
    assert ours.backbone.fingerprint == tiny_backbone.fingerprint
    with warnings.catch_warnings():
        warnings.simplefilter("error", InstWarning)
        ours("[C] and <sea>", style=style, **FEW)
    for name in ("text_encoder", "tokenizer"):
        getattr(pipe, name).save_pretrained(tiny_copy / name)
    assert Backbone.load(tiny_copy, "cpu").fingerprint == tiny_backbone.fingerprint


def test_a_compiled_denoiser_is_the_same_denoiser(tiny_copy: Path, tiny_backbone: Backbone) -> None:
    pipe = quiet(InSTPipeline.from_pretrained(tiny_copy))
    pipe.unet = torch.compile(pipe.unet, backend="eager")
    assert pipe.backbone.denoiser_fingerprint == tiny_backbone.denoiser_fingerprint


def test_half_precision_parts_need_their_unchanged_files_for_a_fingerprint(tiny_copy: Path, style: Style) -> None:
    pipe = quiet(InSTPipeline.from_pretrained(tiny_copy, dtype=torch.bfloat16))
    with torch.no_grad():
        pipe.unet.conv_in.weight.mul_(2)
    assert pipe.backbone.denoiser_fingerprint == ""
    pipe = quiet(InSTPipeline.from_pretrained(tiny_copy, dtype=torch.bfloat16))
    shutil.rmtree(tiny_copy)
    with pytest.raises(UsageError, match="bfloat16, which is too coarse"):
        pipe("[C]", style=style)


def test_another_denoiser_is_warned_of_and_another_text_space_refused(tiny_copy: Path, style: Style) -> None:
    pipe = quiet(InSTPipeline.from_pretrained(tiny_copy))
    with torch.no_grad():
        pipe.unet.conv_in.weight.mul_(1.1)
    with pytest.warns(InstWarning, match="learned with another UNet"):
        pipe("[C]", style=style, **FEW)
    pipe = quiet(InSTPipeline.from_pretrained(tiny_copy))
    with torch.no_grad():
        pipe.text_encoder.get_input_embeddings().weight.mul_(1.1)
    with pytest.raises(UsageError, match="belongs to the text space"):
        pipe("[C]", style=style, **FEW)


def test_a_saved_pipeline_is_the_same_when_read_again(
    pipe: InSTPipeline, tiny_backbone: Backbone, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    inversion = pipe.inversion
    pipe.save_pretrained(tmp_path)
    assert pipe.inversion is inversion
    assert "inversion" not in json.loads((tmp_path / "model_index.json").read_text())  # diffusers would warn of it
    again = quiet(InSTPipeline.from_pretrained(tmp_path))
    painting = to_image(picture(seed=3))
    first, second = (
        one("[C]", style=painting, generator=generator(0), output_type="pt", **FEW).images for one in (pipe, again)
    )
    torch.testing.assert_close(first, second)
    assert Backbone.load(tmp_path, "cpu", "float32").inversion is not None
    StableDiffusionPipeline.from_pretrained(tmp_path, safety_checker=None)


def test_the_inversion_module_stays_in_float32(tiny_backbone_folder: Path) -> None:
    pipe = InSTPipeline.from_pretrained(tiny_backbone_folder, dtype=torch.bfloat16)
    assert pipe.to(torch.bfloat16) is pipe
    assert pipe.unet.dtype == torch.bfloat16
    assert pipe.inversion.dtype == torch.float32
    assert pipe.device == torch.device("cpu")
    image = quiet(pipe)("[C]", style=to_image(picture()), **FEW).images[0]
    assert np.array(image).std() > 0


def test_the_bundled_model_loads_by_its_name() -> None:
    pipe = quiet(InSTPipeline.from_pretrained("mini"))
    found = pipe("[C]", style=to_image(picture()), num_inference_steps=1).images[0]
    assert found.size == (256, 256)
    assert pipe.backbone.fingerprint == Backbone.load("mini", "cpu").fingerprint


def test_a_hub_model_loads_from_the_cache_with_its_inversion_module(tiny_backbone_folder: Path, tmp_path: Path) -> None:
    """From the cache, where a download would have put it: with the inversion module, which no index names."""
    snapshot = tmp_path / "models--somebody--tiny" / "snapshots" / ("0" * 40)
    shutil.copytree(tiny_backbone_folder, snapshot)
    (tmp_path / "models--somebody--tiny" / "refs").mkdir()
    (tmp_path / "models--somebody--tiny" / "refs" / "main").write_text("0" * 40)
    pipe = InSTPipeline.from_pretrained("somebody/tiny", cache_dir=tmp_path, local_files_only=True)
    assert pipe.inversion is not None
    assert pipe.config["_name_or_path"] == "somebody/tiny"


def test_a_pipeline_with_two_text_encoders_gives_what_transfer_gives(tmp_path: Path) -> None:
    folder = save_family(tmp_path, "sdxl")
    backbone = Backbone.load(folder, "cpu", "float32")
    style = Style(torch.randn(3, backbone.text_width, generator=generator(0)), backbone.fingerprint)
    expected = complete(transfer(backbone, picture(), style, steps=3, prompt="a river", tone="none"))
    own = InSTPipeline.from_pretrained(folder, dtype=torch.float32)
    of_diffusers = StableDiffusionXLPipeline.from_pretrained(folder, dtype=torch.float32)
    for pipe in (own, InSTPipeline.from_pipe(of_diffusers)):
        assert pipe.backbone.force_zeros_for_empty_prompt
        found = quiet(pipe)("a river", to_image(picture()), style, generator=generator(0), tone="none", **FEW)
        same_pictures(found, expected)


def test_an_autoencoder_that_overflows_works_in_float32(tmp_path: Path) -> None:
    pipe = quiet(InSTPipeline.from_pretrained(save_family(tmp_path, "sdxl"), dtype=torch.float16))
    precisions: set[torch.dtype] = set()
    pipe.vae.decoder.register_forward_pre_hook(lambda module, given: precisions.add(given[0].dtype))
    style = Style(torch.randn(3, pipe.backbone.text_width, generator=generator(0)), pipe.backbone.fingerprint)
    assert len(pipe("[C]", style=style, **FEW).images) == 1
    assert precisions == {torch.float32}
    assert pipe.vae.dtype == torch.float16


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_a_scheduler_only_gives_its_noise_schedule_and_flow_matching_is_refused(
    tiny_copy: Path, style: Style, kind: str
) -> None:
    pipe = quiet(InSTPipeline.from_pretrained(tiny_copy))
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, prediction_type=kind)
    first = pipe("[C]", style=style, generator=generator(0), output_type="pt", **FEW).images
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    second = pipe("[C]", style=style, generator=generator(0), output_type="pt", **FEW).images
    assert torch.equal(first, second)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler()
    with pytest.raises(UsageError, match="FlowMatchEulerDiscreteScheduler"):
        pipe("[C]", style=style)


def test_parts_that_do_not_fit_together_are_refused(tiny_copy: Path, style: Style) -> None:
    pipe = quiet(InSTPipeline.from_pretrained(tiny_copy))
    pipe.tokenizer.model_max_length = 10**30
    with pytest.raises(UsageError, match="model_max_length"):
        pipe("[C]", style=style)
    edit_json(tiny_copy / "unet" / "config.json", in_channels=9)
    shutil.rmtree(tiny_copy / "unet")
    pipe.tokenizer.model_max_length = 24
    for channels, reason in ((6, "input channels"), (9, "is an in-painting model")):
        pipe.unet = type(pipe.unet).from_config(pipe.unet.config, in_channels=channels)
        with pytest.raises(InstError, match=reason):
            pipe("[C]", style=style)


# Wrong arguments


@pytest.fixture
def calls() -> dict[str, Any]:
    photo = to_image(picture())
    return {"photo": photo, "photos": [photo, photo], "odd": [photo, to_image(picture(64, 80))]}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "No prompt and no photo is given"),
        ({"prompt": "[C]", "style": None}, "No style is given"),
        ({"prompt": "a castle"}, "does not say where the style goes"),
        ({"prompt": "[C]", "style": 3}, "A style of the type int"),
        ({"prompt": "[C]", "style": [3]}, "A style of the type list"),
        ({"prompt": "[C]", "strength": 0.5}, "strength cannot be used here: give a photo"),
        ({"prompt": "[C]", "mask_image": "photo"}, "mask_image cannot be used here"),
        ({"prompt": "[C]", "query_preservation": 0.5}, "query_preservation cannot be used here"),
        ({"prompt": "[C]", "height": 64}, "Only one of height and width"),
        ({"image": "photo", "width": 64}, "width cannot be used here"),
        ({"image": "odd"}, "cannot form a batch: give only pictures of the same size"),
        ({"image": "photo", "prompt": ["a", "b"], "generator": [torch.Generator()]}, "1 generators do not fit 2"),
        ({"image": "photos", "prompt": ["a", "b", "a"]}, "3 prompts do not fit 2 photos"),
        ({"image": torch.full((3, 64, 64), 255.0)}, "values cannot be used"),
        ({"image": []}, "No image is given"),
        ({"image": "file.png"}, "image of the type str cannot be used"),
        ({"image": picture()}, "values cannot be used: give floating point numbers from 0 to 1, or uint8"),
        ({"image": np.full((64, 64, 3), 255.0)}, "values cannot be used: give uint8 from 0 to 255, or floating point"),
        ({"image": torch.zeros(64, 64, 3)}, "shape"),
        ({"image": torch.zeros(4, 64, 64)}, "shape"),
        ({"image": "photo", "mask_image": "odd"}, "mask_image"),
        ({"image": "photo", "strength": 1.5}, "strength of 1.5"),
        ({"image": "photo", "output_type": "latent", "strength": 0}, "latent"),
        ({"image": "photo", "output_type": "latent", "tone": "photo"}, "latent"),
        ({"prompt": "[C]", "output_type": "latent", "tone": "painting"}, "latent"),
        ({"prompt": "[C]", "output_type": "jpg"}, 'output_type "jpg" is unknown'),
        ({"prompt": "[C]", "num_images_per_prompt": 0}, "num_images_per_prompt is 0"),
        ({"prompt": "[C]", "num_images_per_prompt": 10**9}, "num_images_per_prompt is 1000000000: give 1 to 1000"),
        ({"prompt": "[C]", "negative_prompt": ["a", "b"]}, "one text for all"),
        ({"prompt": "[C]", "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}, "use latents and clean only"),
        ({"prompt": "[C]", "callback_on_step_end_tensor_inputs": [3]}, "use latents and clean only"),
        ({"prompt": "[C]", "callback_on_step_end_tensor_inputs": None}, "give a list of latents and clean"),
        ({"prompt": "[C]", "callback_on_step_end_tensor_inputs": 3}, "give a list of latents and clean"),
        ({"prompt": "[C]", "callback_on_step_end_tensor_inputs": "latents"}, "give a list of latents and clean"),
        ({"prompt": "[C]", "callback_on_step_end": 3}, "callback_on_step_end of the type int .*: give a function"),
        ({"prompt": 3}, "prompt 3 cannot be used: give a text"),
        ({"image": "photo", "prompt": True}, "prompt True cannot be used: give a text"),
        ({"prompt": "[C]", "generator": 3}, "generator of the type int cannot be used: give a torch.Generator"),
        ({"prompt": "[C]", "generator": [3]}, "generator of the type int cannot be used"),
        ({"prompt": "[C]", "generator": iter([generator(0)])}, "generator of the type list_iterator cannot be used"),
        ({"prompt": "[C]", "generator": np.random.default_rng(0)}, "generator of the type Generator cannot be used"),
        ({"prompt": "[C]", "cross_attention_kwargs": {1: 2}}, 'give texts as names, such as "scale"'),
        ({"prompt": "[C]", "cross_attention_kwargs": {"gligen": 1}}, "no layers for gligen"),
        ({"prompt": "[C]", "cross_attention_kwargs": {"scale": "a"}}, "scale of the LoRA weights 'a' cannot be used"),
        ({"image": "photo", "mask_image": np.zeros((64, 64), object)}, "mask_image cannot be used"),
        ({"image": torch.zeros(3, 64, 64, dtype=torch.int64)}, "image's values .* numbers from 0 to 1, or uint8"),
        ({"image": torch.zeros(3, 64, 64, dtype=torch.bool)}, "image's values .* numbers from 0 to 1, or uint8"),
        ({"image": torch.zeros(3, 64, 64, dtype=torch.complex64)}, "image's values .* numbers from 0 to 1, or uint8"),
        ({"prompt": "[C]", "style": torch.ones(3, 64, 64, dtype=torch.int64)}, "painting's values .* from 0 to 1"),
        ({"prompt": "[C]", "style": ""}, "A style cannot be used: the path is empty"),
        ({"image": torch.zeros(3, 0, 64)}, "An image of the shape"),
        (
            {"prompt": "[C]", "negative_prompt": "a " * 50},
            "The negative prompt takes 50 .* shorten the negative prompt",
        ),
        (
            {"prompt": "[C]", "height": 60, "width": 90, "latents": torch.zeros(1, 4, 7, 11)},
            "60 pixels are padded to mult",
        ),
        (
            {"prompt": "[C]", "latents": torch.full((1, 4, 8, 8), torch.nan)},
            "not finite cannot be used: give other `latents`",
        ),
        ({"prompt_embeds": torch.zeros(24, 32)}, r"prompt_embeds of the shape \[24, 32\] .* give \[B, L, D\]"),
    ],
)
def test_wrong_arguments_are_refused_with_the_reason(
    pipe: InSTPipeline, style: Style, calls: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    pictures = ("image", "mask_image")
    settings = {
        key: calls.get(value, value) if key in pictures and isinstance(value, str) else value
        for key, value in settings.items()
    }
    with pytest.raises(ValueError, match=message):
        pipe(**{"style": style, **settings})


@pytest.mark.parametrize("answer", [3, {"latents": 3}, {"latents": torch.zeros(1)}])
def test_a_callback_that_returns_something_else_is_told_what_to_return(
    pipe: InSTPipeline, style: Style, answer: Any
) -> None:
    with pytest.raises(UsageError, match=r"callback_on_step_end of the .* cannot be used: let it return"):
        pipe("[C]", style=style, callback_on_step_end=lambda *_: answer, **FEW)


def test_a_stop_iteration_of_a_callback_reaches_the_caller(pipe: InSTPipeline, style: Style) -> None:
    def callback(*_: Any) -> None:
        raise StopIteration("of the callback")

    with pytest.raises(StopIteration, match="of the callback"):
        pipe("[C]", style=style, callback_on_step_end=callback, **FEW)


def test_values_that_are_not_finite_have_a_remedy_that_helps(tiny_backbone_folder: Path, style: Style) -> None:
    for dtype, remedy in (
        (torch.float32, "give other prompt_embeds"),
        (torch.bfloat16, "load the pipeline in float32"),
    ):
        pipe = quiet(InSTPipeline.from_pretrained(tiny_backbone_folder, dtype=dtype))
        with pytest.raises(InstError, match=remedy):
            pipe(prompt_embeds=torch.full((1, 24, 32), torch.nan), style=style, **FEW)


def test_latents_are_returned_in_the_precision_of_the_pipeline(tiny_backbone_folder: Path, style: Style) -> None:
    pipe = quiet(InSTPipeline.from_pretrained(tiny_backbone_folder, dtype=torch.bfloat16))
    assert pipe("[C]", style=style, output_type="latent", **FEW).images.dtype == torch.bfloat16


def test_encode_prompt_checks_what_a_call_checks(pipe: InSTPipeline) -> None:
    for wrong, message in (
        ({"prompt": "a", "num_images_per_prompt": 0}, "num_images_per_prompt is 0"),
        ({"prompt_embeds": torch.zeros(3)}, "give .B, L, D."),
        ({"prompt_embeds": torch.zeros(1, 24, 5)}, "give .B, L, 32."),
        ({"prompt": "a", "negative_prompt": "a " * 50}, "The negative prompt takes"),
        ({"prompt": "a", "device": "nowhere"}, "no such device"),
        ({"prompt": "a", "lora_scale": "a"}, "scale of the LoRA weights"),
    ):
        with pytest.raises(UsageError, match=message):
            pipe.encode_prompt(**wrong)


@pytest.mark.parametrize("name", ["vae", "text_encoder", "tokenizer", "unet", "scheduler"])
def test_a_missing_part_is_named(diffusers_pipe: StableDiffusionPipeline, style: Style, name: str) -> None:
    parts = {key: part for key, part in diffusers_pipe.components.items() if key != "safety_checker"}
    pipe = quiet(InSTPipeline(**{**parts, name: None}))
    embeds = torch.zeros(1, 24, 32)
    for call in (lambda: pipe(prompt_embeds=embeds, style=style, **FEW), lambda: pipe.encode_prompt("a")):
        with pytest.raises(UsageError, match=f"The pipeline has no {name}: load it with all parts"):
            call()


def test_an_error_of_a_part_is_not_hidden(pipe: InSTPipeline, style: Style) -> None:
    pipe.scheduler = Path()
    with pytest.raises(UsageError, match="Path' object has no attribute 'config'"):
        pipe("[C]", style=style)


@pytest.mark.parametrize("wrong", [None, 3, "x"])
def test_from_pipe_takes_a_pipeline(wrong: Any) -> None:
    with pytest.raises(UsageError, match=r"A pipeline of the type .* cannot be used"):
        InSTPipeline.from_pipe(wrong)


def test_a_pipeline_saved_over_another_one_leaves_no_part_of_it(
    pipe: InSTPipeline, diffusers_pipe: StableDiffusionPipeline, tmp_path: Path
) -> None:
    pipe.save_pretrained(tmp_path)
    plain = InSTPipeline.from_pipe(diffusers_pipe, image_encoder=None, feature_extractor=None)
    plain.save_pretrained(tmp_path)
    assert not (tmp_path / "inversion").exists()
    assert InSTPipeline.from_pretrained(tmp_path).inversion is None
    backbone = Backbone.load(tmp_path, "cpu", image_encoder=False)
    assert backbone.inversion is None
    assert backbone.image_encoder is None


@pytest.mark.parametrize("other", ["notes.txt", "config.json"])
def test_a_pipeline_removes_no_other_file(diffusers_pipe: StableDiffusionPipeline, tmp_path: Path, other: str) -> None:
    (tmp_path / "inversion").mkdir()
    (tmp_path / "inversion" / other).write_text('{"something": "else"}')
    with pytest.raises(InstError, match="move it away, or choose another folder"):
        InSTPipeline.from_pipe(diffusers_pipe).save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.rglob("*")] == ["inversion", other]


def test_noise_drawn_as_diffusers_does_equals_noise_of_the_same_seed() -> None:
    """What the documentation of `generator` says."""
    assert torch.equal(randn_tensor((1, 4, 8, 8), generator(3))[0], torch.randn(4, 8, 8, generator=generator(3)))
