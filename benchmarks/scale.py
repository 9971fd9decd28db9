"""Measure many pictures and many styles: batch sizes, devices, Ray and memory, as a table and as JSON.

    python benchmarks/scale.py [--out scale.json] [--only pictures,learning,devices,ray,memory] [--model mini]

On a GPU the model has the size of Stable Diffusion 1.4 and random weights (`models.py`); on a CPU it is mini. Whole
runs of `inst batch` are measured: files are read, decoded, encoded and written. A rate counts from the first tenth of
the outputs on, so that start-up and the recording of graphs are not in it. --tiny tries the program.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from models import SIZES, build, save
from PIL import Image
from timing import median_ms, seconds, step_ms

from inst.backbone.devices import choose_device, choose_dtype
from inst.backbone.model import Backbone
from inst.batch.orders import Order, Row
from inst.batch.painting import TransferOrder
from inst.batch.ray_cluster import RayOptions
from inst.batch.run import run_batch
from inst.files.writing import write_bytes_atomically
from inst.learning.instant import instant_style
from inst.learning.loop import learn
from inst.learning.together import learn_together
from inst.pictures.reading import Photo, read_photo
from inst.runs import complete
from inst.synthesis.painter import paint_batch

_MEMORY = """
import sys, time
from pathlib import Path
sys.path[:0] = {path!r}
from scale import Tiny, end_of_run
order = Tiny(out={out!r}, photos={photos!r})
begin = time.perf_counter()
done = end_of_run(order)
status = Path("/proc/self/status").read_text()
print(done, int(status.split("VmHWM:")[1].split()[0]) / 1024, time.perf_counter() - begin)
"""


@dataclass
class Bench:
    """What all measurements need.

    Attributes:
        folder: a temporary folder.
        load: the arguments of `Backbone.load`.
        backbone: the loaded model.
        size: short side of the photos and of the results in pixels.
        photos: number of photos of a run.
        tiny: whether only the program is tried.
        figures: the results by name.
    """

    folder: Path
    load: Mapping[str, Any]
    backbone: Backbone
    size: int
    photos: int
    tiny: bool
    figures: dict[str, float] = field(default_factory=dict)

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.backbone.device.type == "cuda"

    def note(self, name: str, value: float) -> None:
        """Note and print a figure."""
        self.figures[name] = round(value, 4)
        print(f"{name:<70}{value:12.3f}", flush=True)

    def order(self, name: str, photos: int | None = None, styles: int = 1, **more: Any) -> TransferOrder:
        """Return the order to repaint photos in some styles, into a folder of this name."""
        source = self.folder / f"photos-{photos or self.photos}"
        if not source.exists():
            write_photos(source, photos or self.photos, self.size)
        paintings = self.folder / f"paintings-{styles}"
        if not paintings.exists():
            write_photos(paintings, styles, self.size)
        out = str(self.folder / name)
        settings = {"size": self.size, "flatten": True}
        return TransferOrder(
            out=out, backbone=self.load, settings=settings, photos=(str(source),), styles=(str(paintings),), **more
        )


def picture(number: int, size: int) -> Image.Image:
    """Return a picture with soft shapes, always the same for a number."""
    values = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((size, size), Image.Resampling.BICUBIC)


def write_photos(folder: Path, count: int, size: int) -> None:
    """Write JPEG files into a new folder."""
    folder.mkdir()
    for number in range(count):
        picture(number, size).save(folder / f"{number:06}.jpg", quality=90)


def rate(rows: Iterable[tuple[float, Row]], total: int, first: int | None = None) -> float:
    """Return the outputs in a second without the first ones: a tenth of `total`, or `first`."""
    marks = []
    for when, row in rows:
        if row.status != "made":
            raise SystemExit(f"{row.input} was not made: {row.error or row.status}")
        marks.append(when)
    first = first or max(1, total // 10)
    return (len(marks) - first) / (marks[-1] - marks[first - 1])


def timed(order: Order, **how: Any) -> Iterator[tuple[float, Row]]:
    """Run an order; yield each row with its time."""
    for step in run_batch(order, **how):
        if step.row is not None:
            yield time.perf_counter(), step.row


def computing(bench: Bench, batch: int) -> float:
    """Return the seconds of a batch without reading and writing files."""
    backbone = bench.backbone
    photos = [read_photo(path) for path in sorted((bench.folder / f"photos-{bench.photos}").iterdir())[:batch]]
    style = {"[C]": instant_style(backbone, bench.folder / "paintings-1")}

    def paint() -> None:
        complete(paint_batch(backbone, style, {"size": bench.size}, list(range(batch)), photos=photos))

    return median_ms(paint, backbone.device, 3) / 1000


def pictures(bench: Bench) -> None:
    """Measure pictures a second against the batch size, in one process."""
    for batch in (1, 2, 4, 8, 16, 32) if bench.on_gpu else (1, 2, 4):
        order = bench.order(f"batch-{batch}", batch_size=batch)
        bench.note(f"pictures/s, batch {batch}", rate(timed(order, backbone=bench.backbone), bench.photos))
        bench.note(f"pictures/s, batch {batch}, computing alone", batch / computing(bench, batch))
    order = bench.order("webp", batch_size=8 if bench.on_gpu else 1, ending=".webp")
    bench.note("pictures/s, default batch, as WebP", rate(timed(order, backbone=bench.backbone), bench.photos))


def learning(bench: Bench) -> None:
    """Measure a step of one style, and of several together; then whole styles. `not fast` is without CUDA graphs."""
    side = bench.backbone.native_size
    paintings = [
        Photo(torch.rand(3, side, side, generator=torch.Generator().manual_seed(k)) * 2 - 1) for k in range(64)
    ]
    device, count = bench.backbone.device, 24 if bench.on_gpu else 8
    settings: dict[str, Any] = {"steps": count, "validate_every": 0}
    alone = step_ms(learn(bench.backbone, paintings[0], **settings), device)
    bench.note("learning, a step of one style, ms", alone)
    if bench.on_gpu:
        plain = Backbone.load(**bench.load, device=device, fast=False)
        bench.note(
            "learning, a step of one style, not fast, ms", step_ms(learn(plain, paintings[0], **settings), device)
        )
        del plain
    for styles in (2, 4, 8, 16, 32, 64) if bench.on_gpu else (2, 4):
        took = step_ms(learn_together(bench.backbone, paintings[:styles], **settings), device) / styles
        bench.note(f"learning, {styles} together, a step of each style, ms", took)
        bench.note(f"learning, {styles} together, times as fast as one by one", alone / took)
    styles = 16 if bench.on_gpu else 2
    whole: dict[str, Any] = {} if bench.on_gpu else {"steps": 4}
    one = seconds(partial(_learn, bench.backbone, paintings[:1], whole), device)
    together = seconds(partial(_learn, bench.backbone, paintings[:styles], whole), device) / styles
    bench.note("learning by the defaults, s a style, one by one", one)
    bench.note(f"learning by the defaults, s a style, {styles} together", together)


def _learn(backbone: Backbone, paintings: list[Photo], settings: dict[str, Any]) -> None:
    if len(paintings) == 1:
        complete(learn(backbone, paintings[0], **settings))
    else:
        complete(learn_together(backbone, paintings, **settings))


def devices(bench: Bench) -> None:
    """Measure one process for a device against one for each of two devices."""
    names = [f"cuda:{number}" for number in range(2)] if bench.on_gpu else ["cpu", "cpu"]
    if bench.on_gpu and torch.cuda.device_count() < 2:
        print("devices: there is one GPU only")
        return
    for count in (1, 2):
        order = bench.order(f"devices-{count}", bench.photos * 4 if bench.on_gpu else None)
        total = bench.photos * (4 if bench.on_gpu else 1)
        given = {"devices": names[:2]} if count == 2 else {"backbone": bench.backbone}
        bench.note(f"pictures/s, {count} devices, a process for each", rate(timed(order, **given), total))


def ray(bench: Bench) -> None:
    """Measure Ray's overhead with one worker, and two nodes on this computer against one."""
    import ray as library
    from ray.cluster_utils import Cluster

    # Rows come back chunk by chunk, and a chunk has one style: so several styles, and few photos.
    photos, styles = (64, 4) if bench.on_gpu else (4, 8)
    total, threads = photos * styles, torch.get_num_threads()
    plain = rate(timed(bench.order("plain", photos, styles), backbone=bench.backbone), total, photos)
    bench.note("pictures/s, without Ray", plain)
    for nodes, cores in ((1, threads), (1, 1), (2, 1)):
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": cores, "object_store_memory": 200_000_000})
        for _ in range(nodes - 1):
            cluster.add_node(num_cpus=cores, object_store_memory=200_000_000)
        options = RayOptions(cluster.address, num_cpus=cores, concurrency=nodes)
        found = rate(timed(bench.order(f"ray-{nodes}-{cores}", photos, styles), ray=options), total, photos * nodes)
        library.shutdown()
        cluster.shutdown()
        bench.note(f"pictures/s, Ray, {nodes} nodes of {cores} cores", found)
        if nodes == 1 and cores == threads:
            bench.note("overhead of Ray", 1 - found / plain)


