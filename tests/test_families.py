"""Stable Diffusion 1.x, 2.x (predicting noise or v) and XL: each against diffusers' own pipeline on the same folder."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    ControlNetModel,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import load_file, save_file

from inst import Backbone, InstError, Style, UsageError, complete, generate, learn, transfer
from inst.backbone.fingerprints import fingerprint_of
from inst.backbone.text import coarse_word
from inst.learning.start import fresh_inversion
from inst.pictures.reading import Photo
from inst.sampling.control import Control
from inst.sampling.noise import draw_noise
from schedules import LIKE_DIFFUSERS
from tiny import FAMILIES, POSITIONS, WIDTH, WIDTH_2, edit_json, save_family, tiny_controlnet

PROMPTS = ["a painting of a dog in the style of a river", "the church by the mountain"]
TRAILING = {"timestep_spacing": "trailing", "set_alpha_to_one": True, "clip_sample": False}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {family: save_family(root / family, family) for family in FAMILIES}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(folders: dict[str, Path], family: str) -> Path:
    return folders[family]


@pytest.fixture(scope="module")
def backbone(folder: Path) -> Backbone:
    return Backbone.load(folder, "cpu", "float32")


@pytest.fixture(scope="module")
def xl(folders: dict[str, Path]) -> Backbone:
    return Backbone.load(folders["sdxl"], "cpu", "float32")


def read_pipeline(folder: Path, family: str) -> Any:
    """In float32, sampling as `inst.sampling.solvers` does."""
    kind = StableDiffusionXLPipeline if family == "sdxl" else StableDiffusionPipeline
    pipeline = kind.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, **TRAILING)
    return pipeline


@pytest.fixture(scope="module")
def pipeline(folder: Path, family: str) -> Any:
    return read_pipeline(folder, family)


@pytest.fixture
def photo() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(1, 3, 8, 12, generator=generator) * 2 - 1
    return torch.nn.functional.interpolate(coarse, scale_factor=8, mode="bicubic").clamp(-1, 1)


def dog(backbone: Backbone) -> Style:
    """The word "dog" as a style: what stands for `[C]` can so be said to diffusers' pipelines, too."""
    (row,) = backbone.tokenizer("dog", add_special_tokens=False).input_ids
    return Style(backbone.token_table[[row]], backbone.fingerprint)


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


# Against diffusers


@torch.inference_mode()
def test_text_embeddings_are_those_of_diffusers(backbone: Backbone, pipeline: Any, family: str) -> None:
    expected = pipeline.encode_prompt(PROMPTS, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True)
    found, nothing = backbone.embed_text(PROMPTS), backbone.embed_text(["", ""])
    close(found.tokens, expected[0], 1e-5)
    close(nothing.tokens, expected[1], 1e-5)
    if family != "sdxl":
        assert found.pooled is None
        return
    assert found.pooled is not None
    assert nothing.pooled is not None
    assert found.tokens.shape == (2, POSITIONS, WIDTH + WIDTH_2)
    close(found.pooled, expected[2], 1e-5)
    close(nothing.pooled, expected[3], 1e-5)
    assert not nothing.tokens.any()
    assert not nothing.pooled.any()


@torch.inference_mode()
def test_each_tokenizer_of_xl_pads_with_its_own_token(xl: Backbone) -> None:
    first, second = xl.tokenize(["a dog"])
    length = int((first.ids[0] == xl.tokenizer.eos_token_id).nonzero()[0]) + 1
    assert torch.equal(first.ids[:, :length], second.ids[:, :length])
    assert set(first.ids[0, length:].tolist()) == {xl.tokenizer.eos_token_id}
    assert set(second.ids[0, length:].tolist()) == {second.ids[0, -1].item()} == {0}


@torch.inference_mode()
def test_pseudo_words_are_those_of_load_textual_inversion(backbone: Backbone, folder: Path, family: str) -> None:
    """For two encoders the two parts of the vectors are loaded one by one, as users of diffusers do."""
    vectors = torch.randn(3, backbone.text_width, generator=torch.Generator().manual_seed(2))
    pipeline = read_pipeline(folder, family)
    if family == "sdxl":
        # With the old mistake in the configuration CLIP pools at the token of the highest number, which an added one
        # would be.
        pipeline.text_encoder_2.text_model.eos_token_id = pipeline.tokenizer_2.eos_token_id
    parts = vectors.split(list(backbone.text_widths), dim=1)
    for i, part in enumerate(parts):
        suffix = "_2" if i else ""
        pipeline.load_textual_inversion(
            {"<own>": part},
            token="<own>",
            text_encoder=getattr(pipeline, f"text_encoder{suffix}"),
            tokenizer=getattr(pipeline, f"tokenizer{suffix}"),
        )
    prompts = ["a painting of a dog by {word}", "{word}, {word}"]
    expected = pipeline.encode_prompt(
        [prompt.format(word="<own>") for prompt in prompts],
        device="cpu",
        num_images_per_prompt=1,
        do_classifier_free_guidance=False,
    )
    found = backbone.embed_text([prompt.format(word="[C]") for prompt in prompts], {"[C]": vectors})
    close(found.tokens, expected[0], 1e-5)
    if found.pooled is not None:
        close(found.pooled, expected[2], 1e-5)


