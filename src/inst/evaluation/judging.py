"""Read pictures, run the networks on batches of them, and compute their scores."""

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
from inst.files.provenance import SourceFile
from inst.files.reading import check_regular
from inst.pictures.reading import open_picture
from inst.pictures.resizing import fit_size
from inst.pictures.tensors import to_tensor

Size = tuple[int, int]
"""Width and height in pixels."""

_PROPORTION_TOLERANCE = 0.04
"""Relative difference of the proportions. Results are often cut to multiples of 8 pixels, which stays below this."""
_MAX_PROPORTION = 32
"""Long side divided by short side. A strip of pixels enlarged to the short side of the others would fill the memory."""
_CACHED_PROMPTS = 4096
_SAME_PICTURE = 0.1
"""The demo's paintings differ by 0.15 and more; a painting and its copy as a small JPEG file differ by 0.005."""


class Reader:
    """Reads pictures at the size of the evaluation. It reports an unreadable file once and returns None for it.

    Args:
        short_side: short side of photos and paintings after resizing, in pixels.
        threads: number of pictures decoded at the same time.
    """

    def __init__(self, short_side: int, threads: int = 4) -> None:
        self.short_side = short_side
        self.problems: list[str] = []
        self.distorted: list[str] = []
        self._pool = ThreadPoolExecutor(threads)
        self._broken: set[Path] = set()

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def read(self, path: Path, size: Size | None = None) -> Image.Image | None:
        """Return an RGB image, resized to `short_side`, or to `size` even if that changes its proportions."""
        if path in self._broken:
            return None
        try:
            image = open_picture(path, reduce_to=self.short_side if size is None else min(size))
            if size is None and max(image.size) > _MAX_PROPORTION * min(image.size):
                raise InstError(
                    f"{path} is {image.width} x {image.height} pixels, too long and narrow to evaluate",
                    "crop it",
                )
        except InstError as error:
            self._broken.add(path)
            self.problems.append(str(error))
            return None
        target = size or fit_size(*image.size, self.short_side)
        if abs(image.width * target[1] / (image.height * target[0]) - 1) > _PROPORTION_TOLERANCE:
            self.distorted.append(f"{path.parent.name}/{path.name}")
        return image if image.size == target else image.resize(target, Image.Resampling.BICUBIC)

    def read_all(self, wanted: Iterable[tuple[Path, Size | None]]) -> list[Image.Image | None]:
        """Read several pictures (see `read`) and return them in the same order."""
        return list(self._pool.map(lambda arguments: self.read(*arguments), wanted))

    def hashes(self, paths: Iterable[Path]) -> list[str]:
        """Return the sha256 of each file; for one that cannot be read, a text that is the same only for such a one."""
        return list(self._pool.map(_hash, paths))


def _hash(path: Path) -> str:
    try:
        check_regular(path)
        return SourceFile.of(path).sha256
    except InstError:
        return "unreadable"


def resize_and_crop(image: Image.Image, size: Size) -> Image.Image:
    """Resize the image with its proportions kept until it covers `size`, and crop the centre to `size`."""
    scale = max(size[0] / image.width, size[1] / image.height)
    resized = max(size[0], round(image.width * scale)), max(size[1], round(image.height * scale))
    left, top = (resized[0] - size[0]) // 2, (resized[1] - size[1]) // 2
    return image.resize(resized, Image.Resampling.BICUBIC).crop((left, top, left + size[0], top + size[1]))


def other_demo_painting(painting: Image.Image) -> Path:
    """Return the first demo painting that differs from this one. It compares pixels, not file names or formats."""
    return next(path for path in demo.PAINTINGS if _difference(open_picture(path), painting) > _SAME_PICTURE)


def _difference(first: Image.Image, second: Image.Image) -> float:
    """Return the mean absolute difference of two pictures reduced to 16 x 16 pixels, from 0 to 1."""
    a, b = (np.asarray(image.resize((16, 16), Image.Resampling.BOX), dtype=np.float64) for image in (first, second))
    return float(np.abs(a - b).mean()) / 255


@dataclass(frozen=True, eq=False)
class BatchFeatures:
    """The features of a batch of pictures.

    Attributes:
        features: output of each network, by the network's `id`.
        inception: [B, 2048]; None if FID is not wanted.
    """

    features: Mapping[int, Any]
    inception: Tensor | None


@dataclass(eq=False)
class Scorer:
    """Runs each network once on each batch; the metrics share the features."""

    metrics: Metrics
    device: torch.device
    problems: list[str] = field(default_factory=list)
    _prompts: dict[str, Tensor | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._networks: dict[int, Callable[[Tensor], Any]] = {
            id(metric.network): metric.network for metric in self.metrics.pairs
        }
        self.keys = [column.key for column in self.metrics.columns if column.against != "set"]

    def mark(self) -> list[Any]:
        """Return, as JSON values, what the scores of given pictures depend on. The metrics' own weights are fixed."""
        encoder = self.metrics.encoder
        encoders = None if encoder is None else [encoder.source, encoder.mark, encoder.texts is not None]
        return [self.keys, encoders, self.metrics.inception is not None, self.device.type]

    @torch.no_grad()
    def extract(self, images: Sequence[Image.Image]) -> BatchFeatures:
        """Run every network on images of one size."""
        pictures = torch.stack([to_tensor(image) for image in images]).to(self.device)
        features = {key: network(pictures) for key, network in self._networks.items()}
        inception = None if self.metrics.inception is None else self.metrics.inception(pictures).float().cpu()
        return BatchFeatures(features, inception)

    @torch.no_grad()
    def compare(
        self,
        count: int,
        pictures: BatchFeatures,
        painting: BatchFeatures,
        photos: BatchFeatures | None,
        prompts: Sequence[str | None] | None,
    ) -> Tensor:
        """Return the scores of a batch, [count, columns except those of sets], in float64; NaN means no score.

        Args:
            count: number of pictures in the batch; `pictures` may hold the features of one picture that stands for all.
            pictures: features of the pictures to score.
            painting: features of one painting.
            photos: features of `count` photos; None leaves out the metrics that compare with photos.
            prompts: `count` prompts; None leaves out the similarity to prompts.
        """
        scores = torch.full((count, len(self.keys)), torch.nan, dtype=torch.float64)
        for place, metric in enumerate(self.metrics.pairs):
            other = photos if metric.column.against == "photo" else painting
            if other is not None:
                key = id(metric.network)
                scores[:, place] = metric.compare(pictures.features[key], other.features[key]).double().cpu()
        encoder = self.metrics.encoder
        if prompts is not None and encoder is not None and encoder.texts is not None:
            place = self.keys.index(text_column(encoder).key)
            embeddings = pictures.features[id(encoder.pictures)].expand(count, -1)
            for row, prompt in enumerate(prompts):
                text = None if prompt is None else self._embed(prompt)
                if text is not None:
                    scores[row, place] = float(embeddings[row] @ text)
        return scores

    def _embed(self, prompt: str) -> Tensor | None:
        from inst.evaluation.metrics.clip import without_placeholder

        if prompt not in self._prompts:
            assert self.metrics.encoder is not None
            assert self.metrics.encoder.texts is not None
            if len(self._prompts) >= _CACHED_PROMPTS:
                self._prompts.clear()
            try:
                self._prompts[prompt] = self.metrics.encoder.texts([without_placeholder(prompt)])[0]
            except InstError as error:
                self._prompts[prompt] = None
                self.problems.append(str(error))
        return self._prompts[prompt]
