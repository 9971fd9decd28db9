"""Embeddings of other programs as styles: what `inst.styles.exporting` writes, and what is found on the net."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from inst.errors import Argument, InstError, UsageError
from inst.files.pickles import UnsafePickleError, holds_numbers, read_torch_pickle
from inst.files.provenance import SourceFile, reason
from inst.pictures.io import Photo, make_thumbnail, open_picture, read_texts
from inst.styles.a1111_pixels import hidden_text
from inst.styles.exporting import EMBEDDING, ENCODERS, PNG_TENSOR, PNG_TEXT
from inst.styles.reference_code import CLASSES, PickledModule, ReferenceInversion, vector_of
from inst.styles.style import KEY, Style
from inst.version import __version__

if TYPE_CHECKING:
    from inst.backbone.model import Backbone


_MODELS = {(768,): "Stable Diffusion 1.x", (1024,): "Stable Diffusion 2.x", (768, 1280): "Stable Diffusion XL"}
_LARGEST = 200_000_000
"""Bytes beyond which a file is taken for a model, and not read. The largest embeddings have some 10 million."""
_PARAMETERS = "torch.nn.modules.container.ParameterDict"


@dataclass(frozen=True, eq=False)
class Embedding:
    """What a file of another program holds.

    Attributes:
        vectors: [n, d].
        widths: how the d columns are split between text encoders.
        name: what the file calls it, or the file's own name.
        format: the program that the file is of, or "sdxl", which all agree on.
    """

    vectors: Tensor
    widths: tuple[int, ...]
    name: str
    format: str


def import_style(
    backbone: Backbone,
    path: str | Path,
    *,
    name: str | None = None,
    painting: Photo | None = None,
    as_reference: bool = False,
) -> Style:
    """Make a style of another program's embedding, or of the reference code's `embeddings.pt`.

    Args:
        backbone: the model that the embedding was learned with, or one with the same text encoder.
        path: the file: what `export_style` writes; A1111's `.pt`; diffusers' `learned_embeds.bin`; textual inversion's
            own `embeddings.pt`; or the reference's.
        name: of the style; by default what the file calls it.
        painting: that the embedding was learned from. Gives the style its thumbnail, and so its palette. The
            reference's `embeddings.pt` gives no vector without it (`inst.styles.reference_code`).
        as_reference: for the reference's `embeddings.pt`: look at the painting as the reference does.

    Raises:
        UsageError: the embedding has another width than the backbone's text space; a painting is needed, or
            `as_reference` means nothing for the file.
        InstError: the file is missing, damaged, or of another kind; or a pickle that asks for anything but weights,
            of which nothing is run.
    """
    path = Path(path)
    found = check_import(path, painting is not None, as_reference)
    shown: dict[str, Any] = {}
    if isinstance(found, ReferenceInversion):
        assert painting is not None
        _check_widths(path, (found.width,), backbone)
        vectors = vector_of(found, backbone, painting, as_reference)
        found = Embedding(vectors, (found.width,), Path(painting.name).stem or path.stem, "InST reference")
        shown = {"as_reference": as_reference}
    _check_widths(path, found.widths, backbone)
    source = SourceFile.of(path)
    return Style(
        vectors=found.vectors,
        fingerprint=backbone.fingerprint,
        about={
            "name": name or found.name,
            "backbone": backbone.name,
            "variant": "imported",
            "imported": {"format": found.format, "name": source.name, "sha256": source.sha256, **shown},
            "paintings": [{"name": painting.name, "sha256": painting.sha256}] if painting else [],
            "inst": __version__,
        },
        thumbnail=make_thumbnail(painting.picture) if painting else None,
        widths=found.widths,
    )


def check_import(path: str | Path, painted: bool, as_reference: bool) -> Embedding | ReferenceInversion:
    """Read a file, and check what `import_style` is asked for, as far as that can be done without a backbone.

    `painted` says whether a painting is given. Raises as `import_style` does.
    """
    found = read_embedding(path)
    if isinstance(found, Embedding) and as_reference:
        raise UsageError(
            f"{path} is no embeddings.pt of the reference code", "leave ", Argument("as_reference"), " out"
        )
    if isinstance(found, ReferenceInversion) and not painted:
        raise UsageError(
            f"{path} holds no vector, only the module that makes it of the painting", "give its ", Argument("painting")
        )
    return found


def read_embedding(path: str | Path) -> Embedding | ReferenceInversion:
    """Read another program's embedding, whatever the file's ending; or the module of a reference's `embeddings.pt`.

    Raises:
        UsageError: the file is a style already.
        InstError: it is missing, damaged, or of another kind; or a pickle that asks for anything but weights.
    """
    path = Path(path)
    try:
        if path.stat().st_size > _LARGEST:
            raise InstError(
                f"{path} is too large for an embedding", "give one, and a whole model as ", Argument("backbone")
            )
        with path.open("rb") as file:
            start = file.read(4)
    except FileNotFoundError:
        raise InstError(f"{path}: no such file.") from None
    except OSError as error:
        raise InstError(f"{path} cannot be read ({error.strerror or error})", "give an embedding") from None
    if start.startswith((b"\x89PNG", b"RIFF")):  # WebP without loss keeps pixels too
        return _identify(_read_picture(path), path)
    if start.startswith((b"PK\x03\x04", b"\x80")):
        return _identify(_read_pickle(path), path)
    return _identify(_read_safetensors(path), path)


def _identify(content: Any, path: Path) -> Embedding | ReferenceInversion:
    """Find the vectors in what a file held."""
    if isinstance(content, Tensor):
        content = {path.stem: content}
    if not isinstance(content, Mapping) or not content:
        raise _unknown(path, content)
    if "attention" in content:
        try:
            return ReferenceInversion.of(content["attention"])
        except (KeyError, ValueError, TypeError) as error:
            raise InstError(f"{path} is no embeddings.pt of the reference code ({reason(error)}).") from None
    if "string_to_param" in content:
        stored = content["string_to_param"]
        if isinstance(stored, PickledModule):  # textual inversion's own files hold a ParameterDict
            stored = vars(stored).get("_parameters")
        if not isinstance(stored, Mapping) or len(stored) != 1:
            raise InstError(f"{path} does not hold exactly one embedding", "give a file with one")
        called = content.get("name")
        return _embedding(path, {"": next(iter(stored.values()))}, called if isinstance(called, str) else "", "A1111")
    if set(content) == set(ENCODERS):
        return _embedding(path, {key: content[key] for key in ENCODERS}, "", "sdxl")
    if len(content) == 1:
        ((called, tensor),) = content.items()
        if called == EMBEDDING:
            return _embedding(path, {"": tensor}, "", "A1111")
        return _embedding(path, {"": tensor}, str(called).strip("<>"), "diffusers")
    raise _unknown(path, content)


def _embedding(path: Path, parts: Mapping[str, Any], name: str, kind: str) -> Embedding:
    tensors = []
    for part in parts.values():
        tensor = part[None] if isinstance(part, Tensor) and part.dim() == 1 else part
        if not _is_table(tensor):
            raise InstError(f"{path} does not hold vectors of the shape [n, d]", "give an embedding")
        tensor = tensor.detach().float()
        if not tensor.isfinite().all():
            raise InstError(f"{path} holds values that are not finite", "give another embedding")
        tensors.append(tensor)
    if len({len(tensor) for tensor in tensors}) > 1:
        counts = " and ".join(str(len(tensor)) for tensor in tensors)
        raise InstError(f"{path} holds {counts} vectors for its text encoders, which should be as many.")
    return Embedding(torch.cat(tensors, dim=1), tuple(t.shape[1] for t in tensors), name or path.stem, kind)


def _is_table(tensor: Any) -> bool:
    if not isinstance(tensor, Tensor) or not holds_numbers(tensor) or not tensor.is_floating_point():
        return False
    # A pickle can say of a single number that it fills any shape.
    return tensor.dim() == 2 and 0 < 4 * tensor.numel() <= _LARGEST


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, "pt") as file:
            own = KEY in (file.metadata() or {})
            content = {} if own else {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise InstError(
            f"{path} is no embedding that can be read ({reason(error)})", "give a .safetensors, .pt, .bin or .png file"
        ) from None
    if own:
        raise UsageError(f"{path} is a style of InST's already", "use it as it is")
    return content


def _read_pickle(path: Path) -> Any:
    """Read a file of `torch.save`'s through PyTorch's loader of weights, with stand-ins for the modules' classes."""
    try:
        return read_torch_pickle(path, dict.fromkeys((*CLASSES, _PARAMETERS), PickledModule))
    except UnsafePickleError as error:
        raise InstError(f"{path} is refused: {error}", "ask for it as .safetensors") from None
    except Exception:  # a damaged pickle can fail in any way; whichever it is, nothing was run
        raise InstError(
            f"{path} is no pickle of weights that can be read", "copy it again, or ask for it as .safetensors"
        ) from None


