"""Learning on a tiny random model: what changes and what does not, exact resume, and what the loss is."""

import copy
import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import inst
from inst import InstError, InstWarning, LearningDiverged, LearningState, UsageError
from inst.backbone.inversion import VARIANTS, build_inversion
from inst.learning import data
from inst.learning.data import (
    CAPTIONS,
    Square,
    denoising_loss,
    draw_captions,
    embed_paintings,
    prepare,
    random_square,
    view_squares,
)
from inst.learning.instant import instant_style
from inst.learning.loop import Learning, LearningStep, learn
from inst.learning.run import LearningRun, learning_rate, spread_timesteps
from inst.learning.settings import PRESETS
from inst.learning.state import GROWTH_INTERVAL, Progress
from inst.pictures.reading import Photo
from inst.runs import complete
from inst.styles.style import Style
from tiny import write_tiny_backbone


def paint(seed: int, height: int = 80, width: int = 80) -> Photo:
    """Stripes of two colours."""
    generator = torch.Generator().manual_seed(seed)
    colours = torch.rand(2, 3, 1, 1, generator=generator) * 2 - 1
    wave = torch.sin(torch.arange(width) * (0.1 + 0.3 * torch.rand((), generator=generator))).expand(1, height, width)
    return Photo(colours[0] + (colours[1] - colours[0]) * (wave + 1) / 2, None, f"painting{seed}.png", f"{seed:064x}")


def short(backbone: inst.Backbone, *paintings: Photo, **settings: Any) -> Learning:
    """A learning of 6 steps, unless said otherwise."""
    given = {"steps": 6, "batch_size": 2, "crops": 3, "validate_every": 2} | settings
    return learn(backbone, paintings or [paint(1)], **given)


def finish(learning: Learning) -> tuple[list[LearningStep], Style]:
    steps = []
    while True:
        try:
            steps.append(next(learning))
        except StopIteration as end:
            return steps, end.value


def digest(backbone: inst.Backbone) -> str:
    """Of every byte that the backbone holds, also of the pretrained inversion module."""
    found = hashlib.sha256()
    for part in (backbone.vae, backbone.unet, backbone.text_encoder, backbone.image_encoder, backbone.inversion):
        for name, value in sorted(part.state_dict().items()):
            found.update(name.encode() + value.numpy().tobytes())
    found.update(backbone.alphas_cumprod.numpy().tobytes())
    return found.hexdigest()


@pytest.fixture(scope="module")
def blind_backbone(tmp_path_factory: pytest.TempPathFactory) -> inst.Backbone:
    """An epsilon model without image encoder, and so without pretrained module: as Stable Diffusion's folders are."""
    folder = write_tiny_backbone(tmp_path_factory.mktemp("blind"), "epsilon")
    index = json.loads((folder / "model_index.json").read_text())
    for name in ("image_encoder", "feature_extractor"):
        del index[name]
    (folder / "model_index.json").write_text(json.dumps(index))
    for name in ("image_encoder", "feature_extractor", "inversion"):
        (folder / name).rename(folder / f"not-{name}")
    return inst.Backbone.load(folder, device="cpu", dtype="float32")


# What learning does


@pytest.mark.parametrize("variant", VARIANTS)
def test_learning_lowers_the_validation_loss(tiny_backbone: inst.Backbone, variant: str) -> None:
    steps, style = finish(short(tiny_backbone, variant=variant, pretrained=False, steps=30, validate_every=10))
    assert len(steps) == 30
    assert steps[-1].validation is not None
    assert steps[-1].validation < style.about["start_loss"]
    assert style.about["variant"] == variant
    assert style.about["loss"] == min(step.validation for step in steps if step.validation is not None)


@pytest.mark.parametrize("pretrained", [True, False])
def test_only_the_inversion_module_changes_in_learning(tiny_backbone: inst.Backbone, pretrained: bool) -> None:
    before = digest(tiny_backbone)
    learning = short(tiny_backbone, pretrained=pretrained, lr=0.1)
    first = next(learning).state()
    last = finish(learning)[0][-1].state()
    changed = {key for key, value in first.part("module").items() if not torch.equal(value, last.part("module")[key])}
    assert changed == set(first.part("module"))
    assert digest(tiny_backbone) == before
    frozen = (tiny_backbone.vae, tiny_backbone.unet, tiny_backbone.text_encoder, tiny_backbone.image_encoder)
    for part in (*frozen, tiny_backbone.inversion):
        assert not part.training
        assert all(parameter.grad is None and not parameter.requires_grad for parameter in part.parameters())


