"""The benchmark of many pictures runs, and its figures are there. How large they are is not tested."""

import json
import subprocess
import sys
from pathlib import Path

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "scale.py"


def test_the_benchmark_measures_pictures_learning_and_memory(tmp_path: Path) -> None:
    parts = "pictures,learning,memory"
    given = ["--tiny", "--device", "cpu", "--photos", "4", "--only", parts, "--out", tmp_path / "scale.json"]
    subprocess.run([sys.executable, BENCHMARK, *given], check=True, capture_output=True)
    figures = json.loads((tmp_path / "scale.json").read_text())["figures"]
    for name in (
        "pictures/s, batch 4",
        "learning, 4 together, a step of each style, ms",
        "memory, 1000 tiny inputs, MB",
    ):
        assert figures[name] > 0
