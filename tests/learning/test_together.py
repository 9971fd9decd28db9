"""Several styles in one batch: each is what it would be alone, whatever happens to the others."""

import inspect
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import inst
from inst import InstError, LearningDiverged, Photo, UsageError
from inst.backbone.graphs import Graphs
from inst.backbone.inversion import VARIANTS
from inst.learning.run import LearningRun
from inst.learning.settings import SharedSettings
from inst.learning.together import LearningTogether, SharedStep, _Batch, learn_together
from inst.runs import complete
from inst.styles.style import Style
from recording import Recording
from tiny import save_family

TOLERANCE = 1e-4
"""Of the typical size of a number in the vectors. After 8 steps in float32 they differ by 6e-6 of it at most."""

Given = Photo | list[Photo]


def paint(seed: int, height: int = 80, width: int = 80) -> Photo:
    """Noise with a colour of its own."""
    generator = torch.Generator().manual_seed(seed)
    colour = torch.rand(3, 1, 1, generator=generator) - 0.5
    picture = colour + 0.5 * (torch.rand(3, height, width, generator=generator) * 2 - 1)
    return Photo(picture, None, f"painting{seed}.png", f"{seed:064x}")


SEVERAL: list[Given] = [paint(1), [paint(2, 70, 150), paint(3)], paint(4, 64, 64), paint(5, 200, 90)]
"""The paintings of four styles, of different sizes, one style with two paintings: more crops and views."""


def short(backbone: inst.Backbone, paintings: Sequence[Given], **settings: Any) -> LearningTogether:
    given = {"steps": 8, "batch_size": 3, "crops": 5, "validate_every": 3} | settings
    return learn_together(backbone, paintings, **given)


def alone(backbone: inst.Backbone, painting: Given, **settings: Any) -> Style:
    given = {"steps": 8, "batch_size": 3, "crops": 5, "validate_every": 3} | settings
    return complete(inst.learn(backbone, painting, **given))


def finish(learning: LearningTogether) -> tuple[list[SharedStep], list[Any]]:
    steps: list[SharedStep] = []
    return steps, complete(learning, steps.append)


def assert_same(found: Style, expected: Style, tolerance: float = TOLERANCE) -> None:
    spread = expected.vectors.std().item()
    torch.testing.assert_close(found.vectors, expected.vectors, rtol=0, atol=tolerance * spread)
    losses = {"loss", "start_loss"}
    assert {k: v for k, v in found.about.items() if k not in losses} == {
        k: v for k, v in expected.about.items() if k not in losses
    }
    for key in losses:
        loss = expected.about[key]
        assert found.about[key] == (None if loss is None else pytest.approx(loss, rel=1e-4))
    assert found.paintings == expected.paintings


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[LearningRun]:
    """Every run that is made in this test."""
    made: list[LearningRun] = []
    start = LearningRun.__init__

    def note(run: LearningRun, *given: Any, **named: Any) -> None:
        start(run, *given, **named)
        made.append(run)

    monkeypatch.setattr(LearningRun, "__init__", note)
    return made


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recording]:
    recording = Recording()
    for place in ("run", "together"):
        monkeypatch.setattr(f"inst.learning.{place}.cuda_graphs", lambda device: Graphs(recording))
    return recording


# The same as alone


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    "settings",
    [{}, {"dropout": 0.0, "validate_every": 0}, {"most_samples": 5, "pretrained": False, "dropout": 0.3}],
    ids=str,
)
def test_each_style_is_what_it_is_alone(tiny_backbone: inst.Backbone, variant: str, settings: dict[str, Any]) -> None:
    steps, found = finish(short(tiny_backbone, SEVERAL[:3], variant=variant, **settings))
    settings = {name: value for name, value in settings.items() if name != "most_samples"}
    for painting, style in zip(SEVERAL[:3], found, strict=True):
        assert_same(style, alone(tiny_backbone, painting, variant=variant, **settings))
    assert [step.step for step in steps] == [1, 2, 3, 4, 5, 6, 7, 8]


