"""Read pictures and captions from WebDataset shards into one uint8 tensor, and cut random crops on the device.

A shard is a tar file of pairs `KEY.webp` (or .jpg, .png) and `KEY.json` = {"captions": [...], "kind": "art"|"photo",
"source": "..."}. Every picture keeps its own size up to 256 px and fills the top left `native` pixels of a 256 px
canvas. Nothing is enlarged here.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from inst.errors import InstError, first_line

CANVAS = 256
HOLDOUT = 1000
"""Number of pictures that no stage uses for training: those with the smallest SHA-256, in whatever order they come."""

TOO_FEW = "there is too little data: all of it is held out, and none is left for training; give --data more pictures"

_PARTS = {"webp": "picture", "jpg": "picture", "jpeg": "picture", "png": "picture", "json": "json"}


@dataclass(frozen=True)
class Pictures:
    """N pictures with their captions.

    Attributes:
        pixels: [N, 3, 256, 256] uint8; picture i fills the top left `native[i]` square, the rest is 0.
        native: [N] side in pixels of each square picture before it is enlarged (at most 256).
        captions: the captions of each picture, at least one.
        kinds: "art" or "photo".
        sources: name of the collection of each picture.
        holdout: [N] bool, True for pictures that no stage may use for training.
    """

    pixels: Tensor
    native: Tensor
    captions: list[list[str]]
    kinds: list[str]
    sources: list[str]
    holdout: Tensor

    def __len__(self) -> int:
        return len(self.captions)

    def subset(self, index: Tensor | Sequence[int]) -> Pictures:
        """Return the pictures at these positions, in this order."""
        chosen = torch.as_tensor(index, dtype=torch.long)
        at = chosen.tolist()
        device = self.pixels.device
        return replace(
            self,
            pixels=self.pixels[chosen.to(device)],
            native=self.native[chosen.to(device)],
            captions=[self.captions[i] for i in at],
            kinds=[self.kinds[i] for i in at],
            sources=[self.sources[i] for i in at],
            holdout=self.holdout[chosen],
        )

    def to(self, device: torch.device | str) -> Pictures:
        """Return the same pictures with their tensors on `device`."""
        return replace(self, pixels=self.pixels.to(device), native=self.native.to(device))

    def train(self) -> Pictures:
        """Return the pictures for training. Raises InstError if there are none."""
        chosen = (~self.holdout).nonzero().flatten()
        if not len(chosen):
            raise InstError(TOO_FEW)
        return self.subset(chosen)

    def held_out(self) -> Pictures:
        """Return the pictures that are only used for measurements."""
        return self.subset(self.holdout.nonzero().flatten())

    def at_size(self, size: int, index: Tensor | Sequence[int] | None = None) -> Tensor:
        """Return whole pictures at `size` px, [n, 3, size, size] in [-1, 1]. Smaller pictures are enlarged."""
        at = range(len(self)) if index is None else torch.as_tensor(index).tolist()
        out = []
        for i in at:
            side = int(self.native[i])
            picture = self.pixels[i : i + 1, :, :side, :side].float() / 127.5 - 1
            if side != size:
                picture = F.interpolate(picture, (size, size), mode="bicubic", antialias=True).clamp(-1, 1)
            out.append(picture)
        return torch.cat(out)


def shards_of(folder: str | Path) -> list[Path]:
    """Return the tar files of `folder`, sorted. Raises InstError if there are none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InstError(f"{folder}: no such folder; give --data a folder with WebDataset shards (*.tar)")
    shards = sorted(folder.glob("*.tar"))
    if not shards:
        raise InstError(f"{folder}: holds no shard; give --data a folder with WebDataset shards (*.tar)")
    return shards


def read_shard(shard: Path) -> Iterator[tuple[str, bytes, dict[str, object]]]:
    """Yield (name, picture bytes, record) of each pair in a shard. Other files in it are skipped.

    The name contains the shard and the picture in it, for messages.

    Raises:
        InstError: the shard is truncated or damaged, one file of a pair is missing, or a caption file has no captions.
    """
    waiting: dict[str, dict[str, tuple[str, bytes]]] = {}
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                stem, _, suffix = member.name.rpartition(".")
                part = _PARTS.get(suffix.lower())
                if not member.isfile() or part is None:
                    continue
                file = archive.extractfile(member)
                assert file is not None
                pair = waiting.setdefault(stem, {})
                pair[part] = f"{shard}:{member.name}", file.read()
                if len(pair) == 2:
                    del waiting[stem]
                    yield *pair["picture"], _record(*pair["json"])
            end = archive.offset
    except (tarfile.TarError, EOFError, OSError) as error:
        raise InstError(f"{shard}: the shard cannot be read ({error}); copy it again") from error
    _check_end(shard, end)
    if waiting:
        stem = next(iter(waiting))
        raise InstError(
            f"{shard}:{stem}: a picture without its .json, or a .json without its picture; make the shard again"
        )


def _check_end(shard: Path, end: int) -> None:
    """Raise InstError unless only the usual end of an archive, a few KiB of zeros, follows byte `end`.

    tarfile reads an unreadable header, or a cut at the boundary of a member, as the end of the archive.
    """
    with shard.open("rb") as file:
        file.seek(end)
        rest = file.read()
    if any(rest) or len(rest) > 2 * tarfile.RECORDSIZE:
        raise InstError(f"{shard}: the shard is damaged at byte {end}; copy it again")
    if len(rest) < 1024:
        raise InstError(f"{shard}: the shard is truncated; copy it again")


