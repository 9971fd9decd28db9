"""Photos repainted in training: the calls of the denoiser, what has a gradient, and the average of two runs."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import average
import stylise
import unet as stage
from captions import CaptionBank
from data import load_shards
from encoders import Encoders
from inst.backbone.inversion import AttentionInversion
from inst.errors import InstError, UsageError
from inst.evaluation.metrics.lpips import LPIPS
from mini_stages import SMALL, unet_arguments
from reference import read_reference
from tokenizer import load_matching
from unet import UNet2DConditionModel, schedule


class Calls(torch.nn.Module):
    """Keeps the inputs and outputs of the denoiser's calls."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.unet, self.seen = unet, list[tuple[Tensor, Tensor, Tensor, Tensor]]()

    def forward(self, rows: Tensor, t: Tensor, text: Tensor) -> Any:
        v = self.unet(rows, t, text).sample
        self.seen.append((rows, t, text, v))
        return SimpleNamespace(sample=v)


@pytest.fixture
def job(runs: Path, shards: Path, random_vgg: Path) -> stylise.Stylisation:
    torch.manual_seed(0)
    tokenizer = load_matching(runs / "pair", runs / "tokenizer")
    frozen = Encoders(runs / "autoencoder" / "vae", runs / "pair", torch.device("cpu"))
    unet = UNet2DConditionModel.from_pretrained(runs / "unet" / "unet").train()
    words, empty = (CaptionBank([[text]], tokenizer, "cpu", vectors=2, variants=1, form=list) for text in ("[C]", ""))
    return stylise.Stylisation(
        frozen=frozen,
        unet=Calls(unet),  # type: ignore[arg-type]
        inversion=AttentionInversion.from_pretrained(runs / "unet" / "inversion"),
        reference=read_reference(unet, "both", "up"),
        perceptual=LPIPS.load(random_vgg).requires_grad_(False),
        pictures=load_shards(shards, only="train"),
        word_prompt=(words.ids, words.slots),
        empty_prompt=(empty.ids, empty.slots),
        abar=schedule().alphas_cumprod,
        gram_weight=2.0,
        local_weight=3.0,
    )


