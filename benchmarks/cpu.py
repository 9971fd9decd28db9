"""Measure mini on a CPU: whole commands, and sampling beside diffusers alone, as a table and as JSON.

    python benchmarks/cpu.py [--out cpu.json] [--repeats 3] [--threads 2] [--only commands,sampling]

Commands run in their own processes: their time includes all imports and the loading of the model. Sampling runs in this
process: the rows "diffusers" are the same work with diffusers alone (`plain.py`), so the ratio is valid for other
machines too. Absolute times count for one machine only, with nothing else running.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import plain
import torch
from timing import median_ms
from torch import Tensor

from inst.backbone.model import Backbone
from inst.demo import PAINTINGS, PHOTOS
from inst.files.writing import write_bytes_atomically
from inst.learning.instant import instant_style
from inst.pictures.reading import read_photo
from inst.pictures.resizing import fit_size, resize
from inst.pictures.tensors import to_image
from inst.runs import complete
from inst.styles.style import Style
from inst.synthesis.from_photo import transfer

LEARNING_STEPS = 200
SIZES = (256, 512)
STEPS = 20
PLAIN_STEPS, PLAIN_STRENGTH = 50, 0.4  # diffusers runs 0.4 x 50 = 20 of them


def commands(folder: Path) -> dict[str, list[str]]:
    """Return the command lines to measure, by name. Later commands use files that earlier ones write."""
    painting, photo, style = str(PAINTINGS[0]), str(PHOTOS[0]), str(folder / "style.safetensors")
    learning = [
        "learn",
        painting,
        "--steps",
        str(LEARNING_STEPS),
        "--patience",
        str(LEARNING_STEPS),
        "--overwrite",
        "-o",
        style,
    ]
    instant = {
        f"transfer, instant style, {size} px": ["transfer", photo, "--style", painting, "--size", str(size)]
        for size in SIZES
    }
    learned = {
        f"transfer, learned style, {size} px": ["transfer", photo, "--style", style, "--size", str(size)]
        for size in (*SIZES, 768)
    }
    for number, line in enumerate((*instant.values(), *learned.values())):
        line += ["-o", str(folder / f"{number}.png")]
    generated = ["generate", "a castle in the style of [C]", "--style", style, "-o", str(folder / "generated.png")]
    return {
        "help": ["--help"],
        **instant,
        f"learning, {LEARNING_STEPS} steps": learning,
        **learned,
        "generate": generated,
    }


def measure(arguments: list[str], threads: int) -> tuple[float, float]:
    """Run `inst` and return (seconds, peak memory in GB)."""
    program = [str(Path(sys.executable).with_name("inst")), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    begin = time.perf_counter()
    process = subprocess.Popen(program, stdout=subprocess.DEVNULL, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begin
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(program)} failed with {process.returncode}")
    return seconds, usage.ru_maxrss * 1024 / 1e9


def measure_commands(repeats: int, threads: int) -> dict[str, Any]:
    """Run every command some times in its own process."""
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, arguments in commands(Path(folder)).items():
            runs = [measure(arguments, threads) for _ in range(repeats)]
            seconds, memory = (list(column) for column in zip(*runs, strict=True))
            figures[name] = {
                "seconds": round(statistics.median(seconds), 2),
                "all": [round(s, 2) for s in seconds],
                "memory_gb": round(max(memory), 2),
            }
            print(f"{name:<48}{figures[name]['seconds']:8.2f} s{figures[name]['memory_gb']:8.2f} GB", flush=True)
    return figures


def measure_sampling(repeats: int, threads: int) -> dict[str, Any]:
    """Transfer in this process, after one run that is not counted, beside diffusers alone in float32."""
    torch.set_num_threads(threads)
    backbone, plain_backbone = Backbone.load("mini", "cpu"), Backbone.load("mini", "cpu", "float32")
    style = instant_style(backbone, PAINTINGS[0])
    photo = read_photo(PHOTOS[0]).picture
    figures: dict[str, Any] = {}
    for size in SIZES:
        width, height = (
            round(side / backbone.size_multiple) * backbone.size_multiple  # diffusers takes no other sizes
            for side in fit_size(photo.shape[2], photo.shape[1], size)
        )
        runs = sampling_runs(backbone, plain_backbone, style, resize(photo, (height, width)))
        times = {name: median_ms(run, backbone.device, repeats, warm_up=1) / 1000 for name, run in runs.items()}
        with_diffusers = next(iter(times.values()))
        for name, took in times.items():
            figures[f"{name}, {size} px"] = {"seconds": round(took, 2), "ratio": round(with_diffusers / took, 2)}
            print(f"{name + f', {size} px':<48}{took:8.2f} s{with_diffusers / took:8.2f} x", flush=True)
    return figures


def sampling_runs(
    backbone: Backbone, plain_backbone: Backbone, style: Style, photo: Tensor
) -> dict[str, Callable[[], Any]]:
    """Return what to measure for one photo, [3, H, W] in [-1, 1], by name; diffusers alone first."""
    pipeline, image = plain.image_to_image(plain_backbone), to_image(photo)
    # Encoded here, because that pipeline takes the wrong output of a text encoder with a projection, like mini's.
    text, empty = (plain_backbone.embed_text([prompt]).tokens for prompt in ("a painting", ""))
    size = min(photo.shape[1:])
    settings = {"strength": PLAIN_STRENGTH, "steps": STEPS, "guidance": 4.0, "size": size}
    same: Mapping[str, Any] = {**settings, **plain.SAMPLING}
    given = {"strength": PLAIN_STRENGTH, "num_inference_steps": PLAIN_STEPS, "guidance_scale": 4.0}
    prompts = {"prompt_embeds": text, "negative_prompt_embeds": empty}
    return {
        f"diffusers, {STEPS} steps": lambda: pipeline(image=image, **prompts, **given),
        f"transfer, {STEPS} steps, no attention": lambda: complete(
            transfer(backbone, photo, style, tone="none", style_attention=0.0, **same)
        ),
        "transfer, defaults": lambda: complete(transfer(backbone, photo, style, size=size)),
    }


PARTS = {"commands": measure_commands, "sampling": measure_sampling}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure mini on a CPU, beside diffusers alone.")
    parser.add_argument("--out", type=Path, default=Path("cpu.json"), help="JSON file to write")
    parser.add_argument("--repeats", type=int, default=3, help="runs of which the median is taken (default 3)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="CPU threads (default: all cores)")
    parser.add_argument("--only", default=",".join(PARTS), help=f"parts to measure, from {', '.join(PARTS)}")
    options = parser.parse_args()
    figures = {part: PARTS[part](options.repeats, options.threads) for part in options.only.split(",")}
    report = {"machine": platform.processor() or platform.machine(), "threads": options.threads, "figures": figures}
    write_bytes_atomically(options.out, json.dumps(report, indent=2).encode())


if __name__ == "__main__":
    main()
