"""Pictures of every kind are made here, with colours that are known, and read back."""

import errno
import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps

from inst import InstError
from inst.pictures.reading import open_picture, read_picture
from inst.pictures.tensors import to_image, to_tensor
from inst.pictures.writing import save_png
from pictures import (
    BLUE,
    GREEN,
    RED,
    YELLOW,
    corners,
    linear_grey_profile,
    near,
    png_bytes,
    quarters,
    saved,
    swapped_primaries_profile,
)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
def test_pictures_are_turned_upright(tmp_path: Path, orientation: int, ending: str) -> None:
    undo = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Image.Transpose that the orientation tag undoes
    stored = quarters() if undo[orientation] is None else quarters().transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(stored, tmp_path / f"turned.{ending}", exif=exif, quality=95)
    found = open_picture(path)
    assert (found.size, found.mode) == ((48, 32), "RGB")
    assert near(corners(found), [RED, GREEN, BLUE, YELLOW], 12)


def test_a_colour_profile_is_converted_to_srgb(tmp_path: Path) -> None:
    """A profile with red and blue primaries swapped: the pixels must come out swapped."""
    swapped = swapped_primaries_profile()
    path = saved(quarters(), tmp_path / "swapped.png", icc_profile=swapped)
    expected = [colour[::-1] for colour in (RED, GREEN, BLUE, YELLOW)]
    assert near(corners(open_picture(path)), expected, 6)
    # with transparency, in a palette, and turned as well
    with_alpha = quarters().convert("RGBA")
    assert near(corners(open_picture(saved(with_alpha, tmp_path / "a.png", icc_profile=swapped))), expected, 6)
    palette = quarters().quantize(8)
    assert near(corners(open_picture(saved(palette, tmp_path / "p.png", icc_profile=swapped))), expected, 6)


@pytest.mark.parametrize("profile", [b"no profile at all", b"\0" * 200])
def test_a_broken_profile_is_ignored(tmp_path: Path, profile: bytes) -> None:
    path = saved(quarters(), tmp_path / "broken.png", icc_profile=profile)
    assert corners(open_picture(path)) == [RED, GREEN, BLUE, YELLOW]


def test_a_profile_of_another_kind_is_ignored(tmp_path: Path) -> None:
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    path = saved(quarters(), tmp_path / "lab.png", icc_profile=lab)
    assert corners(open_picture(path)) == [RED, GREEN, BLUE, YELLOW]


@pytest.mark.parametrize("kind", ["L", "LA", "key"])
def test_grey_with_a_grey_profile_is_converted_to_srgb_even_with_transparency(tmp_path: Path, kind: str) -> None:
    """Levels that are proportional to light; sRGB's curve is that of IEC 61966-2-1."""
    image = Image.new("L", (9, 9), 77)
    image.putpixel((0, 0), 3)
    options = {"transparency": 3} if kind == "key" else {}
    image = image.convert("LA") if kind == "LA" else image
    path = saved(image, tmp_path / "grey.png", icc_profile=linear_grey_profile(), **options)
    expected = round(255 * (1.055 * (77 / 255) ** (1 / 2.4) - 0.055))
    assert near([open_picture(path).getpixel((4, 4))], [(expected,) * 3], 1)


def test_grey_with_a_colour_profile_keeps_its_level(tmp_path: Path) -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    path = saved(Image.new("L", (9, 9), 77), tmp_path / "grey.png", icc_profile=srgb)
    assert near([open_picture(path).getpixel((4, 4))], [(77, 77, 77)], 1)


def test_transparency_is_flattened_on_white(tmp_path: Path) -> None:
    image = quarters().convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    found = np.asarray(open_picture(saved(image, tmp_path / "alpha.png"))).astype(float)
    alpha = np.asarray(image.getchannel("A")).astype(float)[..., None] / 255
    expected = np.asarray(quarters()) * alpha + 255 * (1 - alpha)
    assert np.abs(found - expected).max() <= 1

    half = Image.new("LA", (9, 9), (100, 51))
    assert open_picture(saved(half, tmp_path / "la.png")).getpixel((0, 0)) == (224, 224, 224)


