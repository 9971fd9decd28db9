"""The command `inst demo`, which runs the whole method on the bundled pictures."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inst.cli.learn import LEARN
from inst.cli.places import OUTPUTS
from inst.cli.session import SeedOption, Session, with_session
from inst.errors import InstError

if TYPE_CHECKING:
    from torch import Tensor

    from inst.styles.style import Style

_STEPS = 75
"""Enough to see what learning changes, within three minutes on two cores."""
_STRONGER = 0.6
_CELL = 400
"""Longest side of a picture on the sheet, in pixels."""


@with_session
def demo(
    session: Session,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the results.")] = OUTPUTS / "demo",
    steps: Annotated[int, typer.Option("--steps", help="Largest number of learning steps.")] = _STEPS,
    seed: SeedOption = LEARN["seed"],
) -> None:
    """Repaint a photo in the style of a painting: at once, and after learning. Writes pictures, a sheet and the style.

    Takes less than three minutes on a laptop. The first picture is there after less than one.
    """
    from inst import demo as pictures
    from inst.files.claiming import reserve_path
    from inst.learning.instant import instant_style
    from inst.learning.loop import learn
    from inst.pictures.reading import read_photo
    from inst.pictures.sheets import make_sheet
    from inst.pictures.writing import save_picture
    from inst.runs import complete
    from inst.synthesis.painter import paint
    from inst.synthesis.record import PictureRecord

    if out.exists() and not out.is_dir():
        raise InstError(f"{out} is a file", "choose a folder")
    begin = time.perf_counter()
    painting, photo = read_photo(pictures.PAINTINGS[0], flattened=True), read_photo(pictures.PHOTOS[0], flattened=True)
    model = session.load()
    learning = learn(model, [painting], steps=steps, seed=seed)
    files: list[str] = []

    def repaint(style: Style, stem: str, label: str, **settings: Any) -> tuple[str, Tensor]:
        painted = session.sample(paint(model, {"[C]": style}, {"seed": seed, **settings}, photo=photo), stem)
        with reserve_path(out, stem, ".png") as path:
            painted.save(path)
        files.append(str(path))
        return label, painted.picture

    session.note(f"1/3  {photo.name} in the style of {painting.name}, without learning")
    styles = {"instant": instant_style(model, [painting])}
    results = [repaint(styles["instant"], "instant", "instant style, no learning")]
    session.note(f"     {files[0]}")
    session.note("2/3  learning the style")
    with reserve_path(out, Path(painting.name).stem, ".safetensors") as style_file:
        with session.progress("learning", steps) as update:
            style = styles["learned"] = complete(
                learning, lambda step: update(step.step, step.total, f"loss {step.smoothed:.4f}")
            )
        style.save(style_file)
    session.note("3/3  the learned style, at two strengths")
    results.append(repaint(style, "learned", "learned style"))
    results.append(repaint(style, "stronger", f"learned style, strength {_STRONGER:g}", strength=_STRONGER))
    sources = [("the painting", painting.picture), ("the photo", photo.picture)]
    record = PictureRecord.of("demo", model, {"steps": steps, "seed": seed, "stronger": _STRONGER}, styles, photo=photo)
    with reserve_path(out, "sheet", ".png") as sheet:
        save_picture(make_sheet([sources, results], _CELL), sheet, texts=record.texts())
    seconds = time.perf_counter() - begin
    session.report(
        [
            f"{sheet}   all pictures on one sheet",
            *files,
            f"{style_file}   the style: use it with inst transfer --style",
        ],
        sheet=str(sheet),
        pictures=files,
        style=str(style_file),
        seconds=round(seconds, 3),
    )
