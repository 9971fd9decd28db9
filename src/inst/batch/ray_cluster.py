"""Use a Ray cluster: Ray Data streams the chunks to a pool of actors, each with a model on its own device."""

from __future__ import annotations

import json
import logging
import os
import pickle
import signal
import socket
import threading
import warnings
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from inst.arguments import check_at_least
from inst.batch.engine import SAVERS
from inst.batch.orders import Order, Row
from inst.batch.places import printable
from inst.errors import Argument, InstError, InstWarning, UsageError, first_line
from inst.texts import cut

if TYPE_CHECKING:
    import numpy as np

    from inst.batch.orders import Worker

_CALLS = 2
"""Number of chunks in an actor: one is computed while the inputs of the next one are decoded."""

_RAISED = "raised"
_CONNECT = 10  # seconds to reach a cluster

_NOTHING = logging.CRITICAL + 1
"""Level of Ray's messages on the screen."""

_STARTS = 8
"""Number of actors that may end before they are ready. One that is no longer needed counts, too."""

_MOST_ACTORS = 10_000
"""More than the largest clusters have GPUs. Ray keeps a record of each, also of those that wait for a place."""

_INSTALL_CLIENT = (
    'install it with pip install "ray[client]", or run this command on a machine of the cluster',
    " with ",
    Argument("address", "auto"),
)


@dataclass(frozen=True)
class RayOptions:
    """How to use Ray.

    Attributes:
        address: "auto" for the cluster that this machine belongs to, `ray://HOST:PORT`, or "local" for Ray on this
            machine alone.
        num_gpus: GPUs of each actor; a part of one lets actors share a GPU. None is 1 if the cluster has GPUs.
        num_cpus: CPU cores of each actor.
        concurrency: number of actors; None is as many as the cluster has room for.

    Raises:
        UsageError: a number is not possible.
    """

    address: str = "auto"
    num_gpus: float | None = None
    num_cpus: float = 1
    concurrency: int | None = None

    def __post_init__(self) -> None:
        if self.concurrency is not None:
            check_at_least(1, actors=self.concurrency)
            if self.concurrency > _MOST_ACTORS:
                raise UsageError(f"{self.concurrency:,} actors cannot be used", f"give {_MOST_ACTORS:,} or fewer")
        if self.num_gpus is not None and not 0 <= self.num_gpus < float("inf"):
            raise UsageError(f"{self.num_gpus} GPUs for an actor cannot be used", "give 0 (none), 1 or a part of 1")
        if not 0 < self.num_cpus < float("inf"):
            raise UsageError(f"{self.num_cpus} cores for an actor cannot be used", "give a positive number")


def ray_rows(order: Order, options: RayOptions) -> Generator[Row | None, None, None]:
    """Yield None when the cluster answers, and then the rows.

    A chunk whose actor or node dies is done again by another one.

    Raises:
        InstError: Ray is not installed, there is no cluster at the address, or an error of an actor.
    """
    if find_spec("ray") is None:
        raise InstError("Ray is not installed", 'install it with pip install "inst[ray]"')
    with _connected(options.address):
        pool = _pool(options)
        yield None
        yield from _stream(order, pool)


