"""Attention in blocks of queries against PyTorch's own in double precision, and where it is used."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from inst import Backbone
from inst.backbone import blockwise
from inst.backbone.blockwise import Blockwise, attention, is_useful

own = F.scaled_dot_product_attention


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def relative_error(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("shape", [(2, 3, 700, 530, 16), (1, 2, 512, 1100, 48), (1, 1, 1, 5, 8)])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_blocks_give_the_attention_of_double_precision(shape: tuple[int, ...], scale: float | None) -> None:
    batch, heads, positions, others, width = shape
    query, key, value = (
        numbers(batch, n, heads, width, seed=n).transpose(1, 2) for n in (positions, others, others + 1)
    )
    value = value[:, :, :others]
    exact = own(query.double(), key.double(), value.double(), scale=scale)
    torch.testing.assert_close(attention(query, key, value, scale), exact.float(), rtol=1e-4, atol=1e-5)
    halves = [part.bfloat16() for part in (query, key, value)]
    exact = own(*(half.double() for half in halves), scale=scale)
    assert relative_error(attention(*halves, scale), exact) < 0.015


def test_one_key_for_all_photos_may_be_expanded() -> None:
    query, key = numbers(3, 2, 600, 16).bfloat16(), numbers(1, 2, 600, 16, seed=1).bfloat16().expand(3, -1, -1, -1)
    exact = own(query.double(), key.double(), key.double())
    assert relative_error(attention(query, key, key), exact) < 0.015


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The queries that were computed in blocks."""
    queries: list[torch.Tensor] = []

    def spy(query: torch.Tensor, *rest: Any, **more: Any) -> torch.Tensor:
        queries.append(query)
        return attention(query, *rest, **more)

    monkeypatch.setattr(blockwise, "attention", spy)
    return queries


def call(query: torch.Tensor, **options: Any) -> torch.Tensor:
    with Blockwise(), torch.no_grad():
        return F.scaled_dot_product_attention(query, query, query, **options)


def test_long_sequences_in_bfloat16_are_computed_in_blocks(used: list[torch.Tensor]) -> None:
    query = numbers(1, 2, 2048, 8).bfloat16()
    call(query, attn_mask=None, dropout_p=0.0, is_causal=False)
    assert len(used) == 1
    exact = own(query.double(), query.double(), query.double(), scale=2 / math.sqrt(8))
    assert relative_error(call(query, scale=2 / math.sqrt(8)), exact) < 0.015


def test_other_calls_are_those_of_pytorch(used: list[torch.Tensor]) -> None:
    query = numbers(1, 2, 2048, 8).bfloat16()
    mask = torch.zeros(2048, 2048).bfloat16()
    mask[:, 7] = -1
    for given, options in (
        (query.float(), {}),
        (query[:, :, :2047], {}),
        (query, {"is_causal": True}),
        (query, {"attn_mask": mask}),
    ):
        assert torch.equal(call(given, **options), own(given, given, given, **options))
    leaf = query.clone().requires_grad_()
    with Blockwise():
        F.scaled_dot_product_attention(leaf, leaf, leaf).sum().backward()
    assert leaf.grad is not None
    wide = numbers(1, 2, 2048, 16).bfloat16()
    for given in ((query, query, wide), (query[0], query[0], query[0]), (query[:, 0], query[:, 0], query[:, 0])):
        with Blockwise(), torch.no_grad():
            assert torch.equal(F.scaled_dot_product_attention(*given), own(*given))
    assert used == []


@pytest.mark.parametrize(
    ("capabilities", "useful"),
    [
        ({"amx_bf16": False, "num_physical_cores": 2}, True),
        ({"amx_bf16": False, "num_physical_cores": 16}, False),
        ({"amx_bf16": True, "num_physical_cores": 2}, False),
        ({}, False),
    ],
)
def test_the_machine_decides(monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, Any], useful: bool) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    is_useful.cache_clear()
    assert is_useful() is useful
    is_useful.cache_clear()


def test_a_compiled_unet_stays_one_graph(tiny_backbone_folder: Path) -> None:
    backbone = Backbone.load(tiny_backbone_folder, "cpu", "bfloat16")
    latents, text = numbers(2, 4, 32, 32), backbone.embed_text(["a dog"])
    with torch.no_grad():
        expected = backbone.predict_noise(latents, 500, text)
        backbone.unet.compile(backend="eager", fullgraph=True)
        torch.testing.assert_close(backbone.predict_noise(latents, 500, text), expected, rtol=0.05, atol=0.05)
