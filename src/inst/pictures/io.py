"""Read and write picture files. Only this module of the package opens picture files.

A picture from any file is returned upright, in sRGB, with 8 bits per channel; as a tensor, [3, H, W] in [-1, 1]. A file
is from anywhere: what it says about itself is checked before anything is decoded (`inst.pictures.formats`).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import torch
from PIL import Image, PngImagePlugin, UnidentifiedImageError
from torch import Tensor

from inst.arguments import check_path, check_type
from inst.errors import Argument, InstError, InstWarning, UsageError, first_line
from inst.files.git_lfs import refuse_start
from inst.files.listing import readable_name
from inst.files.provenance import SourceFile
from inst.files.reading import open_file
from inst.files.writing import write_bytes_atomically
from inst.pictures.formats import MOST_BYTES, READABLE, CountedFile, check_parts, format_of
from inst.pictures.reducing import fit_size, interpolate, reduced_size, resize_strips, strips
from inst.pictures.srgb import extend, flatten, split_alpha, to_srgb, upright
from inst.texts import one_line

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
"""The formats in which pictures can be written, by the ending of the file name."""

PAINTING_SIDES = 1024, 4096
"""Short and long side in pixels of the largest painting in a style file."""

USUAL_SIZE = 1536
"""The short side in pixels to which large photos are reduced before the size of the result is known. It is at least
1.5 times the default size of every backbone."""


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


def read_photo(path: str | os.PathLike[str], *, flattened: bool = False, reduce_to: int | None = None) -> Photo:
    """Read a picture file, with its transparency and the hash of its bytes.

    Fully transparent pixels get the colours of the visible pixels around them, not the hidden colours of the file. So
    resizing mixes no hidden colour into the edges of the visible part.

    Args:
        path: the picture file.
        flattened: lay the picture over white, as `read_picture` does; `alpha` is then None.
        reduce_to: the short side in pixels to which a picture of more than 16 million pixels (`LARGE`) is reduced while
            it is read, which takes much less memory. A smaller picture stays as it is. None reduces none.

    Raises:
        InstError: an error of `open_picture`.
    """
    check_path("A picture", path)
    path = Path(path)
    with _open(path, reduce_to) as (file, image, size):
        return _to_photo(image, size, _source_of(path, file), flattened)


def reading_size(size: Any, default: int = USUAL_SIZE) -> int:
    """Return `reduce_to` for a photo whose result has the short side `size`: an argument that is not checked yet."""
    return int(size) if isinstance(size, Integral) and int(size) > 0 else default


def decode_photo(data: bytes, place: str, *, flattened: bool = False, reduce_to: int | None = None) -> Photo:
    """Decode the bytes of a picture file as `read_photo` reads a file.

    Args:
        data: the whole file.
        place: the path or URL of the file, for messages; the name of the photo is its last part.
        flattened, reduce_to: as for `read_photo`.

    Raises:
        InstError: an error of `open_picture`.
    """
    with translate_errors(place):
        if not data:
            raise InstError(f"{place} is empty (0 bytes)", "copy or export the picture again")
        refuse_start(Path(place), data[:64])
        with _load(io.BytesIO(data), reduce_to) as (image, size):
            return _to_photo(image, size, SourceFile(place, hashlib.sha256(data).hexdigest()), flattened)


def _to_photo(image: Image.Image, size: tuple[int, int] | None, source: SourceFile, flattened: bool) -> Photo:
    """Convert an upright image; `size` is (width, height) to which it is reduced."""
    if size is not None and (flattened or not image.has_transparency_data):
        picture = resize_strips(image, size, lambda part: to_tensor(flatten(*to_srgb(part)))).clamp(-1, 1)
        return Photo(picture, None, source.name, source.sha256)
    if size is not None:
        profile = image.info.get("icc_profile")
        image = image.convert("RGBA").resize(size, Image.Resampling.BICUBIC)  # Pillow weights colours by opacity
        image.info["icc_profile"] = profile
    colours, alpha = to_srgb(image)
    if alpha is None or flattened:
        return Photo(to_tensor(flatten(colours, alpha)), None, source.name, source.sha256)
    opacity = torch.from_numpy(np.array(alpha)).float() / 255
    return Photo(to_tensor(extend(colours, alpha)), opacity, source.name, source.sha256)


def read_painting(path: str | os.PathLike[str], reduce_to: int | None = None) -> Photo:
    """Read the picture file of a painting; transparent parts are laid over white. `reduce_to` is as for `read_photo`.

    Raises:
        InstError: an error of `open_picture`.
    """
    return read_photo(path, flattened=True, reduce_to=reduce_to)


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


def open_picture(path: str | Path, reduce_to: int | None = None) -> Image.Image:
    """Read a picture file as an sRGB image of mode RGB.

    The EXIF orientation is applied, an embedded colour profile is converted, transparent parts are laid over white, 16
    bits are reduced to 8, and CMYK, grey and palettes are converted. An animation gives its first frame.

    Args:
        path: the picture file.
        reduce_to: as for `read_photo`.

    Raises:
        InstError: the file is missing, empty, truncated, not a picture in one of the formats that are read
            (`inst.pictures.formats`), or larger than 1 GB or Pillow's safety limit of 179 million pixels.
    """
    check_path("A picture", path)
    with _open(Path(path), reduce_to) as (_, image, size):
        if size is None:
            return flatten(*to_srgb(image))
        return to_image(resize_strips(image, size, lambda part: to_tensor(flatten(*to_srgb(part)))))


def check_picture(path: str | Path, formats: Sequence[str], most_pixels: int, name: str = "The file") -> str:
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
        with _opened(file, formats) as image:
            _check_pixels(image, most_pixels, UsageError)
            image.load()
            return str(image.format)


def look_at(path: str | Path, formats: Sequence[str] = READABLE) -> tuple[int, int, str]:
    """Return width, height and format of a picture file, as it is stored. Nothing is decoded.

    Raises:
        InstError: an error of `open_picture`.
    """
    with _file(Path(path)) as file, _opened(file, formats) as image:
        return image.width, image.height, str(image.format)


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
    with _open(path) as (file, image, _):
        return mask_of(image, size, str(path)), _source_of(path, file)


def _source_of(path: Path, file: IO[bytes]) -> SourceFile:
    """Return the record of an open file. A pipe cannot be opened again for it."""
    file.seek(0)
    return SourceFile(path.name, hashlib.file_digest(cast(io.BufferedReader, file), "sha256").hexdigest())


def mask_of(image: Image.Image, size: tuple[int, int] | None = None, name: str = "The mask") -> Tensor:
    """Convert an image of any mode to a mask [H, W] in [0, 1]; see `read_mask`. `name` is its name in messages."""
    if size is not None:
        check_proportions(name, (image.height, image.width), size)
    convert = _mask_reader(image)
    if size is None:
        return convert(image)[0]
    return resize_strips(image, (size[1], size[0]), convert)[0].clamp(0, 1)


def _mask_reader(image: Image.Image) -> Callable[[Image.Image], Tensor]:
    """Return the function that converts a part of a mask to [1, h, W] in [0, 1]: by its levels, its opacity, or both.

    Warns with `InstWarning` if the mask has only the levels 0 and 1.
    """
    has_opacity, highest, seen = False, 0, set[bytes]()
    for part in strips(image):
        colours, alpha = split_alpha(part)
        has_opacity |= alpha is not None
        highest = max(highest, int(np.asarray(colours.convert("L")).max()))
        if len(seen) < 2 and image.has_transparency_data:
            rgb = np.asarray(colours.convert("RGB"))
            visible = rgb.reshape(-1, 3) if alpha is None else rgb[np.asarray(alpha) > 0]
            seen |= {bound.tobytes() for bound in (visible.min(0), visible.max(0))} if len(visible) else set()
    labels = not has_opacity and highest == 1  # white in the maps of labels that programs for segmentation write
    if labels:
        warnings.warn(InstWarning("The mask has only the levels 0 and 1, so 1 counts as white"), stacklevel=4)

    def convert(part: Image.Image) -> Tensor:
        colours, alpha = split_alpha(part)
        levels = torch.from_numpy(np.array(colours.convert("L")))[None].float() / (1 if labels else 255)
        if not has_opacity:
            return levels
        opacity = torch.ones_like(levels) if alpha is None else torch.from_numpy(np.array(alpha))[None].float() / 255
        return opacity if len(seen) < 2 else levels * opacity

    return convert


def read_text_in(path: str | Path, keyword: str) -> str | None:
    """Read the text with a keyword in a PNG file; None if it has none, or is a picture of another format.

    Nothing is decoded, unless the text may follow after the pixels.

    Raises:
        InstError: an error of `open_picture`, or a text is larger than Pillow's safety limits.
    """
    with _file(Path(path)) as file, _opened(file) as image:
        if not isinstance(image, PngImagePlugin.PngImageFile):
            return None
        # An animation would be decoded whole.
        found = image.info if keyword in image.info or image.is_animated else image.text
        text = found.get(keyword)
        return text if isinstance(text, str) else None


def decode_picture(data: bytes, name: str) -> Tensor:
    """Decode the bytes of the painting of a style to [3, H, W] float32 in [-1, 1].

    Raises:
        InstError: an error of `open_picture`, with `name` as the picture's name in the message; or the picture is
            larger than `encode_painting` makes it.
    """
    short_side, long_side = PAINTING_SIDES
    with translate_errors(name), _load(io.BytesIO(data), most_pixels=short_side * long_side) as (image, _):
        return to_tensor(flatten(*to_srgb(image)))


def decode_image(data: bytes) -> Image.Image:
    """Decode the bytes of a picture file that this package wrote. Raises InstError as `decode_picture`."""
    return to_image(decode_picture(data, "The picture"))


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


def encode_painting(picture: Tensor, short_side: int = PAINTING_SIDES[0], long_side: int = PAINTING_SIDES[1]) -> bytes:
    """Encode [3, H, W] in [-1, 1] as WebP, reduced to these sides in pixels at most; a smaller picture keeps its size.

    At quality 90, a painting of 1,024 pixels takes 0.1 to 0.4 MB.
    """
    height, width = picture.shape[-2:]
    scale = min(1.0, short_side / min(height, width), long_side / max(height, width))
    small = resize(picture, (max(1, round(height * scale)), max(1, round(width * scale))))
    encoded = io.BytesIO()
    to_image(small).save(encoded, format="WEBP", quality=90, method=4)
    return encoded.getvalue()


def resize(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize [3, H, W] or [B, 3, H, W] in [-1, 1] to `size` (height, width): bicubic, antialiased, clamped."""
    return interpolate(picture, size).clamp(-1, 1)


