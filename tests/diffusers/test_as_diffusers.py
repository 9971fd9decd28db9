"""InSTPipeline beside diffusers' pipelines on the same weights: what users of diffusers load into it and ask of it."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
)
from diffusers.image_processor import IPAdapterMaskProcessor
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModelWithProjection

from inst import InstWarning, Style, UsageError
from inst.diffusers.pipeline import InSTPipeline
from inst.pictures.stored import encode_painting
from inst.pictures.tensors import to_image, to_tensor
from original_layout import to_original, write_safetensors
from schedules import LIKE_DIFFUSERS
from tiny import PICTURE_SIZE, WIDTH, edit_json, save_family

SETTINGS: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": 3.0, "output_type": "pt"}
WORD = {"solver": "ddim", "style_attention": 0.0}
"""Only the pseudo-word, with the solver of the scheduler that diffusers gets here."""


def generator(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def picture(seed: int = 0) -> Image.Image:
    coarse = torch.rand(1, 3, 5, 5, generator=generator(seed)) * 2 - 1
    return to_image(torch.nn.functional.interpolate(coarse, (64, 64), mode="bilinear")[0])


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """The first step, from nearly pure noise, makes the rounding of a random model 15 times as large."""
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.fixture(scope="module", params=["sd1", "sdxl"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_family(tmp_path_factory.mktemp(request.param), request.param)


def load(kind: Any, folder: Path) -> Any:
    pipe = kind.from_pretrained(folder, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    if kind is not InSTPipeline:
        pipe.scheduler = DDIMScheduler.from_config(
            pipe.scheduler.config, timestep_spacing="trailing", set_alpha_to_one=True, clip_sample=False
        )
    return pipe


@pytest.fixture
def ours(folder: Path) -> InSTPipeline:
    return load(InSTPipeline, folder)


@pytest.fixture
def theirs(folder: Path) -> Any:
    kind = StableDiffusionXLPipeline if (folder / "text_encoder_2").is_dir() else StableDiffusionPipeline
    return load(kind, folder)


def dog(pipe: InSTPipeline) -> Style:
    """The word "dog" as a style: what stands for `[C]` can so be said to diffusers' pipelines, too."""
    (row,) = pipe.tokenizer("dog", add_special_tokens=False).input_ids
    painting = encode_painting(torch.rand(3, 80, 70, generator=generator(8)) * 2 - 1)
    backbone = pipe.backbone
    return Style(backbone.token_table[[row]], backbone.fingerprint, backbone.denoiser_fingerprint, {}, (painting,))


def named(prompt: str | list[str], style: str) -> str | list[str]:
    return prompt.format(style) if isinstance(prompt, str) else [text.format(style) for text in prompt]


def by_ours(pipe: InSTPipeline, prompt: str | list[str] = "a {} by the river", **settings: Any) -> torch.Tensor:
    given: dict[str, Any] = {"generator": generator(), **SETTINGS, **WORD, **settings}
    if "prompt_embeds" not in given:
        given["prompt"] = named(prompt, "[C]")
    return pipe(style=dog(pipe), **given).images


def by_theirs(pipe: Any, prompt: str | list[str] = "a {} by the river", **settings: Any) -> torch.Tensor:
    given: dict[str, Any] = {"generator": generator(), **SETTINGS, **settings}
    if "prompt_embeds" not in given:
        given["prompt"] = named(prompt, "dog")
    return pipe(**given).images


# LoRA


@pytest.fixture
def lora(folder: Path, theirs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], Path]:
    """Write random LoRA weights for UNet and text encoders with diffusers."""
    # transformers may ask for a newer PEFT than there is. It needs less for what is done here.
    monkeypatch.setattr("transformers.integrations.peft.MIN_PEFT_VERSION", "0.17.0")

    def write(name: str, seed: int) -> Path:
        pipe, layers = load(type(theirs), folder), {}
        names = [part for part in ("unet", "text_encoder", "text_encoder_2") if getattr(pipe, part, None) is not None]
        for part in names:
            module = getattr(pipe, part)
            targets = ["to_q", "to_k", "to_v", "to_out.0"] if part == "unet" else ["q_proj", "v_proj", "out_proj"]
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                module.add_adapter(LoraConfig(r=2, lora_alpha=8, target_modules=targets, init_lora_weights=False))
            state = get_peft_model_state_dict(module)
            state = state if part == "unet" else convert_state_dict_to_diffusers(state)
            layers[f"{part}_lora_layers"] = state
        type(theirs).save_lora_weights(tmp_path / name, **layers)
        return tmp_path / name

    return write


