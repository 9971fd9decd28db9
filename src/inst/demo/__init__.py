"""Pictures for a first try, free to ship: `ORIGINS.md` beside them says whose they are and where they come from."""

from pathlib import Path

FOLDER = Path(__file__).resolve().parent

PAINTINGS = tuple(FOLDER / f"{name}.webp" for name in ("starry-night", "night-cafe", "ducks"))
"""Two oil paintings by van Gogh and a colour woodcut by Goyō Hashiguchi; the first is the one to start with."""

PHOTOS = tuple(FOLDER / f"{name}.webp" for name in ("castle", "astronaut"))
"""A castle in its landscape and a portrait; the first is the one to start with."""
