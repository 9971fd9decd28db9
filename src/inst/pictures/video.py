"""Read and write films, with the programs ffmpeg and ffprobe. Frames are streamed: a film never lies in memory whole.

A film is a file from anywhere. So ffmpeg may open this one file and nothing else: only containers that hold their own
pictures are read (no playlists), and no protocol but files.
"""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from inst.arguments import check_path
from inst.errors import InstError, InstWarning, UsageError
from inst.files.reading import parse_json
from inst.files.writing import replace_when_finished
from inst.pictures.tensors import to_image

FILM_FORMATS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}
"""The containers in which films can be written, by the ending of the file name."""

_READABLE = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,flv,ogg,asf,gif,apng,mxf,nut,dv,ivf,h264,hevc,m4v,"
    "yuv4mpegpipe"
)

_SOUND = {
    "mp4": {"aac", "mp3", "ac3", "eac3", "alac", "opus", "flac"},
    "mov": {"aac", "mp3", "ac3", "eac3", "alac", "pcm_s16le", "pcm_s16be", "pcm_s24le", "pcm_s24be", "pcm_f32le"},
}
"""The kinds of sound that a container holds as they are. Other ones become AAC. Matroska holds all."""

_QUALITY = "16"
"""The constant rate factor of x264: to the eye without loss. Smaller is better; 23 is its default."""

_MOST_PIXELS, _MOST_FRAMES = 100_000_000, 1_000_000
"""The largest frame, and the largest number of frames, that are read: nine hours at 30 frames a second."""

_FASTEST, _FLATTEST = 240, 4
"""The largest rate of frames, and the largest proportion of the sides of a pixel, that a file is believed to have. Each
frame would be there many times, or be very large."""


@dataclass(frozen=True)
class Film:
    """What a film file holds.

    Attributes:
        path: the file.
        width, height: pixels of a frame as it is shown: upright, and with square pixels.
        rate: frames per second; of a film whose rate changes, a rate that all of it is given in.
        seconds: its length; None if the file does not say.
        sound: the codec of its first sound track, by ffmpeg's name; "" without sound.
        stream: the number of the stream with the pictures.
    """

    path: Path
    width: int
    height: int
    rate: Fraction
    seconds: float | None
    sound: str
    stream: int

    @property
    def frames(self) -> int | None:
        """About how many frames it has; None if the file does not say how long it is."""
        return None if self.seconds is None else max(1, round(self.seconds * self.rate))


def is_film(path: str | os.PathLike[str]) -> bool:
    """Return whether a file name has the ending of a film: one of `FILM_FORMATS`, or another common one."""
    return Path(path).suffix.lower() in (*FILM_FORMATS, ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".wmv", ".flv", ".ogv")


def probe(path: str | os.PathLike[str]) -> Film:
    """Read what a film file holds. No frame is decoded.

    Raises:
        InstError: ffmpeg is not installed; or the file is missing, is not a film, or says that its frames are too large
            or too many.
    """
    check_path("A film", path)
    path = Path(path)
    if not path.is_file():
        raise InstError(f"{path}: no such file" if not path.exists() else f"{path} is not a file", "check the path")
    fields = "stream=index,codec_type,codec_name,width,height,sample_aspect_ratio,avg_frame_rate,r_frame_rate"
    show = f"{fields},duration:stream_disposition=attached_pic:stream_tags=rotate:stream_side_data=rotation"
    command = [_program("ffprobe"), "-v", "error", "-print_format", "json", *_source(path)]
    done = subprocess.run(
        [*command, "-show_entries", f"{show}:format=duration"], capture_output=True, stdin=subprocess.DEVNULL
    )
    if done.returncode:
        raise InstError(
            f"{path} is not a film that ffmpeg can read ({_reason(done.stderr, path)})", "convert it to MP4"
        )
    content: dict[str, Any] = parse_json(done.stdout, "What ffprobe says")
    streams = content.get("streams", [])
    pictures = [one for one in streams if one.get("codec_type") == "video" and one.get("width") and one.get("height")]
    pictures = [one for one in pictures if not one.get("disposition", {}).get("attached_pic")]  # no cover of a song
    if not pictures:
        raise InstError(f"{path} has no pictures", "give a film")
    sounds = [one.get("codec_name", "unknown") for one in streams if one.get("codec_type") == "audio"]
    chosen = pictures[0]
    width, height = _shown_size(chosen)
    length = chosen.get("duration", content.get("format", {}).get("duration"))
    film = Film(path, width, height, _rate(chosen), _number(length), next(iter(sounds), ""), chosen["index"])
    if width * height > _MOST_PIXELS:
        raise InstError(f"{path} has frames of {width} x {height} pixels", "make it smaller")
    if (film.frames or 0) > _MOST_FRAMES:
        raise InstError(f"{path} has {film.frames:,} frames, more than {_MOST_FRAMES:,}", "cut it")
    return film


