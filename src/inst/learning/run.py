"""`LearningRun` holds everything that changes during learning. `inst.learning.loop.learn` is the loop around it."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from inst.backbone.devices import copy_to, deterministic
from inst.backbone.graphs import cuda_graphs
from inst.backbone.model import Backbone
from inst.errors import Argument, InstError, RemedyPiece
from inst.learning.data import denoising_loss, draw_captions, mean_word, prepare, validation_losses
from inst.learning.replay import Replayed
from inst.learning.settings import LearningSettings
from inst.learning.start import (
    largest_loss_scale,
    learning_speeds,
    resume_requirements,
    start_module,
    steps_of,
    style_provenance,
)
from inst.learning.state import LearningState, Progress
from inst.pictures.given import Painting
from inst.runs import complete
from inst.styles.style import Style
from inst.synthesis.from_prompt import generate

_WARM_UP = 10  # steps
_GOLDEN = (math.sqrt(5) - 1) / 2


class LearningDiverged(InstError):
    """The loss or its gradient is not finite any more.

    Attributes:
        step: the step in which it happened.
        last_good: the best style before that step.
    """

    def __init__(self, problem: str, *remedy: RemedyPiece, step: int, last_good: Style) -> None:
        super().__init__(problem, *remedy)
        self.step, self.last_good = step, last_good

    def __reduce__(self) -> tuple[Any, ...]:
        # Copies and pickles of exceptions are made from their positional arguments alone.
        return partial(type(self), step=self.step, last_good=self.last_good), self.args, vars(self)


@dataclass(frozen=True, eq=False)
class _Batch:
    """The random numbers of a step.

    Attributes:
        inputs: on the device: crops [B], captions [B], the noises for z_t and for the posteriors [B, C, h, w],
            timesteps [B], views [V], and what dropout keeps, if there is dropout.
        generator: the state of the generator before they were drawn.
    """

    inputs: list[Tensor]
    generator: Tensor


class LearningRun(Replayed):
    """The module, optimiser, generator and progress of a learning, and its best parameters so far.

    Args:
        backbone: the frozen model; it does not change.
        paintings: the paintings to learn from.
        settings: the learning settings.
        name: name of the style.
        resume: the state to resume from, or None.
        begin: the style to begin with, or None.
        keep_encoder: leave the image encoder on the accelerator, because more paintings are embedded soon.

    Call `inst.learning.start.check_start` first: it checks whether the arguments fit together.
    """

    @torch.inference_mode(False)
    def __init__(
        self,
        backbone: Backbone,
        paintings: Sequence[Painting],
        settings: LearningSettings,
        name: str,
        resume: LearningState | None,
        begin: Style | None = None,
        *,
        keep_encoder: bool = False,
    ) -> None:
        super().__init__(backbone, None if backbone.graphs is None else cuda_graphs(backbone.device))
        self.settings, self.name = settings, name
        self.paintings = paintings
        self.encoded = tuple(painting.encoded for painting in paintings if painting.encoded)
        # All random numbers come from this one generator, in this order, so that a resumed run gets the same data.
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.module = start_module(backbone, settings, self.generator, begin).train()
        with torch.no_grad(), deterministic(backbone.device):
            self.data, self.validation = prepare(
                backbone, paintings, self.module, settings.crops, self.generator, keep_encoder=keep_encoder
            )
        self.timestep_offset = torch.rand((), generator=self.generator).item()
        self.parameters = dict(self.module.named_parameters())
        groups: list[dict[str, Any]] = [
            {"params": [self.parameters[name] for name in names], "speed": speed}
            for names, speed in learning_speeds(self.parameters)
        ]
        if self.graphs is not None:  # a graph reads the learning rates from tensors
            for group in groups:
                group["lr"] = torch.tensor(settings.lr, device=backbone.device)
        self.adam = torch.optim.Adam(
            groups, lr=settings.lr, betas=(0.9, 0.99), fused=True, capturable=self.graphs is not None
        )
        self.best, self.before = _copy_tensors(self.parameters), _copy_tensors(self.parameters)
        self.next: _Batch | None = None
        self.largest_scale = largest_loss_scale(backbone)
        self.progress = Progress(loss_scale=self.largest_scale)
        self.between_steps = True
        if begin is not None:
            self._begin_with(begin)
        if resume is not None:
            self._restore(resume)

    @property
    def rate(self) -> float:
        """The learning rate of the next step."""
        progress = self.progress
        return learning_rate(progress.step, self.settings.steps, self.settings.lr, progress.first)

    @property
    def is_finished(self) -> bool:
        """Whether all steps were taken, or the validation loss has not fallen for too long."""
        return self.progress.step >= self.settings.steps or self.progress.stale >= self.settings.patience

    def advance(self) -> float:
        """Take one step, and return its loss.

        Raises:
            LearningDiverged: the loss or its gradient is not finite.
        """
        results = self.run_step(self.begin_step())
        self.draw_next()  # while an accelerator computes
        loss, overflow = results.tolist()
        self.end_step(loss, bool(overflow))
        return loss

    @torch.inference_mode(False)
    @torch.no_grad()
    def begin_step(self) -> list[Tensor]:
        """Set the learning rate, and return the inputs of `_compute_step`. `update` must follow, and `end_step`."""
        self.between_steps = False
        self.next = self.next or self._draw(self.progress.step)
        if not self.settings.validate_every:
            torch._foreach_copy_(list(self.before.values()), list(self.parameters.values()))
        for group in self.adam.param_groups:
            rate = self.rate * group["speed"]
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        return [torch.full((), self.progress.loss_scale, device=self.backbone.device), *self.next.inputs]

    @torch.inference_mode(False)
    def draw_next(self) -> None:
        """Draw the batch of the next step."""
        self.next = self._draw(self.progress.step + 1)

    def end_step(self, loss: float, overflow: bool) -> None:
        """Count the step. `loss` and `overflow` are the results of `update`.

        Raises:
            LearningDiverged: the loss or its gradient is not finite.
        """
        if not math.isfinite(loss):
            raise self._diverged()
        if not self.settings.validate_every:
            self.best, self.before = self.before, self.best  # these parameters gave a finite loss
        if overflow:  # float16 overflows sometimes: the gradient of this step is lost.
            self.progress = self.progress.after_overflow()
            if self.progress.loss_scale < 1:
                raise self._diverged()
        else:
            self.progress = self.progress.after_finite_gradient(self.largest_scale)
        self.progress = self.progress.after_step(loss)
        self.between_steps = True

    def _compute_step(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Update the parameters with a batch of `begin_step`. Returns one tensor: the result of `update`."""
        scale, crops, captions, noise, sampling_noise, timesteps, views, *kept = inputs
        data = self.data
        word = mean_word(self.module, data.pooled[views], data.tokens[views], *kept)
        text = data.embed_captions(self.backbone, word, captions)
        clean = data.latents(crops, sampling_noise)
        loss = denoising_loss(self.backbone, text, clean, noise, timesteps).mean()
        gradients = torch.autograd.grad(loss * scale, list(self.parameters.values()), allow_unused=True)
        return [self.update(loss.detach(), gradients, scale)]

    def update(self, loss: Tensor, gradients: Sequence[Tensor | None], scale: Tensor) -> Tensor:
        """Update the parameters, without waiting for the device. A CUDA graph can hold this.

        Args:
            loss: the loss of a batch, [].
            gradients: the gradient of each parameter, times `scale`; None where it does not depend on the parameter.
            scale: the scale of the loss, [].

        Returns:
            [2]: the loss, and 1 if the loss or its gradient is not finite, otherwise 0. There is no update if it is 1.
        """
        # Fused Adam takes the numbers of parameter and gradient as they lie in memory.
        gradients = [None if gradient is None else gradient.contiguous() for gradient in gradients]
        for parameter, gradient in zip(self.parameters.values(), gradients, strict=True):
            parameter.grad = gradient
        found = [gradient for gradient in gradients if gradient is not None]
        overflow = 1 - (torch.nn.utils.get_total_norm(found) * loss).isfinite().float()
        torch._foreach_div_(found, scale)
        self.adam.found_inf = overflow  # type: ignore[attr-defined]  # Adam skips the step then; see GradScaler
        self.adam.step()
        return torch.stack([loss, overflow])

    def changing(self) -> dict[Hashable, Tensor]:
        """Return the parameters and Adam's moments, which a step changes."""
        found: dict[Hashable, Tensor] = {}
        for key, parameter in self.parameters.items():
            found[key] = parameter
            found.update({(key, name): value for name, value in self.adam.state.get(parameter, {}).items()})
        return found

    @torch.inference_mode(False)
    @torch.no_grad()
    def validation_loss(self) -> float:
        """Compute the validation loss of the current word."""
        with deterministic(self.backbone.device):
            return validation_losses(self.backbone, self.data, [self.validation], self.word()[None])[0]

    def validate(self) -> float:
        """Compute the validation loss, and call `end_validation`."""
        loss = self.validation_loss()
        self.end_validation(loss)
        return loss

    @torch.inference_mode(False)
    @torch.no_grad()
    def end_validation(self, loss: float) -> None:
        """Keep the parameters if their validation loss is the lowest so far.

        Raises:
            LearningDiverged: the loss is not finite.
        """
        if not math.isfinite(loss):
            raise self._diverged()
        self.progress = self.progress.after_validation(loss)
        if self.progress.stale == 0:
            self.best = _copy_tensors(self.parameters)

    @torch.inference_mode(False)
    @torch.no_grad()
    def preview(self) -> Tensor:
        """Make a picture [3, S, S] in [-1, 1] from "[C]", in the backbone's native size, always with the same noise."""
        style = self.style(with_module=False)
        return complete(generate(self.backbone, style=style, **preview_settings(self.settings.seed)))[0].cpu()

    def check_step(self, step: int) -> None:
        """Raise RuntimeError unless exactly `step` steps were taken."""
        if not self.between_steps or self.progress.step != step:
            raise RuntimeError(f"learning has continued after step {step}: use a step before the next one begins")

    def style(self, loss: float | None = None, *, with_module: bool) -> Style:
        """Return the current style. `loss` is its validation loss if known."""
        return self._make_style(self.parameters, self.progress.step, loss, with_module)

    def best_style(self, *, with_module: bool) -> Style:
        """Return the style with the lowest validation loss so far; without validation, the last with a finite loss."""
        progress = self.progress
        if not self.settings.validate_every:
            if self.between_steps:
                return self.style(with_module=with_module)
            return self._make_style(self.best, progress.step, None, with_module)
        return self._make_style(self.best, progress.best_step, progress.best_loss, with_module)

    def state(self) -> LearningState:
        """Return a snapshot on the CPU, from which learning can resume."""
        tensors: dict[str, Tensor] = {f"module.{key}": value for key, value in self.parameters.items()}
        tensors |= {f"best.{key}": value for key, value in self.best.items()}
        for index, moments in self.adam.state_dict()["state"].items():
            tensors |= {f"adam.{index}.{key}": value for key, value in moments.items()}
        tensors["generator"] = self.generator.get_state() if self.next is None else self.next.generator
        tensors = {key: value.detach().to("cpu", copy=True).contiguous() for key, value in tensors.items()}
        about = resume_requirements(self.backbone, self.paintings, self.settings.variant)
        return LearningState(self.progress, asdict(self.settings), about, tensors)

    @torch.no_grad()
    def _begin_with(self, style: Style) -> None:
        """Set the word and the number of steps to those of a style. Its module was loaded before, if it has one."""
        if style.module is None:
            assert self.module.moved is not None  # every module that learns has free parts
            missing = style.vectors.to(self.module.moved) - self.word()
            self.module.moved.add_(missing / self.module.spread)
        self.best = _copy_tensors(self.parameters)
        steps = steps_of(style)
        self.progress = replace(self.progress, step=steps, first=steps, best_step=steps)
        # The batches of a learning with the same seed were the first part of those that would come now.
        self.generator.manual_seed(self.settings.seed ^ steps)

    def _restore(self, state: LearningState) -> None:
        self.progress = state.progress
        with torch.no_grad():
            for key, value in state.part("module").items():
                self.parameters[key].copy_(value)
            for key, value in state.part("best").items():
                self.best[key].copy_(value)
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in state.part("adam").items():
            index, _, moment = key.partition(".")
            moments.setdefault(int(index), {})[moment] = value.clone()  # Adam would change the state's own tensors
        self.adam.load_state_dict({"state": moments, "param_groups": self.adam.state_dict()["param_groups"]})
        self.generator.set_state(state.tensors["generator"])

    def _draw(self, step: int) -> _Batch:
        """Draw the batch of a step on the CPU, and copy it to the device."""
        batch, shape, before = self.settings.batch_size, self.data.mean.shape, self.generator.get_state()
        drawn = [
            torch.randint(shape[0], (batch,), generator=self.generator),
            draw_captions(batch, self.generator),
            torch.randn(batch, *shape[1:], generator=self.generator),
            torch.randn(batch, *shape[1:], generator=self.generator),
            spread_timesteps(step * batch, batch, len(self.backbone.alphas_cumprod), self.timestep_offset),
            self.data.draw_views(self.generator),
        ]
        if (kept := self.module.draw_dropout(len(drawn[-1]), self.generator)) is not None:
            drawn.append(kept)
        return _Batch([copy_to(part, self.backbone.device) for part in drawn], before)

    def word(self, parameters: Mapping[str, Tensor] | None = None) -> Tensor:
        """Compute the word [n, d] of all views without dropout, with these parameters or the current ones."""
        parameters = self.parameters if parameters is None else parameters

        def inversion(*views: Tensor) -> Any:
            return functional_call(self.module, dict(parameters), views)

        self.module.eval()
        try:
            return mean_word(inversion, self.data.pooled, self.data.tokens)
        finally:
            self.module.train()

    @torch.inference_mode(False)
    @torch.no_grad()
    def _make_style(self, parameters: Mapping[str, Tensor], step: int, loss: float | None, with_module: bool) -> Style:
        settings = asdict(self.settings)
        variant, seed = settings.pop("variant"), settings.pop("seed")
        measured = {"seed": seed, "settings": settings, "loss": loss, "start_loss": self.progress.start_loss}
        about = style_provenance(self.name, self.backbone, self.paintings, variant, step) | measured
        return Style(
            vectors=self.word(parameters),
            widths=self.backbone.text_widths,
            fingerprint=self.backbone.fingerprint,
            denoiser=self.backbone.denoiser_fingerprint,
            about=about,
            paintings=self.encoded,
            module={**dict(self.module.named_buffers()), **parameters} if with_module else None,
            module_config=asdict(self.module.config) if with_module else None,
        )

    def _diverged(self) -> LearningDiverged:
        step = self.progress.step + (not self.between_steps)  # an unfinished step is not counted yet
        return LearningDiverged(
            f"The loss is not finite any more at step {step}",
            "use a smaller learning rate (",
            Argument("lr"),
            f") than {self.settings.lr:g}, or load the backbone with ",
            Argument("dtype", "float32"),
            step=step,
            last_good=self.best_style(with_module=False),
        )