@torch.inference_mode()
def test_latents_are_those_of_diffusers(backbone: Backbone, pipeline: Any, photo: torch.Tensor) -> None:
    scale = pipeline.vae.config.scaling_factor
    latents = backbone.encode(photo)
    close(latents, pipeline.vae.encode(photo).latent_dist.mean * scale)
    close(backbone.decode(latents), pipeline.vae.decode(latents / scale).sample.clamp(-1, 1))


@torch.inference_mode()
def test_predicted_noise_is_that_of_diffusers(
    backbone: Backbone, pipeline: Any, family: str, photo: torch.Tensor
) -> None:
    """The UNet called as diffusers' pipelines call it, and its scheduler's own way from v to the noise."""
    noisy, t = draw_noise((4, 8, 12), [1, 2]), 700
    text = backbone.embed_text(PROMPTS)
    added = None
    if family == "sdxl":
        sizes = pipeline._get_add_time_ids((64, 96), (0, 0), (64, 96), torch.float32, WIDTH)
        added = {"text_embeds": text.pooled, "time_ids": sizes.repeat(2, 1)}
    output = pipeline.unet(noisy, t, encoder_hidden_states=text.tokens, added_cond_kwargs=added).sample
    found = backbone.predict_noise(noisy, t, text)
    if family != "sd2-v":
        close(found, output)
        return
    pipeline.scheduler.set_timesteps(10)
    clean = pipeline.scheduler.step(output, t, noisy).pred_original_sample
    abar = pipeline.scheduler.alphas_cumprod[t]
    close(abar.sqrt() * clean + (1 - abar).sqrt() * found, noisy)


def test_each_tile_is_told_that_it_is_a_crop_of_the_whole(folders: dict[str, Path], xl: Backbone) -> None:
    """The sizes that diffusers' pipelines give for such a crop; to the UNet, and to a ControlNet."""
    style = Style(xl.token_table[:2], xl.fingerprint, widths=xl.text_widths)
    control = Control(tiny_controlnet(xl.unet), torch.zeros(3, 96, 160), "depth")
    told: dict[Any, list[torch.Tensor]] = {xl.unet: [], control.model: []}
    hooks = [
        model.register_forward_pre_hook(
            lambda model, given, named: told[model].append(named["added_cond_kwargs"]["time_ids"]), with_kwargs=True
        )
        for model in told
    ]
    complete(generate(xl, "[C]", style, size=(160, 96), tile=64, steps=1, control=control))
    for hook in hooks:
        hook.remove()
    pipeline = read_pipeline(folders["sdxl"], "sdxl")
    corners = [(top, left) for top in (0, 32) for left in (0, 48, 96)]
    expected = [pipeline._get_add_time_ids((96, 160), corner, (64, 64), torch.float32, WIDTH) for corner in corners]
    for found in told.values():
        torch.testing.assert_close(torch.stack(found), torch.stack(expected).expand(-1, 2, -1), rtol=0, atol=0)


@torch.inference_mode()
def test_controlnet_residuals_change_the_predicted_noise_as_in_diffusers(
    backbone: Backbone, pipeline: Any, family: str, photo: torch.Tensor
) -> None:
    noisy, t, text = draw_noise((4, 8, 12), [1, 2]), 700, backbone.embed_text(PROMPTS)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        control = ControlNetModel.from_unet(pipeline.unet, conditioning_embedding_out_channels=(4, 4, 4, 4)).eval()
        for weight in control.parameters():  # the last ones are zeros at first
            weight.add_(0.05 * torch.randn_like(weight))
    told: dict[str, Any] = {"encoder_hidden_states": text.tokens}
    if family == "sdxl":
        sizes = torch.tensor([[64.0, 96, 0, 0, 64, 96]] * 2)
        told["added_cond_kwargs"] = {"text_embeds": text.pooled, "time_ids": sizes}
    down, mid = control(noisy, t, controlnet_cond=photo.expand(2, -1, -1, -1), return_dict=False, **told)
    output = pipeline.unet(
        noisy, t, down_block_additional_residuals=down, mid_block_additional_residual=mid, **told
    ).sample
    found = backbone.predict_noise(noisy, t, text, residuals=(down, mid))
    if family == "sd2-v":
        abar = pipeline.scheduler.alphas_cumprod[t]
        output = abar.sqrt() * output + (1 - abar).sqrt() * noisy
    close(found, output)
    assert not torch.allclose(found, backbone.predict_noise(noisy, t, text), atol=1e-2)


