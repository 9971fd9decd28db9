"""The pictures of a batch, as a stream: a folder, a glob, a list file, WebDataset shards or Parquet files."""

from __future__ import annotations

import os
import posixpath
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from inst.arguments import check_path
from inst.batch.folders import Pattern, files_below, is_glob, split_glob
from inst.batch.items import Item, safe_name
from inst.batch.lists import items_of_list
from inst.batch.places import Place, is_url, local_path, printable, reading, without_secrets
from inst.batch.remote import remote_files
from inst.batch.shards import items_of_shard
from inst.batch.tables import items_of_parquet
from inst.errors import InstError, InstWarning, UsageError
from inst.files.listing import PICTURE_ENDINGS, UNREADABLE_PICTURES

STYLE_ENDINGS = (".safetensors", *PICTURE_ENDINGS)
"""Endings of what can be used as a style: a style file or a painting."""

_STATE = ".state.safetensors"
"""The ending of interrupted learnings, which are no styles."""

_LISTS = (".txt", ".lst")
_SHARDS = (".tar", ".tar.gz", ".tgz")
_TABLES = (".parquet",)
_CONTAINERS = (*_LISTS, *_SHARDS, *_TABLES)


@dataclass(frozen=True)
class _Options:
    recursive: bool
    column: str | None
    endings: tuple[str, ...]


class Source:
    """The items of one or more sources, in a fixed order. Each iteration reads them again from their place.

    Raises (while it is iterated):
        InstError: a source is empty, or was removed.
    """

    def __init__(self, parts: Sequence[_Part]) -> None:
        self._parts = list(parts)

    def __iter__(self) -> Iterator[Item]:
        for part in self._parts:
            yield from part.items()

    @property
    def is_countable(self) -> bool:
        """Whether the items can be counted without reading pictures, which shards do not allow."""
        return all(part.is_countable for part in self._parts)

    def count(self) -> int | None:
        """Return the number of items; None if pictures would have to be read for it."""
        return sum(1 for _ in self) if self.is_countable else None


def open_source(
    texts: str | Path | Sequence[str | Path],
    *,
    recursive: bool = False,
    column: str | None = None,
    endings: Sequence[str] = PICTURE_ENDINGS,
) -> Source:
    """Return the pictures of one or more sources as a stream.

    Args:
        texts: paths or URLs, each of a folder; a glob (`*`, `?`, `[ab]`, `**` for any folders); a picture; a list file
            (.txt, .lst) with a path or URL in each line; WebDataset shards (.tar, .tar.gz); or Parquet files.
            A glob can name several of each. A file whose name has special characters of a glob is found too.
        recursive: take the pictures in the folders of a folder too.
        column: the column of pictures in Parquet files; None finds it.
        endings: endings of the files that count, in lower case: of pictures, or `STYLE_ENDINGS`.

    Raises:
        UsageError: a text names no known kind of source; or a Parquet file has no such column.
        InstError: a source is missing, empty or damaged; or a library for it is missing.
    """
    given = [texts] if isinstance(texts, str | os.PathLike) else list(texts)
    if not given:
        raise UsageError("No source of pictures is given", "give a folder, or another source")
    options = _Options(recursive, column, tuple(endings))
    return Source([_open(text, options) for text in given])


@dataclass(frozen=True)
class _Part:
    """One source: a stream of files, and how each is read if it holds many pictures."""

    place: Place
    files: Callable[[], Iterator[Item]]
    read: Callable[[Item], Iterator[Item]] | None
    what: str

    def items(self) -> Iterator[Item]:
        """Yield the items. A damaged file of several becomes an item with a problem, and the next ones are read."""
        count = 0
        for file in self.files():
            if self.read is None or file.problem is not None:
                yield file
                count += 1
                continue
            try:
                for item in self.read(file):
                    yield item
                    count += 1
            except InstError as error:
                yield Item(file.name, file.place, problem=error)
                count += 1
        if not count:
            raise self.empty()

    @property
    def is_countable(self) -> bool:
        """Whether the items can be counted without reading pictures."""
        return self.read is None or self.place.locator.lower().endswith(_LISTS)

    def empty(self) -> InstError:
        """Return the error for a source without items."""
        remedy = "" if self.read else ', or a glob of files in it, such as "*.jpg", "*.tar" or "*/*.jpg"'
        return InstError(f"{self.place.shown} contains no {self.what}", f"give another source{remedy}")

    def check(self) -> None:
        """Raise the error of a source that is empty, or cannot be read from its start."""
        first = next(self.files(), None)
        if first is None:
            raise self.empty()
        if self.read is not None and first.problem is None and next(self.read(first), None) is None:
            next(self.items())


def _open(text: str | Path, options: _Options) -> _Part:
    check_path("A source of pictures", text)
    text = local_path(os.fspath(text))
    part = _remote(text, options) if is_url(text) else _local(text, options)
    part.check()
    return part