@dataclass(frozen=True, kw_only=True)
class Tiny(Order):
    """An order whose outputs cost nothing: what is left is the work of the room itself."""

    photos: str

    @property
    def command(self) -> str:
        """The name of the command."""
        return "tiny"

    def chunks(self) -> Iterator[Any]:
        """Yield the chunks of a list of files."""
        from inst.batch.orders import in_chunks
        from inst.batch.sources import open_source

        return in_chunks(open_source(self.photos))

    def count(self) -> int | None:
        """The number is not needed."""
        return None

    def worker(self, backbone: Any) -> Any:
        """Return a worker that writes a small output for each input."""
        from inst.batch.worker import ChunkWorker

        class Copies(ChunkWorker[bytes, bytes]):
            def decode(self, item: Any, data: bytes) -> bytes:
                return data

            def prepare(self, loaded: Any) -> None:
                pass

            def compute(self, prepared: None, entries: Any) -> list[bytes]:
                return [entry.content or b"" for entry in entries]

            def encode(self, result: bytes, name: str) -> bytes:
                return result

        return Copies(self, backbone, ".jpg", 8)


def end_of_run(order: Order) -> int:
    """Run an order with a model that is none, and return the number of outputs."""

    class Nothing:
        fingerprint = denoiser_fingerprint = "none"
        dtype, quantize, device = torch.float32, None, torch.device("cpu")

    return complete(run_batch(order, backbone=Nothing())).made  # type: ignore[arg-type]