def preview_settings(seed: int) -> dict[str, Any]:
    """Return the arguments of `inst.generate`, except backbone and style, for a preview of learning with this seed.

    A preview shows what the pseudo-word has learned, so the painting itself takes no part in it.
    """
    return {"prompt": "[C]", "steps": 8, "guidance": 4.0, "seed": seed, "style_attention": 0.0}


def learning_rate(step: int, steps: int, peak: float, first: int = 0) -> float:
    """Return the learning rate of step `step` (from 0) of `steps`, if learning begins with step `first`.

    The rate has a linear warm-up, and falls to a tenth along half a cosine.
    """
    progress = min(1.0, step / steps)
    return peak * min(1.0, (step - first + 1) / _WARM_UP) * (0.1 + 0.45 * (1 + math.cos(math.pi * progress)))


def spread_timesteps(first: int, count: int, total: int, offset: float) -> Tensor:
    """Return timesteps [count], uniform over [0, total), on the CPU, for the samples from number `first` on.

    Consecutive samples differ by the golden ratio, which fills the range evenly from any start. So the noise levels of
    neighbouring batches do not differ by chance. With a uniform `offset` in [0, 1), each timestep is uniform.
    """
    numbers = torch.arange(first, first + count, dtype=torch.float64)
    return ((offset + numbers * _GOLDEN) % 1 * total).long()


def _copy_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in tensors.items()}
