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

from inst.backbone.devices import allow_nondeterminism, copy_to, deterministic
from inst.backbone.graphs import Graphs, cuda_graphs, signature
from inst.backbone.inversion import FREE_RATE
from inst.backbone.model import Backbone
from inst.errors import Argument, InstError, RemedyPiece
from inst.learning.data import denoising_loss, draw_captions, mean_word, prepare
from inst.learning.settings import LearningSettings
from inst.learning.start import resume_requirements, start_module, steps_of, style_provenance
from inst.learning.state import LearningState, Progress
from inst.pictures.given import Painting
from inst.runs import complete
from inst.styles.style import Style
from inst.synthesis.from_prompt import generate

_WARM_UP = 10  # steps
_GOLDEN = (math.sqrt(5) - 1) / 2
_FLOAT16_SCALE = 2.0**16


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


class LearningRun:
    """The module, optimiser, generator and progress of a learning, and its best parameters so far.

    Args:
        backbone: the frozen model; it does not change.
        paintings: the paintings to learn from.
        settings: the learning settings.
        name: name of the style.
        resume: the state to resume from, or None.
        begin: the style to begin with, or None.

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
    ) -> None:
        self.backbone, self.settings, self.name = backbone, settings, name
        self.paintings = paintings
        self.encoded = tuple(painting.encoded for painting in paintings if painting.encoded)
        # All random numbers come from this one generator, in this order, so that a resumed run gets the same data.
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.module = start_module(backbone, settings, self.generator, begin).train()
        with torch.no_grad(), deterministic(backbone.device):
            self.data, self.validation = prepare(backbone, paintings, self.module, settings.crops, self.generator)
        self.timestep_offset = torch.rand((), generator=self.generator).item()
        self.parameters = dict(self.module.named_parameters())
        free = [value for key, value in self.parameters.items() if key == "moved"]
        network = [value for key, value in self.parameters.items() if key != "moved"]
        groups = [{"params": group, "speed": speed} for group, speed in ((network, 1.0), (free, FREE_RATE)) if group]
        self.graphs = None if backbone.graphs is None else cuda_graphs(backbone.device)
        if self.graphs is not None:  # a graph reads the learning rates from tensors
            for group in groups:
                group["lr"] = torch.tensor(settings.lr, device=backbone.device)
        self.adam = torch.optim.Adam(
            groups, lr=settings.lr, betas=(0.9, 0.99), fused=True, capturable=self.graphs is not None
        )
        self.best, self.before = _copy_tensors(self.parameters), _copy_tensors(self.parameters)
        self.next: _Batch | None = None
        self.places = self._find_places()
        self.rehearsed: Hashable = None
        self.largest_scale = _FLOAT16_SCALE if backbone.dtype == torch.float16 else 1.0
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

    @torch.inference_mode(False)
    @torch.enable_grad()
    def advance(self) -> float:
        """Take one step, and return its loss.

        Raises:
            LearningDiverged: the loss or its gradient is not finite.
        """
        self.between_steps = False
        try:
            value = self._take_step()
        except RuntimeError as error:
            if not allow_nondeterminism(self.backbone.device, error):
                raise
            value = self._take_step()
        self.progress = self.progress.after_step(value)
        self.between_steps = True
        return value

    def _take_step(self) -> float:
        """Update the parameters with the gradient of the loss of a batch, and return the loss."""
        step, device = self.progress.step, self.backbone.device
        batch = self.next = self.next or self._draw(step)
        if not self.settings.validate_every:
            with torch.no_grad():
                torch._foreach_copy_(list(self.before.values()), list(self.parameters.values()))
        for group in self.adam.param_groups:
            rate = self.rate * group["speed"]
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        with deterministic(device), torch.enable_grad():
            results = self._run_step(batch.inputs, torch.full((), self.progress.loss_scale, device=device))
        self.next, self.places = self._draw(step + 1), self._find_places()  # while an accelerator computes
        value, overflow = results.tolist()
        if not math.isfinite(value):
            raise self._diverged()
        if not self.settings.validate_every:
            self.best, self.before = self.before, self.best  # these parameters gave a finite loss
        if overflow:  # float16 overflows sometimes: the gradient of this step is lost.
            self.progress = self.progress.after_overflow()
            if self.progress.loss_scale < 1:
                raise self._diverged()
        else:
            self.progress = self.progress.after_finite_gradient(self.largest_scale)
        return value

    def _run_step(self, inputs: Sequence[Tensor], scale: Tensor) -> Tensor:
        """Call `_compute_step`, by a CUDA graph if that is possible."""
        given, places = [scale, *inputs], self.places
        if self.graphs is None or places is None:
            return self._compute_step(given)[0]
        self._rehearse(self.graphs, places, given)
        return self.graphs(places, self._compute_step, given)[0]

    def _find_places(self) -> Hashable:
        """Return what a graph of a step depends on; None if there can be no graph."""
        places = tuple(signature(network) for network in (self.backbone.unet, *self.backbone.text_encoders))
        return None if None in places else places

    def _rehearse(self, graphs: Graphs, key: Hashable, inputs: Sequence[Tensor]) -> None:
        """Prepare the graph. Then every step is a replay, and a resumed run gives what the first one would give."""
        if self.rehearsed == key:
            return
        self.rehearsed = key
        # Recording runs on a stream of its own, which makes PyTorch warn that this might be slow.
        if (warn := getattr(torch.autograd.graph, "set_warn_on_accumulate_grad_stream_mismatch", None)) is not None:
            warn(False)
        parameters = _copy_tensors(self.parameters)
        moments = {parameter: _copy_tensors(state) for parameter, state in self.adam.state.items()}
        graphs.rehearse(key, self._compute_step, inputs)
        with torch.no_grad():
            for name, value in self.parameters.items():
                value.copy_(parameters[name])
            for parameter, state in self.adam.state.items():
                for name, value in state.items():
                    before = moments.get(parameter)
                    value.zero_() if before is None else value.copy_(before[name])

    def _compute_step(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Update the parameters with a batch of `_draw`, all on the device. A CUDA graph can hold this.

        Args:
            inputs: the scale of the loss, [], and the inputs of the batch.

        Returns:
            One tensor, [2]: the loss, and 1 if the loss or its gradient is not finite, otherwise 0. There is no update
            if it is 1.
        """
        scale, crops, captions, noise, sampling_noise, timesteps, views, *kept = inputs
        data = self.data
        word = mean_word(self.module, data.pooled[views], data.tokens[views], *kept)
        text = data.embed_captions(self.backbone, word, captions)
        clean = data.latents(crops, sampling_noise)
        loss = denoising_loss(self.backbone, text, clean, noise, timesteps).mean()
        parameters = list(self.parameters.values())
        gradients = torch.autograd.grad(loss * scale, parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        found = [gradient for gradient in gradients if gradient is not None]
        overflow = 1 - (torch.nn.utils.get_total_norm(found) * loss.detach()).isfinite().float()
        for gradient in found:
            gradient /= scale
        self.adam.found_inf = overflow  # type: ignore[attr-defined]  # Adam skips the step then; see GradScaler
        self.adam.step()
        return [torch.stack([loss.detach(), overflow])]

    @torch.inference_mode(False)
    @torch.no_grad()
    def validate(self) -> float:
        """Compute the validation loss, and keep the parameters if it is the lowest so far."""
        with deterministic(self.backbone.device):
            loss = self.validation.loss(self.backbone, self.data, self._word(self.parameters))
        if not math.isfinite(loss):
            raise self._diverged()
        self.progress = self.progress.after_validation(loss)
        if self.progress.stale == 0:
            self.best = _copy_tensors(self.parameters)
        return loss

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
            missing = style.vectors.to(self.module.moved) - self._word(self.parameters)
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

    def _word(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """Compute the word [n, d] of all views with these parameters, without dropout."""

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
            vectors=self._word(parameters),
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
