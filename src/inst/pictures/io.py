"""Reading and writing pictures. Nothing else in the package opens a picture file.

Whatever a file holds, what comes out is upright, sRGB, 8 bits a channel; as a tensor [3, H, W] in [-1, 1].
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError
from torch import Tensor

from inst.arguments import check_path, checked
from inst.errors import InstError, UsageError, first_line
from inst.files.writing import write_bytes_atomically
from inst.pictures.srgb import extend, flatten, split_alpha, to_srgb

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
"""The formats that pictures can be written in, by the ending of the file's name."""


@dataclass(frozen=True, eq=False)
class Photo:
    """A picture and where it came from: a photo to transfer to, or a painting to learn from.

    Attributes:
        picture: [3, H, W] float32 in [-1, 1].
        alpha: [H, W] float32 in [0, 1], 1 = opaque; None where every pixel is. The picture is not multiplied by it.
        name: the file's base name, without folders; empty for a picture that was never a file.
        sha256: of the file's bytes, in hexadecimal; empty likewise.
    """

    picture: Tensor
    alpha: Tensor | None = None
    name: str = ""
    sha256: str = ""


def read_photo(path: str | os.PathLike[str], *, flattened: bool = False) -> Photo:
    """Read a picture file, with its transparency and the hash of its bytes.

    Pixels that are wholly transparent come out in the colours of what shows around them, whatever colour the file hides
    there: resizing then mixes no foreign colour into the edges of what shows.

    Args:
        flattened: lay the picture over white, as `read_picture` does; `alpha` is None then.

    Raises:
        InstError: as `open_picture` does.
    """
    check_path("A picture", path)
    path = Path(path)
    with _open(path) as (file, image):
        colours, alpha = to_srgb(image)
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if alpha is None or flattened:
            return Photo(to_tensor(flatten(colours, alpha)), None, path.name, digest)
        opacity = torch.from_numpy(np.array(alpha)).float() / 255
        return Photo(to_tensor(extend(colours, alpha)), opacity, path.name, digest)


def read_painting(path: str | os.PathLike[str]) -> Photo:
    """Read a picture file as paintings are looked at: laid over white where it is transparent.

    Raises:
        InstError: as `open_picture` does.
    """
    return read_photo(path, flattened=True)


def read_picture(path: str | Path) -> Tensor:
    """Read a picture file into [3, H, W] float32 in [-1, 1]. Raises InstError as `open_picture` does."""
    return to_tensor(open_picture(path))


def open_picture(path: str | Path) -> Image.Image:
    """Read a picture file into an sRGB image of mode RGB.

    EXIF orientation is applied, an embedded colour profile converted, transparency flattened on white, 16 bits reduced
    to 8, CMYK, grey and palettes converted. Of an animation, the first frame is taken.

    Raises:
        InstError: the file is missing, empty, truncated, no picture, or too large to be harmless (Pillow's limit of 179
            million pixels).
    """
    check_path("A picture", path)
    with _open(Path(path)) as (_, image):
        return flatten(*to_srgb(image))


def read_mask(path: str | Path, size: tuple[int, int] | None = None) -> Tensor:
    """Read a mask: [H, W] float32 in [0, 1], 1 (white) where the style is wanted.

    The grey levels count as they are stored, without colour management. Of a picture with transparency, the grey levels
    over black; where everything that shows is of one colour, its opacity, which is what a cut-out or a brush on an
    empty layer leaves.

    Args:
        size: (height, width) of the photo. The mask is resized to it where its proportions agree.

    Raises:
        InstError: as `open_picture` does.
        UsageError: the mask's proportions are not those of `size`.
    """
    check_path("A mask", path)
    path = Path(path)
    with _open(path) as (_, image):
        mask = mask_of(image)
    return mask if size is None else fit_mask(str(path), mask, size)


def mask_of(image: Image.Image) -> Tensor:
    """The mask [H, W] in [0, 1] that an image of any mode stands for; see `read_mask`."""
    colours, alpha = split_alpha(image)
    grey = torch.from_numpy(np.array(colours.convert("L"))).float() / 255
    if alpha is None:
        return grey
    opacity = torch.from_numpy(np.array(alpha)).float() / 255
    showing = np.asarray(colours.convert("RGB"))[np.asarray(alpha) > 0]
    one_colour = bool((showing == showing[:1]).all())
    return opacity if one_colour else grey * opacity


def read_texts(path: str | Path) -> dict[str, str]:
    """Read the texts that a PNG file carries, by keyword; none for a picture of another format.

    Raises:
        InstError: as `open_picture` does, and over texts too large to be harmless (Pillow's limits).
    """
    with _file(Path(path)) as file, Image.open(file) as image:
        return dict(image.text) if isinstance(image, PngImagePlugin.PngImageFile) else {}


