"""The command `inst sheet`, which shows one photo at several strengths and guidance scales on one labelled picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inst.arguments import LONGEST_VALUE
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
from inst.texts import cut

if TYPE_CHECKING:
    from inst.backbone.model import Backbone
    from inst.pictures.reading import Photo
    from inst.styles.style import Style


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
    from inst.pictures.reading import read_photo, reading_size
    from inst.pictures.writing import picture_format

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
    content = read_photo(photo, flattened=True, reduce_to=reading_size(size))
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
    from inst.runs import complete
    from inst.synthesis.sheet import paint_sheet

    with session.progress("pictures") as update:
        run = paint_sheet(model, photo, styles, settings)
        painted = complete(run, lambda step: update(step.pictures, step.total, ""))
    with output_path(out, stem, ".png") as path:
        painted.save(path)
    session.report([f"{path}"], sheet=str(path))


def _numbers(name: str, text: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        numbers = []
    if not numbers:
        raise UsageError(
            f'--{name} "{cut(text, LONGEST_VALUE)}" cannot be used', "give numbers separated by commas, such as 0.3,0.6"
        )
    return numbers
