"""Import embeddings of other programs as styles: files of `inst.styles.exporting`, and files from the internet."""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from inst.arguments import check_path, checked
from inst.errors import Argument, InstError, UsageError
from inst.files.git_lfs import refuse_pointer
from inst.files.listing import readable_name
from inst.files.pickle_limits import DamagedPickleError, UnsafePickleError
from inst.files.pickles import NUMPY_SCALARS, is_dense, is_safetensors, read_torch_pickle
from inst.files.provenance import SourceFile, reason
from inst.files.reading import check_regular, parse_json, translate_reading
from inst.files.tensors import is_real, open_tensors
from inst.pictures.given import Picture, to_photo
from inst.pictures.opening import look_at, read_text_in
from inst.pictures.reading import USUAL_SIZE, open_picture
from inst.pictures.resizing import LARGE
from inst.pictures.stored import encode_painting
from inst.styles.a1111_pixels import hidden_text
from inst.styles.exporting import EMBEDDING, ENCODERS, PNG_TENSOR, PNG_TEXT
from inst.styles.reference_code import CLASSES, PickledModule, ReferenceInversion, compute_vector
from inst.styles.style import KEY, Style
from inst.texts import cut
from inst.version import __version__

if TYPE_CHECKING:
    from inst.backbone.model import Backbone


_MODELS = {(768,): "Stable Diffusion 1.x", (1024,): "Stable Diffusion 2.x", (768, 1280): "Stable Diffusion XL"}
_LARGEST = 200_000_000
"""A file with more bytes is a model and is not read. The largest embeddings have about 10 million."""
_MOST_TENSORS = 1_000
_LONGEST_NAME = 200  # of a style, in characters
_PAIRS = (ENCODERS, ("text_encoders_0", "text_encoders_1"))
"""Names of the vectors for the two text encoders of SDXL: of most programs, and of cog-sdxl and diffusers' scripts."""
_OUTPUTS = "_out"
"""End of the names of vectors for the outputs of text encoders (OneTrainer). Nothing else uses them."""
_PARAMETERS = "torch.nn.modules.container.ParameterDict"


@dataclass(frozen=True, eq=False)
class Embedding:
    """An embedding from a file of another program.

    Attributes:
        vectors: [n, d].
        widths: number of columns for each text encoder; they sum to d.
        name: the word in a file of diffusers, or the name in a picture; otherwise the file name without its ending.
        format: the program that wrote the file; or "sdxl", the format that all programs share.
    """

    vectors: Tensor
    widths: tuple[int, ...]
    name: str
    format: str


