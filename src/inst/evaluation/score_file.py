"""Store the scores of an evaluation in a file while they are computed, so that an interrupted evaluation continues.

The file has a line for each batch: its key, a checksum, and the scores as JSON. The key is a hash of all that the
scores depend on. So a line is used only for the same pictures and settings, and lines of other ones do no harm. A line
that was cut off by a kill or a full disk, or that was damaged later, is ignored.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inst.evaluation.results import KINDS, Kind
from inst.files.reading import check_regular, translate_reading
from inst.files.writing import cannot_write

SCORES = "unfinished-scores.jsonl"
"""The file of scores in the folder of the reports. It is deleted when the reports are complete."""

_DIGITS = 64
"""Length of a key: a sha256 in hexadecimal."""
_LONGEST_LINE = 2**28
"""Largest line in bytes: far above the scores and features of the largest batch."""


@dataclass(frozen=True, eq=False)
class RowScores:
    """The scores of some pairs of a batch in one row of the table.

    Attributes:
        kind: the kind of the row.
        method: the method that made the pictures; None for unchanged photos and paintings.
        places: places of the n pairs in their batch.
        scores: [n, K] float64; NaN means no score.
        features: [n, D] or, if one picture stands for all, [1, D] float32, for FID; None if the row has no FID.
    """

    kind: Kind
    method: str | None
    places: list[int]
    scores: Tensor
    features: Tensor | None


@dataclass(frozen=True, eq=False)
class BatchScores:
    """The scores of pairs that share one painting.

    Attributes:
        rows: the scores by row.
        painting: [D] float32 Inception features of the painting; None without FID.
        remarks: what is reported about the pictures, by kind of remark.
    """

    rows: list[RowScores] = field(default_factory=list)
    painting: Tensor | None = None
    remarks: Mapping[str, list[str]] = field(default_factory=dict)


class ScoreFile:
    """A file of scores, to which scores are added, and from which the scores that were in it before are read.

    It need not exist: the first scores create it.

    Raises:
        InstError: it cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._places: dict[bytes, int] = {}
        self._files = contextlib.ExitStack()
        self._added: io.FileIO | None = None
        self._complete = True
        if path.exists():
            check_regular(path)
            with self._files as files, translate_reading(path):
                self._stored = files.enter_context(path.open("rb"))
                place = 0
                while line := self._stored.readline(_LONGEST_LINE):
                    self._complete = line.endswith(b"\n")
                    if self._complete:
                        self._places[line[:_DIGITS]] = place
                    place = self._stored.tell()
                self._files = files.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._files.close()

    def read(self, key: str, count: int, columns: int, methods: Sequence[str]) -> BatchScores | None:
        """Return the scores with this key: of `count` pairs, in `columns` columns; None if there are none."""
        place = self._places.get(key.encode())
        if place is None:
            return None
        with translate_reading(self.path):
            self._stored.seek(place + _DIGITS + 1)
            checksum, _, content = self._stored.readline(_LONGEST_LINE).rstrip(b"\n").partition(b" ")
        if hashlib.sha256(content).hexdigest().encode() != checksum:
            return None
        try:
            return _decode(json.loads(content), count, columns, methods)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None

    def add(self, key: str, batch: BatchScores) -> None:
        """Add the scores of a batch. Raises InstError if they cannot be written."""
        content = json.dumps(_encode(batch)).encode()
        checksum = hashlib.sha256(content).hexdigest().encode()
        line = b"" if self._complete else b"\n"  # after one that was cut off
        rest = memoryview(line + b" ".join([key.encode(), checksum, content]) + b"\n")
        try:
            if self._added is None:
                self._added = self._files.enter_context(io.FileIO(self.path, "ab"))
            while rest:  # without a buffer, so that nothing is lost if the process is killed
                rest = rest[self._added.write(rest) or 0 :]
        except OSError as error:
            raise cannot_write(self.path, error) from None
        self._complete = True


def _encode(batch: BatchScores) -> dict[str, Any]:
    return {
        "rows": [[row.kind, row.method, row.places, _text(row.scores), _text(row.features)] for row in batch.rows],
        "painting": _text(batch.painting),
        "remarks": dict(batch.remarks),
    }


def _decode(content: Any, count: int, columns: int, methods: Sequence[str]) -> BatchScores:
    """Convert JSON to scores. Raises ValueError, TypeError, KeyError or AttributeError for another content."""
    painting = None if content["painting"] is None else _array(content["painting"], np.float32)
    rows = []
    for kind, method, places, scores, features in content["rows"]:
        made = kind in ("method", "wrong")
        if kind not in KINDS or (method not in methods if made else method is not None):
            raise ValueError(kind)
        if len({*places} & {*range(count)}) != len(places):
            raise ValueError(places)
        values, found = _array(scores, np.float64).reshape(len(places), columns), None
        if features is not None and painting is not None:
            found = torch.from_numpy(_array(features, np.float32).reshape(-1, len(painting)))
            if len(found) not in (1, len(places)):
                raise ValueError(kind)
        rows.append(RowScores(kind, method, places, torch.from_numpy(values), found))
    remarks = {str(kind): [str(line) for line in lines] for kind, lines in content["remarks"].items()}
    return BatchScores(rows, None if painting is None else torch.from_numpy(painting), remarks)


def _text(values: Tensor | None) -> str | None:
    return None if values is None else base64.b64encode(values.contiguous().numpy().tobytes()).decode()


def _array(text: str, kind: type[np.generic]) -> NDArray[Any]:
    return np.frombuffer(base64.b64decode(text, validate=True), dtype=kind).copy()