def test_the_loss_is_the_mean_squared_error_of_the_noise(
    tiny_backbone: inst.Backbone, blind_backbone: inst.Backbone
) -> None:
    """The mean squared error of epsilon, against diffusers' own noising; for a v model by v's definition."""
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 3, 4, 8, 8, generator=generator)
    timesteps = torch.tensor([0, 500, 999])
    for backbone in (tiny_backbone, blind_backbone):
        text = backbone.embed_text(["a painting"])
        noisy = backbone.scheduler.add_noise(clean, noise, timesteps)
        output = backbone.unet(noisy, timesteps, text.tokens.expand(3, -1, -1)).sample
        abar = backbone.scheduler.alphas_cumprod[timesteps].view(3, 1, 1, 1)
        if backbone is tiny_backbone:  # v = sqrt(abar) eps - sqrt(1 - abar) z_0, and z_t = ... : solved for eps
            output = abar.sqrt() * output + (1 - abar).sqrt() * noisy
        expected = torch.stack([((output[i] - noise[i]) ** 2).mean() for i in range(3)])
        found = denoising_loss(backbone, text, clean, noise, timesteps)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_after_the_first_step_nothing_is_encoded_or_tokenised_again(
    tiny_backbone: inst.Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def count(owner: object, name: str) -> None:
        real: Callable[..., Any] = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *given, **named: (calls.append(name), real(*given, **named))[1])

    count(tiny_backbone.vae, "encode")
    count(tiny_backbone.image_encoder, "forward")
    count(type(tiny_backbone.tokenizer), "__call__")
    learning = short(tiny_backbone)
    next(learning)
    assert set(calls) == {"encode", "forward", "__call__"}
    calls.clear()
    finish(learning)
    assert calls == []


def test_learning_begins_with_the_instant_style(tiny_backbone: inst.Backbone) -> None:
    """A rate at which nothing can get better: the best is the start, which is the pretrained module's word."""
    painting = paint(1, 64, 120)
    steps, style = finish(short(tiny_backbone, painting, lr=1e-30, steps=50, patience=3))
    assert [step.step for step in steps] == [1, 2, 3, 4, 5, 6]  # three validations, none better
    assert torch.equal(style.vectors, instant_style(tiny_backbone, [painting]).vectors)
    assert style.about["steps"] == 0
    assert style.about["loss"] == style.about["start_loss"]


def test_the_best_style_is_that_of_the_lowest_validation_loss(tiny_backbone: inst.Backbone) -> None:
    learning = short(tiny_backbone, pretrained=False, variant="direct", lr=0.03, steps=12, validate_every=1, patience=9)
    seen: dict[float, torch.Tensor] = {}
    best = []
    for step in learning:
        assert step.validation is not None
        seen[step.validation] = step.style().vectors
        lowest = min([step.best_style().about["start_loss"], *seen])
        assert step.best == (step.validation == lowest)
        if lowest in seen:
            assert torch.equal(step.best_style().vectors, seen[lowest])
            best.append(step.best_style().about["steps"])
    assert best == sorted(best)
    assert len(set(seen)) > 1


def test_without_validation_the_last_state_is_the_result(tiny_backbone: inst.Backbone) -> None:
    learning = short(tiny_backbone, validate_every=0)
    for step in learning:
        assert step.validation is None
        assert not step.best
        latest = step.style()
    result = finish(short(tiny_backbone, validate_every=0))[1]
    assert torch.equal(latest.vectors, result.vectors)
    assert result.about["loss"] is None
    assert result.about["steps"] == 6


def test_a_step_reports_loss_rate_and_time_and_a_style_its_settings(tiny_backbone: inst.Backbone) -> None:
    steps, style = finish(short(tiny_backbone, steps=7, validate_every=3, lr=1e-3))
    assert [step.step for step in steps] == [1, 2, 3, 4, 5, 6, 7]
    assert {step.total for step in steps} == {7}
    assert [step.step for step in steps if step.validation is not None] == [3, 6, 7]
    assert steps[0].smoothed == pytest.approx(steps[0].loss)
    average, weight = 0.0, 0.0
    for step in steps:
        average, weight = 0.98 * average + 0.02 * step.loss, 0.98 * weight + 0.02
        assert step.smoothed == pytest.approx(average / weight)
        assert step.lr == learning_rate(step.step - 1, 7, 1e-3)
    seconds = [step.seconds for step in steps]
    assert seconds == sorted(seconds)
    assert steps[-1].remaining == 0 < steps[0].remaining
    assert style.about["settings"]["lr"] == 1e-3
    assert style.about["settings"]["batch_size"] == 2
    assert style.about["seed"] == 0
    assert style.about["backbone"] == tiny_backbone.name
    assert style.about["paintings"] == [{"name": "painting1.png", "sha256": f"{1:064x}"}]
    assert style.name == "painting1"
    assert style.check(tiny_backbone) is None
    assert style.painting() is not None
    assert Style.from_bytes(style.to_bytes()).about == style.about


