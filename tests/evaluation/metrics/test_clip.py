"""The shared space of pictures and texts, against transformers' own CLIP."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessorPil, CLIPModel

from inst import Backbone
from inst.errors import InstError
from inst.evaluation.metrics.clip import PictureTextEncoder, cosine, without_placeholder
from inst.pictures.tensors import to_tensor
from tiny import tiny_tokenizer

SIDE = 32  # that of `clip_folder`


def test_clip_similarities_equal_those_of_transformers(clip_folder: Path) -> None:
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)) for _ in range(3)]
    prompts = ["a painting of the river", "mountain", "a dog and a church by the river"]
    encoder = PictureTextEncoder.load_clip(clip_folder)
    assert (encoder.name, encoder.source) == ("CLIP", clip_folder.name)
    assert encoder.texts is not None
    with torch.no_grad():
        pictures, texts = encoder.pictures(torch.stack([to_tensor(one) for one in images])), encoder.texts(prompts)
        model = CLIPModel.from_pretrained(clip_folder)
        pixels = CLIPImageProcessorPil.from_pretrained(clip_folder)(images, return_tensors="pt")["pixel_values"]
        tokens = tiny_tokenizer()(prompts, padding=True, return_tensors="pt")
        expected = model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], pixel_values=pixels)
    torch.testing.assert_close(pictures, expected.image_embeds, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(texts, expected.text_embeds, atol=1e-5, rtol=1e-4)
    scale = model.logit_scale.exp()
    torch.testing.assert_close(cosine(pictures, texts), expected.logits_per_image.diagonal() / scale, atol=1e-5, rtol=0)
    # The paper's accuracy of a style is the mean over all pairs of its pictures and paintings: so is the mean of rows.
    pairwise = (expected.image_embeds @ expected.image_embeds.T).mean(0)
    rows = torch.stack([cosine(pictures, one[None]).mean() for one in pictures])
    torch.testing.assert_close(rows, pairwise, atol=1e-5, rtol=0)


def test_a_prompt_that_is_too_long_for_clip_is_still_encoded(clip_folder: Path) -> None:
    encoder = PictureTextEncoder.load_clip(clip_folder)
    assert encoder.texts is not None
    assert encoder.texts(["river " * 60]).shape == (1, 16)


def test_weights_of_a_variant_are_read(clip_folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(clip_folder, tmp_path / "clip"))
    (copy / "model.safetensors").rename(copy / "model.fp16.safetensors")
    pictures = torch.zeros(1, 3, 64, 64)
    expected = PictureTextEncoder.load_clip(clip_folder).pictures(pictures)
    assert torch.equal(PictureTextEncoder.load_clip(copy).pictures(pictures), expected)


def test_a_clip_with_missing_weights_is_refused(clip_folder: Path, tmp_path: Path) -> None:
    """As of a CLIP's image encoder alone, which has no projection, or no text encoder."""
    copy = Path(shutil.copytree(clip_folder, tmp_path / "copy"))
    weights = load_file(copy / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(InstError, match=r"CLIP cannot be read from .* \(it has no visual_projection\.weight\)"):
        PictureTextEncoder.load_clip(copy)


@pytest.mark.parametrize(
    "missing", ["", "config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json"]
)
def test_a_folder_that_holds_no_whole_clip_is_refused(clip_folder: Path, tmp_path: Path, missing: str) -> None:
    if missing:
        for file in clip_folder.iterdir():
            if file.name != missing:
                (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(InstError, match="CLIP cannot be read from"):
        PictureTextEncoder.load_clip(tmp_path if missing else "nobody/nothing")


def test_a_backbones_own_encoders_are_not_called_clip(tiny_backbone: Backbone) -> None:
    encoder = PictureTextEncoder.of_backbone(tiny_backbone)
    assert encoder.name == tiny_backbone.name
    assert "clip" not in encoder.name.lower()
    picture = torch.rand(2, 3, 40, 50) * 2 - 1
    expected = tiny_backbone.embed_picture(picture)[0]
    torch.testing.assert_close(encoder.pictures(picture), expected / expected.norm(dim=1, keepdim=True))
    assert encoder.texts is not None
    torch.testing.assert_close(encoder.texts(["a dog"]).norm(), torch.tensor(1.0))


def test_texts_are_not_compared_with_pictures_of_another_embedding_space(
    tiny_backbone: Backbone, tiny_backbone_folder: Path, clip_folder: Path
) -> None:
    assert PictureTextEncoder.of_backbone(tiny_backbone).no_texts == ""
    replaced = Backbone.load(tiny_backbone_folder, "cpu", "float32", image_encoder=clip_folder)
    encoder = PictureTextEncoder.of_backbone(replaced)
    assert encoder.texts is None
    assert "shares no space" in encoder.no_texts
    assert encoder.pictures(torch.zeros(1, 3, 32, 32)).shape == (1, 16)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a castle in the style of [C]", "a castle in the style of"),
        ("[C] a castle, [monet2] and [C2].", "a castle, and ."),
        ("a castle", "a castle"),
        ("[C]", ""),
    ],
)
def test_placeholders_are_removed_from_prompts(prompt: str, expected: str) -> None:
    assert without_placeholder(prompt) == expected