def test_lora_weights_change_a_picture_as_in_diffusers(
    ours: InSTPipeline, theirs: Any, lora: Callable[[str, int], Path]
) -> None:
    one, other = lora("one", 1), lora("other", 2)
    plain = by_ours(ours)
    style = dog(ours)
    for pipe in (ours, theirs):
        pipe.load_lora_weights(one, adapter_name="one")
    found = by_ours(ours)
    close(found, by_theirs(theirs))
    assert (found - plain).abs().max() > 0.01
    for scale in (0.4, 0.0):
        given = {"cross_attention_kwargs": {"scale": scale}}
        close(by_ours(ours, **given), by_theirs(theirs, **given))
    close(by_ours(ours), found)  # the scale was for its call only
    for pipe in (ours, theirs):
        pipe.load_lora_weights(other, adapter_name="other")
        pipe.set_adapters(["one", "other"], [0.3, 0.8])
    assert ours.get_list_adapters() == theirs.get_list_adapters()
    close(by_ours(ours), by_theirs(theirs))
    with warnings.catch_warnings():  # the denoiser is still that of the style
        warnings.simplefilter("error", InstWarning)
        fresh = InSTPipeline.from_pipe(ours)
        fresh.set_progress_bar_config(disable=True)
        close(fresh("a [C] by the river", style=style, generator=generator(), **SETTINGS, **WORD).images, by_ours(ours))
    for pipe in (ours, theirs):
        pipe.fuse_lora(lora_scale=0.5)
    close(by_ours(ours), by_theirs(theirs))
    for pipe in (ours, theirs):
        pipe.unfuse_lora()
        pipe.unload_lora_weights()
    close(by_ours(ours), plain)


def test_lora_weights_also_change_transfer_and_style_attention(
    ours: InSTPipeline, lora: Callable[[str, int], Path]
) -> None:
    def of(**settings: Any) -> torch.Tensor:
        given = {"image": picture(), "style": dog(ours), "generator": generator(), **SETTINGS, **settings}
        return ours(**given).images

    plain = of()
    ours.load_lora_weights(lora("one", 1))
    assert (of() - plain).abs().max() > 0.005
    close(of(cross_attention_kwargs={"scale": 0.0}), plain)


