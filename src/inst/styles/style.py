"""A style: the learned pseudo-word, its provenance, and its file (paper sec. 3.2)."""

from __future__ import annotations

import json
import math
import os
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from inst.arguments import check_path, check_type, checked
from inst.errors import Call, InstError, RemedyPiece, UsageError
from inst.files.git_lfs import refuse_pointer
from inst.files.listing import readable_name
from inst.files.pickles import is_safetensors
from inst.files.provenance import PROSE_KEYS, read_entry, reason, to_plain
from inst.files.reading import open_file, parse_json, translate_reading
from inst.files.tensors import HEADER_BYTES
from inst.files.writing import write_bytes_atomically
from inst.pictures.stored import decode_picture
from inst.texts import cut

if TYPE_CHECKING:
    from inst.backbone.model import Backbone


FORMAT = 2
"""Version of the style file. This package writes this version, and reads it and older ones."""

MOST_PAINTINGS = 4
"""Number of paintings of a style that give a picture its tone and its strokes at most, those with the largest shares.
In style attention, each costs as much as one more picture in the batch."""

KEY = "inst_style"
_MODULE = "module."
_PAINTING = "painting."
_THUMBNAIL = "thumbnail"  # of format 1: a PNG of the first painting, at most 256 pixels a side
_LEARN = "learn the style again"
_LARGEST_FILE = 2 * 2**30  # bytes; a style with a module for Stable Diffusion XL has 0.4 GB
_PICTURE = "a picture"
_OTHER_FILES = {
    b"\x89PNG": _PICTURE,
    b"\xff\xd8\xff": _PICTURE,
    b"GIF8": _PICTURE,
    b"RIFF": _PICTURE,
    b"PK\x03\x04": "a pickle or a zip archive, as other programs write",
    **{bytes([0x80, protocol]): "a pickle, as other programs write" for protocol in range(2, 6)},
}


_PATH = re.compile(r"[/\\~.]|[A-Za-z]:[/\\]|.*\.[A-Za-z]\w{1,10}$")
"""How a path begins, or how one to a file ends, that must not get into a file of a style."""