def _local(text: str, options: _Options) -> _Part:
    place = Place.of(text)
    if os.path.isdir(text):
        parts = ["**", "*"] if options.recursive else ["*"]
        return _Part(place, lambda: _files(place, text, Pattern(parts), options.endings), None, _kinds(options))
    if os.path.lexists(text) or not is_glob(text):
        read, _ = _reader(text, options)
        item = Item(safe_name(os.path.basename(text), (*options.endings, *_CONTAINERS)), place.shown, file=place)
        with place.open():  # raises if it is missing
            return _Part(place, lambda: iter([item]), read, _kinds(options))
    folder, parts = split_glob(text.replace(os.sep, "/"))
    read, endings = _reader(text, options)
    base = Place.of(folder or ".")  # now, because the current folder can change
    return _Part(place, lambda: _files(base, folder, Pattern(parts), endings), read, _kinds(options))


def _remote(text: str, options: _Options) -> _Part:
    place = Place.of(text)
    on_web = text.startswith(("http://", "https://"))  # where a question mark is not a glob's
    with reading(place):
        system, path = place.file_system()
        name = path.partition("?")[0] if on_web else path
        ends_as_file = name.lower().endswith((*_CONTAINERS, *options.endings))
        if is_glob(path) and not on_web and not system.exists(path):
            folder, parts = split_glob(path)
            read, endings = _reader(path, options)
            return _Part(place, lambda: _remote_files(place, folder, parts, endings), read, _kinds(options))
        if ends_as_file or (not path.endswith("/") and system.isfile(path)):
            read, _ = _reader(name, options)
            system.info(path)  # raises if it is missing
            item = Item(safe_name(posixpath.basename(name), (*options.endings, *_CONTAINERS)), place.shown, file=place)
            return _Part(place, lambda: iter([item]), read, _kinds(options))
    parts = ["**", "*"] if options.recursive else ["*"]
    return _Part(place, lambda: _remote_files(place, path, parts, options.endings), None, _kinds(options))


def _remote_files(place: Place, folder: str, parts: list[str], endings: tuple[str, ...]) -> Iterator[Item]:
    """Yield the files below a folder of a URL's file system as items."""
    with reading(place), _passed_over(place) as pass_over:
        system, _ = place.file_system()
        for path in remote_files(system, folder, parts):
            if not _counts(path, endings):
                pass_over(path)
            else:
                whole = f"{folder.rstrip('/')}/{path}"
                file = Place(without_secrets(system.unstrip_protocol(whole)), place.locator, whole)
                yield Item(safe_name(path, endings), file.shown, file=file)


def _files(place: Place, folder: str, pattern: Pattern, endings: tuple[str, ...]) -> Iterator[Item]:
    """Yield the files of a folder as items. `folder` is its path as it was given, perhaps ""."""
    with reading(place), _passed_over(place) as pass_over:
        for path, error in files_below(place.locator, pattern):
            shown = printable(os.path.join(folder, path))
            if error is not None:
                why = InstError(f"{shown} cannot be read ({error.strerror})", "change its permissions or the link")
                yield Item(safe_name(path), shown, problem=why)
            elif not _counts(path, endings):
                pass_over(path)
            else:
                file = Place(shown, os.path.join(place.locator, path))
                yield Item(safe_name(path, endings), shown, file=file)


@contextmanager
def _passed_over(place: Place) -> Iterator[Callable[[str], None]]:
    """Yield a function that takes files that do not count, and warn at the end of those that cannot be read."""
    count, first = 0, ""

    def pass_over(path: str) -> None:
        nonlocal count, first
        if path.lower().endswith(UNREADABLE_PICTURES):
            count, first = count + 1, first or printable(path)

    yield pass_over
    if count:
        more = f" and {count - 1} more" if count > 1 else ""
        problem = f"{first}{more} in {place.shown} cannot be read and is passed over"
        warnings.warn(InstWarning(problem, "export it as PNG or JPEG"), stacklevel=2)


def _counts(path: str, endings: tuple[str, ...]) -> bool:
    return path.lower().endswith(endings) and not path.lower().endswith(_STATE)


def _reader(text: str, options: _Options) -> tuple[Callable[[Item], Iterator[Item]] | None, tuple[str, ...]]:
    """Return how the files are read that a text names, and the endings of these files."""
    name = text.lower()
    if name.endswith(_LISTS):
        return lambda file: items_of_list(file, options.endings), _LISTS
    if name.endswith(_SHARDS):
        return lambda file: items_of_shard(file, options.endings), _SHARDS
    if name.endswith(_TABLES):
        return lambda file: items_of_parquet(file, options.column, options.endings), _TABLES
    if name.endswith(options.endings) or is_glob(os.path.basename(text)) or not os.path.splitext(text)[1]:
        return None, options.endings
    raise UsageError(
        f"{printable(text)} is no source of pictures",
        "give a folder, a glob, a picture, a list of files (.txt), shards (.tar) or a Parquet file",
    )


def file_item(text: str, endings: Sequence[str] = STYLE_ENDINGS) -> Item:
    """Return the item of one path or URL, such as one of a pair. It is not opened: a missing file raises when read."""
    place = Place.of(text)
    name = place.shown if is_url(text) else local_path(text)
    return Item(safe_name(os.path.basename(name.rstrip("/")), endings), place.shown, file=place)


def _kinds(options: _Options) -> str:
    what = "style" if ".safetensors" in options.endings else "picture"
    return f"{what} ({', '.join(options.endings)})"
