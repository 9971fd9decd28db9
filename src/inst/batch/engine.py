"""Do chunks on one device: inputs are decoded ahead and outputs encoded behind, while the device computes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from typing import Any

from inst.batch.orders import Chunk, Row, Worker

_AHEAD = 1
"""Number of chunks that are loaded while another one is made."""

SAVERS = 4
"""Number of threads that encode and write outputs."""

_UNSAVED = 16  # outputs in memory that are still to be encoded


def do_chunks(worker: Worker, chunks: Iterable[tuple[int, Chunk]]) -> Iterator[tuple[int, Row]]:
    """Do numbered chunks, and yield a row for each input with the number of its chunk, one chunk after the other.

    At most `_AHEAD` + 1 chunks and `_UNSAVED` outputs are in memory. When the iterator is closed, outputs that are
    being written are completed.

    Raises:
        InstError: an output cannot be written. An input that cannot be used gives a row instead.
    """
    loads: deque[tuple[int, Future[Any]]] = deque()
    saves: deque[tuple[int, Future[Row]]] = deque()
    loader, savers = ThreadPoolExecutor(1, "load"), ThreadPoolExecutor(SAVERS, "save")
    no_more: list[tuple[int, Chunk] | None] = [None] * _AHEAD
    try:
        for numbered in chain(chunks, no_more):
            if numbered is not None:
                loads.append((numbered[0], loader.submit(worker.load, numbered[1])))
            if not loads or (numbered is not None and len(loads) <= _AHEAD):
                continue
            number, loaded = loads.popleft()
            for saving in worker.make(loaded.result()):
                saves.append((number, savers.submit(saving)))
                while len(saves) > _UNSAVED or (saves and saves[0][1].done()):
                    earlier, saved = saves.popleft()
                    yield earlier, saved.result()
        while saves:
            earlier, saved = saves.popleft()
            yield earlier, saved.result()
    finally:
        for pool in (loader, savers):
            pool.shutdown(cancel_futures=True)