@dataclass(frozen=True, eq=False)
class Style:
    """The style of a painting as a pseudo-word: n vectors that replace `[C]` in a prompt.

    Attributes:
        vectors: [n, d] float32 on the CPU; d is the width of the text encoder. They are copied, detached and checked.
            n = 0 is a style without a pseudo-word: only its paintings give the style (`inst.sampling.attention`).
        fingerprint: identifies the text space of the vectors (`Backbone.fingerprint`).
        denoiser: identifies the UNet that they were learned with (`Backbone.denoiser_fingerprint`); "" if unknown.
        about: provenance as plain JSON values: name, backbone, variant, steps, seed, learning settings, loss, and
            paintings as a list of {"name": base name, "sha256": hex}. Paths are cut to base names, the name of the
            style only if it looks like a path.
        paintings: the picture files of the paintings that it comes from (`inst.pictures.stored.encode_painting`).
        shares: the part of each painting in the style, of any sum. The default is equal parts.
        module: weights of the inversion module that made the vectors, to continue learning; or None.
        module_config: configuration of the module (`InversionConfig` as a dict), or None.
        widths: number of columns of the vectors for each text encoder, in order (`Backbone.text_widths`): (768, 1280)
            for Stable Diffusion XL. The default is (d,), for one text encoder.

    Raises:
        InstError: the vectors are not finite.
        ValueError: the shape of the vectors is not [n, d], or the widths do not sum to d; or a painting is empty.
    """

    vectors: Tensor
    fingerprint: str
    denoiser: str = ""
    about: Mapping[str, Any] = field(default_factory=dict)
    paintings: tuple[bytes, ...] = field(default=(), repr=False)
    shares: tuple[float, ...] = ()
    module: Mapping[str, Tensor] | None = field(default=None, repr=False)
    module_config: Mapping[str, Any] | None = field(default=None, repr=False)
    widths: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_type("Vectors", self.vectors, Tensor, "give a tensor")
        if self.vectors.dim() != 2 or self.vectors.shape[1] == 0:
            raise ValueError(f"the vectors of a style have the shape [n, d], not {list(self.vectors.shape)}")
        widths = tuple(self.widths) or (self.vectors.shape[1],)
        if not all(isinstance(width, int) and width > 0 for width in widths) or sum(widths) != self.vectors.shape[1]:
            raise ValueError(f"widths {widths} do not split vectors of width {self.vectors.shape[1]}")
        with torch.inference_mode(False):  # tensors made in inference mode cannot be trained later
            vectors = self.vectors.detach().to("cpu", torch.float32, copy=True).contiguous()
        if not vectors.isfinite().all():
            raise InstError(
                "The vectors of the style hold values that are not finite", f"{_LEARN}, with a lower learning rate"
            )
        object.__setattr__(self, "vectors", vectors)
        object.__setattr__(self, "widths", widths)
        if not all(self.paintings):
            raise ValueError("a painting of a style is an empty file")
        shares = tuple(self.shares) or (1 / len(self.paintings),) * len(self.paintings) if self.paintings else ()
        total = sum(shares)
        if len(shares) != len(self.paintings) or any(share < 0 for share in shares) or not 0 <= total < math.inf:
            raise ValueError(f"shares {shares} do not fit {len(self.paintings)} paintings")
        object.__setattr__(self, "paintings", tuple(self.paintings))
        object.__setattr__(self, "shares", shares)
        about = to_plain(self.about, PROSE_KEYS)
        name = self.about.get("name")
        if isinstance(name, str) and not _PATH.match(name):
            about["name"] = readable_name(name)  # a chosen name may have a slash, as in "Art Nouveau 1890/1910"
        object.__setattr__(self, "about", about)

    @property
    def has_word(self) -> bool:
        """Whether the style has a pseudo-word. Without one, only its paintings give the style."""
        return len(self.vectors) > 0

    @property
    def name(self) -> str:
        """The name of the style in messages and labels, shortened to 200 characters."""
        return cut(str(self.about.get("name") or "unnamed"), 200)

    @property
    def width_text(self) -> str:
        """The widths as text for messages: "768", or "768 + 1280"."""
        return " + ".join(map(str, self.widths))

    def save(self, path: str | Path) -> Path:
        """Write the style as a safetensors file. The same style gives the same bytes.

        The file is written completely or not at all.

        Raises:
            UsageError: `path` does not end in .safetensors. It may be the painting by mistake; the style would
                overwrite it.
            InstError: the folder does not exist or is not writable, or the disk is full.
        """
        check_style_name(path)
        return write_bytes_atomically(path, self.to_bytes())

    @classmethod
    def load(cls, path: str | Path) -> Style:
        """Read a style file.

        Raises:
            InstError: the file is missing, empty, truncated or damaged, or it is not a style file.
        """
        check_path("A style file", path)
        path = Path(path)
        refuse_pointer(path)
        with open_file(path) as file, translate_reading(path):
            start = file.read(9)
            _check_start(str(path), start)
            # The header is checked first, so that a whole model given by mistake is not read into memory.
            header = file.read(_header_length(start) - 1)
            _read_header(str(path), start + header)
            if file.seek(0, os.SEEK_END) > _LARGEST_FILE:
                raise InstError(f"{path} is larger than any style", "give another file")
            file.seek(0)
            return cls.from_bytes(file.read(), str(path))

    def to_bytes(self) -> bytes:
        """Return the bytes of the style file that `save` writes."""
        tensors = {"vectors": self.vectors}
        for index, painting in enumerate(self.paintings):
            tensors[f"{_PAINTING}{index}"] = torch.frombuffer(bytearray(painting), dtype=torch.uint8)
        for key, tensor in (self.module or {}).items():
            tensors[_MODULE + key] = tensor.detach().to("cpu", torch.float32).contiguous()
        content = {
            "format": FORMAT,
            "fingerprint": self.fingerprint,
            "denoiser": self.denoiser,
            "about": self.about,
            "module_config": None if self.module_config is None else to_plain(self.module_config),
            "widths": list(self.widths),
            "shares": list(self.shares),
        }
        # All metadata are in one entry, because safetensors writes several entries in no fixed order.
        return safetensors.torch.save(tensors, {KEY: json.dumps(content, sort_keys=True, allow_nan=False)})

    @classmethod
    def from_bytes(cls, data: bytes, name: str = "the style") -> Style:
        """Read a style from the bytes that `to_bytes` returned.

        Args:
            data: the bytes.
            name: the name of the data in error messages.

        Raises:
            InstError: the data are damaged, or are not a style.
        """
        _check_start(name, data[:9])
        content = _read_header(name, data)
        try:
            tensors = safetensors.torch.load(data)
            pictures = sorted(
                (key for key in tensors if key.startswith(_PAINTING)), key=lambda key: int(key.removeprefix(_PAINTING))
            ) or [key for key in tensors if key == _THUMBNAIL]
            module = {key.removeprefix(_MODULE): tensor for key, tensor in tensors.items() if key.startswith(_MODULE)}
            vectors, about = tensors["vectors"], read_entry(content, "about", dict)
            if not all(one.is_floating_point() for one in (vectors, *module.values())):
                raise TypeError("its vectors or its module are not real numbers")
            if not all(isinstance(painting, dict) for painting in about.get("paintings", [])):
                raise TypeError("its paintings are not a list of objects")
            return cls(
                vectors=vectors,
                fingerprint=read_entry(content, "fingerprint", str),
                denoiser=read_entry(content, "denoiser", str),
                about=about,
                paintings=tuple(tensors[key].to(torch.uint8).numpy().tobytes() for key in pictures),
                shares=tuple(map(float, read_entry(content, "shares", list))) if "shares" in content else (),
                module=module or None,
                module_config=None if content["module_config"] is None else read_entry(content, "module_config", dict),
                widths=tuple(read_entry(content, "widths", list)) if "widths" in content else (),
            )
        except InstError as error:
            raise error.with_prefix(f"{name}: ") from None
        except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError, OverflowError) as error:
            raise InstError(f"{name} is damaged ({reason(error)})", f"copy it again, or {_LEARN}") from None

    def check(self, backbone: Backbone) -> str | None:
        """Check that the style fits a backbone.

        Returns:
            One line of warning if the text space is the same but the UNet is different, as in a fine-tuned model: the
            style works, but the result may look different. None if both are the same, or if one UNet is unknown.

        Raises:
            UsageError: the backbone has a different text space; the message names both.
            InstError: the width of the vectors differs from the width of their text space.
        """
        if not self.has_word:  # the paintings alone fit every backbone
            return None
        backbone_name = f"{backbone.name} " if backbone.name else ""
        if self.fingerprint != backbone.fingerprint:
            origin = f" of {cut(str(self.about['backbone']), 60)}" if self.about.get("backbone") else ""
            raise UsageError(
                f'The style "{self.name}" belongs to the text space {cut(self.fingerprint, 60)}{origin}, but the '
                f"backbone {backbone_name}has the text space {backbone.fingerprint}",
                f"use the backbone that the style was learned with, or {_LEARN}",
            )
        width = backbone.text_width
        if self.vectors.shape[1] != width:
            raise InstError(
                f'The style "{self.name}" has vectors of width {self.vectors.shape[1]}, but its text space has width '
                f"{width}",
                f"copy the style file again, or {_LEARN}",
            )
        if self.denoiser and backbone.denoiser_fingerprint and self.denoiser != backbone.denoiser_fingerprint:
            return (
                f'The style "{self.name}" was learned with another UNet ({cut(self.denoiser, 60)}) than that of the '
                f"backbone {backbone_name}({backbone.denoiser_fingerprint}), with the same text space: the style "
                "works, but the result may look different."
            )
        return None

    def bare(self, *, paintings: bool) -> Style:
        """Return a copy without the inversion module. With `paintings`, it keeps those that `main_paintings` gives."""
        kept = self._main() if paintings else []
        return replace(
            self,
            module=None,
            module_config=None,
            paintings=tuple(self.paintings[index] for index in kept),
            shares=tuple(self.shares[index] for index in kept),
        )

    def main_paintings(self) -> list[tuple[Tensor, float]]:
        """Decode the paintings with the largest shares, at most `MOST_PAINTINGS`, for tone and style attention.

        Returns:
            Each painting, [3, H, W] in [-1, 1], with its share. These shares sum to 1. The tensors are shared between
            calls, and must not be changed.

        Raises:
            InstError: a painting is damaged.
        """
        kept = self._main()
        total = sum(self.shares[index] for index in kept)
        name = f'The painting of the style "{self.name}"'
        return [(_decode(self.paintings[index], name), self.shares[index] / total) for index in kept]

    def _main(self) -> list[int]:
        falling = sorted(range(len(self.shares)), key=lambda index: -self.shares[index])
        return sorted(index for index in falling[:MOST_PAINTINGS] if self.shares[index] > 0)

    def painting(self, index: int = 0) -> Tensor:
        """Decode a painting: [3, H, W] in [-1, 1]. Raises InstError if it is damaged."""
        return decode_picture(self.paintings[index], f'The painting of the style "{self.name}"')

    @classmethod
    def mix(cls, styles: Sequence[tuple[Style, float]]) -> Style:
        """Mix styles: compute the weighted mean of their vectors.

        Vector k of the mixture is the weighted mean of the vectors k of all styles. The weights are divided by their
        sum: (1, 1) is the middle, and (2, 1) takes two thirds of the first style. If only one weight is not 0, the
        vectors are exactly those of its style. The mixture has the paintings of all styles, with shares in proportion
        to the weights. It has no inversion module.

        Raises:
            UsageError: `styles` is not a list of pairs of a style and a weight, or it is empty; a weight is negative
                or not finite, or all weights are 0; or the styles have different text spaces or numbers of vectors.
        """
        pairs = isinstance(styles, Sequence) and all(
            isinstance(pair, tuple | list) and len(pair) == 2 for pair in styles
        )
        if not pairs:
            raise UsageError("A mixture needs pairs of a style and its weight", "give a list of pairs")
        for style, _ in styles:
            check_type("A style", style, cls, "read one with inst.Style.load")
        weights = [checked("weight", weight, "float") for _, weight in styles]
        total = sum(weights)
        if not (all(weight >= 0 for weight in weights) and 0 < total < math.inf):  # False for NaN too
            raise UsageError(
                f"The weights {weights} make no mixture", "give finite weights: none negative, and not all 0"
            )
        first = styles[0][0]
        for style, _ in styles[1:]:
            for property_name, first_value, value in (
                ("text spaces", first.fingerprint, style.fingerprint),
                ("widths", first.width_text, style.width_text),
                ("numbers of vectors", first.vectors.shape[0], style.vectors.shape[0]),
            ):
                if first_value != value:
                    raise UsageError(
                        f'The styles "{first.name}" and "{style.name}" have different {property_name} ({first_value} '
                        f"and {value})",
                        "mix styles that were learned with the same backbone and the same number of vectors",
                    )
        shares = [(style, weight / total) for style, weight in styles if weight > 0]
        vectors = torch.stack([share * style.vectors.double() for style, share in shares]).sum(dim=0)
        denoisers = {style.denoiser for style, _ in shares if style.denoiser}
        main_style = max(shares, key=lambda pair: pair[1])[0]
        paintings = [
            (painting, share * part)
            for style, share in shares
            for painting, part in zip(style.paintings, style.shares, strict=True)
        ]
        total_share = sum(part for _, part in paintings)
        about: dict[str, Any] = {
            "name": " + ".join(f"{share:.0%} {style.name}" for style, share in shares),
            "variant": "mix",
            "paintings": [painting for style, _ in shares for painting in style.about.get("paintings", [])],
            "mixed": [{"weight": share, "about": style.about} for style, share in shares],
        }
        if main_style.about.get("backbone"):
            about["backbone"] = main_style.about["backbone"]
        return cls(
            vectors=vectors,
            fingerprint=first.fingerprint,
            denoiser="several" if len(denoisers) > 1 else next(iter(denoisers), ""),
            about=about,
            paintings=tuple(painting for painting, _ in paintings),
            shares=tuple(part / total_share for _, part in paintings),
            widths=first.widths,
        )


