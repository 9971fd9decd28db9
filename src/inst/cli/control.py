"""The options for structure control, and the loading of the ControlNet that they name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inst.errors import InstError, UsageError

if TYPE_CHECKING:
    from inst.backbone.model import Backbone
    from inst.pictures.reading import Photo
    from inst.sampling.control import Control
    from inst.synthesis.record import ControlRecord

_PANEL = "Structure control"

ControlNetOption = Annotated[
    Path | None,
    typer.Option(
        "--controlnet",
        help="Folder of a ControlNet for this backbone. By default none is used.",
        rich_help_panel=_PANEL,
    ),
]
ControlOption = Annotated[
    str | None,
    typer.Option(
        "--control",
        help="Kind of the ControlNet: canny (the default), depth, pose, ... With a photo and canny, no control picture "
        "is needed: the photo's edges are used.",
        rich_help_panel=_PANEL,
    ),
]
ControlPictureOption = Annotated[
    Path | None,
    typer.Option(
        "--control-picture", help="Picture that guides the ControlNet, such as a depth map.", rich_help_panel=_PANEL
    ),
]
ControlScaleOption = Annotated[
    float | None,
    typer.Option(
        "--control-scale",
        help="Strength of the ControlNet: 0 has no effect, 1 (the default) is the strength it was trained with.",
        rich_help_panel=_PANEL,
    ),
]


@dataclass(frozen=True)
class ControlChoice:
    """The values of the options, checked as far as possible without the backbone.

    Attributes:
        folder: the folder of the ControlNet.
        picture: the control picture, or None for the photo's own edges.
        settings: `kind` and `scale` of `inst.sampling.control.Control`, if they are given.
        expected: the record of the ControlNet that must be used, if a picture is made again.
    """

    folder: Path
    picture: Photo | None
    settings: dict[str, Any]
    expected: ControlRecord | None = None

    def load(self, backbone: Backbone) -> tuple[Control, ControlRecord]:
        """Load the ControlNet and return it with its record. Raises InstError if it is not the expected one."""
        from inst.backbone.loading.pipeline import module_fingerprint
        from inst.files.provenance import SourceFile
        from inst.sampling.control import Control, load_controlnet
        from inst.synthesis.record import ControlRecord

        model, picture = load_controlnet(self.folder, backbone), self.picture
        control = Control(model, None if picture is None else picture.picture, **self.settings)
        source = None if picture is None else SourceFile(picture.name, picture.sha256)
        name = self.folder.expanduser().resolve().name
        record = ControlRecord(name, module_fingerprint(model), control.kind, control.scale, source)
        if self.expected is not None and self.expected.fingerprint != record.fingerprint:
            raise InstError(
                f"{self.folder} is not the ControlNet that the picture was made with (its weights differ)",
                f'give the folder of "{self.expected.model}" with --controlnet',
            )
        return control, record


def choose_control(
    folder: Path | None, kind: str | None, picture: Path | None, scale: float | None, *, photo: bool
) -> ControlChoice | None:
    """Read the options for structure control.

    Args:
        folder, kind, picture, scale: the values of the options.
        photo: whether there is a photo to compute edges from.

    Returns:
        The choice, or None if no ControlNet is given.

    Raises:
        UsageError: an option has no meaning without another one.
        InstError: the control picture cannot be read.
    """
    options = {"--control": kind, "--control-picture": picture, "--control-scale": scale}
    if folder is None:
        for option, value in options.items():
            if value is not None:
                raise UsageError(f"{option} needs a ControlNet", "give its folder with --controlnet")
        return None
    from inst.pictures.reading import USUAL_SIZE, read_photo
    from inst.sampling.control import Control, check_kind

    check_kind(kind or Control.kind, given=picture is not None, photo=photo)
    settings = {name: value for name, value in (("kind", kind), ("scale", scale)) if value is not None}
    read = None if picture is None else read_photo(picture, flattened=True, reduce_to=USUAL_SIZE)
    return ControlChoice(folder, read, settings)
