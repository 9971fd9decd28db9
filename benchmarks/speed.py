"""Measure seconds and memory of common commands, each in its own process, as JSON.

    python benchmarks/speed.py [--out speed.json] [--repeats 3] [--threads 2]

The time runs from the start of the process to its end, including all imports and the loading of the backbone. Absolute
figures are valid for one machine only. To compare two versions, use the same machine with nothing else running.
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
from pathlib import Path

from inst.demo import PAINTINGS, PHOTOS
from inst.files.writing import write_bytes_atomically

LEARNING_STEPS = 200


def commands(folder: Path) -> dict[str, list[str]]:
    """Return the command lines to measure, by name. Later commands use files that earlier ones write."""
    painting, photo = str(PAINTINGS[0]), str(PHOTOS[0])
    style = str(folder / "style.safetensors")
    return {
        "help": ["--help"],
        "instant style and transfer, 20 guided steps": [
            *("transfer", photo, "--style", painting, "--steps", "20", "-o", str(folder / "instant.png")),
        ],
        f"learning, {LEARNING_STEPS} steps": [
            *("learn", painting, "--steps", str(LEARNING_STEPS), "--patience", str(LEARNING_STEPS), "-o", style),
        ],
        "transfer of a learned style, 20 guided steps": [
            *("transfer", photo, "--style", style, "--steps", "20", "-o", str(folder / "learned.png")),
        ],
        "transfer at 768 px": [
            *("transfer", photo, "--style", style, "--size", "768", "-o", str(folder / "large.png")),
        ],
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


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the speed and memory of inst's commands.")
    parser.add_argument("--out", type=Path, default=Path("speed.json"), help="JSON file to write")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each command (default 3)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="CPU threads (default: all cores)")
    options = parser.parse_args()
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, arguments in commands(Path(folder)).items():
            runs = [measure(arguments, options.threads) for _ in range(options.repeats)]
            seconds, memory = (list(column) for column in zip(*runs, strict=True))
            figures[name] = {
                "seconds": round(statistics.median(seconds), 2),
                "all": [round(s, 2) for s in seconds],
                "memory_gb": round(max(memory), 2),
            }
            print(f"{name:<48}{figures[name]['seconds']:8.2f} s{figures[name]['memory_gb']:8.2f} GB", flush=True)
    report = {"machine": platform.processor() or platform.machine(), "threads": options.threads, "figures": figures}
    write_bytes_atomically(options.out, json.dumps(report, indent=2).encode())


if __name__ == "__main__":
    main()
