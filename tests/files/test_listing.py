"""Which files of a folder count as pictures, and which are named because they do not."""

import os
import shutil
import sys
import warnings
from pathlib import Path

import pytest
from PIL import Image

from inst.errors import InstWarning
from inst.files.listing import PICTURE_ENDINGS, pictures_in, plain_name, readable_name, readable_path
from inst.pictures.reading import read_picture

WRITTEN = {".jfif": "JPEG", ".jpe": "JPEG", ".avif": "AVIF", ".jp2": "JPEG2000", ".pnm": "PPM", ".pgm": "PPM"}


def test_pictures_of_every_ending_can_be_read(tmp_path: Path) -> None:
    for ending in PICTURE_ENDINGS:
        image = Image.new("L" if ending == ".pgm" else "RGB", (8, 6), "white")
        image.save(tmp_path / f"a{ending.upper()}", format=WRITTEN.get(ending))
    found = pictures_in(tmp_path)
    assert len(found) == len(PICTURE_ENDINGS)
    for path in found:
        assert read_picture(path).shape == (3, 6, 8)


def test_pictures_that_cannot_be_read_are_named_once(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    for name in ("notes.txt", "._a.heic", "a.json", "folder.heic/"):
        (tmp_path / name).mkdir() if name.endswith("/") else (tmp_path / name).touch()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [path.name for path in pictures_in(tmp_path)] == ["a.png"]
    (tmp_path / "c.HEIC").touch()
    with pytest.warns(InstWarning, match=r"c\.HEIC cannot be read and is passed over: export it as PNG or JPEG"):
        pictures_in(tmp_path)
    shutil.copy(tmp_path / "c.HEIC", tmp_path / "b.cr2")
    with pytest.warns(InstWarning, match=r"b\.cr2 and 1 more cannot be read"):
        assert [path.name for path in pictures_in(tmp_path)] == ["a.png"]


def test_the_plain_name_has_no_ending_and_one_form() -> None:
    assert plain_name("cafe\u0301.v2.jpg") == "café.v2"


def test_a_readable_name_shows_bytes_that_are_not_utf_8_and_keeps_all_else() -> None:
    assert readable_name(os.fsdecode(b"\xff caf\xc3\xa9 \xe9.png")) == "%FF café %E9.png"
    assert readable_name("睡莲 😀 100%.png") == "睡莲 😀 100%.png"
    assert plain_name(os.fsdecode(b"\xff.png")) != plain_name(os.fsdecode(b"\xfe.png"))


@pytest.mark.skipif(sys.platform != "linux", reason="needs names of any bytes")
def test_a_readable_path_leads_to_the_file_and_leaves_nothing(tmp_path: Path) -> None:
    file = tmp_path / os.fsdecode(b"\xff.bin")
    file.write_bytes(b"content")
    with readable_path(file) as path:
        assert str(path).isascii()
        assert path.read_bytes() == b"content"
    assert not path.parent.exists()
    assert file.read_bytes() == b"content"
    with readable_path(tmp_path / "plain.bin") as path:
        assert path == tmp_path / "plain.bin"
