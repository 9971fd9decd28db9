"""Weights of words: what counts as a weight, and what it does to the encoding, against ComfyUI's formula."""

import pytest
import torch

import inst
from inst import UsageError
from inst.backbone.weights import read_weights


@pytest.mark.parametrize(
    ("prompt", "text", "weighted"),
    [
        ("a (castle:1.3) by [C:0.5]", "a castle by [C]", {"castle": 1.3, "[C]": 0.5}),
        ("(old castle : .5), ([C]: 2)", "old castle , [C]", {"old castle ": 0.5, "[C]": 2.0}),
        ("(a:1.)(b:0)", "ab", {"a": 1.0, "b": 0.0}),
        (r"a dog \(breed: 2\), (dog \(small\):1.2)", "a dog (breed: 2), (dog (small):1.2)", {}),
        ("(16:9) screen, at 10:30 (about)", "(16:9) screen, at 10:30 (about)", {}),
        ("[c1:1] and [C:x] and [12:30] (:1.2)", "[c1] and [C:x] and [12:30] (:1.2)", {"[c1]": 1.0}),
        ("", "", {}),
    ],
)
def test_what_counts_as_a_weight(prompt: str, text: str, weighted: dict[str, float]) -> None:
    found = read_weights(prompt)
    assert found.text == text
    assert {found.text[start:end]: weight for start, end, weight in found.parts} == weighted


def test_a_weight_moves_the_words_away_from_the_empty_prompt(tiny_backbone: inst.Backbone) -> None:
    """The formula of ComfyUI: empty + w (hidden - empty), at the positions of the words."""
    words = torch.randn(3, tiny_backbone.text_width, generator=torch.Generator().manual_seed(0))
    style = {"[C]": words}
    with torch.no_grad():
        plain = tiny_backbone.embed_text(["a castle, [C]", "a dog"], style).tokens
        found = tiny_backbone.embed_text(["a (castle:1.5), [C:0.25]", "a dog"], style).tokens
        empty = tiny_backbone.embed_text([""]).tokens[0]
    ids = tiny_backbone.tokenize(["a castle, [C]"], {"[C]": 3})[0]
    weights = torch.ones(len(empty))
    weights[ids.slots[0] >= 0] = 0.25
    first = len(tiny_backbone.tokenizer("a")["input_ids"]) - 1  # behind the start token and "a"
    count = len(tiny_backbone.tokenizer("castle", add_special_tokens=False)["input_ids"])
    weights[first : first + count] = 1.5
    torch.testing.assert_close(found[0], empty + weights[:, None] * (plain[0] - empty))
    assert torch.equal(found[1], plain[1])


def test_a_weight_of_1_changes_nothing(tiny_backbone: inst.Backbone) -> None:
    style = {"[C]": torch.ones(2, tiny_backbone.text_width)}
    with torch.no_grad():
        plain, one = (tiny_backbone.embed_text([text], style).tokens for text in ("a dog, [C]", "(a dog:1), [C:1.0]"))
    assert torch.equal(plain, one)


def test_a_style_with_a_weight_counts_as_named(tiny_backbone: inst.Backbone) -> None:
    painting = torch.zeros(3, 64, 64)
    style = inst.instant_style(tiny_backbone, painting)
    few = {"steps": 1, "size": 64, "style_attention": 0.0, "tone": "none"}
    half, whole, none = (
        inst.complete(inst.transfer(tiny_backbone, painting, style, prompt=prompt, **few))
        for prompt in ("a dog in the style of [C:0.5]", "a dog in the style of [C]", "a dog in the style of ([C]:0.5)")
    )
    assert not torch.equal(half, whole)
    assert torch.equal(half, none)
    with pytest.raises(UsageError, match=r"the placeholder \[D\], which has no style"):
        inst.transfer(tiny_backbone, painting, style, prompt="[C] and [D:0.5]", **few)
