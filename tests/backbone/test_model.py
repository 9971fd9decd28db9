"""The backbone against diffusers' own pipeline, and transformers' own preprocessing, on the same folder."""

import json
import math
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPImageProcessorPil, CLIPVisionModelWithProjection

from inst import Backbone, InstError, UsageError
from inst.pictures.tensors import to_tensor
from tiny import LATENT_CHANNELS, POSITIONS, WIDTH, edit_json

PROMPTS = ["a painting of a dog in the style of a river", "", "the church by the mountain"]


@pytest.fixture(scope="module")
def pipeline(tiny_backbone_folder: Path) -> StableDiffusionPipeline:
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_backbone_folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def pictures() -> torch.Tensor:
    return torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture
def latents() -> torch.Tensor:
    return torch.randn(2, LATENT_CHANNELS, 8, 12, generator=torch.Generator().manual_seed(2))


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_encode_and_decode_are_those_of_diffusers(tiny_backbone, pipeline, pictures) -> None:
    posterior = pipeline.vae.encode(pictures).latent_dist
    scale = pipeline.vae.config.scaling_factor
    found = tiny_backbone.encode(pictures)
    assert found.shape == (2, tiny_backbone.latent_channels, 8, 12)
    close(found, posterior.mean * scale)
    sampled = posterior.sample(torch.Generator().manual_seed(3)) * scale
    close(tiny_backbone.encode(pictures, torch.Generator().manual_seed(3)), sampled)
    assert not torch.allclose(sampled, found, atol=1e-3)

    decoded = tiny_backbone.decode(3 * found)
    close(decoded, pipeline.vae.decode(3 * found / scale).sample.clamp(-1, 1))
    assert decoded.shape == pictures.shape


def test_decoded_pictures_stay_between_minus_one_and_one(tiny_backbone, latents) -> None:
    assert tiny_backbone.decode(1e4 * latents).abs().max() <= 1


@torch.inference_mode()
def test_embed_text_is_that_of_diffusers(tiny_backbone, pipeline) -> None:
    expected, _ = pipeline.encode_prompt(PROMPTS, "cpu", 1, do_classifier_free_guidance=False)
    text = tiny_backbone.embed_text(PROMPTS)
    assert text.pooled is None
    found = text.tokens
    assert found.shape == (3, POSITIONS, WIDTH)
    close(found, expected)


@torch.inference_mode()
def test_pseudo_words_are_those_of_load_textual_inversion(tiny_backbone, tiny_backbone_folder, tmp_path) -> None:
    own, other = torch.randn(3, WIDTH), torch.randn(1, WIDTH)
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_backbone_folder, local_files_only=True)
    for token, vectors in (("<own>", own), ("<other>", other)):
        path = tmp_path / "style.safetensors"
        save_file({token: vectors}, path)
        pipeline.load_textual_inversion(str(path), local_files_only=True)

    prompts = ["a painting of a dog in the style of {own} and {other}", "{own}", "{other} style, by {own}, {own}"]
    expected, _ = pipeline.encode_prompt(
        [prompt.format(own="<own>", other="<other>") for prompt in prompts], "cpu", 1, do_classifier_free_guidance=False
    )
    styles = {"[C]": own, "[C2]": other}
    found = tiny_backbone.embed_text([prompt.format(own="[C]", other="[C2]") for prompt in prompts], styles).tokens
    close(found, expected)

    each_its_own = torch.stack([own, -own, own])
    found = tiny_backbone.embed_text(["[C]"] * 3, {"[C]": each_its_own}).tokens
    close(found[0], found[2])
    close(found[1], tiny_backbone.embed_text(["[C]"], {"[C]": -own}).tokens[0])
    assert not torch.allclose(found[0], found[1], atol=1e-3)


@torch.inference_mode()
def test_embed_caption_pools_at_the_end_of_the_prompt(tiny_backbone) -> None:
    found = tiny_backbone.embed_caption(PROMPTS)
    tokenizer, encoder = tiny_backbone.tokenizer, tiny_backbone.text_encoder
    encoded = tokenizer(PROMPTS, padding="max_length", return_tensors="pt")
    close(found, encoder(input_ids=encoded.input_ids).text_embeds)
    unpadded = encoder(input_ids=torch.tensor([tokenizer(PROMPTS[2]).input_ids])).text_embeds
    close(found[2:], unpadded)


@torch.inference_mode()
def test_predicted_noise_makes_the_same_ddim_step_as_diffusers(tiny_backbone, pipeline, latents) -> None:
    """diffusers' scheduler turns v into a step by itself; our epsilon, put into the DDIM formula, must agree."""
    text = tiny_backbone.embed_text(["a dog", "the river"])
    scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    assert scheduler.config.prediction_type == "v_prediction"
    scheduler.set_timesteps(10)
    for t in (901, 501, 1):
        predicted = pipeline.unet(latents, t, encoder_hidden_states=text.tokens).sample
        expected = scheduler.step(predicted, t, latents).prev_sample

        noise = tiny_backbone.predict_noise(latents, t, text)
        now = scheduler.alphas_cumprod[t]
        then = scheduler.alphas_cumprod[t - 100] if t >= 100 else scheduler.final_alpha_cumprod
        clean = (latents - (1 - now).sqrt() * noise) / now.sqrt()
        close(then.sqrt() * clean + (1 - then).sqrt() * noise, expected)


