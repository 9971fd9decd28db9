"""An evaluation as JSON, CSV and Markdown; the page of pictures is in `inst.evaluation.page`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from inst.evaluation.metrics.table import Column
from inst.evaluation.results import Evaluation, Figure
from inst.files.csv_tables import csv_lines
from inst.files.writing import write_bytes_atomically

FIGURES, TABLE, PICTURES, MARKDOWN = "figures.json", "figures.csv", "pictures.csv", "figures.md"


def write_reports(evaluation: Evaluation, folder: str | Path) -> list[Path]:
    """Write figures.json, figures.csv, pictures.csv and figures.md into a folder that exists, each whole or not at all.

    pictures.csv has a line for each picture in each row of the table. Returns the files.

    Raises:
        InstError: the folder cannot be written to.
    """
    folder = Path(folder)
    texts: dict[str, Iterable[str]] = {
        FIGURES: [json.dumps(as_json(evaluation), indent=2, ensure_ascii=False) + "\n"],
        TABLE: csv_lines(_table(evaluation)),
        PICTURES: csv_lines(_picture_lines(evaluation)),
        MARKDOWN: [as_markdown(evaluation)],
    }
    return [write_bytes_atomically(folder / name, (one.encode() for one in text)) for name, text in texts.items()]


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """Plain values: columns, rows with their figures, settings, notes and problems."""
    return {
        "settings": dict(evaluation.settings),
        "columns": [
            {"key": one.key, "title": one.title, "better": one.better, "against": one.against, "means": one.means}
            for one in evaluation.columns
        ],
        "rows": [
            {
                "label": row.label,
                "kind": row.kind,
                "method": row.method,
                "pictures": len(row.pairs),
                "figures": {
                    key: {"value": figure.value, "low": figure.low, "high": figure.high}
                    for key, figure in row.figures.items()
                },
            }
            for row in evaluation.rows
        ],
        "notes": list(evaluation.notes),
        "problems": list(evaluation.problems),
    }


def as_markdown(evaluation: Evaluation) -> str:
    """One table with intervals, what its columns mean, and what is to be known."""
    columns = used_columns(evaluation)
    arrows = {"lower": "↓", "higher": "↑"}
    head = ["", "pictures", *(f"{one.title} {arrows[one.better]}" for one in columns)]
    lines = [_cells(head), _cells(["---", *["---:"] * (len(head) - 1)])]
    for row in evaluation.rows:
        figures = [spell(row.figures.get(one.key)) for one in columns]
        lines.append(_cells([row.label if row.kind == "method" else f"*{row.label}*", str(len(row.pairs)), *figures]))
    lines += [
        "",
        "↓ lower is better, ↑ higher is better. In brackets: 95 % intervals by bootstrap over photos and paintings.",
    ]
    lines += ["", *(f"- {one.title}: {one.means}" for one in columns)]
    for title, said in (("Notes", evaluation.notes), ("Left out", evaluation.problems)):
        if said:
            lines += ["", f"{title}:", "", *(f"- {one}" for one in said)]
    return "\n".join(lines) + "\n"


def used_columns(evaluation: Evaluation) -> list[Column]:
    """The columns that some row has a figure in."""
    return [one for one in evaluation.columns if any(one.key in row.figures for row in evaluation.rows)]


def spell(figure: Figure | None) -> str:
    """A figure with three significant digits, and its interval in brackets; a dash for none."""
    if figure is None:
        return "-"
    if figure.low is None or figure.high is None:
        return number(figure.value)
    return f"{number(figure.value)} [{number(figure.low)}, {number(figure.high)}]"


def number(value: float) -> str:
    """Three significant digits, without an exponent: 0.0123, 1.23, 123, 12346; at most six behind the point."""
    if abs(value) < 5e-7:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(digits, 6)}f}"


def _cells(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _table(evaluation: Evaluation) -> Iterator[list[Any]]:
    columns = used_columns(evaluation)
    yield ["row", "kind", "pictures", *(f"{one.key}{end}" for one in columns for end in ("", " low", " high"))]
    for row in evaluation.rows:
        figures = [row.figures.get(one.key) for one in columns]
        ends = [end for one in figures for end in ((one.value, one.low, one.high) if one else (None,) * 3)]
        yield [row.label, row.kind, len(row.pairs), *ends]


def _picture_lines(evaluation: Evaluation) -> Iterator[list[Any]]:
    yield ["row", "kind", "picture", "photo", "painting", *(one.key for one in evaluation.picture_columns)]
    for row in evaluation.rows:
        for index, values in zip(row.pairs, row.values, strict=True):
            pair = evaluation.collection.pairs[index]
            photo = "" if pair.photo is None else pair.photo.name
            figures = [value if math.isfinite(value) else None for value in values.tolist()]
            yield [row.label, row.kind, pair.name, photo, pair.painting.name, *figures]
