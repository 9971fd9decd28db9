"""Arguments of a wrong type: one clear line before anything is computed, as for those of a wrong value."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import inst
from inst import UsageError
from inst.arguments import LARGEST_FACTOR, checked
from inst.pictures.resizing import fit_size
from inst.pictures.stored import encode_painting
from inst.sampling.control import Control
from inst.styles.style import Style
from tiny import tiny_controlnet

PAINTING = encode_painting(torch.zeros(3, 8, 8))


def transfer(backbone: inst.Backbone, **wrong: Any) -> object:
    photo = torch.zeros(3, 64, 64)
    return inst.transfer(backbone, **{"photo": photo, "style": style(backbone), **wrong})


def generate(backbone: inst.Backbone, **wrong: Any) -> object:
    return inst.generate(backbone, **{"prompt": "[C]", "style": style(backbone), **wrong})


def learn(backbone: inst.Backbone, **wrong: Any) -> object:
    painting = inst.pictures.reading.Photo(torch.zeros(3, 64, 64))
    return inst.learn(backbone, **{"paintings": [painting], **wrong})


def style(backbone: inst.Backbone) -> Style:
    return Style(torch.ones(3, 32), backbone.fingerprint, paintings=(PAINTING,))


@pytest.mark.parametrize("wrong", [1.5, "20", "a", True, None, [1], torch.tensor(1), object(), 2.0])
@pytest.mark.parametrize(
    ("function", "name"),
    [
        *((transfer, name) for name in ("steps", "seed", "size", "tile")),
        *((generate, name) for name in ("steps", "seed", "size", "tile")),
        *((learn, name) for name in ("steps", "seed", "batch_size", "crops", "vectors", "patience", "preview_every")),
    ],
)
def test_a_value_that_is_no_whole_number_is_refused_in_one_line(
    tiny_backbone: inst.Backbone, function: Any, name: str, wrong: object
) -> None:
    meant = ["size", "tile", "vectors", *(["steps"] if function is transfer else [])]
    if (wrong is None and name in meant) or (wrong == [1] and name == "seed"):
        return  # which have a meaning
    with pytest.raises(UsageError, match="cannot be used: give a whole number") as caught:
        function(tiny_backbone, **{name: wrong})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wrong", ["a", "0.5", False, None, [0.5], torch.tensor(0.5), 1j])
@pytest.mark.parametrize(
    ("function", "name"),
    [
        *((transfer, name) for name in ("strength", "guidance", "style_weight")),
        *((generate, name) for name in ("guidance", "style_weight")),
        *((learn, name) for name in ("lr", "dropout")),
    ],
)
def test_a_value_that_is_no_number_is_refused(
    tiny_backbone: inst.Backbone, function: Any, name: str, wrong: object
) -> None:
    with pytest.raises(UsageError, match="cannot be used: give a number"):
        function(tiny_backbone, **{name: wrong})


@pytest.mark.parametrize("name", ["steps", "seed", "size", "tile", "strength", "guidance", "style_weight"])
def test_a_number_of_400_digits_is_refused_as_too_large(tiny_backbone: inst.Backbone, name: str) -> None:
    with pytest.raises(UsageError, match="is too large to be used"):
        transfer(tiny_backbone, **{name: 10**400})


@pytest.mark.parametrize("name", ["guidance", "style_weight"])
def test_a_factor_that_is_too_large_is_refused_with_the_largest_allowed_one(
    tiny_backbone: inst.Backbone, name: str
) -> None:
    with pytest.raises(UsageError, match=f"of 20000 cannot be used: .* to {LARGEST_FACTOR}"):
        transfer(tiny_backbone, **{name: 20_000})


@pytest.mark.parametrize("wrong", [5, ["a", 5], [["a"]], b"a", {"a": 1}, [], torch.zeros(1)])
@pytest.mark.parametrize(
    ("function", "name"),
    [
        *((transfer, name) for name in ("prompt", "negative_prompt", "inversion", "solver", "tone")),
        *((generate, name) for name in ("prompt", "negative_prompt", "solver", "tone")),
        (learn, "variant"),
    ],
)
def test_a_value_that_is_no_text_is_refused(
    tiny_backbone: inst.Backbone, function: Any, name: str, wrong: object
) -> None:
    with pytest.raises(UsageError):
        function(tiny_backbone, **{name: wrong})


@pytest.mark.parametrize("wrong", [5, None, b"photo.png", object()])
def test_photos_styles_and_paintings_of_a_wrong_type_are_refused(tiny_backbone: inst.Backbone, wrong: object) -> None:
    with pytest.raises(UsageError, match="photo of the type"):
        transfer(tiny_backbone, photo=wrong)
    for given in (wrong, {"[C]": wrong}):
        with pytest.raises(UsageError, match="style of the type"):
            generate(tiny_backbone, style=given)
    for paintings in (wrong, [wrong]):
        for function in (inst.learn, inst.instant_style):
            with pytest.raises(UsageError, match="painting of the type"):
                function(tiny_backbone, paintings)  # type: ignore[operator]
    with pytest.raises(UsageError, match="style of the type"):
        inst.read_style(tiny_backbone, wrong)  # type: ignore[arg-type]


NOT_THESE = ["a", 5, 0.5, True, [1], {"a": 1}, Path("a"), b"a", object(), np.ones((64, 64)), torch.float32]


PICTURES = (str, Path, np.ndarray)
"""What stands for a picture, and is refused for what it holds rather than for its type."""


@pytest.mark.parametrize("wrong", NOT_THESE)
def test_backbones_masks_controls_runs_and_states_of_a_wrong_type_are_refused(
    tiny_backbone: inst.Backbone, wrong: Any
) -> None:
    control = Control(tiny_controlnet(tiny_backbone.unet), torch.zeros(3, 64, 64))
    for said, call in (
        ("A backbone", lambda: inst.transfer(wrong, torch.zeros(3, 64, 64), style(tiny_backbone))),
        ("A backbone", lambda: inst.generate(wrong, "[C]", style(tiny_backbone))),
        ("A backbone", lambda: learn(wrong)),
        ("A backbone", lambda: inst.instant_style(wrong, [inst.pictures.reading.Photo(torch.zeros(3, 64, 64))])),
        ("A backbone", lambda: inst.load_controlnet("folder", wrong)),
        ("A control", lambda: transfer(tiny_backbone, control=wrong)),
        ("A control", lambda: generate(tiny_backbone, control=wrong)),
        ("A control", lambda: transfer(tiny_backbone, control=control.model)),
        ("A ControlNet", lambda: transfer(tiny_backbone, control=replace(control, model=wrong))),
        ("A state to resume from", lambda: learn(tiny_backbone, resume=wrong)),
        ("A run", lambda: inst.complete(wrong)),
        ("A run", lambda: inst.complete(style(tiny_backbone))),  # type: ignore[arg-type]
        ("A style", lambda: Style.mix([(wrong, 1)])),
        ("A style", lambda: Style.mix([(style(tiny_backbone), 1), (wrong, 1)])),
        ("Vectors", lambda: Style(wrong, "text space")),
        *(
            ()
            if isinstance(wrong, PICTURES)
            else (
                ("A mask", lambda: transfer(tiny_backbone, mask=wrong)),
                ("A control picture", lambda: generate(tiny_backbone, control=replace(control, picture=wrong))),
            )
        ),
    ):
        with pytest.raises(UsageError, match=f"^{said} of the type .* cannot be used: ") as caught:
            call()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wrong", [5, None, ["a"], b"a", torch.zeros(2)])
def test_file_names_of_a_wrong_type_are_refused(tiny_backbone: inst.Backbone, wrong: Any) -> None:
    for call in (
        lambda: inst.read_photo(wrong),
        lambda: inst.pictures.reading.read_picture(wrong),
        lambda: inst.pictures.masks.read_mask(wrong),
        lambda: Style.load(wrong),
        lambda: style(tiny_backbone).save(wrong),
        lambda: inst.load_controlnet(wrong, tiny_backbone),
        lambda: inst.Backbone.load(wrong),
        lambda: inst.Backbone.load(config=[] if wrong is None else wrong),
        lambda: inst.Backbone.load(image_encoder=True if wrong is None else wrong),
    ):
        with pytest.raises(UsageError, match=r"of the type .* cannot be used: give its path as a text or a pathlib"):
            call()


def test_an_empty_path_is_not_the_current_folder(
    tiny_backbone: inst.Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    inst.save_picture(torch.zeros(3, 8, 8), "painting.png")
    for call in (
        lambda: inst.read_photo(""),
        lambda: inst.read_style(tiny_backbone, ""),
        lambda: inst.instant_style(tiny_backbone, ""),
        lambda: inst.learn(tiny_backbone, ""),
        lambda: transfer(tiny_backbone, mask=""),
        lambda: style(tiny_backbone).save(""),
        lambda: inst.Backbone.load(""),
    ):
        with pytest.raises(UsageError, match="cannot be used: the path is empty: give"):
            call()


@pytest.mark.parametrize("wrong", [1.5, ["cpu"], torch.zeros(2, 2), Path("cpu")])
def test_devices_and_precisions_of_a_wrong_type_are_refused(wrong: Any) -> None:
    for given in ({"device": wrong}, {"dtype": wrong}):
        with pytest.raises(UsageError, match=r"of the type .* cannot be used: give"):
            inst.Backbone.load(**given)


def test_a_mixture_that_is_no_list_of_style_and_weight_pairs_is_refused(tiny_backbone: inst.Backbone) -> None:
    one = style(tiny_backbone)
    wrong: Any
    for wrong in (one, "ab", {one: 1}, [one, one], [(one,)], [(one, 1, 2)], ["ab"], [5]):
        with pytest.raises(UsageError, match="pairs of a style and its weight"):
            Style.mix(wrong)


@pytest.mark.parametrize("wrong", [torch.zeros(2, 2), [1, 2], object(), b"a"])
def test_other_learning_settings_of_a_wrong_type_are_refused(tiny_backbone: inst.Backbone, wrong: Any) -> None:
    for name in ("layers", "vectors", "pretrained", "name", "variant"):
        with pytest.raises(UsageError, match=f"^The {name} .* cannot be used: give") as caught:
            learn(tiny_backbone, **{name: wrong})
        assert "\n" not in str(caught.value)


def test_complex_masks_and_placeholders_that_are_no_text_are_refused(tiny_backbone: inst.Backbone) -> None:
    with pytest.raises(UsageError, match="mask's values cannot be used"):
        transfer(tiny_backbone, mask=torch.zeros(64, 64, dtype=torch.complex64))
    with pytest.raises(UsageError, match='"1" is not a placeholder'):
        transfer(tiny_backbone, style={1: style(tiny_backbone)})


def test_sizes_weights_and_control_scales_of_a_wrong_type_are_refused(tiny_backbone: inst.Backbone) -> None:
    for size in ((64,), (64, "a"), (64, 64.0), (64, 64, 64), "64x64", {64}):
        with pytest.raises(UsageError, match=r"The size .* cannot be used: give a whole number"):
            generate(tiny_backbone, size=size)
    with pytest.raises(UsageError, match="The weight 'a' cannot be used"):
        Style.mix([(style(tiny_backbone), "a")])  # type: ignore[list-item]
    control = Control(tiny_controlnet(tiny_backbone.unet), torch.zeros(3, 64, 64), scale="1")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="The control scale '1' cannot be used"):
        generate(tiny_backbone, control=control)


def test_numpy_numbers_and_fractions_are_accepted_as_numbers(tiny_backbone: inst.Backbone) -> None:
    plain = inst.complete(transfer(tiny_backbone, steps=1, seed=3, strength=0.5, size=64))
    given = {"steps": np.int64(1), "seed": np.uint8(3), "strength": np.float32(0.5), "size": np.int32(64)}
    assert torch.equal(inst.complete(transfer(tiny_backbone, **given)), plain)
    assert inst.complete(transfer(tiny_backbone, **(given | {"strength": Fraction(1, 2)}))).equal(plain)
    assert type(checked("x", np.int64(3), "int")) is int
    assert type(checked("x", np.float32(3), "float")) is float
    assert fit_size(1000, 700, np.int16(512)) == fit_size(1000, 700, 512)  # 1000 x 512 is none
    assert fit_size(1000, 700, np.uint8(64)) == fit_size(1000, 700, 64)
    run = learn(tiny_backbone, steps=np.int64(1), lr=np.float32(1e-3))
    assert next(run).state().settings["steps"] == 1


@pytest.mark.parametrize(
    ("function", "wrong", "message"),
    [
        (transfer, {"seed": range(10**9)}, "1000000000 pictures cannot be made at once: give 1000 or fewer"),
        (generate, {"seed": range(1001)}, "1001 pictures cannot be made at once"),
        (generate, {"prompt": range(10**9)}, "1000000000 prompts cannot be used at once"),
        (transfer, {"negative_prompt": range(10**9)}, "1000000000 prompts cannot be used at once"),
        (generate, {"size": (10**5, 10**5)}, "100000 x 100000 pixels is too large"),
        (transfer, {"steps": 10**9}, "1000000000 sampling steps cannot be taken"),
        (transfer, {"prompt": "dog " * 10**6}, "The prompt has 4,000,000 characters: shorten it"),
        (transfer, {"solver": "x" * 10**6}, r"\(1,000,000 characters\)"),
    ],
)
def test_what_would_take_all_memory_is_refused_before_it_is_made(
    tiny_backbone: inst.Backbone, function: Any, wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        function(tiny_backbone, **wrong)
    assert len(str(caught.value)) < 300
