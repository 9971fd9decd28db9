"""The pictures to click on a first visit: those of `inst demo`."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from PIL import Image, ImageOps

from inst.studio.page.inputs import remember_name
from inst.studio.studio import Studio
from inst.studio.uploads import Upload

EXAMPLES = (
    ("starry-night.webp", "castle.webp"),
    ("night-cafe.webp", "ducks.webp"),
    ("starry-night.webp", "astronaut.webp"),
)
"""Paintings and photos, by file name in `inst.demo`."""

_CELL = (160, 320)


def example_uploads(studio: Studio) -> dict[str, Upload]:
    """Put the pictures among the uploads, because only files of the data folder are served; by file name."""
    kept = {}
    for name in sorted({name for pair in EXAMPLES for name in pair}):
        with studio.uploads.receive() as receiver:
            receiver.write(Path(str(files("inst.demo") / name)).read_bytes())
            kept[name] = studio.uploads.keep_picture(receiver, None)
        remember_name(kept[name].key, name)
    return kept


def example_pictures(examples: dict[str, Upload]) -> list[Image.Image]:
    """Return a picture of each example: the painting and the photo side by side."""
    from inst.pictures.reading import open_picture  # imports PyTorch, for which the page does not wait

    pictures = []
    for pair in EXAMPLES:
        page = Image.new("RGB", (2 * _CELL[0], _CELL[1]))
        for number, name in enumerate(pair):
            page.paste(ImageOps.fit(open_picture(examples[name].path), _CELL), (number * _CELL[0], 0))
        pictures.append(page)
    return pictures
