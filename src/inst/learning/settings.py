"""The settings of `learn`, with checks, and presets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypedDict

from inst.arguments import check_at_least, checked
from inst.errors import UsageError

MOST: Mapping[str, int] = {"steps": 10**9, "batch_size": 1024, "crops": 10_000}
"""Largest values of settings. More steps than anybody takes; larger batches and more crops fit into no memory."""


@dataclass(frozen=True)
class LearningSettings:
    """The learning settings: arguments of `inst.learning.loop.learn` with the same names, and without None.

    Raises:
        UsageError: a value has the wrong type or is out of range.
    """

    steps: int
    lr: float
    batch_size: int
    variant: str
    layers: int
    dropout: float
    vectors: int
    pretrained: bool
    crops: int
    validate_every: int
    patience: int
    seed: int

    def __post_init__(self) -> None:
        for setting in fields(self):
            value = checked(setting.name.replace("_", " "), getattr(self, setting.name), str(setting.type))
            object.__setattr__(self, setting.name, value)
        check_at_least(1, steps=self.steps, batch_size=self.batch_size, crops=self.crops, patience=self.patience)
        for name, most in MOST.items():
            if (number := getattr(self, name)) > most:
                raise UsageError(f"{number} {name.replace('_', ' ')} cannot be used", f"give {most} at most")
        if self.validate_every < 0:
            raise UsageError(f"Validation every {self.validate_every} steps is not possible", "give 0 (never) or more")
        if not 0 < self.lr < math.inf:
            raise UsageError(f"A learning rate of {self.lr} cannot be used", "give a positive number, such as 0.001")
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"The seed {self.seed} cannot be used", f"give 0 to {2**63 - 1}")


class SharedSettings(TypedDict, total=False):
    """The arguments of `inst.learning.loop.learn` that all styles of `learn_together` have in common."""

    steps: int
    lr: float
    batch_size: int
    variant: str | None
    layers: int | None
    dropout: float
    vectors: int | None
    pretrained: bool | None
    crops: int
    validate_every: int
    patience: int
    seed: int
    keep_painting: bool


PRESETS: Mapping[str, Mapping[str, Any]] = {"paper": {"lr": 1e-3, "batch_size": 1, "dropout": 0.05}}
"""Presets: arguments of `learn`, by preset name. "paper" has the values of the paper, sec. 3.2 and 4."""
