"""The command `inst repeat`, which makes a picture again from its record and its source files."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inst.cli.control import ControlChoice
from inst.cli.maker import PictureMaker
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
"""The function that makes each kind of picture, by the command in the record."""

_OLD_FORMAT = 1
"""The format of the records from before style attention."""

_EVEN_STEPS: Mapping[str, Any] = {"spacing": "trailing", "cache_interval": 1}
"""How the steps of transfers were spread up to format 2."""


@with_session
def repeat(
    session: Session,
    picture: Annotated[Path, typer.Argument(help="A PNG file that inst wrote.", show_default=False)],
    photo: Annotated[
        Path | None,
        typer.Option(
            "--photo", help="The photo that the picture was made from. By default it is read from the picture's folder."
        ),
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option("--mask", help="The mask of the photo. By default it is read from the picture's folder."),
    ] = None,
    controlnet: Annotated[
        Path | None,
        typer.Option("--controlnet", help="Folder of the ControlNet. Needed if the picture was made with one."),
    ] = None,
    control_picture: Annotated[
        Path | None,
        typer.Option("--control-picture", help="The control picture. By default it is read from the picture's folder."),
    ] = None,
    out: OutOption = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            "--backbone",
            help="The backbone of the picture, given as for inst transfer. By default the one that the picture names; "
            "needed if that was a folder or a file.",
            rich_help_panel=PANEL,
        ),
    ] = None,
    quantize: Annotated[
        str | None,
        typer.Option(
            "--quantize",
            help="Store the weights of the UNet in 8 bits: int8 or fp8. By default as for the picture.",
            rich_help_panel=PANEL,
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            "--device", help="Device, such as cpu, cuda or mps. By default the picture's.", rich_help_panel=PANEL
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype", help="Precision: float32, bfloat16 or float16. By default the picture's.", rich_help_panel=PANEL
        ),
    ] = None,
) -> None:
    """Make a picture again from the record in its PNG file. The result is the same bit for bit on the same device."""
    from inst.pictures.masks import read_mask
    from inst.pictures.reading import read_photo, reading_size
    from inst.pictures.writing import picture_format
    from inst.synthesis.record import read_record

    record = read_record(picture)
    settings = dict(record.settings)
    seed, flatten = settings.pop("seed", 0), settings.pop("flatten", False)
    settings = _complete_settings(picture, record, settings)
    if not isinstance(flatten, bool):
        raise InstError(
            f"{picture} does not record whether its photo was put on a white background", "make it again in Python"
        )
    if not isinstance(seed, int):
        raise InstError(f"{picture} does not record which of its seeds it was made with", "make it again in Python")
    if record.command == "sheet":
        _check_sheet(picture, record, settings)
    control_source = None if record.control is None else record.control.picture
    photo = _find_source(picture, "photo", record.photo, photo)
    mask = _find_source(picture, "mask", record.mask, mask)
    control_picture = _find_source(picture, "control-picture", control_source, control_picture)
    check_output(out, [picture, photo, mask, control_picture], picture_format)
    content = None
    if photo is not None and _MADE_BY[record.command] == "transfer":
        content = read_photo(photo, flattened=flatten, reduce_to=reading_size(settings.get("size")))
    region = None
    if mask is not None and content is not None:
        height, width = content.picture.shape[1:]
        assert record.mask is not None  # otherwise `mask` would be None
        region = read_mask(mask, (height, width)), record.mask
    control_choice = None
    if record.control is None and controlnet is not None:
        raise UsageError(f"{picture} was made without a ControlNet", "leave out --controlnet")
    if record.control is not None:
        control_choice = _choose_control(picture, record.control, controlnet, control_picture)
    session.backbone = _backbone_of(picture, record) if backbone is None else backbone
    session.device, session.dtype = device or record.device, dtype or record.dtype
    session.quantize = quantize or record.quantize
    model = session.load(find_image_encoder=False)
    _check_backbone(picture, record, model, session.backbone)
    if record.format == _OLD_FORMAT:
        model = _with_old_sizes(model)
        if content is not None and settings["size"] is None:
            settings["size"] = model.default_size  # small photos, too, were enlarged to it
    stem = f"{picture.stem}-again"
    maker = PictureMaker(session, model, record.command, dict(record.styles), content, region, control_choice)
    try:
        if record.command == "sheet":
            assert content is not None  # checked by `_complete_settings`
            draw_sheet(session, model, content, [*record.styles.values()], {**settings, "seed": seed}, out, stem)
        else:
            maker.make(settings, seed, 1, out, stem)
    except UsageError as error:
        raise InstError(f"The record in {picture} cannot be used: {error}") from None


def _complete_settings(picture: Path, record: PictureRecord, settings: dict[str, Any]) -> dict[str, Any]:
    """Add the defaults of settings that a record made in Python may lack. Raises InstError if that is not possible."""
    if record.command == "demo":
        raise InstError(f"{picture} was made by inst demo, which learns first", "run inst demo again")
    function = _MADE_BY.get(record.command)
    defaults = {"transfer": TRANSFER, "generate": GENERATE}.get(function or "", {})
    unrecorded = ("seed", "mask", "control", "noise", "series")
    defaults = {name: value for name, value in defaults.items() if name not in unrecorded}
    known = {"prompt", *defaults}
    defaults.pop("eta", None)  # no command has it, so the record of the repeated picture would differ
    if record.format <= 2 and function == "transfer":
        defaults |= {**_EVEN_STEPS, "steps": 20 if record.format == _OLD_FORMAT else 12}
    if record.format == _OLD_FORMAT:
        defaults |= {"style_attention": 0.0, "strength": 0.5}  # of that format
        if settings.get("tone", defaults["tone"]) == "painting":
            settings["tone"] = "adain"  # its name in that format
    if record.command == "sheet":
        if record.format == _OLD_FORMAT and "thumbnails" in settings:
            settings["paintings"] = settings.pop("thumbnails")
        known = known - {"strength", "guidance"} | {"strengths", "guidances", "paintings"}
    if function is None or not settings.keys() <= known:
        raise InstError(
            f"{picture} was made by another version of inst ({record.versions.get('inst')})", "use that version"
        )
    what, source = ("photo", record.photo) if function == "transfer" else ("prompt", settings.get("prompt"))
    if source is None:
        raise InstError(f"{picture} does not record its {what}", "make it again in Python")
    # In the order of the record, so that the picture is the same file again.
    return settings | {name: value for name, value in defaults.items() if name in known and name not in settings}


def _with_old_sizes(model: Backbone) -> Backbone:
    """Return the backbone with the default size of the old format, which was the native size."""
    model = copy.copy(model)
    model.default_size = model.native_size
    return model


def _check_sheet(picture: Path, record: PictureRecord, settings: dict[str, Any]) -> None:
    """Check the settings that only sheets have. Raises InstError if the sheet cannot be made again."""
    for name in ("strengths", "guidances"):
        if not settings.get(name) or not isinstance(settings[name], list):
            raise InstError(f"{picture} does not record its {name}", "make it again with inst sheet")
    if not record.styles or not settings.pop("paintings", False):
        raise InstError(f"{picture} does not contain the paintings that it shows", "make it again with inst sheet")


def _backbone_of(picture: Path, record: PictureRecord) -> str:
    """Return the backbone's name in a record. Raises InstError for a folder or a file, whose path is not recorded."""
    from inst.backbone.loading.hub import is_hub_name
    from inst.backbone.loading.sources import BUNDLED

    name = record.backbone.name
    if name not in BUNDLED and not is_hub_name(name):
        raise InstError(
            f'{picture} was made with the backbone "{name}"', "give its folder, file or model-hub id with --backbone"
        )
    return name


