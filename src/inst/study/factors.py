"""The factors of a style that participants rank, and the texts of the pages in each language."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any

FACTORS = ("subjects", "material", "brushstroke", "shapes", "ornament", "colour")
"""The six factors of the paper's ranking survey, in the order of the survey's result, most important first."""

LANGUAGES = ("en", "zh")


@cache
def texts(language: str) -> dict[str, Any]:
    """Return the texts of the pages by key, in a language from `LANGUAGES`."""
    file = files("inst.study") / "page" / f"{language}.json"
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


def factor_name(factor: str) -> str:
    """Return the English name of a factor, as shown to participants."""
    return str(texts("en")["factors"][factor]["name"])
