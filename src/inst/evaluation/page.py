"""An evaluation as one HTML file: a sortable table, and the pictures with their figures. It asks for nothing else."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

import numpy as np

from inst.errors import InstError
from inst.evaluation.metrics.table import Column
from inst.evaluation.report import number, used_columns
from inst.evaluation.results import Evaluation, Figure, Row
from inst.files.writing import write_bytes_atomically
from inst.pictures.io import open_picture

PAGE = "index.html"
_SIDE = 288
"""Pixels of a picture's long side in the page: sharp at the size that it is shown at on most screens."""


def write_page(evaluation: Evaluation, folder: str | Path, shown: int = 100, title: str = "Evaluation") -> Path:
    """Write index.html into a folder that exists, with at most `shown` pairs of pictures, spread evenly over all.

    A picture that was not judged is left empty. Returns the file.

    Raises:
        InstError: the folder cannot be written to.
    """
    pairs = _choose(evaluation, shown)
    methods = [row for row in evaluation.rows if row.kind == "method"]
    columns, kept = used_columns(evaluation), _known(evaluation)
    shared: dict[Path, str] = {}
    fields = {
        "title": escape(title),
        "subtitle": escape(_subtitle(evaluation)),
        "left_out": _list(f"Left out ({len(evaluation.problems):,})", evaluation.problems, "left-out"),
        "head": _heads(columns),
        "rows": _rows(evaluation, columns),
        "notes": _list("Notes", evaluation.notes, "notes"),
        "meanings": "".join(f"<dt>{escape(one.title)}</dt><dd>{escape(one.means)}</dd>" for one in columns),
        "choices": "".join(f'<option value="{place}">{escape(one.title)}</option>' for place, one in enumerate(kept)),
        "shown": escape(_shown(len(pairs), evaluation)),
        "gallery_head": _gallery_head(methods, bool(evaluation.collection.pairs[0].photo)),
        "gallery": "".join(_gallery_row(evaluation, methods, pair, shared) for pair in pairs),
        "settings": escape(
            ", ".join(f"{key} {value}" for key, value in evaluation.settings.items() if value is not None)
        ),
        "shared": _script(list(shared.values())),
        "values": _script(_values(evaluation, methods, pairs, kept)),
    }
    page = files("inst.evaluation").joinpath("page.html").read_text(encoding="utf-8")
    head, *parts = page.split("{{")
    for part in parts:  # one pass: what is filled in is not looked through for more
        name, _, rest = part.partition("}}")
        head += fields[name] + rest
    return write_bytes_atomically(Path(folder) / PAGE, head.encode())


def _choose(evaluation: Evaluation, shown: int) -> list[int]:
    judged = np.unique(np.concatenate([row.pairs for row in evaluation.rows if row.kind == "method"]))
    if len(judged) > shown:
        judged = judged[np.linspace(0, len(judged) - 1, shown).astype(int)]
    chosen: list[int] = judged.tolist()
    return chosen


def _known(evaluation: Evaluation) -> list[Column]:
    """The columns of single pictures that are used."""
    used = {one.key for one in used_columns(evaluation)}
    return [one for one in evaluation.picture_columns if one.key in used]


def _subtitle(evaluation: Evaluation) -> str:
    pairs = evaluation.collection.pairs
    photos, paintings = {pair.photo for pair in pairs} - {None}, {pair.painting for pair in pairs}
    counts = [(len(pairs), "pair"), (len(photos), "photo"), (len(paintings), "painting")]
    counts.append((len(evaluation.collection.methods), "method"))
    said = [f"{count:,} {name}{'' if count == 1 else 's'}" for count, name in counts if count]
    return ", ".join([*said, f"judged at {evaluation.settings['short_side']} px"])


def _list(title: str, lines: Sequence[str], kind: str) -> str:
    if not lines:
        return ""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines[:200])
    more = f"<li>and {len(lines) - 200:,} more, in figures.json</li>" if len(lines) > 200 else ""
    return f'<section class="{kind}"><h2>{title}</h2><ul>{items}{more}</ul></section>'


def _heads(columns: Sequence[Column]) -> str:
    heads = [
        '<th scope="col"><button>Method or control</button></th>',
        '<th scope="col"><button>Pictures</button></th>',
    ]
    for one in columns:
        good = f'<span class="good">{"low" if one.better == "lower" else "high"} is good</span>'
        heads.append(f'<th scope="col" title="{escape(one.means)}"><button>{escape(one.title)}</button>{good}</th>')
    return "".join(heads)


