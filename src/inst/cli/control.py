"""What the commands that make pictures share of structure control: the options, and the ControlNet that they name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inst.errors import InstError, UsageError

if TYPE_CHECKING:
    from inst.backbone.model import Backbone
    from inst.pictures.io import Photo
    from inst.sampling.control import Control
    from inst.synthesis.record import ControlRecord

_PANEL = "Structure control"

ControlNetOption = Annotated[
    Path | None,
    typer.Option("--controlnet", help="A ControlNet for this backbone: its folder.", rich_help_panel=_PANEL),
]
ControlOption = Annotated[
    str | None,
    typer.Option(
        "--control",
        help="What it keeps to: canny (the photo's own edges, if no picture is given), depth, pose, ...",
        rich_help_panel=_PANEL,
    ),
]
ControlPictureOption = Annotated[
    Path | None,
    typer.Option("--control-picture", help="What it looks at, such as a map of depth.", rich_help_panel=_PANEL),
]
ControlScaleOption = Annotated[
    float | None,
    typer.Option("--control-scale", help="How much it counts: 0 is not at all, 1 as trained.", rich_help_panel=_PANEL),
]


@dataclass(frozen=True)
class ControlChoice:
    """What the options say, checked as far as it can be without the backbone.

    Attributes:
        folder: of the ControlNet.
        picture: the control picture, or None for the photo's own edges.
        settings: `kind` and `scale` of `inst.sampling.control.Control`, where they are given.
        expected: what a picture was made with, if it is to be made again.
    """

    folder: Path
    picture: Photo | None
    settings: dict[str, Any]
    expected: ControlRecord | None = None

    def load(self, backbone: Backbone) -> tuple[Control, ControlRecord]:
        """Load the ControlNet, and note down what was loaded. Raises InstError where another one was expected."""
        from inst.backbone.loading.pipeline import module_fingerprint
        from inst.files.provenance import SourceFile
        from inst.sampling.control import Control, load_controlnet
        from inst.synthesis.record import ControlRecord

        model, seen = load_controlnet(self.folder, backbone), self.picture
        control = Control(model, None if seen is None else seen.picture, **self.settings)
        source = None if seen is None else SourceFile(seen.name, seen.sha256)
        name = self.folder.expanduser().resolve().name
        record = ControlRecord(name, module_fingerprint(model), control.kind, control.scale, source)
        if self.expected is not None and self.expected.fingerprint != record.fingerprint:
            raise InstError(
                f"{self.folder} is not the ControlNet that the picture was made with (its weights differ)",
                f'give that one, "{self.expected.model}", with --controlnet',
            )
        return control, record


def choose_control(
    folder: Path | None, kind: str | None, picture: Path | None, scale: float | None, *, photo: bool
) -> ControlChoice | None:
    """Read what the options say.

    Args:
        folder, kind, picture, scale: the options.
        photo: whether there is a photo whose edges could be taken.

    Returns:
        None where no control is wanted.

    Raises:
        UsageError: an option that means nothing without another.
        InstError: the control picture cannot be read.
    """
    given = {"--control": kind, "--control-picture": picture, "--control-scale": scale}
    if folder is None:
        for option, value in given.items():
            if value is not None:
                raise UsageError(f"{option} needs a ControlNet", "give its folder with --controlnet")
        return None
    from inst.pictures.io import read_photo
    from inst.sampling.control import Control, check_kind

    check_kind(kind or Control.kind, given=picture is not None, photo=photo)
    settings = {name: value for name, value in (("kind", kind), ("scale", scale)) if value is not None}
    return ControlChoice(folder, None if picture is None else read_photo(picture, flattened=True), settings)