def test_the_gradients_of_a_step_are_those_of_each_alone(tiny_backbone: inst.Backbone, runs: list[LearningRun]) -> None:
    next(short(tiny_backbone, SEVERAL))
    for painting in SEVERAL:
        next(inst.learn(tiny_backbone, painting, steps=8, batch_size=3, crops=5, validate_every=3))
    for together, single in zip(runs[:4], runs[4:], strict=True):
        for name, parameter in together.parameters.items():
            found, expected = parameter.grad, single.parameters[name].grad
            assert found is not None
            assert expected is not None
            assert (found - expected).norm() <= 1e-5 * expected.norm(), name


def test_order_and_company_do_not_matter(tiny_backbone: inst.Backbone) -> None:
    _, forwards = finish(short(tiny_backbone, SEVERAL, seeds=[1, 2, 3, 4]))
    _, backwards = finish(short(tiny_backbone, SEVERAL[::-1], seeds=[4, 3, 2, 1]))
    for one, other in zip(forwards, reversed(backwards), strict=True):
        assert_same(one, other)
    _, two = finish(short(tiny_backbone, SEVERAL[1:3], seeds=[2, 3]))
    for one, other in zip(two, forwards[1:3], strict=True):
        assert_same(one, other)


def test_one_style_has_the_bits_of_learn(tiny_backbone: inst.Backbone) -> None:
    for settings in ({}, {"validate_every": 0, "variant": "direct"}):
        steps, (style,) = finish(short(tiny_backbone, SEVERAL[:1], **settings))
        assert style.to_bytes() == alone(tiny_backbone, SEVERAL[0], **settings).to_bytes()
        losses = [step.loss for step in inst.learn(tiny_backbone, paint(1), steps=8, batch_size=3, crops=5, **settings)]
        assert [step.losses for step in steps] == [(loss,) for loss in losses]


def test_the_same_painting_twice_gives_the_same_style_unless_its_seed_differs(tiny_backbone: inst.Backbone) -> None:
    _, (one, same, other) = finish(short(tiny_backbone, [paint(1)] * 3, seeds=[5, 5, 6], names=["a", None, "b"]))
    assert torch.allclose(one.vectors, same.vectors, atol=1e-5)
    assert not torch.allclose(one.vectors, other.vectors, atol=1e-5)
    assert [style.name for style in (one, same, other)] == ["a", "painting1", "b"]
    assert [style.about["seed"] for style in (one, same, other)] == [5, 5, 6]


def test_two_text_encoders_and_no_image_encoder(tmp_path: Path) -> None:
    backbone = inst.Backbone.load(save_family(tmp_path, "sdxl"), "cpu", "float32")
    _, found = finish(short(backbone, SEVERAL, variant="direct"))
    for painting, style in zip(SEVERAL, found, strict=True):
        assert_same(style, alone(backbone, painting, variant="direct"))


def test_learning_together_inside_inference_mode_gives_the_same_styles(tiny_backbone: inst.Backbone) -> None:
    _, expected = finish(short(tiny_backbone, SEVERAL[:2]))
    with torch.inference_mode():
        _, found = finish(short(tiny_backbone, SEVERAL[:2]))
    assert [style.to_bytes() for style in found] == [style.to_bytes() for style in expected]


# Each to its own end


