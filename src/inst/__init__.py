"""InST: inversion-based style transfer with diffusion models (Zhang et al., CVPR 2023, arXiv 2211.13203).

The public names are imported on first use, so that `import inst` does not pay for importing PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from inst.errors import InstError, InstWarning, UsageError

if TYPE_CHECKING:
    from inst.backbone import Backbone
    from inst.control import Control, load_controlnet
    from inst.images import read_photo
    from inst.learning import instant_style, learn
    from inst.sampling import complete
    from inst.style import Style
    from inst.styling import generate, transfer

__version__ = "0.1.0"

__all__ = [
    "Backbone",
    "Control",
    "InstError",
    "InstWarning",
    "Style",
    "UsageError",
    "__version__",
    "complete",
    "generate",
    "instant_style",
    "learn",
    "load_controlnet",
    "read_photo",
    "transfer",
]

_LAZY = {
    "Backbone": "inst.backbone",
    "Control": "inst.control",
    "Style": "inst.style",
    "complete": "inst.sampling",
    "generate": "inst.styling",
    "instant_style": "inst.learning",
    "learn": "inst.learning",
    "load_controlnet": "inst.control",
    "read_photo": "inst.images",
    "transfer": "inst.styling",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
