"""How to learn: the settings of `learn`, checked, and presets of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from inst.arguments import check_at_least, checked
from inst.errors import UsageError


@dataclass(frozen=True)
class LearningSettings:
    """How to learn: the arguments of `inst.learning.loop.learn` of the same names, with what was left open filled in.

    Raises:
        UsageError: a value of another type, or out of range.
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
        for one in fields(self):
            value = checked(one.name.replace("_", " "), getattr(self, one.name), str(one.type))
            object.__setattr__(self, one.name, value)
        check_at_least(1, steps=self.steps, batch_size=self.batch_size, crops=self.crops, patience=self.patience)
        if self.validate_every < 0:
            raise UsageError(f"Validation every {self.validate_every} steps is not possible", "give 0 (never) or more")
        if not 0 < self.lr < math.inf:
            raise UsageError(f"A learning rate of {self.lr} cannot be used", "give a positive number, such as 0.001")
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"The seed {self.seed} cannot be used", f"give 0 to {2**63 - 1}")


PRESETS: Mapping[str, Mapping[str, Any]] = {"paper": {"lr": 1e-3, "batch_size": 1, "dropout": 0.05}}
"""Arguments of `learn` by name. "paper": those of its sec. 3.2 and 4."""
