"""The interface of a method of a comparison."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from inst.backbone.model import Backbone
from inst.pictures.reading import Photo

OnStep = Callable[[int, int], object]
"""Called with (steps done, steps in total) while a method prepares, or makes a picture that takes many steps."""


@dataclass(frozen=True, eq=False)
class RepaintResult:
    """A result, [3, H, W] in [-1, 1], and the texts to store in its PNG file."""

    picture: Tensor
    texts: Mapping[str, str] = field(default_factory=dict)


Repaint = Callable[[Photo], RepaintResult]
PICTURES = "pictures"
"""Key in a method's settings: size and time of the pictures of another system, by name; pictures may be added later."""


class Method(Protocol):
    """A way to repaint photos.

    Attributes:
        name: name of the method and of its folder of results.
        settings: everything besides the pictures that the results depend on, as plain JSON values.
    """

    @property
    def name(self) -> str: ...

    @property
    def settings(self) -> Mapping[str, Any]: ...

    def start(self, painting: Photo, folder: Path, on_step: OnStep) -> Repaint:
        """Prepare once for a painting, and return the function that repaints photos in its style.

        Args:
            painting: without transparency, on white. Photos are so, too, and large ones are reduced
                (`inst.pictures.reading.reading_size`).
            folder: an existing folder for files that a later call can use again, such as learned styles.
            on_step: called with the progress of the preparation, and later of each picture that takes minutes.
        """
        ...


def backbone_mark(backbone: Backbone) -> str:
    """Return what identifies a backbone in settings: the fingerprints of its text space and of its denoiser."""
    return f"{backbone.fingerprint} {backbone.denoiser_fingerprint}"
