"""`LearningState`: everything that an interrupted learning needs to resume exactly, and its file."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from inst.arguments import check_path
from inst.errors import InstError, UsageError, first_line
from inst.files.git_lfs import refuse_pointer
from inst.files.listing import readable_path
from inst.files.reading import check_regular
from inst.files.tensors import open_tensors
from inst.files.writing import write_bytes_atomically
from inst.learning.settings import LearningSettings
from inst.texts import cut

AVERAGING = 0.98
"""Weight of the previous losses in their exponential average."""

GROWTH_INTERVAL = 50
"""Number of steps after which a halved loss scale is doubled. `torch.amp.GradScaler` waits 2000 steps, which is longer
than most learnings."""

_KEY, _DIGEST = "inst_learning", "sha256"
_MAY_CHANGE = frozenset({"steps", "patience"})


def is_state(path: str | Path) -> bool:
    """Return whether a file is a state that `LearningState.save` wrote. Only its header is read."""
    try:
        with open_tensors(path) as file:
            return _KEY in (file.metadata() or {})
    except InstError:
        return False


@dataclass(frozen=True)
class Progress:
    """The progress of learning, as plain numbers, which the file stores exactly.

    Attributes:
        step: number of steps taken.
        seconds: time spent on these steps.
        average: exponential average of the losses (see `smoothed`).
        loss_scale: factor on the loss before its gradient is computed (float16 only).
        steady: number of steps since the scale last changed.
        start_loss: validation loss before the first step; None without validation.
        best_loss: the lowest validation loss; None without validation.
        best_step: the step after which the validation loss was lowest.
        stale: number of validations since then.
        first: the step at which learning began: 0, or the steps of the style that it began with.
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
    first: int = 0

    @property
    def smoothed(self) -> float:
        """The average loss, with the same bias correction as Adam's moments, because the average starts at 0."""
        taken = self.step - self.first
        return self.average / (1 - AVERAGING**taken) if taken else math.nan

    def after_step(self, loss: float) -> Progress:
        """Return the progress after one more step with this loss."""
        return replace(self, step=self.step + 1, average=AVERAGING * self.average + (1 - AVERAGING) * loss)

    def after_overflow(self) -> Progress:
        """Return the progress after a gradient that is not finite: the loss scale is halved."""
        return replace(self, loss_scale=self.loss_scale / 2, steady=0)

    def after_finite_gradient(self, largest: float) -> Progress:
        """Return the progress after a finite gradient: every `GROWTH_INTERVAL` of them, the scale doubles.

        The scale grows to `largest` at most.
        """
        if self.loss_scale >= largest:
            return self
        if self.steady + 1 < GROWTH_INTERVAL:
            return replace(self, steady=self.steady + 1)
        return replace(self, loss_scale=2 * self.loss_scale, steady=0)

    def after_validation(self, loss: float) -> Progress:
        """Return the progress after a validation with this loss."""
        if self.best_loss is None:
            return replace(self, start_loss=loss, best_loss=loss, best_step=self.step)
        if loss < self.best_loss:
            return replace(self, best_loss=loss, best_step=self.step, stale=0)
        return replace(self, stale=self.stale + 1)


@dataclass(frozen=True, eq=False)
class LearningState:
    """A snapshot of a learning between two steps.

    A learning that resumes from it gives the same bits as a learning without interruption.

    Attributes:
        progress: the progress.
        settings: the arguments of `learn`. `learn(backbone, paintings, **settings, resume=state)` resumes.
        about: what must be the same to resume: fingerprints of the text space, the UNet and the image encoder if it is
            used, the precision, and digests of the paintings.
        tensors: parameters of the module ("module.*"), the best parameters so far ("best.*"), Adam's moments
            ("adam.*") and the state of the generator ("generator"), on the CPU.
    """

    progress: Progress
    settings: Mapping[str, Any]
    about: Mapping[str, Any]
    tensors: Mapping[str, Tensor] = field(repr=False)

    def part(self, name: str) -> dict[str, Tensor]:
        """Return the tensors under a name: "module", "best" or "adam"."""
        start = f"{name}."
        return {key.removeprefix(start): value for key, value in self.tensors.items() if key.startswith(start)}

    def check_given(self, **given: Any) -> None:
        """Raise UsageError if a setting that the caller gave (not None) differs from that of the state.

        Other settings follow from these, so `check` alone could name one that was not given.
        """
        self._compare({name: value for name, value in given.items() if value is not None})

    def check(self, settings: LearningSettings, about: Mapping[str, Any]) -> None:
        """Raise UsageError if the settings or `about` differ from those of the state. Steps and patience may change."""
        self._compare(asdict(settings))
        for key, value in about.items():
            before = self.about.get(key)
            if before != value:
                difference = f" ({cut(str(before), 60)}, not {value})" if isinstance(value, str) else ""
                raise UsageError(
                    f"The learning to resume was started with a different {key}{difference}",
                    f"give the same {key}, or start again",
                )

    def _compare(self, settings: Mapping[str, Any]) -> None:
        for key, value in settings.items():
            before = self.settings.get(key)
            if key not in _MAY_CHANGE and before != value:
                raise UsageError(
                    f"The learning to resume has {key.replace('_', ' ')} {before}, not {value}",
                    "give the same value, or start again",
                )

    def save(self, path: str | Path) -> Path:
        """Write the state as a safetensors file, completely or not at all. Raises InstError if that fails."""
        content = json.dumps(
            {"progress": asdict(self.progress), "settings": dict(self.settings), "about": dict(self.about)},
            sort_keys=True,
        )
        metadata = {_KEY: content, _DIGEST: _digest(content, self.tensors)}
        return write_bytes_atomically(path, safetensors.torch.save(dict(self.tensors), metadata))

    @classmethod
    def load(cls, path: str | Path) -> LearningState:
        """Read a state file that `save` wrote.

        Whether the state can be resumed is checked where it is (`inst.learning.loop.learn`).

        Raises:
            InstError: the file is missing, damaged, changed, or not a state file.
        """
        check_path("A learning state", path)
        path = Path(path)
        refuse_pointer(path)
        if not path.exists():
            raise InstError(f"{path}: no such file", "check the path, or start again")
        check_regular(path)
        try:
            with readable_path(path) as place, safe_open(place, "pt") as file:
                metadata = file.metadata() or {}
                if _KEY not in metadata:
                    raise InstError(
                        f"{path} holds no interrupted learning",
                        "give the state file that was written when learning was interrupted",
                    )
                if _DIGEST not in metadata:
                    raise InstError(
                        f"{path} was written by an earlier version of inst, which stored no checksum", "start again"
                    )
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            if _digest(metadata[_KEY], tensors) != metadata[_DIGEST]:
                raise ValueError("it has changed since it was written")
            parts = json.loads(metadata[_KEY])
            known = {number.name for number in fields(Progress)}
            if set(parts["progress"]) != known:
                raise ValueError("written by another version of inst")
            return cls(Progress(**parts["progress"]), parts["settings"], parts["about"], tensors)
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise InstError(
                f"{path} is damaged or holds no interrupted learning ({first_line(error)})", "start again"
            ) from None


def _digest(content: str, tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of everything in a state: if a bit has changed, the style would be another one, unnoticed."""
    digest = hashlib.sha256(content.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\0{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
