"""What the workers of all orders share: read the inputs of a chunk, find what is missing, and save what is made."""

from __future__ import annotations

import hashlib
import os
import time
from abc import abstractmethod
from collections.abc import Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

import torch

from inst.batch.items import Item
from inst.batch.orders import Chunk, Order, Row, Saving, Worker, output_name, outputs_identity, seed_of
from inst.batch.outputs import Outputs
from inst.errors import InstError, first_line, use_wording
from inst.texts import one_line

if TYPE_CHECKING:
    from inst.backbone.model import Backbone

_READERS = min(4, os.cpu_count() or 1)  # threads; each may hold a large picture

Content = TypeVar("Content")
"""A decoded input."""
Result = TypeVar("Result")
"""What is made from an input."""


@dataclass
class Entry(Generic[Content]):
    """An input of a chunk on its way.

    Attributes:
        row: its row; the status is "made" as long as nothing else is known.
        item: the input.
        content: the decoded input; None if it is not needed.
    """

    row: Row
    item: Item
    content: Content | None = None

    @property
    def seed(self) -> int:
        """Its seed."""
        assert self.row.seed is not None  # only that of a file that cannot be read is not known
        return self.row.seed

    def fail(self, error: str) -> None:
        """Note why this output cannot be made."""
        self.row = replace(self.row, status="failed", error=error)


@dataclass
class LoadedChunk(Generic[Content]):
    """A chunk whose inputs are read.

    Attributes:
        chunk: the chunk.
        style: the bytes of its style, b"" without one; or why it cannot be read.
        entries: its inputs.
    """

    chunk: Chunk
    style: bytes | InstError
    entries: list[Entry[Content]]