def import_style(
    backbone: Backbone,
    path: str | Path,
    *,
    second: str | Path | None = None,
    name: str | None = None,
    painting: Picture | None = None,
    as_reference: bool = False,
    keep_painting: bool = True,
) -> Style:
    """Make a style from an embedding of another program, or from an `embeddings.pt` of the reference code.

    Args:
        backbone: the model that the embedding was learned with, or one with the same text encoder.
        path: the file: an export of `export_style`, a `.pt` of A1111, a `learned_embeds.bin` of diffusers, or an
            `embeddings.pt` of textual inversion or of the reference code.
        second: the file with the vectors for the other text encoder, if a program wrote two files for a model with two
            (Stable Diffusion XL), such as `learned_embeds_2.safetensors` of diffusers' script. The order of the two
            files does not matter.
        name: name of the style; the default is the name in the file.
        painting: the painting that the embedding was learned from, in any form. It gives the style its palette and its
            strokes. An `embeddings.pt` of the reference code needs it (`inst.styles.reference_code`).
        as_reference: preprocess the painting as the reference code does; for its `embeddings.pt` only.
        keep_painting: keep the picture of the painting in the style; style attention and the tone "painting" need it.

    Raises:
        UsageError: the width of the embedding differs from that of the backbone's text space; a painting is needed;
            or `as_reference` does not apply to the file.
        InstError: the file is missing, damaged, or of another kind; or it is a pickle that asks for more than weights
            (nothing of it is run).
    """
    check_path("An embedding", path)
    path = Path(path)
    if second is not None:
        check_path("An embedding", second)
    photo = None if painting is None else to_photo(painting, "painting", USUAL_SIZE)
    name = None if name is None else checked("name", name, "str")
    found = check_import(path, painting is not None, as_reference, second)
    options: dict[str, Any] = {}
    if isinstance(found, ReferenceInversion):
        assert photo is not None
        _check_widths(path, (found.width,), backbone)
        vectors = compute_vector(found, backbone, photo, as_reference)
        found = Embedding(vectors, (found.width,), Path(photo.name).stem or readable_name(path.stem), "InST reference")
        options = {"as_reference": as_reference}
    _check_widths(path, found.widths, backbone)
    if second is not None:
        options = {"second": asdict(SourceFile.of(second))}
    source = SourceFile.of(path)
    return Style(
        vectors=found.vectors,
        fingerprint=backbone.fingerprint,
        about={
            "name": name or found.name,
            "backbone": backbone.name,
            "variant": "imported",
            "imported": {"format": found.format, "name": source.name, "sha256": source.sha256, **options},
            "paintings": [{"name": photo.name, "sha256": photo.sha256}] if photo else [],
            "inst": __version__,
        },
        paintings=(encode_painting(photo.picture),) if photo and keep_painting else (),
        widths=found.widths,
    )


def check_import(
    path: str | Path, has_painting: bool, as_reference: bool, second: str | Path | None = None
) -> Embedding | ReferenceInversion:
    """Read a file, or both files of a pair, and check the arguments of `import_style` that need no backbone.

    `has_painting` says whether a painting is given. The errors are those of `import_style`.
    """
    found = read_embedding(path) if second is None else _read_pair(Path(path), Path(second))
    if isinstance(found, Embedding) and as_reference:
        raise UsageError(
            f"{path} is not an embeddings.pt of the reference code", "leave out ", Argument("as_reference")
        )
    if isinstance(found, ReferenceInversion) and not has_painting:
        raise UsageError(
            f"{path} holds no vector, only the module that computes it from the painting",
            "give the painting as ",
            Argument("painting"),
        )
    return found


def read_embedding(path: str | Path) -> Embedding | ReferenceInversion:
    """Read an embedding of another program, or the module in an `embeddings.pt` of the reference code.

    The file extension does not matter.

    Raises:
        UsageError: the file is already an InST style.
        InstError: the file is missing, damaged, or of another kind; or it is a pickle that asks for more than weights.
    """
    path = Path(path)
    check_regular(path)
    refuse_pointer(path)
    with translate_reading(path), path.open("rb") as file:
        start = file.read(9)
        size = os.fstat(file.fileno()).st_size
    if size > _LARGEST:
        raise InstError(
            f"{path} is too large for an embedding",
            "give an embedding file; if this is a whole model, give it as ",
            Argument("backbone"),
        )
    if start.startswith((b"\x89PNG", b"RIFF")):  # lossless WebP keeps the pixels too
        content = _read_picture(path)
        found = _identify(content, path)
        # A picture keeps its name if its file is renamed. Of other files, all programs use the name of the file.
        name = content.get("name") if isinstance(content, Mapping) else None
        if isinstance(found, Embedding) and isinstance(name, str) and name:
            return replace(found, name=_short(name))
        return found
    if start.startswith((b"PK\x03\x04", b"\x80")) and not is_safetensors(start):
        return _identify(_read_pickle(path), path)
    return _identify(_read_safetensors(path), path)