@torch.inference_mode()
def test_predicted_noise_of_an_epsilon_model_is_the_output_of_the_unet(tiny_copy, pipeline, latents) -> None:
    edit_json(tiny_copy / "scheduler" / "scheduler_config.json", prediction_type="epsilon")
    backbone = Backbone.load(tiny_copy, "cpu", "float32")
    text = backbone.embed_text(["a dog"])
    times = torch.tensor([7, 700])
    expected = pipeline.unet(latents, times, encoder_hidden_states=text.tokens.expand(2, -1, -1)).sample
    close(backbone.predict_noise(latents, times, text), expected)


@torch.inference_mode()
def test_a_guided_run_ends_where_the_pipeline_of_diffusers_ends(tiny_backbone, pipeline, latents) -> None:
    expected = pipeline(
        prompt=["a dog", "the river"],
        latents=latents,
        num_inference_steps=5,
        guidance_scale=3.0,
        output_type="latent",
    ).images
    text, nothing = tiny_backbone.embed_text(["a dog", "the river"]), tiny_backbone.embed_text(["", ""])
    scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, prediction_type="epsilon")
    scheduler.set_timesteps(5)
    found = latents
    for t in scheduler.timesteps:
        with_text, without = (tiny_backbone.predict_noise(found, t, words) for words in (text, nothing))
        found = scheduler.step(without + 3.0 * (with_text - without), t, found).prev_sample
    close(found, expected)


def test_gradients_reach_the_pseudo_word_and_no_weight(tiny_backbone, latents) -> None:
    vectors = torch.randn(3, WIDTH, requires_grad=True)
    text = tiny_backbone.embed_text(["a dog in the style of [C]"], {"[C]": vectors})
    tiny_backbone.predict_noise(latents, torch.tensor([10, 900]), text).square().mean().backward()
    assert vectors.grad is not None
    assert (vectors.grad.abs().sum(dim=-1) > 0).all()
    for part in ("vae", "unet", "text_encoder", "image_encoder", "inversion"):
        module = getattr(tiny_backbone, part)
        assert not module.training
        assert all(not weight.requires_grad and weight.grad is None for weight in module.parameters())


