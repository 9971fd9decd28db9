"""Style: a learned pseudo-word, what it was learned from and with, and the file that keeps it (paper sec. 3.2)."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from inst.arguments import check_path, check_type, checked
from inst.errors import Call, InstError, UsageError
from inst.files.provenance import PROSE, entry, plain, reason
from inst.files.writing import write_bytes_atomically
from inst.pictures.io import decode_picture

if TYPE_CHECKING:
    from inst.backbone.model import Backbone


FORMAT = 1
"""The version of the style file that this package writes, and the newest that it reads."""

KEY = "inst_style"
_MODULE = "module."
_LEARN = "learn the style again"
_LARGEST_HEADER = 100_000_000  # safetensors' own limit
_OTHER_FILES = {
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"GIF8": "a picture",
    b"RIFF": "a picture",
    b"PK\x03\x04": "a pickle or a zip archive, which is never opened, because a pickle can run code",
    **{bytes([0x80, protocol]): "a pickle, which is never opened, because it can run code" for protocol in range(2, 6)},
}


@dataclass(frozen=True, eq=False)
class Style:
    """A painting's style as a pseudo-word: n vectors that stand in a prompt in the place of `[C]`.

    Attributes:
        vectors: [n, d] float32 on the CPU, d the width of the text encoder. Copied, detached and checked.
        fingerprint: identifies the text space that they belong to (`Backbone.fingerprint`).
        denoiser: identifies the UNet that they were learned with (`Backbone.denoiser_fingerprint`); "" if unknown.
        about: provenance, as plain JSON values: name, backbone, variant, steps, seed, settings of the learning, loss,
            paintings as a list of {"name": base name, "sha256": hex}. Paths in it are cut to base names.
        thumbnail: a small PNG of the (first) painting, at most 256 pixels a side, or None.
        module: the weights of the inversion module that made the vectors, for learning on, or None.
        module_config: the module's configuration (`InversionConfig` as a dict), or None.
        widths: how the columns of the vectors are split between the text encoders, in order (`Backbone.text_widths`):
            (768, 1280) for Stable Diffusion XL, else (d,), which is the default.

    Raises:
        InstError: the vectors are not finite.
        ValueError: they have another shape than [n, d], or the widths do not sum to d.
    """

    vectors: Tensor
    fingerprint: str
    denoiser: str = ""
    about: Mapping[str, Any] = field(default_factory=dict)
    thumbnail: bytes | None = None
    module: Mapping[str, Tensor] | None = field(default=None, repr=False)
    module_config: Mapping[str, Any] | None = field(default=None, repr=False)
    widths: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_type("Vectors", self.vectors, Tensor, "give a tensor")
        if self.vectors.dim() != 2 or 0 in self.vectors.shape:
            raise ValueError(f"a style's vectors have the shape [n, d], not {list(self.vectors.shape)}")
        widths = tuple(self.widths) or (self.vectors.shape[1],)
        if not all(isinstance(one, int) and one > 0 for one in widths) or sum(widths) != self.vectors.shape[1]:
            raise ValueError(f"widths {widths} do not split vectors of width {self.vectors.shape[1]}")
        with torch.inference_mode(False):  # vectors made in inference mode could never be learned on
            vectors = self.vectors.detach().to("cpu", torch.float32, copy=True).contiguous()
        if not vectors.isfinite().all():
            raise InstError(
                "The style's vectors hold values that are not finite", f"{_LEARN}, with a lower learning rate"
            )
        object.__setattr__(self, "vectors", vectors)
        object.__setattr__(self, "widths", widths)
        object.__setattr__(self, "about", plain(self.about, PROSE))

    @property
    def name(self) -> str:
        """What to call it in messages and labels."""
        return str(self.about.get("name") or "unnamed")

    @property
    def width_text(self) -> str:
        """The widths for people to read: "768", or "768 + 1280"."""
        return " + ".join(map(str, self.widths))

    def save(self, path: str | Path) -> Path:
        """Write the style as a safetensors file, complete or not at all. The same style gives the same bytes.

        Raises:
            UsageError: `path` does not end in .safetensors. It may be the painting by mistake, and would be lost.
            InstError: the folder does not exist or may not be written to, or the disk is full.
        """
        check_style_name(path)
        return write_bytes_atomically(path, self.to_bytes())

    @classmethod
    def load(cls, path: str | Path) -> Style:
        """Read a style file.

        Raises:
            InstError: the file is missing, empty, truncated or otherwise damaged, or is no style file.
        """
        check_path("A style file", path)
        path = Path(path)
        try:
            with path.open("rb") as file:
                start = file.read(8)
                _check_start(str(path), start)
                # A whole model is not read into memory to find out that it is no style.
                header = file.read(_header_length(start))
                _read_header(str(path), start + header)
                return cls.from_bytes(start + header + file.read(), str(path))
        except FileNotFoundError:
            raise InstError(f"{path}: no such file.") from None
        except IsADirectoryError:
            raise InstError(f"{path} is a folder", "give a style file") from None
        except OSError as error:
            raise InstError(f"{path} cannot be read ({error.strerror or error})", "give a style file") from None
        except MemoryError:
            raise InstError(f"{path} does not fit into memory", "give a style file") from None

    def to_bytes(self) -> bytes:
        """Return what `save` writes."""
        tensors = {"vectors": self.vectors}
        if self.thumbnail:
            tensors["thumbnail"] = torch.frombuffer(bytearray(self.thumbnail), dtype=torch.uint8)
        for key, tensor in (self.module or {}).items():
            tensors[_MODULE + key] = tensor.detach().to("cpu", torch.float32).contiguous()
        content = {
            "format": FORMAT,
            "fingerprint": self.fingerprint,
            "denoiser": self.denoiser,
            "about": self.about,
            "module_config": None if self.module_config is None else plain(self.module_config),
            "widths": list(self.widths),
        }
        # All in one entry: safetensors writes several in no fixed order.
        return safetensors.torch.save(tensors, {KEY: json.dumps(content, sort_keys=True, allow_nan=False)})

    @classmethod
    def from_bytes(cls, data: bytes, name: str = "the style") -> Style:
        """Read what `to_bytes` made. Raises InstError, which calls the data `name`, where it is damaged or foreign."""
        _check_start(name, data[:8])
        content = _read_header(name, data)
        try:
            tensors = safetensors.torch.load(data)
            thumbnail = tensors.pop("thumbnail", None)
            module = {key.removeprefix(_MODULE): tensor for key, tensor in tensors.items() if key.startswith(_MODULE)}
            vectors, about = tensors["vectors"], entry(content, "about", dict)
            if not all(isinstance(one, dict) for one in about.get("paintings", [])):
                raise TypeError("its paintings are no list of objects")
            return cls(
                vectors=vectors,
                fingerprint=entry(content, "fingerprint", str),
                denoiser=entry(content, "denoiser", str),
                about=about,
                thumbnail=None if thumbnail is None else thumbnail.to(torch.uint8).numpy().tobytes(),
                module=module or None,
                module_config=None if content["module_config"] is None else entry(content, "module_config", dict),
                widths=tuple(entry(content, "widths", list)) if "widths" in content else (),
            )
        except InstError as error:
            raise error.about(f"{name}: ") from None
        except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
            raise InstError(f"{name} is damaged ({reason(error)})", f"copy it again, or {_LEARN}") from None

    def check(self, backbone: Backbone) -> str | None:
        """Check that the style fits a backbone.

        Returns:
            One line of warning where the text space is the same but the UNet is another, as with a fine-tuned model:
            the style works, but may look different. None where both are the same, or one of them is not known.

        Raises:
            UsageError: the backbone has another text space; the message names both.
            InstError: the vectors are not as wide as their text space.
        """
        here = f"{backbone.name} " if backbone.name else ""
        if self.fingerprint != backbone.fingerprint:
            there = f" of {self.about['backbone']}" if self.about.get("backbone") else ""
            raise UsageError(
                f'The style "{self.name}" belongs to the text space {self.fingerprint}{there}, but the backbone {here}'
                f"has the text space {backbone.fingerprint}",
                f"use the backbone it was learned with, or {_LEARN}",
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
                f'The style "{self.name}" was learned with another UNet ({self.denoiser}) over the same text space '
                f"than the backbone {here}has ({backbone.denoiser_fingerprint}): it works, but may look different."
            )
        return None

    def bare(self, *, thumbnail: bool) -> Style:
        """Return the style without its inversion module, and without its thumbnail unless that is wanted."""
        return replace(self, module=None, module_config=None, thumbnail=self.thumbnail if thumbnail else None)

    def painting(self) -> Tensor | None:
        """Decode the thumbnail: [3, H, W] in [-1, 1], or None. Raises InstError where it is damaged."""
        if self.thumbnail is None:
            return None
        return decode_picture(self.thumbnail, f'The thumbnail of the style "{self.name}"')

    @classmethod
    def mix(cls, styles: Sequence[tuple[Style, float]]) -> Style:
        """Mix styles: the weighted mean of their vectors, the k-th vectors of all making the k-th of the mixture.

        Only the weights' proportions count: they are divided by their sum, so that (1, 1) is the middle and (2, 1) two
        thirds of the first. Where all but one are 0, the vectors are exactly those of that one. The thumbnail is that
        of the heaviest; there is no inversion module.

        Raises:
            UsageError: something else than pairs of a style and a weight, no style, a weight that is negative or not
                finite, all weights 0, or styles of different text spaces or numbers of vectors.
        """
        pairs = isinstance(styles, Sequence) and all(isinstance(one, tuple | list) and len(one) == 2 for one in styles)
        if not pairs:
            raise UsageError("A mixture is made of pairs of a style and its weight", "give a list of them")
        for style, _ in styles:
            check_type("A style", style, cls, "read one with inst.Style.load")
        weights = [checked("weight", weight, "float") for _, weight in styles]
        total = sum(weights)
        if not (all(weight >= 0 for weight in weights) and 0 < total < math.inf):  # no comparison holds for NaN
            raise UsageError(f"The weights {weights} make no mixture", "give finite ones, none negative and not all 0")
        first = styles[0][0]
        for style, _ in styles[1:]:
            for what, one, other in (
                ("text spaces", first.fingerprint, style.fingerprint),
                ("widths", first.width_text, style.width_text),
                ("numbers of vectors", first.vectors.shape[0], style.vectors.shape[0]),
            ):
                if one != other:
                    raise UsageError(
                        f'The styles "{first.name}" and "{style.name}" have different {what} ({one} and {other})',
                        "mix styles that were learned with the same backbone and as many vectors",
                    )
        shares = [(style, weight / total) for style, weight in styles if weight > 0]
        vectors = torch.stack([share * style.vectors.double() for style, share in shares]).sum(dim=0)
        denoisers = {style.denoiser for style, _ in shares if style.denoiser}
        heaviest = max(shares, key=lambda pair: pair[1])[0]
        about: dict[str, Any] = {
            "name": " + ".join(f"{share:.0%} {style.name}" for style, share in shares),
            "variant": "mix",
            "paintings": [painting for style, _ in shares for painting in style.about.get("paintings", [])],
            "mixed": [{"weight": share, "about": style.about} for style, share in shares],
        }
        if heaviest.about.get("backbone"):
            about["backbone"] = heaviest.about["backbone"]
        return cls(
            vectors=vectors,
            fingerprint=first.fingerprint,
            denoiser="several" if len(denoisers) > 1 else next(iter(denoisers), ""),
            about=about,
            thumbnail=heaviest.thumbnail,
            widths=first.widths,
        )


def check_style_name(path: str | Path) -> None:
    """Raise UsageError unless a file's name ends as a style's must: .safetensors."""
    check_path("A style file", path)
    if Path(path).suffix.lower() != ".safetensors":
        raise UsageError(f"{path} cannot be a style file", "give a name that ends in .safetensors")


def _check_start(name: str, start: bytes) -> None:
    if not start:
        raise InstError(f"{name} is empty (0 bytes)", f"copy the style again, or {_LEARN}")
    for magic, kind in _OTHER_FILES.items():
        if start.startswith(magic):
            raise InstError(f"{name} is {kind}", "give a style file, which ", Call("learn"), " makes from a painting")
    if len(start) < 8 or not 2 <= _header_length(start) <= _LARGEST_HEADER:
        raise InstError(f"{name} is no safetensors file", "give a style file, which ", Call("learn"), " makes")


def _header_length(start: bytes) -> int:
    length: int = struct.unpack("<Q", start[:8])[0]
    return length


def _read_header(name: str, data: bytes) -> dict[str, Any]:
    """Read what a style file's metadata say."""
    length = _header_length(data)
    try:
        if len(data) < 8 + length:
            raise ValueError("its end is missing")
        header = json.loads(data[8 : 8 + length])
        if not isinstance(header, dict):
            raise ValueError("its header is no JSON object")
        metadata = header.get("__metadata__") or {}
        if KEY not in metadata:
            raise InstError(
                f"{name} is a safetensors file, but no style of InST's",
                "give a style file, which ",
                Call("learn"),
                " makes, or make one of an embedding with ",
                Call("import_style"),
            )
        content: dict[str, Any] = json.loads(metadata[KEY])
        if content["format"] > FORMAT:
            raise InstError(f"{name} was written by a newer version of inst", "update inst")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InstError(f"{name} is damaged ({reason(error)})", f"copy it again, or {_LEARN}") from None
    return content
