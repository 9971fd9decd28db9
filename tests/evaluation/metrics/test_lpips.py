from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view
from safetensors.torch import load_file, save_file
from torch import Tensor

from inst.errors import InstError
from inst.evaluation.metrics.lpips import LPIPS
from inst.evaluation.networks.vgg import VGG16Features

Network = Callable[[np.ndarray, dict[str, np.ndarray]], Iterator[np.ndarray]]


def make_random(net: str) -> LPIPS:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LPIPS(net)
        for head in model.heads:
            head.data.uniform_(0, 1)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def random_lpips() -> LPIPS:
    return make_random("vgg")


def convolve(z: np.ndarray, weights: dict[str, np.ndarray], layer: int, stride: int, padding: int) -> np.ndarray:
    kernel = weights[f"features.{layer}.weight"]
    padded = np.pad(z, ((0, 0), (padding, padding), (padding, padding)))
    windows = sliding_window_view(padded, kernel.shape[2:], axis=(1, 2))[:, ::stride, ::stride]
    made = np.einsum("ihwyx,oiyx->ohw", windows, kernel, optimize=True)
    return np.maximum(made + weights[f"features.{layer}.bias"][:, None, None], 0)


def vgg(z: np.ndarray, weights: dict[str, np.ndarray]) -> Iterator[np.ndarray]:
    layer = 0
    for convolutions in (2, 2, 3, 3, 3):
        for _ in range(convolutions):
            z = convolve(z, weights, layer, 1, 1)
            layer += 2
        yield z
        height, width = z.shape[1] // 2, z.shape[2] // 2
        z = z[:, : 2 * height, : 2 * width].reshape(-1, height, 2, width, 2).max((2, 4))
        layer += 1


def alex(z: np.ndarray, weights: dict[str, np.ndarray]) -> Iterator[np.ndarray]:
    for layer, stride, padding, pooled in ((0, 4, 2, True), (3, 1, 2, True), (6, 1, 1, False), (8, 1, 1, False)):
        z = convolve(z, weights, layer, stride, padding)
        yield z
        if pooled:
            z = sliding_window_view(z, (3, 3), axis=(1, 2))[:, ::2, ::2].max((3, 4))
    yield convolve(z, weights, 10, 1, 1)


def numpy_lpips(weights: dict[str, np.ndarray], x: np.ndarray, y: np.ndarray, network: Network = vgg) -> float:
    """Eq. 1 of the paper written out for one pair of pictures [3, H, W], in float64 and without torch."""

    def features(picture: np.ndarray) -> Iterator[np.ndarray]:
        shift, scale = np.array([-0.030, -0.088, -0.188]), np.array([0.458, 0.448, 0.450])
        for z in network((picture - shift[:, None, None]) / scale[:, None, None], weights):
            yield z / (np.sqrt((z**2).sum(0)) + 1e-10)

    return sum(
        float(np.einsum("c,chw->hw", weights[f"lin{k}"], (a - b) ** 2).mean())
        for k, (a, b) in enumerate(zip(features(x), features(y), strict=True))
    )


def weights_of(model: LPIPS) -> dict[str, np.ndarray]:
    weights = {name.removeprefix("network."): value.double().numpy() for name, value in model.state_dict().items()}
    return weights | {f"lin{k}": weights[f"heads.{k}"] for k in range(5)}


