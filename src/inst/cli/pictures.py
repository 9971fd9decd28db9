"""`inst transfer`, `inst generate` and `inst repeat`: make pictures."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    StyleOption,
    check_output,
    output_path,
    read_styles,
)
from inst.errors import InstError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from inst.backbone import Backbone
    from inst.images import Photo
    from inst.record import PictureRecord
    from inst.style import Style

_TRANSFER = defaults_of("inst.styling", "transfer")
_GENERATE = defaults_of("inst.styling", "generate")

OutOption = Annotated[
    Path | None,
    typer.Option("-o", "--out", help="The picture to write (.png, .jpg, .webp), or a folder; by default in outputs/."),
]
StepsOption = Annotated[int, typer.Option("--steps", help="Calls of the denoiser.")]
GuidanceOption = Annotated[float, typer.Option("--guidance", help="How strongly the prompt leads; 1 is none.")]
NegativeOption = Annotated[str, typer.Option("--negative-prompt", help="What the result shall not be.")]
CountOption = Annotated[int, typer.Option("--count", min=1, help="Pictures to make, with seeds counting up.")]
SolverOption = Annotated[str, typer.Option("--solver", help="dpm++ or ddim.")]
WeightOption = Annotated[float, typer.Option("--style-weight", help="0 is no style, 1 as learned, more exaggerates.")]
TileOption = Annotated[
    int | None, typer.Option("--tile", help="Side of the tiles of large pictures, in pixels; 0 is none.")
]


def transfer(
    photo: Annotated[Path, typer.Argument(help="The photo to repaint.", show_default=False)],
    style: StyleOption,
    out: OutOption = None,
    strength: Annotated[float, typer.Option("--strength", help="0 keeps the photo, 1 forgets it.")] = _TRANSFER[
        "strength"
    ],
    steps: StepsOption = _TRANSFER["steps"],
    guidance: GuidanceOption = _TRANSFER["guidance"],
    tone: Annotated[
        str, typer.Option("--tone", help="Colours: of the painting, of the photo, or none (as they come).")
    ] = _TRANSFER["tone"],
    prompt: Annotated[str | None, typer.Option("--prompt", help="What the photo shows; [C] is the style.")] = None,
    negative_prompt: NegativeOption = _TRANSFER["negative_prompt"],
    seed: SeedOption = _TRANSFER["seed"],
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
    inversion: Annotated[str, typer.Option("--inversion", help="stochastic, none (plain noise) or ddim.")] = _TRANSFER[
        "inversion"
    ],
    solver: SolverOption = _TRANSFER["solver"],
    style_weight: WeightOption = _TRANSFER["style_weight"],
    tile: TileOption = _TRANSFER["tile"],
    flatten: Annotated[bool, typer.Option("--flatten", help="Lay a transparent photo over white.")] = False,
    backbone: BackboneOption = BACKBONE,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Repaint a photo in the style of a painting."""
    from inst.images import picture_format, read_mask, read_photo
    from inst.provenance import SourceFile

    check_output(out, [photo], picture_format)
    content = read_photo(photo, flattened=flatten)
    height, width = content.picture.shape[1:]
    region = None if mask is None else read_mask(mask, (height, width))
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
    session = Session(backbone, device, dtype, quiet, as_json)
    model = session.load()
    styles = read_styles(model, style)
    maker = _Maker(session, model, "transfer", styles, content, region, None if mask is None else SourceFile.of(mask))
    maker.make(settings, seed, count, out, f"{photo.stem}-{next(iter(styles.values())).name}")