@torch.inference_mode()
@pytest.mark.parametrize("size", [(64, 64), (150, 99), (40, 81)])
def test_embed_picture_gives_what_clip_in_transformers_gives(tiny_backbone, tiny_backbone_folder, size) -> None:
    x, y = torch.meshgrid(torch.linspace(0, 7, size[0]), torch.linspace(0, 9, size[1]), indexing="xy")
    waves = torch.stack([x.sin(), (x + y).cos(), (x * y / 9).sin()], dim=-1)
    image = Image.fromarray(((waves + 1) * 127.5).to(torch.uint8).numpy())
    assert image.size == size
    processor = CLIPImageProcessorPil.from_pretrained(tiny_backbone_folder / "feature_extractor")
    expected = processor(images=image, return_tensors="pt").pixel_values

    found = tiny_backbone.feature_extractor(to_tensor(image)[None])
    assert found.shape == expected.shape
    one_level = 1 / 255 / 0.26  # Pillow resizes in whole levels of 8 bits
    assert (found - expected).abs().max() < (2.5 * one_level if size != (64, 64) else 1e-4)

    encoder = CLIPVisionModelWithProjection.from_pretrained(tiny_backbone_folder / "image_encoder", dtype=torch.float32)
    output = encoder(pixel_values=found)
    pooled, tokens = tiny_backbone.embed_picture(to_tensor(image)[None])
    close(pooled, output.image_embeds)
    close(tokens, output.last_hidden_state[:, 1:])
    assert tokens.shape == (1, (64 // 16) ** 2, WIDTH)
    assert tiny_backbone.inversion(pooled, tokens).shape == (1, 3, WIDTH)


@torch.inference_mode()
def test_different_pictures_have_different_embeddings(tiny_backbone, pictures) -> None:
    pooled, tokens = tiny_backbone.embed_picture(pictures)
    assert (pooled[0] - pooled[1]).abs().max() > 1e-3
    assert (tokens[0] - tokens[1]).abs().max() > 1e-2


@torch.inference_mode()
def test_bfloat16_is_close_to_float32(tiny_backbone, tiny_backbone_folder, pictures, latents) -> None:
    half = Backbone.load(tiny_backbone_folder, "cpu", "bfloat16")
    assert half.dtype == torch.bfloat16
    assert half.fingerprint == tiny_backbone.fingerprint
    text = tiny_backbone.embed_text(["a dog", ""])
    for found, expected in (
        (half.encode(pictures), tiny_backbone.encode(pictures)),
        (half.decode(latents), tiny_backbone.decode(latents)),
        (half.embed_text(["a dog", ""]).tokens.float(), text.tokens),
        (half.embed_picture(pictures)[1], tiny_backbone.embed_picture(pictures)[1]),
        (half.predict_noise(latents, 500, text), tiny_backbone.predict_noise(latents, 500, text)),
    ):
        assert found.dtype == torch.float32
        error = (found - expected).square().mean().sqrt() / expected.square().mean().sqrt()
        assert 0 < error < 0.03


def test_wrong_picture_sizes_placeholders_vectors_and_prompts_are_refused(tiny_backbone, pictures) -> None:
    with pytest.raises(UsageError, match=r"96 x 60 pixels.*multiples of 8"):
        tiny_backbone.encode(pictures[..., :60, :])
    with pytest.raises(UsageError, match=r"\[C2\], which has no style \(known: \[C\]\)"):
        tiny_backbone.embed_text(["a dog in the style of [C2]"], {"[C]": torch.zeros(1, WIDTH)})
    with pytest.raises(UsageError, match=r'"C" is not a placeholder.*\[C\]'):
        tiny_backbone.embed_text(["a dog"], {"C": torch.zeros(1, WIDTH)})
    for shape in ((1, WIDTH + 1), (WIDTH,), (2, 1, WIDTH)):
        with pytest.raises(UsageError, match="was learned with this backbone"):
            tiny_backbone.embed_text(["a dog"], {"[C]": torch.zeros(shape)})
    with pytest.raises(TypeError, match="list of strings"):
        tiny_backbone.embed_text("a dog")
    for embed in (tiny_backbone.embed_text, tiny_backbone.embed_caption):
        with pytest.raises(UsageError, match="No prompt is given"):
            embed([])


@pytest.mark.parametrize("shape", [(2, 1, 64, 64), (2, 4, 64, 64), (3, 64, 64), (0, 3, 64, 64), (1, 3, 0, 64)])
def test_pictures_of_another_shape_are_refused(tiny_backbone, shape) -> None:
    for call in (tiny_backbone.encode, tiny_backbone.embed_picture):
        with pytest.raises(UsageError, match=r"cannot be used: give \[B, 3, H, W\]") as caught:
            call(torch.zeros(shape))
        assert str(list(shape)) in str(caught.value)


@torch.inference_mode()
def test_timesteps_outside_the_schedule_are_refused(tiny_backbone, latents) -> None:
    text = tiny_backbone.embed_text(["a dog"])
    for wrong in (-1, 1000, torch.tensor([5, 1000]), torch.tensor([-1, 5])):
        with pytest.raises(UsageError, match="range: give timesteps from 0 to 999"):
            tiny_backbone.predict_noise(latents, wrong, text)
    for wrong in (0.5, torch.tensor([0.5, 7.0]), True):
        with pytest.raises(UsageError, match="give integers"):
            tiny_backbone.predict_noise(latents, wrong, text)
    for right in (0, 999, torch.tensor([0, 999])):
        assert tiny_backbone.predict_noise(latents, right, text).isfinite().all()


@torch.inference_mode()
def test_without_image_encoder_and_projection_text_works_and_the_rest_is_refused(tiny_copy, pictures, pipeline) -> None:
    """As Stable Diffusion 1.x comes: it works, and what it cannot do says so."""
    import shutil

    for name in ("image_encoder", "inversion"):
        shutil.rmtree(tiny_copy / name)
    edit_json(tiny_copy / "model_index.json", image_encoder=None)
    pipeline.text_encoder.save_pretrained(tiny_copy / "text_encoder")
    backbone = Backbone.load(tiny_copy, "cpu", "float32")
    assert backbone.image_encoder is None
    assert backbone.inversion is None
    expected, _ = pipeline.encode_prompt(PROMPTS, "cpu", 1, do_classifier_free_guidance=False)
    close(backbone.embed_text(PROMPTS).tokens, expected)
    with pytest.raises(InstError, match="no projection"):
        backbone.embed_caption(["a dog"])
    with pytest.raises(InstError, match="no image encoder"):
        backbone.embed_picture(pictures)


def test_the_noise_schedule_is_the_scaled_linear_one_of_stable_diffusion(tiny_backbone) -> None:
    betas = [math.pow(0.00085**0.5 + (0.012**0.5 - 0.00085**0.5) * i / 999, 2) for i in range(1000)]
    expected = torch.tensor([1 - beta for beta in betas], dtype=torch.float64).cumprod(0).float()
    torch.testing.assert_close(tiny_backbone.alphas_cumprod, expected, rtol=1e-5, atol=1e-7)
    assert json.loads(json.dumps(tiny_backbone.scheduler.config["prediction_type"])) == "v_prediction"
