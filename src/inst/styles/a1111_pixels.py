"""The copy of an embedding that A1111 hides in the pixels of its pictures, beside the text chunk that gets lost.

Left and right of the picture, behind a black column each, stands a block of pixels. Their colours' lower four bits hold
the lower (left) and upper (right) halves of the bytes of a compressed text, row by row, under a fixed pattern of noise;
the upper four bits are decoration.
"""

from __future__ import annotations

import zlib
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray


LARGEST_TEXT = 100_000_000
"""Bytes beyond which a text is not decompressed further. The largest embeddings make some 10 million."""


def hidden_text(image: Image.Image) -> bytes | None:
    """Return the text in the pixels of a picture, or None where there is none, or it is damaged."""
    pixels: NDArray[np.uint8] = np.asarray(image.convert("RGB"))
    inside = pixels.min(axis=2) > 0
    rows, columns = np.flatnonzero(np.any(inside, axis=1)), np.flatnonzero(np.any(inside, axis=0))
    if not rows.size:
        return None
    halves = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] & 0x0F
    black = np.flatnonzero(halves.max(axis=(0, 2)) == 0)
    if len(black) < 2:
        return None
    low, high = halves[:, : black[0]], halves[:, black[-1] + 1 :]
    if low.shape != high.shape or not low.size:
        return None
    noise = _noise(low.size).reshape(low.shape)
    stream = ((high ^ noise) << 4 | (low ^ noise)).tobytes()
    try:
        return zlib.decompressobj().decompress(stream, LARGEST_TEXT)
    except zlib.error:
        return None


def _noise(count: int) -> NDArray[np.uint8]:
    """The pattern, in [0, 16): a linear congruential generator's numbers, modulo 255, their lower four bits."""

    def numbers() -> Iterator[int]:
        state = 0
        while True:
            state = (1664525 * state + 1013904223) % 2**32
            yield state % 255 & 0x0F

    return np.fromiter(islice(numbers(), count), np.uint8, count)
