"""Read and write picture files. Only this module of the package opens picture files.

A picture from any file is returned upright, in sRGB, with 8 bits per channel; as a tensor, [3, H, W] in [-1, 1].
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import stat
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, PngImagePlugin, UnidentifiedImageError
from torch import Tensor

from inst.arguments import check_path, check_type, checked
from inst.errors import Argument, InstError, InstWarning, UsageError, first_line
from inst.files.git_lfs import refuse_start
from inst.files.listing import readable_name
from inst.files.provenance import SourceFile
from inst.files.writing import write_bytes_atomically
from inst.pictures.srgb import extend, flatten, split_alpha, to_srgb, upright

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
"""The formats in which pictures can be written, by the ending of the file name."""


@dataclass(frozen=True, eq=False)
class Photo:
    """A picture and its source file: a photo to transfer a style to, or a painting to learn from.

    Attributes:
        picture: [3, H, W] float32 in [-1, 1].
        alpha: [H, W] float32 in [0, 1], 1 = opaque; None if every pixel is opaque. The picture is not multiplied by it.
        name: the file's base name, without folders (`readable_name`); empty if the picture does not come from a file.
        sha256: sha256 of the file's bytes, in hexadecimal; empty if the picture does not come from a file.
    """

    picture: Tensor
    alpha: Tensor | None = None
    name: str = ""
    sha256: str = ""


def read_photo(path: str | os.PathLike[str], *, flattened: bool = False) -> Photo:
    """Read a picture file, with its transparency and the hash of its bytes.

    Fully transparent pixels get the colours of the visible pixels around them, not the hidden colours of the file. So
    resizing mixes no hidden colour into the edges of the visible part.

    Args:
        path: the picture file.
        flattened: lay the picture over white, as `read_picture` does; `alpha` is then None.

    Raises:
        InstError: an error of `open_picture`.
    """
    check_path("A picture", path)
    path = Path(path)
    with _open(path) as (file, image):
        return _to_photo(image, _source_of(path, file), flattened)


def decode_photo(data: bytes, place: str, *, flattened: bool = False) -> Photo:
    """Decode the bytes of a picture file as `read_photo` reads a file.

    Args:
        data: the whole file.
        place: the path or URL of the file, for messages; the name of the photo is its last part.
        flattened: as for `read_photo`.

    Raises:
        InstError: an error of `open_picture`.
    """
    with translate_errors(place):
        if not data:
            raise InstError(f"{place} is empty (0 bytes)", "copy or export the picture again")
        refuse_start(Path(place), data[:64])
        with _load(io.BytesIO(data)) as image:
            return _to_photo(image, SourceFile(place, hashlib.sha256(data).hexdigest()), flattened)


def _to_photo(image: Image.Image, source: SourceFile, flattened: bool) -> Photo:
    colours, alpha = to_srgb(image)
    if alpha is None or flattened:
        return Photo(to_tensor(flatten(colours, alpha)), None, source.name, source.sha256)
    opacity = torch.from_numpy(np.array(alpha)).float() / 255
    return Photo(to_tensor(extend(colours, alpha)), opacity, source.name, source.sha256)


def read_painting(path: str | os.PathLike[str]) -> Photo:
    """Read the picture file of a painting; transparent parts are laid over white.

    Raises:
        InstError: an error of `open_picture`.
    """
    return read_photo(path, flattened=True)


def read_image(image: Image.Image, what: str = "The picture") -> Photo:
    """Convert a PIL image of any mode as `read_painting` does a file. The image itself does not change.

    Raises:
        InstError: the image cannot be decoded; the message calls it by its file name, or `what`.
    """
    name = readable_name(Path(getattr(image, "filename", "") or "").name)
    if 0 in image.size:
        raise UsageError(f"{name or what} is {image.width} x {image.height} pixels", "give a picture with pixels")
    with translate_errors(name or what):
        return Photo(to_tensor(flatten(*to_srgb(upright(image)))), name=name)


def read_picture(path: str | Path) -> Tensor:
    """Read a picture file as [3, H, W] float32 in [-1, 1]. Raises InstError as `open_picture` does."""
    return to_tensor(open_picture(path))


def open_picture(path: str | Path) -> Image.Image:
    """Read a picture file as an sRGB image of mode RGB.

    The EXIF orientation is applied, an embedded colour profile is converted, transparent parts are laid over white, 16
    bits are reduced to 8, and CMYK, grey and palettes are converted. An animation gives its first frame.

    Raises:
        InstError: the file is missing, empty, truncated, not a picture, or larger than Pillow's safety limit of 179
            million pixels.
    """
    check_path("A picture", path)
    with _open(Path(path)) as (_, image):
        return flatten(*to_srgb(image))


def check_picture(path: str | Path, formats: list[str], most_pixels: int, name: str = "The file") -> str:
    """Decode a picture file from an unknown source, and return the name of its format.

    Args:
        path: the file; its name says nothing about its format.
        formats: the formats that are accepted, by Pillow's names. No other decoder sees the file.
        most_pixels: largest number of pixels; it is checked before anything is decoded.
        name: the name of the file in messages.

    Raises:
        UsageError: the picture has more pixels.
        InstError: the file is empty, damaged, or not a picture in one of the formats.
    """
    with translate_errors(name), Path(path).open("rb") as file:
        if not file.read(1):
            raise InstError(f"{name} is empty (0 bytes)", "choose another one")
        file.seek(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(file, formats=formats)
        if image.width * image.height > most_pixels:
            raise UsageError(
                f"{name} has {image.width} x {image.height} pixels, more than {most_pixels / 1e6:.0f} million",
                "make it smaller",
            )
        image.load()
        return str(image.format)


def read_mask(path: str | os.PathLike[str], size: tuple[int, int] | None = None) -> Tensor:
    """Read a mask: [H, W] float32 in [0, 1]. The style is applied where it is 1 (white).

    The stored grey levels are used, without colour management. A picture with transparency is laid over black. If all
    its visible pixels have one colour, as in a cut-out or a brush on an empty layer, its opacity is the mask.

    Args:
        path: the mask file.
        size: (height, width) of the photo. The mask is resized to it if it has the same proportions.

    Raises:
        InstError: an error of `open_picture`.
        UsageError: the mask's proportions differ from those of `size`.

    Warns:
        InstWarning: the mask has only the levels 0 and 1 of 255. 1 counts as white then.
    """
    return read_mask_file(path, size)[0]


def read_mask_file(path: str | os.PathLike[str], size: tuple[int, int] | None = None) -> tuple[Tensor, SourceFile]:
    """Read a mask as `read_mask` does, and return it with the record of its file."""
    check_path("A mask", path)
    path = Path(path)
    with _open(path) as (file, image):
        mask, source = mask_of(image), _source_of(path, file)
    return mask if size is None else fit_mask(str(path), mask, size), source


def _source_of(path: Path, file: io.BufferedReader | io.BytesIO) -> SourceFile:
    """Return the record of an open file. A pipe cannot be opened again for it."""
    file.seek(0)
    return SourceFile(path.name, hashlib.file_digest(file, "sha256").hexdigest())


def mask_of(image: Image.Image) -> Tensor:
    """Convert an image of any mode to a mask [H, W] in [0, 1]; see `read_mask`."""
    colours, alpha = split_alpha(image)
    levels = np.array(colours.convert("L"))
    if alpha is None and levels.max() == 1:  # white in the maps of labels that programs for segmentation write
        warnings.warn(InstWarning("The mask has only the levels 0 and 1, so 1 counts as white"), stacklevel=3)
        levels *= 255
    grey = torch.from_numpy(levels).float() / 255
    if alpha is None:
        return grey
    opacity = torch.from_numpy(np.array(alpha)).float() / 255
    visible = np.asarray(colours.convert("RGB"))[np.asarray(alpha) > 0]
    one_colour = bool((visible == visible[:1]).all())
    return opacity if one_colour else grey * opacity


def read_texts(path: str | Path) -> dict[str, str]:
    """Read the texts in a PNG file, by keyword. The result is empty for a picture of another format.

    Raises:
        InstError: an error of `open_picture`, or a text is larger than Pillow's safety limits.
    """
    with _file(Path(path)) as file, Image.open(file) as image:
        return dict(image.text) if isinstance(image, PngImagePlugin.PngImageFile) else {}


def decode_picture(data: bytes, name: str) -> Tensor:
    """Decode the bytes of a picture file, such as the painting of a style, to [3, H, W] float32 in [-1, 1].

    Raises:
        InstError: an error of `open_picture`, with `name` as the picture's name in the message.
    """
    with translate_errors(name), _load(io.BytesIO(data)) as image:
        return to_tensor(flatten(*to_srgb(image)))


def to_tensor(image: Image.Image) -> Tensor:
    """Convert an RGB image to [3, H, W] float32 in [-1, 1]."""
    pixels = torch.from_numpy(np.array(image if image.mode == "RGB" else image.convert("RGB"))).permute(2, 0, 1)
    # In place and without copies in between: a large picture takes much memory.
    return pixels.to(torch.float32, memory_format=torch.contiguous_format).div_(127.5).sub_(1)


def to_image(picture: Tensor, alpha: Tensor | None = None) -> Image.Image:
    """Convert [3, H, W] or [1, 3, H, W] in [-1, 1] (clamped) to an RGB image; the inverse of `to_tensor`.

    With `alpha`, [H, W] in [0, 1], the image is RGBA.

    Raises:
        UsageError: the picture has another shape.
        InstError: the picture has values that are not finite, which half precision can cause.
    """
    if picture.dim() == 4 and len(picture) == 1:
        picture = picture[0]
    if picture.dim() != 3 or picture.shape[0] != 3 or 0 in picture.shape or not picture.is_floating_point():
        kind = str(picture.dtype).removeprefix("torch.")
        raise UsageError(
            f"A picture of the shape {list(picture.shape)} and the type {kind} cannot be used",
            "give one picture, [3, H, W] in floating point from -1 to 1",
        )
    if not picture.isfinite().all():
        raise InstError(
            "The picture has values that are not finite", "load the backbone with ", Argument("dtype", "float32")
        )
    levels = ((picture.detach().float().clamp(-1, 1) + 1) * 127.5).round().to("cpu", torch.uint8)
    image = Image.fromarray(levels.permute(1, 2, 0).contiguous().numpy())
    if alpha is not None:
        image.putalpha(_alpha_image(alpha))
    return image


def _alpha_image(alpha: Tensor) -> Image.Image:
    """Convert an opacity [H, W] in [0, 1] to an image of mode L."""
    return Image.fromarray((alpha.detach().float().clamp(0, 1) * 255).round().to("cpu", torch.uint8).numpy())


def picture_format(path: str | Path) -> str:
    """Return Pillow's name of the format for a file's ending. Raises UsageError for an unknown ending."""
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        ending = f"the ending {path.suffix}" if path.suffix else "no ending"
        raise UsageError(f"{path} has {ending}", f"use a file name that ends in {', '.join(FORMATS)}")
    return FORMATS[path.suffix.lower()]


def save_picture(
    picture: Tensor | Image.Image | Photo,
    path: str | Path,
    alpha: Tensor | None = None,
    texts: Mapping[str, str] | None = None,
) -> Path:
    """Write a picture in the format of the file's ending, completely or not at all.

    PNG is lossless. Only PNG stores `texts`, the record of how the picture was made; `inst repeat` cannot make the
    picture of a JPEG or WebP file again. WebP stores `alpha`; for JPEG the picture is laid over white. Both are written
    at quality 95, JPEG without chroma subsampling.

    Args:
        picture: [3, H, W] or [1, 3, H, W] in [-1, 1], a PIL image of any mode, or a `Photo` with its opacity.
        path: ends in .png, .jpg, .jpeg or .webp.
        alpha: [H, W] in [0, 1], 1 = opaque.
        texts: texts to store in a PNG file, by keyword.

    Raises:
        UsageError: the file has another ending.
        InstError: the folder does not exist or is not writable, or the disk is full.
    """
    check_path("A picture file", path)
    return write_bytes_atomically(path, encode_picture(picture, path, alpha, texts))


def encode_picture(
    picture: Tensor | Image.Image | Photo,
    path: str | Path,
    alpha: Tensor | None = None,
    texts: Mapping[str, str] | None = None,
) -> bytes:
    """Return the bytes of the file that `save_picture` would write. The arguments and errors are the same."""
    kind = picture_format(path)
    image = _to_image(picture, alpha)
    if kind == "PNG":
        return _encode_png(image, texts or {})
    if kind == "JPEG":
        image = flatten(*to_srgb(image))
    encoded = io.BytesIO()
    try:
        image.save(encoded, format=kind, quality=95, **({"subsampling": 0} if kind == "JPEG" else {}))
    except (ValueError, OSError) as error:  # the picture is larger than the format allows
        raise InstError(f"{path} cannot be written as {kind} ({error})", "choose the ending .png") from None
    return encoded.getvalue()


def save_png(
    picture: Tensor | Image.Image | Photo,
    path: str | Path,
    alpha: Tensor | None = None,
    texts: Mapping[str, str] | None = None,
) -> Path:
    """Write [3, H, W] in [-1, 1], or an image, as a PNG file. Arguments and errors as `save_picture`."""
    image = _to_image(picture, alpha)
    return write_bytes_atomically(path, _encode_png(image, texts or {}))


def _to_image(picture: Tensor | Image.Image | Photo, alpha: Tensor | None) -> Image.Image:
    """Return an upright sRGB image, RGB or RGBA, from what `save_picture` takes."""
    check_type("A picture", picture, (Tensor, Image.Image, Photo), "give a tensor, a PIL image or an inst.Photo")
    if isinstance(picture, Photo):
        return to_image(picture.picture, picture.alpha if alpha is None else alpha)
    if isinstance(picture, Tensor):
        return to_image(picture, alpha)
    with translate_errors("The picture"):
        colours, opacity = to_srgb(upright(picture))
        if alpha is not None:
            colours.putalpha(_alpha_image(alpha))
        elif opacity is not None:
            colours.putalpha(opacity)
        return colours


def encode_painting(picture: Tensor, short_side: int = 1024, long_side: int = 4096) -> bytes:
    """Encode [3, H, W] in [-1, 1] as WebP, reduced to these sides in pixels at most; a smaller picture keeps its size.

    At quality 90, a painting of 1,024 pixels takes 0.1 to 0.4 MB.
    """
    height, width = picture.shape[-2:]
    scale = min(1.0, short_side / min(height, width), long_side / max(height, width))
    small = resize(picture, (max(1, round(height * scale)), max(1, round(width * scale))))
    encoded = io.BytesIO()
    to_image(small).save(encoded, format="WEBP", quality=90, method=4)
    return encoded.getvalue()


def fit_size(width: int, height: int, short_side: int) -> tuple[int, int]:
    """Scale (width, height), rounded, so that the short side is `short_side`. The proportions stay the same."""
    short_side = checked("size", short_side, "int")  # NumPy's small integer types would overflow below
    if short_side < 1:
        raise UsageError(f"A short side of {short_side} pixels is not possible", "give a positive number")
    short = min(width, height)
    return round(width * short_side / short), round(height * short_side / short)


def resize(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize [3, H, W] or [B, 3, H, W] in [-1, 1] to `size` (height, width): bicubic, antialiased, clamped."""
    return _interpolate(picture, size).clamp(-1, 1)