def _rows(evaluation: Evaluation, columns: Sequence[Column]) -> str:
    best = _best(evaluation, columns)
    lines, controls = [], 0
    for row in evaluation.rows:
        kind = ""
        if row.kind != "method":
            kind = ' class="control first"' if not controls else ' class="control"'
            controls += 1
        cells = [
            _cell(row.figures.get(one.key), row.kind == "method" and (row.label, one.key) in best) for one in columns
        ]
        count = f'<td data-v="{len(row.pairs)}">{len(row.pairs):,}</td>'
        lines.append(f'<tr{kind}><th scope="row">{escape(row.label)}</th>{count}{"".join(cells)}</tr>')
    return "".join(lines)


def _best(evaluation: Evaluation, columns: Sequence[Column]) -> set[tuple[str, str]]:
    """The best method of each column, where there are several."""
    best = set()
    for one in columns:
        known = [row for row in evaluation.rows if row.kind == "method" and one.key in row.figures]
        if len(known) > 1:
            choose = min if one.better == "lower" else max
            best.add((choose(known, key=lambda row: row.figures[one.key].value).label, one.key))
    return best


def _cell(figure: Figure | None, best: bool) -> str:
    if figure is None:
        return "<td>-</td>"
    span = ""
    if figure.low is not None and figure.high is not None:
        span = f'<span class="span">{number(figure.low)} to {number(figure.high)}</span>'
    return f'<td data-v="{figure.value!r}"{" class=best" if best else ""}>{number(figure.value)}{span}</td>'


def _shown(count: int, evaluation: Evaluation) -> str:
    total = len(evaluation.collection.pairs)
    return "" if count == total else f"{count:,} of {total:,} pairs; all figures are in pictures.csv"


def _gallery_head(methods: Sequence[Row], photos: bool) -> str:
    heads = ['<th scope="col"><button>Pair</button></th>', *(['<th scope="col">Photo</th>'] if photos else [])]
    heads.append('<th scope="col">Painting</th>')
    heads += [
        f'<th scope="col" data-method="{place}"><button>{escape(row.label)}</button></th>'
        for place, row in enumerate(methods)
    ]
    return "".join(heads)


def _gallery_row(evaluation: Evaluation, methods: Sequence[Row], number_of: int, shared: dict[Path, str]) -> str:
    pair = evaluation.collection.pairs[number_of]
    cells = [f'<th scope="row">{escape(pair.name)}</th>']
    for source in (pair.photo, pair.painting):
        if source is not None:
            if source not in shared:
                shared[source] = _thumbnail(source)
            place = list(shared).index(source)
            cells.append(f'<td><img data-shared="{place}" alt="{escape(source.stem)}" loading="lazy"></td>')
    for place, row in enumerate(methods):
        made = pair.results.get(row.label)
        picture = _thumbnail(made) if made else ""
        if not picture:
            cells.append("<td></td>")
            continue
        image = f'<img src="{picture}" alt="{escape(f"{pair.name} by {row.label}")}" loading="lazy">'
        caption = f'<figcaption data-pair="{number_of}" data-method="{place}"></figcaption>'
        cells.append(f"<td><figure>{image}{caption}</figure></td>")
    return f'<tr data-pair="{number_of}">{"".join(cells)}</tr>'


def _thumbnail(path: Path) -> str:
    """A data address; empty for a picture that cannot be read."""
    try:
        image = open_picture(path)
    except InstError:
        return ""
    image.thumbnail((_SIDE, _SIDE))
    encoded = io.BytesIO()
    image.save(encoded, format="WEBP", quality=82)
    return f"data:image/webp;base64,{base64.b64encode(encoded.getvalue()).decode()}"


def _values(
    evaluation: Evaluation, methods: Sequence[Row], pairs: Sequence[int], columns: Sequence[Column]
) -> dict[int, dict[int, list[float | None]]]:
    """By pair and method the figures of the columns, as the page's script looks them up."""
    keys = [one.key for one in evaluation.picture_columns]
    places = [keys.index(one.key) for one in columns]
    values: dict[int, dict[int, list[float | None]]] = {pair: {} for pair in pairs}
    for method, row in enumerate(methods):
        for line in np.flatnonzero(np.isin(row.pairs, pairs)):
            known = row.values[line, places].tolist()
            values[int(row.pairs[line])][method] = [round(one, 6) if math.isfinite(one) else None for one in known]
    return values


def _script(value: object) -> str:
    """JSON that cannot end the script that it stands in."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")
