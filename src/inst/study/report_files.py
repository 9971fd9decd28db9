"""Write a report as files: Markdown, JSON, CSV and plots."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from inst.files.csv_tables import to_csv
from inst.files.writing import write_bytes_atomically
from inst.study import tables
from inst.study.database import Database
from inst.study.factors import factor_name
from inst.study.plots import plot_report
from inst.study.report import Report
from inst.texts import cut, one_line
from inst.texts import markdown as escaped

_NO_VALUE = "-"
_LONGEST_NAME = 80
"""Characters of a method's name in the terminal."""


def write_report(report: Report, database: Database, folder: Path) -> list[Path]:
    """Write report.md, report.json, votes.csv, answers.csv, rankings.csv, and the plots as PNG and SVG.

    Args:
        report: the results to write.
        database: the study, for answers.csv and rankings.csv.
        folder: an existing folder; files with these names in it are replaced.

    Returns:
        The files.

    Raises:
        InstError: a file cannot be written.
    """
    texts = {
        "report.md": markdown(report),
        "report.json": json.dumps(report.as_json(), indent=2) + "\n",
        "votes.csv": _votes_csv(report),
        "answers.csv": tables.answers_csv(database),
        "rankings.csv": tables.rankings_csv(database),
    }
    files = [write_bytes_atomically(folder / name, text.encode()) for name, text in texts.items()]
    return files + [write_bytes_atomically(folder / name, data) for name, data in plot_report(report).items()]


def markdown(report: Report) -> str:
    """Return the report as Markdown; the table of votes comes first, as in the paper's Table 2."""
    ours = escaped(report.ours)
    parts = [
        f"# {escaped(report.title) or 'User study'}",
        f"{report.started} people took part, {report.finished} finished, {report.kept} are counted: "
        f"{report.total.votes} votes.",
        "## Votes",
        _table(
            [
                *("against", "votes", f"for {ours}", "for the other", f"% for {ours}"),
                *("95 % (Wilson)", "95 % (resampled people)", "p", "p (Holm)"),
            ],
            [
                [
                    *(name, str(one.votes), str(one.for_ours), str(one.votes - one.for_ours), _percent(one.share)),
                    *(_interval(one.wilson), _interval(one.resampled), _p(one.p_value), _p(one.p_holm)),
                ]
                for name, one in [
                    *((escaped(name), one) for name, one in report.methods.items()),
                    ("**all**", report.total),
                ]
            ],
        ),
        "p: two-sided exact binomial test against 50 %; p (Holm) is adjusted for the number of methods. Wilson's "
        "interval and p assume that votes are independent; the resampled interval (bootstrap over participants) does "
        "not.",
        "## Agreement",
        _table(
            ["against", "Krippendorff's alpha", "two people agree", "pairs with two or more votes"],
            [
                [escaped(name) or "**all**", _number(one.alpha), _percent(one.same, " %"), str(one.pairs)]
                for name, one in sorted(report.agreement.items(), key=lambda item: (not item[0], item[0]))
            ],
        ),
        "Alpha is 1 if all people agree on every pair, and 0 if they agree only as often as by chance. It is also low "
        "if nearly all votes are the same.",
        "## Time",
        _times(report),
        "## Excluded participants",
        _exclusions(report),
        "## What matters in a style",
        _factors(report),
    ]
    return "\n\n".join(parts) + "\n"


def _times(report: Report) -> str:
    if not report.seconds:
        return "No votes are counted."
    seconds = report.seconds
    return (
        f"Median time for a vote: {seconds['median']:.1f} s; the middle half took {seconds['quarter']:.1f} to "
        f"{seconds['three quarters']:.1f} s; the mean is {seconds['mean']:.1f} s."
    )


def _exclusions(report: Report) -> str:
    rules, everybody = report.rules, report.everybody
    meanings = [
        ("too-fast", rules.too_fast, f"median time for a vote below {rules.too_fast:g} s"),
        (
            "one-side",
            rules.one_side,
            f"probability of such an uneven choice of sides by chance below {rules.one_side:g}",
        ),
        ("failed-checks", rules.failed_checks, f"{rules.failed_checks} or more wrong answers to attention checks"),
        ("few-answers", rules.few_answers, f"answered less than {100 * rules.few_answers:g} % of the pairs"),
    ]
    rows = [
        [name, meaning if limit else "not applied", str(report.excluded.get(name, 0))]
        for name, limit, meaning in meanings
    ]
    return (
        _table(["rule", "meaning", "people"], rows)
        + f"\n\nOne person may break several rules. With excluded participants: {everybody.for_ours} of "
        f"{everybody.votes} votes for {escaped(report.ours)}, {_percent(everybody.share, ' %')} "
        f"({_interval(everybody.wilson)})."
    )


def _factors(report: Report) -> str:
    if not report.ranked:
        return "Nobody ranked the factors."
    rows = [
        [
            *(factor_name(factor), f"{score:.2f}", *(str(count) for count in report.places[factor])),
            str(report.ranked - sum(report.places[factor])),
        ]
        for factor, score in report.scores.items()
    ]
    places = [f"{place}." for place in range(1, len(report.places) + 1)]
    return (
        _table(["factor", "score", *places, "left out"], rows)
        + f"\n\nScore: sum(frequency x weight) / people, with weights from {len(places)} to 1, for the {report.ranked} "
        "people who answered. A factor that is left out counts 0."
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [list(head), ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _votes_csv(report: Report) -> str:
    columns = ["method", "votes", "for_ours", "share", "wilson_low", "wilson_high", "resampled_low", "resampled_high"]
    columns += ["p_value", "p_holm", "alpha", "two_voted_alike"]
    rows = []
    for name, one in [*report.methods.items(), ("", report.total)]:
        agreement = report.agreement[name]
        intervals = [*(one.wilson or ("", "")), *(one.resampled or ("", ""))]
        tail = [one.p_value, one.p_holm, agreement.alpha, agreement.same]
        rows.append([name or "all", one.votes, one.for_ours, one.share, *intervals, *tail])
    return to_csv([columns, *rows])


def summary(report: Report) -> list[str]:
    """Return one line for each method, for the terminal."""
    ours, *names = (cut(one_line(name), _LONGEST_NAME) for name in [report.ours, *report.methods, "all"])
    width = max(map(len, names))
    return [
        f"{name:<{width}}  {_percent(one.share):>5} % for {ours} ({_interval(one.wilson)}), "
        f"{one.votes} votes, p {_p(one.p_value)}"
        for name, one in zip(names, [*report.methods.values(), report.total], strict=True)
    ]


def _percent(share: float | None, unit: str = "") -> str:
    return _NO_VALUE if share is None else f"{100 * share:.1f}{unit}"


def _interval(bounds: tuple[float, float] | None) -> str:
    return _NO_VALUE if bounds is None else f"{100 * bounds[0]:.1f} to {100 * bounds[1]:.1f}"


def _number(value: float | None) -> str:
    return _NO_VALUE if value is None else f"{value:.3f}"


def _p(value: float | None) -> str:
    if value is None:
        return _NO_VALUE
    return "< 0.0001" if value < 0.0001 else f"{value:.4f}"