def decode_picture(data: bytes, name: str) -> Tensor:
    """Decode a picture held in memory, such as a thumbnail: [3, H, W] float32 in [-1, 1].

    Raises:
        InstError: as `open_picture` does; the message calls the picture `name`.
    """
    with _translated(name), _load(io.BytesIO(data)) as image:
        return to_tensor(flatten(*to_srgb(image)))


def to_tensor(image: Image.Image) -> Tensor:
    """RGB image -> [3, H, W] float32 in [-1, 1]."""
    pixels = torch.from_numpy(np.array(image.convert("RGB")))
    return pixels.permute(2, 0, 1).contiguous().float() / 127.5 - 1


def to_image(picture: Tensor, alpha: Tensor | None = None) -> Image.Image:
    """[3, H, W] in [-1, 1] (clamped) -> RGB image; with `alpha` [H, W] in [0, 1], RGBA. The inverse of `to_tensor`.

    Raises:
        UsageError: the picture has another shape; a batch [1, 3, H, W] of one will do.
        InstError: the picture is not finite, which half precision can cause.
    """
    if picture.dim() == 4 and len(picture) == 1:
        picture = picture[0]
    if picture.dim() != 3:
        raise UsageError(f"A picture of the shape {list(picture.shape)} cannot be used", "give one, [3, H, W]")
    if not picture.isfinite().all():
        raise InstError("The picture holds values that are not finite", 'load the backbone with dtype "float32"')
    levels = ((picture.detach().float().clamp(-1, 1) + 1) * 127.5).round().to("cpu", torch.uint8)
    image = Image.fromarray(levels.permute(1, 2, 0).contiguous().numpy())
    if alpha is not None:
        image.putalpha(
            Image.fromarray((alpha.detach().float().clamp(0, 1) * 255).round().to("cpu", torch.uint8).numpy())
        )
    return image


def picture_format(path: str | Path) -> str:
    """Return Pillow's name of the format that a file's ending asks for. Raises UsageError for an unknown ending."""
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        ending = f"the ending {path.suffix}" if path.suffix else "no ending"
        raise UsageError(f"{path} has {ending}: pictures are written as {', '.join(FORMATS)}.")
    return FORMATS[path.suffix.lower()]


def save_picture(
    picture: Tensor | Image.Image,
    path: str | Path,
    alpha: Tensor | None = None,
    texts: Mapping[str, str] | None = None,
) -> Path:
    """Write a picture in the format of the file's ending, complete or not at all.

    PNG is exact, and alone carries `texts`, the record of what made the picture: of a JPEG or WebP file, `inst repeat`
    cannot make the picture again. WebP keeps `alpha`; JPEG has none, and gets the picture laid over white. Both are
    written at quality 95, JPEG without reducing the colours' resolution.

    Args:
        picture: [3, H, W] or [1, 3, H, W] in [-1, 1], or an image.
        path: ends in .png, .jpg, .jpeg or .webp.
        alpha: [H, W] in [0, 1], 1 = opaque.
        texts: what a PNG file is to carry, by keyword.

    Raises:
        UsageError: another ending.
        InstError: the folder does not exist or may not be written to, or the disk is full.
    """
    kind = picture_format(path)
    if kind == "PNG":
        return save_png(picture, path, alpha, texts)
    image = to_image(picture, alpha) if isinstance(picture, Tensor) else picture
    if kind == "JPEG":
        image = flatten(*to_srgb(image))
    encoded = io.BytesIO()
    try:
        image.save(encoded, format=kind, quality=95, **({"subsampling": 0} if kind == "JPEG" else {}))
    except (ValueError, OSError) as error:  # more pixels than the format can count
        raise InstError(f"{path} cannot be written as {kind} ({error})", "choose the ending .png") from None
    return write_bytes_atomically(path, encoded.getbuffer())


def save_png(
    picture: Tensor | Image.Image,
    path: str | Path,
    alpha: Tensor | None = None,
    texts: Mapping[str, str] | None = None,
) -> Path:
    """Write [3, H, W] in [-1, 1], or an image, as a PNG file: complete, or not at all. As `save_picture`."""
    image = to_image(picture, alpha) if isinstance(picture, Tensor) else picture
    return write_bytes_atomically(path, _encode_png(image, texts or {}))


