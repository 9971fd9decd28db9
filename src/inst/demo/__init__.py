"""Free pictures for a first try. `ORIGINS.md` next to them lists their authors, licences and sources."""

from pathlib import Path

FOLDER = Path(__file__).resolve().parent

PAINTINGS = tuple(FOLDER / f"{name}.webp" for name in ("starry-night", "night-cafe", "ducks"))
"""Two oil paintings by van Gogh and a colour woodcut by Goyō Hashiguchi; the demo uses the first one."""

PHOTOS = tuple(FOLDER / f"{name}.webp" for name in ("castle", "astronaut"))
"""A castle in its landscape and a portrait; the demo uses the first one."""