@torch.inference_mode()
@pytest.mark.parametrize("negative", [None, "a photo of a river"])
def test_generated_pictures_are_those_of_diffusers(backbone: Backbone, pipeline: Any, negative: str | None) -> None:
    """Prompts in, pictures out, and not square."""
    settings: dict[str, Any] = {"steps": 4, "guidance": 3.0, "seed": [3, 4], "size": (96, 64), "solver": "ddim"}
    prompts = ["a painting of a {} in the style of a river", "the {} by the mountain"]
    expected = pipeline(
        [prompt.format("dog") for prompt in prompts],
        negative_prompt=None if negative is None else [negative] * 2,
        latents=draw_noise((4, 8, 12), [3, 4]),
        num_inference_steps=4,
        guidance_scale=3.0,
        height=64,
        width=96,
        output_type="pt",
    ).images
    prompts = [prompt.format("[C]") for prompt in prompts]
    found = complete(generate(backbone, prompts, dog(backbone), negative_prompt=negative or "", **settings))
    close(found, expected * 2 - 1)


@torch.inference_mode()
def test_a_transfer_is_stochastic_inversion_followed_by_diffusers(
    backbone: Backbone, pipeline: Any, family: str, photo: torch.Tensor
) -> None:
    """The noise that the model sees in the noised photo, by diffusers alone; its pipeline goes on from there."""
    pipeline.scheduler.set_timesteps(4)
    clean = pipeline.vae.encode(photo).latent_dist.mean * pipeline.vae.config.scaling_factor
    t = torch.tensor([999])
    noisy = pipeline.scheduler.add_noise(clean, draw_noise((4, 8, 12), [7]), t)
    embedded = pipeline.encode_prompt("dog", device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)
    added = None
    if family == "sdxl":
        sizes = torch.tensor([[64.0, 96, 0, 0, 64, 96]])
        added = {"text_embeds": embedded[2], "time_ids": sizes}
    output = pipeline.unet(noisy, t, encoder_hidden_states=embedded[0], added_cond_kwargs=added).sample
    seen = pipeline.scheduler.step(output, 999, noisy).pred_original_sample
    abar = pipeline.scheduler.alphas_cumprod[999]
    start = pipeline.scheduler.add_noise(clean, (noisy - abar.sqrt() * seen) / (1 - abar).sqrt(), t)
    expected = pipeline(
        "dog",
        latents=start,
        num_inference_steps=4,
        guidance_scale=3.0,
        height=64,
        width=96,
        output_type="pt",
    ).images
    settings: dict[str, Any] = {"strength": 1.0, "steps": 4, "guidance": 3.0, "seed": 7, "solver": "ddim"}
    settings |= LIKE_DIFFUSERS
    found = complete(transfer(backbone, photo, dog(backbone), tone="none", size=64, **settings))
    close(found, expected * 2 - 1)


# What is InST's own


@pytest.mark.parametrize("inversion", ["stochastic", "ddim"])
def test_learning_transfer_and_generation_work_for_every_family(
    backbone: Backbone, photo: torch.Tensor, inversion: str
) -> None:
    painting = Photo(photo[0], None, "painting.png", "0" * 64)
    learning = learn(
        backbone, [painting], steps=3, variant="direct", vectors=2, crops=2, validate_every=1, preview_every=3, lr=1e-3
    )
    steps = []
    while True:
        try:
            steps.append(next(learning))
        except StopIteration as end:
            style = end.value
            break
    assert style.vectors.shape == (2, backbone.text_width)
    assert style.check(backbone) is None
    assert steps[-1].preview is not None
    assert steps[-1].preview.shape == (3, 64, 64)
    start, first = fresh_inversion(backbone, "direct", vectors=2), steps[-1].style().vectors
    for moved in (first - start.base).split(list(backbone.text_widths), dim=1):
        assert (moved.abs().amax(dim=1) > 0).all()  # the gradient has reached each part of each vector
    settings: dict[str, Any] = {"steps": 2, "seed": 1}
    for solver in ("ddim", "dpm++"):
        styled = complete(
            transfer(backbone, photo, style, solver=solver, inversion=inversion, style_weight=1.2, **settings)
        )
        assert styled.shape == (1, 3, 128, 192)
        assert styled.isfinite().all()
    assert complete(generate(backbone, "a river by [C]", style, **settings)).shape == (1, 3, 64, 64)