def _find_source(picture: Path, what: str, recorded: SourceFile | None, given: Path | None) -> Path | None:
    """Return the path of a source file of a picture, or None if the record has none.

    Raises InstError if the file is missing or has another content than the recorded one.
    """
    from inst.files.provenance import SourceFile

    if recorded is None:
        if given is not None:
            raise UsageError(f"{picture} was made without a {what.replace('-', ' ')}", f"leave out --{what}")
        return None
    path = picture.parent / recorded.name if given is None else given
    if not path.is_file():
        problem = "is not a regular file" if path.exists() else "does not exist"
        raise InstError(f"{path} {problem}", f"give the {what} {recorded.name} with --{what}")
    if SourceFile.of(path).sha256 != recorded.sha256:
        raise InstError(
            f"{path} is not the {what} that {picture} was made from",
            f"give the file with the sha256 {recorded.sha256[:12]}... with --{what}",
        )
    return path


def _choose_control(picture: Path, record: ControlRecord, folder: Path | None, path: Path | None) -> ControlChoice:
    """Return the structure control that a record names.

    Args:
        picture: the picture that has the record.
        record: the control's part of the record.
        folder: the value of `--controlnet`, because the record has no path.
        path: the control picture, or None.

    Raises:
        InstError: no folder is given, or the control picture cannot be read.
    """
    from inst.pictures.reading import USUAL_SIZE, read_photo

    if folder is None:
        raise InstError(f'{picture} was made with the ControlNet "{record.model}"', "give its folder with --controlnet")
    control_picture = None if path is None else read_photo(path, flattened=True, reduce_to=USUAL_SIZE)
    return ControlChoice(folder, control_picture, {"kind": record.kind, "scale": record.scale}, record)


def _check_backbone(picture: Path, record: PictureRecord, model: Backbone, given: str) -> None:
    """Check that the backbone is the one that a picture was made with.

    Raises:
        InstError: it is another backbone.

    Warns:
        InstWarning: the device, the precision or a library version differs, which may change the last bits.
    """
    from inst.synthesis.record import PictureRecord

    used = record.backbone
    if (model.fingerprint, model.denoiser_fingerprint) != (used.fingerprint, used.denoiser):
        raise InstError(
            f'{picture} was made with another backbone than {given}: "{used.name}" (text space {used.fingerprint}, '
            f"denoiser {used.denoiser})",
            "give that backbone with --backbone",
        )
    here = PictureRecord.of(record.command, model, {}, {})
    pairs = [("device", record.device, here.device), ("precision", record.dtype, here.dtype)]
    pairs.append(("quantisation", record.quantize or "none", here.quantize or "none"))
    pairs += [(name, record.versions.get(name, "unknown"), found) for name, found in here.versions.items()]
    differences = [f"{name} {before}, here {now}" for name, before, now in pairs if before != now]
    if differences:
        warnings.warn(
            f"{picture} was made in another environment ({'; '.join(differences)}): the new picture may be slightly "
            "different.",
            InstWarning,
            stacklevel=2,
        )
