"""What `-o` names: a file, a folder that exists, or a folder to be made; and names that are too long or not UTF-8."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import inst
from inst.styles.style import Style
from inst.synthesis.record import read_record
from pictures import quarters

Run = Callable[..., tuple[int, str, str]]
LEARN = ("--steps", 1, "--crops", 1, "--validate-every", 0)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_backbone: inst.Backbone) -> Path:
    monkeypatch.chdir(tmp_path)
    quarters().save("photo.png")
    Style(torch.ones(3, 32), fingerprint=tiny_backbone.fingerprint, about={"name": "one"}).save("one.safetensors")
    return tmp_path


def files(place: str) -> list[str]:
    return sorted(path.name for path in Path(place).iterdir())


def test_a_slash_at_the_end_names_a_folder_to_be_made(run: Run, common: list[object]) -> None:
    transfer = ("transfer", "photo.png", "-s", "photo.png", "--steps", 1, *common)
    for command, out, made in (
        ((*transfer, "--count", 2), "new/one/", ["photo-photo-2.png", "photo-photo.png"]),
        (("generate", "a dog by [C]", "-s", "photo.png", "--steps", 1, *common), "new/two/", ["photo.png"]),
        (
            ("sheet", "photo.png", "-s", "photo.png", "--steps", 1, "--strengths", 0.5, "--guidances", 1, *common),
            "new/three/",
            ["photo-sheet.png"],
        ),
        (
            ("repeat", "new/one/photo-photo.png", "--photo", "photo.png", *common),
            "new/four/",
            ["photo-photo-again.png"],
        ),
        (("learn", "photo.png", *LEARN, *common), "new/five/", ["photo.safetensors"]),
        (("style", "mix", "one.safetensors"), "new/six/", ["one.safetensors"]),
        (("style", "export", "one.safetensors", "--to", "a1111"), "new/seven/", ["one.safetensors"]),
        (("style", "import", "new/seven/one.safetensors", *common), "new/eight/", ["one.safetensors"]),
    ):
        code, printed, err = run(*command, "-o", out)
        assert (code, err) == (0, "")
        assert files(out) == made
        assert str(Path(out) / made[0]) in printed


def test_a_folder_that_exists_needs_no_slash_and_a_file_is_no_folder(run: Run, common: list[object]) -> None:
    Path("there").mkdir()
    assert run("style", "mix", "one.safetensors", "-o", "there")[0] == 0
    assert files("there") == ["one.safetensors"]
    before = Path("photo.png").read_bytes()
    code, _, err = run("transfer", "photo.png", "-s", "photo.png", *common, "-o", "photo.png/")
    assert (code, err) == (1, "Error: photo.png is a file: choose a folder.\n")
    assert Path("photo.png").read_bytes() == before


def test_a_name_without_an_ending_is_no_folder(run: Run, common: list[object]) -> None:
    code, _, err = run("transfer", "photo.png", "-s", "photo.png", *common, "-o", "made")
    assert (code, err) == (
        2,
        "Error: made has no ending: use a file name that ends in .png, .jpg, .jpeg, .webp.\n",
    )


@pytest.mark.parametrize("command", [("create", "--from", "."), ("simulate", "study.db")])
def test_the_file_of_a_study_is_no_folder(run: Run, command: tuple[str, ...]) -> None:
    code, _, err = run("study", *command, "-o", "new/")
    assert (code, err) == (2, "Error: new/ is a folder: give the name of a file with -o.\n")
    assert not Path("new").exists()


@pytest.mark.parametrize("ending", [".pt", ".bin", ".safetensors"])
@pytest.mark.parametrize("command", [("transfer", "photo.png"), ("generate", "[C]"), ("sheet", "photo.png")])
def test_an_embedding_as_style_is_refused_with_how_to_import_it(
    run: Run, common: list[object], command: tuple[str, ...], ending: str
) -> None:
    content = {"emb_params": torch.ones(2, 32)}
    save_file(content, "found.safetensors") if ending == ".safetensors" else torch.save(content, f"found{ending}")
    code, out, err = run(*command, "-s", f"found{ending}", "--steps", 1, *common)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.endswith("or make one from an embedding with `inst style import`.\n")
    assert run("style", "import", f"found{ending}", "-o", "imported.safetensors", *common)[0] == 0
    code, _, err = run("generate", "[C]", "-s", "imported.safetensors", "--steps", 1, "--tone", "none", *common)
    assert code == 0, err


# Names that are too long


def test_names_made_of_long_names_are_shortened(run: Run, common: list[object]) -> None:
    photo, painting = "n" * 251 + ".png", "é" * 125 + ".png"
    for name in (photo, painting):
        shutil.copy("photo.png", name)
    code, out, err = run("transfer", photo, "-s", painting, "--steps", 1, *common)
    assert (code, err) == (0, "")
    assert len(Path(out.strip()).name) == 204
    code, out, err = run("learn", painting, *LEARN, "--preview-every", 1, *common)
    assert (code, err) == (0, "")
    assert Path(out.strip()).is_file()


def test_a_given_name_that_is_too_long_is_refused_in_one_line(run: Run, common: list[object]) -> None:
    long = "n" * 300
    transfer = ("transfer", "photo.png", "-s", "photo.png", *common)
    for command in (
        ("transfer", f"{long}.png", "-s", "photo.png", *common),
        ("transfer", "photo.png", "-s", f"{long}.png", *common),
        (*transfer, "-o", f"{long}.png"),
        (*transfer, "-o", f"{long}/"),
        (*transfer, "--count", 2, "-o", f"{'n' * 250}.png"),
        (*transfer, "--mask", f"{long}.png"),
        ("learn", "photo.png", *LEARN, *common, "-o", f"{long}.safetensors"),
        ("learn", "photo.png", *LEARN, *common, "-o", f"{'n' * 240}.safetensors"),
        ("style", "info", long),
        ("evaluate", long),
        ("repeat", long),
        ("study", "create", "--from", ".", "-o", long),
    ):
        code, out, err = run(*command)
        assert (code, out, err.count("\n")) == (1, "", 1), err
        assert "File name too long" in err
    assert files(".") == ["one.safetensors", "photo.png"]


def test_a_comparison_refuses_names_that_are_too_long_together(run: Run, common: list[object]) -> None:
    photo, painting = "a" * 140 + ".png", "b" * 140 + ".png"
    for name in (photo, painting):
        shutil.copy("photo.png", name)
    options = ("--methods", "inst-instant", "--no-figures", "-o", "made", *common)
    code, _, err = run("compare", "--photos", photo, "--paintings", painting, *options)
    assert code == 2
    assert err.endswith("are too long together for the name of their result: rename one.\n")
    assert not Path("made").exists()
    code, _, err = run("compare", "--photos", "photo.png", "--paintings", painting, *options)
    assert (code, err) == (0, "")


# Names that are not UTF-8


@pytest.mark.skipif(sys.platform != "linux", reason="needs names of any bytes")
def test_names_that_are_not_utf_8_are_read_written_and_recorded(run: Run, common: list[object]) -> None:
    photo, made, style = (os.fsdecode(name) for name in (b"\xff.png", b"made\xfe.png", b"style\xfd.safetensors"))
    paintings = Path(os.fsdecode(b"paintings\xfc"))
    paintings.mkdir()
    for name in (Path(photo), paintings / photo):
        shutil.copy("photo.png", name)
    options = ("--json", *common)
    code, out, err = run("learn", paintings, *LEARN, "-o", style, *options)
    assert (code, err) == (0, "")
    assert json.loads(out)["style"] == style
    assert Style.load(style).name == "style%FD"
    code, out, _ = run("style", "info", style)
    assert code == 0
    assert "%FF.png" in out
    code, out, err = run("transfer", photo, "-s", style, "--steps", 1, "-o", made, *options)
    assert (code, json.loads(out)["pictures"], err) == (0, [made], "")
    record = read_record(made)
    assert record.photo is not None
    assert record.photo.name == "%FF.png"
    code, _, err = run("repeat", made, "--photo", photo, "-o", "again.png", *options)
    assert (code, err) == (0, "")
    assert Image.open("again.png").tobytes() == Image.open(made).tobytes()
    exported, copied = (os.fsdecode(name) for name in (b"exported\xf9.safetensors", b"copied\xf8.safetensors"))
    assert run("style", "export", style, "--to", "diffusers", "-o", exported, *options[:1])[0] == 0
    code, _, err = run("style", "import", exported, "--name", "again", "-o", copied, *options)
    assert (code, err) == (0, "")
    assert torch.equal(Style.load(copied).vectors, Style.load(style).vectors)
    sheet = ("sheet", photo, "-s", style, "-s", paintings, "--steps", 1, "--strengths", 0.5, "--guidances", 1)
    assert run(*sheet, *options)[::2] == (0, "")


@pytest.mark.skipif(sys.platform != "linux", reason="needs names of any bytes")
def test_a_model_whose_name_is_not_utf_8_is_refused_in_one_line(run: Run) -> None:
    Path(os.fsdecode(b"model\xff")).mkdir()
    # The path in the message is the bytes of the name, which the captured streams of this test are not to hold.
    code, out, _ = run("doctor", "--backbone", os.fsdecode(b"model\xff"), "--device", "cpu", "--json")
    assert code == 1
    assert json.loads(out)["error"].endswith("has a name that is not UTF-8: rename it.")


@pytest.mark.skipif(sys.platform != "linux", reason="needs names of any bytes")
def test_names_that_are_not_utf_8_are_compared_evaluated_and_shown_to_people(run: Run, common: list[object]) -> None:
    for kind in ("from-photos", "from-paintings", os.fsdecode(b"their\xfb")):
        Path(kind).mkdir()
    for name in ("a.png", os.fsdecode(b"\xff.png")):
        shutil.copy("photo.png", Path("from-photos") / name)
    shutil.copy("photo.png", Path("from-paintings") / os.fsdecode(b"\xfe.png"))
    other = Path(os.fsdecode(b"their\xfb"))
    for name in (b"a__\xfe.png", b"\xff__\xfe.png"):
        shutil.copy("photo.png", other / os.fsdecode(name))
    sources = ("--photos", "from-photos", "--paintings", "from-paintings")
    options = ("--json", "--methods", "inst-instant", "--outputs", f"theirs={other}", "--no-figures", *common)
    code, out, err = run("compare", *sources, "-o", "made", *options)
    assert (code, err, json.loads(out)["left_out"]) == (0, "", [])
    assert files("made/theirs") == ["%FF__%FE.png", "a__%FE.png"]
    shutil.copytree(other, Path("made") / other)  # a folder of results that another program wrote
    code, out, err = run("evaluate", "made", "--metrics", "colour", "-o", "scores", "--size", 32, "--json", *common)
    assert code == 0, err
    rows = [row for row in json.loads(out)["rows"] if row["kind"] == "method"]
    assert {(row["label"], row["pictures"]) for row in rows} == {("inst-instant", 2), ("theirs", 2), ("their%FB", 2)}
    for name in ("index.html", "figures.md", "pictures.csv"):
        assert "their%FB" in Path("scores", name).read_text(encoding="utf-8")
    code, out, err = run(
        "study", "create", "--from", "made", "-o", "study.db", "--ours", "theirs", "--json", "--checks", 0
    )
    assert (code, err.count("Error")) == (0, 0), err
    assert json.loads(out)["pairs"] == {"inst-instant": 2, "their%FB": 2}


# Names that were not meant


@pytest.mark.parametrize(
    "command",
    [
        ("transfer", "photo.png", "-s", ""),
        ("transfer", "photo.png", "-s", "A=", "--prompt", "[A]"),
        ("transfer", "", "-s", "photo.png"),
        ("transfer", "photo.png", "-s", "photo.png", "--mask", ""),
        ("transfer", "photo.png", "-s", "photo.png", "-o", ""),
        ("sheet", "photo.png", "-s", ""),
        ("learn", ""),
        ("learn", "photo.png", "--begin="),
        ("repeat", ""),
        ("style", "info", ""),
        ("style", "mix", "=2"),
        ("evaluate", ""),
        ("compare", "--photos", "", "--paintings", "photo.png"),
        ("study", "create", "--from", "", "-o", "study.db"),
        ("weights", "get", "vgg19", "--from", ""),
    ],
)
def test_an_empty_path_is_not_the_current_folder(run: Run, command: tuple[str, ...]) -> None:
    before = files(".")
    code, out, err = run(*command)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "cannot be used: the path is empty: give" in err
    assert files(".") == before


def test_control_characters_of_a_name_are_escaped_in_messages(run: Run) -> None:
    code, _, err = run("transfer", "a\x1b[31m\nb\x9b.png", "-s", "photo.png")
    assert (code, err) == (1, "Error: a\\x1b[31m\\nb\\x9b.png: no such file: check the path.\n")


def test_files_of_derived_names_are_not_overwritten(run: Run, common: list[object]) -> None:
    Path("made-2.png").write_bytes(b"precious")
    code, _, err = run("transfer", "photo.png", "-s", "photo.png", *common, "--count", 2, "-o", "made.png")
    assert (code, err) == (
        1,
        "Error: made-2.png is there already and would be overwritten: give another name with -o.\n",
    )
    assert Path("made-2.png").read_bytes() == b"precious"
    assert not Path("made-1.png").exists()


def test_saved_styles_are_only_overwritten_if_the_user_says_so(run: Run, common: list[object]) -> None:
    Path("s-000001.safetensors").write_bytes(b"precious")
    command = ("learn", "photo.png", *LEARN, *common, "--save-every", 1, "-o", "s.safetensors")
    code, _, err = run(*command)
    assert code == 1
    assert "s-000001.safetensors is there already and would be overwritten" in err
    assert Path("s-000001.safetensors").read_bytes() == b"precious"
    assert run(*command, "--overwrite")[0] == 0
    assert Style.load("s-000001.safetensors").has_word


def test_a_file_that_is_no_learning_state_is_kept(run: Run, common: list[object]) -> None:
    Path("s.state.safetensors").write_bytes(Path("one.safetensors").read_bytes())
    for more in ((), ("--overwrite",), ("--resume",)):
        code, _, err = run("learn", "photo.png", *LEARN, *common, "-o", "s.safetensors", *more)
        assert code == 1
        assert "s.state.safetensors is not the state of an interrupted command" in err
    assert Path("s.state.safetensors").read_bytes() == Path("one.safetensors").read_bytes()


def test_a_style_does_not_get_the_name_of_a_learning_state(run: Run, common: list[object]) -> None:
    for command in (("learn", "photo.png", *LEARN, *common), ("style", "mix", "one.safetensors")):
        code, _, err = run(*command, "-o", "s.state.safetensors")
        assert code == 2
        assert ".state.safetensors is the ending of interrupted learnings: give another name" in err
    assert not Path("s.state.safetensors").exists()


def test_a_link_into_a_folder_that_is_missing_names_that_folder(run: Run, tmp_path: Path) -> None:
    Path("made.png").symlink_to(tmp_path / "gone" / "made.png")
    code, _, err = run("transfer", "photo.png", "-s", "photo.png", "-o", "made.png")
    assert code == 1
    assert (
        err == f"Error: made.png cannot be written: the folder {tmp_path / 'gone'} does not exist: create it first.\n"
    )