@pytest.mark.filterwarnings("error::inst.InstWarning")
def test_with_a_given_image_encoder_the_attention_variant_is_learned(
    folder: Path, tiny_backbone_folder: Path, photo: torch.Tensor
) -> None:
    backbone = Backbone.load(folder, "cpu", "float32", image_encoder=tiny_backbone_folder)
    painting = Photo(photo[0], None, "painting.png", "0" * 64)
    style = complete(learn(backbone, [painting], steps=2, crops=2, validate_every=1))  # type: ignore[arg-type]
    assert style.about["variant"] == "attention"
    assert style.widths == backbone.text_widths
    assert style.vectors.shape == (8, backbone.text_width)


def test_a_fresh_word_has_the_median_norm_of_the_words_of_each_encoder(backbone: Backbone) -> None:
    vectors = fresh_inversion(backbone, "direct", vectors=3)(torch.zeros(1, 0), torch.zeros(1, 0, 0))[0]
    assert vectors.shape == (3, sum(backbone.text_widths))
    parts = zip(
        backbone.text_encoders,
        backbone.tokenizers,
        vectors.split(list(backbone.text_widths), dim=1),
        strict=True,
    )
    for encoder, tokenizer, part in parts:
        table = encoder.get_input_embeddings().weight
        assert part.norm(dim=1).tolist() == pytest.approx([table.norm(dim=1).median().item()] * 3)
        word = table[tokenizer("painting", add_special_tokens=False).input_ids].mean(dim=0)
        assert torch.cosine_similarity(part, word).min() > 0.9999


def test_the_coarse_word_has_the_rows_of_both_encoders(xl: Backbone) -> None:
    (row,) = xl.tokenizer("painting", add_special_tokens=False).input_ids
    one, other = (encoder.get_input_embeddings().weight[row] for encoder in xl.text_encoders)
    assert torch.equal(coarse_word(xl), torch.cat([one, other]))
    assert torch.equal(coarse_word(xl), xl.token_table[row])
    assert other.norm() > 2 * one.norm()


def test_a_backbone_reports_its_widths_sizes_and_name_and_is_frozen(backbone: Backbone, family: str) -> None:
    assert backbone.text_widths == ((WIDTH, WIDTH_2) if family == "sdxl" else (WIDTH,))
    assert backbone.text_width == sum(backbone.text_widths)
    assert backbone.token_table.shape == (len(backbone.tokenizer), backbone.text_width)
    assert backbone.token_table.dtype == torch.float32
    assert (backbone.native_size, backbone.downscale, backbone.name) == (64, 8, family)
    for part in (backbone.vae, backbone.unet, *backbone.text_encoders):
        assert not part.training
        assert not any(weight.requires_grad for weight in part.parameters())


def test_the_fingerprint_of_xl_covers_both_text_encoders_in_order(folders: dict[str, Path], xl: Backbone) -> None:
    weights = [load_file(folders["sdxl"] / name / "model.safetensors") for name in ("text_encoder", "text_encoder_2")]
    tables = [next(one[key] for key in one if key.endswith("token_embedding.weight")) for one in weights]
    assert xl.fingerprint == fingerprint_of(*tables) == fingerprint_of(*(table.float() for table in tables))
    assert len({fingerprint_of(tables[0]), fingerprint_of(tables[1]), fingerprint_of(*reversed(tables))}) == 3
    assert xl.fingerprint not in (fingerprint_of(tables[0]), fingerprint_of(tables[1]))


def test_captions_are_projected_by_the_encoder_that_has_a_projection(xl: Backbone) -> None:
    tokens = xl.tokenizers[1](PROMPTS, padding="max_length", return_tensors="pt").input_ids
    close(xl.embed_caption(PROMPTS), xl.text_encoders[1](tokens).text_embeds)


def test_an_empty_prompt_of_xl_is_zeros_even_if_the_encoder_overflows(folders: dict[str, Path]) -> None:
    half = Backbone.load(folders["sdxl"], "cpu", "float16")
    half.text_encoder_2.text_model.embeddings.position_embedding.weight.fill_(torch.inf)
    text = half.embed_text(["a dog", ""])
    assert not text.tokens[0].isfinite().all()
    assert not text.tokens[1].any()
    assert not text.pooled[1].any()
    assert (text.tokens.dtype, text.pooled.dtype) == (torch.float16, torch.float16)