def test_a_transparent_colour_of_a_palette_or_of_rgb_becomes_white(tmp_path: Path) -> None:
    palette = quarters().quantize(4)
    first = palette.getpixel((4, 4))
    path = saved(palette, tmp_path / "palette.png", transparency=first)
    white = (255, 255, 255)
    assert near(corners(open_picture(path)), [white, GREEN, BLUE, YELLOW], 3)
    path = saved(palette, tmp_path / "palette.gif", transparency=first)
    assert near(corners(open_picture(path)), [white, GREEN, BLUE, YELLOW], 3)
    path = saved(quarters(), tmp_path / "key.png", transparency=BLUE)
    assert corners(open_picture(path)) == [RED, GREEN, white, YELLOW]


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_16_bit_grey_keeps_its_range(tmp_path: Path, ending: str) -> None:
    levels = np.linspace(0, 65535, 256 * 3).astype(np.uint16).reshape(3, 256)
    path = saved(Image.fromarray(levels), tmp_path / f"deep.{ending}")
    found = np.asarray(open_picture(path))
    assert (found == found[..., :1]).all()
    assert np.abs(found[..., 0] - levels / 257.0).max() <= 0.51


def test_16_bit_colour_is_read_as_the_same_levels_of_8_bits(tmp_path: Path) -> None:
    """Pillow writes no 16-bit colour: the PNG is put together by hand."""
    rows = np.array([[[65535, 32896, 257], [0, 257 * 200, 65535]]], dtype=">u2")
    path = tmp_path / "deep.png"
    path.write_bytes(png_bytes(2, 1, depth=16, colour_type=2, rows=rows))
    assert np.asarray(open_picture(path)).tolist() == [[[255, 128, 1], [0, 200, 255]]]


def test_cmyk_and_bilevel_pictures_are_read_as_rgb(tmp_path: Path) -> None:
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    assert near([open_picture(saved(cmyk, tmp_path / "c.jpg", quality=95)).getpixel((8, 8))], [(255, 0, 0)], 4)
    assert near([open_picture(saved(cmyk, tmp_path / "c.tif")).getpixel((8, 8))], [(255, 0, 0)], 4)
    assert open_picture(saved(Image.new("1", (9, 9), 1), tmp_path / "b.png")).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("ending", ["gif", "png", "webp", "tif"])
def test_an_animation_is_read_as_its_first_frame(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"frames.{ending}"
    others = [ImageOps.mirror(quarters()), Image.new("RGB", (48, 32))]
    options = {"lossless": True} if ending == "webp" else {}
    quarters().save(path, save_all=True, append_images=others, **options)
    assert near(corners(open_picture(path)), [RED, GREEN, BLUE, YELLOW], 3)


def test_32_bit_pictures_are_refused(tmp_path: Path) -> None:
    for image in (Image.new("F", (4, 4), 0.5), Image.new("I", (4, 4), 70000)):
        refuse(saved(image, tmp_path / "hdr.tif"), "32 bits per channel")


# Files that are no pictures


def refuse(path: Path, reason: str) -> None:
    with pytest.raises(InstError) as caught:
        read_picture(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert message.count(str(path)) == 1
    assert "\n" not in message
    assert reason in message


def test_a_missing_file_or_a_folder_is_refused(tmp_path: Path) -> None:
    refuse(tmp_path / "nowhere.png", "no such file")
    refuse(tmp_path, "is a folder")
    refuse(tmp_path / "nowhere" / "x.png", "no such file")


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "empty.png"
    path.touch()
    refuse(path, "is empty (0 bytes)")


@pytest.mark.parametrize("content", [b"hello", b"\x89PNG\r\n\x1a\n", b"<svg></svg>", b"\xff\xd8\xff", bytes(5000)])
def test_a_file_that_is_no_picture_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "wrong.png"
    path.write_bytes(content)
    refuse(path, str(path))


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "gif", "tif", "bmp"])
def test_a_truncated_picture_is_refused(tmp_path: Path, ending: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = saved(Image.fromarray(noise), tmp_path / f"cut.{ending}")
    whole = path.read_bytes()
    for kept in (0.9, 0.5, 0.1, 0.01):
        path.write_bytes(whole[: int(len(whole) * kept)])
        refuse(path, "damaged" if kept == 0.9 and ending != "webp" else "")


@given(st.binary(min_size=1, max_size=64), st.integers(0, 2000))
@settings(max_examples=60, deadline=None)
def test_a_picture_with_wrong_bytes_is_read_or_refused(tmp_path_factory, noise: bytes, at: int) -> None:
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    quarters().save(buffer, "JPEG", exif=exif)
    content = bytearray(buffer.getvalue())
    at = 2 + at % (len(content) - 2)
    content[at : at + len(noise)] = noise
    path = tmp_path_factory.mktemp("noise") / "noise.jpg"
    path.write_bytes(content)
    try:
        found = open_picture(path)
    except InstError:
        return
    assert found.mode == "RGB"


def test_a_decompression_bomb_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png_bytes(60_000, 60_000, depth=8, colour_type=0, rows=np.zeros((1, 10), np.uint8)))
    refuse(path, "more than 178 million pixels")


