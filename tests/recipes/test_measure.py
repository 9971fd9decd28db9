import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import figures
import generation
from data import Pictures, load_shards
from inst import Backbone
from inst.backbone.text import TextEmbedding
from inst.evaluation.metrics.lpips import LPIPS
from inst.evaluation.networks.inception import InceptionFID
from inst.pictures.sheets import LABEL_HEIGHT
from measure import QUICK, draw_sheet, measure


def pictures(count: int, native: Sequence[int], kinds: Sequence[str], captions: Sequence[list[str]]) -> Pictures:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.zeros(count, 3, 256, 256, dtype=torch.uint8)
    for i, side in enumerate(native):
        pixels[i, :, :side, :side] = torch.randint(256, (3, side, side), generator=generator, dtype=torch.uint8)
    held = torch.ones(count, dtype=torch.bool)
    return Pictures(pixels, torch.tensor(native), list(captions), list(kinds), ["flickr8k"] * count, held)


class Tokenizer(SimpleNamespace):
    """One token a word."""

    model_max_length = 10

    def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
        return {"input_ids": [0] * len(text.split())}


def backbone(**methods: Any) -> Any:
    return SimpleNamespace(device=torch.device("cpu"), downscale=8, latent_channels=4, tokenizer=Tokenizer(), **methods)


def test_psnr_is_measured_by_kind_and_size() -> None:
    held_out = pictures(4, [256, 256, 64, 256], ["photo", "photo", "photo", "art"], [["a"]] * 4)
    held_out.pixels.clamp_(60, 190)
    # Each reconstruction is 0.1 brighter in [-1, 1]; in 8 bits that is 13 of 255 levels, whichever the picture.
    fake = backbone(encode=lambda pictures: pictures, decode=lambda latents: latents + 0.102)
    got = figures.autoencoder_figures(fake, held_out, lambda x, y: torch.full((len(x),), 0.25), per_group=1, batch=2)
    expected = 20 * torch.log10(torch.tensor(255 / 13)).item()
    assert got["photo"]["256 px"]["psnr"] == pytest.approx(expected, abs=0.01)
    assert (got["photo"]["256 px"]["pictures"], got["photo"]["256 px"]["held_out"]) == (1, 2)
    assert got["photo"]["enlarged"]["held_out"] == 1
    assert got["photo"]["all"]["lpips_vgg"] == 0.25
    assert "enlarged" not in got["art"]


def test_the_figure_of_a_kind_weights_its_groups_by_their_share() -> None:
    held_out = pictures(4, [256, 256, 256, 64], ["art"] * 4, [["a"]] * 4)
    sizes = iter([0.1, 0.1, 0.1, 0.5])  # originals of 256 px come first
    fake = backbone(encode=lambda pictures: pictures, decode=lambda latents: latents)
    got = figures.autoencoder_figures(fake, held_out, lambda x, y: torch.full((len(x),), next(sizes)), 3, batch=8)
    assert got["art"]["all"]["lpips_vgg"] == pytest.approx(0.75 * 0.1 + 0.25 * 0.5)


def retrieval(embedding: Tensor, of_caption: dict[str, Tensor], captions: list[list[str]]) -> figures.Figures:
    held_out = pictures(len(captions), [8] * len(captions), ["photo"] * len(captions), captions)
    order = iter(embedding.split(4))
    fake = backbone(
        embed_caption=lambda texts: torch.stack([of_caption[text] for text in texts]),
        embed_picture=lambda pictures: (next(order), None),
    )
    return figures.retrieval_figures(fake, held_out, group=10, batch=4)["flickr8k"]


def test_recall_is_1_for_perfect_embeddings_and_0_for_opposite_ones() -> None:
    captions = [[f"picture {i}"] for i in range(20)]
    embedding = torch.eye(20)
    right = retrieval(embedding, {f"picture {i}": embedding[i] for i in range(20)}, captions)
    assert right == {
        "captions": 20, "among": 10, "recall_at_1": 1, "recall_at_5": 1, "chance_at_1": 0.1, "chance_at_5": 0.5
    }  # fmt: skip
    wrong = retrieval(embedding, {f"picture {i}": -embedding[i] for i in range(20)}, captions)
    assert (wrong["recall_at_1"], wrong["recall_at_5"]) == (0, 0)


