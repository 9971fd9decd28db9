"""Films by ffmpeg: what is read is what is shown, and a hostile, broken or missing film is one clear line."""

import json
import os
import shutil
import subprocess
from fractions import Fraction
from itertools import islice
from pathlib import Path

import psutil
import pytest
import torch

from inst import InstError, InstWarning, UsageError
from inst.pictures import video
from inst.pictures.video import Film, film_format, is_film, probe, read_frames, write_film


@pytest.fixture(autouse=True)
def needs_ffmpeg() -> None:
    """Skip the tests where ffmpeg is not installed; in CI they fail."""
    if shutil.which("ffmpeg") is None or shutil.which("ffprobe") is None:
        reason = "needs ffmpeg (on Debian: apt-get install ffmpeg)"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)


def ffmpeg(*arguments: object) -> None:
    subprocess.run(["ffmpeg", "-v", "error", "-y", *map(str, arguments)], check=True, stdin=subprocess.DEVNULL)


def make(path: Path, *more: object, size: str = "96x64", rate: object = 10, sound: bool = False) -> Path:
    """Write a film of one second."""
    inputs: list[object] = ["-f", "lavfi", "-i", f"testsrc2=size={size}:rate={rate}:duration=1"]
    inputs += ["-f", "lavfi", "-i", "sine=duration=1"] if sound else []
    ffmpeg(*inputs, *more, f"file:{path}")
    return path


def colours(count: int, height: int = 48, width: int = 64) -> list[torch.Tensor]:
    """Frames of one colour each."""
    levels = torch.linspace(-0.8, 0.8, count)
    return [torch.stack([level, -level, level / 2])[:, None, None].expand(3, height, width) for level in levels]


def damage(path: Path, share: float) -> None:
    data = bytearray(path.read_bytes())
    place = int(len(data) * share)
    data[place : place + 300] = bytes(range(1, 256)) + bytes(45)
    path.write_bytes(data)


# Reading


def test_a_film_is_read_frame_by_frame(tmp_path: Path) -> None:
    path = make(tmp_path / "film.mp4", sound=True, rate="24000/1001")
    film = probe(path)
    assert (film.width, film.height, film.rate, film.sound) == (96, 64, Fraction(24000, 1001), "aac")
    frames = list(read_frames(film))
    assert len(frames) == film.frames == 24
    assert all(frame.shape == (3, 64, 96) and frame.dtype == torch.float32 for frame in frames)
    assert min(frame.min() for frame in frames) >= -1


