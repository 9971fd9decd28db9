"""Picture files that lie about themselves, or are none: refused in one line, before they cost memory or time."""

import ast
import contextlib
import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import inst
from inst.errors import InstError, InstWarning
from inst.files.listing import PICTURE_ENDINGS
from inst.pictures import resizing
from inst.pictures.formats import READABLE
from inst.pictures.masks import read_mask
from inst.pictures.opening import read_text_in
from inst.pictures.reading import open_picture, read_image, read_photo, read_picture
from inst.pictures.resizing import resize, resize_mask
from inst.pictures.stored import decode_picture


def test_one_file_opens_pictures_and_names_their_formats() -> None:
    package = Path(inst.__file__).parent
    found = []
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("Image.open", "PIL.Image.open", "open_image"):
                found.append((path.relative_to(package).as_posix(), "formats" in {word.arg for word in node.keywords}))
    assert found == [("pictures/opening.py", True)]


def test_the_formats_are_those_of_the_endings() -> None:
    Image.init()
    assert {Image.registered_extensions()[ending] for ending in PICTURE_ENDINGS} == set(READABLE)


def refuse(path: Path, said: str) -> None:
    with pytest.raises(InstError) as caught:
        read_photo(path)
    message = str(caught.value)
    assert said in message
    assert message.count(str(path)) == 1
    assert "\n" not in message


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


SMALL = Image.new("RGB", (64, 64), "red")
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (POSTSCRIPT, "a PostScript file"),
        (b"\xc5\xd0\xd3\xc6" + bytes(60), "a PostScript file"),
        (encoded(SMALL, "EPS"), "a PostScript file"),
        (encoded(SMALL, "PDF"), "a PDF file"),
        (encoded(SMALL, "ICO"), "an icon file"),
        (encoded(SMALL, "ICNS"), "an icon file"),
        (encoded(SMALL, "DDS"), "a DDS file"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIC file"),
        (b"\0\0\0\x18ftypisom\0\0\0\0isommp41", "a film"),
        (b"8BPS\0\1" + bytes(40), "a Photoshop file"),
        (b'\n<?xml version="1.0"?><svg/>', "an SVG or XML file"),
        (b"<!DOCTYPE html><html></html>", "a web page"),
        (b"PK\3\4" + bytes(40), "an archive"),
    ],
)
def test_files_of_other_kinds_are_named(tmp_path: Path, content: bytes, kind: str) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(content)
    refuse(path, f"is not a picture in a known format, but {kind}: export it as PNG or JPEG")


def test_postscript_never_reaches_ghostscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    path = tmp_path / "photo.eps"
    path.write_bytes(encoded(SMALL, "EPS"))
    refuse(path, "a PostScript file")
    assert not (tmp_path / "ran").exists()


# What a file says about its parts


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_with(data: bytes) -> bytes:
    whole = encoded(SMALL, "PNG")
    return whole[:33] + data + whole[33:]


def tiff(tags: list[tuple[int, int, int, int]], rest: bytes = b"") -> bytes:
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0) + rest