def test_styles_stop_at_different_steps_as_alone(tiny_backbone: inst.Backbone) -> None:
    settings = {"steps": 30, "validate_every": 1, "patience": 2, "variant": "direct", "lr": 0.01}
    steps, found = finish(short(tiny_backbone, SEVERAL, **settings))
    ends = []
    for number, painting in enumerate(SEVERAL):
        given = {"batch_size": 3, "crops": 5} | settings
        own: list[Any] = []
        style = complete(inst.learn(tiny_backbone, painting, **given), own.append)
        expected = [(step.loss, step.validation) for step in own]
        losses = [step.losses[number] for step in steps if step.losses[number] is not None]
        validations = [step.validations[number] for step in steps if step.validations[number] is not None]
        assert losses == pytest.approx([loss for loss, _ in expected], rel=1e-3)
        assert validations == pytest.approx([validation for _, validation in expected], rel=1e-3)
        known = [step.results[number] is not None for step in steps]
        assert known == [False] * (len(expected) - 1) + [True] * (len(steps) - len(expected) + 1)
        assert_same(found[number], style, 1e-3)
        ends.append(len(expected))
    assert len(set(ends)) > 2
    assert steps[-1].step == max(ends) < 30
    assert list(steps[-1].results) == found


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("validate_every", [0, 3])
def test_a_style_that_fails_disturbs_no_other(
    tiny_backbone: inst.Backbone,
    runs: list[LearningRun],
    monkeypatch: pytest.MonkeyPatch,
    recording: Recording,
    validate_every: int,
    graphs: bool,
) -> None:
    """Its noise is NaN in the third step. A graph goes on computing it, with parameters that are NaN."""
    compute, spoiled = _Batch._compute_step, [False]

    def spoil(batch: _Batch, inputs: Sequence[Tensor]) -> list[Tensor]:
        given = [one.clone() for one in inputs]
        if spoiled[0]:
            given[3][1] = torch.nan
        return compute(batch, given)

    monkeypatch.setattr(_Batch, "_compute_step", spoil)
    backbone = replace(tiny_backbone, graphs=Graphs(Recording()) if graphs else None)
    settings: dict[str, Any] = {"validate_every": validate_every, "dropout": 0.1}
    _, expected = finish(short(backbone, SEVERAL, **settings))
    runs.clear()
    learning = short(backbone, SEVERAL, **settings)
    next(learning)
    good = runs[1].best_style(with_module=False)  # without validation, these are the last parameters with a finite loss
    next(learning)
    spoiled[0] = True
    step = next(learning)
    spoiled[0] = False
    steps, found = finish(learning)
    failed = found[1]
    assert isinstance(failed, LearningDiverged)
    assert failed.step == 3
    assert torch.equal(failed.last_good.vectors, good.vectors)
    assert step.results == (None, failed, None, None)
    assert step.losses[1] is not None
    assert math.isnan(step.losses[1])
    assert [step.losses[1] for step in steps] == [None] * 5
    for number in (0, 2, 3):
        assert_same(found[number], expected[number])


