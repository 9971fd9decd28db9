"""Open picture files. Only this module of the package calls Pillow's `open`.

A file is from anywhere: what it says about itself is checked before anything is decoded (`inst.pictures.formats`).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, cast

from PIL import Image, PngImagePlugin, UnidentifiedImageError

from inst.errors import InstError, UsageError, first_line
from inst.files.git_lfs import refuse_start
from inst.files.provenance import SourceFile
from inst.files.reading import open_file
from inst.pictures.formats import MOST_BYTES, READABLE, CountedFile, check_parts, format_of
from inst.pictures.resizing import LARGE, reduced_size
from inst.pictures.srgb import upright
from inst.texts import one_line

_LONGEST = 400
"""Largest proportion of the sides of a large picture, as of results (`inst.synthesis.plan`). It could be reduced to
nothing that fits in memory."""


@contextlib.contextmanager
def opened(path: Path, reduce_to: int | None = None) -> Iterator[tuple[IO[bytes], Image.Image, tuple[int, int] | None]]:
    """Open a picture file. Yield the file and what `decoded` does."""
    with _file(path) as file, decoded(file, reduce_to) as (image, size):
        yield file, image, size


@contextlib.contextmanager
def decoded(
    file: IO[bytes], reduce_to: int | None = None, most_pixels: int | None = None
) -> Iterator[tuple[Image.Image, tuple[int, int] | None]]:
    """Decode a picture file.

    Yields:
        Its first frame, upright, and (width, height) to which it must still be reduced, or None.

    Raises:
        InstError: it has more than `most_pixels`. This is checked before anything is decoded.
    """
    with _identified(file) as image:
        if most_pixels is not None:
            _check_pixels(image, most_pixels, InstError)
        if image.width * image.height > LARGE and max(image.size) > _LONGEST * min(image.size):
            raise InstError(f"has {image.width} x {image.height} pixels, which is too long and thin", "crop it")
        stored, size = image.size, reduced_size(*image.size, reduce_to)
        if size is not None:
            # A JPEG file is decoded at a half, a quarter or an eighth of its size, if that is twice the wanted one.
            image.draft(None, (2 * size[0], 2 * size[1]))
        with _without_warnings():
            image.load()
            turned = upright(image)
        is_portrait = (turned.width < turned.height) != (stored[0] < stored[1])
        yield turned, size[::-1] if size is not None and is_portrait else size


def source_of(path: Path, file: IO[bytes]) -> SourceFile:
    """Return the record of an open file. A pipe cannot be opened again for it."""
    file.seek(0)
    return SourceFile(path.name, hashlib.file_digest(cast(io.BufferedReader, file), "sha256").hexdigest())


def look_at(path: str | Path, formats: Sequence[str] = READABLE) -> tuple[int, int, str]:
    """Return width, height and format of a picture file, as it is stored. Nothing is decoded.

    Raises:
        InstError: an error of `open_picture`.
    """
    with _file(Path(path)) as file, _identified(file, formats) as image:
        return image.width, image.height, str(image.format)


def read_text_in(path: str | Path, keyword: str) -> str | None:
    """Read the text with a keyword in a PNG file; None if it has none, or is a picture of another format.

    Nothing is decoded, unless the text may follow after the pixels.

    Raises:
        InstError: an error of `open_picture`, or a text is larger than Pillow's safety limits.
    """
    with _file(Path(path)) as file, _identified(file) as image:
        if not isinstance(image, PngImagePlugin.PngImageFile):
            return None
        # An animation would be decoded whole.
        found = image.info if keyword in image.info or image.is_animated else image.text
        text = found.get(keyword)
        return text if isinstance(text, str) else None


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
        with _identified(file, formats) as image:
            _check_pixels(image, most_pixels, UsageError)
            image.load()
            return str(image.format)


def _check_pixels(image: Image.Image, most: int, kind: type[InstError]) -> None:
    if image.width * image.height > most:
        problem = f"has {image.width} x {image.height} pixels, more than {most / 1e6:.0f} million"
        raise kind(problem, "make it smaller")


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
def _identified(file: IO[bytes], formats: Sequence[str] = READABLE) -> Iterator[Image.Image]:
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