STRIPS = 600_000
JPEG = encoded(SMALL, "JPEG")
BOMB = zlib.compress(bytes(50_000_000))
FILES = {
    "chunks.png": (png_with(chunk(b"prVt", b"") * 300_000), "has too many parts"),
    "segments.jpg": (JPEG[:2] + b"\xff\xee\0\2" * 200_000 + JPEG[2:], "has too many parts"),
    "fill.jpg": (JPEG[:2] + b"\xff" * 600_000 + JPEG[2:], "has too many parts"),
    "comment.ppm": (b"P6\n#" + b"c" * 600_000 + b"\n1 1 255\n123", "has too many parts"),
    "strips.tif": (
        tiff(
            [(256, 4, 1, 1), (257, 4, 1, STRIPS), (273, 4, STRIPS, 122), (278, 4, 1, 1), (279, 4, STRIPS, 122)],
            bytes(4 * STRIPS + 99),
        ),
        "has 600,000 values for one tag",
    ),
    "tiles.jp2": (encoded(Image.new("L", (255, 255)), "JPEG2000", tile_size=(1, 1)), "has 65,025 tiles"),
    "tiles.j2k": (encoded(Image.new("L", (99, 99)), "JPEG2000", tile_size=(1, 1), no_jp2=True), "has 9,801 tiles"),
    "text.png": (png_with(chunk(b"zTXt", b"k\0\0" + BOMB)), "is damaged"),
    "profile.png": (png_with(chunk(b"iCCP", b"k\0\0" + BOMB)), "is damaged"),
    "high.bmp": (b"BM" + struct.pack("<IHHIIiiHHIIiiII", 99, 0, 0, 54, 40, 8, -(2**31), 1, 24, *[0] * 6), "million"),
    "short.bmp": (b"BM" + struct.pack("<IHHIIiiHHIIiiII", 99, 0, 0, 54, 40, 13000, -13000, 1, 24, *[0] * 6), "damaged"),
    "short.tga": (bytes([0, 0, 10, *[0] * 9]) + struct.pack("<HHBB", 13000, 13000, 24, 0) + b"\xff123", "damaged"),
    "number.ppm": (b"P3\n" + b"9" * 100_000 + b" 8 255\n1", "damaged"),
    "short.pbm": (b"P1\n13000 13000\n1 1 1", "damaged"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_says_too_much_is_refused(tmp_path: Path, name: str) -> None:
    content, said = FILES[name]
    path = tmp_path / name
    path.write_bytes(content)
    refuse(path, said)


def test_files_with_many_frames_or_pages_that_lead_back_give_the_first(tmp_path: Path) -> None:
    frames = [Image.new("L", (8, 8), level) for level in range(200)]
    for ending in ("gif", "png", "webp"):
        frames[0].save(tmp_path / f"many.{ending}", save_all=True, append_images=frames[1:])
        assert read_picture(tmp_path / f"many.{ending}").shape == (3, 8, 8)
    tags = [(256, 4, 1, 8), (257, 4, 1, 8), (258, 3, 1, 8), (262, 3, 1, 1), (273, 4, 1, 200), (278, 4, 1, 8)]
    looped = tiff([*tags, (279, 4, 1, 64), (330, 4, 1, 8), (34665, 4, 1, 8)], bytes(400))
    (tmp_path / "loop.tif").write_bytes(looped[:118] + struct.pack("<I", 8) + looped[122:])
    assert read_picture(tmp_path / "loop.tif").shape == (3, 8, 8)


def test_a_jpeg_2000_file_in_usual_tiles_is_read(tmp_path: Path) -> None:
    SMALL.save(tmp_path / "tiles.jp2", tile_size=(16, 16))
    assert read_picture(tmp_path / "tiles.jp2").shape == (3, 64, 64)


def test_the_painting_in_a_style_is_no_larger_than_it_is_written() -> None:
    with pytest.raises(InstError, match=r"^The painting has 13000 x 13000 pixels, more than 4 million"):
        decode_picture(encoded(Image.new("1", (13_000, 13_000)), "PNG"), "The painting")
    assert decode_picture(encoded(Image.new("1", (4096, 1024)), "PNG"), "The painting").shape == (3, 1024, 4096)


def test_a_text_is_read_without_the_pixels(tmp_path: Path) -> None:
    path = tmp_path / "cut.png"
    whole = png_with(chunk(b"tEXt", b"inst\0record"))
    path.write_bytes(whole[: whole.index(b"IDAT") + 6])
    assert read_text_in(path, "inst") == "record"


# Large pictures


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read as Linux gives it")
@pytest.mark.parametrize("flattened", [True, False])
def test_a_large_picture_takes_the_memory_of_its_file_format(tmp_path: Path, flattened: bool) -> None:
    """At 1 byte, 100 million pixels take 100 MB decoded, 400 MB with colours and opacity, and some KB as a file."""
    code = (
        "import sys\n"
        "from inst.pictures.masks import read_mask; from inst.pictures.reading import read_photo\n"
        f"read_photo(sys.argv[1], flattened={flattened}, reduce_to=256); read_mask(sys.argv[1], (256, 256))\n"
        "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"  # `ru_maxrss` counts the parent's, too
    )
    peaks = []
    for side in (16, 10_000):
        if flattened:
            Image.new("1", (side, side)).save(tmp_path / f"{side}.png")
        else:
            Image.new("P", (side, side), 1).save(tmp_path / f"{side}.png", transparency=0)
        done = subprocess.run([sys.executable, "-c", code, tmp_path / f"{side}.png"], capture_output=True, check=True)
        peaks.append(int(done.stdout))
    assert peaks[1] - peaks[0] < 400_000  # KB


def test_a_large_picture_that_is_very_thin_is_refused(tmp_path: Path) -> None:
    for size in ((1, 17_000_000), (17_000_000, 1)):
        Image.new("1", size).save(tmp_path / "thin.png")
        with pytest.raises(InstError, match=r"thin\.png has [\d]+ x [\d]+ pixels, which is too long and thin"):
            read_photo(tmp_path / "thin.png")


def test_a_long_picture_is_reduced_although_its_short_side_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resizing, "LARGE", 10_000)
    monkeypatch.setattr(resizing, "_LARGEST", 40_000)
    assert resizing.reduced_size(100, 1_600, 200) == (50, 800)
    assert resizing.reduced_size(100, 400, 200) is None
    assert resizing.reduced_size(100, 1_600, 20) == (20, 320)


def test_a_jpeg_file_of_thousands_of_scans_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "photo.jpg", progressive=True)
    whole = (tmp_path / "photo.jpg").read_bytes()
    read_photo(tmp_path / "photo.jpg")
    last = whole.rindex(b"\xff\xda")
    # What follows the end of the picture, as in a photo with a film, does not count.
    (tmp_path / "photo.jpg").write_bytes(whole + whole[last:-2] * 3_000)
    read_photo(tmp_path / "photo.jpg")
    (tmp_path / "photo.jpg").write_bytes(whole[:last] + whole[last:-2] * 3_000 + whole[-2:])
    with pytest.raises(InstError, match=r"photo\.jpg has more than 100 scans"):
        read_photo(tmp_path / "photo.jpg")


