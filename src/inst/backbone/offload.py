"""Offload parts of a model to the CPU: less memory on the accelerator, but slower."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from accelerate.utils.memory import clear_device_cache
from torch import nn

_CPU = torch.device("cpu")


class Offload(ModelHook):  # type: ignore[misc]  # accelerate has no annotations
    """Keep the parts of a model on the CPU; each part is on the device only while it runs.

    A part moves to the device when it is called, and back to the CPU when another part is called. diffusers' pipelines
    do the same (`enable_model_cpu_offload`), but with a fixed order of the parts. Parts that are called with gradients
    stay on the device together, because the backward pass needs them. The backward pass must come before the next call
    without gradients.

    Args:
        parts: frozen modules.
        device: the device on which they run.
    """

    def __init__(self, parts: Iterable[nn.Module], device: torch.device) -> None:
        super().__init__()
        self.device = device
        self.on_device: list[nn.Module] = []
        self.in_graph: list[nn.Module] = []
        for part in parts:
            part.to(_CPU)
            add_hook_to_module(part, self)

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Move `module` to the device; accelerate calls this before each call of the module."""
        if not torch.is_grad_enabled():
            self.in_graph = []
        elif module not in self.in_graph:
            self.in_graph.append(module)
        with torch.inference_mode(False), torch.no_grad():  # gradients cannot flow through inference tensors
            for other in [part for part in self.on_device if part is not module]:
                self.move_to_cpu(other)
            if module not in self.on_device:
                module.to(self.device)
                self.on_device.append(module)
        return args, kwargs

    @torch.inference_mode(False)
    @torch.no_grad()
    def move_to_cpu(self, module: nn.Module) -> None:
        """Move `module` to the CPU until its next call, unless the backward pass still needs it."""
        if module in self.on_device and module not in self.in_graph:
            module.to(_CPU)
            self.on_device.remove(module)
            clear_device_cache()


def offload_part(module: nn.Module | None) -> None:
    """Move a part to the CPU until its next call. A part without the hook `Offload` stays where it is."""
    hook = getattr(module, "_hf_hook", None)  # accelerate stores a module's hook here
    if module is not None and isinstance(hook, Offload):
        hook.move_to_cpu(module)
