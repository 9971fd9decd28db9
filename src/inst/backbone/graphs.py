"""CUDA graphs: replay all kernels of a call at once.

Python launches each kernel of a network on its own. For Stable Diffusion's UNet this takes 70 ms on a slow host, while
the GPU needs 10 ms for two latents. A graph records the kernels of a call once; a replay launches them together.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import cache
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

from inst.backbone.libraries import AttnProcessor, AttnProcessor2_0
from inst.backbone.self_attention import HandledProcessor

Function = Callable[[Sequence[Tensor]], Sequence[Tensor]]
"""A function of tensors. Whatever else it depends on belongs to the key that it is called with."""

_LARGEST = 16  # graphs; the least recently used one is dropped
_PLAIN_PROCESSORS = (AttnProcessor, AttnProcessor2_0)
_LIBRARIES = ("torch", "diffusers", "transformers", "inst")
_PATCHES = frozenset({"forward", "_compiled_call_impl", "s1", "s2", "b1", "b2"})
"""Attributes of a module that say that its call is another one: hooks of accelerate, `torch.compile`, FreeU."""


@dataclass
class _Entry:
    """A graph with its own inputs and outputs; or, before it is built, only the number of calls."""

    calls: int = 0
    replay: Callable[[], None] | None = None
    inputs: list[Tensor] = field(default_factory=list)
    outputs: Sequence[Tensor] = ()


Record = Callable[[Function, Sequence[Tensor]], tuple[Callable[[], None], Sequence[Tensor]]]
"""Records a function with its inputs, without running it. Returns what replays it, and the outputs of each replay."""


class Graphs:
    """The graphs of a device. The first call with a key runs eagerly, the second one builds the graph.

    So a graph is never built for a single call. Building takes as long as an eager call. Several threads may call.

    Args:
        record: builds a graph.

    Attributes:
        problem: why the last graph could not be built; None if all could. Its calls run eagerly.
    """

    def __init__(self, record: Record) -> None:
        self._record = record
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()
        self._lock = Lock()
        self.problem: str | None = None

    def __call__(self, key: Hashable, function: Function, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return `function(inputs)`.

        Args:
            key: identifies the function, and everything besides tensors that it depends on. Shapes and precisions of
                the inputs are added to it.
            function: a function of tensors on one CUDA device, which never waits for the device.
            inputs: its inputs.
        """
        with self._lock:
            entry = self._entry(key, inputs)
            entry.calls += 1
            if entry.calls == 2:
                self._build(entry, function, inputs)
            if entry.replay is not None:
                torch._foreach_copy_(entry.inputs, list(inputs))
                entry.replay()
                return [output.clone() for output in entry.outputs]
        return function(inputs)

    def rehearse(self, key: Hashable, function: Function, inputs: Sequence[Tensor]) -> None:
        """Make the first call without a result, so that the next one is a replay.

        A graph may hold other kernels than the eager call has: cuDNN chooses them. A function whose results must not
        depend on the number of earlier calls needs this. The caller sets back what the function has changed.
        """
        with self._lock:
            self._entry(key, inputs).calls += 1
        function(inputs)

    def _entry(self, key: Hashable, inputs: Sequence[Tensor]) -> _Entry:
        whole = key, tuple((tuple(x.shape), x.dtype) for x in inputs)
        entry = self._entries.setdefault(whole, _Entry())
        self._entries.move_to_end(whole)
        while len(self._entries) > _LARGEST:
            self._entries.popitem(last=False)
        return entry

    def _build(self, entry: _Entry, function: Function, inputs: Sequence[Tensor]) -> None:
        with torch.inference_mode(False):  # otherwise only calls in inference mode could write to them
            own = [x.clone() for x in inputs]
        try:
            entry.replay, entry.outputs = self._record(function, own)
            entry.inputs = own
        except RuntimeError as error:
            self.problem = str(error).partition("\n")[0]


def call_by_graph(
    graphs: Graphs | None, key: Hashable, model: nn.Module, function: Function, inputs: Sequence[Tensor]
) -> Sequence[Tensor]:
    """Return `function(inputs)`, by a graph unless there are no graphs, or gradients, or the model has no `signature`.

    `function` calls `model`. The other arguments are those of `Graphs`.
    """
    if graphs is None or torch.is_grad_enabled() or (places := signature(model)) is None:
        return function(inputs)
    return graphs((key, places), function, inputs)


def cuda_graphs(device: torch.device) -> Graphs:
    """Return the `Graphs` of a CUDA device. They share their memory, because they never run at the same time."""
    with torch.cuda.device(device):
        pool = torch.cuda.graph_pool_handle()

    def record(function: Function, inputs: Sequence[Tensor]) -> tuple[Callable[[], None], Sequence[Tensor]]:
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on using the device.
        with torch.cuda.device(device), torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            outputs = function(inputs)

        def replay() -> None:
            with torch.cuda.device(device):
                graph.replay()

        return replay, outputs

    return Graphs(record)


def signature(model: nn.Module) -> Hashable | None:
    """Return what a graph of this model depends on: the places of its weights. None if a graph could become wrong.

    A graph repeats the kernels of the call that it was built from. Hooks, other attention processors, adapters and
    patches of other programs may compute something else in the next call, so such models run eagerly.
    """
    places: list[int] = []
    modules = [model]
    while modules:  # this runs in every call, and is faster than `modules()` and `parameters()`
        module = modules.pop()
        own = vars(module)
        kind: Any = type(module)
        if not _is_known(kind) or module.training or own["_forward_hooks"] or own["_forward_pre_hooks"]:
            return None
        if not own.keys().isdisjoint(_PATCHES) and any(own.get(name) is not None for name in _PATCHES):
            return None
        if "processor" in own and not _is_plain(own["processor"]):
            return None
        modules += [child for child in own["_modules"].values() if child is not None]
        weights = [weight for weight in own["_parameters"].values() if weight is not None]
        places += [weight.data_ptr() if type(weight) is nn.Parameter else _place(weight) for weight in weights]
    return tuple(places)


def _place(weight: Any) -> int:
    """Return the place of a weight. A quantised one has no place of its own, but its numbers have."""
    return weight.qdata.data_ptr() if hasattr(weight, "qdata") else weight.data_ptr()


@cache
def _is_known(kind: Any) -> bool:
    return kind.__module__.partition(".")[0] in _LIBRARIES


def _is_plain(processor: object) -> bool:
    if isinstance(processor, HandledProcessor):
        processor = processor.plain
    return type(processor) in _PLAIN_PROCESSORS
