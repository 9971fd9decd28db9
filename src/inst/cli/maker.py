"""What `inst transfer`, `inst generate` and `inst repeat` have in common: making pictures, and their records."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inst.cli.control import ControlChoice
from inst.cli.session import Session, output_path

if TYPE_CHECKING:
    from torch import Tensor

    from inst.backbone.model import Backbone
    from inst.pictures.io import Photo
    from inst.sampling.control import Control
    from inst.styles.style import Style
    from inst.synthesis.record import ControlRecord, PictureRecord


class Maker:
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
        chosen: ControlChoice | None = None,
    ) -> None:
        self.session, self.backbone, self.command = session, backbone, command
        self.styles: dict[str, Style] = dict(styles)
        self.photo, self.region, self.mask = photo, region, mask
        self.control: Control | None = None
        self.control_record: ControlRecord | None = None
        if chosen is not None:
            self.control, self.control_record = chosen.load(backbone)

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
        from inst.synthesis.from_photo import transfer
        from inst.synthesis.from_prompt import generate

        more = {**settings, "seed": seed, "control": self.control}
        if self.photo is None:
            made = generate(self.backbone, style=self.styles, **more)
        else:
            made = transfer(self.backbone, self.photo.picture, self.styles, mask=self.region, **more)
        return self.session.sample(made, what)[0]

    def _record(self, settings: dict[str, Any]) -> PictureRecord:
        from inst.synthesis.record import PictureRecord

        flattened = {} if self.photo is None else {"flatten": self.photo.alpha is None}
        return PictureRecord.of(
            self.command,
            self.backbone,
            settings | flattened,
            self.styles,
            photo=self.photo,
            mask=self.mask,
            control=self.control_record,
            thumbnails=settings["tone"] == "painting",
        )

    def _save(self, picture: Tensor, path: Path, record: PictureRecord) -> None:
        from inst.pictures.io import resize_mask, save_picture

        alpha = None if self.photo is None else self.photo.alpha
        if alpha is not None:
            height, width = picture.shape[1:]
            alpha = resize_mask(alpha, (height, width))
        save_picture(picture, path, alpha, record.texts())
