"""Write an evaluation as one HTML file: a sortable table, and the pictures with their scores. It loads nothing else."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from html import escape as escape_markup
from importlib.resources import files
from pathlib import Path

import numpy as np

from inst.arguments import checked
from inst.errors import InstError, UsageError
from inst.evaluation.metrics.table import Column
from inst.evaluation.report import JSON, LISTED, format_number, used_columns
from inst.evaluation.results import Evaluation, Row, Score
from inst.files.listing import readable_name
from inst.files.writing import write_bytes_atomically
from inst.pictures.reading import open_picture
from inst.texts import one_line

PAGE = "index.html"
_SIDE = 288
"""Long side of a picture in the page, in pixels: sharp at the displayed size on most screens."""
_MOST_SHOWN = 10_000
"""A page of this many pairs has hundreds of megabytes, which browsers hardly open."""


def check_shown(shown: int) -> None:
    """Raise UsageError unless `write_page` can show this number of pairs."""
    if not 1 <= checked("number of shown pairs", shown, "int") <= _MOST_SHOWN:
        raise UsageError(f"The number of shown pairs {shown} cannot be used", f"give 1 to {_MOST_SHOWN}")


def write_page(evaluation: Evaluation, folder: str | Path, shown: int = 100, title: str = "Evaluation") -> Path:
    """Write index.html into an existing folder, with at most `shown` pairs of pictures, spread evenly over all pairs.

    The place of a picture that was not evaluated stays empty. The memory holds one row of pictures at a time, and the
    shown photos and paintings. Returns the file.

    Raises:
        UsageError: `shown` is not in 1 to 10,000.
        InstError: the folder cannot be written to.
    """
    check_shown(shown)
    pairs = _choose(evaluation, shown)
    methods = [row for row in evaluation.rows if row.kind == "method"]
    columns, picture_columns = used_columns(evaluation), _used_picture_columns(evaluation)
    shared: dict[Path, tuple[int, str]] = {}
    settings = ", ".join(f"{key} {value}" for key, value in evaluation.settings.items() if value is not None)
    fields: dict[str, Iterable[str]] = {
        "title": [escape(title)],
        "subtitle": [escape(_subtitle(evaluation))],
        "left_out": [_list(f"Left out ({len(evaluation.problems):,})", evaluation.problems, "left-out")],
        "head": [_heads(columns)],
        "rows": [_rows(evaluation, columns)],
        "notes": [_list("Notes", evaluation.notes, "notes")],
        "meanings": (f"<dt>{escape(column.title)}</dt><dd>{escape(column.means)}</dd>" for column in columns),
        "choices": (
            f'<option value="{index}">{escape(column.title)}</option>' for index, column in enumerate(picture_columns)
        ),
        "shown": [escape(_shown(len(pairs), evaluation))],
        "gallery_head": [_gallery_head(methods, bool(evaluation.collection.pairs[0].photo))],
        "gallery": (_gallery_row(evaluation, methods, pair, shared) for pair in pairs),
        "settings": [escape(settings)],
        "shared": (_script([picture for _, picture in shared.values()]) for _ in range(1)),  # after the gallery
        "values": [_script(_values(evaluation, methods, pairs, picture_columns))],
    }
    return write_bytes_atomically(Path(folder) / PAGE, _filled(fields))


def _filled(fields: dict[str, Iterable[str]]) -> Iterator[bytes]:
    """Yield the page. In one pass, so that inserted text is not searched for the names of fields."""
    page = files("inst.evaluation").joinpath("page.html").read_text(encoding="utf-8")
    head, *parts = page.split("{{")
    yield head.encode()
    for part in parts:
        name, _, rest = part.partition("}}")
        yield from (text.encode() for text in fields[name])
        yield rest.encode()


def escape(text: str) -> str:
    """Return HTML that shows a text, also in an attribute: names of files and methods come from other people."""
    return escape_markup(one_line(readable_name(text)))


def _choose(evaluation: Evaluation, shown: int) -> list[int]:
    evaluated = np.unique(np.concatenate([row.pairs for row in evaluation.rows if row.kind == "method"]))
    if len(evaluated) > shown:
        evaluated = evaluated[np.linspace(0, len(evaluated) - 1, shown).astype(int)]
    chosen: list[int] = evaluated.tolist()
    return chosen


def _used_picture_columns(evaluation: Evaluation) -> list[Column]:
    """Return the columns in which single pictures have scores, without the empty ones."""
    used = {column.key for column in used_columns(evaluation)}
    return [column for column in evaluation.picture_columns if column.key in used]


def _subtitle(evaluation: Evaluation) -> str:
    pairs = evaluation.collection.pairs
    photos, paintings = {pair.photo for pair in pairs} - {None}, {pair.painting for pair in pairs}
    counts = [(len(pairs), "pair"), (len(photos), "photo"), (len(paintings), "painting")]
    counts.append((len(evaluation.collection.methods), "method"))
    parts = [f"{count:,} {name}{'' if count == 1 else 's'}" for count, name in counts if count]
    return ", ".join([*parts, f"evaluated at {evaluation.settings['short_side']} px"])


def _list(title: str, lines: Sequence[str], kind: str) -> str:
    if not lines:
        return ""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines[:LISTED])
    more = f"<li>and {len(lines) - LISTED:,} more, in {JSON}</li>" if len(lines) > LISTED else ""
    return f'<section class="{kind}"><h2>{title}</h2><ul>{items}{more}</ul></section>'


def _heads(columns: Sequence[Column]) -> str:
    heads = [
        '<th scope="col"><button>Method or control</button></th>',
        '<th scope="col"><button>Pictures</button></th>',
    ]
    for column in columns:
        good = f'<span class="good">{column.better} is better</span>'
        button = f"<button>{escape(column.title)}</button>"
        heads.append(f'<th scope="col" title="{escape(column.means)}">{button}{good}</th>')
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
            _cell(row.scores.get(column.key), row.kind == "method" and (row.label, column.key) in best)
            for column in columns
        ]
        count = f'<td data-v="{len(row.pairs)}">{len(row.pairs):,}</td>'
        lines.append(f'<tr{kind}><th scope="row">{escape(row.label)}</th>{count}{"".join(cells)}</tr>')
    return "".join(lines)


def _best(evaluation: Evaluation, columns: Sequence[Column]) -> set[tuple[str, str]]:
    """Return (label of the best method, column key) of each column in which several methods have scores."""
    best = set()
    for column in columns:
        rows = [row for row in evaluation.rows if row.kind == "method" and column.key in row.scores]
        if len(rows) > 1:
            choose = min if column.better == "lower" else max
            best.add((choose(rows, key=lambda row: row.scores[column.key].value).label, column.key))
    return best


def _cell(score: Score | None, best: bool) -> str:
    if score is None:
        return "<td>-</td>"
    span = ""
    if score.low is not None and score.high is not None:
        span = f'<span class="span">{format_number(score.low)} to {format_number(score.high)}</span>'
    return f'<td data-v="{score.value!r}"{" class=best" if best else ""}>{format_number(score.value)}{span}</td>'


def _shown(count: int, evaluation: Evaluation) -> str:
    total = len(evaluation.collection.pairs)
    return "" if count == total else f"{count:,} of {total:,} pairs; all scores are in pictures.csv"


def _gallery_head(methods: Sequence[Row], photos: bool) -> str:
    heads = ['<th scope="col"><button>Pair</button></th>', *(['<th scope="col">Photo</th>'] if photos else [])]
    heads.append('<th scope="col">Painting</th>')
    heads += [
        f'<th scope="col" data-method="{place}"><button>{escape(row.label)}</button></th>'
        for place, row in enumerate(methods)
    ]
    return "".join(heads)


def _gallery_row(
    evaluation: Evaluation, methods: Sequence[Row], pair_index: int, shared: dict[Path, tuple[int, str]]
) -> str:
    pair = evaluation.collection.pairs[pair_index]
    cells = [f'<th scope="row">{escape(pair.name)}</th>']
    for source in (pair.photo, pair.painting):
        if source is not None:
            if source not in shared:
                shared[source] = len(shared), _thumbnail(source)
            place, _ = shared[source]
            cells.append(f'<td><img data-shared="{place}" alt="{escape(source.stem)}" loading="lazy"></td>')
    for place, row in enumerate(methods):
        result = pair.results.get(row.label)
        picture = _thumbnail(result) if result else ""
        if not picture:
            cells.append("<td></td>")
            continue
        image = f'<img src="{picture}" alt="{escape(f"{pair.name} by {row.label}")}" loading="lazy">'
        caption = f'<figcaption data-pair="{pair_index}" data-method="{place}"></figcaption>'
        cells.append(f"<td><figure>{image}{caption}</figure></td>")
    return f'<tr data-pair="{pair_index}">{"".join(cells)}</tr>'


def _thumbnail(path: Path) -> str:
    """Return the picture as a data URL; an empty text if it cannot be read."""
    try:
        image = open_picture(path, reduce_to=_SIDE)
    except InstError:
        return ""
    image.thumbnail((_SIDE, _SIDE))
    encoded = io.BytesIO()
    image.save(encoded, format="WEBP", quality=82)
    return f"data:image/webp;base64,{base64.b64encode(encoded.getvalue()).decode()}"


def _values(
    evaluation: Evaluation, methods: Sequence[Row], pairs: Sequence[int], columns: Sequence[Column]
) -> dict[int, dict[int, list[float | None]]]:
    """Return the scores in the columns by pair and method, for the page's script."""
    keys = [column.key for column in evaluation.picture_columns]
    places = [keys.index(column.key) for column in columns]
    values: dict[int, dict[int, list[float | None]]] = {pair: {} for pair in pairs}
    for method, row in enumerate(methods):
        for line in np.flatnonzero(np.isin(row.pairs, pairs)):
            scores = row.values[line, places].tolist()
            values[int(row.pairs[line])][method] = [round(one, 6) if math.isfinite(one) else None for one in scores]
    return values


def _script(value: object) -> str:
    """Return JSON that cannot end the script element around it."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")
