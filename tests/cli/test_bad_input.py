"""Unusual and broken files, wrong values and full disks, through the command line: it works, or it says so in one line.

Whatever goes wrong, the file that was to be written keeps its bytes, and nothing is left beside it.
"""

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from safetensors.torch import save_file

import inst
from inst.styles.style import Style
from pictures import BLUE, png_bytes, quarters, saved

Run = Callable[..., tuple[int, str, str]]
TRANSFER = ["transfer", "photo.png", "--style", "photo.png", "--steps", "1"]
LEARN = ["learn", "photo.png", "--steps", "1", "--crops", "1", "--validate-every", "0"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: a good photo, and files of the names that are to be written."""
    monkeypatch.chdir(tmp_path)
    quarters().save("photo.png")
    for name in ("made.png", "made.safetensors"):
        Path(name).write_bytes(b"what stood here before")
    return tmp_path


@pytest.fixture
def fails(run: Run, common: list[object]) -> Callable[..., str]:
    """Run a command that must fail without a trace; gives its one line."""

    def call(code: int, *arguments: object) -> str:
        before = contents()
        found, out, err = run(*arguments, *common)
        assert found == code, err
        assert out == ""
        assert err.startswith("Error: ")
        assert err.count("\n") == 1
        assert contents() == before
        return err

    return call


def contents() -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}


def into(command: list[str], **instead: object) -> list[object]:
    """A command with other files in the places of its own, and where it is to write."""
    out = "made.png" if command[0] == "transfer" else "made.safetensors"
    given: list[object] = [*command, "-o", out]
    if "photo" in instead:
        given[1] = instead["photo"]
    if "style" in instead:
        given[3] = instead["style"]
    return given


# Pictures of unusual kinds, which work


def grey() -> Image.Image:
    return quarters().convert("L")


def levels(image: Image.Image) -> np.ndarray:
    """8 bits a channel -> 16 bits, of the very same brightness."""
    return np.asarray(image).astype(">u2") * 257


def write_animation(path: Path) -> Image.Image:
    quarters().save(path, save_all=True, append_images=[ImageOps.mirror(quarters()), ImageOps.flip(quarters())])
    return quarters()


def write_cmyk(path: Path) -> Image.Image:
    return saved(quarters().convert("CMYK"), path) and Image.open(path).convert("RGB")


def write_16_bit_grey(path: Path) -> Image.Image:
    saved(Image.fromarray(levels(grey()).astype(np.uint16)), path)
    return grey().convert("RGB")


def write_16_bit_colour(path: Path) -> Image.Image:
    width, height = quarters().size
    path.write_bytes(png_bytes(width, height, depth=16, colour_type=2, rows=levels(quarters())))
    return quarters()


def write_grey(path: Path) -> Image.Image:
    return saved(grey(), path) and grey().convert("RGB")


def write_palette(path: Path) -> Image.Image:
    return saved(quarters().quantize(4), path) and Image.open(path).convert("RGB")


def write_bilevel(path: Path) -> Image.Image:
    return saved(grey().convert("1"), path) and Image.open(path).convert("RGB")


UNUSUAL = {
    "animated.gif": write_animation,
    "animated.png": write_animation,
    "cmyk.tif": write_cmyk,
    "cmyk.jpg": write_cmyk,
    "16-bit-grey.png": write_16_bit_grey,
    "16-bit-colour.png": write_16_bit_colour,
    "grey.png": write_grey,
    "palette.png": write_palette,
    "bilevel.png": write_bilevel,
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_an_unusual_picture_gives_what_the_same_picture_in_plain_rgb_gives(
    name: str, run: Run, common: list[object]
) -> None:
    """As the photo and as the painting at once; the plain picture is Pillow's."""
    UNUSUAL[name](Path(name)).save("plain.png")
    made = []
    for source in (name, "plain.png"):
        code, out, err = run(*into(TRANSFER, photo=source, style=source), *common)
        assert (code, out, err) == (0, "made.png\n", "")
        made.append(np.asarray(Image.open("made.png")))
    assert (made[0] == made[1]).all()


@pytest.mark.parametrize("name", ["animated.gif", "cmyk.jpg", "16-bit-colour.png", "grey.png", "palette.png"])
def test_an_unusual_picture_teaches_the_same_style_as_plain_rgb(name: str, run: Run, common: list[object]) -> None:
    UNUSUAL[name](Path(name)).save("plain.png")
    learned = []
    for source in (name, "plain.png"):
        code, out, err = run(*into(LEARN, photo=source), *common)
        assert (code, out, err) == (0, "made.safetensors\n", "")
        learned.append(Style.load("made.safetensors").vectors)
    assert torch.equal(*learned)


def test_a_transparent_colour_of_a_palette_stays_transparent(run: Run, common: list[object]) -> None:
    image = quarters().quantize(4)
    image.save("key.png", transparency=image.getpixel((4, 28)))  # the blue quarter
    assert run(*into(TRANSFER, photo="key.png"), *common)[0] == 0
    alpha = np.asarray(Image.open("made.png").getchannel("A"))
    height, width = alpha.shape
    assert quarters().getpixel((4, 28)) == BLUE
    assert alpha[height - 8, 8] == 0
    assert alpha[8, 8] == alpha[8, width - 8] == alpha[height - 8, width - 8] == 255


# Files that are no pictures


def write_broken(name: str) -> str:
    path = Path(name)
    whole = Path("photo.png").read_bytes()
    if name == "empty.png":
        path.touch()
    elif name == "truncated.png":
        path.write_bytes(whole[: len(whole) // 2])
    elif name == "truncated.jpg":
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        path.write_bytes(saved(Image.fromarray(noise), path).read_bytes()[:1500])
    elif name == "bomb.png":
        path.write_bytes(png_bytes(60_000, 60_000, depth=8, colour_type=0, rows=np.zeros((1, 10), np.uint8)))
    elif name == "text.png":
        path.write_text("no picture at all")
    elif name == "deep.tif":
        saved(Image.new("F", (8, 8), 0.5), path)
    elif name == "pictures.png":
        path.mkdir()
    return name


BROKEN = {
    "missing.png": "no such file",
    "empty.png": "is empty (0 bytes)",
    "truncated.png": "is damaged",
    "truncated.jpg": "is damaged",
    "bomb.png": "more than 178 million pixels",
    "text.png": "is not a picture in a known format",
    "deep.tif": "32 bits per channel",
}


@pytest.mark.parametrize("place", ["photo", "style", "mask", "painting"])
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_picture_is_refused_in_one_line_that_names_it(
    name: str, place: str, fails: Callable[..., str]
) -> None:
    write_broken(name)
    arguments = {
        "photo": into(TRANSFER, photo=name),
        "style": into(TRANSFER, style=name),
        "mask": [*into(TRANSFER), "--mask", name],
        "painting": into(LEARN, photo=name),
    }[place]
    said = fails(1, *arguments)
    assert name in said
    assert BROKEN[name] in said


def test_a_folder_as_photo_and_a_folder_without_pictures_as_style_are_refused(fails: Callable[..., str]) -> None:
    write_broken("pictures.png")
    assert "pictures.png is a folder: repaint its photos with inst batch" in fails(
        2, *into(TRANSFER, photo="pictures.png")
    )
    assert "pictures.png contains no picture" in fails(1, *into(TRANSFER, style="pictures.png"))
    assert "pictures.png contains no picture" in fails(1, *into(LEARN, photo="pictures.png"))


def test_one_broken_painting_of_several_is_refused_and_named(fails: Callable[..., str]) -> None:
    write_broken("truncated.png")
    assert "truncated.png is damaged" in fails(1, "learn", "photo.png", *into(LEARN, photo="truncated.png")[1:])


# Style files


def write_style(name: str, backbone: inst.Backbone) -> None:
    path = Path(name)
    good = Style(torch.ones(3, 32), fingerprint=backbone.fingerprint).to_bytes()
    if name == "empty.safetensors":
        path.touch()
    elif name == "truncated.safetensors":
        path.write_bytes(good[:-40])
    elif name == "garbage.safetensors":
        path.write_bytes(bytes(range(256)) * 4)
    elif name == "overwritten.safetensors":
        path.write_bytes(good[:20] + b"\xff" * 20 + good[40:])
    elif name == "pickled.safetensors":
        path.write_bytes(pickle.dumps({"[C]": [1.0]}))
    elif name == "weights.safetensors":
        save_file({"weight": torch.ones(2, 2)}, path)
    elif name == "nan.safetensors":
        floats = good[-3 * 32 * 4 :]
        path.write_bytes(good[: -len(floats)] + b"\x00\x00\xc0\x7f" + floats[4:])
    elif name == "elsewhere.safetensors":
        Style(torch.ones(3, 32), fingerprint="0123456789abcdef", about={"name": "elsewhere"}).save(path)
    elif name == "wide.safetensors":
        Style(torch.ones(3, 48), fingerprint=backbone.fingerprint, about={"name": "wide"}).save(path)


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("missing.safetensors", 1, "no such file"),
        ("empty.safetensors", 1, "is empty (0 bytes)"),
        ("truncated.safetensors", 1, "is damaged"),
        ("garbage.safetensors", 1, "is not a safetensors file"),
        ("overwritten.safetensors", 1, "is damaged"),
        ("pickled.safetensors", 1, "give a style file"),
        ("weights.safetensors", 1, "not an InST style"),
        ("nan.safetensors", 1, "not finite"),
        ("elsewhere.safetensors", 2, "belongs to the text space 0123456789abcdef"),
        ("wide.safetensors", 1, "vectors of width 48"),
    ],
)
def test_a_style_that_cannot_be_used_is_refused_in_one_line(
    name: str, code: int, message: str, fails: Callable[..., str], tiny_backbone: inst.Backbone
) -> None:
    write_style(name, tiny_backbone)
    said = fails(code, *into(TRANSFER, style=name))
    assert Path(name).stem in said
    assert message in said


@pytest.mark.parametrize("content", [b"", b"no state at all", bytes(1000)])
def test_resuming_from_a_broken_state_is_refused(content: bytes, fails: Callable[..., str]) -> None:
    Path("made.state.safetensors").write_bytes(content)
    assert "made.state.safetensors" in fails(1, *into(LEARN), "--resume")


# Wrong values


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--strength", "1.2"], "A strength of 1.2 cannot be used: give 0"),
        (["--strength", "-0.1"], "A strength of -0.1"),
        (["--strength", "nan"], "A strength of nan"),
        (["--steps", "0"], "0 sampling steps cannot be taken: give 1 to 1000"),
        (["--guidance", "-1"], "A guidance of -1.0 cannot be used"),
        (["--size", "100000"], "is too large"),
        (["--size", "0"], "A short side of 0 pixels"),
        (["--tile", "3"], "Tiles of 3 pixels cannot be used"),
        (["--seed", "-1"], "The seed -1 cannot be used"),
        (["--inversion", "magic"], "stochastic, none, ddim"),
        (["--solver", "euler"], "ddim, dpm++"),
        (["--prompt", "a dog by [C] and [D]"], "has the placeholder [D], which has no style"),
    ],
)
def test_a_wrong_value_is_refused_in_one_line(arguments: list[str], message: str, fails: Callable[..., str]) -> None:
    assert message in fails(2, *into(TRANSFER), *arguments)


