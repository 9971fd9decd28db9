"""Rules that exclude careless participants from a report. The rules have names, so that a report can state them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from scipy.stats import binomtest

from inst.errors import UsageError

_MAX_SECONDS = 3600  # nobody looks at a pair for longer


@dataclass(frozen=True)
class Rules:
    """Limits beyond which a participant counts as careless; 0 turns a rule off.

    Attributes:
        too_fast: lower limit of the median time for a vote, in seconds.
        one_side: lower limit of the probability that a fair coin gives such an uneven choice of sides.
        failed_checks: number of wrong answers to attention checks at which a participant is excluded.
        few_answers: lower limit of the share of answered trials.

    Raises:
        UsageError: a limit is out of range.
    """

    too_fast: float
    one_side: float
    failed_checks: int
    few_answers: float

    def __post_init__(self) -> None:
        for name, maximum, allowed in (
            ("too_fast", _MAX_SECONDS, "0 to 3600 seconds, such as 1"),
            ("one_side", 1, "a probability from 0 to 1, such as 0.001"),
            ("failed_checks", math.inf, "0 or more"),
            ("few_answers", 1, "a share from 0 to 1, such as 0.5"),
        ):
            if not 0 <= (limit := getattr(self, name)) <= maximum:  # NaN fails too
                rule = name.replace("_", "-")
                raise UsageError(f"A limit of {limit:g} for {rule} cannot be used", f"give {allowed}")


def broken_rules(answers: Sequence[dict[str, Any]], trials: int, rules: Rules) -> list[str]:
    """Return the names of the rules that a participant breaks.

    Args:
        answers: the participant's answers that count, rows of `inst.study.tables.answers`.
        trials: number of the participant's trials, with attention checks.
        rules: the limits.

    Returns:
        Names from "too-fast", "one-side", "failed-checks", "few-answers".
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
