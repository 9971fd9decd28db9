"""The baselines: shapes and identities that hold whatever the weights, and that they do what they are for."""

import dataclasses
from pathlib import Path

import pytest
import torch

from inst.errors import UsageError
from inst.evaluation.methods.adain import AdaIN, AdaINDecoder
from inst.evaluation.methods.gatys import Gatys
from inst.evaluation.metrics.gram import gram_matrix
from inst.evaluation.networks.vgg import VGG19Features
from inst.pictures.reading import Photo


@pytest.fixture(scope="module")
def network() -> VGG19Features:
    torch.manual_seed(0)
    return VGG19Features().eval().requires_grad_(False)


@pytest.fixture(scope="module")
def decoder() -> AdaINDecoder:
    torch.manual_seed(1)
    return AdaINDecoder().eval().requires_grad_(False)


def photo(seed: int, height: int = 48, width: int = 64) -> Photo:
    return Photo(torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1)


def quiet(step: int, total: int) -> None:
    pass


def test_the_decoder_mirrors_the_encoder(network: VGG19Features, decoder: AdaINDecoder) -> None:
    picture = photo(0).picture[None]
    assert decoder(network(picture)[3]).shape == picture.shape
    own, mirrored = dict(network.named_modules()), dict(decoder.named_modules())
    for name in ("conv4_1", "conv3_4", "conv3_1", "conv2_1", "conv1_2"):
        assert (own[name].in_channels, own[name].out_channels) == (
            mirrored[name].out_channels,
            mirrored[name].in_channels,
        )


def test_adain_gives_the_features_the_paintings_statistics(
    network: VGG19Features, decoder: AdaINDecoder, tmp_path: Path
) -> None:
    seen: list[torch.Tensor] = []

    class Keep(AdaINDecoder):
        def forward(self, features: torch.Tensor) -> torch.Tensor:
            seen.append(features)
            return super().forward(features)

    method = AdaIN(network, Keep(), size=48)
    painting = photo(3, 48, 48)
    method.start(painting, tmp_path, quiet)(photo(2))
    target = network(painting.picture[None])[3]
    assert torch.allclose(seen[0].mean((2, 3)), target.mean((2, 3)), atol=1e-4)
    assert torch.allclose(seen[0].std((2, 3)), target.std((2, 3)), atol=1e-2)


def test_adain_with_an_alpha_of_0_only_encodes_and_decodes_the_photo(
    network: VGG19Features, decoder: AdaINDecoder, tmp_path: Path
) -> None:
    method = AdaIN(network, decoder, size=48, alpha=0)
    result = method.start(photo(3), tmp_path, quiet)(photo(2)).picture
    assert torch.allclose(result, decoder(network(photo(2).picture[None])[3])[0], atol=1e-6)
    with pytest.raises(UsageError, match=r"alpha of 1\.5"):
        dataclasses.replace(method, alpha=1.5)


@pytest.mark.parametrize(("height", "width"), [(50, 61), (64, 40)])
def test_results_have_the_photos_proportions(
    network: VGG19Features, decoder: AdaINDecoder, tmp_path: Path, height: int, width: int
) -> None:
    for method in (AdaIN(network, decoder, size=40), Gatys(network, size=40, steps=1)):
        made = method.start(photo(3), tmp_path, quiet)(photo(1, height, width)).picture
        assert min(made.shape[1:]) == 40
        assert made.shape[2] / made.shape[1] == pytest.approx(width / height, rel=0.03)
        assert made.abs().max() <= 1


def test_gatys_moves_textures_toward_the_painting_and_at_weight_0_keeps_the_photo(
    network: VGG19Features, tmp_path: Path
) -> None:
    painting, content = photo(3, 32, 32), Photo(photo(2, 32, 32).picture * 0.2)

    def distance(picture: torch.Tensor) -> float:
        pairs = zip(network(picture[None]), network(painting.picture[None]), strict=True)
        return sum(((gram_matrix(x) - gram_matrix(y)).norm() / gram_matrix(y).norm()).item() for x, y in pairs)

    def run(weight: float) -> torch.Tensor:
        method = Gatys(network, size=32, steps=15, style_weight=weight)
        return method.start(painting, tmp_path, quiet)(content).picture

    told: list[tuple[int, int]] = []
    repaint = Gatys(network, size=32, steps=6).start(painting, tmp_path, lambda step, total: told.append((step, total)))
    assert told == []
    for count in (1, 2):
        repaint(content)
        assert told[:2] == [(1, 6), (2, 6)]
        assert told[-1] == (6, 6)  # the last one may be told of more than once
        assert sorted(set(told)) == [(step, 6) for step in range(1, 7)]
        assert told.count((1, 6)) == count
    assert distance(run(100.0)) < 0.5 * distance(content.picture)
    assert torch.allclose(run(0.0), content.picture, atol=1e-6)
    with pytest.raises(UsageError, match="style weight of -1"):
        Gatys(network, style_weight=-1)