def test_a_picture_with_an_identical_caption_counts_as_found() -> None:
    captions = [["a beach"]] * 5 + [["a street"]] * 5
    embedding = torch.eye(10)
    # Every text points at the first picture of its caption only.
    got = retrieval(embedding, {"a beach": embedding[0], "a street": embedding[5]}, captions)
    assert got["recall_at_1"] == 1
    assert got["chance_at_1"] == 0.5
    # Five drawn without replacement miss all five of ten with probability 1 / C(10, 5).
    assert got["chance_at_5"] == pytest.approx(1 - 1 / 252, abs=1e-4)


def test_captions_are_cut_at_a_word_and_hold_no_placeholder() -> None:
    fake = backbone()
    assert figures.shorten_caption(fake, "one two [three]") == "one two (three)"
    assert figures.shorten_caption(fake, " ".join("abcdefghijkl")) == "a b c d e f g h"


def test_texts_are_compared_under_the_same_noise_whatever_the_batch() -> None:
    seen: list[Tensor] = []

    def predict_noise(noisy: Tensor, timestep: int, text: TextEmbedding) -> Tensor:
        seen.append(noisy)
        return noisy * 0 + text.tokens.mean((1, 2)).view(-1, 1, 1, 1)

    fake = backbone(predict_noise=predict_noise, alphas_cumprod=torch.linspace(1, 0, 1000))
    latents = torch.randn(6, 4, 8, 8)
    texts = {"zero": torch.zeros(1, 3, 2), "one": torch.ones(6, 3, 2)}
    whole = figures.compare_texts(fake, latents, texts, (100, 900), batch=6)
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])
    parts = figures.compare_texts(fake, latents, texts, (100, 900), batch=4)
    torch.testing.assert_close(parts, whole)
    # Predicting 0 leaves the noise's variance, predicting 1 adds 1.
    assert whole["zero"].mean().item() == pytest.approx(1, abs=0.1)
    assert (whole["one"] - whole["zero"]).mean().item() == pytest.approx(1, abs=0.1)
    assert figures._gain(whole["zero"], whole["one"])["pictures_better"] == 1


def test_generated_pictures_do_not_depend_on_the_batch_size(tiny_backbone: Backbone) -> None:
    with torch.no_grad():
        text = tiny_backbone.embed_text(["a dog", "a church", "a river"]).tokens
        one, three = (
            generation.generate(
                tiny_backbone, text, steps=2, guidance=3, generator=figures.cpu_generator(0), batch=size
            )
            for size in (1, 3)
        )
    torch.testing.assert_close(one, three, atol=1e-3, rtol=0)
    assert not torch.equal(one[0], one[1])


def test_the_weights_digest_is_the_hash_of_what_sha256sum_prints(tmp_path: Path) -> None:
    for name in ("vae/model.safetensors", "unet/model.safetensors", "unet/config.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    lines = [
        f"{hashlib.sha256(name.encode()).hexdigest()}  {name}\n"
        for name in ("unet/model.safetensors", "vae/model.safetensors")
    ]
    digest = figures.weights_digest(tmp_path)
    assert digest == hashlib.sha256("".join(lines).encode()).hexdigest()[:16]
    (tmp_path / "unet" / "config.json").write_text("something else")
    assert figures.weights_digest(tmp_path) == digest
    (tmp_path / "vae" / "model.safetensors").rename(tmp_path / "vae" / "other.safetensors")
    assert figures.weights_digest(tmp_path) != digest


