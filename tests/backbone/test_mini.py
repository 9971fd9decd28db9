"""The model that ships with the package: complete, small, pickle-free, and loadable by others."""

import json
import re
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors import safe_open

from figures import weights_digest
from inst import Backbone
from inst.backbone.loading.sources import BUNDLED
from inst.pictures.tensors import to_tensor

FOLDER = BUNDLED["mini"]
LIMIT = 92 * 10**6  # bytes: the wheel must stay below the 100 MB that package indexes accept


@pytest.fixture(scope="module")
def mini() -> Backbone:
    return Backbone.load("mini", "cpu", "float32")


def test_mini_has_every_part_with_finite_weights(mini: Backbone) -> None:
    assert mini.image_encoder is not None
    assert mini.feature_extractor is not None
    assert mini.inversion is not None
    assert mini.scheduler.config["prediction_type"] in ("epsilon", "v_prediction")
    assert mini.downscale == 8
    for part in (mini.vae, mini.unet, mini.text_encoder, mini.image_encoder, mini.inversion):
        assert all(weight.isfinite().all() for weight in part.parameters())


def test_mini_fits_into_the_wheel_and_holds_only_readable_files_without_pickles() -> None:
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= LIMIT
    assert {path.suffix for path in files} <= {".json", ".txt", ".md", ".safetensors"}
    assert (FOLDER / "MODEL_CARD.md").is_file()
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in files), "not readable for all users once installed"


def test_the_figures_are_those_of_the_shipped_weights() -> None:
    figures = json.loads((FOLDER / "figures.json").read_text())
    assert figures["weights"] == weights_digest(FOLDER)


def test_the_model_card_quotes_the_measured_figures() -> None:
    card = (FOLDER / "MODEL_CARD.md").read_text()
    assert not re.search(r"@\w*@|@[A-Z]{2}", card), "a placeholder is left"  # R@5 is none
    figures = json.loads((FOLDER / "figures.json").read_text())
    photographs = figures["autoencoder"]["photo"]["all"]
    rows = [row.lower() for row in card.splitlines() if row.startswith("|")]
    for row_of, value in (
        ("photo", f"{photographs['psnr']:.1f}"),
        ("photo", f"{photographs['lpips_vgg']:.3f}"),
        (r"\br@5|recall( at |@)5", f"{figures['retrieval']['all sources']['recall_at_5']:.2f}"),
        ("own caption", f"{figures['denoising']['epsilon_mse']['caption'][0]:.4f}"),
        ("own word", f"{figures['pseudo_words']['epsilon_mse']['own_word'][0]:.4f}"),
    ):
        quoted = [number for row in rows if re.search(row_of, row) for number in re.findall(r"\d+(?:\.\d+)?", row)]
        assert value in quoted, f"{value} is in no row of the card's tables about {row_of}"


def test_all_weights_are_float16() -> None:
    files = list(FOLDER.rglob("*.safetensors"))
    assert {path.parent.name for path in files} == {"vae", "unet", "text_encoder", "image_encoder", "inversion"}
    for path in files:
        with safe_open(path, "pt") as weights:
            assert {weights.get_slice(key).get_dtype() for key in weights.keys()} == {"F16"}, path  # noqa: SIM118


def test_configurations_say_float32() -> None:
    """Without this, transformers 5 loads these two parts in fp16 next to a UNet in fp32, and the pipeline fails."""
    for name in ("text_encoder", "image_encoder"):
        config = json.loads((FOLDER / name / "config.json").read_text())
        assert config.get("dtype", config.get("torch_dtype")) == "float32"
    index = json.loads((FOLDER / "model_index.json").read_text())
    assert index["text_encoder"] == ["transformers", "CLIPTextModel"]


def test_the_autoencoder_reproduces_a_smooth_picture_with_psnr_above_25_db(mini: Backbone) -> None:
    x, y = torch.meshgrid(torch.linspace(-1, 1, 256), torch.linspace(-1, 1, 256), indexing="xy")
    picture = torch.stack([x, y, (3 * x * y).sin()])[None] * 0.8
    latents = mini.encode(picture)
    assert latents.shape == (1, mini.latent_channels, 32, 32)
    error = (mini.decode(latents) - picture).square().mean()
    assert 10 * torch.log10(4 / error) > 25  # PSNR in dB of a smooth picture


def test_the_order_of_the_weights_on_a_cpu_changes_pictures_by_rounding_only() -> None:
    """The autoencoder of a backbone on a CPU is in the order "channels last"."""
    latents = torch.randn(1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    for dtype, limit in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        backbone = Backbone.load("mini", "cpu", dtype, image_encoder=False)
        assert backbone.vae.decoder.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            found = backbone.decode(latents)
            backbone.vae.to(memory_format=torch.contiguous_format)
            expected = backbone.decode(latents)
        assert (found - expected).square().mean().sqrt() < limit


def test_latents_have_about_unit_variance(mini: Backbone) -> None:
    """Of noise, edges and gradients: far from the training data, hence the wide bounds."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(4, 3, 16, 16, generator=generator) * 2 - 1
    pictures = torch.nn.functional.interpolate(coarse, 256, mode="bicubic").clamp(-1, 1)
    assert 0.4 < mini.encode(pictures).std() < 2.5


def test_different_captions_have_clearly_different_embeddings(mini: Backbone) -> None:
    captions = ["a dog", "a church", "a mountain landscape", "a bouquet of flowers"]
    embedded = torch.nn.functional.normalize(mini.embed_caption(captions), dim=-1)
    similar = embedded @ embedded.T
    assert (similar - torch.eye(4)).max() < 0.9


def test_two_instant_styles_give_different_noise_predictions(mini: Backbone) -> None:
    assert mini.inversion is not None
    pictures = torch.stack([torch.full((3, 256, 256), -0.5), torch.rand(3, 256, 256) * 2 - 1])
    words = mini.inversion(*mini.embed_picture(pictures))
    text = mini.embed_text(["a house in the style of [C]"] * 2, {"[C]": words})
    noise = torch.randn(1, mini.latent_channels, 32, 32, generator=torch.Generator().manual_seed(0)).expand(
        2, -1, -1, -1
    )
    one, other = mini.predict_noise(noise, 700, text)
    assert (one - other).abs().max() > 1e-3


def test_diffusers_loads_mini_and_generates_a_picture() -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(FOLDER, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.unet.dtype == pipeline.vae.dtype == pipeline.text_encoder.dtype == torch.float32
    image = pipeline(
        "a mountain landscape", num_inference_steps=8, height=256, width=256, generator=torch.Generator().manual_seed(0)
    ).images[0]
    picture = to_tensor(image)
    assert image.size == (256, 256)
    assert picture.isfinite().all()
    assert picture.std() > 0.1


def test_the_default_size_in_diffusers_is_the_native_size_of_mini() -> None:
    unet = json.loads((FOLDER / "unet" / "config.json").read_text())
    assert unet["sample_size"] == 32


def test_loading_mini_opens_no_connection_and_writes_no_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import socket

    def no_network(*arguments: object) -> None:
        raise AssertionError(f"tried to connect: {arguments}")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    Backbone.load("mini", "cpu")
    assert not list(tmp_path.iterdir())
