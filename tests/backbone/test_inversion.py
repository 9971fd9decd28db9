import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import inst
from inst.backbone.inversion import (
    VARIANTS,
    AttentionInversion,
    CrossAttentionLayer,
    DirectInversion,
    Inversion,
    InversionConfig,
    build_inversion,
)
from inst.backbone.text import coarse_word
from inst.errors import InstError, UsageError
from inst.learning.start import fresh_inversion

CONFIG = InversionConfig(picture_width=24, pooled_width=16, text_width=32, vectors=3, layers=2, heads=4)


def make() -> AttentionInversion:
    torch.manual_seed(0)
    return AttentionInversion(CONFIG)


def picture(seed: int, batch: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 16, generator=generator), torch.randn(batch, 9, 24, generator=generator)


def test_different_paintings_get_different_pseudo_words() -> None:
    module = make().eval()
    one, other = module(*picture(1)), module(*picture(2))
    assert one.shape == (1, 3, 32)
    assert (one - other).abs().max() > 1e-3


def test_the_patch_tokens_matter_and_their_order_does_not() -> None:
    module = make().eval()
    pooled, tokens = picture(1)
    word = module(pooled, tokens)
    assert (module(pooled, picture(2)[1]) - word).abs().max() > 1e-3
    torch.testing.assert_close(module(pooled, tokens.flip(1)), word)


def test_query_and_key_weights_receive_gradient() -> None:
    """Over one pooled token the softmax is 1 and they never would: what the reference code does."""
    module = make()
    module(*picture(1, batch=2)).square().sum().backward()
    for layer in module.layers:
        assert isinstance(layer, CrossAttentionLayer)
        for projection in (layer.to_q, layer.to_k, layer.to_v):
            assert projection.weight.grad is not None
            assert projection.weight.grad.abs().max() > 0


def test_in_the_pooled_variant_query_and_key_weights_receive_no_gradient() -> None:
    """What the variant "pooled" is kept for: to show what the paper's text costs. The values do learn."""
    torch.manual_seed(0)
    module = build_inversion(replace(CONFIG, variant="pooled"))
    assert isinstance(module, AttentionInversion)
    module(*picture(1, batch=2)).square().sum().backward()
    for layer in module.layers:
        assert isinstance(layer, CrossAttentionLayer)
        assert layer.to_q.weight.grad is not None
        assert layer.to_k.weight.grad is not None
        assert layer.to_v.weight.grad is not None
        assert layer.to_q.weight.grad.abs().max() < 1e-6
        assert layer.to_k.weight.grad.abs().max() < 1e-6
        assert layer.to_v.weight.grad.abs().max() > 1e-3


def test_the_pooled_variant_uses_only_the_pooled_embedding() -> None:
    torch.manual_seed(0)
    module = build_inversion(replace(CONFIG, variant="pooled")).eval()
    (pooled, tokens), (other_pooled, other_tokens) = picture(1), picture(2)
    assert torch.equal(module(pooled, tokens), module(pooled, other_tokens))
    assert (module(pooled, tokens) - module(other_pooled, tokens)).abs().max() > 1e-3


def test_the_direct_variant_is_free_vectors_that_use_no_picture() -> None:
    module = build_inversion(InversionConfig(0, 0, 32, vectors=3, layers=0, variant="direct"))
    assert isinstance(module, DirectInversion)
    assert [parameter.shape for parameter in module.parameters()] == [(3, 32)]
    words = module(torch.zeros(2, 0), torch.zeros(2, 0, 0))
    assert words.shape == (2, 3, 32)
    words.sum().backward()
    assert module.moved.grad is not None
    torch.testing.assert_close(module.moved.grad, torch.full((3, 32), 2.0))


def test_evaluation_is_deterministic_and_training_drops_out() -> None:
    module = make().eval()
    torch.testing.assert_close(module(*picture(1)), module(*picture(1)), rtol=0, atol=0)
    module.train()
    assert not torch.equal(module(*picture(1)), module(*picture(1)))


def test_dropout_draws_from_its_own_generator() -> None:
    module = AttentionInversion(replace(CONFIG, dropout=0.25)).train()
    generator = torch.Generator().manual_seed(5)
    kept = module.draw_dropout(1, generator)
    assert kept is not None
    assert 1 - kept.float().mean().item() == pytest.approx(0.25, abs=0.05)
    before = torch.get_rng_state()
    one = module(*picture(1), kept)
    assert torch.equal(module(*picture(1), kept), one)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(module(*picture(1), module.draw_dropout(1, generator)), one)
    everything = torch.ones_like(kept)
    for layer in module.layers:
        layer.dropout = 0.0
    torch.testing.assert_close(module(*picture(1), everything), module.eval()(*picture(1)))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_fresh_module_starts_at_a_word_with_the_tables_norm(tiny_backbone: inst.Backbone, variant: str) -> None:
    table = tiny_backbone.text_encoder.get_input_embeddings().weight
    word = table[tiny_backbone.tokenizer("painting", add_special_tokens=False).input_ids].squeeze(0)
    torch.manual_seed(0)
    module = fresh_inversion(tiny_backbone, variant, vectors=5).eval()
    painting = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    words = module(*tiny_backbone.embed_picture(painting))
    assert words.shape == (1, 5, table.shape[1])
    assert words.norm(dim=-1).flatten().tolist() == pytest.approx([table.norm(dim=-1).median().item()] * 5, rel=0.15)
    assert torch.cosine_similarity(words, word, dim=-1).min() > 0.9


