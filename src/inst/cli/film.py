"""The command `inst batch film`."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from inst.cli.pictures import TransferOptions
from inst.cli.running import duration, ends_as_ctrl_c
from inst.cli.session import SeedOption, Session, StyleOption, read_styles, with_session

if TYPE_CHECKING:
    from inst.batch.film import FilmStep


@with_session
def film(
    session: Session,
    source: Annotated[Path, typer.Argument(help="The film, or a folder of its frames.", show_default=False)],
    style: StyleOption,
    out: Annotated[
        Path, typer.Option("-o", "--out", help="The new film (.mp4, .mov, .mkv), or a folder for its frames.")
    ],
    options: TransferOptions,
    seed: SeedOption = 0,
    rate: Annotated[
        float | None,
        typer.Option("--rate", help="Frames a second of a film that is made from a folder; 25 by default."),
    ] = None,
) -> None:
    """Repaint a film, so that its strokes stay where they are."""
    from inst.batch.film import FilmOrder, restyle_film

    settings = {**options.settings(), "seed": seed}
    FilmOrder(source, out, {}, settings, rate)  # refuses wrong paths before a model is loaded
    model = session.load(find_image_encoder=False)
    order = FilmOrder(source, out, read_styles(model, style), settings, rate)
    if out.is_file():
        session.note(f"{out} is there. It is replaced when the new film is finished.")
    steps = restyle_film(model, order)
    latest: FilmStep | None = None
    begin = time.monotonic()
    try:
        with ends_as_ctrl_c(signal.SIGTERM), session.progress("repainting") as update:
            for latest in steps:
                update(latest.number, latest.total, f"{latest.rate:.2f} frames/s")
    except KeyboardInterrupt:
        if latest is not None:
            session.note(f"{latest.number:,} frames are finished. The same command goes on.")
        raise
    finally:
        steps.close()
    frames, kept = (0, 0) if latest is None else (latest.number, latest.kept)
    seconds = time.monotonic() - begin
    line = f"{frames:,} frames, {frames - kept:,} of them made in {duration(seconds)}."
    session.report([line, str(out)], film=str(out), frames=frames, made=frames - kept, seconds=round(seconds, 3))