def _record(name: str, text: bytes) -> dict[str, object]:
    try:
        record = json.loads(text)
        if not isinstance(record["captions"], list):
            raise TypeError
        captions = [c.strip() for c in record["captions"] if c.strip()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InstError(f'{name}: not a caption file {{"captions": [...]}}; make the shard again') from error
    if not captions:
        raise InstError(f"{name}: has no captions; add one or leave the picture out")
    return {**record, "captions": captions}


def held_out(pictures: Sequence[bytes]) -> list[bool]:
    """Return which of these picture files are held out: those with the `HOLDOUT` smallest SHA-256.

    Of a small set (a smoke test), only a tenth is held out, so that some pictures are left for training.
    """
    digests = [hashlib.sha256(data).hexdigest() for data in pictures]
    smallest = set(sorted(digests)[: min(HOLDOUT, max(1, len(pictures) // 10))])
    return [digest in smallest for digest in digests]


def _decode(name: str, data: bytes) -> tuple[Tensor, int]:
    try:
        with Image.open(io.BytesIO(data)) as opened:
            picture = opened.convert("RGB")
    except Exception as error:
        # Pillow's message for an unknown format names the buffer in memory, which does not help the user.
        reason = "no known format" if isinstance(error, UnidentifiedImageError) else first_line(error)
        raise InstError(f"{name}: the picture does not decode ({reason}); leave it out of the shard") from error
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    picture = picture.crop((left, top, left + side, top + side))
    if side > CANVAS:
        picture, side = picture.resize((CANVAS, CANVAS), Image.Resampling.LANCZOS), CANVAS
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(side, side, 3)
    return pixels.permute(2, 0, 1), side


def load_shards(folder: str | Path, *, device: torch.device | str = "cpu", only: str | None = None) -> Pictures:
    """Read every shard of `folder` and decode its pictures on all cores.

    Args:
        folder: the folder with the `*.tar` shards.
        device: the device for `pixels` and `native`.
        only: "train" or "holdout" decodes only those pictures; None decodes all.

    Raises:
        InstError: a shard, a picture or a caption file is wrong. The message names it and the remedy.
    """
    rows = [row for shard in shards_of(folder) for row in read_shard(shard)]
    if not rows:
        raise InstError(f"{folder}: the shards hold no picture; give --data a folder with pictures and captions")
    held = held_out([data for _, data, _ in rows])
    keep = [i for i in range(len(rows)) if only is None or held[i] == (only == "holdout")]
    if not keep:
        raise InstError(TOO_FEW)

    pixels = torch.zeros(len(keep), 3, CANVAS, CANVAS, dtype=torch.uint8)
    native = torch.zeros(len(keep), dtype=torch.long)

    def fill(position: int) -> None:
        name, data, _ = rows[keep[position]]
        picture, side = _decode(name, data)
        pixels[position, :, :side, :side] = picture
        native[position] = side

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(fill, range(len(keep))))
    records = [rows[i][2] for i in keep]
    return Pictures(
        pixels=pixels.to(device),
        native=native.to(device),
        captions=[list(r["captions"]) for r in records],  # type: ignore[call-overload]
        kinds=[str(r.get("kind", "photo")) for r in records],
        sources=[str(r.get("source", "unknown")) for r in records],
        holdout=torch.tensor([held[i] for i in keep]),
    )


def random_squares(
    pictures: Pictures, index: Tensor, scale: tuple[float, float], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw one random square of each picture at `index` [B], with a side in the range `scale` of the picture's side.

    Returns:
        boxes [B, 3] as (left, top, side) in pixels (floats), and flips [B] bool.
    """
    device = pictures.pixels.device
    draw = torch.rand(4, len(index), generator=generator, device=device)
    native = pictures.native[index].float()
    side = native * (scale[0] + (scale[1] - scale[0]) * draw[0])
    left, top = (native - side) * draw[1], (native - side) * draw[2]
    return torch.stack([left, top, side], dim=1), draw[3] < 0.5


def cut(pictures: Pictures, index: Tensor, boxes: Tensor, flips: Tensor, size: int) -> Tensor:
    """Cut squares out of pictures and resize them to `size` px, bilinear, in one batched operation on the device.

    A reduction by more than 2 would alias a little, but crops here are never reduced that much. Returns
    [B, 3, size, size] in [-1, 1].
    """
    unit = (torch.arange(size, device=boxes.device, dtype=torch.float32) + 0.5) / size
    across = torch.where(flips[:, None], 1 - unit, unit)
    # Sampling stays half a pixel inside the box, because the canvas outside a small picture is black.
    left, top, side = boxes[:, 0:1], boxes[:, 1:2], boxes[:, 2:3]

    def positions(start: Tensor, along: Tensor) -> Tensor:
        inside = (start + along * side).clamp(min=start + 0.5, max=start + side - 0.5)
        return inside * (2 / CANVAS) - 1  # grid_sample's coordinates, align_corners=False

    x, y = positions(left, across), positions(top, unit.expand(len(index), -1))
    grid = torch.stack(
        [x[:, None, :].expand(-1, size, -1), y[:, :, None].expand(-1, -1, size)], dim=-1
    )  # [B, size, size, 2]
    sampled = F.grid_sample(pictures.pixels[index].float(), grid, mode="bilinear", align_corners=False)
    return sampled / 127.5 - 1


def exact_crops(pictures: Pictures, index: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Return random crops of `size` px, some flipped, without resampling, [B, 3, size, size] in [-1, 1].

    Pictures smaller than `size` are enlarged to it first, so give indices of pictures that are large enough.
    """
    device = pictures.pixels.device
    draw = torch.rand(3, len(index), generator=generator, device=device)
    native = pictures.native[index].float()
    side = native.clamp(max=size)
    corner = ((native - side + 1) * draw[:2]).floor().clamp(min=torch.zeros_like(native), max=native - side)
    return cut(pictures, index, torch.stack([corner[0], corner[1], side], dim=1), draw[2] < 0.5, size)
