"""Make and save the pictures of `inst transfer`, `inst generate` and `inst repeat`, one for each seed."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from inst.cli.control import ControlChoice
from inst.cli.places import Output, output_path
from inst.cli.session import Session

if TYPE_CHECKING:
    from torch import Tensor

    from inst.backbone.model import Backbone
    from inst.files.provenance import SourceFile
    from inst.pictures.reading import Photo
    from inst.sampling.control import Control
    from inst.styles.style import Style
    from inst.synthesis.record import ControlRecord


@dataclass
class PictureMaker:
    """Makes the pictures of one command, one seed at a time, and saves each with its record.

    Attributes:
        session: shows the progress and reports the result.
        backbone: the model.
        command: the command's name in the record.
        styles: the styles by placeholder.
        photo, mask: as for `inst.synthesis.painter.paint`.
        control_choice: the structure control that the options name, or None.
    """

    session: Session
    backbone: Backbone
    command: str
    styles: dict[str, Style]
    photo: Photo | None = None
    mask: tuple[Tensor, SourceFile] | None = None
    control_choice: ControlChoice | None = None
    _control: tuple[Control, ControlRecord] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if self.control_choice is not None:
            self._control = self.control_choice.load(self.backbone)

    def make(self, settings: dict[str, Any], seed: int, count: int, out: Output | None, stem: str) -> None:
        """Make and save `count` pictures with the seeds `seed`, `seed` + 1 and so on, and report their paths.

        Raises UsageError before the first picture if there are not so many seeds.
        """
        from inst.sampling.noise import as_generators
        from inst.synthesis.painter import paint

        as_generators([seed, seed + count - 1])  # before the first picture: the last seed may be too large
        begin, written = time.perf_counter(), []
        for k in range(count):
            run = paint(
                self.backbone,
                self.styles,
                {**settings, "seed": seed + k},
                photo=self.photo,
                mask=self.mask,
                control=self._control,
                command=self.command,
            )
            painted = self.session.sample(run, f"picture {k + 1} of {count}" if count > 1 else "painting")
            with output_path(out, stem, ".png", k + 1 if count > 1 else None) as path:
                written.append(painted.save(path))
        seconds = time.perf_counter() - begin
        lines = [f"{path}" for path in written]
        self.session.report(lines, pictures=[str(path) for path in written], seconds=round(seconds, 3))
