"""What a method of a comparison is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from inst.pictures.io import Photo

OnStep = Callable[[int, int], object]
"""Told (steps taken, steps in all) while a method prepares, or makes a picture that takes many steps."""


@dataclass(frozen=True, eq=False)
class Repainted:
    """A result, [3, H, W] in [-1, 1], and the texts that its PNG file carries."""

    picture: Tensor
    texts: Mapping[str, str] = field(default_factory=dict)


Repaint = Callable[[Photo], Repainted]
PICTURES = "pictures"
"""Among a method's settings, marks of the pictures that it takes from elsewhere, by name: there may come more."""


class Method(Protocol):
    """A way to repaint photos.

    Attributes:
        name: what its folder of results is called.
        settings: all that its results depend on besides the pictures, as plain JSON values.
    """

    @property
    def name(self) -> str: ...

    @property
    def settings(self) -> Mapping[str, Any]: ...

    def start(self, painting: Photo, folder: Path, on_step: OnStep) -> Repaint:
        """Do what is to be done once for a painting.

        Args:
            painting: laid over white.
            folder: exists; for files worth keeping for a later call, such as learned styles.
            on_step: is told how far the preparation is, and later, where a picture takes minutes, how far that one is.
        """
        ...