def test_figures_that_need_a_second_picture_are_left_out_without_one(tiny_backbone: Backbone) -> None:
    for count, has in ((0, False), (1, False), (2, True)):
        kinds = ["photo"] * (3 - count) + ["art"] * count
        held_out = pictures(3, [64] * 3, kinds, [["a dog"]] * 3)
        with torch.no_grad():
            words = figures.pseudo_word_figures(tiny_backbone, held_out, count=8, batch=2)
            denoising = figures.denoising_figures(tiny_backbone, held_out.subset(range(count + 1)), count=8, batch=2)
        assert (words is not None) == has
        assert (denoising is not None) == (count + 1 >= 2)
    assert words is not None
    assert words["paintings"] == 2


@pytest.mark.parametrize(
    ("kinds", "rows"),
    [(["photo", "art", "art"], 2 + 2 + 3), (["photo", "art"], 2 + 2 + 2), (["photo"], 2 + 2), (["art", "art"], 2 + 3)],
)
def test_the_sheet_leaves_out_rows_without_pictures(
    kinds: list[str], rows: int, tiny_backbone: Backbone, tmp_path: Path
) -> None:
    held_out = pictures(len(kinds), [64] * len(kinds), kinds, [["a dog"]] * len(kinds))
    with torch.no_grad():
        draw_sheet(tiny_backbone, held_out, tmp_path / "sheet.png", replace(QUICK, steps=1, batch=12), True)
    with Image.open(tmp_path / "sheet.png") as page:
        assert page.size == (6 * (256 + 8) + 8, rows * (256 + LABEL_HEIGHT + 8) + 8)


def test_measure_writes_figures_and_sheet(
    shards: Path, tiny_backbone: Backbone, tiny_backbone_folder: Path, tmp_path: Path
) -> None:
    got = measure(shards, tiny_backbone, tiny_backbone_folder, tmp_path, budget=QUICK, lpips=LPIPS().eval())
    assert json.loads((tmp_path / "figures.json").read_text()) == json.loads(json.dumps(got))
    stages = ["autoencoder", "retrieval", "denoising", "pseudo_words", "sheet"]
    assert list(got)[-len(stages) :] == stages
    assert list(got["seconds"]) == stages
    assert got["held_out"] == 2
    assert got["weights"] == figures.weights_digest(tiny_backbone_folder)
    assert got["torch"] == torch.__version__
    assert got["device"].endswith("cpu, 1 threads")
    assert len(got["denoising"]["epsilon_mse"]["caption"]) == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figures.json", "sheet.png"]


def test_figures_measured_before_an_interrupt_are_kept(
    shards: Path,
    tiny_backbone: Backbone,
    tiny_backbone_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("measure.denoising_figures", interrupt)
    with pytest.raises(KeyboardInterrupt):
        measure(shards, tiny_backbone, tiny_backbone_folder, tmp_path, budget=QUICK, lpips=LPIPS().eval())
    written = json.loads((tmp_path / "figures.json").read_text())
    assert list(written["seconds"]) == ["autoencoder", "retrieval"]
    assert written["autoencoder"]
    assert written["retrieval"]


def test_frechet_distance_states_samples_and_reference(shards: Path, tiny_backbone: Backbone) -> None:
    with torch.no_grad():
        got = generation.frechet_figures(
            tiny_backbone, load_shards(shards), InceptionFID().eval(), samples=4, steps=1, guidance=2, batch=3
        )
    assert got["samples"] == 4
    assert got["reference"] == "the 2 held-out pictures at 256 px"
    assert "Inception port" in got["network"]
    assert got["distance"] >= 0


def test_a_missing_data_folder_is_reported_without_a_traceback(tiny_backbone_folder: Path, tmp_path: Path) -> None:
    script = Path(figures.__file__).with_name("measure.py")
    command = [sys.executable, script, "--data", tmp_path / "absent", "--backbone", tiny_backbone_folder, "--quick"]
    answer = subprocess.run([*command, "--out", tmp_path], capture_output=True, text=True, check=False)
    assert answer.returncode == 1
    assert "absent: no such folder" in answer.stderr
    assert "Traceback" not in answer.stderr