def test_a_validation_loss_that_is_not_finite_ends_its_style_alone(
    tiny_backbone: inst.Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare = inst.learning.run.prepare  # type: ignore[attr-defined]
    made: list[Any] = []

    def spoil_the_third(*given: Any, **named: Any) -> Any:
        made.append(prepare(*given, **named))
        data, validation = made[-1]
        return data, replace(validation, clean=validation.clean * torch.nan) if len(made) == 3 else validation

    expected = [alone(tiny_backbone, painting) for painting in SEVERAL]
    monkeypatch.setattr("inst.learning.run.prepare", spoil_the_third)
    steps, found = finish(short(tiny_backbone, SEVERAL))
    assert isinstance(found[2], LearningDiverged)
    assert found[2].step == 0
    assert all(step.losses[2] is None and step.results[2] is found[2] for step in steps)
    for number in (0, 1, 3):
        assert_same(found[number], expected[number])


def test_a_painting_that_cannot_be_read_is_the_result_of_its_style(
    tiny_backbone: inst.Backbone, tmp_path: Path
) -> None:
    missing: Any = tmp_path / "missing.png"
    empty: Any = []
    _, (error, style, nothing) = finish(short(tiny_backbone, [missing, paint(1), empty]))
    assert isinstance(error, InstError)
    assert "missing.png" in str(error)
    assert isinstance(nothing, UsageError)
    assert style.to_bytes() == alone(tiny_backbone, paint(1)).to_bytes()
    steps, (error,) = finish(short(tiny_backbone, [missing]))
    assert steps == []
    assert isinstance(error, InstError)


def test_all_fail_with_an_absurd_rate(tiny_backbone: inst.Backbone) -> None:
    steps, found = finish(short(tiny_backbone, SEVERAL, lr=1e38, steps=40))
    assert all(isinstance(error, LearningDiverged) and "1e+38" in str(error) for error in found)
    assert len(steps) < 40
    assert all(error.last_good.vectors.isfinite().all() for error in found)


def test_in_float16_each_style_has_its_own_loss_scale(tiny_backbone_folder: Path, runs: list[LearningRun]) -> None:
    backbone = inst.Backbone.load(tiny_backbone_folder, device="cpu", dtype="float16")
    learning = short(backbone, SEVERAL, validate_every=0)
    next(learning)
    before = [{name: value.clone() for name, value in run.changing().items()} for run in runs]
    runs[2].progress = replace(runs[2].progress, loss_scale=2.0**40)
    next(learning)
    assert [run.progress.loss_scale for run in runs] == [2.0**16, 2.0**16, 2.0**39, 2.0**16]
    for number, (run, values) in enumerate(zip(runs, before, strict=True)):
        for name, value in run.changing().items():
            assert torch.equal(value, values[name]) == (number == 2), name
    _, found = finish(learning)
    assert all(isinstance(style, Style) for style in found)
    assert all(style.vectors.isfinite().all() for style in found)


# Graphs


def test_every_step_is_a_replay_of_one_graph(tiny_backbone: inst.Backbone, recording: Recording) -> None:
    graphed = replace(tiny_backbone, graphs=Graphs(Recording()))
    _, found = finish(short(graphed, SEVERAL))
    assert recording.built == 1
    assert recording.replayed == 8
    for painting, style in zip(SEVERAL, found, strict=True):
        assert_same(style, alone(tiny_backbone, painting))


def test_a_graph_serves_until_half_of_its_styles_are_done(tiny_backbone: inst.Backbone, recording: Recording) -> None:
    """Graphs of four and of two styles, and the last one takes its own steps."""
    settings = {"steps": 12, "validate_every": 1, "patience": 3, "variant": "direct", "lr": 0.01}
    graphed = replace(tiny_backbone, graphs=Graphs(Recording()))
    steps, found = finish(short(graphed, SEVERAL, **settings))
    learning = [sum(loss is not None for loss in step.losses) for step in steps]
    assert set(learning) == {4, 3, 2, 1}
    assert recording.built == 3
    assert recording.replayed == len(steps)
    for painting, style in zip(SEVERAL, found, strict=True):
        assert_same(style, alone(tiny_backbone, painting, **settings), 1e-3)


# Arguments


def test_the_settings_are_those_of_learn() -> None:
    arguments = inspect.signature(inst.learn).parameters
    own = {"backbone", "paintings", "name", "preview_every", "begin", "resume"}
    assert SharedSettings.__annotations__.keys() == arguments.keys() - own
    assert {name: str(arguments[name].annotation) for name in SharedSettings.__annotations__} == {
        name: note.__forward_arg__ for name, note in SharedSettings.__annotations__.items()
    }


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"steps": 0}, "0 steps"),
        ({"variant": "Attention"}, '"Attention" is unknown'),
        ({"variant": "direct", "layers": 5}, "has no layers"),
        ({"pretrained": True, "vectors": 4}, "has vectors: 3, not 4"),
        ({"vectors": 50}, "50 vectors|positions|too long|fit"),
        ({"keep_painting": 1}, "choice to keep the painting"),
        ({"most_samples": 0}, "0 most samples"),
        ({"names": ["one"]}, "1 names do not fit 2 styles"),
        ({"names": "ab"}, "2 names do not fit 2 styles"),
        ({"names": ["a", 3]}, "The name 3"),
        ({"seeds": [1, 2, 3]}, "3 seeds do not fit 2 styles"),
        ({"seeds": 1}, "The seeds of the styles of the type int"),
        ({"seeds": [1, -1]}, "seed -1"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_computed(
    tiny_backbone: inst.Backbone, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        short(tiny_backbone, SEVERAL[:2], **settings)


@pytest.mark.parametrize("paintings", ["painting.png", [], None, torch.zeros(3, 64, 64)])
def test_the_paintings_must_be_a_list_of_styles(tiny_backbone: inst.Backbone, paintings: Any) -> None:
    with pytest.raises(UsageError, match="one entry for each style"):
        short(tiny_backbone, paintings)


def test_settings_of_one_style_are_no_settings_of_several(tiny_backbone: inst.Backbone) -> None:
    other: dict[str, Any] = {"preview_every": 5}
    with pytest.raises(TypeError, match="preview_every"):
        short(tiny_backbone, SEVERAL, **other)