def _read_pair(*paths: Path) -> Embedding:
    """Read an embedding from two files, one for each text encoder of Stable Diffusion XL. The name is the first's.

    Raises:
        UsageError: a file does not hold the vectors for one text encoder.
        InstError: an error of `read_embedding`; or the files hold different numbers of vectors.
    """
    parts = []
    for path in paths:
        part = read_embedding(path)
        if not isinstance(part, Embedding) or len(part.widths) != 1:
            raise UsageError(
                f"{path} does not hold the vectors for one of two text encoders", "leave out ", Argument("second")
            )
        parts.append(part)
    name = parts[0].name
    parts.sort(key=lambda part: part.widths)  # the first text encoder of Stable Diffusion XL is the narrower one
    tables = {str(number): part.vectors for number, part in enumerate(parts)}
    return _embedding(paths[0], tables, name, "sdxl")


def _identify(content: Any, path: Path) -> Embedding | ReferenceInversion:
    """Find the vectors in the content of a file."""
    if isinstance(content, Tensor):
        content = {path.stem: content}
    if isinstance(content, list):  # ComfyUI reads such files: the vectors of all entries, one after another
        tables = [_with_rows(entry) for part in content if isinstance(part, Mapping) for entry in part.values()]
        if tables and all(_is_table(table) for table in tables) and len({table.shape[1] for table in tables}) == 1:
            return _embedding(path, {"": torch.cat(tables)}, "", "ComfyUI")
    if not isinstance(content, Mapping) or not content:
        raise _unknown(path, content)
    if "attention" in content:
        try:
            return ReferenceInversion.of(content["attention"])
        except (KeyError, ValueError, TypeError) as error:
            raise InstError(
                f"{path} is not an embeddings.pt of the reference code ({reason(error)})", "give another file"
            ) from None
    if "string_to_param" in content:
        stored = content["string_to_param"]
        if isinstance(stored, PickledModule):  # the files of the textual inversion code hold a ParameterDict
            stored = vars(stored).get("_parameters")
        if not isinstance(stored, Mapping) or len(stored) != 1:
            raise InstError(f"{path} does not hold exactly one embedding", "give a file with one embedding")
        return _embedding(path, {"": next(iter(stored.values()))}, "", "A1111")
    for names in _PAIRS:
        if {key for key in content if not str(key).endswith(_OUTPUTS)} == set(names):
            return _embedding(path, {key: content[key] for key in names}, "", "sdxl")
    if len(content) == 1:
        ((key, tensor),) = content.items()
        if key == EMBEDDING:
            return _embedding(path, {"": tensor}, "", "A1111")
        if any(key in names for names in _PAIRS):  # one of two files; the key says only which text encoder
            return _embedding(path, {"": tensor}, "", "sdxl")
        return _embedding(path, {"": tensor}, str(key).strip("<>"), "diffusers")
    raise _unknown(path, content)


def _embedding(path: Path, parts: Mapping[str, Any], name: str, kind: str) -> Embedding:
    tensors = []
    for part in parts.values():
        tensor = _with_rows(part)
        if not _is_table(tensor):
            raise InstError(f"{path} does not hold vectors of the shape [n, d]", "give an embedding file")
        tensor = tensor.detach().float()
        if not tensor.isfinite().all():
            raise InstError(f"{path} holds values that are not finite", "give another embedding")
        tensors.append(tensor)
    if len({len(tensor) for tensor in tensors}) > 1:
        counts = " and ".join(str(len(tensor)) for tensor in tensors)
        raise InstError(
            f"{path} holds {counts} vectors for its text encoders, but the numbers must be equal",
            "give another embedding",
        )
    return Embedding(
        torch.cat(tensors, dim=1), tuple(t.shape[1] for t in tensors), _short(name) or readable_name(path.stem), kind
    )


def _short(name: str) -> str:
    return cut(readable_name(name), _LONGEST_NAME)


def _with_rows(entry: Any) -> Any:
    """Return a single vector [d] as [1, d], and anything else unchanged."""
    return entry[None] if isinstance(entry, Tensor) and entry.dim() == 1 else entry


