from pathlib import Path

import torch
from transformers import CLIPTokenizer

from captions import CaptionBank, plain, styled
from inst.backbone.tokens import tokenize
from tiny import tiny_tokenizer
from tokenizer import learn

CAPTIONS = ["a impressionist painting of a river", "a dog, and a church by the river"]


def test_wrong_articles_in_captions_are_corrected() -> None:
    assert plain(["a impressionist painting", "a dog on a island"]) == [
        "an impressionist painting",
        "a dog on an island",
    ]


def test_style_sentences_do_not_name_the_medium() -> None:
    sentences = styled(CAPTIONS[:1])
    assert "a river in the style of [C]" in sentences
    assert "[C]" in sentences
    assert all(sentence.count("[C]") == 1 for sentence in sentences)


def test_the_caption_bank_holds_the_same_tokens_as_a_prompt_would() -> None:
    tokenizer = tiny_tokenizer()
    for form, vectors in ((plain, 0), (styled, 3)):
        bank = CaptionBank([CAPTIONS, CAPTIONS[1:]], tokenizer, "cpu", vectors=vectors, variants=10, form=form)
        sentences = list(dict.fromkeys([*form(CAPTIONS), *form(CAPTIONS[1:])]))
        fitting = [i for i, s in enumerate(sentences) if len(tokenizer(s)["input_ids"]) + vectors < 22]
        expected = tokenize(tokenizer, [sentences[i] for i in fitting], {"[C]": 3})
        assert torch.equal(bank.slots[fitting], expected.slots)
        ordinary = expected.slots < 0
        assert torch.equal(bank.ids[fitting][ordinary], expected.ids[ordinary])


def test_a_sentence_that_is_too_long_keeps_its_placeholder() -> None:
    bank = CaptionBank([["river " * 60]], tiny_tokenizer(), "cpu", vectors=4, variants=6, form=styled)
    assert (bank.slots.amax(1) == 3).all()


def test_equal_sentences_have_equal_numbers() -> None:
    bank = CaptionBank([["a dog"], ["a church"], ["a dog"]], tiny_tokenizer(), "cpu", variants=2)
    _, _, number = bank.draw(torch.tensor([0, 1, 2]), torch.Generator().manual_seed(0))
    assert number[0] == number[2] != number[1]


def test_a_learned_tokenizer_knows_frequent_words_and_every_text(tmp_path: Path) -> None:
    learned = learn(["a painting of a river"] * 50 + ["a dog"], size=560, length=24)
    assert learned.tokenize("A  Painting of a river") == ["a</w>", "painting</w>", "of</w>", "a</w>", "river</w>"]
    for text in ("château 你好!", "naïve — 12"):
        ids = learned(text)["input_ids"]
        assert learned.unk_token_id not in ids[1:-1]
        assert learned.decode(ids, skip_special_tokens=True).replace(" ", "") == text.lower().replace(" ", "")
    learned.save_pretrained(tmp_path)
    again = CLIPTokenizer.from_pretrained(tmp_path)
    assert again("a dog and a painting")["input_ids"] == learned("a dog and a painting")["input_ids"]
    assert again.model_max_length == 24
