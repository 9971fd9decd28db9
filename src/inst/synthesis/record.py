"""The record of a picture: everything needed to make it again. The PNG file of the picture holds it as a text chunk."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inst.errors import InstError
from inst.files.provenance import (
    FORMAT,
    KEYWORD,
    PROSE_KEYS,
    SourceFile,
    base_name,
    read_entry,
    reason,
    to_plain,
    versions,
)
from inst.pictures.opening import read_text_in
from inst.pictures.reading import Photo
from inst.styles.style import Style

if TYPE_CHECKING:
    from inst.backbone.model import Backbone


_LONGEST = 2**25
"""Largest record in characters: its paintings are most of it, and one takes 0.2 to 1.4 million."""


@dataclass(frozen=True)
class BackboneRecord:
    """The backbone of a picture: its name, and the fingerprints of its text space and its UNet.

    A name on the model hub is kept as it is; a path is cut to its base name.
    """

    name: str
    fingerprint: str
    denoiser: str

    def __post_init__(self) -> None:
        # The hub's reader imports diffusers, which reading a record should not wait for.
        from inst.backbone.loading.hub import is_hub_name

        if not is_hub_name(self.name):
            object.__setattr__(self, "name", base_name(self.name))


@dataclass(frozen=True)
class ControlRecord:
    """The ControlNet of a picture (its base name and the fingerprint of its weights), and the rest of `inst.Control`.

    The picture is None if the edges of the photo were used.
    """

    model: str
    fingerprint: str
    kind: str
    scale: float
    picture: SourceFile | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "model", base_name(self.model))
        object.__setattr__(self, "scale", float(self.scale))

    @classmethod
    def of(cls, content: dict[str, Any]) -> ControlRecord:
        """Read the output of `dataclasses.asdict`. Raises KeyError or TypeError if an entry is missing or wrong."""
        return cls(
            model=read_entry(content, "model", str),
            fingerprint=read_entry(content, "fingerprint", str),
            kind=read_entry(content, "kind", str),
            scale=read_entry(content, "scale", float),
            picture=None if content["picture"] is None else SourceFile(**_strings(content, "picture")),
        )


@dataclass(frozen=True, eq=False)
class PictureRecord:
    """The record of a picture.

    Only the base name of every path is kept. So a picture can be shared without the folder names of its author.

    Attributes:
        command: "transfer" or "generate"; "preview" for a preview during learning; "sheet" and "demo" for the sheets of
            those commands.
        settings: the keyword arguments as plain JSON values; prompts are kept exactly.
        styles: the styles by placeholder, without inversion module; for a sheet, all styles on it.
        backbone: the backbone.
        device: the device of the computation, such as "cpu" or "cuda:0". Only the same device gives the same bits.
        dtype: the precision of the backbone, such as "bfloat16".
        versions: versions of inst, Python and the libraries.
        quantize: how the UNet's weights were stored: "int8", "fp8", or None for the precision of the backbone.
        photo: the photo, or None.
        mask: the mask, or None.
        control: the structure control, or None.
        format: the version of the format that the record was written in. A setting that the record leaves out had the
            default of that version.
    """

    command: str
    settings: Mapping[str, Any]
    styles: Mapping[str, Style]
    backbone: BackboneRecord
    device: str
    dtype: str
    versions: Mapping[str, str] = field(default_factory=dict)
    quantize: str | None = None
    photo: SourceFile | None = None
    mask: SourceFile | None = None
    control: ControlRecord | None = None
    format: int = FORMAT

    def __post_init__(self) -> None:
        object.__setattr__(self, "settings", to_plain(self.settings, PROSE_KEYS))

    @classmethod
    def of(
        cls,
        command: str,
        backbone: Backbone,
        settings: Mapping[str, Any],
        styles: Mapping[str, Style],
        *,
        photo: Photo | SourceFile | None = None,
        mask: SourceFile | None = None,
        control: ControlRecord | None = None,
        paintings: bool = False,
    ) -> PictureRecord:
        """Make a record, with the versions of inst, Python and the libraries.

        Args:
            paintings: keep the paintings of the styles, if the picture was made with them (`inst.synthesis.painter`).
                They are most of the size of a record.
        """
        return cls(
            command=command,
            settings=settings,
            styles={name: style.bare(paintings=paintings) for name, style in styles.items()},
            backbone=BackboneRecord(backbone.name, backbone.fingerprint, backbone.denoiser_fingerprint),
            device=str(backbone.device),
            dtype=str(backbone.dtype).removeprefix("torch."),
            versions=versions() if backbone.quantize is None else versions("torchao"),
            quantize=backbone.quantize,
            photo=SourceFile(photo.name, photo.sha256) if isinstance(photo, Photo) else photo,
            mask=mask,
            control=control,
        )

    def to_text(self) -> str:
        """Write the record as JSON in ASCII; the same record gives the same text. `from_text` reads it."""
        content = {
            "format": self.format,
            "command": self.command,
            "settings": self.settings,
            "styles": {
                name: base64.b64encode(style.bare(paintings=True).to_bytes()).decode()
                for name, style in self.styles.items()
            },
            "backbone": asdict(self.backbone),
            "device": self.device,
            "dtype": self.dtype,
            "versions": dict(self.versions),
            "quantize": self.quantize,
            "photo": None if self.photo is None else asdict(self.photo),
            "mask": None if self.mask is None else asdict(self.mask),
            "control": None if self.control is None else asdict(self.control),
        }
        # The keys are not sorted, because the order of the styles matters (`inst.synthesis.prompts.complete_prompt`).
        return json.dumps(content, allow_nan=False)

    @classmethod
    def from_text(cls, text: str, name: str = "the record") -> PictureRecord:
        """Read a record that `to_text` wrote.

        Args:
            text: the record.
            name: the name of the record in error messages.

        Raises:
            InstError: the record is damaged or cannot be used.
        """
        try:
            if len(text) > _LONGEST:
                raise InstError(f"it has {len(text):,} characters", "use another copy of the picture")
            content = json.loads(text)
            json.dumps(content, ensure_ascii=False).encode()  # fails for incomplete characters, which cannot be printed
            version = read_entry(content, "format", int)
            if version > FORMAT:
                raise InstError("it was written by a newer version of inst", "update inst")
            if "kind" in content:  # see `inst.files.provenance.describe`
                kind, command = read_entry(content, "kind", str), read_entry(content, "command", str)
                raise InstError(f"it is that of a {kind}, which {command} makes", "give that command again")
            return cls(
                command=read_entry(content, "command", str),
                settings=read_entry(content, "settings", dict),
                styles={
                    placeholder: Style.from_bytes(base64.b64decode(data, validate=True), f"the style {placeholder}")
                    for placeholder, data in read_entry(content, "styles", dict).items()
                },
                backbone=BackboneRecord(**_strings(content, "backbone")),
                device=read_entry(content, "device", str),
                dtype=read_entry(content, "dtype", str),
                versions=_strings(content, "versions"),
                quantize=None if content.get("quantize") is None else read_entry(content, "quantize", str),
                photo=None if content["photo"] is None else SourceFile(**_strings(content, "photo")),
                mask=None if content["mask"] is None else SourceFile(**_strings(content, "mask")),
                control=None
                if content.get("control") is None
                else ControlRecord.of(read_entry(content, "control", dict)),
                format=version,
            )
        except InstError as error:
            raise error.with_prefix(f"{name} cannot be used: ") from None
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise InstError(f"{name} is damaged ({reason(error)})", "use another copy of the picture") from None

    def texts(self) -> dict[str, str]:
        """Return the record as the texts of a PNG file, for `inst.pictures.writing.save_picture`."""
        return {KEYWORD: self.to_text()}


def read_record(path: str | Path) -> PictureRecord:
    """Read the record in a PNG file.

    Raises:
        InstError: the file is missing or damaged, or it has no record, or its record is damaged or has a newer format.
    """
    text = read_text_in(path, KEYWORD)
    if text is None:
        raise InstError(
            f"{path} has no record of how it was made",
            "give a PNG file that inst wrote; JPEG files, WebP files and edited copies have no record",
        )
    return PictureRecord.from_text(text, f"The record in {path}")


def _strings(content: dict[str, Any], key: str) -> dict[str, str]:
    entries: dict[str, str] = {name: read_entry(content[key], name, str) for name in read_entry(content, key, dict)}
    return entries