def test_a_coarse_word_of_several_tokens_is_their_mean(
    tiny_backbone: inst.Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Syllables:
        def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
            assert (text, add_special_tokens) == ("painting", False)
            return {"input_ids": [3, 8]}

    monkeypatch.setattr(tiny_backbone, "tokenizer", Syllables())
    table = tiny_backbone.token_table
    torch.testing.assert_close(coarse_word(tiny_backbone), (table[3] + table[8]) / 2)


def test_cross_attention_equals_its_formula_written_out_by_hand() -> None:
    """One layer against the formula of eq. 3, written out with loops."""
    torch.manual_seed(0)
    layer = CrossAttentionLayer(8, 6, heads=2, dropout=0.0).eval()
    v, tokens = torch.randn(1, 2, 8), torch.randn(1, 5, 6)
    q, k, w = layer.to_q(layer.query_norm(v))[0], layer.to_k(tokens)[0], layer.to_v(tokens)[0]
    attended = torch.zeros(2, 8)
    for head in range(2):
        own = slice(4 * head, 4 * head + 4)
        for i in range(2):
            weights = torch.softmax(torch.stack([q[i, own] @ k[j, own] / 2 for j in range(5)]), 0)  # sqrt(4) = 2
            attended[i, own] = sum((weights[j] * w[j, own] for j in range(5)), torch.zeros(4))
    expected = v[0] + layer.to_out(attended)
    expected = expected + layer.feed_forward(expected)
    torch.testing.assert_close(layer(v, tokens)[0], expected)


def test_a_saved_module_is_the_same_when_loaded_again(tmp_path: Path) -> None:
    module = make()
    module.start_at(torch.randn(32), torch.randn(50, 32))
    module.save_pretrained(tmp_path)
    again = AttentionInversion.from_pretrained(tmp_path)
    assert not again.training
    assert again.config == CONFIG
    torch.testing.assert_close(again(*picture(1)), module.eval()(*picture(1)))


def test_a_full_disk_leaves_the_saved_module_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = make()
    module.save_pretrained(tmp_path)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InstError, match="free space on the disk"):
        make().save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    again = AttentionInversion.from_pretrained(tmp_path)
    assert torch.equal(again(*picture(1)), module.eval()(*picture(1)))


def test_a_configuration_without_a_variant_is_read_as_attention(tmp_path: Path) -> None:
    module = make()
    module.save_pretrained(tmp_path)
    entries = json.loads((tmp_path / "config.json").read_text())
    del entries["variant"]
    (tmp_path / "config.json").write_text(json.dumps(entries))
    again = AttentionInversion.from_pretrained(tmp_path)
    assert again.config == CONFIG
    assert torch.equal(again(*picture(1)), module.eval()(*picture(1)))


def test_one_spread_for_all_entries_can_be_read(tmp_path: Path) -> None:
    """As modules for one text encoder were stored, mini's among them."""
    module = make()
    module.start_at(torch.randn(32), torch.randn(50, 32))
    module.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    assert weights["spread"].shape == (32,)
    assert len(weights["spread"].unique()) == 1
    save_file(weights | {"spread": weights["spread"][0].clone()}, tmp_path / "model.safetensors")
    again = AttentionInversion.from_pretrained(tmp_path)
    assert torch.equal(again(*picture(1)), module.eval()(*picture(1)))


def test_each_text_encoder_part_starts_at_the_norm_of_its_own_table() -> None:
    module, table = make(), torch.cat([torch.randn(50, 12), 7 * torch.randn(50, 20)], dim=1)
    word = table[3]
    module.start_at(word, table, [12, 20])
    for base, spread, own_word, own_table in zip(
        *(whole.split([12, 20], dim=-1) for whole in (module.base, module.spread, word, table)), strict=True
    ):
        norm = own_table.norm(dim=1).median()
        torch.testing.assert_close(base, own_word * norm / own_word.norm())
        torch.testing.assert_close(spread, (norm / len(own_word) ** 0.5).expand(len(own_word)))


@pytest.mark.parametrize("variant", ["pooled", "direct"])
def test_every_variant_is_saved_and_loaded(tmp_path: Path, variant: str) -> None:
    torch.manual_seed(0)
    module = build_inversion(replace(CONFIG, variant=variant)).eval()
    torch.nn.init.normal_(next(module.parameters()))
    module.save_pretrained(tmp_path)
    again = Inversion.from_pretrained(tmp_path)
    assert again.config == module.config
    assert torch.equal(again(*picture(1)), module(*picture(1)))
    if variant == "direct":
        with pytest.raises(InstError, match="variant direct"):
            AttentionInversion.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"variant": "pool"}, '"pool" is unknown: use one of attention, pooled, direct'),
        ({"vectors": 0}, "0 vectors"),
        ({"layers": 0}, "0 layers"),
        ({"dropout": 1.0}, "dropout of 1.0"),
        ({"dropout": float("nan")}, "dropout of nan"),
        ({"heads": 7}, "7 heads"),
    ],
)
def test_invalid_module_settings_are_refused_with_the_reason(change: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        replace(CONFIG, **change)


@pytest.mark.parametrize("damage", ["no weights", "cut weights", "other width", "missing key", "no json"])
def test_a_broken_module_folder_is_refused_in_one_line_with_its_path(tmp_path: Path, damage: str) -> None:
    make().save_pretrained(tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    if damage == "no weights":
        weights.unlink()
    elif damage == "cut weights":
        weights.write_bytes(weights.read_bytes()[:500])
    elif damage == "other width":
        config.write_text(json.dumps(json.loads(config.read_text()) | {"text_width": 64}))
    elif damage == "missing key":
        tensors = load_file(weights)
        del tensors["offsets"]
        save_file(tensors, weights)
    else:
        config.write_text("{")
    with pytest.raises(InstError, match="inversion module") as caught:
        AttentionInversion.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)
