"""The command `inst demo`, which runs the whole method on the bundled pictures."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inst.cli.learn import LEARN
from inst.cli.places import OUTPUTS
from inst.cli.session import SeedOption, Session, with_session

if TYPE_CHECKING:
    from torch import Tensor

    from inst.styles.style import Style

_STRENGTHS = (0.3, 0.5, 0.65)


@with_session
def demo(
    session: Session,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the results.")] = OUTPUTS / "demo",
    steps: Annotated[int, typer.Option("--steps", help="Largest number of learning steps.")] = LEARN["steps"],
    seed: SeedOption = LEARN["seed"],
) -> None:
    """Learn a style from a painting, transfer it to a photo, and write a sheet. Takes a few minutes on a laptop."""
    from inst import demo as pictures
    from inst.files.writing import reserve_path
    from inst.learning.instant import instant_style
    from inst.learning.loop import learn
    from inst.pictures.io import read_photo, save_picture
    from inst.pictures.sheets import make_sheet
    from inst.runs import complete
    from inst.synthesis.from_photo import transfer
    from inst.synthesis.record import PictureRecord

    begin = time.perf_counter()
    painting, photo = read_photo(pictures.PAINTINGS[0], flattened=True), read_photo(pictures.PHOTOS[0], flattened=True)
    model = session.load()
    with reserve_path(out, Path(painting.name).stem, ".safetensors") as style_file:
        session.note(f"1/3  learning the style of {painting.name}")
        with session.progress("learning", steps) as update:
            style = complete(
                learn(model, [painting], steps=steps, seed=seed),
                lambda step: update(step.step, step.total, f"loss {step.smoothed:.4f}"),
            )
        style.save(style_file)

    def paint(number: str, style: Style, label: str, **settings: Any) -> tuple[str, Tensor]:
        session.note(f"{number}  {photo.name}: {label}")
        return label, session.sample(transfer(model, photo.picture, style, seed=seed, **settings), "painting")[0]

    styles = {"learned": style, "instant": instant_style(model, [painting])}
    instant = paint("2/3", styles["instant"], "instant style, no learning")
    learned = paint("2/3", style, "learned style")
    strengths = [paint("3/3", style, f"learned, strength {s:g}", strength=s) for s in _STRENGTHS]
    sources = [("the painting", painting.picture), ("the photo", photo.picture)]
    rows: list[list[tuple[str, Tensor] | None]] = [[*sources, instant, learned], [None, *strengths]]
    settings = {"steps": steps, "seed": seed, "strengths": _STRENGTHS}
    record = PictureRecord.of("demo", model, settings, styles, photo=photo)
    with reserve_path(out, "sheet", ".png") as sheet:
        save_picture(make_sheet(rows), sheet, texts=record.texts())
    seconds = time.perf_counter() - begin
    session.report(
        [f"{sheet}   the sheet of results", f"{style_file}   the style: use it with inst transfer --style"],
        sheet=str(sheet),
        style=str(style_file),
        seconds=round(seconds, 3),
    )