def test_a_style_can_hold_the_module_that_made_its_vectors(tiny_backbone: inst.Backbone) -> None:
    steps, style = finish(short(tiny_backbone, lr=0.1))
    assert style.module is None
    whole = steps[-1].style(with_module=True)
    assert whole.module is not None
    assert whole.module_config is not None
    module = build_inversion(whole.module_config).eval()
    module.load_state_dict(dict(whole.module))
    views = embed_paintings(tiny_backbone, [paint(1)])
    torch.testing.assert_close(module(*views).mean(dim=0), whole.vectors)


# The same again


@pytest.mark.parametrize("pretrained", [True, False])
def test_the_same_seed_gives_the_same_style_whatever_the_global_random_state(
    tiny_backbone: inst.Backbone, pretrained: bool
) -> None:
    torch.manual_seed(1)
    one = finish(short(tiny_backbone, pretrained=pretrained, dropout=0.5, lr=0.1))[1]
    torch.manual_seed(2)
    before = torch.get_rng_state()
    other = finish(short(tiny_backbone, pretrained=pretrained, dropout=0.5, lr=0.1))[1]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.vectors, other.vectors)
    assert one.to_bytes() == other.to_bytes()
    third = finish(short(tiny_backbone, pretrained=pretrained, dropout=0.5, lr=0.1, seed=3, validate_every=0))[1]
    assert not torch.equal(one.vectors, third.vectors)


@pytest.mark.parametrize(
    ("variant", "at"), [("attention", 1), ("attention", 4), ("attention", 6), ("pooled", 4), ("direct", 4)]
)
def test_a_resumed_learning_gives_what_an_uninterrupted_one_gives(
    tiny_backbone: inst.Backbone, tmp_path: Path, variant: str, at: int
) -> None:
    settings = {"variant": variant, "steps": 8, "lr": 1e-3, "dropout": 0.3, "validate_every": 3, "crops": 5}
    paintings = [paint(1, 70, 150), paint(2)]
    straight, result = finish(short(tiny_backbone, *paintings, **settings))

    learning = short(tiny_backbone, *paintings, **settings)
    for _ in range(at):
        step = next(learning)
    learning.close()  # an interrupt between two steps
    state = LearningState.load(step.state().save(tmp_path / "state.safetensors"))
    torch.manual_seed(99)
    rest, again = finish(short(tiny_backbone, *paintings, **settings, resume=state))

    assert [step.step for step in rest] == list(range(at + 1, 9))
    for expected, found in zip(straight[at:], rest, strict=True):
        assert (found.loss, found.smoothed, found.lr) == (expected.loss, expected.smoothed, expected.lr)
        assert (found.validation, found.best) == (expected.validation, expected.best)
    assert torch.equal(again.vectors, result.vectors)
    assert again.about == result.about


def test_a_finished_learning_can_be_resumed_for_more_steps(tiny_backbone: inst.Backbone) -> None:
    state = finish(short(tiny_backbone))[0][-1].state()
    steps, _ = finish(short(tiny_backbone, steps=8, patience=20, resume=state))
    assert [step.step for step in steps] == [7, 8]
    assert steps[0].seconds > state.progress.seconds
    assert finish(short(tiny_backbone, resume=state))[0] == []  # nothing is left to do


@pytest.mark.parametrize("variant", ["attention", "direct"])
@pytest.mark.parametrize("with_module", [True, False])
def test_learning_on_begins_with_the_word_and_the_steps_of_a_style(
    tiny_backbone: inst.Backbone, variant: str, with_module: bool
) -> None:
    """Also from a file, from scratch, and without its module, whose network then stays what it was at the start."""
    first = short(tiny_backbone, variant=variant, pretrained=False, seed=3, patience=9)
    *_, last = (step.style(with_module=with_module) for step in first)
    style = Style.from_bytes(last.to_bytes())
    loss = style.about["loss"]
    (step,), better = finish(short(tiny_backbone, variant=variant, steps=7, begin=style, patience=9, lr=1e-9))
    assert (step.step, step.total) == (7, 7)
    assert step.lr < 1e-9 / 5, "the rate warms up again"
    torch.testing.assert_close(better.vectors, style.vectors, rtol=0, atol=2e-4)
    assert better.about["start_loss"] == pytest.approx(loss, rel=0.1)  # over other crops and noise: another seed
    assert better.about["steps"] in (6, 7)


