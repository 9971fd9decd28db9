"""Run a batch: choose where the work is done, keep the manifest, and count."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from inst.arguments import check_at_least
from inst.batch.engine import do_chunks
from inst.batch.manifest import Manifest
from inst.batch.orders import Order, Row
from inst.batch.outputs import Outputs
from inst.batch.processes import process_rows
from inst.batch.ray_cluster import RayOptions, ray_rows
from inst.errors import Argument, InstError, UsageError

if TYPE_CHECKING:
    from inst.backbone.model import Backbone


@dataclass(frozen=True)
class Totals:
    """What a run has done so far.

    Attributes:
        made, kept, failed: numbers of outputs.
        seconds: time since the first output was begun.
        manifest: the path of the manifest; "" before the end.
    """

    made: int = 0
    kept: int = 0
    failed: int = 0
    seconds: float = 0.0
    manifest: str = ""

    @property
    def done(self) -> int:
        """Number of inputs that are through."""
        return self.made + self.kept + self.failed

    @property
    def rate(self) -> float:
        """Outputs made in a second."""
        return self.made / self.seconds if self.seconds else 0.0

    def after(self, row: Row, seconds: float) -> Totals:
        """Return the totals with one row more."""
        return replace(self, seconds=seconds, **{row.status: getattr(self, row.status) + 1})


class TooManyFailures(InstError):
    """More inputs failed than are allowed. What is done stays, and the same order goes on."""


@dataclass(frozen=True)
class Progress:
    """A step of a run.

    Attributes:
        totals: what is done so far.
        row: the latest row; None at the start, when everything is checked.
        changed: the settings that differ from those of the latest run in the folder, by name: (before, now).
    """

    totals: Totals
    row: Row | None
    changed: dict[str, tuple[object, object]]


def run_batch(
    order: Order,
    *,
    backbone: Backbone | None = None,
    devices: Sequence[str] = (),
    ray: RayOptions | None = None,
    max_failures: int | None = None,
) -> Generator[Progress, None, Totals]:
    """Do an order, or what is missing of it.

    Args:
        order: what to do.
        backbone: the model, if the work is done in this process; None loads it when it is needed.
        devices: several devices of this machine, with a process for each; empty works in this process.
        ray: how to use Ray; None works without it.
        max_failures: stop when more inputs than this have failed; None goes on.

    Yields:
        `Progress`: first one without a row, then one for each input.

    Returns:
        The totals, with the path of the manifest.

    Raises:
        UsageError: the settings do not fit the model, or the folder holds other outputs.
        InstError: a source is empty or cannot be read, or the folder cannot be written. What is done stays, and the
            same order goes on from there.
        TooManyFailures: more inputs failed than `max_failures`.
    """
    if max_failures is not None:
        check_at_least(0, failures=max_failures)
    if order.batch_size is not None:
        check_at_least(1, outputs_together=order.batch_size)
    if order.seed < 0:
        raise UsageError(f"The seed {order.seed} cannot be used", "give 0 or more")
    if next(order.chunks(), None) is None:  # before a model is loaded; sources that are empty raise
        raise UsageError(
            f"All inputs are results of earlier runs in {Outputs(order.out).shown}",
            "give another folder for these results",
        )
    outputs = Outputs(order.out)
    rows = _rows(order, backbone, devices, ray)
    with closing(rows):
        next(rows)
        manifest = Manifest(outputs, order.described)
        try:
            begin, totals = time.perf_counter(), Totals()
            yield Progress(totals, None, manifest.changed)
            for row in rows:
                assert row is not None  # only the first one is
                manifest.add(row)
                totals = totals.after(row, time.perf_counter() - begin)
                yield Progress(totals, row, manifest.changed)
                if max_failures is not None and totals.failed > max_failures:
                    raise TooManyFailures(
                        f"{totals.failed} inputs failed, the last one with: {row.error}",
                        "mend them, or allow more with ",
                        Argument("max_failures"),
                        "; what is done stays, and the same command goes on",
                    )
            return replace(totals, manifest=manifest.finish())
        finally:
            manifest.close()


def _rows(
    order: Order, backbone: Backbone | None, devices: Sequence[str], ray: RayOptions | None
) -> Generator[Row | None, None, None]:
    """Yield None when everything is checked, and then the rows."""
    if ray is not None:
        yield from ray_rows(order, ray)
    elif len(devices) > 1:
        yield from process_rows(order, devices)
    else:
        yield from _own_rows(order, backbone, devices)


def _own_rows(order: Order, backbone: Backbone | None, devices: Sequence[str]) -> Iterator[Row | None]:
    from inst.backbone.model import Backbone

    if backbone is None:
        backbone = Backbone.load(**{**order.backbone, **({"device": devices[0]} if devices else {})})
    worker = order.worker(backbone)
    yield None
    yield from (row for _, row in do_chunks(worker, enumerate(order.chunks())))