@pytest.mark.parametrize("option", ["--prompt", "--negative-prompt"])
def test_a_prompt_that_is_too_long_is_refused_with_the_words_that_do_not_fit(
    option: str, fails: Callable[..., str]
) -> None:
    """The tiny model has 24 positions: two are the prompt's ends, and [C] takes three where it stands."""
    prompt = " ".join(["dog"] * 22 + ["river", "mountain"])
    said = fails(2, *into(TRANSFER), option, f"[C] {prompt}")
    left = 22 + 2 - (22 - 3)  # words that find no room
    assert (
        f'the part "{" ".join(prompt.split()[-left:])}" does not fit: shorten the {option[2:].replace("-", " ")}.'
        in said
    )


@pytest.mark.parametrize(("command", "out"), [(TRANSFER, "nowhere/made.png"), (LEARN, "nowhere/made.safetensors")])
def test_an_output_folder_that_does_not_exist_is_reported_and_not_created(
    command: list[str], out: str, fails: Callable[..., str]
) -> None:
    assert f"{out} cannot be written: the folder nowhere does not exist" in fails(1, *command, "-o", out)
    assert not Path("nowhere").exists()


# Room on the disk


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX")
@pytest.mark.parametrize("command", [TRANSFER, LEARN], ids=["transfer", "learn"])
def test_no_room_for_the_result_leaves_the_old_file_as_it_was(command: list[str], common: list[object]) -> None:
    """The operating system itself stops the process at 500 bytes of a file, as it does where a quota ends."""
    import resource

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))

    before = contents()
    program = Path(sys.executable).with_name("inst")
    found = subprocess.run(
        [program, *map(str, [*into(command), *common])],
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=limit,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "NO_COLOR": "1"},
    )
    assert (found.returncode, found.stdout) == (1, ""), found.stderr
    assert found.stderr == f"Error: {into(command)[-1]} cannot be written (File too large): choose another folder.\n"
    assert contents() == before


def test_options_that_would_be_ignored_are_refused(fails: Callable[..., str], run: Run) -> None:
    err = fails(2, *TRANSFER, "--no-stochastic", "--inversion", "ddim")
    assert err == "Error: --no-stochastic and --inversion ddim exclude each other: leave out one of them.\n"
    code, _, err = run("weights", "get", "vgg19", "--from", "nowhere")
    assert (code, err) == (1, "Error: nowhere: no such folder: give another folder with --from.\n")


def test_a_photo_whose_name_is_not_valid_unicode_is_repainted(run: Run, common: list[object], tmp_path: Path) -> None:
    name = os.fsdecode(b"bad\xff.png")
    (tmp_path / name).write_bytes((tmp_path / "photo.png").read_bytes())
    code, _, err = run("transfer", name, "--style", "photo.png", "--steps", 1, *common)
    assert (code, err) == (0, "")
    (made,) = (tmp_path / "outputs").iterdir()
    assert made.name == "bad_-photo.png"
