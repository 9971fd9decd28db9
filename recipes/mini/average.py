"""Average the weights of two runs of the denoiser, one of which began with the weights of the other.

    python recipes/mini/average.py --first runs/reference --second runs/stylise --share 0.6 --out runs/average

Between the weights before and after a fine-tuning, there is often a model that is better than both (Wortsman et al.,
CVPR 2022, "Robust fine-tuning of zero-shot models"). Here, --second alone paints ripples into textured places and
leaves flat places flat; the average does not.
"""

from __future__ import annotations

if __name__ == "__main__":
    from files import guarded

    guarded("average")

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from files import require_folder, write_folder
from inst.errors import InstError
from options import real_number

PARTS = ("unet", "inversion")


def average(first: Path, second: Path, share: float, out: Path) -> None:
    """Write `unet/` and `inversion/` with `share` of the weights of `second` and the rest of `first`, and `scheduler/`.

    Raises:
        InstError: a folder is missing, or the two runs have different layers. Nothing is written then.
    """
    files = {}
    for part in PARTS:
        before, after = (_weights(run / part) for run in (first, second))
        (name, a), (_, b) = before, after
        if {k: v.shape for k, v in a.items()} != {k: v.shape for k, v in b.items()}:
            raise InstError(f"{second / part}: has other layers than {first / part}; give two runs of one model")
        files[part] = name, {k: torch.lerp(a[k].float(), b[k].float(), share) for k in a}
    for part, (name, tensors) in files.items():

        def fill(made: Path, part: str = part, name: str = name, tensors: dict[str, torch.Tensor] = tensors) -> None:
            shutil.copytree(first / part, made, dirs_exist_ok=True)
            save_file(tensors, made / name, metadata={"format": "pt"})

        write_folder(out / part, fill)
    scheduler = require_folder(first / "scheduler")
    write_folder(out / "scheduler", lambda made: shutil.copytree(scheduler, made, dirs_exist_ok=True))


def _weights(folder: Path) -> tuple[str, dict[str, torch.Tensor]]:
    """Return the name of the weights file in a folder, and its tensors."""
    found = sorted(require_folder(folder).glob("*.safetensors"))
    if len(found) != 1:
        raise InstError(f"{folder}: contains {len(found)} files of weights; give a folder that the stage wrote")
    return found[0].name, load_file(found[0])


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Average the weights of two runs of mini's denoiser.")
    parser.add_argument("--first", type=Path, required=True, help="folder of the run before")
    parser.add_argument("--second", type=Path, required=True, help="folder of the run after")
    parser.add_argument("--share", type=real_number(1), default=0.5, help="share of --second (default 0.5)")
    parser.add_argument("--out", type=Path, required=True, help="folder for unet/, inversion/ and scheduler/")
    options = parser.parse_args(given)
    average(options.first, options.second, options.share, options.out)
    print(f"{options.out}: {options.share:g} of {options.second}, {1 - options.share:g} of {options.first}")
