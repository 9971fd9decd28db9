"""The command `inst sheet`, which shows one photo at several strengths and guidance scales on one labelled picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inst.cli.pictures import (
    TRANSFER,
    OutOption,
    PhotoArgument,
    StyleAttentionOption,
    StyleScaleOption,
    ToneOption,
    TransferSizeOption,
    TransferStepsOption,
)
from inst.cli.places import Output, check_output, output_path
from inst.cli.session import SeedOption, Session, with_session
from inst.errors import UsageError
from inst.files.listing import pictures_of

if TYPE_CHECKING:
    from torch import Tensor

    from inst.backbone.model import Backbone
    from inst.pictures.io import Photo
    from inst.styles.style import Style

_PAINTINGS = 4_000_000
"""Largest total size in bytes of the paintings in a sheet's record. One is 0.1 to 0.4 MB, one with its cells 1 MB."""


@with_session
def sheet(
    session: Session,
    photo: PhotoArgument,
    style: Annotated[
        list[Path],
        typer.Option(
            "--style",
            "-s",
            help="A style file, a painting, or a folder of paintings of one style. Repeat it to compare styles.",
        ),
    ],
    out: OutOption = None,
    strengths: Annotated[
        str, typer.Option("--strengths", help="Strengths of the columns, from 0 to 1, separated by commas.")
    ] = "0.3,0.5,0.7",
    guidances: Annotated[
        str, typer.Option("--guidances", help="Guidance scales of the rows, separated by commas.")
    ] = "2,4,6",
    steps: TransferStepsOption = TRANSFER["steps"],
    tone: ToneOption = TRANSFER["tone"],
    seed: SeedOption = TRANSFER["seed"],
    style_attention: StyleAttentionOption = TRANSFER["style_attention"],
    style_scale: StyleScaleOption = TRANSFER["style_scale"],
    size: TransferSizeOption = TRANSFER["size"],
) -> None:
    """Compare strengths, guidance scales and styles for one photo on one labelled sheet."""
    from inst.learning.instant import read_style
    from inst.pictures.io import picture_format, read_photo

    check_output(out, [photo, *pictures_of(style)], picture_format)
    settings = {
        "strengths": _numbers("strengths", strengths),
        "guidances": _numbers("guidances", guidances),
        "steps": steps,
        "tone": tone,
        "seed": seed,
        "style_attention": style_attention,
        "style_scale": style_scale,
        "size": size,
    }
    content = read_photo(photo, flattened=True)
    model = session.load(find_image_encoder=False)
    styles = [read_style(model, path) for path in style]
    draw_sheet(session, model, content, styles, settings, out, f"{photo.stem}-sheet")


def draw_sheet(
    session: Session,
    model: Backbone,
    photo: Photo,
    styles: Sequence[Style],
    settings: Mapping[str, Any],
    out: Output | None,
    stem: str,
) -> None:
    """Make a sheet, save it with its record, and report its path.

    Args:
        settings: "strengths" and "guidances" are sequences of numbers. The others are arguments of `inst.transfer`.
    """
    from inst.pictures.io import save_picture
    from inst.pictures.sheets import make_sheet
    from inst.runs import complete
    from inst.synthesis.from_photo import transfer
    from inst.synthesis.record import PictureRecord

    strengths, guidances = settings["strengths"], settings["guidances"]
    shared = {name: value for name, value in settings.items() if name not in ("strengths", "guidances")}
    # All transfers are created before the first one runs, so that a wrong argument is reported at once.
    cells = [(style, guidance, strength) for style in styles for guidance in guidances for strength in strengths]
    runs = [transfer(model, photo.picture, style, strength=s, guidance=g, **shared) for style, g, s in cells]
    pictures = []
    with session.progress("pictures", len(runs)) as update:
        for (_, guidance, strength), run in zip(cells, runs, strict=True):
            pictures.append((f"strength {strength:g}, guidance {guidance:g}", complete(run)[0]))
            update(len(pictures), len(runs), "")
    rows: list[list[tuple[str, Tensor] | None]] = []
    for style in styles:
        painting = (style.name, style.painting()) if style.paintings else None
        sources = [painting, ("the photo", photo.picture)]
        for _, head in zip_longest(guidances, sources[: len(guidances)]):
            done = len(rows) * len(strengths)
            rows.append([head, *pictures[done : done + len(strengths)]])
    paintings = sum(len(painting) for style in styles for painting in style.paintings) <= _PAINTINGS
    by_placeholder = {f"[C{number}]": style for number, style in enumerate(styles, start=1)}
    recorded = {**settings, "flatten": True, "paintings": paintings}
    record = PictureRecord.of("sheet", model, recorded, by_placeholder, photo=photo, paintings=paintings)
    with output_path(out, stem, ".png") as path:
        save_picture(make_sheet(rows), path, texts=record.texts())
    session.report([f"{path}"], sheet=str(path))


def _numbers(name: str, text: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        numbers = []
    if not numbers:
        raise UsageError(f'--{name} "{text}" cannot be used', "give numbers separated by commas, such as 0.3,0.6")
    return numbers