@torch.inference_mode()
def test_an_empty_prompt_of_xl_is_encoded_if_the_model_does_not_force_zeros(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = copy(folders["sdxl"], tmp_path)
    edit_json(folder / "model_index.json", force_zeros_for_empty_prompt=False)
    nothing = Backbone.load(folder, "cpu", "float32").embed_text([""])
    expected = read_pipeline(folder, "sdxl").encode_prompt([""], device="cpu", do_classifier_free_guidance=True)
    close(nothing.tokens, expected[1], 1e-5)
    close(nothing.pooled, expected[3], 1e-5)
    assert nothing.tokens.any()


@torch.inference_mode()
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_close_to_float32(backbone: Backbone, folder: Path, dtype: str) -> None:
    half, text = Backbone.load(folder, "cpu", dtype), backbone.embed_text(PROMPTS)
    assert half.vae.dtype == (torch.float32 if dtype == "float16" else torch.bfloat16)
    assert half.fingerprint == backbone.fingerprint
    noisy = draw_noise((4, 8, 8), [1, 2])
    for found, expected in (
        (half.embed_text(PROMPTS).tokens.float(), text.tokens),
        (half.predict_noise(noisy, 500, text), backbone.predict_noise(noisy, 500, text)),
    ):
        assert 0 < (found - expected).norm() / expected.norm() < 0.03


# What must be refused


def copy(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to / "copy"))


def no_second_tokenizer(folder: Path) -> None:
    shutil.rmtree(folder / "tokenizer_2")


def refiner(folder: Path) -> None:
    for name in ("text_encoder", "tokenizer"):
        shutil.rmtree(folder / name)
    path = folder / "model_index.json"
    index = json.loads(path.read_text()) | {"text_encoder": [None, None], "tokenizer": [None, None]}
    path.write_text(json.dumps(index | {"requires_aesthetics_score": True}))


def no_projection(folder: Path) -> None:
    path = folder / "text_encoder_2" / "model.safetensors"
    weights = load_file(path)
    del weights["text_projection.weight"]
    save_file(weights, path)


def unet_of_other_sizes(folder: Path) -> None:
    """As the refiner's, which takes five numbers and not six."""
    config = UNet2DConditionModel.load_config(folder / "unet")
    unet = UNet2DConditionModel.from_config(config, projection_class_embeddings_input_dim=WIDTH + 5 * 8)
    unet.save_pretrained(folder / "unet")


def unet_without_sizes(folder: Path) -> None:
    config = UNet2DConditionModel.load_config(folder / "unet")
    UNet2DConditionModel.from_config(config, addition_embed_type=None).save_pretrained(folder / "unet")


def longer_second_prompts(folder: Path) -> None:
    edit_json(folder / "tokenizer_2" / "tokenizer_config.json", model_max_length=POSITIONS - 4)


def one_encoder(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    for name in ("text_encoder_2", "tokenizer_2"):
        shutil.rmtree(folder / name)
        del index[name]
    (folder / "model_index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("change", "naming"),
    [
        (no_second_tokenizer, "it has no folder tokenizer_2"),
        (refiner, "describes the refiner of Stable Diffusion XL"),
        (no_projection, "text_projection.weight"),
        (unet_of_other_sizes, "the UNet's added inputs (72) and pooled text and six sizes (80) differ"),
        (unet_without_sizes, "(addition_embed_type: None)"),
        (longer_second_prompts, "the first tokenizer's length (24) and the second one's (20) differ"),
        (one_encoder, "one text encoder (addition_embed_type: text_time)"),
    ],
)
def test_a_broken_folder_of_xl_is_refused_in_one_line_with_the_reason(
    folders: dict[str, Path], tmp_path: Path, change: Callable[[Path], None], naming: str
) -> None:
    folder = copy(folders["sdxl"], tmp_path)
    change(folder)
    with pytest.raises(InstError) as caught:
        Backbone.load(folder, "cpu")
    assert naming in str(caught.value)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_style_of_another_family_is_refused(xl: Backbone, folders: dict[str, Path]) -> None:
    old = Backbone.load(folders["sd1"], "cpu", "float32")
    with pytest.raises(UsageError, match="belongs to the text space"):
        transfer(xl, torch.zeros(3, 64, 64), dog(old))
    with pytest.raises(UsageError, match=r"takes \[n, 80\]"):
        xl.embed_text(["[C]"], {"[C]": dog(old).vectors})
