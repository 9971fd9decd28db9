"""`inst batch film`: repaint a film, or a folder of frames, so that an interruption loses nothing."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from inst.batch.orders import model_identity
from inst.errors import InstError, UsageError
from inst.files.claiming import held
from inst.files.holding import sweep
from inst.files.listing import pictures_in
from inst.files.provenance import SourceFile, versions
from inst.files.reading import check_regular, read_json, translate_reading
from inst.files.writing import make_folder, write_bytes_atomically
from inst.pictures.reading import open_picture, read_picture
from inst.pictures.video import film_format, is_film, probe, read_frames, write_film
from inst.pictures.writing import save_png
from inst.styles.style import Style
from inst.synthesis.film import transfer_film

if TYPE_CHECKING:
    from inst.backbone.model import Backbone
    from inst.pictures.video import Film

DESCRIPTION = "film.json"
"""The file beside the frames that says what they were made from."""

_LARGEST_DESCRIPTION = 1 << 20  # bytes

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]+:")
"""The first part of the path that a URL becomes; a drive of Windows has one letter."""

_RATE = 25  # frames a second, if frames come from a folder
_SLOWEST, _FASTEST = 0.01, 1000


@dataclass(frozen=True)
class FilmOrder:
    """What becomes of a film.

    Attributes:
        source: a film file, or a folder of frames, in the order of the numbers in their names.
        out: a film file, or a folder for the frames.
        styles: the styles by placeholder.
        settings: the arguments of `inst.transfer_film`, with the seed.
        rate: frames a second of a film that is made from a folder; None is 25. A film keeps its own rate.

    Raises:
        UsageError: `source` or `out` is neither, the source would be overwritten, or there is no use for a rate.
        InstError: a film is to be written, and ffmpeg is not installed.
    """

    source: Path
    out: Path
    styles: Mapping[str, Style]
    settings: Mapping[str, Any]
    rate: float | None = None

    def __post_init__(self) -> None:
        for path in (self.source, self.out):
            if len(path.parts) > 1 and _SCHEME.fullmatch(path.parts[0]):
                raise UsageError(f"{path} is a URL", "give a film or a folder on this computer")
        if self.to_film:
            film_format(self.out)
            if shutil.which("ffmpeg") is None:  # now, not when all frames are made
                raise InstError("ffmpeg is not installed", "install it, or give folders for the frames")
        elif self.out.is_file():
            raise UsageError(f"{self.out} is a file", "give a folder for the frames, or a film such as film.mp4")
        if self.out.exists() and self.source.exists() and self.out.samefile(self.source):
            raise UsageError(f"{self.source} would be overwritten", "give another name for the result")
        if self.rate is not None:
            if not self.to_film or not self.source.is_dir():
                raise UsageError("A rate is only for a film that is made from frames", "leave it out")
            if not _SLOWEST <= self.rate <= _FASTEST:  # NaN is refused too
                raise UsageError(
                    f"{self.rate} frames a second cannot be used", f"give a number from {_SLOWEST} to {_FASTEST}"
                )

    @property
    def to_film(self) -> bool:
        """Whether the result is a film, not a folder."""
        return is_film(self.out)

    @property
    def frames_folder(self) -> Path:
        """The folder of the finished frames; that of a film is deleted when the film is there."""
        return self.out.with_name(f"{self.out.name}.frames") if self.to_film else self.out


@dataclass(frozen=True)
class FilmStep:
    """A frame of a film that is finished.

    Attributes:
        number: its number, from 1.
        total: about how many there are; None if that is not known.
        kept: how many of them were finished before.
        seconds: time since the start.
    """

    number: int
    total: int | None
    kept: int
    seconds: float

    @property
    def rate(self) -> float:
        """Frames made in a second."""
        return (self.number - self.kept) / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class _Frames:
    """The frames of the source: their names without ending, and a stream of the pictures."""

    film: Film | None
    files: list[Path]
    total: int | None

    @classmethod
    def of(cls, source: Path) -> _Frames:
        if not source.is_dir():
            film = probe(source)
            return cls(film, [], film.frames)
        with translate_reading(source):
            files = sorted(pictures_in(source), key=_by_numbers)
        if not files:
            raise InstError(f"{source} contains no frames", "give a film, or a folder with pictures")
        names: dict[str, Path] = {}
        for path in files:  # results have the same names, which some disks do not tell apart by their case
            if (other := names.setdefault(path.stem.casefold(), path)) is not path:
                raise InstError(f"{other} and {path.name} would be one frame", "rename one of them, or move it away")
        return cls(None, files, len(files))

    def name(self, number: int) -> str:
        """Return the file name of a finished frame, whose number is from 0."""
        return f"{self.files[number].stem}.png" if self.files else f"{number + 1:06}.png"

    def pictures(self) -> Generator[Any, None, None]:
        if self.film is not None:
            yield from read_frames(self.film)
        else:
            yield from self.files

    def digest(self) -> str:
        """Return a hash of the film file; or of the names and sizes of the frames in a folder, which may be many."""
        if self.film is not None:
            return SourceFile.of(self.film.path, None).sha256
        names: list[str] = []
        for path in self.files:
            check_regular(path)  # a link to nothing, or a pipe, is found now, and not after hours
            names.append(f"{path.name}\n{path.stat().st_size}")
        return hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape")).hexdigest()


def restyle_film(backbone: Backbone, order: FilmOrder) -> Generator[FilmStep, None, Path]:
    """Repaint a film with `inst.transfer_film`, and go on after the frames that are finished.

    Every frame is written when it is finished. A film is put together from them at the end, with the sound of the
    source, and its frames are deleted. A finished frame that was damaged since is made again, with those after it.

    Yields:
        `FilmStep` for each frame; first one for those that were finished before, if there are any.

    Returns:
        `order.out`.

    Raises:
        UsageError: a setting cannot be used, or the folder has frames that were made otherwise.
        InstError: another process makes this film; the source has no frames, or one of them is damaged; or the result
            cannot be written. The finished frames stay, and the same order goes on after them.
    """
    frames = _Frames.of(order.source)
    described = _describe(backbone, order, frames)
    make_folder(order.out.absolute().parent)
    with held(order.out):
        finished = _finished(order.frames_folder, described, frames)
        with closing(frames.pictures()) as given:
            pictures = transfer_film(backbone, given, order.styles, finished=finished, **order.settings)
            yield from _save(order, described, frames, pictures, len(finished))
    return order.out


def _save(
    order: FilmOrder, described: Mapping[str, Any], frames: _Frames, pictures: Iterator[Tensor], finished: int
) -> Iterator[FilmStep]:
    """Write the frames, and put a film together from them and from the first ones, which are finished."""
    folder = make_folder(order.frames_folder)  # now that everything is checked
    write_bytes_atomically(folder / DESCRIPTION, json.dumps(described, indent=2).encode())
    begin, number = time.perf_counter(), finished
    if finished:
        yield FilmStep(number, frames.total, number, 0.0)
    for number, picture in enumerate(pictures, finished + 1):
        if not (folder / DESCRIPTION).is_file():
            raise InstError(f"{folder} was deleted during the run", "leave it alone; the same command begins again")
        save_png(picture, folder / frames.name(number - 1))
        yield FilmStep(number, frames.total, finished, time.perf_counter() - begin)
    if order.to_film:
        _put_together(order, frames, number)
        _delete(folder, [frames.name(k) for k in range(number)])


def _delete(folder: Path, names: Sequence[str]) -> None:
    """Delete the frames of a finished film, and their folder if nothing else is in it.

    The last ones go first: what a killed process leaves is a beginning, which the same order goes on with.
    """
    with suppress(OSError):  # the film is there all the same
        for name in reversed(names):
            (folder / name).unlink(missing_ok=True)
        (folder / DESCRIPTION).unlink()
        sweep(folder)
        folder.rmdir()


def _describe(backbone: Backbone, order: FilmOrder, frames: _Frames) -> dict[str, Any]:
    styles = {name: hashlib.sha256(style.to_bytes()).hexdigest() for name, style in order.styles.items()}
    made_from = {
        "frames": frames.digest(),
        "styles": styles,
        "model": model_identity(backbone),
        "settings": dict(order.settings),
    }
    return json.loads(json.dumps({"kind": "film", **made_from, "versions": versions()}))


def _finished(folder: Path, described: Mapping[str, Any], frames: _Frames) -> list[Path]:
    """Return the finished frames in the folder, from the first one on. Raises UsageError if it holds something else."""
    sweep(folder)  # what a run left that was killed in its first frame
    place = folder / DESCRIPTION
    if not place.exists():
        if folder.is_dir() and any(folder.iterdir()):
            raise UsageError(f"{folder} holds other files", "give a folder that is new or empty")
        return []
    earlier: Any = None
    with suppress(InstError):
        earlier = read_json(place, _LARGEST_DESCRIPTION)
    if not isinstance(earlier, dict) or any(
        earlier.get(key) != value for key, value in described.items() if key != "versions"
    ):
        raise UsageError(
            f"{folder} holds the frames of another film, or of other settings", "delete it, or give another name"
        )
    finished: list[Path] = []
    sizes = set[tuple[int, int]]()
    while len(finished) < (len(frames.files) or len(finished) + 1):
        path = folder / frames.name(len(finished))
        # One that was damaged, or has another size than the first, is made again, with those after it.
        if (size := _size(path)) is None or len(sizes := sizes | {size}) > 1:
            break
        finished.append(path)
    return finished


def _size(path: Path) -> tuple[int, int] | None:
    """Return the size of a frame; None if it is missing or damaged."""
    with suppress(InstError):
        return open_picture(path).size if path.is_file() else None
    return None


def _put_together(order: FilmOrder, frames: _Frames, count: int) -> None:
    def pictures() -> Iterator[Tensor]:
        for number in range(count):
            yield read_picture(order.frames_folder / frames.name(number))

    rate = frames.film.rate if frames.film is not None else Fraction(order.rate or _RATE).limit_denominator(1001)
    write_film(order.out, pictures(), rate, frames.film)


def _by_numbers(path: Path) -> list[tuple[int, str]]:
    """Return a key that sorts frame9 before frame10."""
    parts = re.split(r"(\d+)", path.name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]