@pytest.mark.parametrize(("net", "network"), [("vgg", vgg), ("alex", alex)])
def test_lpips_equals_the_papers_formula(net: str, network: Network) -> None:
    model = make_random(net)
    x, y = torch.rand(2, 2, 3, 40, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    expected = [
        numpy_lpips(weights_of(model), a.double().numpy(), b.double().numpy(), network)
        for a, b in zip(x, y, strict=True)
    ]
    np.testing.assert_allclose(model(x, y).numpy(), expected, rtol=1e-4)


def test_equal_pictures_are_at_distance_zero(random_lpips: LPIPS) -> None:
    x = torch.rand(3, 3, 32, 32) * 2 - 1
    assert random_lpips(x, x).tolist() == [0, 0, 0]


def test_gradients_reach_the_picture_and_are_finite_on_flat_regions(random_lpips: LPIPS) -> None:
    zeros = LPIPS()  # no weights at all: every feature is 0, where the length of a vector has no derivative
    for parameter in zeros.network.parameters():
        torch.nn.init.zeros_(parameter)
    for model in (random_lpips, zeros.requires_grad_(False)):
        x = torch.full((1, 3, 32, 32), -1.0, requires_grad=True)
        model(x, torch.rand(1, 3, 32, 32)).sum().backward()
        assert x.grad is not None
        assert x.grad.isfinite().all()
    assert not any(parameter.requires_grad for parameter in random_lpips.parameters())


def test_reduced_precision_and_memory_layout_change_the_distance_only_a_little(random_lpips: LPIPS) -> None:
    x, y = torch.rand(2, 2, 3, 64, 64, generator=torch.Generator().manual_seed(2)) * 2 - 1
    exact = random_lpips(x, y)
    torch.testing.assert_close(random_lpips(x.to(memory_format=torch.channels_last), y), exact)
    with torch.autocast("cpu", torch.bfloat16):
        reduced = random_lpips(x, y)
    assert reduced.dtype == torch.float32
    torch.testing.assert_close(reduced, exact, rtol=0.05, atol=0)


def test_load_takes_any_precision_and_refuses_other_files(random_lpips: LPIPS, tmp_path: Path) -> None:
    tensors = {name.removeprefix("network."): tensor for name, tensor in random_lpips.state_dict().items()}
    tensors = {name.replace("heads.", "lin"): tensor.half() for name, tensor in tensors.items()}
    save_file(tensors, tmp_path / "half.safetensors")
    model = LPIPS.load(tmp_path / "half.safetensors")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    x, y = torch.rand(2, 1, 3, 32, 32) * 2 - 1
    torch.testing.assert_close(model(x, y), random_lpips(x, y), rtol=0.01, atol=0)
    assert VGG16Features.load(tmp_path / "half.safetensors")(x)[-1].shape == (1, 512, 2, 2)

    save_file({"features.0.weight": torch.ones(1)}, tmp_path / "other.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"not one")
    for name in ("other.safetensors", "broken.safetensors", "absent.safetensors"):
        with pytest.raises(InstError, match=name):
            LPIPS.load(tmp_path / name)


@pytest.mark.parametrize(
    ("net", "network", "widths"), [("vgg", vgg, [64, 128, 256, 512, 512]), ("alex", alex, [64, 192, 384, 256, 256])]
)
def test_with_the_authors_weights_lpips_equals_the_formula_and_grows_with_noise(
    weights_file: Callable[[str], Path],
    waves: Callable[[int], Tensor],
    net: str,
    network: Network,
    widths: list[int],
) -> None:
    path = weights_file("vgg16-lpips" if net == "vgg" else "alexnet-lpips")
    tensors = load_file(path)
    heads = [tensors[f"lin{k}"] for k in range(5)]
    assert [len(head) for head in heads] == widths
    assert all((head >= 0).all() for head in heads)  # the authors keep them so in training

    model = LPIPS.load(path, net)
    x = waves(64)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
    weights = {name: tensor.double().numpy() for name, tensor in tensors.items()}
    expected = numpy_lpips(weights, x[0].double().numpy(), (x + 0.1 * noise)[0].double().numpy(), network)
    assert model(x, x + 0.1 * noise).item() == pytest.approx(expected, rel=1e-3)
    distances = [model(x, x + level * noise).item() for level in (0, 0.02, 0.1, 0.4)]
    assert distances == sorted(distances)
    assert distances[0] == 0


def test_an_unknown_network_name_is_refused() -> None:
    with pytest.raises(ValueError, match="not 'squeeze'"):
        LPIPS("squeeze")  # type: ignore[arg-type]
