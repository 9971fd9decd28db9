"""`inst demo`: the whole method on the pictures that come with it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from inst.cli.session import (
    BACKBONE,
    OUTPUTS,
    BackboneOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    QuietOption,
    SeedOption,
    Session,
)

_STRENGTHS = (0.4, 0.55, 0.7)


def demo(
    out: Annotated[Path, typer.Option("-o", "--out", help="A folder for what is made.")] = OUTPUTS / "demo",
    steps: Annotated[int, typer.Option("--steps", help="Learning steps.")] = 200,
    seed: SeedOption = 0,
    backbone: BackboneOption = BACKBONE,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Learn a style from a painting, transfer it to a photo, and write a sheet: a few minutes on a laptop."""
    from inst import demo as pictures
    from inst.files import free_path
    from inst.images import read_photo, save_picture
    from inst.learning import instant_style, learn
    from inst.sampling import complete
    from inst.sheets import make_sheet
    from inst.styling import transfer

    begin = time.perf_counter()
    session = Session(backbone, device, dtype, quiet, as_json)
    painting, photo = read_photo(pictures.PAINTINGS[0], flattened=True), read_photo(pictures.PHOTOS[0], flattened=True)
    model = session.load()
    style_file = free_path(out, Path(painting.name).stem, ".safetensors")

    session.note(f"1/3  learning the style of {painting.name}")
    with session.progress("learning", steps) as move:
        style = complete(
            learn(model, [painting], steps=steps, seed=seed),
            lambda step: move(step.step, step.total, f"loss {step.smoothed:.4f}"),
        )
    style.save(style_file)

    def paint(number: str, chosen: object, label: str, **settings: float) -> tuple[str, object]:
        session.note(f"{number}  {photo.name}: {label}")
        with session.progress("painting") as move:
            made = transfer(model, photo.picture, chosen, seed=seed, **settings)  # type: ignore[arg-type]
            return label, complete(made, lambda step: move(step.index + 1, step.total, ""))[0]

    instant = paint("2/3", instant_style(model, [painting]), "instant style, no learning")
    learned = paint("2/3", style, "learned style")
    strengths = [paint("3/3", style, f"learned, strength {s:g}", strength=s) for s in _STRENGTHS]
    sources = [("the painting", painting.picture), ("the photo", photo.picture)]
    rows = [[*sources, instant, learned], [None, *strengths]]
    sheet = free_path(out, "sheet", ".png")
    save_picture(make_sheet(rows), sheet)  # type: ignore[arg-type]
    seconds = time.perf_counter() - begin
    session.report(
        [f"{sheet}   the sheet: look at it", f"{style_file}   the style: use it with inst transfer --style"],
        sheet=str(sheet),
        style=str(style_file),
        seconds=round(seconds, 3),
    )
