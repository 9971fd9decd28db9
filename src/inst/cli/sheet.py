"""`inst sheet`: one photo at several strengths and guidances, on one labelled picture."""

from __future__ import annotations

from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inst.cli.defaults import defaults_of
from inst.cli.session import SeedOption, Session, check_output, output_path, pictures_of, read_style, with_session
from inst.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

_TRANSFER = defaults_of("inst.styling", "transfer")


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
    steps: Annotated[int, typer.Option("--steps", help="Sampling steps.")] = _TRANSFER["steps"],
    tone: Annotated[str, typer.Option("--tone", help="painting, photo or none.")] = _TRANSFER["tone"],
    seed: SeedOption = _TRANSFER["seed"],
    size: Annotated[int | None, typer.Option("--size", help="Short side in pixels.")] = None,
) -> None:
    """Compare strengths and guidances (and styles) for one photo, on one labelled sheet."""
    from inst.images import picture_format, read_photo, save_picture
    from inst.sampling import complete
    from inst.sheets import make_sheet
    from inst.styling import transfer

    check_output(out, [photo, *pictures_of(style)], picture_format)
    across, down = _numbers("strengths", strengths), _numbers("guidances", guidances)
    content = read_photo(photo, flattened=True)
    model = session.load(looking=False)
    styles = [read_style(model, one) for one in style]
    settings: dict[str, Any] = {"steps": steps, "tone": tone, "seed": seed, "size": size}
    # All are begun before one is made: whatever cannot be used is said at once.
    cells = [(one, guidance, strength) for one in styles for guidance in down for strength in across]
    runs = [transfer(model, content.picture, one, strength=s, guidance=g, **settings) for one, g, s in cells]
    pictures = []
    with session.progress("pictures", len(runs)) as move:
        for (_, guidance, strength), run in zip(cells, runs, strict=True):
            pictures.append((f"strength {strength:g}, guidance {guidance:g}", complete(run)[0]))
            move(len(pictures), len(runs), "")
    rows: list[list[tuple[str, Tensor] | None]] = []
    for one in styles:
        painting = one.painting()
        beside = [None if painting is None else (one.name, painting), ("the photo", content.picture)]
        for _, head in zip_longest(down, beside[: len(down)]):
            done = len(rows) * len(across)
            rows.append([head, *pictures[done : done + len(across)]])
    with output_path(out, f"{photo.stem}-sheet", ".png") as path:
        save_picture(make_sheet(rows), path)
    session.report([f"{path}"], sheet=str(path))


def _numbers(name: str, text: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        numbers = []
    if not numbers:
        raise UsageError(f'--{name} "{text}" cannot be used: give numbers with commas between them, such as 0.3,0.6.')
    return numbers
