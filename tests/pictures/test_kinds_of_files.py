"""Kinds of picture files that cameras and scanners write. The values are those of `data/photo.jpg` in another form."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from inst.pictures.given import to_mask
from inst.pictures.reading import read_image, read_picture
from inst.pictures.srgb import upright

DATA = Path(__file__).parent / "data"


@pytest.mark.parametrize("file", ["exif6-gps-neg-lat.jpg", "exif6-srational-neg-zero.jpg"])
def test_a_portrait_with_odd_exif_values_is_turned(file: str) -> None:
    """Pillow cannot write the values again, so its own function fails."""
    found = read_picture(DATA / file)
    assert found.shape == (3, 256, 171)
    torch.testing.assert_close(found, read_picture(DATA / "photo.jpg").rot90(-1, (1, 2)))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_as_pillow_turns_it(orientation: int, tmp_path: Path) -> None:
    image = Image.open(DATA / "photo.jpg")
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "turned.png", exif=exif)
    expected = ImageOps.exif_transpose(Image.open(tmp_path / "turned.png"))
    np.testing.assert_array_equal(np.asarray(upright(Image.open(tmp_path / "turned.png"))), np.asarray(expected))


def test_broken_exif_data_does_not_refuse_a_picture(tmp_path: Path) -> None:
    Image.open(DATA / "photo.jpg").save(tmp_path / "odd.png", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    torch.testing.assert_close(read_picture(tmp_path / "odd.png"), read_picture(DATA / "photo.jpg"))


def test_16_bit_pgm_reads_as_the_16_bit_png_of_the_same_values(tmp_path: Path) -> None:
    levels = np.asarray(Image.open(DATA / "grey-16bit.pgm")).astype(np.uint16)
    Image.fromarray(levels).save(tmp_path / "same.png")
    found = read_picture(DATA / "grey-16bit.pgm")
    assert torch.equal(found, read_picture(tmp_path / "same.png"))
    assert float(found.mean()) == pytest.approx(-0.0526, abs=0.002)


def test_a_scan_in_which_white_is_zero_is_not_negative() -> None:
    found = read_picture(DATA / "grey-16bit-whiteiszero.tif")
    torch.testing.assert_close(found, read_picture(DATA / "grey-16bit.pgm"), rtol=0, atol=1.5 / 127.5)


def test_the_white_of_a_12_bit_scan_is_4095(tmp_path: Path) -> None:
    """A TIFF file by hand: two values are packed into three bytes."""
    grey = np.asarray(Image.open(DATA / "photo.jpg").convert("L"))
    values = grey.astype(np.uint32) * 4095 // 255
    first, second = values[:, 0::2], values[:, 1::2]
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=2).astype(np.uint8).tobytes()
    height, width = values.shape
    # Width, height, bits, no compression, black is zero, offset of the only strip, channels, its rows, its bytes.
    tags = {256: width, 257: height, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: len(packed)}
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    header = struct.pack("<2sHI", b"II", 42, 8 + len(packed))
    path = tmp_path / "scan.tif"
    path.write_bytes(header + packed + struct.pack("<H", len(tags)) + directory + bytes(4))
    found = read_picture(path)
    torch.testing.assert_close(found[0], torch.from_numpy(grey).float() / 127.5 - 1, rtol=0, atol=1.5 / 127.5)


def test_images_of_16_bits_in_memory_are_turned_and_reduced() -> None:
    levels = np.linspace(0, 65535, 12).astype(np.uint16).reshape(3, 4)
    found = read_image(Image.fromarray(levels)).picture
    torch.testing.assert_close(found[0], torch.from_numpy(levels / 32767.5 - 1).float(), rtol=0, atol=1 / 127.5)
    mask = to_mask(Image.fromarray(levels), (3, 4))
    torch.testing.assert_close(mask, torch.from_numpy(levels / 65535).float(), rtol=0, atol=1 / 255)
