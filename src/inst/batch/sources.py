"""The pictures of a batch, as a stream: a folder, a glob, a list file, WebDataset shards or Parquet files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from inst.arguments import check_path
from inst.batch.folders import Pattern, files_below, is_glob, split_glob
from inst.batch.items import Item, safe_name
from inst.batch.lists import items_of_list
from inst.batch.places import Place, printable, reading
from inst.errors import InstError, UsageError
from inst.files.listing import PICTURE_ENDINGS

STYLE_ENDINGS = (".safetensors", *PICTURE_ENDINGS)
"""Endings of what can be used as a style: a style file or a painting."""

_STATE = ".state.safetensors"
"""The ending of interrupted learnings, which are no styles."""

_LISTS = (".txt", ".lst")
_SHARDS = (".tar", ".tar.gz", ".tgz")
_TABLES = (".parquet",)


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
            except UsageError:
                raise
            except InstError as error:
                yield Item(file.name, file.place, problem=error)
                count += 1
        if not count:
            raise self.empty()

    def empty(self) -> InstError:
        return InstError(f"{self.place.shown} contains no {self.what}", "give another source")

    def check(self) -> None:
        """Raise the error of a source that is empty, or cannot be read from its start."""
        first = next(iter(self.files()), None)
        if first is None:
            raise self.empty()
        if self.read is not None and first.problem is None:
            next(self.read(first), None)
        next(self.items())


def _open(text: str | Path, options: _Options) -> _Part:
    check_path("A source of pictures", text)
    text = os.fspath(text)
    place = Place.of(text)
    part = _local(text, place, options)
    part.check()
    return part


def _local(text: str, place: Place, options: _Options) -> _Part:
    if os.path.isdir(text):
        parts = ["**", "*"] if options.recursive else ["*"]
        return _Part(place, lambda: _files(place, text, Pattern(parts), options.endings), None, _kinds(options))
    if os.path.lexists(text) or not is_glob(text):
        read, _ = _reader(text, options)
        item = Item(safe_name(os.path.basename(text), options.endings), place.shown, file=place)
        with place.open():  # raises if it is missing
            return _Part(place, lambda: iter([item]), read, _kinds(options))
    folder, parts = split_glob(text.replace(os.sep, "/"))
    read, endings = _reader(text, options)
    return _Part(place, lambda: _files(Place.of(folder or "."), folder, Pattern(parts), endings), read, _kinds(options))


def _files(place: Place, folder: str, pattern: Pattern, endings: tuple[str, ...]) -> Iterator[Item]:
    """Yield the files of a folder as items. `folder` is its path as it was given, perhaps ""."""
    with reading(place):
        for path, error in files_below(place.locator, pattern):
            shown = printable(os.path.join(folder, path))
            if error is not None:
                why = InstError(f"{shown} cannot be read ({error.strerror})", "change its permissions")
                yield Item(safe_name(path), shown, problem=why)
            elif path.lower().endswith(endings) and not path.lower().endswith(_STATE):
                file = Place(shown, os.path.join(place.locator, path))
                yield Item(safe_name(path, endings), shown, file=file)


def _reader(text: str, options: _Options) -> tuple[Callable[[Item], Iterator[Item]] | None, tuple[str, ...]]:
    """Return how the files are read that a text names, and the endings of these files."""
    name = text.lower()
    if name.endswith(_LISTS):
        return lambda file: items_of_list(file, options.endings), _LISTS
    if name.endswith(options.endings) or is_glob(os.path.basename(text)) or not os.path.splitext(text)[1]:
        return None, options.endings
    raise UsageError(
        f"{printable(text)} is no source of pictures",
        "give a folder, a glob, a picture, a list of files (.txt), shards (.tar) or a Parquet file",
    )


def _kinds(options: _Options) -> str:
    what = "style" if ".safetensors" in options.endings else "picture"
    return f"{what} ({', '.join(options.endings)})"
