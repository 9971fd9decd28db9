"""Read the embedding that A1111 hides in the pixels of its pictures, because programs often drop the text chunk.

On the left and on the right of the picture is a block of pixels. A black column separates each block from the picture.
The lower four bits of the colours hold a compressed text, row by row: the left block holds the lower halves of its
bytes, the right block the upper halves. A fixed noise pattern is added (XOR). The upper four bits are decoration.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from numpy.typing import NDArray


LARGEST_TEXT = 24_000_000
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
    if low.shape != high.shape or not 0 < low.size <= LARGEST_TEXT:
        return None
    noise = _noise(low.size).reshape(low.shape)
    stream = ((high ^ noise) << 4 | (low ^ noise)).tobytes()
    try:
        return zlib.decompressobj().decompress(stream, LARGEST_TEXT)
    except zlib.error:
        return None


_FACTOR, _INCREMENT = 1664525, 1013904223


def _noise(count: int) -> NDArray[np.uint8]:
    """Return the noise pattern, [count] in [0, 16).

    A linear congruential generator makes the numbers; each is taken modulo 255, and its lower four bits are used.
    """

    states = np.array([_INCREMENT], np.uint32)
    # Of n numbers, and the factor and increment of n steps, come the next n numbers; unsigned integers wrap at 2^32.
    factor, increment = np.uint32(_FACTOR), np.uint32(_INCREMENT)
    with np.errstate(over="ignore"):
        while len(states) < count:
            states = np.concatenate([states, states * factor + increment])
            factor, increment = factor * factor, factor * increment + increment
    return (states[:count] % 255 & 0x0F).astype(np.uint8)
