"""`Replayed`: compute steps of learning by a CUDA graph."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence

import torch
from torch import Tensor

from inst.backbone.devices import allow_nondeterminism, deterministic
from inst.backbone.graphs import Graphs, signature
from inst.backbone.model import Backbone


class Replayed(ABC):
    """Steps of learning with a backbone, by a CUDA graph if that is possible, with deterministic kernels.

    Args:
        backbone: the frozen model.
        graphs: holds the graph of a step; None computes each step eagerly.
    """

    def __init__(self, backbone: Backbone, graphs: Graphs | None) -> None:
        self.backbone, self.graphs = backbone, graphs
        self._places = self._find_places()
        self._rehearsed: Hashable = None

    @abstractmethod
    def _compute_step(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Take a step with inputs on the device, and return one tensor. It must not wait for the device."""

    @abstractmethod
    def changing(self) -> Mapping[Hashable, Tensor]:
        """Return the tensors that a step changes, by any keys. Those that the first step makes start as zeros."""

    @torch.inference_mode(False)
    @torch.enable_grad()
    def run_step(self, inputs: Sequence[Tensor]) -> Tensor:
        """Take a step, and return the tensor of `_compute_step`, without waiting for it."""
        device = self.backbone.device
        try:
            with deterministic(device):
                result = self._replay(inputs)
        except RuntimeError as error:
            if not allow_nondeterminism(device, error):
                raise
            with deterministic(device):
                result = self._replay(inputs)
        self._places = self._find_places()  # while an accelerator computes
        return result

    def _replay(self, inputs: Sequence[Tensor]) -> Tensor:
        if self.graphs is None or self._places is None:
            return self._compute_step(inputs)[0]
        self._rehearse(self.graphs, self._places, inputs)
        return self.graphs(self._places, self._compute_step, inputs)[0]

    def _find_places(self) -> Hashable:
        """Return what a graph of a step depends on; None if there can be no graph."""
        if self.graphs is None:
            return None
        places = tuple(signature(network) for network in (self.backbone.unet, *self.backbone.text_encoders))
        return None if None in places else places

    def _rehearse(self, graphs: Graphs, key: Hashable, inputs: Sequence[Tensor]) -> None:
        """Prepare the graph. Then every step is a replay, and a resumed run gives what the first one would give."""
        if self._rehearsed == key:
            return
        self._rehearsed = key
        # Recording runs on a stream of its own, which makes PyTorch warn that this might be slow.
        if (warn := getattr(torch.autograd.graph, "set_warn_on_accumulate_grad_stream_mismatch", None)) is not None:
            warn(False)
        before = {name: value.detach().clone() for name, value in self.changing().items()}
        graphs.rehearse(key, self._compute_step, inputs)
        with torch.no_grad():
            for name, value in self.changing().items():
                value.copy_(before[name]) if name in before else value.zero_()
