"""Less memory on an accelerator, for more time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from accelerate.utils.memory import clear_device_cache
from torch import nn

_AWAY = torch.device("cpu")


class Offload(ModelHook):  # type: ignore[misc]  # accelerate has no annotations
    """Keep the parts of a model on the CPU, and each on the device only while it runs.

    A part goes to the device when it is called, and leaves when another one is called. So do diffusers' pipelines
    (`enable_model_cpu_offload`), but in one fixed order of the parts. A call with gradients lets those parts stay that
    were called with gradients before, because the backward pass needs them: it has to come before the next call without
    gradients.

    Args:
        parts: frozen modules.
        device: where they run.
    """

    def __init__(self, parts: Iterable[nn.Module], device: torch.device) -> None:
        super().__init__()
        self.device = device
        self.here: list[nn.Module] = []
        self.in_graph: list[nn.Module] = []
        for part in parts:
            part.to(_AWAY)
            add_hook_to_module(part, self)

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Bring `module` to the device; called before each of its calls."""
        if not torch.is_grad_enabled():
            self.in_graph = []
        elif module not in self.in_graph:
            self.in_graph.append(module)
        with torch.inference_mode(False), torch.no_grad():  # weights of inference mode could never be learned through
            for other in [one for one in self.here if one is not module]:
                self.send_away(other)
            if module not in self.here:
                module.to(self.device)
                self.here.append(module)
        return args, kwargs

    @torch.inference_mode(False)
    @torch.no_grad()
    def send_away(self, module: nn.Module) -> None:
        """Send `module` back to the CPU, until it is called again; not while the backward pass needs it."""
        if module in self.here and module not in self.in_graph:
            module.to(_AWAY)
            self.here.remove(module)
            clear_device_cache()


def put_away(module: nn.Module | None) -> None:
    """Send a part away that is not needed for now, where `Offload` brings it again when it is; else it stays."""
    hook = getattr(module, "_hf_hook", None)  # where accelerate keeps a module's hook
    if module is not None and isinstance(hook, Offload):
        hook.send_away(module)
