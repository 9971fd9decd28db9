"""`inst sheet`: one photo at several strengths and guidances, on one labelled picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inst.cli.pictures import TRANSFER, StepsOption, ToneOption
from inst.cli.places import check_output, output_path
from inst.cli.session import SeedOption, Session, with_session
from inst.errors import UsageError
from inst.files.listing import pictures_of

if TYPE_CHECKING:
    from torch import Tensor

    from inst.backbone.model import Backbone
    from inst.pictures.io import Photo
    from inst.styles.style import Style

_THUMBNAILS = 1_000_000
"""Bytes of the paintings' thumbnails that a sheet's record holds at most: each is about 0.1 MB, with its cells 1 MB."""


@with_session
def sheet(
    session: Session,
    photo: Annotated[Path, typer.Argument(help="The photo to repaint.", show_default=False)],
    style: Annotated[
        list[Path],
        typer.Option("--style", "-s", help="A style file or a painting; several are compared, a block of rows each."),
    ],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="The picture to write, or a folder; by default in outputs/.")
    ] = None,
    strengths: Annotated[str, typer.Option("--strengths", help="The columns.")] = "0.3,0.5,0.7",
    guidances: Annotated[str, typer.Option("--guidances", help="The rows.")] = "2,4,6",
    steps: StepsOption = TRANSFER["steps"],
    tone: ToneOption = TRANSFER["tone"],
    seed: SeedOption = TRANSFER["seed"],
    size: Annotated[int | None, typer.Option("--size", help="Short side in pixels.")] = None,
) -> None:
    """Compare strengths and guidances (and styles) for one photo, on one labelled sheet."""
    from inst.learning.instant import read_style
    from inst.pictures.io import picture_format, read_photo

    check_output(out, [photo, *pictures_of(style)], picture_format)
    settings = {
        "strengths": _numbers("strengths", strengths),
        "guidances": _numbers("guidances", guidances),
        "steps": steps,
        "tone": tone,
        "seed": seed,
        "size": size,
    }
    content = read_photo(photo, flattened=True)
    model = session.load(looking=False)
    styles = [read_style(model, one) for one in style]
    draw_sheet(session, model, content, styles, settings, out, f"{photo.stem}-sheet")


def draw_sheet(
    session: Session,
    model: Backbone,
    photo: Photo,
    styles: Sequence[Style],
    settings: Mapping[str, Any],
    out: Path | None,
    stem: str,
) -> None:
    """Make a sheet, write it with its record, and report where it is.

    Args:
        settings: "strengths" and "guidances", sequences of numbers; the others are arguments of `inst.transfer`.
    """
    from inst.pictures.io import save_picture
    from inst.pictures.sheets import make_sheet
    from inst.runs import complete
    from inst.synthesis.from_photo import transfer
    from inst.synthesis.record import PictureRecord

    across, down = settings["strengths"], settings["guidances"]
    same = {name: value for name, value in settings.items() if name not in ("strengths", "guidances")}
    # All are begun before one is made: whatever cannot be used is said at once.
    cells = [(one, guidance, strength) for one in styles for guidance in down for strength in across]
    runs = [transfer(model, photo.picture, one, strength=s, guidance=g, **same) for one, g, s in cells]
    pictures = []
    with session.progress("pictures", len(runs)) as move:
        for (_, guidance, strength), run in zip(cells, runs, strict=True):
            pictures.append((f"strength {strength:g}, guidance {guidance:g}", complete(run)[0]))
            move(len(pictures), len(runs), "")
    rows: list[list[tuple[str, Tensor] | None]] = []
    for one in styles:
        painting = one.painting()
        beside = [None if painting is None else (one.name, painting), ("the photo", photo.picture)]
        for _, head in zip_longest(down, beside[: len(down)]):
            done = len(rows) * len(across)
            rows.append([head, *pictures[done : done + len(across)]])
    whole = sum(len(one.thumbnail or b"") for one in styles) <= _THUMBNAILS
    named = {f"[C{number}]": one for number, one in enumerate(styles, start=1)}
    noted = {**settings, "flatten": True, "thumbnails": whole}
    record = PictureRecord.of("sheet", model, noted, named, photo=photo, thumbnails=whole)
    with output_path(out, stem, ".png") as path:
        save_picture(make_sheet(rows), path, texts=record.texts())
    session.report([f"{path}"], sheet=str(path))


def _numbers(name: str, text: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        numbers = []
    if not numbers:
        raise UsageError(f'--{name} "{text}" cannot be used', "give numbers with commas between them, such as 0.3,0.6")
    return numbers
