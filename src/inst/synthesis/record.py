"""What made a picture: everything needed to make it again, carried by the picture itself in a PNG text chunk."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inst.errors import InstError
from inst.files.provenance import FORMAT, KEYWORD, PROSE, SourceFile, base_name, entry, plain, reason, versions
from inst.pictures.io import Photo, read_texts
from inst.styles.style import Style

if TYPE_CHECKING:
    from inst.backbone.model import Backbone


@dataclass(frozen=True)
class BackboneRecord:
    """Which backbone: what it is called (a name on the model hub as it is, but no folder), its text space, its UNet."""

    name: str
    fingerprint: str
    denoiser: str

    def __post_init__(self) -> None:
        from inst.backbone.loading.hub import is_hub_name

        if not is_hub_name(self.name):
            object.__setattr__(self, "name", base_name(self.name))


@dataclass(frozen=True)
class ControlRecord:
    """Which ControlNet (no folder, but what tells its weights from others), and the rest of `inst.Control`.

    The picture is None where the photo's own edges were taken.
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
        """Read what `dataclasses.asdict` made. Raises KeyError or TypeError where an entry is missing or wrong."""
        return cls(
            model=entry(content, "model", str),
            fingerprint=entry(content, "fingerprint", str),
            kind=entry(content, "kind", str),
            scale=entry(content, "scale", float),
            picture=None if content["picture"] is None else SourceFile(**_strings(content, "picture")),
        )


@dataclass(frozen=True, eq=False)
class PictureRecord:
    """What made a picture.

    No folder is named: of every path only the base name is kept, so that a picture can be passed on without telling how
    its maker's disk is laid out.

    Attributes:
        command: "transfer" or "generate"; "preview" is what learning shows on the way; "sheet" and "demo" are the
            sheets of those commands.
        settings: its keyword arguments, as plain JSON values; prompts are kept to the letter.
        styles: each placeholder's style, without its inversion module; of a sheet, all that it shows.
        backbone: what was used.
        device: where it was computed, such as "cpu" or "cuda:0": the same bits can be expected on the same only.
        dtype: the backbone's precision, such as "bfloat16".
        versions: of inst, Python, and the libraries that computed.
        photo: the photo that was transferred, or None.
        mask: the mask that restricted the style, or None.
        control: the structure control, or None.
    """

    command: str
    settings: Mapping[str, Any]
    styles: Mapping[str, Style]
    backbone: BackboneRecord
    device: str
    dtype: str
    versions: Mapping[str, str] = field(default_factory=dict)
    photo: SourceFile | None = None
    mask: SourceFile | None = None
    control: ControlRecord | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "settings", plain(self.settings, PROSE))

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
        thumbnails: bool = False,
    ) -> PictureRecord:
        """Note down what is being made, with the versions of what makes it.

        Args:
            thumbnails: keep the styles' thumbnails, which the tone "painting" needs. They are most of a record's size.
        """
        return cls(
            command=command,
            settings=settings,
            styles={name: style.bare(thumbnail=thumbnails) for name, style in styles.items()},
            backbone=BackboneRecord(backbone.name, backbone.fingerprint, backbone.denoiser_fingerprint),
            device=str(backbone.device),
            dtype=str(backbone.dtype).removeprefix("torch."),
            versions=versions(),
            photo=SourceFile(photo.name, photo.sha256) if isinstance(photo, Photo) else photo,
            mask=mask,
            control=control,
        )

    def to_text(self) -> str:
        """Write the record as JSON in ASCII; the same record gives the same text. `from_text` reads it."""
        content = {
            "format": FORMAT,
            "command": self.command,
            "settings": self.settings,
            "styles": {
                name: base64.b64encode(style.bare(thumbnail=True).to_bytes()).decode()
                for name, style in self.styles.items()
            },
            "backbone": asdict(self.backbone),
            "device": self.device,
            "dtype": self.dtype,
            "versions": dict(self.versions),
            "photo": None if self.photo is None else asdict(self.photo),
            "mask": None if self.mask is None else asdict(self.mask),
            "control": None if self.control is None else asdict(self.control),
        }
        # Not sorted by key: of several styles, the order counts (`inst.synthesis.prompts.complete_prompt`).
        return json.dumps(content, allow_nan=False)

    @classmethod
    def from_text(cls, text: str, name: str = "the record") -> PictureRecord:
        """Read what `to_text` wrote. Raises InstError, which calls the record `name`, where it is damaged."""
        try:
            content = json.loads(text)
            json.dumps(content, ensure_ascii=False).encode()  # or an error: halves of characters cannot be printed
            if entry(content, "format", int) > FORMAT:
                raise InstError("it was written by a newer version of inst", "update inst")
            if "kind" in content:  # see `inst.files.provenance.describe`
                what, command = entry(content, "kind", str), entry(content, "command", str)
                raise InstError(f"it is that of a {what}, which {command} makes", "give that command again")
            return cls(
                command=entry(content, "command", str),
                settings=entry(content, "settings", dict),
                styles={
                    placeholder: Style.from_bytes(base64.b64decode(data, validate=True), f"the style {placeholder}")
                    for placeholder, data in entry(content, "styles", dict).items()
                },
                backbone=BackboneRecord(**_strings(content, "backbone")),
                device=entry(content, "device", str),
                dtype=entry(content, "dtype", str),
                versions=_strings(content, "versions"),
                photo=None if content["photo"] is None else SourceFile(**_strings(content, "photo")),
                mask=None if content["mask"] is None else SourceFile(**_strings(content, "mask")),
                control=None if content.get("control") is None else ControlRecord.of(entry(content, "control", dict)),
            )
        except InstError as error:
            raise error.about(f"{name} cannot be used: ") from None
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise InstError(f"{name} is damaged ({reason(error)})", "use another copy of the picture") from None

    def texts(self) -> dict[str, str]:
        """Return the record as the texts of a PNG file, for `inst.pictures.io.save_picture`."""
        return {KEYWORD: self.to_text()}


def read_record(path: str | Path) -> PictureRecord:
    """Read the record that a PNG file carries.

    Raises:
        InstError: the file is missing or broken, carries no record, or one that is damaged or of a newer version.
    """
    text = read_texts(path).get(KEYWORD)
    if text is None:
        raise InstError(
            f"{path} does not say what made it: only PNG files as inst wrote them do, not JPEG, WebP or edited copies."
        )
    return PictureRecord.from_text(text, f"The record in {path}")


def _strings(content: dict[str, Any], key: str) -> dict[str, str]:
    entries: dict[str, str] = {name: entry(content[key], name, str) for name in entry(content, key, dict)}
    return entries
