"""Measure how much films flicker, and draw a sheet: mini, 256 px, films that are made from photos.

    python benchmarks/film.py [--out FOLDER] [--frames 16] [--style PAINTING] [--device cpu]

"pan" is a crop that moves over a photo and slowly comes nearer, by fractions of a pixel. Its motion is known exactly.
"object" is a head that moves over a photo that stands still. The rows of the table:

    own noise            each frame by `inst.transfer` with a seed of its own, as photos in a folder are made
    one noise            each frame by `inst.transfer` with the same seed
    attention            `inst.transfer_film` that holds nothing: one noise, and attention to finished frames
    without OpenCV       `inst.transfer_film` that knows nothing of motion
    without attention    `inst.transfer_film` whose denoiser does not look at finished frames
    film                 `inst.transfer_film`

`static` and `warped` are those of `inst.evaluation.metrics.flicker`. `known` is `warped` with the motion of the crop.
`detail` is the mean gradient of the last frame, as a share of that of the frames by `inst.transfer`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from inst import demo
from inst.backbone.model import Backbone
from inst.evaluation.metrics.flicker import flicker
from inst.files.writing import make_folder, write_bytes_atomically
from inst.learning.instant import instant_style
from inst.pictures import motion
from inst.pictures.motion import Motion, move
from inst.pictures.reading import read_picture
from inst.pictures.resizing import resize
from inst.pictures.tensors import to_image, to_tensor
from inst.pictures.writing import save_picture
from inst.runs import complete
from inst.styles.style import Style
from inst.synthesis import film
from inst.synthesis.film import transfer_film
from inst.synthesis.from_photo import transfer
from inst.synthesis.series import Held

SIDE = 256
STEP = (4.3, 1.1)  # pixels of the photo from frame to frame
NEARER = 0.996  # the scale of a frame, as a share of that of the frame before

BACKGROUND = Path(__file__).resolve().parent / "pictures" / "canyon.webp"

Frames = Sequence[Tensor]


def pan(count: int) -> tuple[Frames, Callable[[int], Tensor]]:
    """Return frames [3, SIDE, SIDE] in [-1, 1], and a function that gives the flow back from a frame (its number)."""
    photo = read_picture(demo.PHOTOS[0])

    def places(number: int) -> Tensor:
        scale = 1.35 * NEARER**number  # pixels of the photo for one of the film
        x, y = (torch.arange(SIDE) * scale + start for start in (30 + STEP[0] * number, 40 + STEP[1] * number))
        return torch.stack(torch.meshgrid(x, y, indexing="xy"))

    def flow(number: int) -> Tensor:
        scale = 1.35 * NEARER ** (number - 1)
        return (places(number) - places(number - 1)) / scale

    height, width = photo.shape[1:]
    size = torch.tensor([width, height])
    frames = []
    for number in range(count):
        grid = (2 * places(number).permute(1, 2, 0) + 1) / size - 1
        frames.append(F.grid_sample(photo[None], grid[None], mode="bicubic", align_corners=False)[0].clamp(-1, 1))
    return frames, flow


def moving_object(count: int) -> Frames:
    """Return frames [3, SIDE, SIDE] in [-1, 1] of a head that moves over a photo."""
    ground = resize(read_picture(BACKGROUND)[:, :, :512], (SIDE, SIDE))
    head = resize(read_picture(demo.PHOTOS[1])[:, :300, 120:360], (100, 80))
    y, x = torch.meshgrid(torch.linspace(-1, 1, 100), torch.linspace(-1, 1, 80), indexing="ij")
    alpha = ((1 - (x**2 + y**2).sqrt()) * 30).clamp(0, 1)
    layer = F.pad(torch.cat([head * alpha, alpha[None]]), (0, SIDE - 80, 0, SIDE - 100))
    frames = []
    for number in range(count):
        flow = torch.tensor([-20 - 5.3 * number, -80 - 2.1 * number])[:, None, None].expand(2, SIDE, SIDE)
        moved = move(layer, flow)
        frames.append(moved[:3] + ground * (1 - moved[3:].clamp(0, 1)))
    return [frame.clamp(-1, 1) for frame in frames]


def runs(backbone: Backbone, style: Style, photos: Frames) -> dict[str, Frames]:
    """Return the film of each row of the table."""

    def alone(seeds: Sequence[int]) -> Frames:
        return [
            to_tensor(to_image(complete(transfer(backbone, photo, style, size=SIDE, seed=seed))))
            for photo, seed in zip(photos, seeds, strict=True)
        ]

    def together() -> Frames:
        return list(transfer_film(backbone, photos, style, size=SIDE))

    made = {"own noise": alone(range(len(photos))), "one noise": alone([0] * len(photos))}
    with mock.patch.object(Held, "over", lambda held, result: result):
        made["attention"] = together()
    with mock.patch.object(motion, "opencv", return_value=None):
        made["without OpenCV"] = together()
    with mock.patch.object(film, "_SHARE", 0):
        made["without attention"] = together()
    return {**made, "film": together()}


def known_motion(flow: Callable[[int], Tensor]) -> Callable[[Tensor, Tensor], Motion]:
    """Return a function like `motion_between` for successive frames of a film."""
    number = 0

    def known(earlier: Tensor, later: Tensor) -> Motion:
        nonlocal number
        number += 1
        back = flow(number)
        places = motion._places(SIDE, SIDE) + back
        inside = ((places >= 0) & (places <= SIDE - 1)).all(0)
        return Motion(back, -back, inside.float())

    return known


def detail(picture: Tensor) -> float:
    """Return the mean absolute difference of neighbouring pixels."""
    return float(picture.diff(dim=1).abs().mean() + picture.diff(dim=2).abs().mean())


def sheet(rows: Sequence[Frames], columns: int) -> Image.Image:
    """Draw a row for each film, and below it what is not where it was before, four times as strong."""
    chosen = [round(i * (len(rows[0]) - 1) / (columns - 1)) for i in range(columns)]
    lines = []
    for frames in rows:
        changes = []
        for i in chosen:
            found = motion.motion_between(rows[0][max(0, i - 1)], rows[0][i])
            moved = move(frames[max(0, i - 1)], found.back)
            changes.append(((frames[i] - moved).abs() * 4 * (found.trust > 0.5) - 1).clamp(-1, 1))
        lines += [torch.cat([frames[i] for i in chosen], 2), torch.cat(changes, 2)]
    return to_image(torch.cat(lines, 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("film"), help="folder for sheets and figures")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--style", type=Path, default=demo.PAINTINGS[0], help="the painting")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    backbone = Backbone.load(device=options.device)
    style = instant_style(backbone, options.style)
    make_folder(options.out)
    panned, flow = pan(options.frames)
    figures: dict[str, dict[str, Any]] = {}
    for name, photos in (("pan", panned), ("object", moving_object(options.frames))):
        made = {"photos": photos, **runs(backbone, style, photos)}
        plain = detail(made["own noise"][-1])
        for row, frames in made.items():
            found = flicker(photos, frames)
            known = flicker(photos, frames, known_motion(flow)).warped if name == "pan" else None
            values = {"static": found.static, "warped": found.warped, "known": known}
            figures[f"{name}, {row}"] = {**values, "detail": detail(frames[-1]) / plain}
            cells = (f"{key} {value:.4f}" for key, value in figures[f"{name}, {row}"].items() if value is not None)
            print(f"{name}, {row}: {', '.join(cells)}", flush=True)
        save_picture(to_tensor(sheet(list(made.values()), 4)), options.out / f"{name}.png")
    write_bytes_atomically(options.out / "film.json", json.dumps(figures, indent=2).encode())


if __name__ == "__main__":
    main()
