"""Compute the scores of pictures by every metric, and of controls that help to read the scores."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from inst.arguments import checked
from inst.backbone.devices import choose_device
from inst.errors import UsageError
from inst.evaluation.collection import Collection
from inst.evaluation.metrics.table import Metrics
from inst.evaluation.results import Evaluation
from inst.evaluation.run import EvaluationRun
from inst.evaluation.score_file import ScoreFile
from inst.sampling.noise import as_generators

LIMITS = {"size": (32, 4096), "batch": (1, 1024), "replicates": (100, 100_000)}
"""Smallest and largest values of the arguments of `evaluate`. Larger ones cost memory or days, and give no more."""


@dataclass(frozen=True)
class Progress:
    """The progress of an evaluation.

    Attributes:
        done: number of evaluated pairs.
        total: number of all pairs.
        name: name of the last evaluated pair.
        reused: number of the evaluated pairs whose scores an interrupted evaluation had stored.
    """

    done: int
    total: int
    name: str
    reused: int


def check_settings(**settings: Any) -> None:
    """Check some of the arguments `size`, `batch`, `replicates` and `seed` of `evaluate`.

    Raises:
        UsageError: a value is no whole number, or is out of range (`LIMITS`).
    """
    for name, value in settings.items():
        if name == "seed":
            as_generators([value])
            continue
        least, most = LIMITS[name]
        if not least <= checked(name, value, "int") <= most:
            raise UsageError(f"The {name} {value} cannot be used", f"give {least} to {most}")


def evaluate(
    collection: Collection,
    metrics: Metrics,
    *,
    size: int = 256,
    batch: int = 8,
    replicates: int = 2000,
    seed: int = 0,
    device: str | torch.device = "cpu",
    scores: Path | None = None,
) -> Generator[Progress, None, Evaluation]:
    """Evaluate every picture of a collection; `inst.complete` runs it to the end.

    Photos and paintings are resized to a short side of `size` pixels, results to the size of their photo. Pictures are
    read when they are needed, and Inception features are stored on disk. Besides the networks and `batch` pictures, the
    memory holds only the scores (8 bytes each) and up to a kilobyte for each pair of photo and painting.

    Args:
        collection: from `inst.evaluation.collection.collect`.
        metrics: from `inst.evaluation.metrics.table.load_metrics`, on `device`.
        size: short side in pixels, 32 to 4096. Scores at different sizes cannot be compared.
        batch: number of pairs at a time, 1 to 1024.
        replicates: number of bootstrap draws, 100 to 100,000.
        seed: random seed of the bootstrap and of the subsets for the extrapolated FID.
        device: the device of the metrics.
        scores: a file that stores the scores of each batch. If the evaluation is interrupted, the same call continues
            from it; scores of pictures that changed, or by other settings, are computed again. The caller deletes it
            in the end. None stores nothing.

    Raises:
        UsageError: an argument is out of range, or there is no such device; raised before anything is computed.
        InstError: no picture could be evaluated; or the file of scores cannot be read or written.
    """
    check_settings(size=size, batch=batch, replicates=replicates, seed=seed)
    return _evaluate(collection, metrics, size, batch, replicates, seed, choose_device(device), scores)


def _evaluate(
    collection: Collection,
    metrics: Metrics,
    size: int,
    batch: int,
    replicates: int,
    seed: int,
    device: torch.device,
    scores: Path | None,
) -> Generator[Progress, None, Evaluation]:
    with contextlib.ExitStack() as stack:
        stored = None if scores is None else stack.enter_context(ScoreFile(scores))
        run = EvaluationRun(collection, metrics, size, device, stored)
        stack.callback(run.close)
        done = reused = 0
        for pairs in run.by_painting():
            for start in range(0, len(pairs), batch):
                part = pairs[start : start + batch]
                if run.score(part):
                    reused += len(part)
                done += len(part)
                yield Progress(done, len(collection.pairs), collection.pairs[part[-1]].name, reused)
        return run.finish(replicates, seed)
