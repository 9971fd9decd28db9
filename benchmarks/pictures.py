"""The eight paintings and eight photos of the quality sheet, from the demo and from `pictures/` next to this file.

All can be distributed freely. An `ORIGINS.md` in each folder lists their authors, licences and sources. None of them,
and no similar picture, was used to train the bundled backbone.
"""

from pathlib import Path

from inst import demo

FOLDER = Path(__file__).resolve().parent / "pictures"

PAINTINGS = (
    *demo.PAINTINGS,
    *(
        FOLDER / f"{name}.webp"
        for name in ("entrance-hall", "langlois-bridge", "daffodils", "pearl-earring", "mona-lisa")
    ),
)
"""Paths of the paintings, in the order of the sheet's columns."""

PHOTOS = (
    *demo.PHOTOS,
    *(FOLDER / f"{name}.webp" for name in ("canyon", "gate", "horses", "street", "coffee", "tulips")),
)
"""Paths of the photos, in the order of the sheet's rows."""