def _is_table(tensor: Any) -> bool:
    if not isinstance(tensor, Tensor) or not is_dense(tensor) or not is_real(tensor):
        return False
    # A pickle can declare any shape for a single stored number, so the size is limited.
    return tensor.dim() == 2 and 0 < 4 * tensor.numel() <= _LARGEST


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with open_tensors(path) as file:
            keys = list(file.keys())
            is_style = KEY in (file.metadata() or {})
            content = {} if is_style else {key: file.get_tensor(key) for key in keys[:_MOST_TENSORS]}
    except InstError as error:
        raise InstError(
            f"{path} cannot be read as an embedding (it {error.problem.removeprefix(f'{path} ')})",
            "give a .safetensors, .pt, .bin or .png file",
        ) from None
    if len(keys) > _MOST_TENSORS and not is_style:
        raise InstError(f"{path} holds {len(keys):,} tensors, which no embedding has", "give an embedding file")
    if is_style:
        raise UsageError(f"{path} is already an InST style", "use it as it is")
    return content


def _read_pickle(path: Path) -> Any:
    """Read a file of `torch.save` with PyTorch's loader for weights. `PickledModule` replaces the module classes."""
    try:
        return read_torch_pickle(path, {**dict.fromkeys((*CLASSES, _PARAMETERS), PickledModule), **NUMPY_SCALARS})
    except (InstError, MemoryError):
        raise
    except DamagedPickleError as error:
        raise InstError(
            f"{path} cannot be read as a pickle of weights ({error})",
            "copy the file again, or ask its author for a .safetensors file",
        ) from None
    except UnsafePickleError as error:
        raise InstError(f"{path} is refused: {error}", "ask its author for a .safetensors file") from None
    except Exception:  # a damaged pickle can fail with any exception; none of its code was run
        raise InstError(
            f"{path} cannot be read as a pickle of weights",
            "copy the file again, or ask its author for a .safetensors file",
        ) from None


def _read_picture(path: Path) -> Any:
    content: str | bytes | None = read_text_in(path, PNG_TEXT)
    if content is None:
        width, height, _ = look_at(path)
        content = hidden_text(open_picture(path)) if width * height <= LARGE else None
    if content is None:
        raise InstError(
            f"{path} holds no embedding, neither in a text chunk ({PNG_TEXT}) nor in its pixels. A picture of A1111 "
            f"loses its embedding when it is resized or converted",
            "ask its author for the original file",
        )
    try:
        decoded = content if isinstance(content, bytes) else base64.b64decode(content, validate=True)
        return parse_json(decoded, "its text", hook=_tensor_of)
    except (InstError, binascii.Error, ValueError, TypeError, RuntimeError, OverflowError) as error:
        said = error.problem if isinstance(error, InstError) else reason(error)
        raise InstError(f"{path}: the embedding is damaged ({said})", "copy the picture again") from None


def _tensor_of(entry: dict[str, Any]) -> Any:
    return torch.tensor(entry[PNG_TENSOR], dtype=torch.float32) if PNG_TENSOR in entry else entry


def _check_widths(path: Path, widths: tuple[int, ...], backbone: Backbone) -> None:
    def width_text(widths: tuple[int, ...]) -> str:
        model = f" ({_MODELS[widths]})" if widths in _MODELS else ""
        return f"width {' + '.join(map(str, widths))}{model}"

    if widths != backbone.text_widths:
        # Some programs write one file for each text encoder of Stable Diffusion XL.
        other_file = ("give the file for the other text encoder as ", Argument("second"), ", or ")
        raise UsageError(
            f"{path} holds an embedding of {width_text(widths)}, which does not fit the backbone {backbone.name} of "
            f"{width_text(backbone.text_widths)}",
            *(other_file if len(widths) == 1 < len(backbone.text_widths) and widths[0] in backbone.text_widths else ()),
            "use the model that the embedding was made for",
        )


def _unknown(path: Path, content: Any) -> InstError:
    entries = (
        ", ".join(cut(str(key), 60) for key in list(content)[:3])
        if isinstance(content, Mapping) and content
        else "nothing known"
    )
    return InstError(
        f"{path} is not an embedding in a known format (it holds {entries})", "give a file of textual inversion"
    )