def test_learning_on_with_the_module_goes_on_learning(tiny_backbone: inst.Backbone) -> None:
    """The loss falls below that of the style, and an interruption changes nothing."""
    *_, step = learn(tiny_backbone, [paint(1)], steps=20, crops=3, validate_every=5, patience=9)
    style = step.best_style(with_module=True)
    given = {"steps": 60, "crops": 3, "validate_every": 5, "patience": 99, "begin": style}
    run = learn(tiny_backbone, [paint(1)], **given)
    state = next(run).state()
    _, straight = finish(run)
    assert straight.about["loss"] < style.about["loss"]
    assert straight.about["start_loss"] == pytest.approx(style.about["loss"], rel=1e-6)
    _, resumed = finish(learn(tiny_backbone, [paint(1)], **given, resume=state))
    assert torch.equal(resumed.vectors, straight.vectors)
    without = {key: value for key, value in given.items() if key != "begin"}
    _, resumed = finish(learn(tiny_backbone, [paint(1)], **without, resume=state))
    assert torch.equal(resumed.vectors, straight.vectors), "the state knows the rest"


def test_learning_on_is_refused_where_it_cannot_be(tiny_backbone: inst.Backbone) -> None:
    _, style = finish(short(tiny_backbone))
    for changed, settings, said in (
        (style, {"steps": int(style.about["steps"])}, "was learned for"),
        (style, {"vectors": 2}, "has vectors 3, not 2"),
        (replace(style, vectors=torch.zeros(0, 32)), {}, "no pseudo-word"),
        (replace(style, fingerprint="other"), {}, "text space"),
    ):
        with pytest.raises(UsageError, match=said):
            short(tiny_backbone, begin=changed, **settings)
    *_, step = short(tiny_backbone, variant="pooled", pretrained=False)
    with pytest.raises(UsageError, match="has variant pooled, not attention"):
        short(tiny_backbone, variant="attention", begin=step.style(with_module=True), steps=9)


def test_a_past_step_refuses_its_style_and_state_but_gives_the_best_style(tiny_backbone: inst.Backbone) -> None:
    learning = short(tiny_backbone)
    first = next(learning)
    next(learning)
    for ask in (first.style, first.state):
        with pytest.raises(RuntimeError, match="step 1"):
            ask()
    learning.close()
    assert first.best_style().vectors.isfinite().all()


def test_an_interrupt_within_a_step_leaves_the_best_style_and_no_state(
    tiny_backbone: inst.Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    learning = short(tiny_backbone)
    next(learning)
    last = next(learning)
    expected = last.best_style().vectors

    def interrupt(*given: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("inst.learning.run.denoising_loss", interrupt)
    with pytest.raises(KeyboardInterrupt):
        next(learning)
    assert torch.equal(last.best_style().vectors, expected)
    with pytest.raises(RuntimeError):  # half a step cannot be gone on from
        last.state()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"lr": 0.5}, "has lr 0.001, not 0.5"),
        ({"batch_size": 1}, "has batch size 2, not 1"),
        ({"seed": 1}, "has seed 0, not 1"),
        ({"variant": "direct", "lr": 0.001}, "not direct"),
        ({"vectors": 2}, "has vectors 3, not 2"),  # and then layers and pretrained differ, too
        ({"layers": 2}, "has layers 1, not 2"),
    ],
)
def test_resuming_with_other_settings_is_refused(
    tiny_backbone: inst.Backbone, settings: dict[str, Any], said: str
) -> None:
    state = next(short(tiny_backbone, lr=0.001)).state()
    with pytest.raises(UsageError, match=said):
        short(tiny_backbone, **({"lr": 0.001} | settings), resume=state)


def test_resuming_with_other_paintings_or_another_text_space_is_refused(
    tiny_backbone: inst.Backbone, blind_backbone: inst.Backbone
) -> None:
    state = next(short(tiny_backbone, variant="direct")).state()
    with pytest.raises(UsageError, match="set of paintings"):
        short(tiny_backbone, paint(2), variant="direct", resume=state)
    other = replace(state, about=dict(state.about) | {"text space": "0123456789abcdef"})
    with pytest.raises(UsageError, match="text space"):
        short(tiny_backbone, variant="direct", resume=other)


def test_resuming_with_another_image_encoder_is_refused_unless_direct(tiny_backbone: inst.Backbone) -> None:
    """Nor one of the same sizes, with which it would go on as if nothing were; "direct" looks through none."""
    other = copy.copy(tiny_backbone)
    other.image_encoder = copy.deepcopy(tiny_backbone.image_encoder)
    assert other.image_encoder is not None
    other.image_encoder.visual_projection.weight.data.neg_()
    state = next(short(tiny_backbone)).state()
    with pytest.raises(UsageError, match="different image encoder"):
        short(other, resume=state)
    next(short(other, variant="direct", resume=next(short(tiny_backbone, variant="direct")).state()))


