"""Learning a style: the pseudo-word of one painting, or of several of one style (paper sec. 3.2)."""

from __future__ import annotations

import time
import warnings
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from inst.arguments import check_choice, check_type, checked
from inst.backbone.inversion import VARIANTS
from inst.backbone.loading.image_encoder import how_to_give
from inst.backbone.model import Backbone
from inst.errors import Argument, InstWarning, UsageError
from inst.learning.run import LearningDiverged as LearningDiverged
from inst.learning.run import LearningRun
from inst.learning.settings import LearningSettings
from inst.learning.start import check_start, style_name
from inst.learning.state import LearningState as LearningState
from inst.pictures.given import Picture, read_several
from inst.pictures.io import Photo
from inst.styles.style import Style


@dataclass(frozen=True, eq=False)
class LearningStep:
    """One step of learning, after it was taken.

    Attributes:
        step: 1-based number of the step.
        total: number of steps, if learning does not stop early.
        loss: the mean squared error of the predicted noise in this step's batch.
        smoothed: the exponential average of the losses.
        lr: the learning rate of this step.
        seconds: since the start, with those before an interrupt.
        remaining: seconds until `total`, by the mean speed since the start or the interrupt.
        validation: the validation loss after this step; None where it was not computed.
        best: whether that is the lowest so far.
        preview: [3, H, W] in [-1, 1], a picture made from "[C]" with always the same noise; None in other steps.
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
        """The style as it is after this step; with the inversion module on request, to learn on from it.

        Raises:
            RuntimeError: the learning has gone on since: ask before the next step.
        """
        self._run.check_at(self.step)
        return self._run.style(self.validation, with_module=with_module)

    def best_style(self, *, with_module: bool = False) -> Style:
        """The style of the lowest validation loss so far, at any time; without validation, the latest."""
        return self._run.best_style(with_module=with_module)

    def state(self) -> LearningState:
        """What an interrupted learning goes on from. Raises RuntimeError as `style` does."""
        self._run.check_at(self.step)
        return self._run.state()


Learning = Generator[LearningStep, None, Style]
"""Yields every step and returns the best style."""


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
    resume: LearningState | None = None,
) -> Learning:
    """Learn a style. The backbone stays as it is; what is learned is the inversion module.

    Every random number is drawn on the CPU from one generator, so that the same seed gives the same style on the same
    device, and going on from a `LearningState` gives what never stopping would have given. The generator may be closed
    at any step.

    Args:
        backbone: any; one without image encoder allows the variant "direct" only.
        paintings: a painting, or several of one style: a path, a PIL image, an array, a tensor or an `inst.Photo`
            (`inst.pictures.given.Picture`). Their opacity does not count.
        steps: at most this many; see `patience`. The rate falls with them (`inst.learning.run.learning_rate`).
        lr: Adam's learning rate of the network's weights, reached after a short warm-up; the vectors' free parts learn
            `inst.backbone.inversion.FREE_RATE` times as fast.
        batch_size: noisy latents in a step.
        variant: one of `inst.backbone.inversion.VARIANTS`; None is "attention" where the backbone has an image encoder,
            else "direct".
        layers: cross-attention layers; None takes the pretrained module's, or 3.
        dropout: rate in every layer.
        vectors: number n of pseudo-word vectors; None takes the pretrained module's, or 8.
        pretrained: start from the backbone's pretrained module; None does so where it has one that fits the variant,
            layers and vectors asked for.
        crops: random squares cut out of the paintings, at least one of each, whose latents are computed once; the
            validation loss is of others. 1 takes each painting's centre, as much of it as a square can hold, which then
            validates too.
        validate_every: steps between two computations of the validation loss, which is of fixed timesteps, noise and
            crops; 0 never does.
        patience: validations without a new best after which learning stops.
        preview_every: steps between two previews; 0 makes none.
        seed: of all random numbers.
        name: the style's name; None takes the first painting's.
        resume: go on from here, with the same other arguments (steps, patience and previews may differ).

    Returns:
        A generator of every step, which returns the style of the lowest validation loss, be it that of the start;
        without validation, the last.

    Raises:
        UsageError: an argument out of range, or one that does not fit the backbone or `resume`.
        LearningDiverged: while iterating: the loss is no number any more.

    Warns:
        InstWarning: the variant is "direct" because there is no image encoder, not because it was asked for.
    """
    check_type("A backbone", backbone, Backbone, "load one with inst.Backbone.load")
    read = read_several(paintings, "painting")
    if resume is not None:
        check_type("A state to go on from", resume, LearningState, "read one with inst.LearningState.load")
    layers = None if layers is None else checked("layers", layers, "int")
    vectors = None if vectors is None else checked("vectors", vectors, "int")
    pretrained = None if pretrained is None else checked("pretrained", pretrained, "bool")
    name = None if name is None else checked("name", name, "str")
    if variant is None:
        variant = "direct" if backbone.image_encoder is None else "attention"
        if variant == "direct":
            warnings.warn(
                InstWarning(
                    f"{backbone.name or 'This backbone'} has no image encoder, so free vectors are learned, without "
                    "a look at the painting as a whole",
                    *how_to_give(backbone.text_encoder.config),
                    ", or ask for this (",
                    Argument("variant", "direct"),
                    ")",
                ),
                stacklevel=2,
            )
    check_choice("variant", variant, VARIANTS)
    if variant == "direct" and layers:
        raise UsageError(f"The variant direct has no layers, but {layers} are asked for", "leave them out")
    preview_every = checked("steps between previews", preview_every, "int")
    if preview_every < 0:
        raise UsageError(f"Previews every {preview_every} steps are not possible", "give 0 (none) or more")
    if pretrained is None:
        pretrained = _misfit(backbone, variant, layers, vectors) is None
    elif pretrained and (misfit := _misfit(backbone, variant, layers, vectors)):
        raise UsageError(f"{misfit}", "learn from scratch instead")
    start = backbone.inversion.config if pretrained and backbone.inversion else None
    settings = LearningSettings(
        steps=steps,
        lr=lr,
        batch_size=batch_size,
        variant=variant,
        layers=0 if variant == "direct" else (start.layers if start else 3) if layers is None else layers,
        dropout=dropout,
        vectors=(start.vectors if start else 8) if vectors is None else vectors,
        pretrained=pretrained,
        crops=crops,
        validate_every=validate_every,
        patience=patience,
        seed=seed,
    )
    check_start(backbone, read, settings, resume)
    return _learn(backbone, read, settings, preview_every, name or style_name(read[0]), resume)


def _learn(
    backbone: Backbone,
    paintings: Sequence[Photo],
    settings: LearningSettings,
    preview_every: int,
    name: str,
    resume: LearningState | None,
) -> Learning:
    clock = time.monotonic()
    run = LearningRun(backbone, paintings, settings, name, resume)
    if settings.validate_every and run.progress.start_loss is None:
        run.validate()
    spent_before, first, started = run.progress.seconds, run.progress.step, time.monotonic()
    while run.progress.step < settings.steps and run.progress.stale < settings.patience:
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


def _misfit(backbone: Backbone, variant: str, layers: int | None, vectors: int | None) -> str | None:
    """Say why the backbone's pretrained module is not what is asked for; None if it is."""
    if backbone.inversion is None:
        return f"The backbone {backbone.name} has no pretrained inversion module"
    config = backbone.inversion.config
    for what, there, asked in (
        ("the variant", config.variant, variant),
        ("layers:", config.layers, layers),
        ("vectors:", config.vectors, vectors),
    ):
        if asked is not None and asked != there:
            return f"The pretrained inversion module has {what} {there}, not {asked}"
    return None
