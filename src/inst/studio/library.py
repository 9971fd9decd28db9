"""The library of styles: a folder of style files with names, tags, thumbnails, search, and a trash.

The files are the truth: the name and the tags of a style are in its file, and files that are put into the folder or
changed by hand show up at the next listing. The index beside them (`inst.studio.library_index`) can be deleted at any
time. Names of files never come from users, and ids that come from outside are looked up, never used as paths.

The import of this module does not import PyTorch.
"""

from __future__ import annotations

import os
import secrets
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from sqlite3 import Row
from typing import TYPE_CHECKING, Any

from inst.arguments import check_at_least, check_path, checked
from inst.errors import InstError, UsageError
from inst.files.holding import sweep, temporary_folder
from inst.files.writing import make_folder, write_bytes_atomically
from inst.studio.entry import StyleEntry, check_name, check_tags, search_words, tags_of, tidy_name
from inst.studio.library_index import TRASH, Index
from inst.studio.style_files import (
    ENDING,
    ID,
    bytes_of,
    is_style_file,
    move,
    painting_hash,
    read_style_file,
    unlink,
    with_about,
)

if TYPE_CHECKING:
    from torch import Tensor

    from inst.backbone.model import Backbone
    from inst.pictures.given import Picture
    from inst.styles.style import Style

THUMBNAIL_SIDES = (64, 128, 256, 512, 1024)
"""Sides of thumbnails in pixels. There are only these, because the index keeps them."""
STYLE_FILE = "inst"
"""The format of `Library.export` that gives the style file itself."""

_MOST_LOADED = 8
"""Number of styles that stay in memory; those with a module take some megabytes each."""
_DAY = 24 * 60 * 60  # seconds


class UnknownStyle(InstError, LookupError):
    """There is no style with an id: it is wrong, or the style was deleted."""

    @classmethod
    def of(cls, id: object) -> UnknownStyle:
        return cls(f"There is no style with the id {str(id)!a:.60}", "look it up in the list of styles")


