"""The eight paintings and eight photos of the quality sheet: the demo's, and those in `pictures/` beside this file.

All are free to ship; an `ORIGINS.md` in either folder says whose they are, under what licence, and where from.
None is a training picture of the bundled backbone, nor nearly one.
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
"""Paths, in the order of the sheet's columns."""

PHOTOS = (
    *demo.PHOTOS,
    *(FOLDER / f"{name}.webp" for name in ("canyon", "gate", "horses", "street", "coffee", "tulips")),
)
"""Paths, in the order of the sheet's rows."""