def resize_short_side(picture: Tensor, short_side: int) -> Tensor:
    """Resize as `resize` does, so that the short side is `short_side` pixels. The proportions stay the same."""
    width, height = fit_size(picture.shape[-1], picture.shape[-2], short_side)
    return resize(picture, (height, width))


def resize_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a mask or an opacity, [H, W] in [0, 1], as `resize` does."""
    return interpolate(mask[None], size)[0].clamp(0, 1)


def check_proportions(name: str, found: tuple[int, int], size: tuple[int, int]) -> None:
    """Raise UsageError unless a mask of `found` (height, width) has the proportions of a photo of `size`."""
    (found_height, found_width), (height, width) = found, size
    # A mask drawn on a smaller copy may be off by a pixel of that copy.
    if abs(found_height * width / height - found_width) > 1 + 0.01 * found_width:
        raise UsageError(
            f"{name} is {found_width} x {found_height} pixels, but the photo is {width} x {height}",
            "make a mask with the photo's proportions",
        )


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
def _open(path: Path, reduce_to: int | None = None) -> Iterator[tuple[IO[bytes], Image.Image, tuple[int, int] | None]]:
    """Open a picture file. Yield the file and what `_load` does."""
    with _file(path) as file, _load(file, reduce_to) as (image, size):
        yield file, image, size


@contextlib.contextmanager
def _file(path: Path) -> Iterator[IO[bytes]]:
    """Open a file, or read a pipe whole."""
    with translate_errors(str(path)), open_file(path, MOST_BYTES) as file:
        start = file.read(64)
        if not start:
            raise InstError(f"{path} is empty (0 bytes)", "copy or export the picture again")
        refuse_start(path, start)
        file.seek(0)
        yield file


@contextlib.contextmanager
def _opened(file: IO[bytes], formats: Sequence[str] = READABLE) -> Iterator[Image.Image]:
    """Read the beginning of a picture file. The only call of `Image.open` in the package."""
    check_parts(file)
    with _without_warnings():
        try:
            image = Image.open(cast(IO[bytes], CountedFile(file)), formats=tuple(formats))
        except UnidentifiedImageError:
            file.seek(0)
            found = format_of(file.read(64))
            known = f"is not a picture in a known format{f', but {found}' if found else ''}"
            raise InstError(known, "export it as PNG or JPEG") from None
    with image:
        yield image


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Pillow warns of large pictures, which are normal for cameras, and of damaged details that do not matter here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _load(
    file: IO[bytes], reduce_to: int | None = None, most_pixels: int | None = None
) -> Iterator[tuple[Image.Image, tuple[int, int] | None]]:
    """Decode a picture file.

    Yields:
        Its first frame, upright, and (width, height) to which it must still be reduced, or None.

    Raises:
        InstError: it has more than `most_pixels`. This is checked before anything is decoded.
    """
    with _opened(file) as image:
        if most_pixels is not None:
            _check_pixels(image, most_pixels, InstError)
        stored, size = image.size, reduced_size(*image.size, reduce_to)
        if size is not None:
            # A JPEG file is decoded at a half, a quarter or an eighth of its size, if that is twice the wanted one.
            image.draft(None, (2 * size[0], 2 * size[1]))
        with _without_warnings():
            image.load()
            turned = upright(image)
        is_portrait = (turned.width < turned.height) != (stored[0] < stored[1])
        yield turned, size[::-1] if size is not None and is_portrait else size


def _check_pixels(image: Image.Image, most: int, kind: type[InstError]) -> None:
    if image.width * image.height > most:
        problem = f"has {image.width} x {image.height} pixels, more than {most / 1e6:.0f} million"
        raise kind(problem, "make it smaller")


@contextlib.contextmanager
def translate_errors(name: str) -> Iterator[None]:
    """Convert any error that Pillow raises for a picture file to an InstError of one line."""
    try:
        yield
    except InstError as error:
        raise (error if one_line(name) in error.problem else error.with_prefix(f"{name} ")) from None
    except FileNotFoundError:
        raise InstError(f"{name}: no such file", "check the path") from None
    except IsADirectoryError:
        raise InstError(f"{name} is a folder", "give a picture file") from None
    except PermissionError:
        raise InstError(f"{name} cannot be read (permission denied)", "change its permissions") from None
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
