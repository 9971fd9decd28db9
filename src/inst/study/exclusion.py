"""Whose answers are left out of a report: named rules, so that a reader can tell what was done."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from scipy.stats import binomtest

from inst.errors import UsageError

_LONGEST = 3600  # seconds: nobody looks at a pair for so long


@dataclass(frozen=True)
class Rules:
    """Bounds beyond which a participant counts as careless; 0 turns a rule off.

    Attributes:
        too_fast: median seconds a vote below it.
        one_side: probability, under a fair coin, of so uneven a choice of sides, below it.
        failed_checks: so many attention checks answered wrongly, or more.
        few_answers: share of the trials answered, below it.

    Raises:
        UsageError: a bound out of range.
    """

    too_fast: float
    one_side: float
    failed_checks: int
    few_answers: float

    def __post_init__(self) -> None:
        for name, most, what in (
            ("too_fast", _LONGEST, "0 or more seconds, such as 1"),
            ("one_side", 1, "a probability from 0 to 1, such as 0.001"),
            ("failed_checks", math.inf, "0 or more"),
            ("few_answers", 1, "a share from 0 to 1, such as 0.5"),
        ):
            if not 0 <= (bound := getattr(self, name)) <= most:  # which a number that is none fails too
                rule = name.replace("_", "-")
                raise UsageError(f"A bound of {bound:g} for {rule} cannot be used", f"give {what}")


def broken_rules(answers: Sequence[dict[str, Any]], trials: int, rules: Rules) -> list[str]:
    """Return the names of the rules that a participant breaks.

    Args:
        answers: the answers that count, rows of `inst.study.tables.answers`.
        trials: how many the participant was given, attention checks included.
        rules: the bounds.

    Returns:
        Of "too-fast", "one-side", "failed-checks", "few-answers".
    """
    broken = []
    if answers and median(row["seconds"] for row in answers) < rules.too_fast:
        broken.append("too-fast")
    if answers:
        first = sum(row["chosen"] == "first" for row in answers)
        if binomtest(first, len(answers), 0.5).pvalue < rules.one_side:
            broken.append("one-side")
    failed = sum(row["is_check"] and not row["for_ours"] for row in answers)
    if failed >= rules.failed_checks > 0:
        broken.append("failed-checks")
    if len(answers) < rules.few_answers * trials:
        broken.append("few-answers")
    return broken
