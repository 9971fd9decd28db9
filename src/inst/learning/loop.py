"""Learn a style: the pseudo-word of one painting, or of several paintings of one style (paper sec. 3.2)."""

from __future__ import annotations

import time
import warnings
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from inst.arguments import check_type, checked
from inst.backbone.model import Backbone, check_backbone
from inst.errors import Argument, InstWarning, UsageError
from inst.learning.checking import check_state
from inst.learning.data import painting_size
from inst.learning.run import LearningRun
from inst.learning.settings import LearningSettings
from inst.learning.start import (
    check_start,
    choose_settings,
    default_style_name,
    module_config,
    settings_of,
    steps_of,
)
from inst.learning.state import LearningState
from inst.pictures.given import Painting, Picture, to_paintings
from inst.styles.style import Style


@dataclass(frozen=True, eq=False)
class LearningStep:
    """A finished step of learning.

    Attributes:
        step: 1-based number of the step.
        total: number of steps if learning does not stop early.
        loss: the mean squared error of the predicted noise in the batch of this step.
        smoothed: the exponential average of the losses.
        lr: the learning rate of this step.
        seconds: time since the start, including the time before an interruption.
        remaining: estimated seconds until `total`, from the mean speed since the start or the interruption.
        validation: the validation loss after this step; None if it was not computed.
        best: whether this validation loss is the lowest so far.
        preview: [3, H, W] in [-1, 1], a picture made from "[C]", always with the same noise; None if this step makes no
            preview.
    """

    step: int
    total: int
    loss: float
    smoothed: float
    lr: float
    seconds: float
    remaining: float
    validation: float | None
    best: bool
    preview: Tensor | None
    _run: LearningRun = field(repr=False)

    def style(self, *, with_module: bool = False) -> Style:
        """Return the style after this step; with the inversion module on request, to continue learning from it.

        Raises:
            RuntimeError: a later step has begun. Call this before the next step.
        """
        self._run.check_step(self.step)
        return self._run.style(self.validation, with_module=with_module)

    def best_style(self, *, with_module: bool = False) -> Style:
        """Return the style with the lowest validation loss so far; without validation, the latest style.

        It can be called at any time.
        """
        return self._run.best_style(with_module=with_module)

    def state(self) -> LearningState:
        """Return the state from which an interrupted learning can resume. Raises RuntimeError like `style`."""
        self._run.check_step(self.step)
        return self._run.state()


Learning = Generator[LearningStep, None, Style]
"""A generator that yields every step and returns the best style."""


def learn(
    backbone: Backbone,
    paintings: Picture | Sequence[Picture],
    *,
    steps: int = 200,
    lr: float = 3e-4,
    batch_size: int = 2,
    variant: str | None = None,
    layers: int | None = None,
    dropout: float = 0.05,
    vectors: int | None = None,
    pretrained: bool | None = None,
    crops: int = 16,
    validate_every: int = 25,
    patience: int = 6,
    preview_every: int = 0,
    seed: int = 0,
    name: str | None = None,
    keep_painting: bool = True,
    begin: Style | None = None,
    resume: LearningState | None = None,
) -> Learning:
    """Learn a style. Learning trains the inversion module; the backbone does not change.

    All random numbers come from one generator on the CPU. So the same seed gives the same style on the same device, and
    resuming from a `LearningState` gives the same result as learning without interruption. The returned generator may
    be closed at any step.

    Args:
        backbone: any backbone; without image encoder only the variant "direct" is possible.
        paintings: a painting, or several of one style: a path, a PIL image, an array, a tensor or an `inst.Photo`
            (`inst.pictures.given.Picture`). Their opacity is ignored.
        steps: maximum number of steps; see `patience`. The learning rate falls over these steps
            (`inst.learning.run.learning_rate`).
        lr: Adam's learning rate for the weights of the network, reached after a short warm-up. The free parts of the
            vectors learn `inst.backbone.inversion.FREE_RATE` times as fast.
        batch_size: number of noisy latents in a step.
        variant: one of `inst.backbone.inversion.VARIANTS`; None is "attention" if the backbone has an image encoder,
            otherwise "direct".
        layers: number of cross-attention layers; None takes the number of the pretrained module, or 3.
        dropout: dropout rate in every layer.
        vectors: number n of pseudo-word vectors; None takes the number of the pretrained module, or 8.
        pretrained: start from the pretrained module of the backbone. None does so if the backbone has one that fits the
            given variant, layers and vectors.
        crops: number of random square crops of the paintings, at least one of each. Their latents are computed once.
            The validation loss uses other crops. 1 takes the largest centre square of each painting, for learning and
            for validation.
        validate_every: number of steps between two validations. The validation loss uses fixed timesteps, noise and
            crops. 0 means no validation.
        patience: learning stops after this many validations without a new best loss.
        preview_every: number of steps between two previews; 0 means no previews.
        seed: random seed; the same seed gives the same result.
        name: name of the style; None takes the name of the folder or of the first painting.
        keep_painting: keep pictures of the paintings in the style. Style attention and the tone "painting" need them.
        begin: a style to learn on from, of the same text space, such as a finished one. Learning begins with its module
            (`LearningStep.best_style` with `with_module`) or, without one, with its vectors. `steps` counts the steps
            of the style, too. Variant, layers and vectors are those of its module.
        resume: the state to resume from. The other arguments must be the same as before (steps, patience, previews,
            `name` and `keep_painting` may differ).

    Returns:
        A generator that yields every step and returns the style with the lowest validation loss, which may be that of
        the start; without validation, it returns the last style.

    Raises:
        UsageError: an argument is out of range, or does not fit the backbone, `begin` or `resume`.
        InstError: a painting cannot be read, or `resume` is damaged: it is checked as a whole before anything is
            computed.
        LearningDiverged: during iteration, if the loss is not finite any more.

    Warns:
        InstWarning: the variant "direct" is used because the backbone has no image encoder, and `variant` is None; or
            `begin` was learned with another UNet.
    """
    check_backbone(backbone)
    keep_painting = checked("choice to keep the painting", keep_painting, "bool")
    loaded = to_paintings(paintings, painting_size(backbone), keep=keep_painting)
    if resume is not None:
        check_type("A state to resume from", resume, LearningState, "read one with inst.LearningState.load")
        check_state(resume)
    name = None if name is None else checked("name", name, "str")
    if begin is not None:
        variant, layers, vectors, pretrained = _like(begin, backbone, variant, layers, vectors, pretrained)
    settings = choose_settings(
        backbone,
        steps=steps,
        lr=lr,
        batch_size=batch_size,
        variant=variant,
        layers=layers,
        dropout=dropout,
        vectors=vectors,
        pretrained=pretrained,
        crops=crops,
        validate_every=validate_every,
        patience=patience,
        seed=seed,
    )
    if resume is not None:
        resume.check_given(variant=settings.variant, layers=layers, vectors=vectors, pretrained=pretrained)
    preview_every = checked("steps between previews", preview_every, "int")
    if preview_every < 0:
        raise UsageError(f"Previews every {preview_every} steps are not possible", "give 0 (no previews) or more")
    if begin is not None and steps_of(begin) >= settings.steps:
        raise UsageError(
            f'The style "{begin.name}" was learned for {steps_of(begin)} steps, which count too',
            "give more ",
            Argument("steps"),
        )
    check_start(backbone, loaded, settings, resume, begin)
    name = name or default_style_name(paintings, loaded)
    return _learn(backbone, loaded, settings, preview_every, name, resume, begin)