def test_the_colours_and_the_order_of_lossless_frames_stay(tmp_path: Path) -> None:
    wanted = colours(5)
    raw = b"".join(((frame + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy().tobytes() for frame in wanted)
    source = ["ffmpeg", "-v", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "64x48", "-r", "5", "-i", "pipe:0"]
    path = tmp_path / "film.mkv"
    subprocess.run([*source, "-c:v", "ffv1", "-pix_fmt", "bgr0", str(path)], input=raw, check=True)
    found = list(read_frames(path))
    assert len(found) == 5
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=0.004, rtol=0)


def test_a_turned_film_is_read_upright(tmp_path: Path) -> None:
    path = make(tmp_path / "film.mp4", size="96x64")
    turned = tmp_path / "turned.mp4"
    ffmpeg("-i", path, "-c", "copy", "-metadata:s:v", "rotate=90", turned)
    film = probe(turned)
    assert (film.width, film.height) == (64, 96)
    upright, lying = next(read_frames(film)), next(read_frames(path))
    assert min((upright - lying.rot90(k, (1, 2))).abs().mean() for k in (1, 3)) < 0.01


def test_pixels_that_are_not_square_are_stretched_to_squares(tmp_path: Path) -> None:
    film = probe(make(tmp_path / "film.mkv", "-vf", "setsar=2/1", "-c:v", "ffv1"))
    assert (film.width, film.height) == (192, 64)
    assert next(read_frames(film)).shape == (3, 64, 192)


def test_proportions_of_pixels_that_no_film_has_are_not_believed(tmp_path: Path) -> None:
    film = probe(make(tmp_path / "film.mkv", "-vf", "setsar=200/1", "-c:v", "ffv1"))
    assert (film.width, film.height) == (96, 64)


def test_a_changing_frame_rate_becomes_constant(tmp_path: Path) -> None:
    changing = "select='not(mod(n,4))+lt(n,8)'"  # every frame at first, then every fourth
    path = make(tmp_path / "film.mkv", "-vf", changing, "-fps_mode", "vfr", "-c:v", "ffv1", rate=20)
    film = probe(path)
    assert abs(len(list(read_frames(film))) - film.rate) <= 3  # it lasts a second


def test_pictures_that_begin_later_than_the_sound_keep_their_place_in_time(tmp_path: Path) -> None:
    path = make(tmp_path / "film.mkv", "-vf", "setpts=PTS+0.5/TB", "-c:v", "ffv1", sound=True)
    assert 14 <= len(list(read_frames(path))) <= 16


def test_the_cover_of_a_song_is_not_a_film(tmp_path: Path) -> None:
    cover, song = tmp_path / "cover.png", tmp_path / "song.m4a"
    ffmpeg("-f", "lavfi", "-i", "color=red:size=64x64", "-frames:v", 1, cover)
    inputs = ["-f", "lavfi", "-i", "sine=duration=1", "-i", cover, "-map", 0, "-map", 1]
    ffmpeg(*inputs, "-c:v", "copy", "-disposition:v", "attached_pic", song)
    with pytest.raises(InstError, match="has no pictures"):
        probe(song)


@pytest.mark.parametrize("name", ["-film.mp4", "http:film.mp4", "a%03d film.mp4", "concat:a|b.mp4"])
def test_any_file_name_can_be_read_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    write_film(name, colours(3), 5)
    assert len(list(read_frames(name))) == 3
    assert os.listdir() == [name]


# What cannot be read


def test_a_playlist_is_refused_and_nothing_is_fetched(tmp_path: Path) -> None:
    make(tmp_path / "film.mp4")
    playlists = {
        "hls.mp4": "#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/film.ts\n#EXT-X-ENDLIST\n",
        "hls.m3u8": "#EXTM3U\n#EXTINF:1,\nfilm.mp4\n#EXT-X-ENDLIST\n",
        "concat.mp4": "ffconcat version 1.0\nfile film.mp4\n",
        "local.mp4": "#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n",
        "nested.mp4": "#EXTM3U\n#EXTINF:1,\nconcat:film.mp4|film.mp4\n#EXT-X-ENDLIST\n",
        "dash.mp4": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" profiles="x"></MPD>',
        "session.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\n",
    }
    for name, content in playlists.items():
        (tmp_path / name).write_text(content)
        with pytest.raises(InstError, match="is not a film that ffmpeg can read") as caught:
            probe(tmp_path / name)
        assert "127.0.0.1" not in str(caught.value)
        assert "\n" not in str(caught.value)


HUGE = 10**9


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"width": HUGE, "height": HUGE}, "has frames of 1000000000 x 1000000000 pixels: make it smaller"),
        ({"sample_aspect_ratio": "1000000000:1"}, ""),
        ({"avg_frame_rate": "1000000000/1", "r_frame_rate": "1000000000/1"}, ""),
        ({"avg_frame_rate": "nan", "r_frame_rate": "1/0"}, ""),
        ({"duration": "1e18"}, "frames, more than 1,000,000: cut it"),
        ({"duration": "nan"}, ""),
        ({"duration": "inf"}, ""),
        ({"duration": "N/A"}, ""),
        ({"duration": "-5"}, ""),
        ({"tags": {"rotate": "nan"}}, ""),
        ({"tags": {"rotate": "north"}}, ""),
        ({"side_data_list": [{"rotation": 1e300}]}, ""),
    ],
)
def test_absurd_numbers_of_a_film_are_refused_or_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: dict[str, object], words: str
) -> None:
    """A program in the place of ffprobe says them."""
    stream = {"index": 0, "codec_type": "video", "width": 96, "height": 64, "avg_frame_rate": "10/1"} | said
    (tmp_path / "ffprobe").write_text(f"#!/bin/sh\ncat <<'END'\n{json.dumps({'streams': [stream]})}\nEND\n")
    (tmp_path / "ffprobe").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    (tmp_path / "film.mp4").touch()
    if words:
        with pytest.raises(InstError, match=words):
            probe(tmp_path / "film.mp4")
    else:
        film = probe(tmp_path / "film.mp4")
        assert (film.width, film.height) == (96, 64)
        assert film.rate <= 240
        assert film.frames is None or film.frames >= 1


def test_a_film_that_goes_on_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    film = probe(make(tmp_path / "film.mp4"))
    monkeypatch.setattr(video, "_MOST_FRAMES", 4)
    frames = read_frames(film)
    assert sum(1 for _ in islice(frames, 4)) == 4
    with pytest.raises(InstError, match="has more than 4 frames: cut it"):
        next(frames)


