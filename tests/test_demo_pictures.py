"""The pictures that ship: what is there is exactly what the ORIGINS.md beside it says."""

import hashlib
import importlib.util
import re
from itertools import combinations
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from inst import demo

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
FOLDERS = [demo.FOLDER, BENCHMARKS / "pictures"]
FIELDS = ["Title", "Author", "Year", "Licence", "Stated", "From", "File", "Changes", "sha256"]
FREE = ("public domain", "CC0-1.0", "MIT", "Apache-2.0")


def origins(folder: Path) -> dict[str, dict[str, str]]:
    """The fields of each picture's section of the folder's ORIGINS.md."""
    text = (folder / "ORIGINS.md").read_text(encoding="utf-8")
    sections = re.findall(r"^## (\S+\.webp)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    return {name: dict(re.findall(r"^- (\w+): (.+)$", section, re.MULTILINE)) for name, section in sections}


def benchmark_pictures() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_pictures", BENCHMARKS / "pictures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("folder", FOLDERS, ids=["demo", "benchmarks"])
def test_every_picture_has_its_origin_written_down(folder: Path) -> None:
    listed = origins(folder)
    assert set(listed) == {path.name for path in folder.iterdir() if path.suffix not in (".md", ".py", "")}
    for name, fields in listed.items():
        assert list(fields) == FIELDS, name
        assert fields["Licence"].startswith(FREE), name
        assert fields["sha256"] == hashlib.sha256((folder / name).read_bytes()).hexdigest(), name
        assert re.search(r"sha256 [0-9a-f]{64}\)$", fields["From"]), name
        assert re.search(r"sha256 [0-9a-f]{64}\)$", fields["File"]), name


@pytest.mark.parametrize("folder", FOLDERS, ids=["demo", "benchmarks"])
def test_pictures_are_small_plain_and_of_the_size_said(folder: Path) -> None:
    for name, fields in origins(folder).items():
        with Image.open(folder / name) as picture:
            picture.load()
        assert (picture.format, picture.mode) == ("WEBP", "RGB"), name
        assert not {"exif", "icc_profile", "xmp"} & set(picture.info), name
        assert fields["Changes"].endswith(f"now {picture.width} x {picture.height}"), name
        assert 360 <= min(picture.size) <= 512, name


def test_the_demo_pictures_in_the_wheel_take_less_than_750_kb() -> None:
    assert sum(path.stat().st_size for path in demo.FOLDER.glob("*.webp")) < 750_000


def test_the_benchmark_pictures_are_eight_paintings_and_eight_photos() -> None:
    pictures = benchmark_pictures()
    assert (len(pictures.PAINTINGS), len(pictures.PHOTOS)) == (8, 8)
    assert sorted(pictures.PAINTINGS + pictures.PHOTOS) == sorted(
        path for folder in FOLDERS for path in folder.glob("*.webp")
    )


def test_no_two_pictures_are_alike() -> None:
    def difference_hash(path: Path) -> np.ndarray:
        small = np.asarray(Image.open(path).convert("L").resize((17, 16), Image.Resampling.LANCZOS), np.int16)
        return small[:, 1:] > small[:, :-1]

    hashes = [difference_hash(path) for folder in FOLDERS for path in folder.glob("*.webp")]
    assert min(np.count_nonzero(a != b) for a, b in combinations(hashes, 2)) > 60