def _learn(
    backbone: Backbone,
    paintings: Sequence[Painting],
    settings: LearningSettings,
    preview_every: int,
    name: str,
    resume: LearningState | None,
    begin: Style | None,
) -> Learning:
    clock = time.monotonic()
    run = LearningRun(backbone, paintings, settings, name, resume, begin)
    if settings.validate_every and run.progress.start_loss is None:
        run.validate()
    spent_before, first, started = run.progress.seconds, run.progress.step, time.monotonic()
    while not run.is_finished:
        rate, loss = run.rate, run.advance()
        step = run.progress.step
        last = step == settings.steps
        validated = settings.validate_every > 0 and (last or step % settings.validate_every == 0)
        validation = run.validate() if validated else None
        preview = run.preview() if preview_every and (last or step % preview_every == 0) else None
        now = time.monotonic()
        run.progress = replace(run.progress, seconds=spent_before + now - clock)
        yield LearningStep(
            step=step,
            total=settings.steps,
            loss=loss,
            smoothed=run.progress.smoothed,
            lr=rate,
            seconds=run.progress.seconds,
            remaining=(now - started) / (step - first) * (settings.steps - step),
            validation=validation,
            best=validated and run.progress.best_step == step,
            preview=preview,
            _run=run,
        )
    return run.best_style(with_module=False)


def _like(
    begin: Style,
    backbone: Backbone,
    variant: str | None,
    layers: int | None,
    vectors: int | None,
    pretrained: bool | None,
) -> tuple[str | None, int | None, int | None, bool | None]:
    """Return variant, layers, vectors and pretrained for learning on from a style. None is replaced by its own values.

    Raises:
        UsageError: the style does not fit the backbone or has no word, or a given value differs from its own.
    """
    check_type("A style to begin with", begin, Style, "read one with inst.read_style")
    if not begin.has_word:
        raise UsageError(
            f'The style "{begin.name}" has no pseudo-word to begin with', "leave it out, or give another style"
        )
    if warning := begin.check(backbone):
        warnings.warn(InstWarning(warning), stacklevel=3)
    own = {"vectors": len(begin.vectors)} | {
        key: value for key, value in module_config(begin).items() if key in ("variant", "layers")
    }
    for key, given in (("variant", variant), ("layers", layers), ("vectors", vectors)):
        if key in own and given is not None and given != own[key]:
            raise UsageError(
                f'The style "{begin.name}" has {key} {own[key]}, not {given}', "leave it out, or give another style"
            )
    if begin.module is not None:  # the widths of its heads are those of the module that it was learned from
        pretrained = settings_of(begin).get("pretrained", pretrained)
    direct = own.get("variant") == "direct"
    return own.get("variant", variant), None if direct else own.get("layers", layers), own["vectors"], pretrained
