"""Image encoders: the same one out of every folder that holds it, and the one that matches a model."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from inst import Backbone, InstError, InstWarning, Style, UsageError, complete, learn
from inst.backbone.loading.image_encoder import (
    MATCHING,
    find_image_encoder,
    find_matching_image_encoder,
    read_image_encoder,
)
from inst.backbone.loading.part import read_json
from inst.backbone.loading.single_file import CONFIGS, FAMILIES
from inst.pictures.reading import Photo
from inst.pictures.writing import save_picture
from tiny import PICTURE_SIZE, WIDTH, edit_json, save_family

PICTURE = torch.linspace(-1, 1, 3 * PICTURE_SIZE**2).view(1, 3, PICTURE_SIZE, PICTURE_SIZE)


def text_config(family: str) -> CLIPTextConfig:
    return CLIPTextConfig(**read_json(CONFIGS / family / "text_encoder" / "config.json"))


@pytest.fixture(scope="module")
def whole_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP model of both encoders, as the hub has them: its vision part does not know the common width."""
    folder = tmp_path_factory.mktemp("clip")
    sizes = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4}
    vision = CLIPVisionConfig(**sizes, image_size=PICTURE_SIZE, patch_size=16)
    text = CLIPTextConfig(**sizes, vocab_size=100)
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=24)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        CLIPModel(config).save_pretrained(folder)
    size = {"height": PICTURE_SIZE, "width": PICTURE_SIZE}
    CLIPImageProcessorPil(size={"shortest_edge": PICTURE_SIZE}, crop_size=size).save_pretrained(folder)
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def put_into(cache: Path, name: str, folder: Path) -> None:
    repository = cache / f"models--{name.replace('/', '--')}"
    shutil.copytree(folder, repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")


@torch.inference_mode()
def test_the_vision_part_of_a_whole_clip_model_gives_its_image_embeddings(whole_clip: Path) -> None:
    encoder, extractor = read_image_encoder(whole_clip, torch.float32)
    pixels = extractor(PICTURE)
    reference = CLIPModel.from_pretrained(whole_clip)
    expected = reference.visual_projection(reference.vision_model(pixel_values=pixels).pooler_output)
    assert expected.shape == (1, 24)
    torch.testing.assert_close(encoder(pixel_values=pixels).image_embeds, expected)
    assert encoder.config.projection_dim == 24
    assert not encoder.training


@torch.inference_mode()
def test_an_image_encoder_loads_the_same_alone_and_as_part_of_a_model(
    tiny_backbone_folder: Path, tmp_path: Path
) -> None:
    reference = CLIPVisionModelWithProjection.from_pretrained(tiny_backbone_folder / "image_encoder").float()
    alone = Path(shutil.copytree(tiny_backbone_folder / "image_encoder", tmp_path / "alone"))
    shutil.copy(tiny_backbone_folder / "feature_extractor" / "preprocessor_config.json", alone)
    for folder in (alone, tiny_backbone_folder, tiny_backbone_folder / "image_encoder"):
        encoder, extractor = read_image_encoder(find_image_encoder(folder, download=False), torch.float32)
        pixels = extractor(PICTURE)
        torch.testing.assert_close(encoder(pixel_values=pixels).image_embeds, reference(pixels).image_embeds)
    half = read_image_encoder(alone, torch.bfloat16)[0]
    assert {weight.dtype for weight in half.parameters()} == {torch.bfloat16}


def test_the_matching_image_encoder_of_each_family_is_found_in_the_cache(whole_clip: Path, cache: Path) -> None:
    names = {"sd1": 768, "sd2": 1024, "sd2-v": 1024, "sdxl": 768}
    assert names.keys() == set(FAMILIES)
    for family, width in names.items():
        assert find_matching_image_encoder(text_config(family), download=False) is None
        with pytest.raises(InstError, match=MATCHING[width]):
            find_matching_image_encoder(text_config(family), download=True)  # HF_HUB_OFFLINE=1 in the tests
        put_into(cache, MATCHING[width], whole_clip)
        assert find_matching_image_encoder(text_config(family), download=False) is not None
        shutil.rmtree(cache)


def test_no_image_encoder_matches_a_text_encoder_of_another_kind(cache: Path) -> None:
    for width, tokens in ((768, 1000), (512, 49408)):
        config = CLIPTextConfig(hidden_size=width, vocab_size=tokens)
        assert find_matching_image_encoder(config, download=True) is None
    assert not cache.exists()


def test_an_image_encoder_with_a_hub_name_is_found_only_in_the_cache(whole_clip: Path, cache: Path) -> None:
    with pytest.raises(InstError, match=r"someone/clip is not on this machine, .*: add download=True"):
        find_image_encoder("someone/clip", download=False)
    put_into(cache, "someone/clip", whole_clip)
    read_image_encoder(find_image_encoder("someone/clip", download=False), torch.float32)


def test_an_invalid_image_encoder_is_refused_with_the_reason(
    whole_clip: Path, tiny_backbone_folder: Path, tmp_path: Path
) -> None:
    for name in ("nowhere", "~nosuchuser/clip", "x" * 5000, "owner/two--hyphens"):
        with pytest.raises(UsageError, match=f"{name[-20:]} is not an image encoder"):
            find_image_encoder(name, download=True)
    with pytest.raises(InstError, match="clip_text_model, not the image encoder"):
        read_image_encoder(tiny_backbone_folder / "text_encoder", torch.float32)
    with pytest.raises(InstError, match=r"config\.json is missing"):
        read_image_encoder(tmp_path, torch.float32)
    copy = Path(shutil.copytree(whole_clip, tmp_path / "copy"))
    edit_json(copy / "preprocessor_config.json", crop_size={"height": 32, "width": 32})
    with pytest.raises(InstError, match="32 px, but the image encoder takes 64 px"):
        read_image_encoder(copy, torch.float32)
    edit_json(copy / "config.json", projection_dim=32)
    with pytest.raises(InstError, match=r"visual_projection\.weight .*\[24, 32\], not \[32, 32\]"):
        read_image_encoder(copy, torch.float32)
    (copy / "preprocessor_config.json").unlink()
    edit_json(copy / "config.json", projection_dim=24)
    with pytest.raises(InstError, match=r"preprocessor_config\.json is missing"):
        read_image_encoder(copy, torch.float32)
    (copy / "model.safetensors").unlink()
    with pytest.raises(InstError, match=r"it has no model\.safetensors"):
        read_image_encoder(copy, torch.float32)


@pytest.fixture
def blind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model without image encoder; "someone/clip" is the one that matches its text encoder."""
    folder = save_family(tmp_path / "blind", "sd1")
    text = read_json(folder / "text_encoder" / "config.json")
    monkeypatch.setattr("inst.backbone.loading.image_encoder.VOCABULARY", text["vocab_size"])
    monkeypatch.setitem(MATCHING, WIDTH, "someone/clip")
    return folder


def test_the_image_encoder_is_fetched_only_for_learning_that_needs_it(
    run: Callable[..., tuple[int, str, str]], blind: Path, cache: Path, whole_clip: Path
) -> None:
    backbone = Backbone.load(blind, "cpu", image_encoder=False)
    Style(backbone.token_table[:2], backbone.fingerprint).save("waves.safetensors")
    save_picture(PICTURE[0], "painting.png")
    common = ["--backbone", blind, "--device", "cpu", "--download", "--quiet"]
    style, few = ["--style", "waves.safetensors"], ["--steps", "1"]
    for command in (
        ["transfer", "painting.png", *style, *few, "-o", "made.png"],
        ["generate", "[C]", *style, *few, "-o", "made.png"],
        ["repeat", "made.png"],
        ["doctor"],
        ["sheet", "painting.png", *style, *few, "-o", "sheet.png"],
        ["learn", "painting.png", "--variant", "direct", *few, "--crops", "1", "-o", "learned.safetensors"],
        ["style", "import", "embedding.safetensors", "-o", "imported.safetensors"],
    ):
        if command[0] == "style":
            assert run("style", "export", "waves.safetensors", "--to", "a1111", "-o", "embedding.safetensors")[0] == 0
        code, _, err = run(*command, *common)
        assert code == 0, (command, err)
    learning = ["learn", "painting.png", *few, "--crops", "1", "-o", "seen.safetensors", *common]
    code, _, err = run(*learning)
    assert code == 1
    assert "someone/clip is not on this machine, and HF_HUB_OFFLINE forbids a download" in err
    put_into(cache, "someone/clip", whole_clip)
    assert run(*learning)[0] == 0
    assert Style.load("seen.safetensors").about["variant"] == "attention"
    assert Backbone.load(blind, "cpu").image_encoder is not None
    assert Backbone.load(blind, "cpu", image_encoder=False).image_encoder is None


def test_a_model_without_image_encoder_is_reported_with_the_remedy(blind: Path, cache: Path) -> None:
    backbone = Backbone.load(blind, "cpu")
    remedy = 'blind has no image encoder.*image_encoder="someone/clip" and download=True, or its.*variant="direct"'
    painting = [Photo(PICTURE[0], None, "painting.png", "0" * 64)]
    with pytest.raises(InstError, match=remedy):
        backbone.embed_picture(PICTURE)
    with pytest.raises(UsageError, match=remedy):
        learn(backbone, painting, variant="pooled", pretrained=False)
    with pytest.warns(InstWarning, match=remedy):
        complete(learn(backbone, painting, steps=1, crops=1, validate_every=0))