def make_thumbnail(picture: Tensor, side: int = 256) -> bytes:
    """Encode [3, H, W] in [-1, 1] as a PNG of at most `side` pixels a side; a smaller picture keeps its size."""
    height, width = picture.shape[-2:]
    scale = min(1.0, side / max(height, width))
    small = resize(picture, (max(1, round(height * scale)), max(1, round(width * scale))))
    return _encode_png(to_image(small), {})


def fit_size(width: int, height: int, short_side: int) -> tuple[int, int]:
    """Return (width, height) of the same proportions, rounded, whose short side is `short_side`."""
    short_side = checked("size", short_side, "int")  # also because NumPy's smaller integers overflow below
    if short_side < 1:
        raise UsageError(f"A short side of {short_side} pixels cannot be made", "give a positive number")
    short = min(width, height)
    return round(width * short_side / short), round(height * short_side / short)


def resize(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize [3, H, W] or [B, 3, H, W] in [-1, 1] to `size` (height, width): bicubic, antialiased, clamped."""
    return _interpolate(picture, size).clamp(-1, 1)


def resize_short_side(picture: Tensor, short_side: int) -> Tensor:
    """Resize as `resize` does, in its proportions, so that the short side is `short_side` pixels."""
    width, height = fit_size(picture.shape[-1], picture.shape[-2], short_side)
    return resize(picture, (height, width))


def resize_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize [H, W] in [0, 1], a mask or an opacity, as `resize` does."""
    return _interpolate(mask[None], size)[0].clamp(0, 1)


def _interpolate(picture: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(picture.shape[-2:]) == tuple(size):
        return picture
    batch = picture.reshape(-1, 1, *picture.shape[-2:]).float()
    return F.interpolate(batch, size, mode="bicubic", antialias=True).reshape(*picture.shape[:-2], *size)


def fit_mask(name: str, mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a mask to `size` (height, width) of the photo. Raises UsageError where its proportions are others."""
    (found_height, found_width), (height, width) = mask.shape, size
    # A mask drawn on a smaller copy may be off by a pixel of that copy.
    if abs(found_height * width / height - found_width) > 1 + 0.01 * found_width:
        raise UsageError(
            f"{name} is {found_width} x {found_height} pixels, but the photo is {width} x {height}",
            "make a mask of the photo's proportions",
        )
    return resize_mask(mask, size)


def _encode_png(image: Image.Image, texts: Mapping[str, str]) -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add(b"sRGB", b"\0")
    for keyword, text in texts.items():
        # Pillow refuses to open a file with a compressed text larger than this; a plain one may be larger.
        info.add_text(keyword, text, zip=len(text.encode()) <= PngImagePlugin.MAX_TEXT_CHUNK)
    encoded = io.BytesIO()
    image.save(encoded, format="PNG", pnginfo=info, icc_profile=None)
    return encoded.getvalue()


@contextlib.contextmanager
def _open(path: Path) -> Iterator[tuple[io.BufferedReader, Image.Image]]:
    """Open a picture file: the file itself, and the first frame, decoded and upright."""
    with _file(path) as file, _load(file) as image:
        yield file, image


@contextlib.contextmanager
def _file(path: Path) -> Iterator[io.BufferedReader]:
    with _translated(str(path)):
        if path.stat().st_size == 0:
            raise InstError(f"{path} is empty (0 bytes)", "copy or export the picture again")
        with path.open("rb") as file:
            yield file


@contextlib.contextmanager
def _load(file: io.BufferedReader | io.BytesIO) -> Iterator[Image.Image]:
    with warnings.catch_warnings():
        # Pillow warns of large pictures, which cameras do make (it refuses those of twice that size), and of damaged
        # details that do not matter here.
        warnings.simplefilter("ignore")
        with Image.open(file) as image:
            image.load()
            yield ImageOps.exif_transpose(image)


@contextlib.contextmanager
def _translated(name: str) -> Iterator[None]:
    """Turn whatever a picture file makes Pillow raise into one line."""
    try:
        yield
    except InstError as error:
        raise (error if name in error.problem else error.about(f"{name} ")) from None
    except FileNotFoundError:
        raise InstError(f"{name}: no such file.") from None
    except IsADirectoryError:
        raise InstError(f"{name} is a folder", "give a picture file") from None
    except PermissionError:
        raise InstError(f"{name} may not be read", "change its permissions") from None
    except UnidentifiedImageError:
        raise InstError(f"{name} is no picture in a known format", "export it as PNG or JPEG") from None
    except Image.DecompressionBombError:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        raise InstError(f"{name} has more than {limit} million pixels", "make it smaller") from None
    except MemoryError:
        raise InstError(f"{name} does not fit into memory", "make it smaller") from None
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error and more over broken files
        raise InstError(f"{name} is damaged ({first_line(error)})", "copy or export the picture again") from error