def resize_short_side(picture: Tensor, short_side: int) -> Tensor:
    """Resize as `resize` does, so that the short side is `short_side` pixels. The proportions stay the same."""
    width, height = fit_size(picture.shape[-1], picture.shape[-2], short_side)
    return resize(picture, (height, width))


def resize_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a mask or an opacity, [H, W] in [0, 1], as `resize` does."""
    return _interpolate(mask[None], size)[0].clamp(0, 1)


def _interpolate(picture: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(picture.shape[-2:]) == tuple(size):
        return picture
    batch = picture.reshape(-1, 1, *picture.shape[-2:]).float()
    return F.interpolate(batch, size, mode="bicubic", antialias=True).reshape(*picture.shape[:-2], *size)


def fit_mask(name: str, mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a mask to `size` (height, width) of the photo. Raises UsageError if its proportions differ."""
    (found_height, found_width), (height, width) = mask.shape, size
    # A mask drawn on a smaller copy may be off by a pixel of that copy.
    if abs(found_height * width / height - found_width) > 1 + 0.01 * found_width:
        raise UsageError(
            f"{name} is {found_width} x {found_height} pixels, but the photo is {width} x {height}",
            "make a mask with the photo's proportions",
        )
    return resize_mask(mask, size)


def _encode_png(image: Image.Image, texts: Mapping[str, str]) -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add(b"sRGB", b"\0")
    for keyword, text in texts.items():
        # Pillow does not open a file with a compressed text larger than this; an uncompressed text may be larger.
        info.add_text(keyword, text, zip=len(text.encode()) <= PngImagePlugin.MAX_TEXT_CHUNK)
    encoded = io.BytesIO()
    image.save(encoded, format="PNG", pnginfo=info, icc_profile=None)
    return encoded.getvalue()


