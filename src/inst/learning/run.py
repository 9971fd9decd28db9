"""LearningRun: what changes in the course of learning. `inst.learning.loop.learn` is the loop around it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from inst.backbone.devices import be_gentle, deterministic
from inst.backbone.inversion import FREE_RATE
from inst.backbone.model import Backbone
from inst.errors import InstError
from inst.learning.data import denoising_loss, draw_captions, prepare, word_of
from inst.learning.settings import LearningSettings
from inst.learning.start import about_style, belongings, start_module
from inst.learning.state import LearningState, Progress
from inst.pictures.io import Photo, make_thumbnail
from inst.runs import complete
from inst.styles.style import Style
from inst.synthesis.from_prompt import generate

_WARM_UP = 10  # steps
_GOLDEN = (math.sqrt(5) - 1) / 2
_FLOAT16_SCALE = 2.0**16


class LearningDiverged(InstError):
    """The loss, or its gradient, is no number any more.

    Attributes:
        step: the step in which it happened.
        last_good: the best style before.
    """

    def __init__(self, message: str, step: int, last_good: Style) -> None:
        super().__init__(message)
        self.step = step
        self.last_good = last_good


class LearningRun:
    """A learning between two steps: module, optimiser, generator, progress, and the best so far.

    Args:
        backbone: frozen; nothing of it is changed.
        paintings: what is learned from.
        settings: how.
        name: the style's.
        resume: the state to go on from.

    `inst.learning.start.check_start` says before whether they fit together.
    """

    @torch.inference_mode(False)
    def __init__(
        self,
        backbone: Backbone,
        paintings: Sequence[Photo],
        settings: LearningSettings,
        name: str,
        resume: LearningState | None,
    ) -> None:
        self.backbone, self.settings, self.name = backbone, settings, name
        self.paintings = paintings
        self.thumbnail = make_thumbnail(paintings[0].picture)
        # All randomness comes from this one generator, in this order, so that a resumed run finds the same data.
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.module = start_module(backbone, settings, self.generator).train()
        self.module.draw_dropout_from(self.generator)
        with torch.no_grad(), deterministic(backbone.device):
            self.data, self.validation = prepare(backbone, paintings, self.module, settings.crops, self.generator)
        self.first_time = torch.rand((), generator=self.generator).item()
        self.parameters = dict(self.module.named_parameters())
        free = [value for key, value in self.parameters.items() if key == "moved"]
        network = [value for key, value in self.parameters.items() if key != "moved"]
        groups = [{"params": group, "speed": speed} for group, speed in ((network, 1.0), (free, FREE_RATE)) if group]
        self.adam = torch.optim.Adam(groups, lr=settings.lr, betas=(0.9, 0.99), fused=True)
        self.best = _copies(self.parameters)
        self.largest_scale = _FLOAT16_SCALE if backbone.dtype == torch.float16 else 1.0
        self.progress = Progress(loss_scale=self.largest_scale)
        self.between_steps = True
        if resume is not None:
            self._restore(resume)

    @property
    def rate(self) -> float:
        """The learning rate of the next step."""
        return learning_rate(self.progress.step, self.settings.steps, self.settings.lr)

    @torch.inference_mode(False)
    @torch.enable_grad()
    def advance(self) -> float:
        """Take one step, and return its loss.

        Raises:
            LearningDiverged: the loss or its gradient is no number.
        """
        self.between_steps = False
        state = self.generator.get_state()
        try:
            value = self._descend()
        except RuntimeError as error:
            if not be_gentle(self.backbone.device, error):
                raise
            self.generator.set_state(state)
            value = self._descend()
        self.progress = self.progress.after(value)
        self.between_steps = True
        return value

    def _descend(self) -> float:
        """Draw a batch, and change the parameters by the gradient of its loss, which is returned."""
        step, data = self.progress.step, self.data
        crops, captions, noise, sampling_noise = self._draw()
        timesteps = spread_timesteps(step * len(crops), len(crops), len(self.backbone.alphas_cumprod), self.first_time)
        with deterministic(self.backbone.device):
            word = word_of(self.module, *data.some_views(self.generator))
            text = data.embed_captions(self.backbone, word, captions)
            clean = data.latents(crops, sampling_noise)
            loss = denoising_loss(self.backbone, text, clean, noise.to(clean), timesteps).mean()
            value = loss.item()
            if not math.isfinite(value):
                raise self._diverged()
            if not self.settings.validate_every:
                self.best = _copies(self.parameters)  # they gave a finite loss
            self.adam.zero_grad(set_to_none=True)
            (loss * self.progress.loss_scale).backward()
            self._update()
        return value

    @torch.inference_mode(False)
    @torch.no_grad()
    def validate(self) -> float:
        """Compute the validation loss, and keep the state if it is the best so far."""
        with deterministic(self.backbone.device):
            loss = self.validation.loss(self.backbone, self.data, self._word(self.parameters))
        if not math.isfinite(loss):
            raise self._diverged()
        self.progress = self.progress.validated(loss)
        if self.progress.stale == 0:
            self.best = _copies(self.parameters)
        return loss

    @torch.inference_mode(False)
    @torch.no_grad()
    def preview(self) -> Tensor:
        """A picture [3, S, S] in [-1, 1] of the backbone's native size, made from "[C]" with always the same noise."""
        style = self.style(with_module=False)
        return complete(generate(self.backbone, style=style, **preview_settings(self.settings.seed)))[0].cpu()

    def check_at(self, step: int) -> None:
        """Raise RuntimeError unless exactly `step` steps were taken."""
        if not self.between_steps or self.progress.step != step:
            raise RuntimeError(f"learning has gone on since step {step}: ask a step before the next one is taken")

    def style(self, loss: float | None = None, *, with_module: bool) -> Style:
        """The style as it is now; `loss` is its validation loss, where known."""
        return self._make_style(self.parameters, self.progress.step, loss, with_module)

    def best_style(self, *, with_module: bool) -> Style:
        """The style of the lowest validation loss so far; without validation, the latest whose loss was finite."""
        progress = self.progress
        if not self.settings.validate_every:
            if self.between_steps:
                return self.style(with_module=with_module)
            return self._make_style(self.best, progress.step, None, with_module)
        return self._make_style(self.best, progress.best_step, progress.best_loss, with_module)

    def state(self) -> LearningState:
        """A snapshot on the CPU."""
        tensors: dict[str, Tensor] = {f"module.{key}": value for key, value in self.parameters.items()}
        tensors |= {f"best.{key}": value for key, value in self.best.items()}
        for index, moments in self.adam.state_dict()["state"].items():
            tensors |= {f"adam.{index}.{key}": value for key, value in moments.items()}
        tensors["generator"] = self.generator.get_state()
        tensors = {key: value.detach().to("cpu", copy=True).contiguous() for key, value in tensors.items()}
        about = belongings(self.backbone, self.paintings, self.settings.variant)
        return LearningState(self.progress, asdict(self.settings), about, tensors)

    def _restore(self, state: LearningState) -> None:
        self.progress = state.progress
        with torch.no_grad():
            for key, value in state.part("module").items():
                self.parameters[key].copy_(value)
            for key, value in state.part("best").items():
                self.best[key].copy_(value)
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in state.part("adam").items():
            index, _, what = key.partition(".")
            moments.setdefault(int(index), {})[what] = value
        self.adam.load_state_dict({"state": moments, "param_groups": self.adam.state_dict()["param_groups"]})
        self.generator.set_state(state.tensors["generator"])

    def _draw(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Crops [B], captions [B], noise and the noise of the posteriors' samples, both [B, C, h, w]; on the CPU."""
        batch, shape = self.settings.batch_size, self.data.mean.shape
        return (
            torch.randint(shape[0], (batch,), generator=self.generator),
            draw_captions(batch, self.generator),
            torch.randn(batch, *shape[1:], generator=self.generator),
            torch.randn(batch, *shape[1:], generator=self.generator),
        )

    def _update(self) -> None:
        """Let Adam change the parameters by their gradients, which the loss was scaled for."""
        scale = self.progress.loss_scale
        gradients = [parameter.grad for parameter in self.parameters.values() if parameter.grad is not None]
        if not torch.nn.utils.get_total_norm(gradients).isfinite():
            # float16 overflows now and then: this step's gradient is lost.
            self.progress = self.progress.overflowed()
            if self.progress.loss_scale < 1:
                raise self._diverged()
            return
        for gradient in gradients:
            gradient /= scale
        for group in self.adam.param_groups:
            group["lr"] = self.rate * group["speed"]
        self.adam.step()
        self.progress = self.progress.fitted(self.largest_scale)

    def _word(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """The word [n, d] that the module makes of all views with these parameters, without dropout."""

        def inversion(*views: Tensor) -> Any:
            return functional_call(self.module, dict(parameters), views)

        self.module.eval()
        try:
            return word_of(inversion, self.data.pooled, self.data.tokens)
        finally:
            self.module.train()

    @torch.inference_mode(False)
    @torch.no_grad()
    def _make_style(self, parameters: Mapping[str, Tensor], step: int, loss: float | None, with_module: bool) -> Style:
        settings = asdict(self.settings)
        variant, seed = settings.pop("variant"), settings.pop("seed")
        measured = {"seed": seed, "settings": settings, "loss": loss, "start_loss": self.progress.start_loss}
        about = about_style(self.name, self.backbone, self.paintings, variant, step) | measured
        return Style(
            vectors=self._word(parameters),
            widths=self.backbone.text_widths,
            fingerprint=self.backbone.fingerprint,
            denoiser=self.backbone.denoiser_fingerprint,
            about=about,
            thumbnail=self.thumbnail,
            module={**dict(self.module.named_buffers()), **parameters} if with_module else None,
            module_config=asdict(self.module.config) if with_module else None,
        )

    def _diverged(self) -> LearningDiverged:
        step = self.progress.step + (not self.between_steps)  # one that is not finished has not been counted
        return LearningDiverged(
            f"The loss is not finite any more at step {step}: learn more slowly than with the rate "
            f"{self.settings.lr:g}, or with the backbone in float32.",
            step,
            self.best_style(with_module=False),
        )


def preview_settings(seed: int) -> dict[str, Any]:
    """The arguments of `inst.generate` that make a preview of a learning with this seed, besides backbone and style."""
    return {"prompt": "[C]", "steps": 8, "guidance": 4.0, "seed": seed}


def learning_rate(step: int, steps: int, peak: float) -> float:
    """The learning rate of step `step` (from 0) of `steps`: a linear warm-up, then half a cosine down to a tenth."""
    progress = min(1.0, step / steps)
    return peak * min(1.0, (step + 1) / _WARM_UP) * (0.1 + 0.45 * (1 + math.cos(math.pi * progress)))


def spread_timesteps(first: int, count: int, total: int, offset: float) -> Tensor:
    """The timesteps [count] of samples number `first` and following: uniform over [0, total), on the CPU.

    Steps of the golden ratio fill the range evenly from wherever they begin, so that neighbouring batches do not
    differ by the noise levels that happened to be drawn. A uniform `offset` in [0, 1) makes each of them uniform.
    """
    numbers = torch.arange(first, first + count, dtype=torch.float64)
    return ((offset + numbers * _GOLDEN) % 1 * total).long()


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in tensors.items()}
