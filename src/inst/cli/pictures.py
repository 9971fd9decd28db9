"""The commands `inst transfer` and `inst generate`, which make pictures."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import typer

from inst.arguments import LONGEST_VALUE
from inst.cli.control import (
    ControlNetOption,
    ControlOption,
    ControlPictureOption,
    ControlScaleOption,
    choose_control,
)
from inst.cli.maker import PictureMaker
from inst.cli.places import Output, check_output, numbered_path, output_option, read_path
from inst.cli.session import SeedOption, Session, StyleOption, read_styles, style_paths, with_session
from inst.defaults import defaults_of
from inst.errors import UsageError
from inst.files.listing import pictures_of
from inst.texts import cut

TRANSFER = defaults_of("inst.synthesis.from_photo", "transfer")
GENERATE = defaults_of("inst.synthesis.from_prompt", "generate")
_RESEARCH_PANEL = "For researchers"

OutOption = Annotated[Output | None, output_option("Picture file to write (.png, .jpg, .webp)", optional=True)]
PhotoArgument = Annotated[
    Path,
    typer.Argument(
        parser=lambda text: read_path("/dev/stdin" if text == "-" else text),
        help="The photo to repaint; - reads it from the standard input.",
        show_default=False,
    ),
]
StrengthOption = Annotated[
    float,
    typer.Option("--strength", help="How much the photo may change, from 0 to 1. 0 keeps it, 1 may change everything."),
]
ToneOption = Annotated[
    str,
    typer.Option(
        "--tone",
        help="Colours of the result: painting (like the painting), photo (like the photo), none (no change), or adain "
        "(as in the paper's code).",
    ),
]
StepsOption = Annotated[int, typer.Option("--steps", help="Number of sampling steps, from 1 to 1000.")]
TransferStepsOption = Annotated[
    int | None,
    typer.Option(
        "--steps", help="Number of sampling steps, from 1 to 1000. By default 6 to 9, more for more strength."
    ),
]
GuidanceOption = Annotated[
    float,
    typer.Option(
        "--guidance", help="Guidance scale: how closely the result follows the prompt. 1 is no guidance, twice as fast."
    ),
]
NegativeOption = Annotated[
    str, typer.Option("--negative-prompt", help="Text that describes what to steer away from. By default empty.")
]
CountOption = Annotated[
    int,
    typer.Option(
        "--count",
        min=1,
        max=10_000,
        help="Number of pictures. Each has the next higher seed. With -o, they are numbered (NAME-1.png), and no file "
        "of such a name is overwritten.",
    ),
]
SolverOption = Annotated[str, typer.Option("--solver", help="Sampling method: dpm++ or ddim.")]
SpacingOption = Annotated[
    str,
    typer.Option(
        "--spacing",
        help="How the steps are spread: power (small ones at the end) or trailing (equal ones).",
        rich_help_panel=_RESEARCH_PANEL,
    ),
]
CacheOption = Annotated[
    int,
    typer.Option(
        "--cache-interval",
        help="Guidance, and what the result looks at in the painting, are computed anew in every step of this number "
        "only. 1 is every step.",
        rich_help_panel=_RESEARCH_PANEL,
    ),
]
WeightOption = Annotated[
    float,
    typer.Option("--style-weight", help="Weight of the style: 0 is no style, 1 is as learned, more exaggerates it."),
]
TileOption = Annotated[
    int | None,
    typer.Option(
        "--tile",
        help="Side of the tiles in pixels; 0 is no tiles. By default tiles of the backbone's default size are used if "
        "a side of the picture is more than twice that size.",
    ),
]
StyleAttentionOption = Annotated[
    float,
    typer.Option(
        "--style-attention",
        help="How much the result looks at the painting itself for its strokes and colours, from 0 (not at all) to 1 "
        "(only at it).",
    ),
]
StyleScaleOption = Annotated[
    float,
    typer.Option(
        "--style-scale",
        help="Size of the painting's strokes in the result, from 0.1 to 10. 1 takes the painting as large as the "
        "result, less makes finer strokes.",
    ),
]
TemperatureOption = Annotated[
    float,
    typer.Option(
        "--attention-temperature",
        help="Factor of the attention's logits where the result looks at the painting; more than 1 is sharper.",
        rich_help_panel=_RESEARCH_PANEL,
    ),
]
BlocksOption = Annotated[
    str,
    typer.Option(
        "--attention-blocks",
        help="Self-attention layers of the UNet that look at the painting: up, fine (the two finest upward levels) or "
        "all.",
        rich_help_panel=_RESEARCH_PANEL,
    ),
]
TransferSizeOption = Annotated[
    int | None,
    typer.Option(
        "--size",
        help="Short side of the result in pixels. By default that of the backbone (mini: 512), but at most twice the "
        "photo's own.",
    ),
]


@dataclass(kw_only=True)
class TransferOptions:
    """The settings of a transfer as options; each is the argument of `inst.transfer` with the same name."""

    strength: StrengthOption = TRANSFER["strength"]
    steps: TransferStepsOption = TRANSFER["steps"]
    guidance: GuidanceOption = TRANSFER["guidance"]
    tone: ToneOption = TRANSFER["tone"]
    prompt: Annotated[
        str | None,
        typer.Option("--prompt", help="Text that describes the result; [C] is the style. By default only [C]."),
    ] = None
    negative_prompt: NegativeOption = TRANSFER["negative_prompt"]
    no_stochastic: Annotated[
        bool, typer.Option("--no-stochastic", help="Start from plain noise, the same as --inversion none.")
    ] = False
    inversion: Annotated[
        str,
        typer.Option(
            "--inversion", help="How the photo's content goes into the noise: stochastic, ddim or none (plain noise)."
        ),
    ] = TRANSFER["inversion"]
    solver: SolverOption = TRANSFER["solver"]
    style_weight: WeightOption = TRANSFER["style_weight"]
    style_attention: StyleAttentionOption = TRANSFER["style_attention"]
    style_scale: StyleScaleOption = TRANSFER["style_scale"]
    query_preservation: Annotated[
        float,
        typer.Option(
            "--query-preservation",
            help="How much of the photo's own queries the attention keeps, from 0 (none) to 1 (all). More keeps more "
            "of the photo, and takes longer.",
            rich_help_panel=_RESEARCH_PANEL,
        ),
    ] = TRANSFER["query_preservation"]
    attention_temperature: TemperatureOption = TRANSFER["attention_temperature"]
    attention_blocks: BlocksOption = TRANSFER["attention_blocks"]
    spacing: SpacingOption = TRANSFER["spacing"]
    cache_interval: CacheOption = TRANSFER["cache_interval"]
    size: TransferSizeOption = TRANSFER["size"]
    tile: TileOption = TRANSFER["tile"]

    def settings(self) -> dict[str, Any]:
        """Return the arguments of `inst.transfer`. Raises UsageError if two options exclude each other."""
        settings = {option.name: getattr(self, option.name) for option in fields(self)}
        if settings.pop("no_stochastic"):
            if self.inversion not in (TRANSFER["inversion"], "none"):
                raise UsageError(
                    f"--no-stochastic and --inversion {cut(self.inversion, LONGEST_VALUE)} exclude each other",
                    "leave out one of them",
                )
            settings["inversion"] = "none"
        return settings


FlattenOption = Annotated[
    bool,
    typer.Option(
        "--flatten", help="Put a transparent photo on a white background. By default the result stays transparent."
    ),
]


@with_session
def transfer(
    session: Session,
    photo: PhotoArgument,
    style: StyleOption,
    options: TransferOptions,
    out: OutOption = None,
    seed: SeedOption = TRANSFER["seed"],
    count: CountOption = 1,
    mask: Annotated[
        Path | None,
        typer.Option("--mask", help="Mask of the same size as the photo. White gets the style, black stays unchanged."),
    ] = None,
    flatten: FlattenOption = False,
    controlnet: ControlNetOption = None,
    control: ControlOption = None,
    control_picture: ControlPictureOption = None,
    control_scale: ControlScaleOption = None,
) -> None:
    """Repaint a photo in the style of a painting."""
    from inst.pictures.masks import read_mask_file
    from inst.pictures.reading import read_photo, reading_size

    settings = options.settings()
    _refuse_folder(photo)
    _check_paths(out, count, style, photo, mask, control_picture)
    control_choice = choose_control(controlnet, control, control_picture, control_scale, photo=True)
    content = read_photo(photo, flattened=flatten, reduce_to=reading_size(options.size))
    height, width = content.picture.shape[1:]
    region = None if mask is None else read_mask_file(mask, (height, width))
    model = session.load(find_image_encoder=False)
    styles = read_styles(model, style)
    maker = PictureMaker(session, model, "transfer", styles, content, region, control_choice)
    maker.make(settings, seed, count, out, f"{photo.stem}-{next(iter(styles.values())).name}")


def _refuse_folder(photo: Path) -> None:
    if photo.is_dir():
        raise UsageError(f"{photo} is a folder", "repaint its photos with inst batch transfer --photos FOLDER")


@dataclass(kw_only=True)
class GenerateOptions:
    """The settings of a generation as options; each is the argument of `inst.generate` with the same name."""

    steps: StepsOption = GENERATE["steps"]
    guidance: GuidanceOption = GENERATE["guidance"]
    tone: Annotated[
        str,
        typer.Option(
            "--tone",
            help="Colours of the result: painting (like the painting), none (no change), or adain (as painting, by the "
            "method of the paper's code).",
        ),
    ] = GENERATE["tone"]
    negative_prompt: NegativeOption = GENERATE["negative_prompt"]
    solver: SolverOption = GENERATE["solver"]
    style_weight: WeightOption = GENERATE["style_weight"]
    style_attention: StyleAttentionOption = GENERATE["style_attention"]
    style_scale: StyleScaleOption = GENERATE["style_scale"]
    attention_temperature: TemperatureOption = GENERATE["attention_temperature"]
    attention_blocks: BlocksOption = GENERATE["attention_blocks"]
    spacing: SpacingOption = GENERATE["spacing"]
    cache_interval: CacheOption = GENERATE["cache_interval"]
    size: Annotated[
        str | None,
        typer.Option(
            "--size",
            help="Side of a square in pixels, or WIDTHxHEIGHT. By default the backbone's native size, with the "
            "proportions of the control picture if one is given.",
        ),
    ] = None
    tile: TileOption = GENERATE["tile"]

    def settings(self) -> dict[str, Any]:
        """Return the arguments of `inst.generate`. Raises UsageError if the size is not one."""
        size = None if self.size is None else _read_size(self.size)
        return {option.name: getattr(self, option.name) for option in fields(self)} | {"size": size}


@with_session
def generate(
    session: Session,
    prompt: Annotated[
        str,
        typer.Argument(
            help='Text with the placeholder [C], such as "a castle in the style of [C]".', show_default=False
        ),
    ],
    style: StyleOption,
    options: GenerateOptions,
    out: OutOption = None,
    seed: SeedOption = GENERATE["seed"],
    count: CountOption = 1,
    controlnet: ControlNetOption = None,
    control: ControlOption = None,
    control_picture: ControlPictureOption = None,
    control_scale: ControlScaleOption = None,
) -> None:
    """Make a new picture from a prompt, in the style of a painting."""
    settings = {"prompt": prompt, **options.settings()}
    _check_paths(out, count, style, control_picture)
    control_choice = choose_control(controlnet, control, control_picture, control_scale, photo=False)
    model = session.load(find_image_encoder=False)
    styles = read_styles(model, style)
    maker = PictureMaker(session, model, "generate", styles, control_choice=control_choice)
    maker.make(settings, seed, count, out, next(iter(styles.values())).name)


def _check_paths(out: Output | None, count: int, style: list[str], *sources: Path | None) -> None:
    """Check the output paths of `count` pictures (`check_output`). The styles and `sources` are the input files."""
    from inst.pictures.writing import picture_format

    paintings = pictures_of(list(style_paths(style).values()))
    written = None if out is None or count == 1 else [numbered_path(out.path, k + 1) for k in range(count)]
    check_output(out, [*sources, *paintings], picture_format, written)


def _read_size(text: str) -> int | list[int]:
    parts = text.lower().split("x")
    if not 1 <= len(parts) <= 2 or not all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts):
        raise UsageError(
            f'The size "{cut(text, LONGEST_VALUE)}" cannot be used', "give it in pixels, such as 512 or 768x512"
        )
    return int(parts[0]) if len(parts) == 1 else [int(part) for part in parts]