def memory(bench: Bench) -> None:
    """Measure the peak memory of runs with many tiny inputs, each in a process of its own."""
    for count in (100, 1000) if bench.tiny else (1_000, 10_000, 100_000):
        source = bench.folder / f"tiny-{count}"
        source.mkdir()
        for number in range(count):
            (source / f"{number:06}.jpg").write_bytes(b"%d" % number)
        given = {"path": [str(Path(__file__).parent)], "out": str(bench.folder / f"out-{count}"), "photos": str(source)}
        done = subprocess.run(
            [sys.executable, "-c", _MEMORY.format(**given)], check=True, capture_output=True, text=True
        ).stdout.split()
        bench.note(f"memory, {count} tiny inputs, MB", float(done[1]))
        bench.note(f"tiny inputs a second, {count}", int(done[0]) / float(done[2]))


PARTS: Mapping[str, Callable[[Bench], None]] = {
    "pictures": pictures,
    "learning": learning,
    "devices": devices,
    "ray": ray,
    "memory": memory,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure many pictures and many styles.")
    parser.add_argument("--out", type=Path, default=Path("scale.json"), help="JSON file to write")
    parser.add_argument("--only", default=",".join(PARTS), help=f"parts to measure, from {', '.join(PARTS)}")
    parser.add_argument("--device", help="device, such as cpu or cuda")
    parser.add_argument("--size", type=int, help="short side of the pictures in pixels (512 on a GPU, 256 on a CPU)")
    parser.add_argument("--photos", type=int, help="photos of a run (256 on a GPU, 24 on a CPU)")
    parser.add_argument("--tiny", action="store_true", help="use a tiny model, to try the program")
    options = parser.parse_args()
    device = choose_device(options.device)
    on_gpu = device.type == "cuda"
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        name = "tiny" if options.tiny else "Stable Diffusion 1.4" if on_gpu else "mini"
        load: dict[str, Any] = {"name": "mini"}
        if name != "mini":
            load = {"name": str(save(build(SIZES[name], choose_dtype(device)), folder / "model"))}
        backbone = Backbone.load(**load, device=device)
        size = options.size or (64 if options.tiny else 512 if on_gpu else 256)
        bench = Bench(folder, load, backbone, size, options.photos or (256 if on_gpu else 24), options.tiny)
        for part in options.only.split(","):
            PARTS[part](bench)
    report = {
        "device": torch.cuda.get_device_name(device) if on_gpu else f"cpu, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "model": name,
        "size": size,
        "figures": bench.figures,
    }
    write_bytes_atomically(options.out, json.dumps(report, indent=2).encode())


if __name__ == "__main__":
    main()
