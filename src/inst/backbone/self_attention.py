"""The self-attention layers of a UNet, and what a caller does in them during one call.

Several threads and pipelines may share a UNet. A handler works in the calls of its own thread only.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol, Self, runtime_checkable

from torch import Tensor, nn

from inst.backbone.libraries import Attention

BLOCKS: Mapping[str, Callable[[str, int], bool]] = {
    "up": lambda name, levels: "up_blocks." in name,
    "fine": lambda name, levels: any(f"up_blocks.{level}." in name for level in (levels - 2, levels - 1)),
    "all": lambda name, levels: True,
}
"""Which self-attention layers look at the painting: those of the upward blocks, of the two finest upward levels (as in
StyleID), or all. Each value says whether a layer belongs to it, by the name of the layer and the number of levels."""


class Finished(Exception):
    """A handler raises this if it needs no more of the call: the rest of the UNet does not run."""


class Handler(Protocol):
    """What happens in a self-attention layer, in the calls that it is `handled` in."""

    def __call__(self, name: str, layer: Attention, hidden: Tensor, plain: Callable[[], Tensor]) -> Tensor:
        """Return the output of a layer, [B, N, C].

        Args:
            name: the name of the layer in the UNet.
            layer: the layer.
            hidden: its input, [B, N, C].
            plain: computes its output without the handler.
        """


@runtime_checkable
class TensorHandler(Handler, Protocol):
    """A handler that a CUDA graph can hold, because it says which tensors it reads and makes (`inst.backbone.graphs`).

    Attributes:
        key: everything else that it depends on. Handlers with the same key do the same with their tensors.
        inputs: the tensors that it reads.
    """

    key: Any
    inputs: Sequence[Tensor]

    def with_inputs(self, inputs: Sequence[Tensor]) -> Self:
        """Return a new handler that reads these tensors in place of its own."""

    def outputs(self) -> list[Tensor]:
        """Return the tensors that it has made in the call."""

    def take(self, outputs: Sequence[Tensor]) -> None:
        """Have these outputs, as if it had made them itself."""


def project(layer: Attention, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return Q, K and V of a self-attention layer, each [B, heads, N, d], for its input [B, N, C]."""
    query, key, value = (
        linear(hidden).unflatten(-1, (layer.heads, -1)).transpose(1, 2)
        for linear in (layer.to_q, layer.to_k, layer.to_v)
    )
    query = query if layer.norm_q is None else layer.norm_q(query)
    return query, key if layer.norm_k is None else layer.norm_k(key), value


def output(layer: Attention, attended: Tensor, hidden: Tensor) -> Tensor:
    """Return the output [B, N, C] of a self-attention layer from what it attended to, [B, heads, N, d]."""
    project_out, dropout = layer.to_out
    out: Tensor = dropout(project_out(attended.transpose(1, 2).flatten(2).to(hidden.dtype)))
    if layer.residual_connection:
        out = out + hidden
    return out / layer.rescale_output_factor


_HANDLER: ContextVar[tuple[Collection[Attention], Handler] | None] = ContextVar("handler", default=None)
"""The layers and the handler of the call that runs in this thread or task."""

_LOCK = threading.Lock()


class HandledProcessor:
    """A processor of diffusers that asks the handler of the running call. Without one, it does what `plain` does.

    Several threads and pipelines may share a UNet. A call without style attention gets exactly what it would get
    without this processor, also while another call has style attention.
    """

    def __init__(self, name: str, plain: Any) -> None:
        self.name, self.plain = name, plain
        self.users = 0
        # diffusers passes a processor those arguments that the signature of its `__call__` names. A call without style
        # attention must keep its own. Calls themselves go to the method of the class.
        self.__call__ = plain.__call__  # type: ignore[method-assign]

    def __call__(
        self,
        layer: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        def plain() -> Tensor:
            out: Tensor = self.plain(layer, hidden_states, encoder_hidden_states, *args, **kwargs)
            return out

        layers, handler = _HANDLER.get() or ((), None)
        if handler is None or encoder_hidden_states is not None or layer not in layers:
            return plain()
        return handler(self.name, layer, hidden_states, plain)


def running_handler() -> tuple[Collection[Attention], Handler] | None:
    """Return the layers and the handler of the block that this thread or task is in; None outside of `handled`."""
    return _HANDLER.get()


@contextmanager
def replaced(handler: Handler) -> Iterator[None]:
    """Let another handler take the place of the running one inside the block, for the same layers."""
    running = _HANDLER.get()
    assert running is not None
    token = _HANDLER.set((running[0], handler))
    try:
        yield
    finally:
        _HANDLER.reset(token)


@contextmanager
def handled(layers: Mapping[str, Attention], handler: Handler) -> Iterator[None]:
    """Let `handler` compute self-attention layers, in the calls of this thread and inside of the block only.

    Args:
        layers: from `self_attention_layers`. Their processors are replaced, and put back at the end of the block.
        handler: computes them.
    """
    with _LOCK:
        for name, layer in layers.items():
            if not isinstance(layer.processor, HandledProcessor):
                layer.set_processor(HandledProcessor(name, layer.processor))
            layer.processor.users += 1
        processors = [layer.processor for layer in layers.values()]
    token = _HANDLER.set((set(layers.values()), handler))
    try:
        yield
    finally:
        _HANDLER.reset(token)
        with _LOCK:
            for layer, processor in zip(layers.values(), processors, strict=True):
                processor.users -= 1
                if processor.users == 0 and layer.processor is processor:
                    layer.set_processor(processor.plain)


def self_attention_layers(unet: nn.Module, blocks: str) -> dict[str, Attention]:
    """Return the self-attention layers of these blocks (a name in `BLOCKS`), by name."""
    levels = len(unet.config["block_out_channels"])  # type: ignore[index]
    belongs = BLOCKS[blocks]
    return {
        name: module
        for name, module in unet.named_modules()
        if isinstance(module, Attention) and name.endswith(".attn1") and belongs(name, levels)
    }
