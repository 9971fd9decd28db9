"""Learn several styles together: one batch of the UNet for all, with a pseudo-word for each.

A small batch leaves a GPU mostly idle, so that a step of several styles takes little longer than a step of one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Generator, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, vmap
from torch.overrides import TorchFunctionMode

from inst.arguments import check_at_least, check_type, checked
from inst.backbone.devices import deterministic
from inst.backbone.gradients import attention
from inst.backbone.graphs import cuda_graphs
from inst.backbone.model import Backbone, check_backbone
from inst.defaults import defaults_of
from inst.errors import Argument, InstError, UsageError
from inst.learning.data import LearningData, denoising_loss, mean_word, painting_size, validation_losses
from inst.learning.replay import Replayed
from inst.learning.run import LearningDiverged, LearningRun
from inst.learning.settings import LearningSettings, SharedSettings
from inst.learning.start import check_start, choose_settings, default_style_name
from inst.pictures.given import KEPT_BYTES, Painting, Picture, to_paintings
from inst.styles.style import Style


@dataclass(frozen=True, eq=False)
class SharedStep:
    """A finished step of several styles. Its sequences have one entry for each style, in the order of the paintings.

    Attributes:
        step: 1-based number of the step.
        total: number of steps if no style stops early.
        losses: the mean squared error of the predicted noise in the batch of this step. None for a style that was
            finished before; not finite for one that has failed in this step.
        validations: the validation losses after this step; None where none was computed.
        results: the style if it is finished, or the error if it has failed; None while it learns.
        seconds: time since the start.
        remaining: estimated seconds until `total`, from the mean speed since the first step.
    """

    step: int
    total: int
    losses: tuple[float | None, ...]
    validations: tuple[float | None, ...]
    results: tuple[Style | InstError | None, ...]
    seconds: float
    remaining: float


LearningTogether = Generator[SharedStep, None, list[Style | InstError]]
"""A generator that yields every step and returns the result of each style."""


def learn_together(
    backbone: Backbone,
    paintings: Sequence[Picture | Sequence[Picture]],
    *,
    names: Sequence[str | None] | None = None,
    seeds: Sequence[int] | None = None,
    most_samples: int = 32,
    **settings: Unpack[SharedSettings],
) -> LearningTogether:
    """Learn several styles in the same steps. Each is what `inst.learn` gives for its paintings alone, up to rounding.

    Each style has its own random numbers, crops, validation, best parameters and patience, so neither the order nor the
    company matters. A style that cannot be learned does not disturb the others.

    On a GPU, a step costs little more than that of one style until the samples fill the GPU. On a CPU there is hardly a
    gain. Memory: each style needs the latents of its crops (twice, for mean and deviation), the patch tokens of its
    views, and seven copies of its inversion module (parameters, gradients, Adam's moments, the best parameters). The
    UNet's activations, which need the most, grow with the number of samples (styles times `batch_size`) up to
    `most_samples`.

    Args:
        backbone: the backbone, as for `inst.learn`.
        paintings: for each style its painting, or several, in the forms of `inst.learn`.
        names: the name of each style. None, for one or for all, takes the name of the folder or of the first painting.
        seeds: the random seed of each style; None takes the setting `seed` for all.
        most_samples: number of noisy latents in one call of the UNet. A larger batch is computed in several calls, with
            the same result.
        settings: settings of `inst.learn` with its defaults, for all styles: steps, lr, batch_size, variant, layers,
            dropout, vectors, pretrained, crops, validate_every, patience, seed and keep_painting.

    Returns:
        A generator that yields every step, and returns one result for each style in the order of the paintings: the
        style that `inst.learn` would return, or the InstError that it would raise (such as `LearningDiverged`, or a
        painting that cannot be read).

    Raises:
        UsageError: a setting is out of range or does not fit the backbone, or there is not one name or seed for each
            style.

    Warns:
        InstWarning: as `inst.learn`.
    """
    check_backbone(backbone)
    defaults = defaults_of("inst.learning.loop", "learn")
    given: dict[str, Any] = {name: defaults[name] for name in SharedSettings.__annotations__} | settings
    keep = checked("choice to keep the painting", given.pop("keep_painting"), "bool")
    most = checked("most samples", most_samples, "int")
    check_at_least(1, most_samples=most)
    common = choose_settings(backbone, **given)
    check_start(backbone, [], common, None, None)
    if isinstance(paintings, str) or not isinstance(paintings, Sequence) or not paintings:
        raise UsageError("The paintings of the styles cannot be used", "give a list with one entry for each style")
    count = len(paintings)
    own_names = _one_each("names", names, [None] * count)
    own_seeds = _one_each("seeds", seeds, [common.seed] * count)
    own_names = [None if name is None else checked("name", name, "str") for name in own_names]
    plans: list[_Plan | InstError] = []
    for painting, name, seed in zip(paintings, own_names, own_seeds, strict=True):
        own = replace(common, seed=seed)
        try:
            loaded = to_paintings(painting, painting_size(backbone), keep=keep, kept_bytes=KEPT_BYTES // count)
        except InstError as error:
            plans.append(error.with_traceback(None))
        else:
            plans.append(_Plan(loaded, own, name or default_style_name(painting, loaded)))
    return _learn_together(backbone, plans, common, most)


@dataclass(frozen=True, eq=False)
class _Plan:
    """What one style is learned from."""

    paintings: list[Painting]
    settings: LearningSettings
    name: str


def _one_each(what: str, given: Sequence[Any] | None, default: list[Any]) -> Sequence[Any]:
    if given is None:
        return default
    check_type(f"The {what} of the styles", given, Sequence, "give a list with one for each style")
    if isinstance(given, str) or len(given) != len(default):
        raise UsageError(
            f"{len(given)} {what} do not fit {len(default)} styles", "give one for each style (", Argument(what), ")"
        )
    return given


def _learn_together(
    backbone: Backbone, plans: Sequence[_Plan | InstError], common: LearningSettings, most: int
) -> LearningTogether:
    clock = time.monotonic()
    company = _Company(backbone, plans, most)
    every, total = common.validate_every, common.steps
    if every:
        company.validate()
    started = time.monotonic()
    for step in range(1, total + 1):
        if not company.runs:
            break
        losses = company.advance()
        validations = company.validate() if every and (step == total or step % every == 0) else {}
        company.finish()
        now = time.monotonic()
        yield SharedStep(
            step=step,
            total=total,
            losses=tuple(losses.get(number) for number in range(len(plans))),
            validations=tuple(validations.get(number) for number in range(len(plans))),
            results=tuple(company.results),
            seconds=now - clock,
            remaining=(now - started) / step * (total - step),
        )
    return [result for result in company.results if result is not None]


class _Company:
    """The styles that learn together.

    Args:
        backbone: the frozen model.
        plans: what each style is learned from; or the error because of which it cannot be learned.
        most: number of samples in one call of the UNet.

    Attributes:
        runs: the runs that still learn, by number of the style.
        results: of each style; None while it learns.
    """

    def __init__(self, backbone: Backbone, plans: Sequence[_Plan | InstError], most: int) -> None:
        self._backbone, self._most = backbone, most
        self.results: list[Style | InstError | None] = [None if isinstance(plan, _Plan) else plan for plan in plans]
        known = {number: plan for number, plan in enumerate(plans) if isinstance(plan, _Plan)}
        self.runs = {
            number: LearningRun(
                backbone, plan.paintings, plan.settings, plan.name, None, keep_encoder=number != max(known)
            )
            for number, plan in known.items()
        }
        self._batch: _Batch | None = None

    def advance(self) -> dict[int, float]:
        """Take a step of all runs, and return their losses. A run that diverges ends with its error."""
        if self._batch is None or self._batch.is_too_large(len(self.runs)):
            self._batch = None  # frees its memory
            self._batch = _Batch(self.runs, self._most)
        results = self._batch.take_step(self.runs)
        for run in self.runs.values():
            run.draw_next()  # while an accelerator computes
        losses = {}
        for number, (loss, overflow) in zip(self._batch.members, results.tolist(), strict=True):
            if number in self.runs:
                losses[number] = loss
                self._end_if_diverged(number, partial(self.runs[number].end_step, loss, bool(overflow)))
        return losses

    def validate(self) -> dict[int, float]:
        """Return the validation losses of all runs. A run that has diverged ends with its error."""
        losses = dict(zip(self.runs, self._validation_losses(list(self.runs.values())), strict=True))
        for number, loss in losses.items():
            self._end_if_diverged(number, partial(self.runs[number].end_validation, loss))
        return losses

    @torch.inference_mode(False)
    @torch.no_grad()
    def _validation_losses(self, runs: Sequence[LearningRun]) -> list[float]:
        if len(runs) < 2:
            return [run.validation_loss() for run in runs]
        with deterministic(self._backbone.device):
            words = torch.stack([run.word() for run in runs])
            validations = [run.validation for run in runs]
            return validation_losses(self._backbone, runs[0].data, validations, words, self._most)

    def finish(self) -> None:
        """Make the styles of the runs that are at their end."""
        for number, run in list(self.runs.items()):
            if run.is_finished:
                self._end(number, run.best_style(with_module=False))

    def _end_if_diverged(self, number: int, call: Callable[[], None]) -> None:
        try:
            call()
        except LearningDiverged as error:
            self._end(number, error.with_traceback(None))  # which would hold the run in memory

    def _end(self, number: int, result: Style | InstError) -> None:
        self.results[number] = result
        del self.runs[number]


class _Batch(Replayed):
    """A batch of the samples of several runs. Their parameters become parts of stacked ones.

    Everything behind the gradients is the runs' own: Adam with its moments, the loss scale of float16. So a run whose
    numbers are not finite changes no other. A single run takes its own steps, which have the bits of `inst.learn`.

    Args:
        members: the runs, by number of the style. All have the same settings, except for the seed.
        most: number of samples in one call of the UNet.
    """

    @torch.inference_mode(False)
    def __init__(self, members: Mapping[int, LearningRun], most: int) -> None:
        self.members, self._most = dict(members), most
        self._runs = list(members.values())
        backbone, device = self._runs[0].backbone, self._runs[0].backbone.device
        super().__init__(backbone, None if backbone.graphs is None else cuda_graphs(device))
        data = [run.data for run in self._runs]
        mean, std, pooled, tokens = (
            torch.cat([getattr(one, name) for one in data]) for name in ("mean", "std", "pooled", "tokens")
        )
        self._data = LearningData(mean, std, pooled, tokens, data[0].captions)
        self._first_crop = _starts([len(one.mean) for one in data]).to(device)
        self._first_view = _starts([len(one.pooled) for one in data]).to(device)
        self._parameters = {}
        for name in self._runs[0].parameters:
            stacked = torch.stack([run.parameters[name].detach() for run in self._runs])
            for run, own in zip(self._runs, stacked, strict=True):
                run.parameters[name].data = own
            self._parameters[name] = stacked.requires_grad_()
        self._inputs: dict[int, list[Tensor]] = {}

    def is_too_large(self, learning: int) -> bool:
        """Return whether a new batch for the runs that still learn would pay. A new size needs a new graph."""
        return learning < len(self.members) and (self.graphs is None or 2 * learning <= len(self.members))

    @torch.inference_mode(False)
    def take_step(self, learning: Collection[int]) -> Tensor:
        """Take a step, and return the results of `LearningRun.update`, [S, 2].

        Runs that are not in `learning` are computed with an old batch, so that the graph fits. Their results have no
        meaning.
        """
        self._inputs |= {number: run.begin_step() for number, run in self.members.items() if number in learning}
        if len(self.members) == 1:
            return self._runs[0].run_step(*self._inputs.values())[None]
        return self.run_step([torch.stack(part) for part in zip(*self._inputs.values(), strict=True)])

    def changing(self) -> dict[Hashable, Tensor]:
        """Return the parameters and Adam's moments of all runs."""
        return {(number, key): value for number, run in self.members.items() for key, value in run.changing().items()}

    def _compute_step(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Update all runs with their inputs of `LearningRun.begin_step`, stacked. Returns [S, 2]."""
        scale, crops, captions, noise, sampling_noise, timesteps, views, *kept = inputs
        styles, batch = crops.shape
        words = self._compute_words(views + self._first_view, *kept)
        samples = (
            words.detach()[:, None].expand(-1, batch, -1, -1).flatten(0, 1),
            captions.flatten(),
            self._data.latents((crops + self._first_crop).flatten(), sampling_noise.flatten(0, 1)),
            noise.flatten(0, 1),
            timesteps.flatten(),
            (scale / batch)[:, None].expand(-1, batch).flatten(),
        )
        results = [self._differentiate(*part) for part in zip(*(one.split(self._most) for one in samples), strict=True)]
        losses, slopes = (torch.cat(parts).unflatten(0, (styles, batch)) for parts in zip(*results, strict=True))
        gradients = torch.autograd.grad(words, list(self._parameters.values()), slopes.sum(dim=1), allow_unused=True)
        own = zip(*([None] * styles if one is None else one.unbind() for one in gradients), strict=True)
        updates = zip(self._runs, losses.mean(dim=1), own, scale, strict=True)
        return [torch.stack([run.update(loss, gradient, factor) for run, loss, gradient, factor in updates])]

    def _compute_words(self, views: Tensor, *kept: Tensor) -> Tensor:
        """Compute the words [S, n, d] from the views [S, V] of each run, with its own parameters."""
        module = self._runs[0].module  # its own parameters take no part; its buffers are those of every run

        def word(parameters: dict[str, Tensor], *given: Tensor) -> Tensor:
            return mean_word(lambda *views: functional_call(module, parameters, views), *given)

        with _Products():
            words: Tensor = vmap(word)(self._parameters, self._data.pooled[views], self._data.tokens[views], *kept)
        return words

    def _differentiate(
        self, words: Tensor, captions: Tensor, clean: Tensor, noise: Tensor, timesteps: Tensor, factors: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the losses [B] of samples, and the gradient of each, times its factor, by its word: [B, n, d]."""
        words = words.detach().requires_grad_()
        text = self._data.embed_captions(self.backbone, words, captions)
        losses = denoising_loss(self.backbone, text, clean, noise, timesteps)
        return losses.detach(), torch.autograd.grad((losses * factors).sum(), words)[0]


class _Products(TorchFunctionMode):
    """Compute attention by products inside the block, because `vmap` has no rule for the CPU's own kernel."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return attention(*args) if func is F.scaled_dot_product_attention else func(*args, **(kwargs or {}))


def _starts(lengths: Sequence[int]) -> Tensor:
    """Return where each part begins if parts of these lengths are put together, [S, 1]."""
    return torch.tensor([0, *lengths[:-1]]).cumsum(0)[:, None]
