"""Write an evaluation as JSON, CSV and Markdown; `inst.evaluation.page` writes the HTML page."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from inst.evaluation.metrics.table import Column
from inst.evaluation.results import Evaluation, Score
from inst.files.csv_tables import csv_lines
from inst.files.listing import readable_name
from inst.files.writing import write_bytes_atomically

JSON, TABLE, PICTURES, MARKDOWN = "figures.json", "figures.csv", "pictures.csv", "figures.md"


def write_reports(evaluation: Evaluation, folder: str | Path) -> list[Path]:
    """Write figures.json, figures.csv, pictures.csv and figures.md into an existing folder, each atomically.

    pictures.csv has a line for each picture in each row of the table. Returns the files.

    Raises:
        InstError: the folder cannot be written to.
    """
    folder = Path(folder)
    texts: dict[str, Iterable[str]] = {
        JSON: [json.dumps(as_json(evaluation), indent=2, ensure_ascii=False) + "\n"],
        TABLE: csv_lines(_table(evaluation)),
        PICTURES: csv_lines(_picture_lines(evaluation)),
        MARKDOWN: [as_markdown(evaluation)],
    }
    return [write_bytes_atomically(folder / name, _encoded(text)) for name, text in texts.items()]


def _encoded(parts: Iterable[str]) -> Iterator[bytes]:
    return (readable_name(part).encode() for part in parts)  # the texts hold names and paths of files


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """Return the columns, the rows with their scores, settings, notes and problems as plain JSON values."""
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
                    key: {"value": score.value, "low": score.low, "high": score.high}
                    for key, score in row.scores.items()
                },
            }
            for row in evaluation.rows
        ],
        "notes": list(evaluation.notes),
        "problems": list(evaluation.problems),
    }


def as_markdown(evaluation: Evaluation) -> str:
    """Return a Markdown table with intervals, the meaning of its columns, the notes and the problems."""
    columns = used_columns(evaluation)
    arrows = {"lower": "↓", "higher": "↑"}
    head = ["", "pictures", *(f"{column.title} {arrows[column.better]}" for column in columns)]
    lines = [_line(head), _line(["---", *["---:"] * (len(head) - 1)])]
    for row in evaluation.rows:
        scores = [format_score(row.scores.get(column.key)) for column in columns]
        lines.append(_line([row.label if row.kind == "method" else f"*{row.label}*", str(len(row.pairs)), *scores]))
    lines += [
        "",
        "↓ lower is better, ↑ higher is better. In brackets: 95 % intervals by bootstrap over photos and paintings.",
    ]
    lines += ["", *(f"- {column.title}: {column.means}" for column in columns)]
    for title, remarks in (("Notes", evaluation.notes), ("Left out", evaluation.problems)):
        if remarks:
            lines += ["", f"{title}:", "", *(f"- {remark}" for remark in remarks)]
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
    """Return three significant digits without an exponent: 0.0123, 1.23, 123, 12346; at most six decimal places."""
    if abs(value) < 5e-7:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(digits, 6)}f}"


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


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
            scores = [value if math.isfinite(value) else None for value in values.tolist()]
            yield [row.label, row.kind, pair.name, photo, pair.painting.name, *scores]
