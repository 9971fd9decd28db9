"""The order of `inst batch learn`: a style of each painting."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from inst.batch.items import Item
from inst.batch.orders import Chunk, Order, in_chunks
from inst.batch.sources import Source, open_source
from inst.batch.worker import ChunkWorker, Entry, LoadedChunk
from inst.errors import InstError, UsageError
from inst.learning.data import largest_painting, painting_size
from inst.learning.together import learn_together
from inst.pictures.given import Painting, to_paintings
from inst.pictures.reading import decode_photo
from inst.runs import complete
from inst.styles.style import Style

if TYPE_CHECKING:
    from inst.backbone.model import Backbone

_TOGETHER = 16
"""Number of styles that learn together on an accelerator."""

_MOST_TOGETHER = 1_000
"""More would need hundreds of gigabytes: the paintings that learn together are all in memory."""


@dataclass(frozen=True, kw_only=True)
class LearnOrder(Order):
    """A style of each painting.

    Attributes:
        paintings: the sources of the paintings.
        recursive: whether folders are read with the folders in them.
        column: the picture column of Parquet files; None finds it.
    """

    paintings: Sequence[str]
    recursive: bool = False
    column: str | None = None

    def __post_init__(self) -> None:
        if (self.batch_size or 0) > _MOST_TOGETHER:
            raise UsageError(
                f"{self.batch_size:,} styles cannot learn together", f"give a number from 1 to {_MOST_TOGETHER:,}"
            )

    @property
    def command(self) -> str:
        """The name of the command."""
        return "learn"

    def _source(self) -> Source:
        return open_source(self.paintings, recursive=self.recursive, column=self.column)

    def chunks(self) -> Iterator[Chunk]:
        """Yield the paintings. A chunk is what learns together, so that an interruption costs little."""
        return in_chunks(self._source(), most=self.batch_size or _TOGETHER)

    def count(self) -> int | None:
        """Return the number of paintings, if it can be known."""
        return self._source().count()

    def worker(self, backbone: Backbone) -> LearnWorker:
        """Make a worker. Raises UsageError if learning does not take the settings."""
        learn_together(backbone, [torch.zeros(3, 64, 64)], **self.settings).close()
        return LearnWorker(self, backbone, ".safetensors", _TOGETHER)


class LearnWorker(ChunkWorker[Painting, Style]):
    """Learns styles."""

    def decode(self, item: Item, data: bytes) -> Painting:
        """Decode a painting, in the size that learning needs."""
        photo = decode_photo(data, item.place, flattened=True, reduce_to=largest_painting(self.backbone))
        keep = self.order.settings.get("keep_painting", True)
        return to_paintings(photo, painting_size(self.backbone), keep=keep)[0]

    def prepare(self, loaded: LoadedChunk[Painting]) -> None:
        """There is nothing that the paintings of a chunk share."""

    def compute(self, prepared: None, entries: Sequence[Entry[Painting]]) -> Sequence[Style | InstError]:
        """Learn the styles of several paintings together."""
        paintings = [entry.content for entry in entries if entry.content is not None]
        seeds = [entry.seed for entry in entries]
        names = [entry.item.name.rpartition("/")[2] for entry in entries]
        return complete(learn_together(self.backbone, paintings, names=names, seeds=seeds, **self.order.settings))

    def encode(self, result: Style, name: str) -> bytes:
        """Return the bytes of the style file."""
        return result.to_bytes()
