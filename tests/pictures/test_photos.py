"""Photos with transparency, masks, sizes, and the formats that pictures are written in."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageDraw

from inst import InstError, UsageError
from inst.pictures.masks import read_mask
from inst.pictures.opening import read_text_in
from inst.pictures.reading import open_picture, read_photo, read_picture
from inst.pictures.resizing import fit_size, resize, resize_mask
from inst.pictures.stored import decode_picture, encode_painting
from inst.pictures.tensors import to_tensor
from inst.pictures.writing import save_picture, save_png
from pictures import BLUE, GREEN, RED, YELLOW, corners, near, quarters, saved, swapped_primaries_profile

# Photos, with their transparency and where they came from


def test_a_photo_knows_its_name_and_hash(tmp_path: Path) -> None:
    path = saved(quarters(), tmp_path / "boat.jpg", quality=95)
    photo = read_photo(path)
    assert (photo.name, photo.alpha) == ("boat.jpg", None)
    assert photo.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert torch.equal(photo.picture, read_picture(path))


def test_a_photo_keeps_its_transparency(tmp_path: Path) -> None:
    image = quarters().convert("RGBA")
    opacity = Image.linear_gradient("L").resize(image.size)
    image.putalpha(opacity.point(lambda level: max(0, level - 60)))  # some rows of 0
    pixels = np.asarray(image)
    path = saved(image, tmp_path / "alpha.png")
    photo = read_photo(path)
    assert photo.alpha is not None
    torch.testing.assert_close(photo.alpha, torch.from_numpy(pixels[..., 3] / 255).float())
    shows = torch.from_numpy(pixels[..., 3] > 0)
    assert 0 < shows.float().mean() < 1
    assert torch.equal(photo.picture[:, shows], to_tensor(quarters())[:, shows])
    assert not shows[0].any()
    found = [tuple(((photo.picture[:, 0, x] + 1) * 127.5).round().int().tolist()) for x in (4, -5)]
    assert near(found, [RED, GREEN], 6)  # the colours of what shows below, not what the file hides there

    again = save_png(photo.picture, tmp_path / "again.png", photo.alpha)
    with Image.open(again) as found:
        assert found.mode == "RGBA"
        assert (np.asarray(found)[shows.numpy()] == pixels[shows.numpy()]).all()
        assert (np.asarray(found)[..., 3] == pixels[..., 3]).all()

    flat = read_photo(path, flattened=True)
    assert flat.alpha is None
    assert torch.equal(flat.picture, read_picture(path))
    assert flat.sha256 == photo.sha256


@pytest.mark.parametrize("hidden", ["white", "black", "lime"])
def test_a_cut_out_keeps_its_colour_up_to_the_edge_when_resized(tmp_path: Path, hidden: str) -> None:
    """A red disc, resized: its colour stays red up to its edge, whatever is hidden around it."""
    image = Image.new("RGBA", (90, 70), hidden)
    image.putalpha(0)
    ImageDraw.Draw(image).ellipse((20, 10, 70, 60), fill=(*RED, 255))
    photo = read_photo(saved(image, tmp_path / "disc.png"))
    assert photo.alpha is not None
    assert photo.alpha.mean() < 0.5
    for size in ((35, 45), (140, 180), (64, 82)):
        found = resize(photo.picture, size)
        assert (found - to_tensor(Image.new("RGB", (1, 1), RED))).abs().max() <= 4 / 127.5


def test_a_fully_transparent_photo_is_white(tmp_path: Path) -> None:
    photo = read_photo(saved(Image.new("RGBA", (9, 7)), tmp_path / "nothing.png"))
    assert photo.alpha is not None
    assert (photo.picture == 1).all()


def test_a_fully_opaque_alpha_channel_is_dropped(tmp_path: Path) -> None:
    path = saved(quarters().convert("RGBA"), tmp_path / "opaque.png")
    assert read_photo(path).alpha is None


def test_transparency_is_turned_with_the_picture(tmp_path: Path) -> None:
    image = quarters().convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = read_photo(saved(image, tmp_path / "turned.png", exif=exif))
    assert photo.alpha is not None
    assert photo.alpha.shape == photo.picture.shape[1:] == (48, 32)
    expected = np.asarray(image.transpose(Image.Transpose.ROTATE_270))[..., 3] / 255
    torch.testing.assert_close(photo.alpha, torch.from_numpy(expected).float())


# Masks


def read_back(image: Image.Image, folder: Path, size: tuple[int, int] | None = None) -> torch.Tensor:
    return read_mask(saved(image, folder / "mask.png"), size)


def test_a_mask_of_any_mode_is_read_as_grey_levels_from_zero_to_one(tmp_path: Path) -> None:
    ramp = Image.linear_gradient("L")
    expected = torch.from_numpy(np.asarray(ramp) / 255).float()
    for mode in ("L", "RGB", "RGBA", "P"):
        torch.testing.assert_close(read_back(ramp.convert(mode), tmp_path), expected)
    deep = Image.fromarray(np.asarray(ramp).astype(np.uint16) * 257)
    torch.testing.assert_close(read_back(deep, tmp_path), expected)
    hard = np.asarray(read_back(ramp.convert("1"), tmp_path))
    assert set(hard.flatten()) == {0, 1}
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    torch.testing.assert_close(read_mask(saved(ramp, tmp_path / "icc.png", icc_profile=profile)), expected)


@pytest.mark.parametrize("colour", ["black", "white", "red"])
def test_a_mask_of_one_colour_is_read_from_its_opacity(tmp_path: Path, colour: str) -> None:
    image = Image.new("RGBA", (256, 256), colour)
    image.putalpha(Image.linear_gradient("L"))
    expected = torch.from_numpy(np.asarray(Image.linear_gradient("L")) / 255).float()
    torch.testing.assert_close(read_back(image, tmp_path), expected)
    image.putalpha(0)
    assert (read_back(image, tmp_path) == 0).all()


def test_a_mask_with_levels_and_opacity_lies_over_black(tmp_path: Path) -> None:
    image = Image.merge("LA", [Image.linear_gradient("L"), Image.new("L", (256, 256), 51)])
    expected = torch.from_numpy(np.asarray(Image.linear_gradient("L")) / 255 * 0.2).float()
    torch.testing.assert_close(read_back(image, tmp_path), expected)


def test_a_mask_is_resized_to_the_photo_and_other_proportions_are_refused(tmp_path: Path) -> None:
    half = Image.new("L", (60, 40))
    half.paste(255, (0, 0, 30, 40))
    for size in ((40, 60), (80, 120), (20, 30), (533, 800), (427, 640)):
        mask = read_back(half, tmp_path, size)
        assert mask.shape == size
        assert 0 <= mask.min() <= mask.max() <= 1
        assert abs(mask.mean() - 0.5) < 0.01
    for size in ((60, 40), (40, 40), (40, 64)):
        with pytest.raises(UsageError, match=rf"is 60 x 40 pixels, but the photo is {size[1]} x {size[0]}"):
            read_back(half, tmp_path, size)


def test_a_mask_that_is_no_picture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mask.png").write_bytes(b"hello")
    with pytest.raises(InstError, match="is not a picture"):
        read_mask(tmp_path / "mask.png")


# Sizes


@pytest.mark.parametrize("size", [(20, 31), (7, 5), (61, 90), (100, 40)])
def test_resizing_gives_what_pillow_gives(size: tuple[int, int]) -> None:
    picture = torch.rand(3, 40, 60, generator=torch.Generator().manual_seed(0)) * 1.8 - 0.9
    found = resize(picture, size)
    assert found.shape == (3, *size)
    for channel, resized in zip(picture, found, strict=True):
        image = Image.fromarray(channel.numpy()).resize(size[::-1], Image.Resampling.BICUBIC)
        # Pillow's bicubic filter has a = -0.5, as PyTorch's has when it is antialiased.
        np.testing.assert_allclose(resized, np.asarray(image).clip(-1, 1), atol=2e-5)
    assert torch.equal(resize(picture[None], size)[0], found)


def test_resizing_stays_in_range_and_to_the_same_size_changes_nothing() -> None:
    checkers = (torch.arange(30).view(5, 6) % 2).float()
    for size in ((50, 60), (11, 7)):
        assert 0 <= resize_mask(checkers, size).min() <= resize_mask(checkers, size).max() <= 1
        picture = resize((2 * checkers - 1).expand(3, -1, -1), size)
        assert -1 <= picture.min() <= picture.max() <= 1
    assert torch.equal(resize_mask(checkers, (5, 6)), checkers)


def test_fitted_sizes_have_the_given_short_side_and_zero_is_refused() -> None:
    assert fit_size(600, 400, 512) == (768, 512)
    assert fit_size(400, 600, 512) == (512, 768)
    assert fit_size(333, 500, 256) == (256, 384)
    assert fit_size(1, 9000, 1) == (1, 9000)
    with pytest.raises(UsageError, match="short side of 0"):
        fit_size(600, 400, 0)


@given(st.integers(1, 20_000), st.integers(1, 20_000), st.integers(1, 4096))
def test_fitted_sizes_keep_the_proportions(width: int, height: int, short_side: int) -> None:
    fitted = fit_size(width, height, short_side)
    assert min(fitted) == short_side
    scale = short_side / min(width, height)
    assert max(abs(fitted[0] - width * scale), abs(fitted[1] - height * scale)) <= 0.5


# Formats


def test_the_ending_chooses_the_format(tmp_path: Path) -> None:
    picture = to_tensor(quarters())
    for ending, kind in ((".png", "PNG"), (".PNG", "PNG"), (".jpg", "JPEG"), (".JPEG", "JPEG"), (".webp", "WEBP")):
        path = save_picture(picture, tmp_path / f"picture{ending}", texts={"inst": "made by hand"})
        with Image.open(path) as image:
            assert (image.format, image.size, image.mode) == (kind, (48, 32), "RGB")
        assert near(corners(open_picture(path)), [RED, GREEN, BLUE, YELLOW], 3)
        assert read_text_in(path, "inst") == ("made by hand" if kind == "PNG" else None)


@pytest.mark.parametrize("name", ["picture", "picture.gif", "picture.png.bak", ".png"])
def test_unknown_endings_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"use a file name that ends in \.png, \.jpg, \.jpeg, \.webp"):
        save_picture(quarters(), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_png_and_webp_keep_transparency_and_jpeg_gets_white(tmp_path: Path) -> None:
    picture, alpha = to_tensor(quarters()), torch.ones(32, 48)
    alpha[16:] = 0  # the lower half
    for ending in ("png", "webp"):
        photo = read_photo(save_picture(picture, tmp_path / f"picture.{ending}", alpha))
        assert photo.alpha is not None
        assert torch.equal(photo.alpha, alpha)
    jpeg = open_picture(save_picture(picture, tmp_path / "picture.jpg", alpha))
    assert near(corners(jpeg), [RED, GREEN, (255, 255, 255), (255, 255, 255)], 3)


def test_jpegs_keep_fine_colours(tmp_path: Path) -> None:
    """Red and blue columns of one pixel: with the usual halved colour resolution they would come out purple."""
    columns = np.zeros((16, 16, 3), np.uint8)
    columns[:, ::2, 0] = columns[:, 1::2, 2] = 255
    found = np.asarray(open_picture(save_picture(Image.fromarray(columns), tmp_path / "fine.jpg"))).astype(int)
    assert np.abs(found - columns).mean() < 10


def test_a_picture_too_large_for_its_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "wide.webp"
    with pytest.raises(InstError, match=r"wide\.webp cannot be written as WEBP .*choose the ending \.png"):
        save_picture(Image.new("L", (17_000, 1)), path)
    assert not path.exists()


def test_pngs_are_marked_as_srgb_and_carry_no_other_profile(tmp_path: Path) -> None:
    source = saved(quarters(), tmp_path / "swapped.png", icc_profile=swapped_primaries_profile())
    path = save_png(open_picture(source), tmp_path / "result.png")
    with Image.open(path) as image:
        assert image.info == {"srgb": 0}
    unconverted = Image.open(source)
    with Image.open(save_png(unconverted, path)) as image:
        assert "icc_profile" not in image.info


def test_encoded_paintings_have_limited_sides_and_broken_ones_are_refused() -> None:
    coarse = torch.rand(1, 3, 6, 12, generator=torch.Generator().manual_seed(0)) * 2 - 1
    picture = torch.nn.functional.interpolate(coarse, (300, 600), mode="bicubic")[0].clamp(-1, 1)
    data = encode_painting(picture, short_side=100)
    found = decode_picture(data, "the painting")
    assert found.shape == (3, 100, 200)
    assert (found - resize(picture, (100, 200))).abs().mean() < 0.03  # WebP is lossy
    assert encode_painting(picture, short_side=100) == data
    assert decode_picture(encode_painting(picture), "x").shape == picture.shape
    assert decode_picture(encode_painting(torch.zeros(3, 1, 5000)), "x").shape == (3, 1, 4096)
    for broken in (b"", b"hello", data[:100]):
        with pytest.raises(InstError, match=r"^the painting "):
            decode_picture(broken, "the painting")