class ChunkWorker(Worker, Generic[Content, Result]):
    """Makes outputs in batches on one device.

    Args:
        order: the order.
        backbone: the model of this device.
        ending: ending of the outputs.
        together: number of inputs that are made together on an accelerator, if the order does not say. On a CPU it is
            1: a batch is not faster there, and each output is equal to that of a command of its own.
    """

    def __init__(self, order: Order, backbone: Backbone, ending: str, together: int) -> None:
        self.order, self.backbone, self.ending = order, backbone, ending
        self.outputs = Outputs(order.out)
        self.identity = outputs_identity(order, backbone)
        self.together = order.batch_size or (1 if backbone.device.type == "cpu" else together)
        self._readers = ThreadPoolExecutor(_READERS, "read")
        self._style: tuple[Item | None, bytes | InstError] = (None, b"")

    @abstractmethod
    def decode(self, item: Item, data: bytes) -> Content:
        """Decode an input, in any thread. Raises InstError if it cannot be used."""

    @abstractmethod
    def prepare(self, loaded: LoadedChunk[Content]) -> Any:
        """Return what all inputs of a chunk need, such as its style. Raises InstError if it cannot be used."""

    def kind(self, content: Content) -> Hashable:
        """Return a value that is equal for inputs that can be made together, such as the size of a photo."""
        return None

    @abstractmethod
    def compute(self, prepared: Any, entries: Sequence[Entry[Content]]) -> Sequence[Result | InstError]:
        """Make the outputs of several inputs together. An error stands for an output that cannot be made."""

    @abstractmethod
    def encode(self, result: Result, name: str) -> bytes:
        """Return the bytes of an output, in any thread. Raises InstError if that is not possible."""

    def load(self, chunk: Chunk) -> LoadedChunk[Content]:
        """Read the inputs of a chunk, find what is made already, and decode what is needed."""
        style = b"" if chunk.style is None else self._read_style(chunk.style)
        digest = hashlib.sha256(style).hexdigest() if isinstance(style, bytes) and style else ""
        entries = list(self._readers.map(partial(self._load_one, chunk.style, digest), chunk.inputs))
        if self.together > 1 and any(entry.row.status == "made" for entry in entries):
            # Those of an incomplete batch are all made again: rounding may depend on the number of inputs in a batch.
            list(self._readers.map(self._decode_kept, (entry for entry in entries if entry.row.status == "kept")))
        return LoadedChunk(chunk, style, entries)

    def _load_one(self, style: Item | None, style_digest: str, item: Item) -> Entry[Content]:
        """Read an input, and decode it if it is needed. Its file can be much larger than its content: it is let go."""
        data = _try_read(item)
        entry = self._enter(style, style_digest, item, data)
        if entry.row.status == "made":
            self._decode(entry, data)
        return entry

    def _decode_kept(self, entry: Entry[Content]) -> None:
        data = _try_read(entry.item)
        if isinstance(data, bytes):  # otherwise it has just been removed, and its output is there all the same
            self._decode(entry, data)

    def _read_style(self, item: Item) -> bytes | InstError:
        latest = self._style  # of the latest chunk; another thread may read another style meanwhile
        if latest[0] != item:
            latest = self._style = item, _try_read(item)
        return latest[1]

    def _enter(self, style: Item | None, style_digest: str, item: Item, data: bytes | InstError) -> Entry[Content]:
        row = Row(input=item.place)
        if style is not None:
            row = replace(row, style=style.place, style_sha256=style_digest)
        if isinstance(data, InstError):
            return Entry(replace(row, status="failed", error=self._told(data)), item)
        own = hashlib.sha256(data).hexdigest()
        if style is not None and not style_digest:  # `make` says why
            return Entry(replace(row, input_sha256=own), item)
        digests = (own,) if style is None else (own, style_digest)
        name = item.name if style is None else str(PurePosixPath(style.name, item.name))
        name = output_name(name, self.identity, digests, self.ending)
        status: Literal["kept", "made"] = "kept" if self.outputs.has(name) else "made"
        seed = seed_of(self.order.seed, *digests)
        return Entry(replace(row, input_sha256=own, output=name, seed=seed, status=status), item)

    def _decode(self, entry: Entry[Content], data: bytes | InstError) -> None:
        assert isinstance(data, bytes)  # otherwise the row would say that it has failed
        try:
            entry.content = self.decode(entry.item, data)
        except Exception as error:  # whatever is wrong with an input, the rest goes on
            entry.fail(self._told(error))

    def _told(self, error: Exception) -> str:
        """Return an error as one line, in the wording of whoever gave the order."""
        with use_wording(self.order.wording):
            return one_line(
                str(error) if isinstance(error, InstError) else f"{type(error).__name__}: {first_line(error)}"
            )

    def make(self, loaded: LoadedChunk[Content]) -> Iterator[Saving]:
        """Compute the batches that are not complete."""
        missing = [entry for entry in loaded.entries if entry.row.status == "made"]
        if missing:
            prepared, problem = None, None
            try:
                prepared = self.prepare(loaded)
            except InstError as error:
                problem = error
            if problem is None:
                for batch in self._batches(loaded.entries):
                    yield from self._make_batch(prepared, batch)
            else:
                for entry in missing:
                    entry.fail(self._told(problem))
        for entry in loaded.entries:
            if entry.row.status != "made":
                yield partial(_unchanged, entry.row)

    def _batches(self, entries: Sequence[Entry[Content]]) -> Iterator[list[Entry[Content]]]:
        """Yield batches of inputs of one kind, always the same ones for the same inputs."""
        groups: dict[Hashable, list[Entry[Content]]] = {}
        for entry in entries:
            if entry.content is None:
                continue
            group = groups.setdefault(self.kind(entry.content), [])
            group.append(entry)
            if len(group) == self.together:
                yield list(group)
                group.clear()
        yield from (group for group in groups.values() if group)

    def _make_batch(self, prepared: Any, batch: list[Entry[Content]]) -> Iterator[Saving]:
        if all(entry.row.status == "kept" for entry in batch):
            return
        begin = time.perf_counter()
        results = self._compute(prepared, batch)
        seconds = round((time.perf_counter() - begin) / len(batch), 4)
        for entry, result in zip(batch, results, strict=True):
            if entry.row.status != "made":
                continue
            if isinstance(result, Exception):
                entry.fail(self._told(result))
            else:
                yield partial(self._save, replace(entry.row, seconds=seconds), result)

    def _compute(self, prepared: Any, batch: list[Entry[Content]]) -> Sequence[Result | Exception]:
        """Make a batch. If that fails, each input is tried alone, so that one cannot spoil the others."""
        try:
            return self.compute(prepared, batch)
        except torch.AcceleratorError as error:  # a device that has failed makes nothing more until it is opened again
            raise InstError(
                f"The device {self.backbone.device} has failed ({first_line(error)})",
                "what is done stays, and the same command goes on",
            ) from error
        except Exception as error:  # whatever is wrong with an input, the rest goes on
            if len(batch) == 1:
                return [error]
        return [result for entry in batch for result in self._compute(prepared, [entry])]

    def _save(self, row: Row, result: Result) -> Row:
        try:
            data = self.encode(result, row.output)
        except InstError as error:
            return replace(row, status="failed", seconds=None, error=self._told(error))
        self.outputs.write(row.output, data)
        return row


def _unchanged(row: Row) -> Row:
    return row


def _try_read(item: Item) -> bytes | InstError:
    try:
        return item.read()
    except InstError as error:
        return error
