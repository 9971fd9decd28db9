"""`inst batch film`: a film goes in and comes out, an interruption loses nothing, and bad films are one clear line."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from inst.batch import film as module
from inst.batch.film import FilmOrder, restyle_film
from inst.files.claiming import held
from inst.pictures.reading import read_picture
from inst.pictures.video import probe, read_frames

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def needs_ffmpeg() -> None:
    """Skip the tests where ffmpeg is not installed; in CI they fail."""
    if shutil.which("ffmpeg") is None:
        if os.environ.get("CI"):
            pytest.fail("needs ffmpeg (on Debian: apt-get install ffmpeg)")
        pytest.skip("needs ffmpeg (on Debian: apt-get install ffmpeg)")


@pytest.fixture
def film(run: Run) -> Path:
    """A film of five frames with sound, in the current folder, and a painting beside it."""
    source = ["-f", "lavfi", "-i", "testsrc2=size=96x64:rate=10:duration=0.5", "-f", "lavfi", "-i", "sine=duration=0.5"]
    subprocess.run(["ffmpeg", "-v", "error", *source, "-pix_fmt", "yuv420p", "film.mp4"], check=True)
    picture("painting.png", 1)
    return Path("film.mp4")


def picture(name: str | Path, seed: int, size: tuple[int, int] = (96, 64)) -> None:
    levels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(levels).resize(size, Image.Resampling.BICUBIC).save(name)


@pytest.fixture
def command(run: Run, common: list[object]) -> Run:
    """Run `inst batch film` with the tiny model."""
    return lambda *given: run("batch", "film", *given, "-s", "painting.png", "--steps", "2", "--size", "64", *common)


def test_a_film_keeps_its_length_rate_and_sound(film: Path, command: Run) -> None:
    code, out, err = command(film, "-o", "new.mp4", "--json")
    assert code == 0, err
    facts = json.loads(out)
    assert (facts["film"], facts["frames"], facts["made"]) == ("new.mp4", 5, 5)
    old, new = probe(film), probe("new.mp4")
    assert (new.width, new.height, new.rate, new.sound) == (96, 64, old.rate, "aac")
    assert len(list(read_frames(new))) == 5
    assert not Path("new.mp4.frames").exists()
    # It is another picture than before, and the frames are not all the same.
    before, after = next(read_frames(old)), list(read_frames(new))
    assert (before - after[0]).abs().mean() > 0.05
    assert (after[0] - after[-1]).abs().mean() > 0.001


def test_an_interrupted_film_goes_on_and_ends_as_an_undisturbed_one(
    film: Path, command: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command(film, "-o", "whole.mp4")[0] == 0
    saved = []

    def interrupt(content: torch.Tensor, path: Path, **more: object) -> None:
        if len(saved) == 2:
            raise KeyboardInterrupt
        saved.append(path)
        original(content, path)

    original = module.save_png
    with monkeypatch.context() as patch:
        patch.setattr(module, "save_png", interrupt)
        code, out, err = command(film, "-o", "new.mp4")
    assert (code, out) == (130, "")
    assert "2 frames are finished. The same command goes on." in err
    assert not Path("new.mp4").exists()
    code, out, _ = command(film, "-o", "new.mp4")
    assert code == 0
    assert out.startswith("5 frames, 3 of them made in")
    assert Path("new.mp4").read_bytes() == Path("whole.mp4").read_bytes()


def test_frames_of_a_folder_become_frames_or_a_film(film: Path, command: Run) -> None:
    Path("frames").mkdir()
    for number in (2, 10, 1):  # 10 comes after 2
        picture(Path("frames", f"shot{number}.png"), number)
    assert command("frames", "-o", "new")[0] == 0
    assert sorted(os.listdir("new")) == ["film.json", "shot1.png", "shot10.png", "shot2.png"]
    assert command("frames", "-o", "new.mp4", "--rate", "12.5")[0] == 0
    made = probe("new.mp4")
    assert (float(made.rate), made.sound) == (12.5, "")
    last = list(read_frames(made))[-1]
    distances = {
        name: float((read_picture(Path("new", name)) - last).abs().mean()) for name in ("shot2.png", "shot10.png")
    }
    assert distances["shot10.png"] < distances["shot2.png"]


def test_other_settings_do_not_mix_with_the_frames_of_a_run_before(film: Path, command: Run) -> None:
    assert command(film, "-o", "new")[0] == 0
    before = {path.name: path.read_bytes() for path in Path("new").iterdir()}
    code, _, err = command(film, "-o", "new", "--seed", "5")
    assert code == 2
    assert err == (
        "Error: new holds the frames of another film, or of other settings: delete it, or give another name.\n"
    )
    assert {path.name: path.read_bytes() for path in Path("new").iterdir()} == before
    code, out, _ = command(film, "-o", "new")
    assert (code, out.splitlines()[0][:24]) == (0, "5 frames, 0 of them made")


def test_a_film_that_is_damaged_in_its_middle_keeps_its_first_frames(film: Path, command: Run) -> None:
    source = ["-f", "lavfi", "-i", "testsrc2=size=96x64:rate=10:duration=2"]
    subprocess.run(["ffmpeg", "-v", "error", *source, "-pix_fmt", "yuv420p", "bad.mp4"], check=True)
    data = bytearray(Path("bad.mp4").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 300] = bytes(range(1, 256)) + bytes(45)
    Path("bad.mp4").write_bytes(data)
    code, out, err = command("bad.mp4", "-o", "new.mp4")
    assert (code, out) == (1, "")
    assert err.startswith("Error: bad.mp4 is damaged after frame ")
    assert err.count("\n") == 1
    assert not Path("new.mp4").exists()
    assert Path("new.mp4.frames", "000001.png").exists()


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (["nowhere.mp4", "-o", "new.mp4"], "nowhere.mp4: no such file: check the path"),
        (["painting.png", "-o", "new.mp4"], ""),
        (["empty", "-o", "new.mp4"], "empty contains no frames: give a film, or a folder with pictures"),
        (["film.mp4", "-o", "film.mp4"], "film.mp4 would be overwritten: give another name for the result"),
        (["film.mp4", "-o", "new.wmv"], "new.wmv has the ending .wmv: use a file name that ends in"),
        (["film.mp4", "-o", "painting.png"], "painting.png is a file: give a folder for the frames"),
        (["film.mp4", "-o", "full"], "full holds other files: give a folder that is new or empty"),
        (["film.mp4", "-o", "new.mp4", "--rate", "12"], "A rate is only for a film that is made from frames"),
        (["empty", "-o", "new.mp4", "--rate", "1e-9"], "1e-09 frames a second cannot be used: give a number from 0.01"),
        (["empty", "-o", "new.mp4", "--rate", "nan"], "nan frames a second cannot be used: give a number from 0.01"),
        (["empty", "-o", "new.mp4", "--rate", "1e9"], "1000000000.0 frames a second cannot be used: give a number"),
        (["gone", "-o", "new"], "gone/1.png: no such file: check the path"),
        (["pipes", "-o", "new"], "pipes/1.png is not a regular file: copy it to a file first"),
        (["film.mp4", "-o", "new", "--strength", "3"], "A strength of 3.0 cannot be used"),
        (["film.mp4", "-o", "s3://bucket/new.mp4"], "s3:/bucket/new.mp4 is a URL: give a film or a folder on this"),
        (["https://host/film.mp4", "-o", "new.mp4"], "https:/host/film.mp4 is a URL: give a film or a folder on this"),
        (["twice", "-o", "new"], "twice/1.PNG and 1.jpg would be one frame: rename one of them, or move it away"),
    ],
)
def test_a_mistake_is_one_clear_line_and_writes_nothing(
    film: Path, command: Run, given: list[str], problem: str
) -> None:
    Path("empty").mkdir()
    Path("full").mkdir()
    Path("full", "letter.txt").write_text("dear")
    Path("twice").mkdir()
    picture("twice/1.PNG", 1)
    picture("twice/1.jpg", 2)
    Path("gone").mkdir()
    Path("gone", "1.png").symlink_to("nowhere")
    Path("pipes").mkdir()
    os.mkfifo("pipes/1.png")
    before = sorted(str(path) for path in Path().rglob("*"))
    code, out, err = command(*given)
    assert code in (1, 2), (out, err)
    assert out == ""
    assert err.startswith(f"Error: {problem}")
    assert err.count("\n") == 1
    assert sorted(str(path) for path in Path().rglob("*")) == before


def test_without_ffmpeg_it_says_so_before_the_work_and_folders_still_do(
    command: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("frames").mkdir()
    picture("frames/1.png", 1)
    picture("painting.png", 2)
    monkeypatch.setenv("PATH", "")
    code, _, err = command("frames", "-o", "new.mp4")
    assert (code, err) == (1, "Error: ffmpeg is not installed: install it, or give folders for the frames.\n")
    assert not Path("new.mp4.frames").exists()
    assert command("frames", "-o", "new")[0] == 0


def test_frames_of_two_sizes_are_refused_and_those_before_stay(film: Path, command: Run) -> None:
    Path("frames").mkdir()
    picture("frames/1.png", 1)
    picture("frames/2.png", 2, (64, 64))
    code, _, err = command("frames", "-o", "new")
    assert code == 2
    assert "Frame 2 has 64 x 64 pixels, the first one 96 x 64" in err
    assert sorted(os.listdir("new")) == ["1.png", "film.json"]


def test_a_film_is_not_there_before_it_is_complete(film: Path, tiny_backbone: object) -> None:
    from inst.learning.instant import read_style

    style = {"[C]": read_style(tiny_backbone, "painting.png")}  # type: ignore[arg-type]
    order = FilmOrder(film, Path("new.mp4"), style, {"steps": 1, "size": 64, "seed": 0})
    steps = restyle_film(tiny_backbone, order)  # type: ignore[arg-type]
    for _ in range(3):
        next(steps)
        assert not Path("new.mp4").exists()
    steps.close()
    assert len(list(Path("new.mp4.frames").glob("*.png"))) == 3


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def shrink(path: Path) -> None:
    picture(path, 1, (32, 32))


@pytest.mark.parametrize("change", [damage, shrink, Path.unlink, lambda path: path.write_bytes(b"")])
def test_a_frame_that_was_damaged_since_is_made_again(
    film: Path, command: Run, change: Callable[[Path], object]
) -> None:
    assert command(film, "-o", "new")[0] == 0
    before = {path.name: path.read_bytes() for path in Path("new").iterdir()}
    change(Path("new", "000003.png"))
    code, out, err = command(film, "-o", "new")
    assert (code, out[:24]) == (0, "5 frames, 3 of them made"), err
    assert {path.name: path.read_bytes() for path in Path("new").iterdir()} == before


@pytest.mark.parametrize("description", [b"", b"[" * 100_000, b"7", b"\xff", b'{"kind": NaN}', None])
def test_a_damaged_description_is_one_line_and_nothing_changes(
    film: Path, command: Run, description: bytes | None
) -> None:
    Path("new").mkdir()
    if description is None:
        os.mkfifo("new/film.json")
    else:
        Path("new", "film.json").write_bytes(description)
    code, _, err = command(film, "-o", "new")
    assert (code, err.count("\n")) == (2, 1)
    assert "holds the frames of another film" in err or "holds other files" in err
    assert os.listdir("new") == ["film.json"]


def test_two_runs_do_not_make_one_film(film: Path, command: Run) -> None:
    pytest.importorskip("fcntl")
    with held("new.mp4"):
        code, _, err = command(film, "-o", "new.mp4")
    assert code == 1
    assert err.startswith(f"Error: new.mp4 is being written by process {os.getpid()} on ")
    assert not Path("new.mp4.frames").exists()


def test_a_file_of_others_among_the_frames_stays(film: Path, command: Run) -> None:
    order = ["-o", "new.mp4"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_put_together", lambda *_: Path("new.mp4.frames", "letter.txt").write_text("dear"))
        assert command(film, *order)[0] == 0
    assert os.listdir("new.mp4.frames") == ["letter.txt"]


def test_a_film_that_is_there_is_replaced_and_the_command_says_so(film: Path, command: Run) -> None:
    Path("new.mp4").write_bytes(b"another film")
    code, _, err = command(film, "-o", "new.mp4")
    assert (code, err) == (0, "new.mp4 is there. It is replaced when the new film is finished.\n")
    assert len(list(read_frames("new.mp4"))) == 5