def generate(
    prompt: Annotated[str, typer.Argument(help='Such as "a castle in the style of [C]".', show_default=False)],
    style: StyleOption,
    out: OutOption = None,
    steps: StepsOption = _GENERATE["steps"],
    guidance: GuidanceOption = _GENERATE["guidance"],
    tone: Annotated[str, typer.Option("--tone", help="Colours: of the painting, or none.")] = _GENERATE["tone"],
    negative_prompt: NegativeOption = _GENERATE["negative_prompt"],
    seed: SeedOption = _GENERATE["seed"],
    count: CountOption = 1,
    size: Annotated[
        str | None, typer.Option("--size", help="Side in pixels, or WIDTHxHEIGHT; by default the native size.")
    ] = None,
    solver: SolverOption = _GENERATE["solver"],
    style_weight: WeightOption = _GENERATE["style_weight"],
    tile: TileOption = _GENERATE["tile"],
    backbone: BackboneOption = BACKBONE,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make a new picture from a prompt, in the style of a painting."""
    from inst.images import picture_format

    check_output(out, [], picture_format)
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
    session = Session(backbone, device, dtype, quiet, as_json)
    model = session.load()
    styles = read_styles(model, style)
    _Maker(session, model, "generate", styles).make(settings, seed, count, out, next(iter(styles.values())).name)


def repeat(
    picture: Annotated[Path, typer.Argument(help="A PNG file that inst made.", show_default=False)],
    photo: Annotated[
        Path | None, typer.Option("--photo", help="The photo it was made of; by default beside the picture.")
    ] = None,
    mask: Annotated[Path | None, typer.Option("--mask", help="The mask; by default beside the picture.")] = None,
    out: OutOption = None,
    backbone: Annotated[
        str | None, typer.Option("--backbone", help="The model's folder; by default what the picture names.")
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", help="By default the one that the picture was made on.")
    ] = None,
    dtype: Annotated[str | None, typer.Option("--dtype", help="By default the precision it was made with.")] = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make a picture again from what its PNG file says: bit for bit on the same device."""
    from inst.images import picture_format, read_mask, read_photo
    from inst.record import read_record

    record = read_record(picture)
    check_output(out, [picture], picture_format)
    known = {"transfer": _TRANSFER, "generate": _GENERATE}.get(record.command)
    settings = dict(record.settings)
    seed, flat = settings.pop("seed", 0), settings.pop("flatten", False)
    if known is None or not settings.keys() <= known.keys() | {"prompt"}:
        raise InstError(f"{picture} was made by another version of inst ({record.versions.get('inst')}): use that one.")
    content = region = None
    if record.photo is not None:
        place = _same_file(picture, "photo", record.photo.name, record.photo.sha256, photo)
        check_output(out, [place], picture_format)
        content = read_photo(place, flattened=flat)
        if record.mask is not None:
            place = _same_file(picture, "mask", record.mask.name, record.mask.sha256, mask)
            height, width = content.picture.shape[1:]
            region = read_mask(place, (height, width))
    session = Session(
        record.backbone.name if backbone is None else backbone,
        device or record.device,
        dtype or record.dtype,
        quiet,
        as_json,
    )
    model = session.load()
    maker = _Maker(session, model, record.command, record.styles, content, region, record.mask)
    maker.make(settings, seed, 1, out, f"{picture.stem}-again")


class _Maker:
    """Makes the pictures of one command, one seed at a time, and writes each with its record."""

    def __init__(
        self,
        session: Session,
        backbone: Backbone,
        command: str,
        styles: Any,
        photo: Photo | None = None,
        region: Tensor | None = None,
        mask: Any = None,
    ) -> None:
        self.session, self.backbone, self.command = session, backbone, command
        self.styles: dict[str, Style] = dict(styles)
        self.photo, self.region, self.mask = photo, region, mask

    def make(self, settings: dict[str, Any], seed: int, count: int, out: Path | None, stem: str) -> None:
        """Make `count` pictures, with the seeds `seed`, `seed` + 1 and so on, and report where they are."""
        begin, written = time.perf_counter(), []
        for k in range(count):
            picture = self._paint(settings, seed + k, f"picture {k + 1} of {count}" if count > 1 else "painting")
            record = self._record({**settings, "seed": seed + k})
            with output_path(out, stem, ".png", k + 1 if count > 1 else None) as path:
                self._save(picture, path, record)
                written.append(path)
        seconds = time.perf_counter() - begin
        lines = [f"{path}" for path in written]
        self.session.report(lines, pictures=[str(path) for path in written], seconds=round(seconds, 3))

    def _paint(self, settings: dict[str, Any], seed: int, what: str) -> Tensor:
        from inst.sampling import complete
        from inst.styling import generate, transfer

        if self.photo is None:
            made = generate(self.backbone, style=self.styles, seed=seed, **settings)
        else:
            made = transfer(self.backbone, self.photo.picture, self.styles, seed=seed, mask=self.region, **settings)
        with self.session.progress(what) as move:
            return complete(made, lambda step: move(step.index + 1, step.total, ""))[0]

    def _record(self, settings: dict[str, Any]) -> PictureRecord:
        from inst.record import PictureRecord

        flattened = {} if self.photo is None else {"flatten": self.photo.alpha is None}
        return PictureRecord.of(
            self.command,
            self.backbone,
            settings | flattened,
            self.styles,
            photo=self.photo,
            mask=self.mask,
            thumbnails=settings["tone"] == "painting",
        )

    def _save(self, picture: Tensor, path: Path, record: PictureRecord) -> None:
        from inst.images import resize_mask, save_picture

        alpha = None if self.photo is None else self.photo.alpha
        if alpha is not None:
            height, width = picture.shape[1:]
            alpha = resize_mask(alpha, (height, width))
        save_picture(picture, path, alpha, record.texts())


def _read_size(text: str) -> int | list[int]:
    parts = text.lower().split("x")
    if not 1 <= len(parts) <= 2 or not all(part.isascii() and part.isdigit() for part in parts):
        raise UsageError(f'The size "{text}" cannot be used: give pixels, such as 512 or 768x512.')
    return int(text) if len(parts) == 1 else [int(part) for part in parts]


def _same_file(picture: Path, what: str, name: str, sha256: str, given: Path | None) -> Path:
    """Find the file that a picture was made of; refuse another one, even of the same name."""
    from inst.provenance import SourceFile

    place = picture.parent / name if given is None else given
    if not place.is_file():
        raise InstError(f"{place} is not there: give the {what} {name} with --{what}.")
    if SourceFile.of(place).sha256 != sha256:
        raise InstError(f"{place} is not the {what} that {picture} was made of (its sha256 is {sha256[:12]}...).")
    return place
