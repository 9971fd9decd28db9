"""The denoiser reads a reference: which row attends to which tokens, and when rows are not pairs."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import reference
import unet


def plain_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Softmax attention of one head, [tokens, width] each, from its formula."""
    weights = torch.exp(query @ key.T / math.sqrt(query.shape[-1]))
    return weights / weights.sum(1, keepdim=True) @ value


@pytest.mark.parametrize(
    ("swap", "sources"),
    [
        # The rows are A0 A1 A2 B0 B1 B2; for each, the rows whose tokens it attends to.
        (False, [(0, 3), (1, 4), (2, 5), (3,), (4,), (5,)]),
        (True, [(0, 3), (1, 4), (5,), (3,), (4,), (5,)]),
    ],
)
def test_each_row_attends_to_its_own_tokens_and_its_pairs(swap: bool, sources: list[tuple[int, ...]]) -> None:
    query, key, value = torch.randn(3, 6, 2, 4, 3, generator=torch.Generator().manual_seed(0))
    made = reference.paired_attention(query, key, value, swap=swap)
    for row, others in enumerate(sources):
        for head in range(2):
            keys, values = (torch.cat([x[i, head] for i in others]) for x in (key, value))
            torch.testing.assert_close(made[row, head], plain_attention(query[row, head], keys, values))


def test_a_swapped_row_of_one_token_returns_the_value_of_its_pair() -> None:
    """With one token the weight is 1. With two equal keys, both have the weight 1/2."""
    value = torch.tensor([1.0, 2.0, 10.0, 20.0]).view(4, 1, 1, 1)
    made = reference.paired_attention(torch.ones_like(value), torch.ones_like(value), value, swap=True)
    assert made.flatten().tolist() == [5.5, 20.0, 10.0, 20.0]
    made = reference.paired_attention(torch.ones_like(value), torch.ones_like(value), value, swap=False)
    assert made.flatten().tolist() == [5.5, 11.0, 10.0, 20.0]


def tiny() -> unet.UNet2DConditionModel:
    torch.manual_seed(0)
    return unet.build(4, 16, (32, 48)).eval()


def inputs(pairs: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(2 * pairs, 4, 8, 8, generator=generator),
        torch.arange(100, 100 + pairs).repeat(2),
        torch.randn(2 * pairs, 5, 16, generator=generator),
    )


@pytest.mark.parametrize("mode", reference.MODES)
@pytest.mark.parametrize("blocks", reference.BLOCKS)
def test_only_the_first_rows_of_pairs_differ_from_the_stock_processor(mode: str, blocks: str) -> None:
    model, (latents, t, text) = tiny(), inputs(3)
    with torch.no_grad():
        stock = model(latents, t, text).sample
        attention = reference.read_reference(model, mode, blocks)
        assert torch.equal(model(latents, t, text).sample, stock), "not paired"
        with attention.paired():
            paired = model(latents, t, text).sample
        assert torch.equal(model(latents, t, text).sample, stock), "not paired any more"
    torch.testing.assert_close(paired[3:], stock[3:])
    assert ((paired[:3] - stock[:3]).abs().amax((1, 2, 3)) > 1e-4).all()


def test_the_chosen_blocks_are_the_only_ones_that_read_the_reference() -> None:
    for blocks, expected in (("up", {"up_blocks"}), ("all", {"up_blocks", "down_blocks", "mid_block"})):
        model = tiny()
        attention = reference.read_reference(model, "concat", blocks)
        readers = [name for name, processor in model.attn_processors.items() if processor is attention]
        assert {name.partition(".")[0] for name in readers} == expected
        assert all(name.endswith("attn1.processor") for name in readers)
        every = [name for name in model.attn_processors if "attn1" in name and name.split(".")[0] in expected]
        assert readers == every


def test_a_denoiser_that_reads_a_reference_saves_the_same_keys_and_configuration(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path / "before")
    model = tiny()
    reference.read_reference(model, "both", "all")
    model.save_pretrained(tmp_path / "after")
    assert (tmp_path / "before/config.json").read_bytes() == (tmp_path / "after/config.json").read_bytes()
    before, after = (load_file(tmp_path / f / "diffusion_pytorch_model.safetensors") for f in ("before", "after"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.filterwarnings("ignore:Dynamo detected a call")
def test_a_compiled_denoiser_follows_what_kind_of_step_it_is() -> None:
    """As the stage compiles it, but without code generation. The graph must not keep the kind of the first step."""
    model, given = tiny(), inputs(2)
    attention = reference.read_reference(model, "both", "up")
    compiled = torch.compile(model, dynamic=False, fullgraph=True, backend="eager")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        made = []
        for on in (True, False, True):
            with attention.paired(on):
                made.append(compiled(*given).sample)
                torch.testing.assert_close(made[-1], model(*given).sample, rtol=0, atol=1e-6)
    assert not torch.allclose(made[0], made[1], atol=1e-4)


def test_steps_with_a_reference_have_their_share_in_every_bucket() -> None:
    assert all(reference.has_reference(step, 1.0) for step in range(1000))
    for share in (0.25, 0.5):
        kinds = [reference.has_reference(step, share) for step in range(1000)]
        buckets = [int((step + 1) * share) - int(step * share) for step in range(1000)]  # as the stage chooses
        assert sum(kinds) / 1000 == pytest.approx(share, abs=0.01)
        large = [kind for kind, bucket in zip(kinds, buckets, strict=True) if bucket]
        assert sum(large) / len(large) == pytest.approx(share, abs=0.02)