@lru_cache(maxsize=8)
def _decode(painting: bytes, name: str) -> Tensor:
    """Decode a painting, which takes longer than some of the steps that it takes part in."""
    return decode_picture(painting, name)


def check_style_name(path: str | Path) -> None:
    """Raise UsageError unless the file name of a style ends in .safetensors, and is not that of a learning state."""
    check_path("A style file", path)
    if Path(path).suffix.lower() != ".safetensors":
        raise UsageError(f"{path} cannot be a style file", "give a name that ends in .safetensors")
    if Path(path).name.lower().endswith(".state.safetensors"):
        raise UsageError(
            f"{path} cannot be a style file: .state.safetensors is the ending of interrupted learnings",
            "give another name",
        )


def _check_start(name: str, start: bytes) -> None:
    if not start:
        raise InstError(f"{name} is empty (0 bytes)", f"copy the style again, or {_LEARN}")
    for magic, kind in _OTHER_FILES.items():
        # The length of a header can look like the first bytes of a pickle. After it comes the header, a JSON object.
        if start.startswith(magic) and not is_safetensors(start):
            remedy: list[RemedyPiece] = ["give a style file, which ", Call("learn"), " makes from a painting"]
            if kind != _PICTURE:
                remedy += [", or make one from an embedding with ", Call("import_style")]
            raise InstError(f"{name} is {kind}", *remedy)
    if len(start) < 8 or not 2 <= _header_length(start) <= HEADER_BYTES:
        raise InstError(f"{name} is not a safetensors file", "give a style file, which ", Call("learn"), " makes")


