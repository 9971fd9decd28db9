"""Read the embedding that A1111 hides in the pixels of its pictures, because programs often drop the text chunk.

On the left and on the right of the picture is a block of pixels. A black column separates each block from the picture.
The lower four bits of the colours hold a compressed text, row by row: the left block holds the lower halves of its
bytes, the right block the upper halves. A fixed noise pattern is added (XOR). The upper four bits are decoration.
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
"""Decompression stops at this number of bytes. The text of the largest embeddings has about 10 million."""


def hidden_text(image: Image.Image) -> bytes | None:
    """Return the text in the pixels of a picture; None if there is no text or it is damaged."""
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
    """Return the noise pattern, [count] in [0, 16).

    A linear congruential generator makes the numbers; each is taken modulo 255, and its lower four bits are used.
    """

    def numbers() -> Iterator[int]:
        state = 0
        while True:
            state = (1664525 * state + 1013904223) % 2**32
            yield state % 255 & 0x0F

    return np.fromiter(islice(numbers(), count), np.uint8, count)