def test_a_large_photo_is_read_without_a_warning(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    path = saved(Image.new("1", (10_000, 9_500)), tmp_path / "large.png")
    assert open_picture(path).size == (10_000, 9_500)
    assert not recwarn.list


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="permissions do not bind this user")
def test_a_file_without_read_permission_is_refused(tmp_path: Path) -> None:
    path = saved(quarters(), tmp_path / "secret.png")
    path.chmod(0)
    refuse(path, "cannot be read (permission denied)")


# Tensors, and writing


def test_pictures_become_tensors_from_minus_one_to_one_and_back() -> None:
    levels = torch.arange(256, dtype=torch.uint8).repeat(3, 1).view(3, 16, 16)
    levels[1] = levels[1].flip(0)
    image = Image.fromarray(levels.permute(1, 2, 0).numpy())
    picture = to_tensor(image)
    assert (picture.shape, picture.dtype) == ((3, 16, 16), torch.float32)
    assert (picture.min().item(), picture.max().item()) == (-1, 1)
    torch.testing.assert_close(picture, levels.float() / 255 * 2 - 1)
    assert to_image(picture).tobytes() == image.tobytes()
    assert to_image(3 * picture).getextrema() == ((0, 255),) * 3
    assert to_image(picture.bfloat16()).size == (16, 16)


def test_a_picture_that_is_not_finite_is_refused() -> None:
    for value in (float("nan"), float("inf")):
        with pytest.raises(InstError, match="not finite"):
            to_image(torch.full((3, 4, 4), value))


def test_saving_a_png_and_reading_it_is_lossless(tmp_path: Path) -> None:
    picture = to_tensor(quarters())
    path = save_png(picture, tmp_path / "picture.png")
    torch.testing.assert_close(read_picture(path), picture, rtol=0, atol=0)
    save_png(quarters().rotate(180), path)  # replaces
    assert corners(open_picture(path)) == [YELLOW, BLUE, GREEN, RED]
    assert [file.name for file in tmp_path.iterdir()] == ["picture.png"]


def test_saving_into_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InstError, match="does not exist"):
        save_png(quarters(), tmp_path / "nowhere" / "picture.png")


def test_saving_in_the_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "picture.png").mkdir()
    with pytest.raises(InstError, match="cannot be written"):
        save_png(quarters(), tmp_path / "picture.png")
    assert [file.name for file in tmp_path.iterdir()] == ["picture.png"]


def test_a_full_disk_leaves_the_old_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_png(quarters(), tmp_path / "picture.png")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InstError, match=r"cannot be written \(No space left on device\)"):
        save_png(Image.new("RGB", (8, 8)), path)
    assert corners(open_picture(path)) == [RED, GREEN, BLUE, YELLOW]
    assert [file.name for file in tmp_path.iterdir()] == ["picture.png"]