def _header_length(start: bytes) -> int:
    length: int = struct.unpack("<Q", start[:8])[0]
    return length


def _read_header(name: str, data: bytes) -> dict[str, Any]:
    """Read the metadata of a style file."""
    length = _header_length(data)
    try:
        if len(data) < 8 + length:
            raise ValueError("its end is missing")
        header = _parse(data[8 : 8 + length])
        if not isinstance(header, dict):
            raise ValueError("its header is not a JSON object")
        metadata = header.get("__metadata__") or {}
        if KEY not in metadata:
            raise InstError(
                f"{name} is a safetensors file, but not an InST style",
                "give a style file, which ",
                Call("learn"),
                " makes, or make one from an embedding with ",
                Call("import_style"),
            )
        content: dict[str, Any] = _parse(metadata[KEY])
        if content["format"] > FORMAT:
            raise InstError(f"{name} was written by a newer version of inst", "update inst")
    except (ValueError, TypeError, KeyError) as error:
        raise InstError(f"{name} is damaged ({reason(error)})", f"copy it again, or {_LEARN}") from None
    return content


def _parse(text: Any) -> Any:
    """Return the value of a JSON text of a style file. Raises ValueError or TypeError if it cannot be read."""
    if not isinstance(text, str | bytes):
        raise TypeError("its description is not a text")
    try:
        return parse_json(text, "its header", finite=True)
    except InstError as error:
        raise ValueError(error.problem) from None
