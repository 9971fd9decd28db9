"""Measure a backbone on the hold-out, and write the figures as JSON and one sheet of pictures.

    python recipes/mini/measure.py --data FOLDER [--backbone mini] [--samples N] [--out DIR] [--full | --quick]

Without --samples, everything takes less than 15 minutes on two CPU cores. The Frechet distance needs a GPU and some
thousands of samples.
"""

from __future__ import annotations

if __name__ == "__main__":
    from files import guarded

    guarded("measure")

import argparse
import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from captions import PROMPTS
from data import CANVAS, Pictures, load_shards
from figures import (
    OWN_WORD,
    Figures,
    autoencoder_figures,
    cpu_generator,
    decode_all,
    denoising_figures,
    embed_all,
    encode_all,
    paintings_of,
    pseudo_word_figures,
    pseudo_words,
    retrieval_figures,
    weights_digest,
)
from generation import frechet_figures, generate
from inst import Backbone
from inst.backbone.loading.sources import find_source
from inst.evaluation.metrics.lpips import LPIPS
from inst.evaluation.networks.inception import InceptionFID
from inst.files.writing import write_bytes_atomically
from options import whole_number
from sample import sheet

COLUMNS = 6


@dataclass(frozen=True)
class Budget:
    """The amount of work. The defaults take about ten minutes on two CPU cores with mini.

    Attributes:
        per_group: number of pictures for the autoencoder in each of four groups (photos and art, by size).
        among: number of pictures among which a caption must find its own picture.
        denoised: number of pictures for the denoising error.
        paintings: number of paintings for the pseudo-words.
        steps: sampling steps of the sheet.
        frechet_steps: sampling steps of the Frechet distance.
        guidance: guidance scale of all generated pictures.
        batch: batch size in pictures.
    """

    per_group: int = 48
    among: int = 100
    denoised: int = 48
    paintings: int = 64
    steps: int = 25
    frechet_steps: int = 50
    guidance: float = 4.0
    batch: int = 8


FULL = Budget(per_group=1_000_000, denoised=1_000_000, paintings=1_000_000, batch=64)
"""The whole hold-out, for a GPU."""

QUICK = Budget(per_group=2, among=4, denoised=2, paintings=2, steps=2, frechet_steps=2, batch=2)
"""To check that everything runs. The figures have no meaning."""