@pytest.mark.parametrize("content", [b"", b"text", bytes(range(256)) * 20])
def test_what_is_no_film_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "film.mp4"
    path.write_bytes(content)
    with pytest.raises(InstError, match="is not a film that ffmpeg can read") as caught:
        probe(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    for path, words in ((tmp_path / "none.mp4", "no such file"), (tmp_path, "is not a file")):
        with pytest.raises(InstError, match=words):
            probe(path)


def test_the_frames_before_damage_are_given_and_then_the_error(tmp_path: Path) -> None:
    path = make(tmp_path / "film.mp4", "-g", 5, size="320x240", rate=40)
    damage(path, 0.6)
    found = []
    with pytest.raises(InstError, match=r"is damaged after frame \d+ \(.+\): cut it") as caught:
        found.extend(frame for frame in read_frames(path))
    assert 5 < len(found) < 40
    assert f"after frame {len(found)} " in str(caught.value)


def test_a_film_that_was_cut_off_gives_what_is_there(tmp_path: Path) -> None:
    path = make(tmp_path / "film.mkv", "-c:v", "ffv1", "-g", 1)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    with pytest.warns(InstWarning, match="may be damaged"):
        found = list(read_frames(path))
    assert 3 <= len(found) < 10


def test_without_ffmpeg_the_remedy_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(tmp_path / "film.mp4")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InstError, match="ffprobe is not installed: install ffmpeg, or give a folder of frames"):
        probe(path)
    with pytest.raises(InstError, match="ffmpeg is not installed"):
        write_film(tmp_path / "new.mp4", colours(2), 5)
    assert os.listdir(tmp_path) == ["film.mp4"]


def test_a_reader_that_stops_early_leaves_no_process(tmp_path: Path) -> None:
    path = make(tmp_path / "film.mp4", size="640x480", rate=50)
    before = {child.pid for child in psutil.Process().children()}  # other tests may have left some
    frames = read_frames(path)
    next(frames)
    reader = {child.pid for child in psutil.Process().children()} - before
    assert len(reader) == 1
    frames.close()
    assert not reader & {child.pid for child in psutil.Process().children()}


# Writing


@pytest.mark.parametrize("size", [(48, 64), (47, 63), (1, 1)])
def test_a_written_film_has_the_frames(tmp_path: Path, size: tuple[int, int]) -> None:
    wanted = colours(6, *size)
    path = write_film(tmp_path / "film.mp4", wanted, Fraction(30000, 1001))
    film = probe(path)
    assert (film.rate, film.sound) == (Fraction(30000, 1001), "")
    assert (film.height, film.width) == tuple(side + side % 2 for side in size)
    found = list(read_frames(film))
    assert len(found) == 6
    for one, other in zip(found, wanted, strict=True):
        assert (one[:, : size[0], : size[1]] - other).abs().max() < 0.04


@pytest.mark.parametrize(
    ("codec", "ending", "kept"),
    [
        ("aac", ".mp4", "aac"),
        ("pcm_s16le", ".mp4", "aac"),
        ("pcm_s16le", ".mov", "pcm_s16le"),
        ("flac", ".mkv", "flac"),
    ],
)
def test_the_sound_is_kept(tmp_path: Path, codec: str, ending: str, kept: str) -> None:
    source = probe(make(tmp_path / "source.mkv", "-c:v", "ffv1", "-c:a", codec, sound=True))
    film = probe(write_film(tmp_path / f"film{ending}", read_frames(source), source.rate, source))
    assert film.sound == kept
    assert film.seconds == pytest.approx(1, abs=0.1)
    assert len(list(read_frames(film))) == 10


def test_a_failed_film_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    path.write_bytes(b"old")

    def broken() -> object:
        yield from colours(2)
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        write_film(path, broken(), 5)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="Frame 3 has 64 x 20 pixels, not 64 x 48"):
        write_film(path, [*colours(2), *colours(1, 20)], 5)
    with pytest.raises(InstError, match="would have no frames"):
        write_film(path, [], 5)
    lost = Film(tmp_path / "lost.mp4", 64, 48, Fraction(5), 1.0, "aac", 0)
    with pytest.raises(InstError, match="cannot be written"):
        write_film(path, colours(2), 5, lost)
    with pytest.raises(InstError, match="does not exist"):
        write_film(tmp_path / "none" / "film.mp4", colours(2), 5)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["film.mp4"]


def test_other_endings_are_refused() -> None:
    assert film_format("A.MP4") == "mp4"
    for name in ("film.gif", "film"):
        with pytest.raises(UsageError, match=r"use a file name that ends in \.mp4"):
            film_format(name)
    assert is_film("holiday.MOV")
    assert not is_film("photo.jpg")
