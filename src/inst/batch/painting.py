"""The orders of `inst batch transfer` and `inst batch generate`."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch

from inst.batch.items import Item
from inst.batch.orders import Chunk, Order, in_chunks, without_results
from inst.batch.pairs import read_pairs
from inst.batch.prompts import read_prompts_file
from inst.batch.sources import STYLE_ENDINGS, Source, file_item, open_source
from inst.batch.worker import ChunkWorker, Content, Entry, LoadedChunk
from inst.errors import InstError, InstWarning, UsageError
from inst.files.pickles import is_safetensors
from inst.learning.data import largest_painting
from inst.learning.instant import instant_style
from inst.pictures.reading import Photo, decode_photo, reading_size
from inst.pictures.resizing import resize_mask
from inst.pictures.writing import FORMATS
from inst.runs import complete
from inst.styles.style import Style
from inst.synthesis.from_photo import transfer
from inst.synthesis.from_prompt import generate
from inst.synthesis.painter import PaintedPicture, fit_photo, paint_batch
from inst.synthesis.series import Series

if TYPE_CHECKING:
    from inst.backbone.model import Backbone

_TOGETHER = 8
"""Number of pictures in a batch on an accelerator. More are hardly faster (docs/performance.md)."""

_START = 64  # bytes, enough to tell a style file from a picture
_WINDOW = 4096
"""Number of listed pairs that are sorted by style at once. More would need more memory."""


@dataclass(frozen=True, kw_only=True)
class PictureOrder(Order):
    """Pictures in the styles of style files and paintings.

    Attributes:
        styles: the sources of the styles (`inst.batch.sources`). Each style file and each painting is a style.
        recursive: whether folders are read with the folders in them.
        ending: the format of the pictures: ".png", ".jpg" or ".webp". Only PNG files keep their record.
    """

    styles: Sequence[str] = ()
    recursive: bool = False
    ending: str = ".png"

    def __post_init__(self) -> None:
        if self.ending.lower() not in FORMATS:
            known = ", ".join(ending.removeprefix(".") for ending in FORMATS)
            raise UsageError(f'The format "{self.ending.removeprefix(".")}" cannot be used', f"use one of {known}")

    def _styles(self) -> Source:
        return open_source(self.styles, recursive=self.recursive, endings=STYLE_ENDINGS)

    def _read_styles(self) -> Iterator[Item]:
        return without_results(self._styles(), self.out)


@dataclass(frozen=True, kw_only=True)
class TransferOrder(PictureOrder):
    """Photos in styles: each photo in each style, or listed pairs.

    Attributes:
        photos: the sources of the photos.
        column: the picture column of Parquet files; None finds it.
        pairs: a CSV or Parquet file with the columns photo and style, instead of `photos` and `styles`.
    """

    photos: Sequence[str] = ()
    column: str | None = None
    pairs: str | None = None

    @property
    def command(self) -> str:
        """The name of the command."""
        return "transfer"

    def _photos(self) -> Source:
        return open_source(self.photos, recursive=self.recursive, column=self.column)

    def _read_photos(self) -> Iterator[Item]:
        return without_results(self._photos(), self.out)

    def chunks(self) -> Iterator[Chunk]:
        """Yield the photos of one style after the other. Listed pairs are sorted by style within `_WINDOW` of them."""
        if self.pairs is None:
            for style in self._read_styles():
                yield from in_chunks(self._read_photos(), style)
            return
        rows = read_pairs(self.pairs)
        while window := list(islice(rows, _WINDOW)):
            groups: dict[str, list[str]] = {}
            yield from in_chunks(row for row in window if isinstance(row, Item))  # which cannot be used
            for photo, style_text in (row for row in window if not isinstance(row, Item)):
                groups.setdefault(style_text, []).append(photo)
            for style_text, photos in groups.items():
                yield from in_chunks(map(file_item, photos), file_item(style_text))

    def count(self) -> int | None:
        """Return the number of pairs, if it can be known."""
        if self.pairs is not None:
            return sum(1 for _ in read_pairs(self.pairs))
        if not self._photos().is_countable or not self._styles().is_countable:
            return None
        return sum(1 for _ in self._read_photos()) * sum(1 for _ in self._read_styles())

    def worker(self, backbone: Backbone) -> TransferWorker:
        """Make a worker. Raises UsageError if `transfer` does not take the settings."""
        settings = {name: value for name, value in self.settings.items() if name != "flatten"}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", InstWarning)  # the style is none
            transfer(backbone, torch.zeros(3, 64, 64), _no_style(backbone), **settings).close()
        return TransferWorker(self, backbone, self.ending, _TOGETHER)


class PictureWorker(ChunkWorker[Content, PaintedPicture]):
    """Makes pictures in the style of a chunk."""

    _kept: tuple[Item | None, bytes | InstError, Style | InstError | None] = (None, b"", None)

    def prepare(self, loaded: LoadedChunk[Content]) -> Style:
        """Read the style, or make the instant style of the painting. That of the latest chunk is kept."""
        item = loaded.chunk.style
        assert item is not None
        if self._kept[:2] != (item, loaded.style):
            try:
                self._kept = item, loaded.style, self._read_chunk_style(item, loaded.style)
            except InstError as error:
                self._kept = item, loaded.style, error
        style = self._kept[2]
        if isinstance(style, InstError):
            raise copy(style)
        assert style is not None
        return style

    def _read_chunk_style(self, item: Item, data: bytes | InstError) -> Style:
        if isinstance(data, InstError):
            raise data
        if is_safetensors(data[:_START]) or item.place.lower().endswith(".safetensors"):  # or says what it is
            style = Style.from_bytes(data, item.place)
            try:
                style.check(self.backbone)  # here, where it is known which file it is; the painter warns
            except InstError as error:
                raise error.with_prefix(f"{item.place}: ") from None
            return style
        photo = decode_photo(data, item.place, flattened=True, reduce_to=largest_painting(self.backbone))
        return instant_style(self.backbone, photo)

    def encode(self, result: PaintedPicture, name: str) -> bytes:
        """Return the bytes of the picture file."""
        return result.encode(name)


class TransferWorker(PictureWorker[Photo]):
    """Repaints photos."""

    @cached_property
    def _series(self) -> Series:
        return Series()  # all photos of a style share the keys and values of its painting

    def decode(self, item: Item, data: bytes) -> Photo:
        """Decode a photo, and bring it to the size of the result."""
        settings = self.order.settings
        reduce_to = reading_size(settings.get("size"))
        photo = decode_photo(data, item.place, flattened=settings.get("flatten", False), reduce_to=reduce_to)
        photo = fit_photo(self.backbone, photo, settings.get("size"))
        if photo.alpha is None:
            return photo
        # The opacity of a chunk of large photos would fill the memory. The result's is this one, to the last bit.
        return replace(photo, alpha=resize_mask(photo.alpha, (photo.picture.shape[1], photo.picture.shape[2])))

    def kind(self, content: Photo) -> Hashable:
        """Return the size of a photo."""
        return content.picture.shape

    def compute(self, prepared: Style, entries: Sequence[Entry[Photo]]) -> list[PaintedPicture]:
        """Repaint photos of one size."""
        settings = {name: value for name, value in self.order.settings.items() if name != "flatten"}
        photos = [entry.content for entry in entries if entry.content is not None]
        seeds = [entry.seed for entry in entries]
        painting = paint_batch(self.backbone, {"[C]": prepared}, settings, seeds, photos=photos, series=self._series)
        return complete(painting)


@dataclass(frozen=True, kw_only=True)
class GenerateOrder(PictureOrder):
    """Pictures from prompts: each prompt in each style.

    Attributes:
        prompts: a file of prompts (`inst.batch.prompts`).
    """

    prompts: str

    @property
    def command(self) -> str:
        """The name of the command."""
        return "generate"

    def chunks(self) -> Iterator[Chunk]:
        """Yield the prompts of one style after the other."""
        for style in self._read_styles():
            yield from in_chunks(self._prompt_items(), style)

    def _prompt_items(self) -> Iterator[Item]:
        for row in read_prompts_file(self.prompts):
            yield row if isinstance(row, Item) else Item(row[0], row[1], row[1].encode())

    def count(self) -> int | None:
        """Return the number of pictures, if it can be known."""
        if not self._styles().is_countable:
            return None
        return sum(1 for _ in self._read_styles()) * sum(1 for _ in read_prompts_file(self.prompts))

    def worker(self, backbone: Backbone) -> GenerateWorker:
        """Make a worker. Raises UsageError if `generate` does not take the settings."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", InstWarning)
            generate(backbone, "[C]", _no_style(backbone), **self.settings).close()
        return GenerateWorker(self, backbone, self.ending, _TOGETHER)


class GenerateWorker(PictureWorker[str]):
    """Makes pictures from prompts."""

    def decode(self, item: Item, data: bytes) -> str:
        """Return the prompt."""
        return data.decode()

    def compute(self, prepared: Style, entries: Sequence[Entry[str]]) -> list[PaintedPicture]:
        """Make the pictures of prompts."""
        prompts, seeds = [entry.content or "" for entry in entries], [entry.seed for entry in entries]
        return complete(paint_batch(self.backbone, {"[C]": prepared}, self.order.settings, seeds, prompts=prompts))


def _no_style(backbone: Backbone) -> Style:
    """Return a style of the backbone, with which the settings are checked before the first picture."""
    vectors: Any = torch.zeros(1, backbone.text_width)
    return Style(vectors, backbone.fingerprint, widths=backbone.text_widths)
