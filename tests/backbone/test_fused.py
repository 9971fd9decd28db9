"""Fused layers: the mode on the CPU with kernels written in PyTorch, and Triton's kernels in its interpreter."""

import copy
import importlib.util
import os
from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import inst
from inst.backbone import fused
from inst.backbone.fused import Fused

_RUNS_TRITON = torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1"
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or not _RUNS_TRITON,
    reason="needs Triton, and a GPU or TRITON_INTERPRET=1 in the environment",
)


class PlainKernels:
    """The functions of `inst.backbone.kernels`, by PyTorch's own operations and derivatives. It counts the calls."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()

    def group_norm(self, x: Tensor, groups: int, w: Tensor, b: Tensor, eps: float, silu: bool, out: Tensor) -> Tensor:
        self.calls["group_norm and silu" if silu else "group_norm"] += 1
        normal = F.group_norm(x, groups, w, b, eps)
        out.copy_(F.silu(normal) if silu else normal)
        return torch.tensor([groups, eps])

    def group_norm_backward(self, x: Tensor, dy: Tensor, w: Tensor, b: Tensor, stats: Tensor, silu: bool) -> Tensor:
        def forward(x: Tensor) -> Tensor:
            normal = F.group_norm(x, int(stats[0]), w, b, float(stats[1]))
            return F.silu(normal) if silu else normal

        return torch.autograd.functional.vjp(forward, x, dy)[1]

    def layer_norm(self, x: Tensor, w: Tensor, b: Tensor, eps: float) -> Tensor:
        self.calls["layer_norm"] += 1
        return F.layer_norm(x, w.shape, w, b, eps)

    def layer_norm_backward(self, x: Tensor, dy: Tensor, w: Tensor, eps: float) -> Tensor:
        return torch.autograd.functional.vjp(lambda x: F.layer_norm(x, w.shape, w, None, eps), x, dy)[1]

    def geglu(self, hidden: Tensor, gate: Tensor) -> Tensor:
        self.calls["geglu"] += 1
        return hidden * F.gelu(gate)

    def geglu_backward(self, hidden: Tensor, gate: Tensor, dy: Tensor) -> Any:
        return torch.autograd.functional.vjp(lambda h, g: h * F.gelu(g), (hidden, gate), dy)[1]


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> PlainKernels:
    kernels = PlainKernels()
    monkeypatch.setattr(fused, "kernels", lambda: kernels)
    return kernels


@pytest.fixture(params=["plain", pytest.param("triton", marks=needs_triton)])
def kernels(request: pytest.FixtureRequest) -> None:
    if request.param == "plain":
        request.getfixturevalue("plain")


def channels_last(*shape: int, seed: int = 0) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 2 + 1
    return x.movedim(1, -1).contiguous().movedim(-1, 1).requires_grad_()


def check(function: Any, x: Tensor) -> Tensor:
    """Check that a function and its gradient are the same inside of the mode; return the result."""
    expected = function(x)
    dy = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad(expected, x, dy)
    with Fused():
        found: Tensor = function(x)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(torch.autograd.grad(found, x, dy)[0], gradient, atol=2e-5, rtol=1e-4)
    return found


@pytest.mark.parametrize("shape", [(2, 20, 5, 7), (1, 96, 16, 9), (2, 64, 17), (1, 8, 1, 3)])
@pytest.mark.parametrize("after", ["silu", "nothing", "shape", "residual"])
def test_group_normalisation(kernels: None, shape: tuple[int, ...], after: str) -> None:
    weight, bias = torch.randn(shape[1]), torch.randn(shape[1])

    def function(x: Tensor) -> Tensor:
        normal = F.group_norm(x, 4, weight, bias, 1e-5)
        if after == "silu":
            return F.silu(normal)
        if after == "shape":
            return normal.reshape(normal.shape) * normal.shape[1]
        return x + normal if after == "residual" else normal

    assert check(function, channels_last(*shape)).movedim(1, -1).is_contiguous()


def test_a_normalisation_that_is_used_twice_is_not_changed_by_the_activation(kernels: None) -> None:
    """The next operation is the SiLU, so the normal values themselves are gone: no layer of diffusers needs them."""
    weight, bias = torch.ones(8), torch.zeros(8)

    def function(x: Tensor) -> Tensor:
        normal = F.group_norm(x, 2, weight, bias, 1e-5)
        return F.silu(normal + 0) + normal

    check(function, channels_last(1, 8, 4, 4))


@pytest.mark.parametrize("shape", [(3, 5, 70), (7, 320), (2, 1, 33)])
def test_layer_normalisation(kernels: None, shape: tuple[int, ...]) -> None:
    weight, bias = torch.randn(shape[-1]), torch.randn(shape[-1])
    check(lambda x: F.layer_norm(x, shape[-1:], weight, bias, 1e-5), torch.randn(shape, requires_grad=True))


@pytest.mark.parametrize("use", ["product", "swapped", "alone", "other"])
def test_the_product_with_a_gelu(kernels: None, use: str) -> None:
    def function(x: Tensor) -> Tensor:
        hidden, gate = x.chunk(2, dim=-1)
        gelu = F.gelu(gate)
        match use:
            case "product":
                return hidden * gelu
            case "swapped":
                return gelu * hidden
            case "other":
                return gelu + hidden
        return gelu

    check(function, torch.randn(3, 5, 140, requires_grad=True))


def test_a_convolution_of_one_pixel(plain: PlainKernels) -> None:
    for options in ({}, {"stride": 2}, {"groups": 2}, {"padding": 1}):
        layer = torch.nn.Conv2d(8, 6, 1, **options).requires_grad_(False)
        check(layer, channels_last(2, 8, 4, 6))


def test_copies_to_the_plain_layout_are_left_out(plain: PlainKernels) -> None:
    x = channels_last(1, 8, 4, 4)
    with Fused():
        assert x.contiguous() is x
        assert x.contiguous(memory_format=torch.channels_last) is x
        other = x.transpose(2, 3)
        assert other.contiguous().is_contiguous()
    assert x.contiguous() is not x


def test_weights_that_learn_are_left_to_pytorch(plain: PlainKernels) -> None:
    norm = torch.nn.GroupNorm(2, 8)
    with Fused():
        norm(channels_last(1, 8, 4, 4)).sum().backward()
        torch.nn.LayerNorm(8)(torch.randn(2, 8)).sum().backward()
    assert norm.weight.grad is not None
    assert not plain.calls


def test_every_normalisation_and_activation_of_the_models_is_fused(
    plain: PlainKernels, tiny_backbone: inst.Backbone
) -> None:
    unet = copy.deepcopy(tiny_backbone.unet).to(memory_format=torch.channels_last)
    text = torch.randn(2, 7, unet.config["cross_attention_dim"], requires_grad=True)
    latents = torch.randn(2, unet.config["in_channels"], 8, 8)
    check(lambda text: unet(latents, torch.tensor([3, 500]), encoder_hidden_states=text).sample, text)
    norms = Counter(type(module).__name__ for module in unet.modules())
    found = plain.calls
    assert found["group_norm and silu"] + found["group_norm"] == norms["GroupNorm"]
    assert found["group_norm and silu"] == 2 * norms["ResnetBlock2D"] + 1
    assert found["layer_norm"] == norms["LayerNorm"]
    assert found["geglu"] == norms["GEGLU"] > 0

    plain.calls.clear()
    vae = copy.deepcopy(tiny_backbone.vae).to(memory_format=torch.channels_last)
    pictures = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        expected = vae.decode(vae.encode(pictures).latent_dist.mean).sample
        with Fused():
            found_picture = vae.decode(vae.encode(pictures).latent_dist.mean).sample
    torch.testing.assert_close(found_picture, expected, atol=1e-4, rtol=1e-3)
    assert sum(plain.calls.values()) == Counter(type(module).__name__ for module in vae.modules())["GroupNorm"]
