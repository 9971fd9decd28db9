"""Write an evaluation as JSON, CSV and Markdown; `inst.evaluation.page` writes the HTML page."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from inst.evaluation.metrics.table import Column
from inst.evaluation.results import Evaluation, Score
from inst.files.csv_tables import csv_lines
from inst.files.listing import readable_name
from inst.files.writing import write_bytes_atomically
from inst.texts import markdown

JSON, TABLE, PICTURES, MARKDOWN = "figures.json", "figures.csv", "pictures.csv", "figures.md"
LISTED = 200
"""Largest number of left-out things that reports for people list; figures.json lists all."""
_NOT_PRINTABLE = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
"""Characters that JSON stores as they are, but that a terminal or an editor obeys."""


def write_reports(evaluation: Evaluation, folder: str | Path) -> list[Path]:
    """Write figures.json, figures.csv, pictures.csv and figures.md into an existing folder, each atomically.

    pictures.csv has a line for each picture in each row of the table. Returns the files.

    Raises:
        InstError: the folder cannot be written to.
    """
    folder = Path(folder)
    texts: dict[str, Iterable[str]] = {
        JSON: [_json_text(as_json(evaluation)) + "\n"],
        TABLE: csv_lines(_table(evaluation)),
        PICTURES: csv_lines(_picture_lines(evaluation)),
        MARKDOWN: [as_markdown(evaluation)],
    }
    return [write_bytes_atomically(folder / name, _encoded(text)) for name, text in texts.items()]


def _encoded(parts: Iterable[str]) -> Iterator[bytes]:
    return (readable_name(part).encode() for part in parts)  # the texts hold names and paths of files


def _json_text(value: object) -> str:
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    return _NOT_PRINTABLE.sub(lambda one: f"\\u{ord(one[0]):04x}", text)


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """Return the columns, the rows with their scores, settings, notes and problems as plain JSON values.

    A score that is not finite is None, because JSON has no such number.
    """
    return {
        "settings": dict(evaluation.settings),
        "columns": [
            {
                "key": column.key,
                "title": column.title,
                "better": column.better,
                "against": column.against,
                "means": column.means,
            }
            for column in evaluation.columns
        ],
        "rows": [
            {
                "label": row.label,
                "kind": row.kind,
                "method": row.method,
                "pictures": len(row.pairs),
                "figures": {
                    key: {"value": _finite(score.value), "low": _finite(score.low), "high": _finite(score.high)}
                    for key, score in row.scores.items()
                },
            }
            for row in evaluation.rows
        ],
        "notes": list(evaluation.notes),
        "problems": list(evaluation.problems),
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def as_markdown(evaluation: Evaluation) -> str:
    """Return a Markdown table with intervals, the meaning of its columns, the notes and the problems."""
    columns = used_columns(evaluation)
    arrows = {"lower": "↓", "higher": "↑"}
    head = ["", "pictures", *(f"{markdown(column.title)} {arrows[column.better]}" for column in columns)]
    lines = [_line(head), _line(["---", *["---:"] * (len(head) - 1)])]
    for row in evaluation.rows:
        scores = [format_score(row.scores.get(column.key)) for column in columns]
        label = markdown(row.label)
        lines.append(_line([label if row.kind == "method" else f"*{label}*", str(len(row.pairs)), *scores]))
    lines += [
        "",
        "↓ lower is better, ↑ higher is better. In brackets: 95 % intervals by bootstrap over photos and paintings.",
    ]
    lines += ["", *(f"- {markdown(column.title)}: {markdown(column.means)}" for column in columns)]
    for title, remarks in (("Notes", evaluation.notes), ("Left out", evaluation.problems)):
        if remarks:
            lines += ["", f"{title}:", "", *(f"- {markdown(remark)}" for remark in remarks[:LISTED])]
        if len(remarks) > LISTED:
            lines.append(f"- and {len(remarks) - LISTED:,} more, in {JSON}")
    return "\n".join(lines) + "\n"


def used_columns(evaluation: Evaluation) -> list[Column]:
    """Return the columns in which at least one row has a score."""
    return [column for column in evaluation.columns if any(column.key in row.scores for row in evaluation.rows)]


def format_score(score: Score | None) -> str:
    """Return a score with three significant digits and its interval in brackets; a dash if there is no score."""
    if score is None:
        return "-"
    if score.low is None or score.high is None:
        return format_number(score.value)
    return f"{format_number(score.value)} [{format_number(score.low)}, {format_number(score.high)}]"


def format_number(value: float) -> str:
    """Return three significant digits: 0.0123, 1.23, 123, 12346; at most six decimal places.

    Only numbers from 1e12 have an exponent.
    """
    if abs(value) < 5e-7:
        return "0"
    if not abs(value) < 1e12:
        return f"{value:.2e}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(digits, 6)}f}"


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _table(evaluation: Evaluation) -> Iterator[list[Any]]:
    columns = used_columns(evaluation)
    yield ["row", "kind", "pictures", *(f"{column.key}{end}" for column in columns for end in ("", " low", " high"))]
    for row in evaluation.rows:
        scores = [row.scores.get(column.key) for column in columns]
        cells = [cell for one in scores for cell in ((one.value, one.low, one.high) if one else (None,) * 3)]
        yield [row.label, row.kind, len(row.pairs), *cells]


def _picture_lines(evaluation: Evaluation) -> Iterator[list[Any]]:
    yield ["row", "kind", "picture", "photo", "painting", *(column.key for column in evaluation.picture_columns)]
    for row in evaluation.rows:
        for index, values in zip(row.pairs, row.values, strict=True):
            pair = evaluation.collection.pairs[index]
            photo = "" if pair.photo is None else pair.photo.name
            scores = [_finite(value) for value in values.tolist()]
            yield [row.label, row.kind, pair.name, photo, pair.painting.name, *scores]
