"""`inst repeat`: make a picture again, from what is found again of what it was made of and with."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inst.cli.control import ControlChoice
from inst.cli.maker import Maker
from inst.cli.pictures import GENERATE, TRANSFER, OutOption
from inst.cli.places import check_output
from inst.cli.session import PANEL, Session, with_session
from inst.cli.sheet import draw_sheet
from inst.errors import InstError, InstWarning, UsageError

if TYPE_CHECKING:
    from inst.backbone.model import Backbone
    from inst.files.provenance import SourceFile
    from inst.synthesis.record import ControlRecord, PictureRecord

_MADE_BY = {"transfer": "transfer", "sheet": "transfer", "generate": "generate", "preview": "generate"}
"""The function that makes each kind of picture."""


@with_session
def repeat(
    session: Session,
    picture: Annotated[Path, typer.Argument(help="A PNG file that inst made.", show_default=False)],
    photo: Annotated[
        Path | None, typer.Option("--photo", help="The photo it was made of; by default beside the picture.")
    ] = None,
    mask: Annotated[Path | None, typer.Option("--mask", help="The mask; by default beside the picture.")] = None,
    controlnet: Annotated[
        Path | None, typer.Option("--controlnet", help="Folder of the ControlNet that it was made with, if it was.")
    ] = None,
    control_picture: Annotated[
        Path | None, typer.Option("--control-picture", help="The control picture; by default beside the picture.")
    ] = None,
    out: OutOption = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            "--backbone",
            help="What the picture was made with, as for inst transfer; by default the bundled model, or the one of "
            "the model hub, that it names.",
            rich_help_panel=PANEL,
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option("--device", help="By default the one that the picture was made on.", rich_help_panel=PANEL),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", help="By default the precision it was made with.", rich_help_panel=PANEL),
    ] = None,
) -> None:
    """Make a picture again from what its PNG file says: bit for bit on the same device."""
    from inst.pictures.io import picture_format, read_mask, read_photo
    from inst.synthesis.record import read_record

    record = read_record(picture)
    settings = dict(record.settings)
    seed, flat = settings.pop("seed", 0), settings.pop("flatten", False)
    settings = _complete(picture, record, settings)
    if not isinstance(flat, bool):
        raise InstError(f"{picture} does not say whether its photo was laid over white", "make it again in Python")
    if not isinstance(seed, int):
        raise InstError(f"{picture} does not say which one of its seeds is its own", "make it again in Python")
    if record.command == "sheet":
        _check_sheet(picture, record, settings)
    seen = None if record.control is None else record.control.picture
    photo = _same_file(picture, "photo", record.photo, photo)
    mask = _same_file(picture, "mask", record.mask, mask)
    control_picture = _same_file(picture, "control-picture", seen, control_picture)
    check_output(out, [picture, photo, mask, control_picture], picture_format)
    content = None
    if photo is not None and _MADE_BY[record.command] == "transfer":
        content = read_photo(photo, flattened=flat)
    region = None
    if mask is not None and content is not None:
        height, width = content.picture.shape[1:]
        assert record.mask is not None  # or there would be no file of it
        region = read_mask(mask, (height, width)), record.mask
    chosen = None
    if record.control is not None:
        chosen = _control_of(picture, record.control, controlnet, control_picture)
    session.backbone = _backbone_of(picture, record) if backbone is None else backbone
    session.device, session.dtype = device or record.device, dtype or record.dtype
    model = session.load(looking=False)
    _compare(picture, record, model, session.backbone)
    stem = f"{picture.stem}-again"
    maker = Maker(session, model, record.command, dict(record.styles), content, region, chosen)
    try:
        if record.command == "sheet":
            assert content is not None  # as `_complete` has found
            draw_sheet(session, model, content, [*record.styles.values()], {**settings, "seed": seed}, out, stem)
        else:
            maker.make(settings, seed, 1, out, stem)
    except UsageError as error:
        raise InstError(f"The record in {picture} cannot be used: {error}") from None


def _complete(picture: Path, record: PictureRecord, settings: dict[str, Any]) -> dict[str, Any]:
    """Add the defaults of what a record made in Python may leave out. Raises InstError where it can not be done."""
    if record.command == "demo":
        raise InstError(f"{picture} was made by inst demo, which learns first", "give that command again")
    function = _MADE_BY.get(record.command)
    defaults = {"transfer": TRANSFER, "generate": GENERATE}.get(function or "", {})
    defaults = {name: value for name, value in defaults.items() if name not in ("seed", "mask", "control")}
    known = {"prompt", *defaults}
    if record.command == "sheet":
        known = known - {"strength", "guidance"} | {"strengths", "guidances", "thumbnails"}
    if function is None or not settings.keys() <= known:
        raise InstError(
            f"{picture} was made by another version of inst ({record.versions.get('inst')})", "use that one"
        )
    what, said = ("photo", record.photo) if function == "transfer" else ("prompt", settings.get("prompt"))
    if said is None:
        raise InstError(f"{picture} does not say which {what} it was made of", "make it again in Python")
    return {name: value for name, value in defaults.items() if name in known} | settings


def _check_sheet(picture: Path, record: PictureRecord, settings: dict[str, Any]) -> None:
    """Check what a sheet's settings have that a picture's have not. Raises InstError where it cannot be made again."""
    for name in ("strengths", "guidances"):
        if not settings.get(name) or not isinstance(settings[name], list):
            raise InstError(f"{picture} does not say which {name} it shows", "make it again with inst sheet")
    if not record.styles or not settings.pop("thumbnails", False):
        raise InstError(f"{picture} does not carry the paintings that it shows", "make it again with inst sheet")


def _backbone_of(picture: Path, record: PictureRecord) -> str:
    """The backbone that a record names, if it can be found by its name alone: no picture tells where a folder lies."""
    from inst.backbone.loading.hub import is_hub_name
    from inst.backbone.loading.sources import BUNDLED

    name = record.backbone.name
    if name not in BUNDLED and not is_hub_name(name):
        raise InstError(
            f'{picture} was made with the backbone "{name}"', "give its folder, file or model-hub id with --backbone"
        )
    return name


def _same_file(picture: Path, what: str, recorded: SourceFile | None, given: Path | None) -> Path | None:
    """Find a file that a picture was made of, None if of none; refuse another one, even of the same name."""
    from inst.files.provenance import SourceFile

    if recorded is None:
        return None
    place = picture.parent / recorded.name if given is None else given
    if not place.is_file():
        raise InstError(f"{place} is not there", f"give the {what} {recorded.name} with --{what}")
    if SourceFile.of(place).sha256 != recorded.sha256:
        raise InstError(
            f"{place} is not the {what} that {picture} was made of (its sha256 is {recorded.sha256[:12]}...)."
        )
    return place


def _control_of(picture: Path, record: ControlRecord, folder: Path | None, place: Path | None) -> ControlChoice:
    """Choose the control that a record names.

    Args:
        picture: whose record it is.
        record: the control's part of it.
        folder: the option `--controlnet`: no picture tells where a folder lies.
        place: the control picture, if there was one.

    Raises:
        InstError: no folder is given, or the control picture cannot be read.
    """
    from inst.pictures.io import read_photo

    if folder is None:
        raise InstError(f'{picture} was made with the ControlNet "{record.model}"', "give its folder with --controlnet")
    seen = None if place is None else read_photo(place, flattened=True)
    return ControlChoice(folder, seen, {"kind": record.kind, "scale": record.scale}, record)


def _compare(picture: Path, record: PictureRecord, model: Backbone, given: str) -> None:
    """Refuse another backbone than a picture was made with; warn of what may change the last bits."""
    from inst.synthesis.record import PictureRecord

    used = record.backbone
    if (model.fingerprint, model.denoiser_fingerprint) != (used.fingerprint, used.denoiser):
        raise InstError(
            f'{picture} was made with another backbone than {given}: with one called "{used.name}", of the '
            f"text space {used.fingerprint} and the denoiser {used.denoiser}",
            "give that one with --backbone",
        )
    here = PictureRecord.of(record.command, model, {}, {})
    pairs = [("device", record.device, here.device), ("precision", record.dtype, here.dtype)]
    pairs += [(name, record.versions.get(name, "unknown"), found) for name, found in here.versions.items()]
    other = [f"{name} {before}, here {now}" for name, before, now in pairs if before != now]
    if other:
        warnings.warn(
            f"{picture} was made otherwise ({'; '.join(other)}): the new picture may differ a little.",
            InstWarning,
            stacklevel=2,
        )
