"""`inst sheet`: one photo at several strengths and guidances, on one labelled picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from inst.cli.defaults import defaults_of
from inst.cli.session import (
    BACKBONE,
    BackboneOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    QuietOption,
    SeedOption,
    Session,
    check_output,
    output_path,
    read_style,
)
from inst.errors import UsageError

_TRANSFER = defaults_of("inst.styling", "transfer")


def sheet(
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
    steps: Annotated[int, typer.Option("--steps", help="Calls of the denoiser.")] = _TRANSFER["steps"],
    tone: Annotated[str, typer.Option("--tone", help="painting, photo or none.")] = _TRANSFER["tone"],
    seed: SeedOption = _TRANSFER["seed"],
    size: Annotated[int | None, typer.Option("--size", help="Short side in pixels.")] = None,
    backbone: BackboneOption = BACKBONE,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Compare strengths and guidances (and styles) for one photo, on one labelled sheet."""
    from inst.images import picture_format, read_photo, save_picture
    from inst.sampling import complete
    from inst.sheets import make_sheet
    from inst.styling import transfer

    check_output(out, [photo, *style], picture_format)
    across, down = _numbers("strengths", strengths), _numbers("guidances", guidances)
    content = read_photo(photo, flattened=True)
    session = Session(backbone, device, dtype, quiet, as_json)
    model = session.load()
    styles = [read_style(model, one) for one in style]
    rows: list[list[tuple[str, object] | None]] = []
    with session.progress("pictures", len(styles) * len(across) * len(down)) as move:
        made = 0
        for one in styles:
            painting = one.painting()
            heads: list[tuple[str, object] | None] = [
                None if painting is None else (one.name, painting),
                ("the photo", content.picture),
            ]
            for index, guidance in enumerate(down):
                row: list[tuple[str, object] | None] = [heads[index] if index < len(heads) else None]
                for strength in across:
                    run = transfer(
                        model,
                        content.picture,
                        one,
                        strength=strength,
                        guidance=guidance,
                        steps=steps,
                        tone=tone,
                        seed=seed,
                        size=size,
                    )
                    row.append((f"strength {strength:g}, guidance {guidance:g}", complete(run)[0]))
                    made += 1
                    move(made, len(styles) * len(across) * len(down), "")
                rows.append(row)
    with output_path(out, f"{photo.stem}-sheet", ".png") as path:
        save_picture(make_sheet(rows), path)  # type: ignore[arg-type]
    session.report([f"{path}"], sheet=str(path))


def _numbers(name: str, text: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        numbers = []
    if not numbers:
        raise UsageError(f'--{name} "{text}" cannot be used: give numbers with commas between them, such as 0.3,0.6.')
    return numbers