def test_the_calls_are_those_of_a_transfer(job: stylise.Stylisation, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stochastic inversion, then two guided calls whose latents follow from each other by DDIM."""
    monkeypatch.setattr(stylise, "GUIDANCE", (3.0, 3.0))
    monkeypatch.setattr(stylise, "FIRST_SHARE", 0.0)
    decoded: list[Tensor] = []
    decode = job.frozen.vae.decode
    monkeypatch.setattr(job.frozen.vae, "decode", lambda z: (decoded.append(z), decode(z))[1])
    job.loss(2, torch.Generator().manual_seed(1))
    calls = job.unet.seen  # type: ignore[attr-defined]
    assert [len(rows) for rows, *_ in calls] == [2, 8, 8]
    abar = job.abar

    def levels(t: Tensor) -> tuple[Tensor, Tensor]:
        return abar[t].sqrt().view(-1, 1, 1, 1), (1 - abar[t]).sqrt().view(-1, 1, 1, 1)

    (noisy, start, word, v), *guided = calls
    noise, latents = [], []
    for rows, t, text, out in guided:
        photos, paintings = rows[:4], rows[4:]
        assert torch.equal(photos[::2], photos[1::2])
        assert torch.equal(paintings[::2], paintings[1::2])
        assert torch.equal(t, torch.stack([t[0], t[0], t[2], t[2]]).repeat(2))
        assert torch.equal(text[0:4:2], word)
        assert torch.equal(text[4:], word.repeat_interleave(2, 0))
        assert torch.equal(text[1], text[3])
        assert not torch.allclose(text[0], text[1])
        signal, sigma = levels(t[0:4:2])
        v = out[1:4:2] + 3 * (out[0:4:2] - out[1:4:2])
        latents.append((signal * photos[::2] - sigma * v, sigma * photos[::2] + signal * v, photos[::2], t[0:4:2]))
        noise.append((paintings[::2], signal, sigma))
    # The painting has one noise at both levels: two equations for its clean latents and the noise.
    (x, a, b), (y, c, d) = noise
    solved = (d * x - b * y) / (a * d - b * c), (a * y - c * x) / (a * d - b * c)
    assert float(solved[1].std()) == pytest.approx(1, abs=0.15)
    (clean, eps, at_start, t_start), (final, _, at_t, t) = latents
    assert torch.equal(t_start, start)
    assert bool((t <= start).all())
    signal, sigma = levels(t)
    torch.testing.assert_close(at_t, signal * clean + sigma * eps, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(decoded[0], final / job.frozen.vae.config.scaling_factor, rtol=1e-4, atol=1e-4)
    # noisy = a z + b e and start = a z + b e', where e' is the noise that the model predicts for noisy.
    signal, sigma = levels(start)
    predicted = sigma * noisy + signal * calls[0][3]
    z = (at_start - sigma * predicted) / signal
    drawn = (noisy - signal * z) / sigma
    assert float(drawn.std()) == pytest.approx(1, abs=0.15)


def test_the_trained_parts_have_a_gradient_and_the_frozen_ones_have_none(job: stylise.Stylisation) -> None:
    loss, values = job.loss(4, torch.Generator().manual_seed(0))
    torch.testing.assert_close(loss, values["lpips"] + 2 * values["gram"] + 3 * values["local"])
    loss.backward()
    for part in (job.unet, job.inversion):
        assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in part.parameters())
    assert all(p.grad is None for part in (job.frozen, job.perceptual) for p in part.parameters())


def test_textures_are_compared_cell_by_cell() -> None:
    """By hand: the covariances of 9 cells of 2 x 2 places, against the mean of those of the painting."""
    made, painting = torch.rand(2, 2, 3, 7, 6, generator=torch.Generator().manual_seed(0))  # one row is left over

    def covariances(features: Tensor) -> list[Tensor]:
        places = [(i, j) for i in range(0, 6, 2) for j in range(0, 6, 2)]
        return [torch.cov(features[:, i : i + 2, j : j + 2].flatten(1), correction=0) for i, j in places]

    expected = []
    for x, y in zip(made, painting, strict=True):
        target = sum(covariances(y)) / 9
        expected.append(sum(torch.dist(cell, target) for cell in covariances(x)) / 9 / target.norm())
    found = stylise.local_distance([made, made], [painting, painting])
    torch.testing.assert_close(found, torch.stack(expected))


def test_the_stage_learns_from_pairs_and_says_what_they_need(
    runs: Path, shards: Path, random_vgg: Path, tmp_path: Path
) -> None:
    given = [*unet_arguments(shards, runs), "--perceptual", str(random_vgg), "--out", str(tmp_path)]
    given += ["--style-pairs", "2"]
    with pytest.raises(UsageError, match="--style-pairs needs a denoiser that reads a reference"):
        stage.main([*given, *SMALL, "1"])
    stage.main([*given, "--reference", "both", *SMALL, "1"])
    (row,) = map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())
    assert row["lpips"] > 0
    assert row["gram"] > 0


def test_pairs_need_photos_and_art(job: stylise.Stylisation) -> None:
    only_art = job.pictures.subset([i for i, kind in enumerate(job.pictures.kinds) if kind == "art"])
    with pytest.raises(InstError, match="needs photos and paintings"):
        stylise.Stylisation(**{**vars_of(job), "pictures": only_art})


def vars_of(job: stylise.Stylisation) -> dict[str, Any]:
    return {name: getattr(job, name) for name in stylise.Stylisation.__dataclass_fields__}


def run_with(folder: Path, value: float, name: str = "weight") -> Path:
    for part, file in (("unet", "diffusion_pytorch_model"), ("inversion", "model")):
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text(part)
        save_file({name: torch.full((2,), value)}, folder / part / f"{file}.safetensors")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text("{}")
    return folder


def test_an_average_of_two_runs(tmp_path: Path) -> None:
    first, second = run_with(tmp_path / "a", 1.0), run_with(tmp_path / "b", 5.0)
    given = ["--first", str(first), "--second", str(second), "--out", str(tmp_path / "c")]
    average.main([*given, "--share", "0.25"])
    for part, file in (("unet", "diffusion_pytorch_model"), ("inversion", "model")):
        assert load_file(tmp_path / "c" / part / f"{file}.safetensors")["weight"].tolist() == [2.0, 2.0]
        assert (tmp_path / "c" / part / "config.json").read_text() == part
    assert (tmp_path / "c" / "scheduler" / "scheduler_config.json").is_file()


def test_runs_of_different_models_have_no_average(tmp_path: Path) -> None:
    first, second = run_with(tmp_path / "a", 1.0), run_with(tmp_path / "b", 5.0, "another")
    with pytest.raises(InstError, match="has other layers"):
        average.average(first, second, 0.5, tmp_path / "c")
    with pytest.raises(InstError, match="no such folder"):
        average.average(first, tmp_path / "absent", 0.5, tmp_path / "c")
    assert not (tmp_path / "c").exists()
