"""The factors of a style that participants rank, and the texts of the pages in each language."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any

FACTORS = ("subjects", "material", "brushstroke", "shapes", "ornament", "colour")
"""The six factors of the paper's ranking survey, most important first as it found them."""

LANGUAGES = ("en", "zh")


@cache
def texts(language: str) -> dict[str, Any]:
    """Return the texts of the pages in a language of `LANGUAGES`, by key."""
    found: dict[str, Any] = json.loads((files("inst.study") / "page" / f"{language}.json").read_text(encoding="utf-8"))
    return found


def factor_name(factor: str) -> str:
    """Return a factor's English name, as participants read it."""
    return str(texts("en")["factors"][factor]["name"])
