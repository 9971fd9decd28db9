"""What the library says about a style without reading its file; and the rules for names and tags.

This module does not import PyTorch.
"""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from inst.arguments import checked
from inst.errors import UsageError
from inst.files.listing import readable_name

if TYPE_CHECKING:
    from inst.styles.style import Style

LONGEST_NAME = 120
"""Largest number of characters of a name."""
LONGEST_TAG = 40
"""Largest number of characters of a tag."""
MOST_TAGS = 32
"""Largest number of tags of a style."""

_DIRECTIONS = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Invisible characters that change the direction of the text around them: a name must not rearrange a page."""
_LARGEST_TIME = 1e11  # seconds; the year 5138
_LARGEST_STEPS = 2**53


@dataclass(frozen=True)
class StyleEntry:
    """A style in the library.

    Attributes:
        id: 16 hexadecimal digits; it stays the same as long as the file has its name.
        name, tags: as in the style file, without control characters and cut to the limits of this module.
        backbone: name of the model that the style was learned with; "" if unknown.
        variant: how it was made, such as "attention", "instant", "imported" or "mix"; "" if unknown.
        steps: number of learning steps; 0 if unknown.
        fingerprint: the text space (`Backbone.fingerprint`).
        has_word: whether it has a pseudo-word. Without one, it fits every backbone.
        vectors: number of vectors of the pseudo-word.
        paintings: names of the paintings.
        added: when it came into the library, Unix time in seconds.
        bytes: size of the file.
    """

    id: str
    name: str
    tags: tuple[str, ...]
    backbone: str
    variant: str
    steps: int
    fingerprint: str
    has_word: bool
    vectors: int
    paintings: tuple[str, ...]
    added: float
    bytes: int

    @classmethod
    def of(cls, style: Style, id: str, size: int, modified: float) -> StyleEntry:
        """Describe a style. Its file may come from anywhere, so nothing in `about` is taken as it is.

        Args:
            style: the style.
            id: its id.
            size: size of its file in bytes.
            modified: when the file was written, Unix time in seconds; for files that do not say when they were added.
        """
        about = style.about
        paintings = [_tidy(painting.get("name")) for painting in about.get("paintings", [])]
        return cls(
            id=id,
            name=tidy_name(style.name),
            tags=tags_of(style),
            backbone=_tidy(about.get("backbone")),
            variant=_tidy(about.get("variant")),
            steps=round(_number(about.get("steps"), _LARGEST_STEPS) or 0),
            fingerprint=_tidy(style.fingerprint),
            has_word=style.has_word,
            vectors=len(style.vectors),
            paintings=tuple(name for name in paintings if name),
            added=_number(about.get("added"), _LARGEST_TIME) or modified,
            bytes=size,
        )

    def to_json(self) -> str:
        """Return the entry as JSON, for `from_json`."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> StyleEntry:
        """Read what `to_json` wrote. Raises ValueError, TypeError or KeyError for anything else."""
        content: dict[str, Any] = json.loads(text)
        content |= {"tags": tuple(content["tags"]), "paintings": tuple(content["paintings"])}
        entry = cls(**content)
        texts = (entry.id, entry.name, *entry.tags, entry.backbone, entry.variant, entry.fingerprint, *entry.paintings)
        "".join(texts).encode()  # TypeError if one is no text, UnicodeEncodeError if it is no Unicode
        if not math.isfinite(entry.added + entry.steps + entry.vectors + entry.bytes):
            raise ValueError("a number is not finite")
        return entry

    def holds(self, words: Iterable[str]) -> bool:
        """Whether each of the words (`search_words`) occurs in the name, a tag, a painting's name or the backbone."""
        text = _folded("\n".join((self.name, *self.tags, *self.paintings, self.backbone)))
        return all(word in text for word in words)


def search_words(text: str) -> list[str]:
    """Split a search into its words, without the difference of upper and lower case and of wide and narrow letters."""
    return _folded(text).split()


def tidy_name(name: str) -> str:
    """Make a name that follows the rules from any text: the name of a file, or one that another program wrote."""
    return _tidy(name)[:LONGEST_NAME].strip() or "unnamed"


def tags_of(style: Style) -> tuple[str, ...]:
    """Return the tags in a style's file, as far as they follow the rules."""
    tags = style.about.get("tags")
    tidy = [_tidy(tag)[:LONGEST_TAG].strip() for tag in tags] if isinstance(tags, list) else []
    return _distinct(tidy)[:MOST_TAGS]


def check_name(name: str) -> str:
    """Return a name that a user chose, without spaces around it.

    Raises:
        UsageError: it is empty or too long, or has control characters.
    """
    name = _check_text("name", name, LONGEST_NAME)
    if not name:
        raise UsageError("The name is empty", "give the style a name")
    return name


def check_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """Return tags that a user chose, without spaces around them, empty ones and repetitions.

    Raises:
        UsageError: there are too many tags; or one is too long, or has control characters.
    """
    if isinstance(tags, str | bytes) or not isinstance(tags, Iterable):
        raise UsageError(f"The tags {tags!r:.60} cannot be used", "give a list of texts")
    kept = _distinct(_check_text("tag", tag, LONGEST_TAG) for tag in tags)
    if len(kept) > MOST_TAGS:
        raise UsageError(f"{len(kept)} tags are too many", f"give {MOST_TAGS} at most")
    return kept


def _check_text(what: str, text: str, longest: int) -> str:
    text = unicodedata.normalize("NFC", checked(what, text, "str")).strip()
    if any(_is_control(letter) for letter in text):
        raise UsageError(f"The {what} {text!a:.60} has a control character", "leave it out")
    if len(text) > longest:
        raise UsageError(f"The {what} has {len(text)} characters", f"give {longest} at most")
    return text


def _distinct(tags: Iterable[str]) -> tuple[str, ...]:
    """Return the tags that are not empty, each once. Tags that differ in upper and lower case only are the same."""
    first: dict[str, str] = {}
    for tag in tags:
        first.setdefault(tag.casefold(), tag)
    first.pop("", None)
    return tuple(first.values())


def _tidy(text: Any) -> str:
    """Make one line of text, which a page and a database can take, from a value in a file."""
    if not isinstance(text, str):
        return ""
    plain = unicodedata.normalize("NFC", readable_name(text[:1000]))
    return "".join(" " if _is_control(letter) else letter for letter in plain).strip()


def _is_control(letter: str) -> bool:
    return unicodedata.category(letter) in ("Cc", "Zl", "Zp") or letter in _DIRECTIONS


def _number(value: Any, largest: float) -> float | None:
    """Return a number from a file if it can be a time or a number of steps."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= largest:  # False for NaN
        return None
    return float(value) if math.isfinite(value) else None


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
