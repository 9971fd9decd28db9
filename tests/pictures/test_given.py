"""Every form of a picture gives the same pixels, and what is no picture is refused in one line."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from inst import InstError, InstWarning, Photo, UsageError, read_painting, save_picture
from inst.pictures.given import to_batch, to_mask, to_paintings, to_photo, to_photos
from inst.pictures.stored import decode_picture

LEVELS = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    Image.fromarray(LEVELS).save(tmp_path / "waves.png")
    return tmp_path / "waves.png"


FORMS: dict[str, Callable[[Path], Any]] = {
    "text": str,
    "path": Path,
    "open image": Image.open,
    "uint8 array": lambda _: LEVELS,
    "uint8 tensor": lambda _: torch.from_numpy(LEVELS).permute(2, 0, 1),
    "float array": lambda _: LEVELS / 255,
    "half array": lambda _: (LEVELS / 255).astype(np.float32),
    "opaque array": lambda _: np.concatenate([LEVELS, np.full((24, 32, 1), 255, np.uint8)], axis=2),
    "tensor": lambda _: torch.from_numpy(LEVELS).permute(2, 0, 1) / 127.5 - 1,
    "photo": read_painting,
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_picture_gives_the_same_pixels(file: Path, form: str) -> None:
    read = to_photo(FORMS[form](file)).picture
    assert read.dtype == torch.float32
    torch.testing.assert_close(read, read_painting(file).picture, rtol=0, atol=1e-6)


def test_a_file_and_an_image_of_a_file_keep_the_name(file: Path) -> None:
    assert to_photo(file).name == to_photo(Image.open(file)).name == "waves.png"
    assert len(to_photo(file).sha256) == 64
    assert to_photo(LEVELS).name == ""


def test_a_grey_array_has_three_equal_channels() -> None:
    read = to_photo(LEVELS[:, :, 0]).picture
    assert torch.equal(read[0], read[2])
    torch.testing.assert_close(read[1], torch.from_numpy(LEVELS[:, :, 0]) / 127.5 - 1)


def test_transparency_is_laid_over_white_in_every_form(tmp_path: Path) -> None:
    clear = np.concatenate([LEVELS, np.zeros((24, 32, 1), np.uint8)], axis=2)
    Image.fromarray(clear).save(tmp_path / "clear.png")
    for given in (tmp_path / "clear.png", Image.fromarray(clear), clear):
        assert (to_photo(given).picture == 1).all()


def test_one_picture_or_several_are_read_alike(file: Path) -> None:
    batch = torch.stack([to_photo(file).picture] * 2)
    levels = np.stack([LEVELS, LEVELS])
    uint8 = torch.from_numpy(levels).permute(0, 3, 1, 2)
    for given in ([file, LEVELS], (str(file), Image.open(file)), batch, levels, uint8):
        assert len(to_photos(given)) == 2
        torch.testing.assert_close(to_batch(given), batch, rtol=0, atol=1e-6)
    assert to_batch(file).shape == (1, 3, 24, 32)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (5, "photo of the type int cannot be used: give a path"),
        ([], "No photo is given"),
        (np.zeros((3, 24, 32, 3, 1)), "shape"),
        (np.zeros((3, 24, 32)), r"shape \[3, 24, 32\].*array \[H, W, 3\], or a tensor \[3, H, W\]"),
        (np.full((8, 8, 3), 200.0), "uint8 from 0 to 255, or floating point numbers from 0 to 1"),
        (np.full((8, 8, 3), np.nan), "values cannot be used"),
        (np.zeros((8, 8, 3), np.uint16), "values cannot be used"),
        (torch.zeros(8, 8, 3), r"shape \[8, 8, 3\]"),
        (torch.full((3, 8, 8), 2.0), "from -1 to 1"),
        (torch.zeros(3, 8, 8, dtype=torch.int32), "floating point numbers from -1 to 1, or uint8 from 0 to 255"),
        (torch.zeros(8, 8, 3, dtype=torch.uint8), r"shape \[8, 8, 3\]"),
        (torch.zeros(2, 4, 8, 8), "shape"),
    ],
)
def test_what_is_no_picture_is_refused_with_what_to_give(given: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        to_batch(given)


def test_an_image_that_cannot_be_decoded_is_refused_in_one_line(file: Path, tmp_path: Path) -> None:
    (tmp_path / "half.png").write_bytes(file.read_bytes()[:600])
    with pytest.raises(InstError, match=r"half\.png is damaged") as caught:
        to_photo(Image.open(tmp_path / "half.png"))
    assert "\n" not in str(caught.value)


def test_the_path_of_a_folder_stands_for_the_paintings_in_it(file: Path) -> None:
    file.with_name("b.png").write_bytes(file.read_bytes())
    assert [photo.name for photo in to_paintings(file.parent)] == ["b.png", "waves.png"]
    (file.parent / "empty").mkdir()
    with pytest.raises(InstError, match="no picture"):
        to_paintings(file.parent / "empty")


def test_pictures_of_several_sizes_make_no_batch(file: Path) -> None:
    with pytest.raises(UsageError, match=r"Photos of 16 x 8 and 32 x 24 pixels cannot form a batch"):
        to_batch([file, torch.zeros(3, 8, 16)])


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InstError, match=r"none\.png: no such file"):
        to_photo(tmp_path / "none.png")


def test_every_form_of_a_mask_gives_the_same_values(tmp_path: Path) -> None:
    mask = np.zeros((24, 32), np.uint8)
    mask[:, :16] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    for given in (
        tmp_path / "mask.png",
        str(tmp_path / "mask.png"),
        Image.fromarray(mask),
        mask,
        mask / 255,
        mask > 0,
        (mask > 0).astype(np.uint8),
        torch.from_numpy(mask),
        torch.from_numpy(mask) / 255,
    ):
        assert to_mask(given, (24, 32)).sum() == 24 * 16
    assert to_mask(Image.fromarray(mask), (48, 64)).shape == (48, 64)
    with pytest.raises(UsageError, match=r"shape \[24, 32\] does not fit a photo of \[48, 64\]"):
        to_mask(mask, (48, 64))
    with pytest.raises(UsageError, match="make a mask with the photo's proportions"):
        to_mask(Image.fromarray(mask), (48, 48))


def test_a_mask_file_of_the_levels_0_and_1_is_a_map_of_labels() -> None:
    file = Path(__file__).parent / "data" / "mask-zero-one.png"
    labels = np.asarray(Image.open(file))
    with pytest.warns(InstWarning, match="only the levels 0 and 1, so 1 counts as white"):
        found = to_mask(file, labels.shape)
    np.testing.assert_array_equal(found.numpy(), labels)
    with pytest.warns(InstWarning, match="only the levels 0 and 1"):
        assert torch.equal(to_mask(Image.open(file), labels.shape), found)


def test_a_mask_that_is_black_everywhere_is_refused() -> None:
    file = Path(__file__).parent / "data" / "mask-all-black.png"
    black = np.asarray(Image.open(file))
    for given in (file, Image.open(file), black, black > 0, black / 255, torch.zeros(black.shape)):
        with pytest.raises(UsageError, match="black everywhere, so nothing would be repainted"):
            to_mask(given, black.shape)


def test_a_result_can_be_saved_as_it_comes(tmp_path: Path) -> None:
    picture = torch.rand(1, 3, 16, 16) * 2 - 1
    save_picture(picture, tmp_path / "one.png")
    save_picture(picture[0], tmp_path / "two.png")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    with pytest.raises(UsageError, match=r"shape \[2, 3, 16, 16\]"):
        save_picture(picture.expand(2, -1, -1, -1), tmp_path / "three.png")
    assert isinstance(to_photo(tmp_path / "one.png"), Photo)


def test_an_image_is_saved_upright_and_in_srgb_in_every_format(tmp_path: Path) -> None:
    turned = Image.fromarray(LEVELS[:3, :4]).resize((32, 24), Image.Resampling.BICUBIC).convert("CMYK")
    turned.getexif()[0x0112] = 6  # to be shown turned by 90 degrees
    for name, tolerance in (("a.png", 0.001), ("a.webp", 0.2), ("a.jpg", 0.2)):
        save_picture(turned, tmp_path / name)
        saved = to_photo(tmp_path / name).picture
        assert saved.shape == (3, 32, 24)
        assert (saved - to_photo(turned).picture).abs().mean() < tolerance


@pytest.mark.parametrize("given", [None, 5, LEVELS, [torch.zeros(3, 8, 8)], "a.png"])
def test_what_cannot_be_saved_is_refused_by_its_type(tmp_path: Path, given: Any) -> None:
    with pytest.raises(UsageError, match=r"A picture of the type .* cannot be used: give a tensor"):
        save_picture(given, tmp_path / "x.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("given", [torch.zeros(2, 8, 8), torch.zeros(3, 8, 8, dtype=torch.uint8), torch.zeros(3, 0, 8)])
def test_a_tensor_that_is_no_picture_is_not_saved(tmp_path: Path, given: torch.Tensor) -> None:
    with pytest.raises(UsageError, match="give one picture"):
        save_picture(given, tmp_path / "x.png")


@pytest.mark.parametrize("dtype", [">f4", ">f8", np.float16, np.longdouble])
def test_arrays_of_any_floating_point_type_are_read_alike(dtype: Any) -> None:
    read = to_photo((LEVELS / 255).astype(dtype)).picture
    torch.testing.assert_close(read, to_photo(LEVELS).picture, rtol=0, atol=2e-3)


@pytest.mark.parametrize("picture", [torch.full((3, 8, 8), 9.0), torch.zeros(8, 8), torch.zeros(1, 3, 8, 8)])
def test_a_photo_is_checked_as_a_tensor_is(picture: torch.Tensor) -> None:
    with pytest.raises(UsageError, match="photo"):
        to_photo(Photo(picture))


def test_paintings_are_reduced_and_encoded_as_they_are_read(tmp_path: Path) -> None:
    """The picture that a style keeps comes from the full size."""
    Image.new("RGB", (300, 200), "red").save(tmp_path / "large.png")
    Image.new("RGB", (40, 50), "blue").save(tmp_path / "small.png")
    large, small = to_paintings([tmp_path / "large.png", tmp_path / "small.png"], 60)
    assert large.picture.shape == (3, 60, 90)
    assert decode_picture(large.encoded, "large").shape == (3, 200, 300)
    assert small.picture.shape == (3, 50, 40)
    assert to_paintings(tmp_path, 60, keep=False)[0].encoded == b""


def test_many_paintings_take_the_memory_of_one(tmp_path: Path) -> None:
    """Eight of 96 MB as tensors, in a process of their own."""
    for k in range(8):
        Image.new("RGB", (4000, 2000), "red").save(tmp_path / f"{k}.png")
    code = (
        "import resource, sys; from pathlib import Path; from inst.pictures.given import to_paintings\n"
        "to_paintings(sorted(Path(sys.argv[1]).iterdir())[:int(sys.argv[2])], 100)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    one, eight = (
        int(subprocess.run([sys.executable, "-c", code, tmp_path, str(n)], capture_output=True, check=True).stdout)
        for n in (1, 8)
    )
    assert eight - one < 96_000  # KB on Linux; on macOS bytes, which only makes the test stricter


def test_paintings_beyond_the_memory_are_read_again(tmp_path: Path) -> None:
    """The same pixels come, and a file that has changed meanwhile is refused."""
    noise = np.random.default_rng(0).integers(0, 256, (2, 90, 120, 3), np.uint8)
    for number, levels in enumerate(noise):
        Image.fromarray(levels).save(tmp_path / f"{number}.png")
    given = [tmp_path / "0.png", tmp_path / "1.png", torch.from_numpy(noise[0]).permute(2, 0, 1)]
    kept, read = to_paintings(given, 60), to_paintings(given, 60, kept_bytes=3 * 60 * 80 * 4)
    for one, other in zip(kept, read, strict=True):
        assert torch.equal(one.picture, other.picture)
        assert (one.size, one.name, one.sha256, one.encoded) == (other.size, other.name, other.sha256, other.encoded)
    (tmp_path / "1.png").write_bytes((tmp_path / "0.png").read_bytes())
    assert torch.equal(kept[1].picture, to_paintings(noise[1], 60)[0].picture)
    with pytest.raises(InstError, match=r"^The file of the painting 1.png has changed: start again"):
        _ = read[1].picture
    assert to_paintings([kept[0]], 60)[0] is kept[0]
