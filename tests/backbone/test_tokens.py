import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inst import UsageError
from inst.backbone.tokens import tokenize
from tiny import POSITIONS, WORDS, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
LENGTHS = {"[C]": 2, "[C2]": 1, "[monet_1]": 3}
FIRST = {"[C]": 0, "[C2]": 2, "[monet_1]": 3}


@given(st.lists(st.sampled_from([*WORDS, *LENGTHS]), max_size=POSITIONS), st.sampled_from([" ", "  ", " , "]))
@settings(deadline=None, max_examples=60)
def test_words_and_placeholders_in_any_order_get_the_right_tokens_and_slots(words: list[str], space: str) -> None:
    prompt = space.join(words)
    expected = []  # (token, slot): tokens one word at a time, as the words of a prompt do not touch in CLIP's tokenizer
    for number, word in enumerate(words):
        if number and "," in space:
            expected += [(token, -1) for token in TOKENIZER(",", add_special_tokens=False).input_ids]
        if word in LENGTHS:
            expected += [(None, FIRST[word] + k) for k in range(LENGTHS[word])]
        else:
            expected += [(token, -1) for token in TOKENIZER(word, add_special_tokens=False).input_ids]
    if len(expected) > POSITIONS - 2:
        with pytest.raises(UsageError, match=f"takes {len(expected)} of at most {POSITIONS - 2} tokens"):
            tokenize(TOKENIZER, [prompt], LENGTHS)
        return

    found = tokenize(TOKENIZER, [prompt], LENGTHS)
    assert found.ids.shape == found.slots.shape == (1, POSITIONS)
    ids, slots = found.ids[0].tolist(), found.slots[0].tolist()
    assert ids[0] == TOKENIZER.bos_token_id
    end = len(expected) + 1
    assert set(ids[end:]) == {TOKENIZER.eos_token_id}  # which also pads
    assert slots[0] == -1
    assert set(slots[end:]) == {-1}
    assert slots[1:end] == [slot for _, slot in expected]
    for token, (wanted, _) in zip(ids[1:end], expected, strict=True):
        assert token == wanted if wanted is not None else token not in TOKENIZER.all_special_ids


@given(st.text(max_size=12).filter(lambda text: "[" not in text))
@settings(deadline=None, max_examples=100)
def test_ordinary_prompts_are_tokenised_as_transformers_does(prompt: str) -> None:
    expected = TOKENIZER(prompt, padding="max_length", return_tensors="pt").input_ids
    if expected.shape[1] > POSITIONS:
        with pytest.raises(UsageError, match="does not fit"):
            tokenize(TOKENIZER, [prompt])
    else:
        assert tokenize(TOKENIZER, [prompt]).ids.tolist() == expected.tolist()


def test_a_placeholder_may_touch_words_and_marks() -> None:
    found = tokenize(TOKENIZER, ["dog,[C]dog[C2]."], LENGTHS)
    assert found.slots[0, 1:8].tolist() == [-1, -1, 0, 1, -1, 2, -1]


def test_a_token_of_a_textual_inversion_takes_a_position_for_each_vector() -> None:
    """As the loader of diffusers names them; the prompt that it would make is tokenised by transformers."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<sea>", "<sea>_1", "<sea>_2", "<sky>"])
    found = tokenize(tokenizer, ["a <sea> and [C], <sky>", "(<sea>:1.5) a"], {"[C]": 2})
    ids = tokenizer("a <sea> <sea>_1 <sea>_2 and a a, <sky>", padding="max_length", return_tensors="pt").input_ids[0]
    slots = found.slots[0]
    assert slots[6:8].tolist() == [0, 1]
    assert torch.equal(found.ids[0][slots < 0], ids[slots < 0])
    assert found.weights is not None
    assert found.weights[1, :6].tolist() == [1, 1.5, 1.5, 1.5, 1, 1]


def test_square_brackets_around_anything_else_are_text() -> None:
    expected = TOKENIZER("[1] a [] dog ]", padding="max_length", return_tensors="pt").input_ids
    assert tokenize(TOKENIZER, ["[1] a [] dog ]"], LENGTHS).ids.tolist() == expected.tolist()


def test_a_prompt_that_is_too_long_is_refused_with_the_words_that_do_not_fit() -> None:
    fits = "a dog " * 11
    tokenize(TOKENIZER, [fits])
    with pytest.raises(UsageError, match='takes 24 of at most 22 tokens, and the part "Church river" does not fit'):
        tokenize(TOKENIZER, [f"{fits} Church river"])
    with pytest.raises(UsageError, match=r'"\[C\] style" does not fit: shorten the prompt, or use fewer vectors'):
        tokenize(TOKENIZER, ["a dog " * 10 + "the [C] style"], LENGTHS)
    with pytest.raises(UsageError, match='"zebra" does not fit'):  # its first letters would fit
        tokenize(TOKENIZER, ["a dog " * 10 + "zebra"])


def test_unknown_placeholders_are_refused() -> None:
    with pytest.raises(UsageError, match=r"\[c\], which has no style \(known: \[C\], \[C2\], \[monet_1\]\)"):
        tokenize(TOKENIZER, ["a dog, [c]"], LENGTHS)
    with pytest.raises(UsageError, match=r"\[C\], which has no style \(no style is given\)"):
        tokenize(TOKENIZER, ["a dog, [C]"])
    with pytest.raises(UsageError, match="is not a placeholder"):
        tokenize(TOKENIZER, ["a dog"], {"[C D]": 1})