def _read_picture(path: Path) -> Any:
    text = read_texts(path).get(PNG_TEXT)
    try:
        content = hidden_text(open_picture(path)) if text is None else base64.b64decode(text, validate=True)
        if content is None:
            raise InstError(
                f"{path} carries no embedding, neither in a text chunk ({PNG_TEXT}) nor in its pixels. If it is one of "
                f"A1111's, it was resized or converted",
                "ask for the file itself",
            )
        return json.loads(content, object_hook=_tensor_of)
    except (binascii.Error, ValueError, TypeError, RuntimeError, RecursionError, OverflowError) as error:
        raise InstError(f"{path}: its embedding is damaged ({reason(error)})", "copy the picture again") from None


def _tensor_of(entry: dict[str, Any]) -> Any:
    return torch.tensor(entry[PNG_TENSOR], dtype=torch.float32) if PNG_TENSOR in entry else entry


def _check_widths(path: Path, widths: tuple[int, ...], backbone: Backbone) -> None:
    def named(widths: tuple[int, ...]) -> str:
        kind = f" ({_MODELS[widths]})" if widths in _MODELS else ""
        return f"width {' + '.join(map(str, widths))}{kind}"

    if widths != backbone.text_widths:
        raise UsageError(
            f"{path} holds an embedding of {named(widths)}, which does not fit the backbone {backbone.name} of "
            f"{named(backbone.text_widths)}",
            "use the model that it was made for",
        )


def _unknown(path: Path, content: Any) -> InstError:
    held = ", ".join(map(str, list(content)[:3])) if isinstance(content, Mapping) and content else "nothing known"
    return InstError(f"{path} is no embedding in a known format (it holds {held})", "give a textual-inversion file")