def read_frames(film: Film | str | os.PathLike[str]) -> Iterator[Tensor]:
    """Decode a film, frame by frame: upright, with square pixels, at the constant rate `Film.rate`.

    Yields:
        [3, H, W] float32 in [-1, 1].

    Raises:
        InstError: an error of `probe`; or the film has no frame or is damaged. The frames before the damage come first.

    Warns:
        InstWarning: ffmpeg read the film to its end, but found something wrong, as in a film that was cut off.
    """
    film = film if isinstance(film, Film) else probe(film)
    # A frame's place in time stays that of the sound, also if the pictures begin later.
    filters = f"scale={film.width}:{film.height},setsar=1,fps={film.rate}:start_time=0"
    # With several threads, it would depend on chance how many frames come before an error.
    command = [_program("ffmpeg"), "-v", "error", "-nostdin", "-xerror", "-threads", "1", *_source(film.path)]
    command += ["-map", f"0:{film.stream}", "-vf", filters, "-f", "rawvideo", "-pix_fmt", "rgb24", "pipe:1"]
    size, count = film.width * film.height * 3, 0
    with tempfile.TemporaryFile() as messages, _running(command, messages, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        while len(data := process.stdout.read(size)) == size:
            count += 1
            if count > _MOST_FRAMES:  # whatever length the file says
                raise InstError(f"{film.path} has more than {_MOST_FRAMES:,} frames", "cut it")
            levels = torch.from_numpy(np.frombuffer(data, np.uint8).copy()).view(film.height, film.width, 3)
            yield levels.permute(2, 0, 1).contiguous().float() / 127.5 - 1
        if process.wait():
            reason = _reason(_text(messages), film.path)
            where = f"is damaged after frame {count}" if count else "cannot be decoded"
            raise InstError(
                f"{film.path} {where} ({reason})", "cut it before the damage, or convert it to another file"
            )
        if not count:
            raise InstError(f"{film.path} has no frames", "give another film")
        if messages.tell():
            warnings.warn(
                InstWarning(f"{film.path} may be damaged ({_reason(_text(messages), film.path)})", "look at its end"),
                stacklevel=2,
            )


def write_film(
    path: str | os.PathLike[str],
    frames: Iterable[Tensor],
    rate: Fraction | float,
    sound_from: Film | None = None,
) -> Path:
    """Write a film: H.264, 4:2:0, BT.709, at a quality without visible loss. The file is written whole or not at all.

    Args:
        path: ends in one of `FILM_FORMATS`.
        frames: [3, H, W] in [-1, 1], all of one size. The format needs even sides: an odd one is repeated at its edge.
        rate: frames per second.
        sound_from: the film whose sound is kept, as it is if the container allows it, otherwise as AAC. None is silent.

    Raises:
        UsageError: another ending, or frames of different sizes.
        InstError: ffmpeg is not installed or fails, or the folder does not exist or is not writable; or there is no
            frame. What `frames` raises is passed on.
    """
    kind = film_format(path)
    program, stream = _program("ffmpeg"), iter(frames)
    first = next(stream, None)
    if first is None:
        raise InstError(f"{path} would have no frames", "give at least one")
    height, width = first.shape[1:]
    command = [program, "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24"]
    command += ["-s", f"{width + width % 2}x{height + height % 2}", "-framerate", str(Fraction(rate)), "-i", "pipe:0"]
    if sound_from is not None and sound_from.sound:
        kept = sound_from.sound in _SOUND.get(kind, (sound_from.sound,))
        command += [*_source(sound_from.path), "-map", "0:v", "-map", "1:a:0", "-c:a", "copy" if kept else "aac"]
        command += [] if kept else ["-b:a", "192k"]
    command += ["-c:v", "libx264", "-crf", _QUALITY, "-pix_fmt", "yuv420p", "-vf", "scale=out_color_matrix=bt709"]
    command += ["-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709", "-color_range", "tv"]
    command += ["-movflags", "+faststart"] if kind in ("mp4", "mov") else []
    with replace_when_finished(path) as unfinished, tempfile.TemporaryFile() as messages:
        command += ["-f", kind, f"file:{unfinished.absolute()}"]
        with _running(command, messages, stdin=subprocess.PIPE) as process:
            assert process.stdin is not None
            try:
                for number, frame in enumerate(chain([first], stream), 1):
                    if frame.shape != first.shape:
                        raise UsageError(
                            f"Frame {number} has {frame.shape[2]} x {frame.shape[1]} pixels, not {width} x {height}",
                            "give frames of one size",
                        )
                    even = F.pad(frame[None], (0, width % 2, 0, height % 2), mode="replicate")
                    process.stdin.write(np.asarray(to_image(even)).tobytes())
                process.stdin.close()
            except BrokenPipeError:
                pass  # its exit status says that it failed
            if process.wait():
                raise InstError(f"{path} cannot be written ({_reason(_text(messages), unfinished)})", "check the disk")
    return Path(path)


def film_format(path: str | os.PathLike[str]) -> str:
    """Return ffmpeg's name of the container for a file's ending. Raises UsageError for another ending."""
    check_path("A film", path)
    suffix = Path(path).suffix
    if suffix.lower() not in FILM_FORMATS:
        ending = f"the ending {suffix}" if suffix else "no ending"
        raise UsageError(f"{path} has {ending}", f"use a file name that ends in {', '.join(FILM_FORMATS)}")
    return FILM_FORMATS[suffix.lower()]


def _source(path: Path) -> list[str]:
    """Return the arguments that open a film. A name may begin with a dash, or look like an address."""
    allowed = ["-protocol_whitelist", "file", "-format_whitelist", _READABLE, "-max_pixels", str(_MOST_PIXELS)]
    return [*allowed, "-i", f"file:{path.absolute()}"]


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise InstError(f"{name} is not installed", "install ffmpeg, or give a folder of frames in place of a film")
    return found


@contextmanager
def _running(
    command: list[str], messages: IO[bytes], stdin: int = subprocess.DEVNULL, stdout: int = subprocess.DEVNULL
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program during the block. Afterwards it runs no more."""
    process = subprocess.Popen(command, stdin=stdin, stdout=stdout, stderr=messages)
    try:
        yield process
    finally:
        process.kill()  # nothing happens if it has ended
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()
        process.wait()


def _text(messages: IO[bytes]) -> bytes:
    messages.seek(0)
    return messages.read(10_000)


def _reason(messages: bytes, path: Path) -> str:
    """Return the first line that ffmpeg printed, without the name of the file and the place in its memory."""
    lines = messages.decode(errors="replace").strip().splitlines() or ["no reason is given"]
    line = lines[0].replace(f"file:{path.absolute()}", "").strip(" :")
    line = line.partition("] ")[2] or line if line.startswith("[") else line
    return line.replace(f" '{_READABLE}'", "")  # "Format not on whitelist"


def _rate(stream: dict[str, Any]) -> Fraction:
    average, lowest = (_fraction(stream.get(name, "")) for name in ("avg_frame_rate", "r_frame_rate"))
    # The second is exact for a constant rate, and much too large for a rate that changes.
    exact = lowest if lowest and average and lowest <= average * Fraction(11, 10) else average
    rate = exact or lowest
    return rate if rate and rate <= _FASTEST else Fraction(25)


def _fraction(text: str) -> Fraction | None:
    """Read "30000/1001" or "4:3". None for "0/0" and the like, and for another text."""
    try:
        found = Fraction(text.replace(":", "/"))
    except (ValueError, ZeroDivisionError):
        return None
    return found if found > 0 else None


def _shown_size(stream: dict[str, Any]) -> tuple[int, int]:
    """Return width and height of a frame upright and with square pixels. No side gets smaller."""
    width, height, aspect = stream["width"], stream["height"], _fraction(stream.get("sample_aspect_ratio", "")) or 1
    if not 1 / _FLATTEST <= aspect <= _FLATTEST:
        aspect = 1
    if aspect > 1:
        width = round(width * aspect)
    else:
        height = round(height / aspect)
    turns = [side.get("rotation", 0) for side in stream.get("side_data_list", [])]
    turn = _number(next(filter(None, turns), stream.get("tags", {}).get("rotate")))
    return (height, width) if round(turn or 0) % 180 == 90 else (width, height)


def _number(value: Any) -> float | None:
    """Read a number that a film says; None for anything else, such as "N/A" or "nan"."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