class Library:
    """A folder of style files. Threads can share it, and several processes can open the same folder.

    Args:
        folder: created if it is missing.

    Raises:
        InstError: the folder cannot be used, or it holds an `index.sqlite` of another program.
    """

    def __init__(self, folder: str | Path) -> None:
        check_path("A library", folder)
        self.folder = make_folder(folder).resolve()
        self._index = Index(self.folder)
        self._load = lru_cache(maxsize=_MOST_LOADED)(_load)
        sweep(self.folder)

    def close(self) -> None:
        """Close the index."""
        self._index.close()
        self._load.cache_clear()

    def __enter__(self) -> Library:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- lists --------------------------------------------------------------------------------------------------------

    def styles(self, text: str = "", tag: str | None = None, fingerprint: str | None = None) -> list[StyleEntry]:
        """List styles, the newest first.

        Args:
            text: words that must all occur in the name, the tags, the names of the paintings or the backbone. Upper and
                lower case are the same.
            tag: a tag that they must have.
            fingerprint: the text space of a backbone that they must fit. Styles without a pseudo-word fit every one.
        """
        words = search_words(text)
        return [
            entry
            for entry in self._entries()
            if (tag is None or tag in entry.tags)
            and (fingerprint is None or not entry.has_word or entry.fingerprint == fingerprint)
            and entry.holds(words)
        ]

    def tags(self) -> list[tuple[str, int]]:
        """List the tags, each with its number of styles; the most used first, then by name."""
        counts = Counter(tag for entry in self._entries() for tag in entry.tags)
        return sorted(counts.items(), key=lambda pair: (-pair[1], pair[0].casefold(), pair[0]))

    def problems(self) -> list[str]:
        """List the files in the folder that are no styles, or are broken: one line each."""
        self._index.refresh()
        rows = self._index.rows("SELECT problem FROM files WHERE problem NOTNULL AND deleted IS NULL ORDER BY file")
        return [row["problem"] for row in rows]

    def deleted(self) -> list[StyleEntry]:
        """List the styles in the trash, the last deleted first. Of those with one id, `restore` takes the first."""
        self._index.refresh()
        rows = self._index.rows("SELECT entry FROM files WHERE entry NOTNULL AND deleted NOTNULL ORDER BY deleted DESC")
        return [StyleEntry.from_json(row["entry"]) for row in rows]

    def _entries(self) -> Iterator[StyleEntry]:
        self._index.refresh()
        order = "ORDER BY added DESC, file"
        for row in self._index.rows(f"SELECT entry FROM files WHERE entry NOTNULL AND deleted IS NULL {order}"):
            yield StyleEntry.from_json(row["entry"])

    # --- one style ----------------------------------------------------------------------------------------------------

    def entry(self, id: str) -> StyleEntry:
        """Return the entry of a style. Raises UnknownStyle."""
        return StyleEntry.from_json(self._find(id)["entry"])

    def style(self, id: str) -> Style:
        """Read a style. The last ones stay in memory.

        Raises:
            UnknownStyle: there is no style with this id.
            InstError: the file cannot be read.
        """
        row = self._find(id)
        return self._load(self._index.path_of(row), row["size"], row["mtime_ns"])

    def thumbnail(self, id: str, side: int = 256) -> bytes | None:
        """Return the first painting of a style as WebP, with sides of at most `side` pixels; None without paintings.

        Args:
            id: the style.
            side: one of `THUMBNAIL_SIDES`.

        Raises:
            UsageError: another side.
            UnknownStyle: there is no style with this id.
            InstError: the painting is damaged.
        """
        if checked("side", side, "int") not in THUMBNAIL_SIDES:
            raise UsageError(
                f"A thumbnail of {side} pixels cannot be made", f"use one of {', '.join(map(str, THUMBNAIL_SIDES))}"
            )
        row = self._find(id)
        if row["painting"] is None:
            return None
        kept = "SELECT data FROM thumbnails WHERE painting = ? AND side = ?"
        if found := self._index.rows(kept, row["painting"], side):
            return bytes(found[0]["data"])
        from inst.pictures.stored import encode_painting

        data = encode_painting(self._painting(row), short_side=side, long_side=side)
        self._index.write("INSERT OR REPLACE INTO thumbnails VALUES (?, ?, ?)", row["painting"], side, data)
        return data

    def export(self, id: str, to: str) -> tuple[bytes, str]:
        """Return a style as a file: its bytes, and a name for it that is made from the name of the style.

        Args:
            id: the style.
            to: "inst" for the style file itself, or a format of `inst.styles.exporting.FORMATS`.

        Raises:
            UsageError: an unknown format, or one that cannot hold this style.
            UnknownStyle: there is no style with this id.
        """
        from inst.styles.exporting import FORMATS, check_export, export_style, slug

        if to != STYLE_FILE and checked("format", to, "str") not in FORMATS:
            raise UsageError(f'The format "{to}" is unknown', f"use one of {', '.join((STYLE_FILE, *FORMATS))}")
        row = self._find(id)
        style = self.style(id)
        stem = slug(style.name)
        if to == STYLE_FILE:
            return bytes_of(self._index.path_of(row)), f"{stem}{ENDING}"
        check_export(None, to)
        with temporary_folder(self.folder) as folder:
            path = folder / f"{stem}{FORMATS[to]}"
            export_style(style, path, to)
            return bytes_of(path), path.name

    # --- changes ------------------------------------------------------------------------------------------------------

    def add(self, style: Style, id: str | None = None) -> StyleEntry:
        """Add a style. A name or tags in it that break the rules are put right.

        Args:
            style: the style.
            id: its id, 16 hexadecimal digits; a style that has it is replaced. The default is a new one.

        Raises:
            UsageError: the id has another form.
            InstError: the file cannot be written.
        """
        if id is not None and not _is_id(id):
            raise UsageError(f"{id!a:.60} cannot be the id of a style", "give 16 hexadecimal digits")
        return self._add(style, tidy_name(style.name), id=id)

    def import_file(self, path: str | Path, backbone: Backbone, name: str | None = None) -> StyleEntry:
        """Add a style file, or an embedding of another program (`inst.styles.importing`). Nothing in it is run.

        Args:
            path: the file.
            backbone: the model that an embedding was made for. A style file may belong to any.
            name: name of the style; the default is that in the file.

        Raises:
            UsageError: the name cannot be used, or the embedding does not fit the backbone.
            InstError: the file cannot be read.
        """
        from inst.styles.importing import import_style

        check_path("A style", path)
        name = None if name is None else check_name(name)
        own = is_style_file(Path(path))
        style = read_style_file(Path(path)) if own else import_style(backbone, path, name=name)
        return self._add(style, tidy_name(style.name) if name is None else name, chosen=name is not None)

    def rename(self, id: str, name: str) -> StyleEntry:
        """Give a style another name, in its file. The order of the list stays.

        Raises:
            UsageError: the name is empty or too long, has control characters, or looks like a path.
            UnknownStyle: there is no style with this id.
            InstError: the file cannot be written.
        """
        return self._change(id, name=check_name(name))

    def set_tags(self, id: str, tags: Iterable[str]) -> StyleEntry:
        """Give a style these tags in place of its own. Empty ones and repetitions are left out.

        Raises:
            UsageError: there are too many tags; or one is too long, or has control characters.
            UnknownStyle: there is no style with this id.
            InstError: the file cannot be written.
        """
        return self._change(id, tags=list(check_tags(tags)))

    def delete(self, id: str) -> None:
        """Move a style to the trash; `restore` brings it back. Raises UnknownStyle, or InstError if that fails."""
        with self._index.exclusive():
            row = self._find(id)
            trash = self.folder / TRASH
            if trash.is_symlink():
                raise InstError(f"{trash} is a link, which is not followed", "put a folder in its place")
            make_folder(trash)
            milliseconds = time.time_ns() // 1_000_000
            while (target := trash / f"{id}-{milliseconds}{ENDING}").exists():
                milliseconds += 1
            move(self._index.path_of(row), target)
            self._index.refresh()

    def restore(self, id: str) -> StyleEntry:
        """Bring a style back from the trash. It gets another id only if another style has its id now.

        Raises:
            UnknownStyle: there is no style with this id in the trash.
            InstError: the file cannot be moved.
        """
        with self._index.exclusive():
            self._index.refresh()
            in_trash = "SELECT * FROM files WHERE id = ? AND entry NOTNULL AND deleted NOTNULL ORDER BY deleted DESC"
            rows = self._index.rows(in_trash, id) if _is_id(id) else []
            if not rows:
                raise UnknownStyle.of(id)
            target = self.folder / f"{id}{ENDING}"
            if self._index.live(id) is not None or os.path.lexists(target):
                target = self._new_path()
            move(self._index.path_of(rows[0]), target)
            self._index.refresh()
            return self.entry(target.stem)

    def purge(self, older_than_days: float = 0) -> int:
        """End the styles that were deleted more than this number of days ago. Returns how many there were."""
        days = checked("number of days", older_than_days, "float")
        if not days >= 0:
            raise UsageError(f"{days} days cannot be used", "give 0 or more")
        with self._index.exclusive():
            self._index.refresh()
            rows = self._index.rows("SELECT * FROM files WHERE deleted <= ?", (time.time() - days * _DAY) * 1000)
            for row in rows:
                unlink(self._index.path_of(row))
            self._index.refresh()
        return len(rows)

    def _add(self, style: Style, name: str, *, chosen: bool = False, id: str | None = None) -> StyleEntry:
        written = with_about(style, name=name, tags=list(tags_of(style)), added=time.time())
        if chosen:
            _check_kept(written, name)
        with self._index.exclusive():
            path = self._new_path() if id is None else self.folder / f"{id}{ENDING}"
            write_bytes_atomically(path, written.to_bytes())
            self._index.refresh()
            return self.entry(path.stem)

    def _change(self, id: str, **about: Any) -> StyleEntry:
        """Write a style's file again, with these entries of `about`."""
        with self._index.exclusive():
            row = self._find(id)
            path = self._index.path_of(row)
            # A file that was put here by hand may not say when it was added, and its time changes now.
            changed = with_about(read_style_file(path), added=row["added"], **about)
            _check_kept(changed, about.get("name"))
            write_bytes_atomically(path, changed.to_bytes())
            self._index.refresh()
            return self.entry(id)

    # --- similar pictures ---------------------------------------------------------------------------------------------

    def encoder(self, backbone: Backbone) -> str:
        """Identify the image encoder of a backbone, for `nearest` and `missing`; "" if it has none."""
        from inst.studio.similarity import encoder_fingerprint

        return encoder_fingerprint(backbone)

    def embed_picture(self, backbone: Backbone, picture: Picture) -> Tensor:
        """Compute the embedding of a picture, [d] of length 1, for `nearest`. Errors as `similarity.embed_picture`."""
        from inst.studio.similarity import embed_picture

        return embed_picture(backbone, picture)

    def missing(self, encoder: str) -> int:
        """Count the styles with a painting whose embedding by this encoder is not known: those of `embed_missing`."""
        self._index.refresh()
        return len(self._index.without_embedding(encoder))

    def embed_missing(self, backbone: Backbone) -> Iterator[StyleEntry]:
        """Compute the missing embeddings of first paintings, and yield each style that gets one.

        A painting that cannot be read is passed over.

        Raises:
            InstError: the backbone has no image encoder.
        """
        from inst.studio.similarity import embed_picture, encoder_fingerprint, to_bytes

        self._index.refresh()
        encoder = encoder_fingerprint(backbone)
        done: set[str] = set()  # several styles may come from one painting
        for row in self._index.without_embedding(encoder):
            if row["painting"] not in done:
                try:
                    painting = self._painting(row)
                except InstError:
                    continue
                vector = to_bytes(embed_picture(backbone, painting))
                self._index.write(
                    "INSERT OR REPLACE INTO embeddings VALUES (?, ?, ?)", row["painting"], encoder, vector
                )
                done.add(row["painting"])
            yield StyleEntry.from_json(row["entry"])

    def nearest(self, vector: Tensor, encoder: str, count: int = 12) -> list[tuple[StyleEntry, float]]:
        """Find the styles whose first painting looks most like a picture.

        Args:
            vector: embedding of the picture, [d] (`embed_picture`).
            encoder: the encoder that it comes from (`encoder`). Only embeddings by this one are compared.
            count: number of styles at most.

        Returns:
            The styles with their cosine similarities in [-1, 1], the most similar first.

        Raises:
            UsageError: the vector has another shape than the stored ones, or values that are not finite.
        """
        from inst.studio.similarity import cosines

        check_at_least(1, styles=checked("number of styles", count, "int"))
        self._index.refresh()
        rows = self._index.with_embedding(encoder)
        pairs = zip(rows, cosines(vector, [row["vector"] for row in rows]), strict=True)
        best = sorted(pairs, key=lambda pair: -pair[1])[:count]
        return [(StyleEntry.from_json(row["entry"]), cosine) for row, cosine in best]

    # --- files --------------------------------------------------------------------------------------------------------

    def _find(self, id: str) -> Row:
        """Look an id up. Only one file is compared with the index, so that a page with many thumbnails is fast."""
        if not _is_id(id):
            raise UnknownStyle.of(id)
        row = self._index.live(id)
        if row is None or not self._index.is_current(row):
            self._index.refresh()
            row = self._index.live(id)
        if row is None:
            raise UnknownStyle.of(id)
        return row

    def _painting(self, row: Row) -> Tensor:
        """Decode the first painting, [3, H, W]. Raises InstError, also if the file has changed since it was indexed."""
        style = read_style_file(self._index.path_of(row), module=False)
        if painting_hash(style) != row["painting"]:
            raise InstError(f'The style "{style.name}" has just changed', "look at the list again")
        return style.painting()

    def _new_path(self) -> Path:
        while os.path.lexists(path := self.folder / f"{secrets.token_hex(8)}{ENDING}"):
            pass
        return path


def _load(path: Path, size: int, mtime_ns: int) -> Style:
    """Read a style file. Size and time belong to the key of the cache: a file that has changed is read again."""
    return read_style_file(path)


def _check_kept(style: Style, name: str | None) -> None:
    """Raise UsageError if a style did not take its name as it is: names that look like paths are cut (`Style`)."""
    if name is not None and style.name != name:
        raise UsageError(f'The name "{name}" looks like the path of a file', "choose another name")


def _is_id(id: object) -> bool:
    return isinstance(id, str) and ID.fullmatch(id) is not None
