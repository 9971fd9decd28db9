"""Operations with gradients on a CPU against PyTorch's own in double precision, and where they are used."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from inst import Backbone
from inst.backbone import gradients
from inst.backbone.gradients import Gradients, attention, convolve

own = F.scaled_dot_product_attention


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def with_gradients(function: Any, *inputs: Tensor) -> list[Tensor]:
    """The result of a function, and the gradients of its inputs."""
    leaves = [part.detach().clone().requires_grad_() for part in inputs]
    result = function(*leaves)
    return [result.detach(), *torch.autograd.grad(result, leaves, numbers(*result.shape, seed=9).to(result.dtype))]


def assert_close(found: list[Tensor], exact: list[Tensor]) -> None:
    for one, other in zip(found, exact, strict=True):
        assert one.shape == other.shape
        assert float((one.double() - other).norm() / other.norm()) < 0.01


@pytest.mark.parametrize("shape", [(2, 3, 70, 53, 16), (1, 2, 40, 48, 64)])
@pytest.mark.parametrize("options", [{}, {"scale": 0.3}, {"is_causal": True}])
def test_attention_has_the_result_and_the_gradients_of_double_precision(
    shape: tuple[int, ...], options: dict[str, Any]
) -> None:
    batch, heads, positions, others, width = shape
    others = positions if "is_causal" in options else others
    given = [numbers(batch, n, heads, width, seed=i).transpose(1, 2) for i, n in enumerate((positions, others, others))]
    exact = with_gradients(lambda *parts: own(*parts, **options), *(part.double() for part in given))
    scale, causal = options.get("scale"), bool(options.get("is_causal"))
    assert_close(with_gradients(lambda q, k, v: attention(q, k, v, scale, causal=causal), *given), exact)
    with Gradients():
        assert_close(with_gradients(lambda *parts: own(*parts, **options), *given), exact)


def test_a_convolution_of_one_pixel_has_the_result_and_the_gradients_of_double_precision() -> None:
    x, weight, bias = numbers(2, 24, 5, 7), numbers(40, 24, 1, 1, seed=1), numbers(40, seed=2)
    exact = with_gradients(F.conv2d, x.double(), weight.double(), bias.double())
    assert_close(with_gradients(convolve, x, weight, bias), exact)


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the operations that were computed here and not by PyTorch."""
    names: list[str] = []

    def spy(name: str) -> None:
        function = getattr(gradients, name)

        def record(*args: Any, **more: Any) -> Tensor:
            names.append(name)
            result: Tensor = function(*args, **more)
            return result

        monkeypatch.setattr(gradients, name, record)

    spy("attention")
    spy("convolve")
    return names


def test_other_calls_are_those_of_pytorch(used: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    query, mask = numbers(1, 2, 16, 8).requires_grad_(), numbers(16, 16)
    x, one, three = numbers(1, 16, 4, 4).requires_grad_(), numbers(16, 16, 1, 1), numbers(16, 16, 3, 3)
    bias = numbers(16)
    with Gradients():
        own(query, query, query, attn_mask=mask)
        own(query.float(), query.float(), query.float())
        own(query[0], query[0], query[0])
        F.conv2d(x, three, bias)
        F.conv2d(x, one, bias, 2)
        F.conv2d(x, one)
        F.conv2d(x.detach(), one, bias)
        with torch.no_grad():
            own(query, query, query)
            F.conv2d(x, one, bias)
        monkeypatch.setattr(gradients, "_LARGEST", 2 * 16 * 16 - 1)  # more weights would need too much memory
        own(query, query, query)
        assert used == []
        monkeypatch.setattr(gradients, "_LARGEST", 2 * 16 * 16)
        own(query, query, query)
        F.conv2d(x, one, bias)
    assert used == ["attention", "convolve"]


def gradient(backbone: Backbone) -> Tensor:
    """The gradient of a word's vectors through text encoder and UNet."""
    word = (0.1 * numbers(3, backbone.text_width).float()).requires_grad_()
    text = backbone.embed_text(["a painting in the style of [C]"] * 2, {"[C]": word})
    predicted = backbone.predict_noise(numbers(2, backbone.latent_channels, 16, 16).float(), 500, text)
    return torch.autograd.grad(predicted.square().mean(), word)[0]


def test_the_gradient_of_a_word_is_the_same_up_to_rounding(
    tiny_backbone_folder: Path, used: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = gradient(Backbone.load(tiny_backbone_folder, "cpu", "float32"))
    assert used == []
    errors = []
    for useful in (False, True):
        monkeypatch.setattr(gradients, "is_useful", lambda useful=useful: useful)
        found = gradient(Backbone.load(tiny_backbone_folder, "cpu", "bfloat16"))
        assert set(used) == ({"attention", "convolve"} if useful else set())
        errors.append(float((found - exact).norm() / exact.norm()))
    assert errors[1] < 1.5 * errors[0] + 0.005


def test_with_low_memory_the_unet_keeps_the_operations_of_pytorch(
    tiny_backbone_folder: Path, used: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its activations are computed again outside of the block, where they must be the same."""
    monkeypatch.setattr(gradients, "is_useful", lambda: True)
    gradient(Backbone.load(tiny_backbone_folder, "cpu", "bfloat16", low_memory=True))
    assert "convolve" not in used
