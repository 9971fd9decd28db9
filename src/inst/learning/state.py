"""How to learn (LearningSettings), and all that an interrupted learning goes on from, exactly (LearningState)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from inst.errors import InstError, UsageError, first_line
from inst.files.writing import write_bytes_atomically
from inst.learning.settings import LearningSettings

AVERAGING = 0.98
"""Weight of what was before in the exponential average of the losses."""

GROWTH_INTERVAL = 50
"""Steps after which a loss's scale that was halved is doubled, as `torch.amp.GradScaler` does it after 2000: by then
most learnings are over."""

_KEY = "inst_learning"
_MAY_CHANGE = frozenset({"steps", "patience"})


@dataclass(frozen=True)
class Progress:
    """How far learning is: plain numbers, which the file keeps exactly.

    Attributes:
        step: steps taken.
        seconds: time spent on them.
        average: exponential average of the losses (see `smoothed`).
        loss_scale: what the loss is multiplied by before its gradient is computed (float16 only).
        steady: steps since the scale last changed.
        start_loss: validation loss before the first step, or None where nothing is validated.
        best_loss: the lowest validation loss, or None likewise.
        best_step: the step after which the best state stood.
        stale: validations since then.
    """

    step: int = 0
    seconds: float = 0.0
    average: float = 0.0
    loss_scale: float = 1.0
    steady: int = 0
    start_loss: float | None = None
    best_loss: float | None = None
    best_step: int = 0
    stale: int = 0

    @property
    def smoothed(self) -> float:
        """The average loss, corrected for its start at 0 as Adam's moments are."""
        return self.average / (1 - AVERAGING**self.step) if self.step else math.nan

    def after(self, loss: float) -> Progress:
        """One step later."""
        return replace(self, step=self.step + 1, average=AVERAGING * self.average + (1 - AVERAGING) * loss)

    def overflowed(self) -> Progress:
        """After a gradient that the loss's scale made infinite: the next ones are scaled less."""
        return replace(self, loss_scale=self.loss_scale / 2, steady=0)

    def fitted(self, largest: float) -> Progress:
        """After a gradient that was finite: after `GROWTH_INTERVAL` of them the scale doubles, up to `largest`."""
        if self.loss_scale >= largest:
            return self
        if self.steady + 1 < GROWTH_INTERVAL:
            return replace(self, steady=self.steady + 1)
        return replace(self, loss_scale=2 * self.loss_scale, steady=0)

    def validated(self, loss: float) -> Progress:
        """After the validation loss was computed: is it the best so far?"""
        if self.best_loss is None:
            return replace(self, start_loss=loss, best_loss=loss)
        if loss < self.best_loss:
            return replace(self, best_loss=loss, best_step=self.step, stale=0)
        return replace(self, stale=self.stale + 1)


@dataclass(frozen=True, eq=False)
class LearningState:
    """A snapshot of a learning between two steps. Going on from it gives the same bits as never having stopped.

    Attributes:
        progress: how far it is.
        settings: what it was called with, by argument of `learn`; `learn(backbone, paintings, **settings,
            resume=state)` goes on.
        about: what it belongs to: fingerprints of text space and denoiser, the precision, digests of the paintings.
        tensors: the module's parameters ("module.*"), the best so far ("best.*"), Adam's moments ("adam.*") and the
            generator's state ("generator"), on the CPU.
    """

    progress: Progress
    settings: Mapping[str, Any]
    about: Mapping[str, Any]
    tensors: Mapping[str, Tensor] = field(repr=False)

    def part(self, name: str) -> dict[str, Tensor]:
        """The tensors under a name: "module", "best" or "adam"."""
        start = f"{name}."
        return {key.removeprefix(start): value for key, value in self.tensors.items() if key.startswith(start)}

    def check(self, settings: LearningSettings, about: Mapping[str, Any]) -> None:
        """Raise UsageError where it was made with other settings (steps and patience may change) or of other things."""
        for key, value in asdict(settings).items():
            before = self.settings.get(key)
            if key not in _MAY_CHANGE and before != value:
                raise UsageError(
                    f"The learning to go on with has {key.replace('_', ' ')} {before}, not {value}",
                    "give the same, or start again",
                )
        for key, value in about.items():
            before = self.about.get(key)
            if before != value:
                difference = f" ({before}, not {value})" if isinstance(value, str) else ""
                raise UsageError(
                    f"The learning to go on with was begun with a different {key}{difference}",
                    "give the same, or start again",
                )

    def save(self, path: str | Path) -> Path:
        """Write the state as a safetensors file, complete or not at all. Raises InstError where it cannot be."""
        content = {"progress": asdict(self.progress), "settings": dict(self.settings), "about": dict(self.about)}
        return write_bytes_atomically(
            path, safetensors.torch.save(dict(self.tensors), {_KEY: json.dumps(content, sort_keys=True)})
        )

    @classmethod
    def load(cls, path: str | Path) -> LearningState:
        """Read what `save` wrote.

        Raises:
            InstError: the file is missing, damaged, or something else.
        """
        path = Path(path)
        try:
            with safe_open(path, "pt") as file:
                content = (file.metadata() or {}).get(_KEY)
                if content is None:
                    raise InstError(
                        f"{path} holds no interrupted learning",
                        "give the file that was written when learning was interrupted",
                    )
                parts = json.loads(content)
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            known = {one.name for one in fields(Progress)}
            if set(parts["progress"]) != known:
                raise ValueError("another version's")
            return cls(Progress(**parts["progress"]), parts["settings"], parts["about"], tensors)
        except FileNotFoundError:
            raise InstError(f"{path}: no such file.") from None
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise InstError(
                f"{path} is damaged or holds no interrupted learning ({first_line(error)})", "start again"
            ) from None