@contextlib.contextmanager
def _open(path: Path) -> Iterator[tuple[io.BufferedReader | io.BytesIO, Image.Image]]:
    """Open a picture file. Yield the file, and its first frame, decoded and upright."""
    with _file(path) as file, _load(file) as image:
        yield file, image


@contextlib.contextmanager
def _file(path: Path) -> Iterator[io.BufferedReader | io.BytesIO]:
    """Open a file, or read a pipe whole."""
    with translate_errors(str(path)), path.open("rb") as opened:
        kind = os.fstat(opened.fileno()).st_mode
        if not (stat.S_ISREG(kind) or stat.S_ISFIFO(kind)):
            raise InstError(f"{path} is neither a file nor a pipe", "give a picture file")
        # A pipe is read once, from the front to the end, and decoders go back and forth.
        file = io.BytesIO(opened.read()) if stat.S_ISFIFO(kind) else opened
        start = file.read(64)
        if not start:
            raise InstError(f"{path} is empty (0 bytes)", "copy or export the picture again")
        refuse_start(path, start)
        file.seek(0)
        yield file


@contextlib.contextmanager
def _load(file: io.BufferedReader | io.BytesIO) -> Iterator[Image.Image]:
    with contextlib.ExitStack() as stack:
        with warnings.catch_warnings():
            # Pillow warns of large pictures, which are normal for cameras (it refuses twice that size), and of damaged
            # details that do not matter here.
            warnings.simplefilter("ignore")
            image = stack.enter_context(Image.open(file))
            image.load()
            upright_image = upright(image)
        yield upright_image


