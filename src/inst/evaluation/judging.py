"""A few pictures at a time: reading them, and what the networks and the metrics say of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from inst import demo
from inst.errors import InstError
from inst.evaluation.metrics.table import Metrics, text_column
from inst.pictures.io import fit_size, open_picture, to_tensor

Size = tuple[int, int]
"""Width and height in pixels."""

_PROPORTIONS = 0.04
"""Results are often cut to multiples of 8 pixels; what is farther off than this was squashed or cropped."""
_LONGEST = 32
"""Long side by short side. One strip of pixels enlarged to the short side of the others would fill the memory."""
_PROMPTS_KEPT = 4096
_SAME = 0.1
"""The demo's pictures differ by 0.15 and more, a painting from its copy as a small JPEG file by 0.005."""


class Reader:
    """Reads pictures at the size that they are judged at; what cannot be read is named once, and is None.

    Args:
        short_side: pixels that the short side of photos and paintings is brought to.
        threads: pictures that are decoded at the same time.
    """

    def __init__(self, short_side: int, threads: int = 4) -> None:
        self.short_side = short_side
        self.problems: list[str] = []
        self.squashed: list[str] = []
        self._pool = ThreadPoolExecutor(threads)
        self._broken: set[Path] = set()

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def read(self, path: Path, size: Size | None = None) -> Image.Image | None:
        """An RGB image: its short side brought to `short_side`, or resized to `size` whatever its proportions."""
        if path in self._broken:
            return None
        try:
            image = open_picture(path)
            if size is None and max(image.size) > _LONGEST * min(image.size):
                raise InstError(f"{path} is {image.width} x {image.height} pixels: too long and narrow to be judged.")
        except InstError as error:
            self._broken.add(path)
            self.problems.append(str(error))
            return None
        target = size or fit_size(*image.size, self.short_side)
        if abs(image.width * target[1] / (image.height * target[0]) - 1) > _PROPORTIONS:
            self.squashed.append(f"{path.parent.name}/{path.name}")
        return image if image.size == target else image.resize(target, Image.Resampling.BICUBIC)

    def read_all(self, wanted: Iterable[tuple[Path, Size | None]]) -> list[Image.Image | None]:
        """`read` of several, in their order."""
        return list(self._pool.map(lambda one: self.read(*one), wanted))


def cover(image: Image.Image, size: Size) -> Image.Image:
    """The image enlarged or reduced to cover `size`, and its middle cut out: nothing is squashed."""
    scale = max(size[0] / image.width, size[1] / image.height)
    whole = max(size[0], round(image.width * scale)), max(size[1], round(image.height * scale))
    left, top = (whole[0] - size[0]) // 2, (whole[1] - size[1]) // 2
    return image.resize(whole, Image.Resampling.BICUBIC).crop((left, top, left + size[0], top + size[1]))


def demo_stranger(painting: Image.Image) -> Path:
    """The first of the demo's paintings that is not this one, whatever its file is called and however it is stored."""
    return next(one for one in demo.PAINTINGS if _difference(open_picture(one), painting) > _SAME)


def _difference(one: Image.Image, other: Image.Image) -> float:
    """Mean absolute difference of two pictures reduced to 16 x 16 pixels, from 0 to 1."""
    small = (np.asarray(each.resize((16, 16), Image.Resampling.BOX), dtype=np.float64) for each in (one, other))
    return float(np.abs(next(small) - next(small)).mean()) / 255


@dataclass(frozen=True, eq=False)
class Described:
    """What the networks made of a batch of pictures.

    Attributes:
        features: by the network's identity.
        inception: [B, 2048], or None where FID is not wanted.
    """

    features: Mapping[int, Any]
    inception: Tensor | None


@dataclass(eq=False)
class Judge:
    """The networks, run once on each batch, and the metrics that share what they say."""

    metrics: Metrics
    device: torch.device
    problems: list[str] = field(default_factory=list)
    _prompts: dict[str, Tensor | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._networks: dict[int, Callable[[Tensor], Any]] = {
            id(metric.network): metric.network for metric in self.metrics.pairs
        }
        self._keys = [column.key for column in self.metrics.columns if column.against != "set"]

    @torch.no_grad()
    def describe(self, images: Sequence[Image.Image]) -> Described:
        """Run every network over images of one size."""
        pictures = torch.stack([to_tensor(image) for image in images]).to(self.device)
        features = {key: network(pictures) for key, network in self._networks.items()}
        inception = None if self.metrics.inception is None else self.metrics.inception(pictures).cpu()
        return Described(features, inception)

    @torch.no_grad()
    def compare(
        self,
        count: int,
        pictures: Described,
        painting: Described,
        photos: Described | None,
        prompts: Sequence[str | None] | None,
    ) -> Tensor:
        """The figures of a batch, [count, columns without those of sets] in float64; NaN where there is nothing to say.

        Args:
            count: pictures in the batch; `pictures` may describe one that stands for all.
            pictures: what is judged.
            painting: one.
            photos: `count` photos, or None to leave out what compares with them.
            prompts: `count` prompts, or None to leave them out.
        """
        figures = torch.full((count, len(self._keys)), torch.nan, dtype=torch.float64)
        for place, metric in enumerate(self.metrics.pairs):
            other = photos if metric.column.against == "photo" else painting
            if other is not None:
                key = id(metric.network)
                figures[:, place] = metric.compare(pictures.features[key], other.features[key]).double().cpu()
        encoder = self.metrics.encoder
        if prompts is not None and encoder is not None and encoder.texts is not None:
            place = self._keys.index(text_column(encoder).key)
            seen = pictures.features[id(encoder.pictures)].expand(count, -1)
            for row, prompt in enumerate(prompts):
                text = None if prompt is None else self._embed(prompt)
                if text is not None:
                    figures[row, place] = float(seen[row] @ text)
        return figures

    def _embed(self, prompt: str) -> Tensor | None:
        from inst.evaluation.metrics.clip import without_placeholder

        if prompt not in self._prompts:
            assert self.metrics.encoder is not None
            assert self.metrics.encoder.texts is not None
            if len(self._prompts) >= _PROMPTS_KEPT:
                self._prompts.clear()
            try:
                self._prompts[prompt] = self.metrics.encoder.texts([without_placeholder(prompt)])[0]
            except InstError as error:
                self._prompts[prompt] = None
                self.problems.append(str(error))
        return self._prompts[prompt]
