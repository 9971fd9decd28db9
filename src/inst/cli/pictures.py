"""`inst transfer` and `inst generate`: make pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from inst.cli.control import (
    ControlNetOption,
    ControlOption,
    ControlPictureOption,
    ControlScaleOption,
    choose_control,
)
from inst.cli.defaults import defaults_of
from inst.cli.maker import Maker
from inst.cli.places import check_output, numbered
from inst.cli.session import SeedOption, Session, StyleOption, read_styles, style_places, with_session
from inst.errors import UsageError
from inst.files.listing import pictures_of

TRANSFER = defaults_of("inst.synthesis.from_photo", "transfer")
GENERATE = defaults_of("inst.synthesis.from_prompt", "generate")

OutOption = Annotated[
    Path | None,
    typer.Option("-o", "--out", help="The picture to write (.png, .jpg, .webp), or a folder; by default in outputs/."),
]
StrengthOption = Annotated[float, typer.Option("--strength", help="0 keeps the photo, 1 forgets it.")]
ToneOption = Annotated[
    str, typer.Option("--tone", help="Colours: painting (the painting's), photo (its own), or none (as they come).")
]
StepsOption = Annotated[int, typer.Option("--steps", help="Sampling steps.")]
GuidanceOption = Annotated[float, typer.Option("--guidance", help="How strongly the prompt leads; 1 is none.")]
NegativeOption = Annotated[str, typer.Option("--negative-prompt", help="What the result shall not be.")]
CountOption = Annotated[int, typer.Option("--count", min=1, help="Pictures to make, with seeds counting up.")]
SolverOption = Annotated[str, typer.Option("--solver", help="dpm++ or ddim.")]
WeightOption = Annotated[float, typer.Option("--style-weight", help="0 is no style, 1 as learned, more exaggerates.")]
TileOption = Annotated[
    int | None, typer.Option("--tile", help="Side of the tiles of large pictures, in pixels; 0 is none.")
]


@with_session
def transfer(
    session: Session,
    photo: Annotated[Path, typer.Argument(help="The photo to repaint.", show_default=False)],
    style: StyleOption,
    out: OutOption = None,
    strength: StrengthOption = TRANSFER["strength"],
    steps: StepsOption = TRANSFER["steps"],
    guidance: GuidanceOption = TRANSFER["guidance"],
    tone: ToneOption = TRANSFER["tone"],
    prompt: Annotated[str | None, typer.Option("--prompt", help="What the photo shows; [C] is the style.")] = None,
    negative_prompt: NegativeOption = TRANSFER["negative_prompt"],
    seed: SeedOption = TRANSFER["seed"],
    count: CountOption = 1,
    size: Annotated[
        int | None, typer.Option("--size", help="Short side in pixels; by default the backbone's native size.")
    ] = None,
    mask: Annotated[
        Path | None, typer.Option("--mask", help="A picture as large as the photo: white where the style goes.")
    ] = None,
    no_stochastic: Annotated[
        bool, typer.Option("--no-stochastic", help="Plain noise instead of stochastic inversion.")
    ] = False,
    inversion: Annotated[str, typer.Option("--inversion", help="stochastic, none (plain noise) or ddim.")] = TRANSFER[
        "inversion"
    ],
    solver: SolverOption = TRANSFER["solver"],
    style_weight: WeightOption = TRANSFER["style_weight"],
    tile: TileOption = TRANSFER["tile"],
    flatten: Annotated[bool, typer.Option("--flatten", help="Lay a transparent photo over white.")] = False,
    controlnet: ControlNetOption = None,
    control: ControlOption = None,
    control_picture: ControlPictureOption = None,
    control_scale: ControlScaleOption = None,
) -> None:
    """Repaint a photo in the style of a painting."""
    from inst.files.provenance import SourceFile
    from inst.pictures.io import read_mask, read_photo

    _check_places(out, count, style, photo, mask, control_picture)
    chosen = choose_control(controlnet, control, control_picture, control_scale, photo=True)
    content = read_photo(photo, flattened=flatten)
    height, width = content.picture.shape[1:]
    region = None if mask is None else (read_mask(mask, (height, width)), SourceFile.of(mask))
    settings = {
        "strength": strength,
        "steps": steps,
        "guidance": guidance,
        "tone": tone,
        "prompt": prompt,
        "negative_prompt": negative_prompt,
        "inversion": "none" if no_stochastic else inversion,
        "solver": solver,
        "style_weight": style_weight,
        "size": size,
        "tile": tile,
    }
    model = session.load(looking=False)
    styles = read_styles(model, style)
    maker = Maker(session, model, "transfer", styles, content, region, chosen)
    maker.make(settings, seed, count, out, f"{photo.stem}-{next(iter(styles.values())).name}")


@with_session
def generate(
    session: Session,
    prompt: Annotated[str, typer.Argument(help='Such as "a castle in the style of [C]".', show_default=False)],
    style: StyleOption,
    out: OutOption = None,
    steps: StepsOption = GENERATE["steps"],
    guidance: GuidanceOption = GENERATE["guidance"],
    tone: Annotated[str, typer.Option("--tone", help="Colours: of the painting, or none.")] = GENERATE["tone"],
    negative_prompt: NegativeOption = GENERATE["negative_prompt"],
    seed: SeedOption = GENERATE["seed"],
    count: CountOption = 1,
    size: Annotated[
        str | None, typer.Option("--size", help="Side in pixels, or WIDTHxHEIGHT; by default the native size.")
    ] = None,
    solver: SolverOption = GENERATE["solver"],
    style_weight: WeightOption = GENERATE["style_weight"],
    tile: TileOption = GENERATE["tile"],
    controlnet: ControlNetOption = None,
    control: ControlOption = None,
    control_picture: ControlPictureOption = None,
    control_scale: ControlScaleOption = None,
) -> None:
    """Make a new picture from a prompt, in the style of a painting."""
    _check_places(out, count, style, control_picture)
    chosen = choose_control(controlnet, control, control_picture, control_scale, photo=False)
    settings = {
        "prompt": prompt,
        "steps": steps,
        "guidance": guidance,
        "tone": tone,
        "negative_prompt": negative_prompt,
        "solver": solver,
        "style_weight": style_weight,
        "size": None if size is None else _read_size(size),
        "tile": tile,
    }
    model = session.load(looking=False)
    styles = read_styles(model, style)
    maker = Maker(session, model, "generate", styles, chosen=chosen)
    maker.make(settings, seed, count, out, next(iter(styles.values())).name)


def _check_places(out: Path | None, count: int, style: list[str], *sources: Path | None) -> None:
    """Check where `count` pictures go (`check_output`), which are made of styles and of other files."""
    from inst.pictures.io import picture_format

    paintings = pictures_of(list(style_places(style).values()))
    written = None if out is None or count == 1 else [numbered(out, k + 1) for k in range(count)]
    check_output(out, [*sources, *paintings], picture_format, written)


def _read_size(text: str) -> int | list[int]:
    parts = text.lower().split("x")
    if not 1 <= len(parts) <= 2 or not all(part.isascii() and part.isdigit() for part in parts):
        raise UsageError(f'The size "{text}" cannot be used', "give pixels, such as 512 or 768x512")
    return int(text) if len(parts) == 1 else [int(part) for part in parts]