def test_without_a_deterministic_kernel_learning_goes_on_with_a_warning(
    tiny_backbone: inst.Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And gives the style that it would have given, dropout and all. The error is PyTorch's own."""
    expected = finish(short(tiny_backbone, steps=2))[1].vectors
    compute, calls = LearningRun._compute_step, []

    def fail_once(run: LearningRun, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        calls.append(run)
        if len(calls) == 2:
            torch.use_deterministic_algorithms(True)
            try:
                torch.zeros(3).put_(torch.tensor([0]), torch.tensor([1.0]))
            finally:
                torch.use_deterministic_algorithms(False)
        return compute(run, inputs)

    monkeypatch.setattr("inst.backbone.devices._NONDETERMINISTIC", set())
    monkeypatch.setattr(LearningRun, "_compute_step", fail_once)
    with pytest.warns(InstWarning, match="on cpu: put_ has no deterministic kernel"):
        found = finish(short(tiny_backbone, steps=2))[1].vectors
    assert len(calls) == 3
    assert torch.equal(found, expected)


def test_resuming_in_another_precision_is_refused(tiny_backbone: inst.Backbone, tiny_backbone_folder: Path) -> None:
    """The bits would be others, and float16 needs its loss scaled, which a state of float32 knows nothing of."""
    state = next(short(tiny_backbone, variant="direct")).state()
    half = inst.Backbone.load(tiny_backbone_folder, device="cpu", dtype="float16")
    with pytest.raises(UsageError, match=r"different precision \(float32, not float16\)"):
        short(half, variant="direct", resume=state)


@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "other", "older"])
def test_a_broken_state_file_is_refused_in_one_line(tiny_backbone: inst.Backbone, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "state.safetensors"
    state = next(short(tiny_backbone, variant="direct")).state()
    if damage == "older":
        broken = json.dumps({"progress": {"step": 3}, "settings": {}, "about": {}})
        save_file(dict(state.tensors), path, {"inst_learning": broken})
    elif damage == "other":
        save_file(dict(state.tensors), path)
    elif damage != "missing":
        state.save(path)
        path.write_bytes(path.read_bytes()[: 0 if damage == "empty" else -100])
    with pytest.raises(InstError) as caught:
        LearningState.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


# When it goes wrong


def test_a_loss_that_is_not_finite_stops_with_the_last_good_style(tiny_backbone: inst.Backbone) -> None:
    learning = short(tiny_backbone, lr=1e38, steps=40)
    seen: list[LearningStep] = []
    with pytest.raises(LearningDiverged, match="not finite") as caught:
        complete(learning, lambda step: seen.append(step))
    error = caught.value
    assert error.exit_code == 1
    assert "1e+38" in str(error)
    assert "\n" not in str(error)
    assert error.step == len(seen) + 1
    assert error.last_good.vectors.isfinite().all()
    assert torch.equal(error.last_good.vectors, instant_style(tiny_backbone, [paint(1)]).vectors)


def test_a_gradient_overflow_in_float16_halves_the_loss_scale_and_skips_the_step(tiny_backbone_folder: Path) -> None:
    backbone = inst.Backbone.load(tiny_backbone_folder, device="cpu", dtype="float16")
    learning = short(backbone, steps=3)
    first = next(learning)
    run: LearningRun = first._run
    assert {parameter.dtype for parameter in run.parameters.values()} == {torch.float32}
    before = first.state()
    run.progress = replace(run.progress, loss_scale=2.0**40)
    skipped = next(learning).state()
    assert skipped.progress.loss_scale == 2.0**39
    for key, value in before.part("module").items():
        assert torch.equal(value, skipped.part("module")[key])
    run.progress = replace(run.progress, loss_scale=1.0)
    run.parameters["offsets"].register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(LearningDiverged, match="float32"):
        next(learning)


def test_the_loss_scale_grows_back_as_that_of_gradscaler_does() -> None:
    parameter = torch.nn.Parameter(torch.zeros(()))
    adam, start = torch.optim.Adam([parameter]), 2.0**16
    scaler = torch.amp.GradScaler("cpu", init_scale=start, growth_interval=GROWTH_INTERVAL)
    progress = Progress(loss_scale=start)
    overflows = {
        0,
        1,
        20,
        20 + GROWTH_INTERVAL,
        21 + 2 * GROWTH_INTERVAL,
    }  # in the step that would double it, and after
    for step in range(8 * GROWTH_INTERVAL):
        finite = step not in overflows
        scaler.scale(parameter * (1.0 if finite else math.inf)).backward()
        scaler.step(adam)
        scaler.update()
        adam.zero_grad()
        progress = progress.after_finite_gradient(start) if finite else progress.after_overflow()
        assert progress.loss_scale == min(start, scaler.get_scale())  # ours ends where it began
    assert progress.loss_scale == start
    assert Progress().after_finite_gradient(1.0) == Progress()  # other precisions


def test_the_loss_scale_grows_after_a_resume_as_without_one(
    tiny_backbone_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inst.learning.state.GROWTH_INTERVAL", 3)
    backbone = inst.Backbone.load(tiny_backbone_folder, device="cpu", dtype="float16")
    learning = short(backbone, steps=6)
    state = next(learning).state()
    state = replace(state, progress=state.progress.after_overflow())
    seen = [step.state() for step in short(backbone, steps=6, resume=state)]
    assert [one.progress.loss_scale for one in seen] == [2.0**15] * 2 + [2.0**16] * 3
    read = LearningState.load(seen[0].save(tmp_path / "state.safetensors"))
    again = [step.state() for step in short(backbone, steps=6, resume=read)]
    assert [one.progress.loss_scale for one in again] == [one.progress.loss_scale for one in seen[1:]]
    assert all(torch.equal(value, again[-1].tensors[key]) for key, value in seen[-1].tensors.items())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_gives_nearly_the_same_gradient_as_float32(
    tiny_backbone: inst.Backbone, tiny_backbone_folder: Path, dtype: str
) -> None:
    """The gradient of a step in half precision points where float32's does."""
    gradients = []
    for backbone in (tiny_backbone, inst.Backbone.load(tiny_backbone_folder, device="cpu", dtype=dtype)):
        run = next(short(backbone, dropout=0.0, batch_size=8))._run
        gradients.append(torch.cat([p.grad.flatten() for p in run.parameters.values() if p.grad is not None]))
    one, other = gradients
    assert torch.cosine_similarity(one, other, dim=0) > 0.98
    assert other.norm() / one.norm() == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"steps": 0}, "0 steps"),
        ({"batch_size": 0}, "0 batch size"),
        ({"crops": 0}, "0 crops"),
        ({"patience": 0}, "0 patience"),
        ({"validate_every": -1}, "-1 steps"),
        ({"preview_every": -1}, "-1 steps"),
        ({"lr": 0.0}, "rate of 0.0"),
        ({"lr": math.nan}, "rate of nan"),
        ({"seed": -1}, "seed -1"),
        ({"variant": "Attention"}, '"Attention" is unknown: use one of attention, pooled, direct'),
        ({"variant": "direct", "layers": 5}, "has no layers"),
        ({"pretrained": True, "vectors": 4}, "has vectors: 3, not 4"),
        ({"pretrained": True, "layers": 2}, "has layers: 1, not 2"),
        ({"pretrained": True, "variant": "pooled"}, "has the variant attention, not pooled"),
    ],
)
def test_bad_settings_are_refused_at_once(tiny_backbone: inst.Backbone, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        short(tiny_backbone, **settings)


def test_settings_that_the_module_cannot_have_are_refused(tiny_backbone: inst.Backbone) -> None:
    for settings, said in (({"dropout": 1.5}, "dropout of 1.5"), ({"vectors": 0, "pretrained": False}, "0 vectors")):
        with pytest.raises(UsageError, match=said):
            short(tiny_backbone, **settings)
    with pytest.raises(UsageError, match="does not fit"):
        short(tiny_backbone, vectors=30)


def test_an_empty_list_of_paintings_is_refused(tiny_backbone: inst.Backbone) -> None:
    for call in (learn, instant_style):
        with pytest.raises(UsageError, match="No painting"):
            call(tiny_backbone, [])


# Other backbones


def test_without_image_encoder_only_the_direct_variant_works(blind_backbone: inst.Backbone) -> None:
    steps, style = finish(short(blind_backbone, variant="direct", steps=20, validate_every=10))
    assert style.vectors.shape == (8, 32)
    assert steps[-1].validation is not None
    assert steps[-1].validation < style.about["start_loss"]
    for variant in ("attention", "pooled"):
        with pytest.raises(UsageError, match=r'without one .variant="direct"'):
            short(blind_backbone, variant=variant)
    with pytest.raises(UsageError, match="no pretrained inversion module"):
        short(blind_backbone, variant="direct", pretrained=True)


def test_without_pretrained_module_the_instant_style_is_its_painting_alone(blind_backbone: inst.Backbone) -> None:
    style = instant_style(blind_backbone, [paint(1)])
    assert not style.has_word
    assert len(style.paintings) == 1
    assert style.check(blind_backbone) is None


def test_without_image_encoder_the_default_variant_is_direct_with_one_warning(blind_backbone: inst.Backbone) -> None:
    with pytest.warns(InstWarning, match="`image_encoder`") as caught:
        style = finish(short(blind_backbone, steps=1))[1]
    assert style.about["variant"] == "direct"
    assert len(caught) == 1
    assert caught[0].filename == __file__


@pytest.mark.filterwarnings("error::inst.InstWarning")
def test_default_attention_with_an_image_encoder_and_chosen_direct_give_no_warning(
    tiny_backbone: inst.Backbone, blind_backbone: inst.Backbone
) -> None:
    assert finish(short(tiny_backbone, steps=1))[1].about["variant"] == "attention"
    assert finish(short(blind_backbone, steps=1, variant="direct"))[1].about["variant"] == "direct"


def test_settings_that_the_pretrained_module_lacks_are_learned_from_scratch(tiny_backbone: inst.Backbone) -> None:
    for settings in ({"vectors": 2}, {"layers": 2}, {"variant": "pooled"}, {"variant": "direct"}):
        style = finish(short(tiny_backbone, steps=1, **settings))[1]
        assert style.about["settings"]["pretrained"] is False
        assert len(style.vectors) == settings.get("vectors", 8)
    assert finish(short(tiny_backbone, steps=1))[1].about["settings"]["pretrained"] is True


def test_the_paper_preset_has_the_settings_of_the_paper() -> None:
    assert PRESETS["paper"] == {"lr": 1e-3, "batch_size": 1, "dropout": 0.05}


def test_learning_inside_inference_mode_gives_the_same_style(tiny_backbone: inst.Backbone) -> None:
    with torch.inference_mode():
        inside = finish(short(tiny_backbone, lr=0.1))[1]
    assert torch.equal(inside.vectors, finish(short(tiny_backbone, lr=0.1))[1].vectors)


# Instant style


def test_an_instant_style_is_the_mean_of_the_modules_words(tiny_backbone: inst.Backbone) -> None:
    painting = paint(4, 64, 110)
    style = instant_style(tiny_backbone, [painting])
    assert tiny_backbone.inversion is not None
    squares = view_squares(64, 110, 64, 8)
    assert len(set(squares)) == 8
    words = [tiny_backbone.inversion(*tiny_backbone.embed_picture(s.cut(painting.picture, 64)[None])) for s in squares]
    torch.testing.assert_close(style.vectors, torch.cat(words).mean(dim=0))
    assert style.name == "painting4"
    assert style.about["variant"] == "instant"
    assert style.painting() is not None
    assert torch.equal(instant_style(tiny_backbone, [painting]).vectors, style.vectors)
    assert not torch.equal(instant_style(tiny_backbone, [paint(5, 64, 64)]).vectors, style.vectors)
    assert instant_style(tiny_backbone, [painting], name="mine").name == "mine"


def test_an_instant_style_of_several_paintings_is_their_mean(tiny_backbone: inst.Backbone) -> None:
    paintings = [paint(4), paint(5, 64, 100)]
    words = [instant_style(tiny_backbone, [painting]).vectors for painting in paintings]
    torch.testing.assert_close(instant_style(tiny_backbone, paintings).vectors, (words[0] + words[1]) / 2)
    assert instant_style(tiny_backbone, [paint(6, 8, 8)] * 70).vectors.shape == (3, 32)


# Previews


def test_previews_come_when_asked_and_change_nothing(tiny_backbone: inst.Backbone) -> None:
    steps, style = finish(short(tiny_backbone, lr=3e-3, preview_every=4))
    shown = {step.step: step.preview for step in steps if step.preview is not None}
    assert list(shown) == [4, 6]
    assert shown[4].shape == (3, 64, 64)
    assert shown[4].abs().max() <= 1
    assert not torch.equal(shown[4], shown[6])
    again = finish(short(tiny_backbone, lr=3e-3, preview_every=4))[0][3].preview
    assert again is not None
    assert torch.equal(again, shown[4])
    assert torch.equal(finish(short(tiny_backbone, lr=3e-3))[1].vectors, style.vectors)


# The parts


@pytest.mark.parametrize("crops", [2, 3, 7])
def test_validation_uses_other_crops_than_training_even_with_few_crops(
    tiny_backbone: inst.Backbone, crops: int
) -> None:
    paintings = [paint(seed, 90, 120) for seed in (1, 2, 3)]
    assert tiny_backbone.inversion is not None
    generator = torch.Generator().manual_seed(0)
    data, validation = prepare(tiny_backbone, paintings, tiny_backbone.inversion, crops, generator)
    assert len(data.mean) == max(crops, 3)
    centres, own = prepare(tiny_backbone, paintings, tiny_backbone.inversion, 1, generator)
    assert len(centres.mean) == 3
    assert {one.tobytes() for one in own.clean.numpy()} == {one.tobytes() for one in centres.mean.numpy()}
    known = torch.cat([data.mean, centres.mean])
    assert all((one != known).flatten(1).any(dim=1).all() for one in validation.clean)
    assert all((one != centres.mean).flatten(1).any(dim=1).all() for one in data.mean)


def test_random_squares_lie_within_the_picture_and_are_not_enlarged_much() -> None:
    generator = torch.Generator().manual_seed(0)
    for height, width, size in ((300, 500, 64), (500, 300, 256), (100, 64, 64), (20, 900, 64), (1, 1, 64)):
        squares = [random_square(height, width, size, generator) for _ in range(100)]
        shorter = min(height, width)
        for square in squares:
            assert 0 <= square.top <= height - square.side
            assert 0 <= square.left <= width - square.side
            assert square.side >= 0.6 * shorter - 1
            assert square.side >= min(shorter, size / 1.25 - 1)
        assert 25 < sum(square.mirrored for square in squares) < 75
    assert len({square.side for square in squares}) == 1
    picture = torch.arange(12.0).view(1, 3, 4).expand(3, -1, -1) / 12
    assert torch.equal(Square(1, 2, 2).cut(picture, 2), picture[:, 1:3, 2:4])
    assert torch.equal(Square(1, 2, 2, mirrored=True).cut(picture, 2), picture[:, 1:3, 2:4].flip(-1))


def test_timesteps_fill_the_range_evenly_from_any_step() -> None:
    every = spread_timesteps(0, 1000, 1000, 0.3)
    assert torch.equal(torch.cat([spread_timesteps(first, 8, 1000, 0.3) for first in range(0, 1000, 8)]), every)
    assert every.min() >= 0
    assert every.max() < 1000
    for first in (0, 123, 777):
        counts = torch.histc(spread_timesteps(first, 100, 1000, 0.7).float(), bins=10, min=0, max=1000)
        assert counts.min() >= 9
        assert counts.max() <= 11
    assert spread_timesteps(0, 1, 1000, 1 - 1e-12).item() == 999


def test_half_of_the_captions_are_the_placeholder_alone() -> None:
    drawn = torch.bincount(draw_captions(4000, torch.Generator().manual_seed(0)), minlength=len(CAPTIONS)) / 4000
    assert CAPTIONS[0] == "[C]"
    assert all("[C]" in caption for caption in CAPTIONS)
    assert drawn[0].item() == pytest.approx(0.5, abs=0.03)
    assert drawn[1:].tolist() == pytest.approx([0.5 / 3] * 3, abs=0.03)


def test_the_learning_rate_warms_up_and_falls_to_a_tenth() -> None:
    rates = [learning_rate(step, 100, 2.0) for step in range(100)]
    assert rates[0] == pytest.approx(0.2, rel=0.01)
    assert max(rates) == pytest.approx(2.0, rel=0.05)
    assert rates.index(max(rates)) == 9
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert learning_rate(100, 100, 2.0) == pytest.approx(0.2)
    assert learning_rate(150, 100, 2.0) == pytest.approx(0.2)


def test_progress_counts_the_validations_that_are_not_better() -> None:
    progress = Progress().after_validation(3.0)
    assert (progress.start_loss, progress.best_loss, progress.best_step, progress.stale) == (3.0, 3.0, 0, 0)
    progress = progress.after_step(1.0).after_validation(3.0)
    assert (progress.best_step, progress.stale) == (0, 1)
    progress = progress.after_step(1.0).after_validation(2.0)
    assert (progress.best_loss, progress.best_step, progress.stale) == (2.0, 2, 0)
    assert progress.smoothed == pytest.approx(1.0)


def test_the_module_sees_paintings_spread_over_very_many(
    tiny_backbone: inst.Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The patch tokens of thousands of paintings would need gigabytes."""
    paintings = [Photo(torch.full((3, 64, 64), k / 7)) for k in range(7)]
    expected = data.embed_paintings(tiny_backbone, [paintings[k] for k in (0, 2, 4)])
    monkeypatch.setattr(data, "_MOST_SEEN", 3)
    found = data.embed_paintings(tiny_backbone, paintings)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
