"""What a batch does: an order is divided into chunks, and a worker does one chunk after the other.

The chunks of an order are always the same, whatever was done before and however many workers there are. A chunk that is
not complete is computed again as a whole. So a run that was interrupted ends with the files of an undisturbed one.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from inst.batch.items import Item
from inst.batch.places import Place, is_url, local_path
from inst.errors import Wording, python_wording
from inst.files.listing import readable_name
from inst.texts import cut

if TYPE_CHECKING:
    from inst.backbone.model import Backbone

CHUNK = 32
"""Largest number of inputs in a chunk."""

_CHUNK_BYTES = 64_000_000
"""A chunk ends when the inputs that travel with it (from shards and Parquet files) are larger than this."""

_RESULT = re.compile(r"-[0-9a-f]{10}\.[a-z]+")
"""The end of a name that `output_name` has made."""

LONGEST_TEXT = 4_000
"""Longest text of a row in characters: a prompt of a model has some hundreds. Longer ones are cut in their middle."""

_EXACT = 53
"""Number of bits of a seed: every reader of JSON and Parquet takes such numbers exactly."""


@dataclass(frozen=True)
class Chunk:
    """A piece of work: the inputs, and the style that all of them get.

    Attributes:
        inputs: photos, prompts or paintings.
        style: the style file or the painting; None if styles are to be learned.
    """

    inputs: tuple[Item, ...]
    style: Item | None = None


@dataclass(frozen=True)
class Row:
    """What became of an input: a row of the manifest. Its texts are valid Unicode, and long ones are cut.

    Attributes:
        input: the place of the photo or the painting; or the prompt.
        input_sha256: hash of its bytes; "" if it cannot be read.
        style: the place of the style; "" if styles are learned.
        style_sha256: hash of its bytes.
        output: the name of the output in the output folder; "" if its name is not known.
        seed: the seed of this output (`seed_of`); None if it is not known.
        seconds: the time of the device that it took, shared evenly in a batch; None if it was not made in this run.
        status: "made"; "kept" if it was there before; or "failed".
        error: why it failed, one line; "" if it did not.
    """

    input: str
    input_sha256: str = ""
    style: str = ""
    style_sha256: str = ""
    output: str = ""
    seed: int | None = None
    seconds: float | None = None
    status: Literal["made", "kept", "failed"] = "made"
    error: str = ""

    def __post_init__(self) -> None:
        for name in ("input", "style", "error"):
            object.__setattr__(self, name, cut(readable_name(getattr(self, name)), LONGEST_TEXT))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name, as plain values."""
        return asdict(self)


Saving = Callable[[], Row]
"""Writes one output, if there is one to write, and returns its row. It may run in another thread."""


class Worker(ABC):
    """Does chunks on one device. Several chunks may be loaded while others are made; they are made one at a time."""

    @abstractmethod
    def load(self, chunk: Chunk) -> Any:
        """Read and decode the inputs of a chunk, in any thread. An input that cannot be read raises nothing."""

    @abstractmethod
    def make(self, loaded: Any) -> Iterator[Saving]:
        """Compute the outputs of a loaded chunk that are missing; yield a `Saving` for each input of the chunk."""


@dataclass(frozen=True, kw_only=True)
class Order(ABC):
    """Everything that a run needs, as plain values: it is sent to worker processes.

    Attributes:
        out: the output folder, a path or a URL (`inst.batch.outputs`).
        backbone: the arguments of `inst.Backbone.load`.
        settings: the settings of each output, without seed.
        seed: the seed that the seeds of all outputs come from (`seed_of`).
        batch_size: number of outputs that are computed together; None chooses it by the device.
        wording: words the errors in the rows, wherever they are raised (`inst.errors.use_wording`).
    """

    out: str
    backbone: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    batch_size: int | None = None
    wording: Wording = python_wording

    @property
    @abstractmethod
    def command(self) -> str:
        """The name of the command."""

    @abstractmethod
    def chunks(self) -> Iterator[Chunk]:
        """Yield all chunks, always the same in the same order."""

    @abstractmethod
    def count(self) -> int | None:
        """Return the number of inputs; None if they cannot be counted without reading them."""

    @abstractmethod
    def worker(self, backbone: Backbone) -> Worker:
        """Make a worker for a device. Raises UsageError if the settings do not fit the backbone."""

    @property
    def described(self) -> dict[str, Any]:
        """What the user chose, for the manifest: command, model, settings and seed."""
        model = {"backbone" if name == "name" else name: value for name, value in self.backbone.items()}
        return {
            "command": self.command,
            **{name: value for name, value in model.items() if name not in ("device", "download", "low_memory")},
            **self.settings,
            "seed": self.seed,
        }


def without_results(inputs: Iterable[Item], out: str) -> Iterator[Item]:
    """Leave out the files in the output folder that have the name of an output.

    So the results in a folder of photos, which is read with the folders in it, do not become photos themselves.
    """
    remote = is_url(out)
    root = Place.of(out).shown.rstrip("/") + "/" if remote else os.path.join(os.path.realpath(local_path(out)), "")
    for item in inputs:
        file = item.file
        if file is not None and file.is_remote == remote:
            path = file.shown if remote else file.locator
            if _RESULT.fullmatch(path[path.rfind("-") :]) and (path if remote else os.path.realpath(path)).startswith(
                root
            ):
                continue
        yield item


def model_identity(backbone: Backbone) -> list[str | None]:
    """Return what decides which numbers a model computes: its weights, and how precisely they are used."""
    return [backbone.fingerprint, backbone.denoiser_fingerprint, str(backbone.dtype), backbone.quantize]


def outputs_identity(order: Order, backbone: Backbone) -> str:
    """Return a hash of all that decides what the outputs look like, except the inputs."""
    facts = {
        "command": order.command,
        "settings": dict(order.settings),
        "seed": order.seed,
        "model": model_identity(backbone),
        "image encoder": order.backbone.get("image_encoder"),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def seed_of(seed: int, *digests: str) -> int:
    """Return the seed of an output: a number of 53 bits that depends on the order's seed and the inputs' hashes only.

    So the noise of a picture does not depend on its place in a batch, on its name, or on what else is made.
    """
    text = "\n".join((str(seed), *digests))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> (64 - _EXACT)


def output_name(name: str, identity: str, digests: Sequence[str], ending: str) -> str:
    """Return the name of an output: that of its input with ten digits that stand for settings and inputs.

    So an output is made again if a setting or an input has changed, and two inputs of one name have two outputs.
    """
    key = hashlib.sha256("\n".join((identity, *digests)).encode()).hexdigest()[:10]
    return f"{name}-{key}{ending}"


def in_chunks(inputs: Iterable[Item], style: Item | None = None, most: int = CHUNK) -> Iterator[Chunk]:
    """Divide inputs of one style into chunks of at most `most` inputs."""
    waiting: list[Item] = []
    size = 0
    for item in inputs:
        waiting.append(item)
        size += len(item.data or b"")
        if len(waiting) == most or size > _CHUNK_BYTES:
            yield Chunk(tuple(waiting), style)
            waiting, size = [], 0
    if waiting:
        yield Chunk(tuple(waiting), style)
