"""Measure a backbone on the hold-out: figures as JSON and one sheet of pictures to look at.

    python recipes/mini/measure.py --data FOLDER [--backbone mini] [--samples N] [--out DIR] [--full | --quick]

Without --samples everything takes less than 15 minutes on two CPU cores; the Frechet distance wants a GPU and some
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
    decode_all,
    denoising_figures,
    embed_all,
    encode_all,
    paintings_of,
    pseudo_word_figures,
    pseudo_words,
    retrieval_figures,
    seeded,
    weights_digest,
)
from generation import frechet_figures, generate
from inst import Backbone
from inst.backbone.loading.sources import find_source
from inst.evaluation.metrics.lpips import LPIPS
from inst.evaluation.networks.inception import InceptionFID
from inst.files.writing import write_bytes_atomically
from options import whole
from sample import sheet

COLUMNS = 6


@dataclass(frozen=True)
class Budget:
    """How much is measured. The defaults take about ten minutes on two CPU cores with mini.

    Attributes:
        per_group: pictures through the autoencoder in each of four groups (photographs and art, by size).
        among: pictures that a caption's own is looked for among.
        denoised: pictures whose denoising error is measured.
        paintings: paintings whose pseudo-words are measured.
        steps: sampling steps of the sheet; the Frechet distance takes `frechet_steps`.
        guidance: guidance scale of all generated pictures.
        batch: pictures at a time.
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
"""For a look whether everything runs: the figures mean nothing."""


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

    The file is written anew after every stage: what was measured outlives an interruption. Figures that the backbone
    has no parts for, or the hold-out too few pictures, are null.

    Args:
        data: folder of WebDataset shards.
        backbone: what is measured.
        name: what `backbone` was loaded from, a bundled model's name or a folder.
        out: an existing folder.
        budget: how much is measured.
        samples: pictures to generate for the Frechet distance; 0 leaves it out.
        lpips: the metric of reconstructions; fetched if not given.
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
        inception = InceptionFID.load()  # before the long work: what cannot be had should fail first
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
    """The GPU's name, or the CPU's kind and how many of its cores are used."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} {device.type}, {torch.get_num_threads()} threads"


def draw_sheet(backbone: Backbone, held_out: Pictures, path: Path, budget: Budget, with_words: bool) -> str:
    """Twelve prompts; photographs and their reconstructions; paintings and what their own and another's word make.

    Rows that the hold-out has no pictures for are left out. Returns the file's name.
    """
    text = embed_all(backbone, PROMPTS, None, budget.batch)
    rows: list[tuple[Tensor, list[str]]] = []
    generated = generate(
        backbone, text, steps=budget.steps, guidance=budget.guidance, generator=seeded(20), batch=budget.batch
    )
    rows.append((generated, list(PROMPTS)))

    photographs = [i for i in range(len(held_out)) if held_out.kinds[i] == "photo"]
    if photographs:
        photographs.sort(key=lambda i: int(held_out.native[i]) < CANVAS)  # stable: those that are not enlarged first
        originals = held_out.at_size(CANVAS, photographs[:COLUMNS])
        latents = encode_all(backbone, originals, budget.batch)
        rows.append(_padded(originals, "held-out photograph"))
        rows.append(_padded(decode_all(backbone, latents, budget.batch), "through the autoencoder"))

    paintings = paintings_of(held_out, COLUMNS)
    if with_words and len(paintings):
        _, words = pseudo_words(backbone, paintings, budget.batch)
        own = embed_all(backbone, [OWN_WORD] * len(words), words, budget.batch)
        rows.append(_padded(paintings.at_size(CANVAS), "held-out painting"))
        texts = [(own, "from its own pseudo-word")]
        if len(words) > 1:
            texts.append((own.roll(1, 0), "from the left neighbour's, same noise"))
        for text, label in texts:
            made = generate(
                backbone, text, steps=budget.steps, guidance=budget.guidance, generator=seeded(21), batch=budget.batch
            )
            rows.append(_padded(made, label))
    pictures = torch.cat([row for row, _ in rows])
    sheet(pictures, [label for _, labels in rows for label in labels], path, columns=COLUMNS)
    return path.name


def _padded(row: Tensor, label: str) -> tuple[Tensor, list[str]]:
    """One row of the sheet: white where there are fewer pictures than columns."""
    missing = COLUMNS - len(row)
    return torch.cat([row, torch.ones(missing, *row.shape[1:])]), [label] * len(row) + [""] * missing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of WebDataset shards (*.tar)")
    parser.add_argument("--backbone", default="mini", help="mini, or a folder in the diffusers layout")
    parser.add_argument("--samples", type=whole(2), default=0, help="pictures to generate for the Frechet distance")
    parser.add_argument("--out", type=Path, default=Path("outputs/measure"), help="folder for figures.json, sheet.png")
    parser.add_argument("--batch", type=whole(1), help="pictures at a time (default 8; 64 with --full)")
    extent = parser.add_mutually_exclusive_group()
    extent.add_argument("--full", action="store_true", help="the whole hold-out rather than samples of it (for a GPU)")
    extent.add_argument("--quick", action="store_true", help="a smoke test: figures that mean nothing, in a minute")
    options = parser.parse_args()
    budget = QUICK if options.quick else FULL if options.full else Budget()
    if options.batch:
        budget = Budget(**{**asdict(budget), "batch": options.batch})
    options.out.mkdir(parents=True, exist_ok=True)
    # Figures shall not depend on what the processor is good at.
    backbone = Backbone.load(options.backbone, dtype="float32")
    measure(options.data, backbone, options.backbone, options.out, budget=budget, samples=options.samples)