@contextlib.contextmanager
def translate_errors(name: str) -> Iterator[None]:
    """Convert any error that Pillow raises for a picture file to an InstError of one line."""
    try:
        yield
    except InstError as error:
        raise (error if name in error.problem else error.with_prefix(f"{name} ")) from None
    except FileNotFoundError:
        raise InstError(f"{name}: no such file", "check the path") from None
    except IsADirectoryError:
        raise InstError(f"{name} is a folder", "give a picture file") from None
    except PermissionError:
        raise InstError(f"{name} cannot be read (permission denied)", "change its permissions") from None
    except UnidentifiedImageError:
        raise InstError(f"{name} is not a picture in a known format", "export it as PNG or JPEG") from None
    except Image.DecompressionBombError:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        raise InstError(f"{name} has more than {limit} million pixels", "make it smaller") from None
    except MemoryError:
        raise InstError(f"{name} does not fit in memory", "make it smaller") from None
    except OSError as error:
        if error.errno is not None:  # the system's, not Pillow's
            raise InstError(f"{name} cannot be read ({error.strerror})", "check the path") from None
        raise InstError(f"{name} is damaged ({first_line(error)})", "copy or export the picture again") from error
    except Exception as error:  # Pillow's decoders raise SyntaxError, struct.error and more for broken files
        raise InstError(f"{name} is damaged ({first_line(error)})", "copy or export the picture again") from error