@contextmanager
def _connected(address: str) -> Iterator[None]:
    # Ray's own messages go to its log files: on the screen they would hide those of this package.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")  # Ray prints some of them on the standard output, always
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster of this run sends nothing to Ray's makers
    import ray

    if ray.is_initialized():  # a program that uses Ray already
        yield
        return
    _check_port(address)
    place: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    try:
        with _nothing_printed():
            ray.init(address=address, **place, logging_level=_NOTHING, log_to_driver=False)
    except ImportError as error:
        raise InstError(f"{address} needs more of Ray ({first_line(error)})", *_INSTALL_CLIENT) from None
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        raise _no_cluster(address, first_line(error)) from None
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)  # Ray would end this process at once
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _nothing_printed() -> Iterator[None]:
    """Discard what is written to the standard error, where Ray's own library says that it is silent."""
    try:
        kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    except OSError:  # it is closed
        yield
        return
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _check_port(address: str) -> None:
    """Raise InstError if nothing listens at HOST:PORT: Ray would try it again for many minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal() or "/" in host:
        return
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT):
            pass
    except (OSError, OverflowError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise _no_cluster(address, reason or first_line(error)) from None


def _no_cluster(address: str, reason: str) -> InstError:
    return InstError(
        f"No Ray cluster answers at {address} ({reason})", "start one, or give another ", Argument("address")
    )


def _pool(options: RayOptions) -> dict[str, Any]:
    """Return the arguments of `map_batches` for the actors."""
    import ray

    cluster = ray.cluster_resources()
    gpus = options.num_gpus
    if gpus is None:
        gpus = 1 if cluster.get("GPU", 0) >= 1 else 0
    room = cluster.get("GPU", 0) / gpus if gpus else cluster.get("CPU", 1) / options.num_cpus
    if gpus and room < 1:
        problem = f"The cluster has {cluster.get('GPU', 0):g} GPUs, and each actor needs {gpus:g}"
        if options.concurrency is None:
            raise InstError(problem, "give fewer ", Argument("num_gpus"))
        # A cluster that grows when it is asked to has none at first.
        warnings.warn(InstWarning(f"{problem}: the work begins when it has them"), stacklevel=2)
    if not gpus and room < 1 and options.concurrency is None:  # Ray would wait for ever
        raise InstError(
            f"The cluster has {cluster.get('CPU', 0):g} cores, and each actor needs {options.num_cpus:g}",
            "give fewer ",
            Argument("num_cpus"),
        )
    actors = options.concurrency or min(max(1, int(room)), _MOST_ACTORS)
    return {
        "compute": ray.data.ActorPoolStrategy(
            # The work begins with those that have a place. Ray would not make a pool larger whose actors have as many
            # calls as they may have.
            size=actors,
            max_tasks_in_flight_per_actor=_CALLS,
            max_concurrent_calls_per_actor=_CALLS,
            enable_true_multi_threading=True,  # the actor itself lets only one use the device
        ),
        "num_gpus": gpus,
        "num_cpus": options.num_cpus,
    }


def _stream(order: Order, pool: Mapping[str, Any]) -> Iterator[Row]:
    import ray
    from ray.exceptions import RayError

    context = ray.data.DataContext.get_current()
    names = "enable_progress_bars", "target_max_block_size", "max_consecutive_actor_init_deaths"
    before = {name: getattr(context, name) for name in names if hasattr(context, name)}
    context.enable_progress_bars = False
    context.max_consecutive_actor_init_deaths = _STARTS
    # Every chunk is a block of its own, so that the actors begin with the first one, and only a few wait in memory.
    context.target_max_block_size = 1
    logging.getLogger("ray.data").setLevel(_NOTHING)
    warnings.filterwarnings("ignore", module=r"ray\.")  # such as that there are fewer inputs than actors
    here = os.getcwd()
    try:
        # Neither takes a core: the actors may have taken all of them, and wait for what is listed.
        listed = ray.data.from_items([0]).map_batches(partial(_list_chunks, order, here), batch_size=None, num_cpus=0)
        rows = listed.map_batches(_Actor, fn_constructor_args=(order, here), batch_size=1, **pool)
        for batch in rows.iter_batches(batch_size=None, prefetch_batches=0):
            for text in batch["row"]:
                content = json.loads(text)
                if _RAISED in content:
                    raise pickle.loads(bytes.fromhex(content[_RAISED]))
                yield Row(**content)
    except RayError as error:
        reason = str(error).strip().splitlines()[-1]  # the lines before it are a traceback
        raise InstError(
            f"Ray could not do its work ({cut(printable(reason), 300)})", "look into its logs; what is done stays"
        ) from None
    finally:
        for name, value in before.items():
            setattr(context, name, value)


def _list_chunks(order: Order, folder: str, batch: Any) -> Iterator[dict[str, np.ndarray[Any, Any]]]:
    """Yield every chunk of the order, in the one task that lists them."""
    import numpy as np

    _enter(folder)
    try:
        for chunk in order.chunks():
            yield {"chunk": np.array([pickle.dumps(chunk)], dtype=object)}
    except InstError as error:
        yield {"chunk": np.array([pickle.dumps(error)], dtype=object)}


def _enter(folder: str) -> None:
    """Make the paths of the order, which are relative to the user's folder, right on a machine that shares it."""
    with suppress(OSError):
        os.chdir(folder)


class _Actor:
    """A worker on a device of the cluster. A chunk that comes meanwhile is loaded while another one is made."""

    def __init__(self, order: Order, folder: str) -> None:
        _enter(folder)
        self.order, self.device, self.savers = order, threading.Lock(), ThreadPoolExecutor(SAVERS, "save")
        self._worker: Worker | None = None

    @property
    def worker(self) -> Worker:
        """The worker; it is made in the first call, because Ray hides what goes wrong in a constructor."""
        with self.device:
            if self._worker is None:
                from inst.backbone.model import Backbone

                self._worker = self.order.worker(Backbone.load(**self.order.backbone))
            return self._worker

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
        """Return the rows of the chunks of a batch as JSON; or the error, of which Ray would keep the text only."""
        import numpy as np

        try:
            contents = [row.to_dict() for data in batch["chunk"] for row in self._do(data)]
        except InstError as error:
            contents = [{_RAISED: pickle.dumps(error).hex()}]
        return {"row": np.array([json.dumps(content) for content in contents], dtype=object)}

    def _do(self, data: bytes) -> list[Row]:
        chunk = pickle.loads(data)
        if isinstance(chunk, InstError):
            raise chunk
        worker = self.worker
        loaded = worker.load(chunk)
        with self.device:
            saving = [self.savers.submit(save) for save in worker.make(loaded)]
        return [saved.result() for saved in saving]