@torch.no_grad()
def measure(
    data: Path,
    backbone: Backbone,
    name: str | Path,
    out: Path,
    *,
    budget: Budget,
    samples: int = 0,
    lpips: LPIPS | None = None,
) -> Figures:
    """Measure, write `figures.json` and `sheet.png` into `out`, and return the figures.

    `figures.json` is written again after every stage, so an interruption loses no finished stage. A figure is null if
    the backbone lacks a part for it or the hold-out has too few pictures.

    Args:
        data: folder of WebDataset shards.
        backbone: the backbone to measure.
        name: the bundled model's name or the folder that `backbone` was loaded from.
        out: an existing folder.
        budget: the amount of work.
        samples: number of pictures to generate for the Frechet distance; 0 leaves it out.
        lpips: the metric for reconstructions; loaded if not given.
    """
    every = load_shards(data, only=None if samples else "holdout")
    held_out = every.held_out()
    batch = budget.batch
    figures: Figures = {
        "backbone": str(name),
        "weights": weights_digest(find_source(name)),
        "fingerprint": backbone.fingerprint,
        "device": describe(backbone.device),
        "dtype": str(backbone.dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "held_out": len(held_out),
        "budget": asdict(budget),
        "samples": samples,
        "seconds": {},
    }
    if samples:
        inception = InceptionFID.load()  # before the long work, so that missing weights fail first
    metric = (lpips or LPIPS.load()).to(backbone.device)

    def stage(title: str, work: Callable[[], Figures | str | None]) -> None:
        begin = time.monotonic()
        figures[title] = work()
        figures["seconds"][title] = seconds = round(time.monotonic() - begin)
        write_bytes_atomically(out / "figures.json", f"{json.dumps(figures, indent=2)}\n".encode())
        print(f"{title} ({seconds} s): {json.dumps(figures[title])}", flush=True)

    has_pair = backbone.image_encoder is not None and hasattr(backbone.text_encoder, "text_projection")
    has_words = backbone.inversion is not None and backbone.image_encoder is not None
    stage("autoencoder", lambda: autoencoder_figures(backbone, held_out, metric, budget.per_group, batch))
    stage("retrieval", lambda: retrieval_figures(backbone, held_out, budget.among, batch) if has_pair else None)
    stage("denoising", lambda: denoising_figures(backbone, held_out, budget.denoised, batch))
    stage(
        "pseudo_words", lambda: pseudo_word_figures(backbone, held_out, budget.paintings, batch) if has_words else None
    )
    stage("sheet", lambda: draw_sheet(backbone, held_out, out / "sheet.png", budget, has_words))
    if samples:
        stage(
            "frechet_distance",
            lambda: frechet_figures(
                backbone, every, inception, samples, budget.frechet_steps, budget.guidance, budget.batch
            ),
        )
    return figures


def describe(device: torch.device) -> str:
    """Return the name of the GPU, or the kind of the CPU and the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} {device.type}, {torch.get_num_threads()} threads"


def draw_sheet(backbone: Backbone, held_out: Pictures, path: Path, budget: Budget, with_words: bool) -> str:
    """Draw a sheet and return its file name.

    It shows twelve prompts, photos with their reconstructions, and paintings with pictures made from their own and from
    another painting's pseudo-word. Rows without pictures in the hold-out are left out.
    """
    text = embed_all(backbone, PROMPTS, None, budget.batch)
    rows: list[tuple[Tensor, list[str]]] = []
    generated = generate(
        backbone, text, steps=budget.steps, guidance=budget.guidance, generator=cpu_generator(20), batch=budget.batch
    )
    rows.append((generated, list(PROMPTS)))

    photos = [i for i in range(len(held_out)) if held_out.kinds[i] == "photo"]
    if photos:
        photos.sort(
            key=lambda i: int(held_out.native[i]) < CANVAS
        )  # stable sort: pictures that are not enlarged come first
        originals = held_out.at_size(CANVAS, photos[:COLUMNS])
        latents = encode_all(backbone, originals, budget.batch)
        rows.append(_padded(originals, "held-out photo"))
        rows.append(_padded(decode_all(backbone, latents, budget.batch), "through the autoencoder"))

    paintings = paintings_of(held_out, COLUMNS)
    if with_words and len(paintings):
        _, words = pseudo_words(backbone, paintings, budget.batch)
        own = embed_all(backbone, [OWN_WORD] * len(words), words, budget.batch)
        rows.append(_padded(paintings.at_size(CANVAS), "held-out painting"))
        texts = [(own, "from its own pseudo-word")]
        if len(words) > 1:
            texts.append((own.roll(1, 0), "pseudo-word of the left neighbour, same noise"))
        for text, label in texts:
            made = generate(
                backbone,
                text,
                steps=budget.steps,
                guidance=budget.guidance,
                generator=cpu_generator(21),
                batch=budget.batch,
            )
            rows.append(_padded(made, label))
    pictures = torch.cat([row for row, _ in rows])
    sheet(pictures, [label for _, labels in rows for label in labels], path, columns=COLUMNS)
    return path.name


def _padded(row: Tensor, label: str) -> tuple[Tensor, list[str]]:
    """Return one row of the sheet, filled up with white if there are fewer pictures than columns."""
    missing = COLUMNS - len(row)
    return torch.cat([row, torch.ones(missing, *row.shape[1:])]), [label] * len(row) + [""] * missing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of WebDataset shards (*.tar)")
    parser.add_argument("--backbone", default="mini", help="mini, or a folder in the diffusers layout")
    parser.add_argument(
        "--samples",
        type=whole_number(2),
        default=0,
        help="pictures to generate for the Frechet distance (default 0: none)",
    )
    parser.add_argument("--out", type=Path, default=Path("outputs/measure"), help="folder for figures.json, sheet.png")
    parser.add_argument("--batch", type=whole_number(1), help="batch size in pictures (default 8; 64 with --full)")
    extent = parser.add_mutually_exclusive_group()
    extent.add_argument("--full", action="store_true", help="measure the whole hold-out, not samples of it (for a GPU)")
    extent.add_argument("--quick", action="store_true", help="a smoke test of a minute; its figures have no meaning")
    options = parser.parse_args()
    budget = QUICK if options.quick else FULL if options.full else Budget()
    if options.batch:
        budget = Budget(**{**asdict(budget), "batch": options.batch})
    options.out.mkdir(parents=True, exist_ok=True)
    # Always float32, so that the figures do not depend on the processor.
    backbone = Backbone.load(options.backbone, dtype="float32")
    measure(options.data, backbone, options.backbone, options.out, budget=budget, samples=options.samples)