def test_without_peft_the_message_of_diffusers_says_so(ours: InSTPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffusers.utils.peft_utils.USE_PEFT_BACKEND", False, raising=False)
    monkeypatch.setattr("diffusers.utils.USE_PEFT_BACKEND", False)
    with pytest.raises(ValueError, match="PEFT backend is required"):
        ours.load_lora_weights({"unet.lora": torch.zeros(1)})


# Textual inversion


def test_textual_inversions_work_in_prompts_beside_a_style(ours: InSTPipeline, theirs: Any) -> None:
    for pipe in (ours, theirs):
        for number in ("", "_2"):
            if getattr(pipe, f"text_encoder{number}", None) is None:
                continue
            parts = {name: getattr(pipe, f"{name}{number}") for name in ("tokenizer", "text_encoder")}
            width = parts["text_encoder"].config.hidden_size
            pipe.load_textual_inversion(torch.randn(3, width, generator=generator(1)), token="<sea>", **parts)
            pipe.load_textual_inversion(torch.randn(1, width, generator=generator(2)), token="<bad>", **parts)
    prompt, negative = "a {} by the <sea>, river", "<bad> dog"
    found = by_ours(ours, prompt, negative_prompt=negative)
    close(found, by_theirs(theirs, prompt, negative_prompt=negative))
    assert (found - by_ours(ours, prompt)).abs().max() > 0.01
    for pipe in (ours, theirs):
        pipe.unload_textual_inversion("<bad>")
    close(by_ours(ours, prompt), by_theirs(theirs, prompt))


# IP-Adapter


def add_image_encoder(pipe: Any) -> None:
    """Give a pipeline a tiny image encoder of random weights, always the same."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = CLIPVisionModelWithProjection(
            CLIPVisionConfig(
                hidden_size=WIDTH,
                intermediate_size=WIDTH,
                num_hidden_layers=2,
                num_attention_heads=4,
                image_size=PICTURE_SIZE,
                patch_size=16,
                projection_dim=WIDTH,
            )
        ).eval()
    size = {"height": PICTURE_SIZE, "width": PICTURE_SIZE}
    processor = CLIPImageProcessorPil(size={"shortest_edge": PICTURE_SIZE}, crop_size=size)
    pipe.register_modules(image_encoder=encoder, feature_extractor=processor)


def adapter_weights(unet: Any) -> dict[str, dict[str, torch.Tensor]]:
    """Return a small IP-Adapter of random weights, in the layout of its files."""
    width, drawn, weights = unet.config.cross_attention_dim, generator(7), {}
    for number, (name, layer) in enumerate(
        (name, layer) for name, layer in unet.named_modules() if name.endswith(("attn1", "attn2"))
    ):
        if name.endswith("attn2"):
            inner = layer.to_k.weight.shape[0]
            for kind in ("k", "v"):
                weights[f"{number}.to_{kind}_ip.weight"] = torch.randn(inner, width, generator=drawn) * 0.3
    projection = {
        "proj.weight": torch.randn(4 * width, WIDTH, generator=drawn) * 0.3,
        "proj.bias": torch.randn(4 * width, generator=drawn) * 0.3,
        "norm.weight": torch.ones(width),
        "norm.bias": torch.zeros(width),
    }
    return {"image_proj": projection, "ip_adapter": weights}


def load_adapter(pipe: Any) -> None:
    add_image_encoder(pipe)
    pipe.load_ip_adapter(adapter_weights(pipe.unet), subfolder="", weight_name="tiny.safetensors")


def test_an_ip_adapter_shows_its_picture_as_in_diffusers(ours: InSTPipeline, theirs: Any) -> None:
    plain, before = by_ours(ours), ours.backbone.denoiser_fingerprint
    for pipe in (ours, theirs):
        load_adapter(pipe)
        pipe.set_ip_adapter_scale(0.7)
    assert InSTPipeline.from_pipe(ours).backbone.denoiser_fingerprint == before
    for guidance in (3.0, 1.0):
        given: dict[str, Any] = {"ip_adapter_image": picture(3), "guidance_scale": guidance, "num_images_per_prompt": 2}
        found = by_ours(ours, **given)
        close(found, by_theirs(theirs, **given))
        del given["ip_adapter_image"]
        embeds = theirs.prepare_ip_adapter_image_embeds(picture(3), None, "cpu", 1, guidance > 1)
        close(by_ours(ours, ip_adapter_image_embeds=embeds, **given), found)
    assert (by_ours(ours, ip_adapter_image=picture(3)) - by_ours(ours, ip_adapter_image=picture(4))).abs().max() > 0.01
    several = {"ip_adapter_image": [[picture(3), picture(4)]]}
    close(by_ours(ours, **several), by_theirs(theirs, **several))
    left = torch.zeros(1, 1, 64, 64)
    left[..., :32] = 1
    masks = IPAdapterMaskProcessor().preprocess(left, height=64, width=64)
    masked = {"ip_adapter_image": picture(3), "cross_attention_kwargs": {"ip_adapter_masks": [masks]}}
    close(by_ours(ours, **masked), by_theirs(theirs, **masked))
    ours.unload_ip_adapter()
    close(by_ours(ours), plain)


def test_an_ip_adapter_and_style_attention_work_together(ours: InSTPipeline) -> None:
    load_adapter(ours)
    processors = dict(ours.unet.attn_processors)

    def of(shown: Image.Image, **settings: Any) -> torch.Tensor:
        return by_ours(ours, ip_adapter_image=shown, **settings)

    looking = {"style_attention": 0.8, "attention_blocks": "all"}
    assert (of(picture(3), **looking) - of(picture(3))).abs().max() > 0.005
    assert (of(picture(3), **looking) - of(picture(4), **looking)).abs().max() > 0.005
    ours.set_ip_adapter_scale(0.0)
    silent = of(picture(3), **looking)
    close(of(picture(4), **looking), silent)
    ours.unload_ip_adapter()
    close(by_ours(ours, **looking), silent)
    load_adapter(ours)
    photo = ours(image=picture(), style=dog(ours), ip_adapter_image=picture(3), query_preservation=0.5, **SETTINGS)
    assert photo.images.isfinite().all()
    assert {name: type(one) for name, one in ours.unet.attn_processors.items()} == {
        name: type(one) for name, one in processors.items()
    }


def test_pictures_that_do_not_fit_the_ip_adapters_are_refused(ours: InSTPipeline) -> None:
    with pytest.raises(UsageError, match="no IP-Adapter: load one with load_ip_adapter"):
        by_ours(ours, ip_adapter_image=picture())
    load_adapter(ours)
    for given, message in [
        ({}, "has an IP-Adapter, and no picture is given for it: give ip_adapter_image"),
        ({"ip_adapter_image": [picture(), picture()]}, "2 pictures do not fit 1 IP-Adapters"),
        ({"ip_adapter_image": picture(), "ip_adapter_image_embeds": [torch.zeros(2, 1, WIDTH)]}, "both given"),
        ({"ip_adapter_image_embeds": [torch.zeros(1, 1, WIDTH)]}, r"\[1, 1, 32\] cannot be used: give \[2, N, ...\]"),
        ({"ip_adapter_image_embeds": ["a"]}, "of the type str"),
    ]:
        with pytest.raises(UsageError, match=message):
            by_ours(ours, **given)
    with pytest.raises(UsageError, match="IP-Adapter, and no picture is given for it: use the pipeline"):
        ours.backbone.predict_noise(torch.zeros(1, 4, 8, 8), 500, ours.backbone.embed_text(["a dog"]))
    ours.register_modules(image_encoder=None)
    with pytest.raises(UsageError, match="no image_encoder"):
        by_ours(ours, ip_adapter_image=picture())


def test_a_photo_with_everything_loaded_becomes_the_picture_of_img2img(
    ours: InSTPipeline, theirs: Any, lora: Callable[[str, int], Path]
) -> None:
    for pipe in (ours, theirs):
        pipe.load_lora_weights(lora("one", 1))
        pipe.load_textual_inversion(torch.randn(2, WIDTH, generator=generator(1)), token="<sea>")
        load_adapter(pipe)
    xl = isinstance(theirs, StableDiffusionXLPipeline)
    theirs = (StableDiffusionXLImg2ImgPipeline if xl else StableDiffusionImg2ImgPipeline)(**theirs.components)
    theirs.set_progress_bar_config(disable=True)
    given: dict[str, Any] = {"ip_adapter_image": picture(3), "cross_attention_kwargs": {"scale": 0.7}, "strength": 0.5}
    given |= {"negative_prompt": "a dog", "eta": 0.4}
    prompt, latents = "a {} by the <sea>", ours.backbone.encode(to_tensor(picture())[None])
    # Of its 4 steps, diffusers takes the last 2.
    expected = by_theirs(theirs, prompt, image=latents, num_inference_steps=4, **given)
    given |= {"size": 64, "inversion": "none", "tone": "none", "num_inference_steps": 2, **LIKE_DIFFUSERS}
    close(by_ours(ours, prompt, image=picture(), **given), expected)


# Text


def test_encoded_prompts_are_those_of_diffusers_and_give_the_picture_of_the_text(
    ours: InSTPipeline, theirs: Any
) -> None:
    prompts, negative = ["a dog by the river", "a church"], ["a photo", "a river"]
    arguments = {"device": "cpu", "num_images_per_prompt": 2, "do_classifier_free_guidance": True}
    for given in (None, negative):
        found = ours.encode_prompt(prompts, negative_prompt=given, **arguments)
        expected = theirs.encode_prompt(prompts, negative_prompt=given, **arguments)
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            close(one, other)
    assert ours.encode_prompt("a dog", do_classifier_free_guidance=False)[1] is None
    given = {"negative_prompt": negative, "num_images_per_prompt": 2}
    close(by_ours(ours, ["a {}", "a church, {}"], **given), by_theirs(theirs, ["a {}", "a church, {}"], **given))

    names = ["prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds"]
    encoded = ours.encode_prompt("a [C] by the river", negative_prompt="a photo", style=dog(ours))
    given = dict(zip(names, encoded, strict=False))
    close(by_ours(ours, num_images_per_prompt=2, **given)[:1], by_ours(ours, negative_prompt="a photo"))
    close(by_ours(ours, **given), by_theirs(theirs, **given))
    looking = {"style_attention": 0.8, "tone": "painting"}
    close(by_ours(ours, **given, **looking), by_ours(ours, negative_prompt="a photo", **looking))

    encoded = ours.encode_prompt("a river", style=dog(ours), style_weight=0.5)
    given = dict(zip(names, encoded, strict=False))
    settings = {"image": picture(), "style": dog(ours), "style_weight": 0.5, **SETTINGS}
    found = ours(generator=generator(), **given, **settings).images
    close(found, ours("a river", generator=generator(), **settings).images)


def test_clip_skip_is_that_of_diffusers(ours: InSTPipeline, theirs: Any) -> None:
    if not hasattr(theirs.text_encoder, "text_model"):  # transformers 5 has none, and diffusers still asks for it
        theirs.text_encoder.text_model = SimpleNamespace(final_layer_norm=theirs.text_encoder.final_layer_norm)
    plain = by_ours(ours)
    for skip in (0, 1):
        given = {"clip_skip": skip, "negative_prompt": "a photo"}
        close(by_ours(ours, **given), by_theirs(theirs, **given))
    close(by_ours(ours, clip_skip=0), plain)
    assert (by_ours(ours, clip_skip=1) - plain).abs().max() > 0.005
    with pytest.raises(UsageError, match="clip_skip of 3 cannot be used: give 0 to 2"):
        by_ours(ours, clip_skip=3)


# Noise


@pytest.mark.parametrize("eta", [0.0, 0.6])
@pytest.mark.parametrize("several", [True, False])
def test_latents_and_eta_are_those_of_diffusers(ours: InSTPipeline, theirs: Any, eta: float, several: bool) -> None:
    def generators() -> Any:
        return [generator(1), generator(2)] if several else generator()

    given = {"num_images_per_prompt": 2, "eta": eta}
    found = by_ours(ours, generator=generators(), **given)
    close(found, by_theirs(theirs, generator=generators(), **given))
    given["latents"] = torch.randn(2, 4, 8, 8, generator=generator(9))
    other = by_ours(ours, generator=generators(), **given)
    close(other, by_theirs(theirs, generator=generators(), **given))
    assert (found - other).abs().max() > 0.01


def test_given_latents_are_the_noise_of_a_photo(ours: InSTPipeline) -> None:
    given = {"image": picture(), "style": dog(ours), "size": 64, **SETTINGS}
    expected = ours(generator=generator(), **given).images
    close(ours(latents=torch.randn(1, 4, 8, 8, generator=generator()), **given).images, expected)
    with pytest.raises(UsageError, match=r"shape \[1, 4, 8, 9\].*`latents` of the shape \[1, 4, 8, 8"):
        ours(latents=torch.zeros(1, 4, 8, 9), **given)
    with pytest.raises(UsageError, match=r'is deterministic, so an eta of 0.5 cannot be used: use solver="ddim"'):
        ours(eta=0.5, **given)


# The pipeline itself


def test_a_callback_reads_the_arguments_of_the_call(ours: InSTPipeline) -> None:
    seen = []

    def look(pipe: InSTPipeline, step: int, timestep: int, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        kwargs = pipe.cross_attention_kwargs
        seen.append((pipe.guidance_scale, pipe.do_classifier_free_guidance, pipe.clip_skip, kwargs, pipe.num_timesteps))
        assert not pipe.interrupt
        return tensors

    given: dict[str, Any] = {"clip_skip": 1, "cross_attention_kwargs": {"scale": 1.0}, "callback_on_step_end": look}
    by_ours(ours, **given)
    by_ours(ours, guidance_scale=0.0, **given)
    by_ours(ours, callback_on_step_end=look, guidance_scale=None)
    assert seen == [
        *[(3.0, True, 1, {"scale": 1.0}, 3)] * 3,
        *[(0.0, False, 1, {"scale": 1.0}, 3)] * 3,
        *[(5.0, True, None, None, 3)] * 3,
    ]


def test_no_guidance_is_one_and_less_as_in_diffusers(ours: InSTPipeline, theirs: Any) -> None:
    for scale in (0.0, 0.5, 1.0):
        close(by_ours(ours, guidance_scale=scale), by_theirs(theirs, guidance_scale=scale))


def test_fused_projections_change_neither_the_picture_nor_the_denoiser(ours: InSTPipeline) -> None:
    looking = {"style_attention": 0.8}
    plain, fingerprint = by_ours(ours, **looking), ours.backbone.denoiser_fingerprint
    ours.fuse_qkv_projections()
    close(by_ours(ours, **looking), plain)
    assert InSTPipeline.from_pipe(ours).backbone.denoiser_fingerprint == fingerprint
    ours.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    assert (by_ours(ours, **looking) - plain).abs().max() > 0.001


def test_the_components_of_a_pipeline_of_diffusers_make_one(theirs: Any) -> None:
    expected = by_ours(InSTPipeline.from_pipe(theirs))
    xl = isinstance(theirs, StableDiffusionXLPipeline)
    kind = StableDiffusionXLImg2ImgPipeline if xl else StableDiffusionImg2ImgPipeline
    for other in (theirs, kind(**theirs.components)):
        for pipe in (InSTPipeline(**other.components), InSTPipeline(**other.components, **other.parameters)):
            assert pipe.unet is theirs.unet
            close(by_ours(pipe), expected)


def test_diffusers_reads_a_saved_pipeline_as_one_of_its_own(
    ours: InSTPipeline, theirs: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == type(theirs).__name__
    again = load(DiffusionPipeline, tmp_path)
    assert type(again) is type(theirs)
    assert "not expected" not in capsys.readouterr().err
    close(by_theirs(again), by_theirs(theirs))
    close(by_ours(load(InSTPipeline, tmp_path)), by_ours(ours))


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_a_single_file_is_read_as_in_diffusers(tmp_path: Path, family: str) -> None:
    plain, cross = ["{}Block2D", "CrossAttn{}Block2D"] if family == "sd1" else ["CrossAttn{}Block2D", "{}Block2D"]
    folder = save_family(
        tmp_path / "folder",
        family,
        block_out_channels=[8, 16, 16],
        layers_per_block=2,
        down_block_types=[one.format("Down") for one in (cross, "CrossAttn{}Block2D", plain)],
        up_block_types=[one.format("Up") for one in (plain, "CrossAttn{}Block2D", cross)],
        attention_head_dim=2,
        **({} if family == "sd1" else {"transformer_layers_per_block": [1, 2, 3]}),
    )
    file = write_safetensors(tmp_path / "model.safetensors", to_original(folder))
    pipe = InSTPipeline.from_single_file(file, config=str(folder), dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.safety_checker is None
    close(by_ours(pipe), by_ours(load(InSTPipeline, folder)))


# The safety checker


@pytest.fixture
def checked(tmp_path: Path) -> Any:
    """A pipeline of diffusers with a safety checker that finds something in every picture."""
    pipe = load(StableDiffusionPipeline, save_family(tmp_path / "sd1", "sd1"))
    add_image_encoder(pipe)
    config = StableDiffusionSafetyChecker.config_class(
        vision_config=pipe.image_encoder.config.to_dict(), text_config={}, projection_dim=WIDTH
    )
    checker = StableDiffusionSafetyChecker(config).eval()
    for name in ("concept_embeds_weights", "special_care_embeds_weights"):
        getattr(checker, name).data.fill_(-2.0)
    pipe.register_modules(safety_checker=checker)
    return pipe


def test_a_safety_checker_is_kept_and_used_as_in_diffusers(checked: Any, tmp_path: Path) -> None:
    style = dog(InSTPipeline.from_pipe(checked))
    for pipe in (InSTPipeline.from_pipe(checked), InSTPipeline(**checked.components)):
        pipe.set_progress_bar_config(disable=True)
        given = {"prompt": "a [C]", "style": style, "generator": generator(), **SETTINGS, **WORD}
        found = pipe(**given)
        assert found.nsfw_content_detected == [True]
        assert not found.images.any()
        assert pipe(**given, return_dict=False)[1] == [True]
    pipe.save_pretrained(tmp_path / "saved")
    assert DiffusionPipeline.from_pretrained(tmp_path / "saved").safety_checker is not None
    again = load(InSTPipeline, tmp_path / "saved")
    assert again.safety_checker is not None
    again = InSTPipeline.from_pretrained(tmp_path / "saved", safety_checker=None, dtype=torch.float32)
    found = again("a [C]", style=style, **SETTINGS, **WORD)
    assert found.nsfw_content_detected is None
    assert found.images.any()
    with pytest.raises(UsageError, match="safety_checker needs a feature_extractor"):
        InSTPipeline(**checked.components | {"feature_extractor": None})


def test_a_folder_without_its_safety_checker_is_loaded(tmp_path: Path) -> None:
    folder = save_family(tmp_path, "sd1")
    edit_json(folder / "model_index.json", safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"])
    assert InSTPipeline.from_pretrained(folder).safety_checker is None


# Wrong arguments


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt_embeds": torch.zeros(1, 24, WIDTH), "prompt": "[C]"}, "prompt and prompt_embeds are both given"),
        ({"pooled_prompt_embeds": torch.zeros(1, 8)}, "pooled_prompt_embeds is given without prompt_embeds"),
        ({"negative_prompt": "a", "negative_prompt_embeds": torch.zeros(1, 24, WIDTH)}, "both given: give one of them"),
        ({"negative_prompt": ["a", "b"], "num_images_per_prompt": 2}, "2 negative prompts do not fit 1 prompts"),
        ({"prompt_embeds": [1.0]}, "of the type list cannot be used: give a tensor"),
        ({"prompt_embeds": torch.zeros(1, 24, 7)}, r"shape \[1, 24, 7\] cannot be used"),
        ({"cross_attention_kwargs": 0.5}, "cross_attention_kwargs of the type float cannot be used: give a dict"),
        ({"clip_skip": 1.5}, "clip_skip 1.5 cannot be used: give a whole number"),
        ({"timesteps": [3, 2, 1]}, "no argument timesteps: the timesteps follow from num_inference_steps"),
        ({"guidance_rescale": 0.7}, "no argument guidance_rescale"),
        ({"prompt_2": "a"}, "no argument prompt_2: encode the prompts"),
        ({"denoising_end": 0.8}, "no argument denoising_end"),
        ({"callback": print}, "no argument callback: give callback_on_step_end"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(ours: InSTPipeline, settings: dict[str, Any], message: str) -> None:
    if "prompt" not in settings and "prompt_embeds" not in settings:
        settings = {"prompt": "[C]", **settings}
    with pytest.raises(UsageError, match=message) as caught:
        ours(style=dog(ours), **settings)
    assert "\n" not in str(caught.value)


def test_an_unknown_argument_is_an_error_as_in_every_function(ours: InSTPipeline) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'strenght'"):
        ours("[C]", style=dog(ours), strenght=0.5)
    assert ours("[C]", style=dog(ours), timesteps=None, sigmas=None, **SETTINGS, **WORD).images is not None