@pytest.fixture
def picture(monkeypatch: pytest.MonkeyPatch) -> Image.Image:
    """A smooth picture that counts as large, and is read in several strips."""
    monkeypatch.setattr(resizing, "LARGE", 10_000)
    monkeypatch.setattr(resizing, "_STRIP", 5_000)
    noise = np.random.default_rng(0).integers(0, 256, (12, 18, 4), np.uint8)
    return Image.fromarray(noise).resize((360, 240), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "CMYK", "1", "I;16"])
def test_reducing_while_reading_gives_the_same_bits(tmp_path: Path, picture: Image.Image, mode: str) -> None:
    path = tmp_path / ("photo.tif" if mode == "CMYK" else "photo.png")
    (picture.convert("L").convert("I;16") if mode == "I;16" else picture.convert("RGB").convert(mode)).save(path)
    whole, reduced = read_photo(path), read_photo(path, reduce_to=80)
    assert torch.equal(reduced.picture, resize(whole.picture, (80, 120)))
    assert reduced.sha256 == whole.sha256
    levels = np.asarray(open_picture(path, reduce_to=80), np.float32) / 127.5 - 1
    assert np.abs(levels - reduced.picture.permute(1, 2, 0).numpy()).max() <= 0.502 / 127.5


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_an_image_is_reduced_as_its_file(tmp_path: Path, picture: Image.Image, mode: str) -> None:
    picture.convert(mode).save(tmp_path / "photo.png")
    read = read_image(picture.convert(mode), reduce_to=80).picture
    assert torch.equal(read, read_photo(tmp_path / "photo.png", flattened=True, reduce_to=80).picture)


def test_a_transparent_picture_keeps_colours_and_opacity(tmp_path: Path, picture: Image.Image) -> None:
    picture.save(tmp_path / "cut-out.png")
    whole, reduced = (read_photo(tmp_path / "cut-out.png", reduce_to=side) for side in (None, 80))
    assert whole.alpha is not None
    assert reduced.alpha is not None
    opacity = resize(whole.alpha[None] * 2 - 1, (80, 120))[0] / 2 + 0.5
    assert (reduced.alpha - opacity).abs().max() < 0.502 / 255
    seen = opacity > 0.5
    assert (reduced.picture - resize(whole.picture, (80, 120)))[:, seen].abs().mean() < 4 / 127.5
    # Pillow weights colours by opacity, too.
    other = np.asarray(picture.resize((120, 80), Image.Resampling.BICUBIC), np.float32).transpose(2, 0, 1)[:3]
    assert np.abs(reduced.picture.numpy() * 127.5 + 127.5 - other)[:, seen.numpy()].max() < 4
    flat, small = (read_photo(tmp_path / "cut-out.png", flattened=True, reduce_to=side) for side in (None, 80))
    assert torch.equal(small.picture, resize(flat.picture, (80, 120)))


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_jpeg_is_decoded_small_and_upright(tmp_path: Path, picture: Image.Image, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.convert("RGB").save(tmp_path / "photo.jpg", quality=95, exif=exif)
    whole, reduced = (read_photo(tmp_path / "photo.jpg", reduce_to=side).picture for side in (None, 50))
    size = (50, 75) if orientation < 5 else (75, 50)
    assert reduced.shape == (3, *size)
    assert (reduced - resize(whole, size)).abs().mean() < 1 / 127.5


@pytest.mark.parametrize("kind", ["levels", "labels", "opacity", "both"])
def test_a_large_mask_is_that_of_the_whole(tmp_path: Path, picture: Image.Image, kind: str) -> None:
    grey = picture.convert("L")
    if kind == "labels":
        grey = grey.point([0] * 128 + [1] * 128)
    if kind in ("opacity", "both"):
        layer = Image.new("LA", grey.size, 255) if kind == "opacity" else grey.convert("LA")
        layer.putalpha(grey)
        grey = layer
    grey.save(tmp_path / "mask.png")
    with pytest.warns(InstWarning, match="0 and 1") if kind == "labels" else contextlib.nullcontext():
        whole, mask = read_mask(tmp_path / "mask.png"), read_mask(tmp_path / "mask.png", (80, 120))
    assert whole.shape == (240, 360)
    assert torch.equal(mask, resize_mask(whole, (80, 120)))
