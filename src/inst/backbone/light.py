"""Import classes of diffusers and transformers without the modules that they import but that InST does not run.

For one UNet and one CLIP model, the two libraries import PyTorch's compiler, its distributed tensors, SciPy, peft and
every other denoiser. That takes longer than to paint a small picture. `import_lightly` puts stand-ins in the place of
these modules while the classes are imported, and takes them away again. A name that a library took from a stand-in
turns into the real one on first use. So everything works as without this module, and whoever imports one of these
modules later, before or after InST, gets the real one.
"""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import wraps
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

_DEFERRED = (
    "diffusers.hooks",  # with it, peft
    "diffusers.quantizers",  # with it, torchao, which writes warnings
    "transformers.quantizers",
    "peft",
    "scipy",
    "torch._dynamo",  # PyTorch's compiler
    "transformers.generation.continuous_batching",
    "transformers.integrations.flex_attention",
    # With these, torch.distributed.tensor and sympy:
    "transformers.distributed.checkpoint",
    "transformers.distributed.expert_parallel",
    "transformers.distributed.fsdp",
    "transformers.distributed.parallel_utils",
    "transformers.distributed.sharding_utils",
    "transformers.distributed.tensor_parallel",
)
"""Modules, with all that is in them, whose names the libraries only use in functions that InST does not call."""

_WITHOUT_INIT = (
    "diffusers.models.autoencoders",
    "diffusers.models.controlnets",
    "diffusers.models.transformers",
    "diffusers.models.unets",
    "transformers.models",
)
"""Packages whose `__init__` imports every model of diffusers, while the classes here need one or two."""

_MARKS = {("torch._dynamo", "allow_in_graph"), ("torch._dynamo", "assume_constant_result")}
"""Decorators that mark an object for a module and return it. The mark is set when the module is imported."""


class _Name(type):
    """The type of a class that stands for a function or class of a module that is not imported yet."""

    _module: str

    def _real(cls) -> Any:
        return getattr(_import_real(cls._module), cls.__name__)

    def _real_if_imported(cls) -> Any:
        module = sys.modules.get(cls._module)
        return None if module is None or isinstance(module, _StandIn) else getattr(module, cls.__name__)

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if (cls._module, cls.__name__) in _MARKS and cls._real_if_imported() is None:
            _FINDER.marked.append((cls, args[0]))
            return args[0]
        return cls._real()(*args, **kwargs)

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):  # what Python and `inspect` ask of every object
            raise AttributeError(name)
        return getattr(cls._real(), name)

    def __getitem__(cls, key: Any) -> Any:
        return cls._real()[key]

    def __contains__(cls, key: Any) -> bool:
        return key in cls._real()

    def __iter__(cls) -> Iterator[Any]:
        return iter(cls._real())

    # No object is an instance of a class that is not imported yet.
    def __instancecheck__(cls, instance: object) -> bool:
        real = cls._real_if_imported()
        return real is not None and isinstance(instance, real)

    def __subclasscheck__(cls, subclass: type) -> bool:
        real = cls._real_if_imported()
        return real is not None and issubclass(subclass, real)


class _StandIn(ModuleType):
    """Stands for a module while the classes are imported."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if not _FINDER.active:
            return getattr(_import_real(self.__name__), name)
        full = f"{self.__name__}.{name}"
        if "__path__" in self.__dict__ and find_spec(full) is not None:
            return importlib.import_module(full)
        if not _within(self.__name__, _DEFERRED):
            return getattr(_import_real(self.__name__), name)
        return type.__new__(_Name, name, (), {"_module": self.__name__, "__module__": self.__name__})


class _Finder(MetaPathFinder, Loader):
    """Finds the stand-ins while it is active; sets marks when a real module is imported."""

    def __init__(self) -> None:
        self.active = False
        self.thread = 0
        self.marked: list[tuple[_Name, Any]] = []

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        stands_in = self.active and threading.get_ident() == self.thread
        stands_in = stands_in and (_within(fullname, _DEFERRED) or fullname in _WITHOUT_INIT)
        waits = any(name._module == fullname for name, _ in self.marked)
        if not stands_in and not waits:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, (finder.find_spec(fullname, path, target) for finder in others)), None)
        if spec is None or not stands_in:
            if spec is not None and spec.loader is not None:
                spec.loader = _MarkingLoader(spec.loader, self)
            return spec
        own = ModuleSpec(fullname, self, origin=spec.origin, is_package=spec.submodule_search_locations is not None)
        own.submodule_search_locations = spec.submodule_search_locations
        return own

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


class _MarkingLoader(Loader):
    """Imports a module as its own loader does, and then sets the marks that wait for it."""

    def __init__(self, loader: Any, finder: _Finder) -> None:
        self.loader, self.finder = loader, finder

    def __getattr__(self, name: str) -> Any:  # what else a loader may have, such as `get_source`
        return getattr(self.loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self.loader
        self.loader.exec_module(module)
        waiting = [(name, marked) for name, marked in self.finder.marked if name._module == module.__name__]
        self.finder.marked = [pair for pair in self.finder.marked if pair not in waiting]
        for name, marked in waiting:
            getattr(module, name.__name__)(marked)


_FINDER = _Finder()


def import_lightly(*modules: str) -> None:
    """Import modules of diffusers and transformers with stand-ins for what they do not need.

    A module that cannot be imported so is left for a plain import: another version of a library may use at once what
    the stand-ins put off.
    """
    sys.meta_path.insert(0, _FINDER)
    _FINDER.active, _FINDER.thread = True, threading.get_ident()
    try:
        with suppress(Exception):
            for module in modules:
                importlib.import_module(module)
    finally:
        _take_away()
        if not _FINDER.marked:
            sys.meta_path.remove(_FINDER)


def _import_real(module: str) -> ModuleType:
    """Import a module itself, and from now on no stand-ins: a module may need other ones that have a stand-in."""
    if _FINDER.active:
        _take_away()
    return importlib.import_module(module)


def _take_away() -> None:
    _FINDER.active = False
    for name, module in sys.modules.copy().items():  # at once: other threads import too
        if isinstance(module, _StandIn):
            del sys.modules[name]
            package, _, last = name.rpartition(".")
            parent = sys.modules.get(package)
            if parent is not None and vars(parent).get(last) is module:
                delattr(parent, last)


def _within(name: str, packages: Sequence[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def leave_peft_out() -> None:
    """Let diffusers' models look for LoRA layers in themselves only if peft is imported.

    With peft installed, every call of a UNet imports peft, and with it half of transformers, to set the scale of such
    layers. They are classes of peft, so before its import there are none.
    """
    module: Any = importlib.import_module("diffusers.utils.peft_utils")
    for name in ("scale_lora_layers", "unscale_lora_layers"):
        if (plain := getattr(module, name, None)) is not None and not hasattr(plain, "__wrapped__"):
            setattr(module, name, _if_imported("peft", plain))


def _if_imported(module: str, function: Callable[..., None]) -> Callable[..., None]:
    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> None:
        if module in sys.modules:
            function(*args, **kwargs)

    return call
