"""InST: inversion-based style transfer with diffusion models (Zhang et al., CVPR 2023, arXiv 2211.13203).

The public names are imported on first use, so that `import inst` does not pay for importing PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from inst.errors import InstError, UsageError

if TYPE_CHECKING:
    from inst.backbone import Backbone

__version__ = "0.1.0"

__all__ = ["Backbone", "InstError", "UsageError", "__version__"]

_LAZY = {"Backbone": "inst.backbone"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
