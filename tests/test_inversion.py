import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from inst.errors import InstError
from inst.inversion import AttentionInversion, CrossAttentionLayer, InversionConfig

CONFIG = InversionConfig(picture_width=24, pooled_width=16, text_width=32, vectors=3, layers=2, heads=4)


def make() -> AttentionInversion:
    torch.manual_seed(0)
    return AttentionInversion(CONFIG)


def picture(seed: int, batch: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 16, generator=generator), torch.randn(batch, 9, 24, generator=generator)


def test_two_paintings_have_two_words() -> None:
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

    alone = make()
    pooled, tokens = picture(1)
    alone(pooled, tokens[:, :1]).square().sum().backward()
    first = alone.layers[0]
    assert isinstance(first, CrossAttentionLayer)
    assert first.to_k.weight.grad is not None
    assert first.to_k.weight.grad.abs().max() < 1e-6


def test_evaluation_is_deterministic_and_training_drops_out() -> None:
    module = make().eval()
    torch.testing.assert_close(module(*picture(1)), module(*picture(1)), rtol=0, atol=0)
    module.train()
    assert not torch.equal(module(*picture(1)), module(*picture(1)))


def test_a_fresh_module_starts_at_a_word_with_the_tables_norm() -> None:
    table = torch.randn(100, 32) * 0.3
    module = make().eval()
    module.start_at(table[7], table)
    words = module(*picture(1))
    assert words.norm(dim=-1).flatten().tolist() == pytest.approx([table.norm(dim=-1).median().item()] * 3, rel=0.1)
    similarity = torch.cosine_similarity(words, table[7], dim=-1)
    assert similarity.min() > 0.9


def test_attention_by_hand() -> None:
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


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    module = make()
    module.start_at(torch.randn(32), torch.randn(50, 32))
    module.save_pretrained(tmp_path)
    again = AttentionInversion.from_pretrained(tmp_path)
    assert not again.training
    assert again.config == CONFIG
    torch.testing.assert_close(again(*picture(1)), module.eval()(*picture(1)))


@pytest.mark.parametrize("damage", ["no weights", "cut weights", "other width", "missing key", "no json"])
def test_a_broken_folder_is_one_line(tmp_path: Path, damage: str) -> None:
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
