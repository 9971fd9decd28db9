"""Measure a model of the size of Stable Diffusion 1.4 on a GPU, beside diffusers alone, as a table and as JSON.

    python benchmarks/gpu.py [--out gpu.json] [--device cuda] [--dtype bfloat16] [--repeats 5] [--only PART,...]

The weights are random (`models.py`), pictures are 512 px. Times are medians of warm runs, and wait for the GPU.
Launching kernels takes three times as long on one host as on another, so compare only within one report: the rows
"diffusers" are the same work with diffusers alone (`plain.py`), and the rows "not fast" are without CUDA graphs, fused
kernels and the channels-last layout, both measured in the same run with a copy of the same model. --tiny uses a model
that is a thousand times smaller, to try the program on a CPU.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import plain
import torch
from models import SIZES, build
from timing import median_ms, peak_gb, seconds, step_ms
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from inst.backbone.devices import choose_device, choose_dtype
from inst.backbone.model import Backbone
from inst.backbone.parts import Parts
from inst.backbone.text import TextEmbedding
from inst.files.writing import write_bytes_atomically
from inst.learning.data import denoising_loss
from inst.learning.loop import Learning, learn
from inst.pictures.reading import Photo, read_photo
from inst.pictures.stored import encode_painting
from inst.pictures.tensors import to_image
from inst.pictures.writing import save_picture
from inst.runs import complete
from inst.styles.style import Style
from inst.synthesis.from_photo import transfer
from inst.synthesis.from_prompt import generate

STEPS = 35
PLAIN_STEPS, PLAIN_STRENGTH = 50, 0.7  # diffusers runs 0.7 x 50 = 35 of them


@dataclass
class Bench:
    """The model, the inputs and the figures so far.

    Attributes:
        parts: the parts of the model.
        backbone: the model.
        plain: a copy of the model, loaded without `fast`.
        style: a style with random vectors and a painting.
        photo: [3, S, S] in [-1, 1], S the native size.
        batches: the batch sizes to measure.
        repeats: number of runs of which the median is taken.
        figures: the results by name; milliseconds unless the name says otherwise.
    """

    parts: Parts
    backbone: Backbone
    plain: Backbone
    style: Style
    photo: Tensor
    batches: tuple[int, ...]
    repeats: int
    figures: dict[str, float] = field(default_factory=dict)

    def ms(self, name: str, call: Callable[[], Any]) -> None:
        """Measure a call, and note its time."""
        self.note(name, median_ms(call, self.backbone.device, self.repeats))

    def note(self, name: str, value: float) -> None:
        """Note and print a figure."""
        self.figures[name] = round(value, 3)
        print(f"{name:<60}{value:12.2f}", flush=True)

    def photos(self, batch: int) -> Tensor:
        """Return a batch of photos, [B, 3, S, S]."""
        return self.photo.expand(batch, -1, -1, -1)

    def transfer(self, batch: int = 1, *, backbone: Backbone | None = None, **settings: Any) -> Any:
        """Transfer the style to a batch of photos, as users do it."""
        given: dict[str, Any] = {"strength": PLAIN_STRENGTH, "tone": "none", "style_attention": 0.0, **settings}
        model = backbone or self.backbone
        return complete(transfer(model, self.photos(batch), self.style, size=self.photo.shape[1], **given))

    def learn(self, batch: int, steps: int, *, backbone: Backbone | None = None, **settings: Any) -> Learning:
        """Learn a style from the photo, without validation if not asked for."""
        given = {"validate_every": 0, **settings}
        return learn(backbone or self.backbone, [Photo(self.photo)], steps=steps, batch_size=batch, **given)


def ceiling(bench: Bench) -> None:
    """Measure the arithmetic that the device reaches with large matrices, in TFLOP/s."""
    side = 8192 if bench.backbone.device.type == "cuda" else 256
    matrix = torch.randn(side, side, device=bench.backbone.device, dtype=bench.backbone.dtype)
    took = median_ms(lambda: matrix @ matrix, bench.backbone.device, 20)
    bench.note("matrix ceiling, TFLOP/s", 2 * side**3 / took / 1e9)


def stages(bench: Bench) -> None:
    """Measure each stage alone."""
    backbone = bench.backbone
    words = {"[C]": bench.style.vectors}
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder) / "picture.png"
        bench.ms("picture out", lambda: save_picture(bench.photo, path))
        bench.ms("picture in", lambda: read_photo(path).picture.to(backbone.device))
        bench.ms("text", lambda: backbone.embed_text(["[C]"], words))
        bench.ms("image encoder, batch 8", lambda: backbone.embed_picture(bench.photos(8)))
        text = backbone.embed_text(["[C]"], words)
        for batch in bench.batches:
            networks(bench, text, batch)


def networks(bench: Bench, text: TextEmbedding, batch: int) -> None:
    """Measure autoencoder and UNet for one batch."""
    backbone, photos = bench.backbone, bench.photos(batch)
    latents, times, end = backbone.encode(photos), torch.full((batch,), 500), f", batch {batch}"

    def both_ways() -> None:
        with torch.enable_grad():
            tokens = text.tokens.detach().requires_grad_(True)
            embedding = TextEmbedding(tokens, text.pooled).expand(batch)
            denoising_loss(backbone, embedding, latents, latents, times).mean().backward()

    bench.ms(f"autoencoder, encode{end}", lambda: backbone.encode(photos))
    bench.ms(f"autoencoder, decode{end}", lambda: backbone.decode(latents))
    bench.ms(f"UNet, forward{end}", lambda: backbone.predict_noise(latents, times, text))
    bench.ms(f"UNet, forward and backward{end}", both_ways)
    with FlopCounterMode(display=False) as counter:  # it sees no operation in the replay of a graph
        bench.plain.predict_noise(latents, times, text)
    bench.note(f"UNet, forward{end}, TFLOP/s", counter.get_total_flops() / bench.figures[f"UNet, forward{end}"] / 1e9)


def pictures(bench: Bench) -> None:
    """Measure transfer and generation as a whole: with the steps of diffusers, and with our defaults."""
    for batch in bench.batches:
        pictures_of(bench, batch)


def pictures_of(bench: Bench, batch: int) -> None:
    """Measure transfer and generation for one batch."""
    backbone = bench.backbone
    with_photo, from_text = plain.image_to_image(bench.plain), plain.text_to_image(bench.plain)
    photos, prompts = [to_image(bench.photo)] * batch, ["a painting"] * batch
    given: Mapping[str, Any] = {"guidance_scale": 7.5, "num_inference_steps": PLAIN_STEPS, "strength": PLAIN_STRENGTH}
    same: Mapping[str, Any] = {"guidance": 7.5, "steps": STEPS, "solver": "ddim", **plain.SAMPLING}
    end = f", batch {batch}"
    bench.ms(f"diffusers, photo, {STEPS} steps{end}", lambda: with_photo(prompts, photos, **given))
    bench.ms(f"transfer, {STEPS} steps, not fast{end}", lambda: bench.transfer(batch, backbone=bench.plain, **same))
    bench.ms(f"transfer, {STEPS} steps{end}", lambda: bench.transfer(batch, **same))
    bench.ms(f"transfer, {STEPS} steps, attention{end}", lambda: bench.transfer(batch, style_attention=1.0, **same))
    bench.ms(
        f"transfer, defaults{end}", lambda: bench.transfer(batch, strength=0.3, style_attention=1.0, tone="painting")
    )
    bench.ms(
        f"diffusers, prompt, {STEPS} steps{end}",
        lambda: from_text(prompts, guidance_scale=7.5, num_inference_steps=STEPS),
    )
    bench.ms(
        f"generate, {STEPS} steps{end}",
        lambda: complete(generate(backbone, ["[C]"] * batch, bench.style, style_attention=0.0, **same)),
    )


def learning(bench: Bench) -> None:
    """Measure learning: a step for each batch, and a whole style."""
    device = bench.backbone.device
    count = 4 + 4 * bench.repeats
    for batch in bench.batches:
        bench.note(
            f"diffusers, learning step, batch {batch}",
            step_ms(plain.learn(bench.plain, bench.photo, batch, count), device),
        )
        before = bench.learn(batch, count, backbone=bench.plain)
        bench.note(f"learning step, not fast, batch {batch}", step_ms(before, device))
        bench.note(f"learning step, batch {batch}", step_ms(bench.learn(batch, count), device))
    steps = 500 if device.type == "cuda" else 4
    bench.note(f"a style of {steps} steps, batch 1, s", seconds(lambda: complete(bench.learn(1, steps)), device))
    with_validation: dict[str, Any] = {"validate_every": 25, "patience": steps}
    whole = seconds(lambda: complete(bench.learn(1, steps, **with_validation)), device)
    bench.note(f"a style of {steps} steps with validation, batch 1, s", whole)


def memory(bench: Bench) -> None:
    """Measure the peak memory of transfer and learning, with and without low memory."""
    backbone = bench.backbone
    for part in vars(bench.plain).values():
        if isinstance(part, nn.Module):
            part.to("cpu")
    # In this order, because the changes of low memory to the parts are permanent.
    for name, low in (("", False), (", low memory", True)):
        bench.backbone = Backbone.of(bench.parts, backbone.device, backbone.dtype, "benchmark", low_memory=low)
        gc.collect()  # the graphs of the one before
        for what, call in (("transfer", bench.transfer), ("learning, batch 2", lambda: complete(bench.learn(2, 4)))):
            peak = peak_gb(call, backbone.device)
            if peak is not None:
                bench.note(f"memory, {what}{name}, GB", peak)
            bench.note(f"{what}{name}, s", seconds(call, backbone.device))


PARTS: Mapping[str, Callable[[Bench], None]] = {
    "ceiling": ceiling,
    "stages": stages,
    "pictures": pictures,
    "learning": learning,
    "memory": memory,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure a model of full size on a GPU, beside diffusers alone.")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="JSON file to write")
    parser.add_argument("--device", help="device, such as cpu or cuda")
    parser.add_argument("--dtype", help="float32, bfloat16 or float16")
    parser.add_argument("--repeats", type=int, default=5, help="runs of which the median is taken (default 5)")
    parser.add_argument("--only", default=",".join(PARTS), help=f"parts to measure, from {', '.join(PARTS)}")
    parser.add_argument("--batches", help="batch sizes (default 1,2,8,32)")
    parser.add_argument("--tiny", action="store_true", help="use a tiny model, to try the program")
    options = parser.parse_args()
    device = choose_device(options.device)
    dtype = choose_dtype(device, options.dtype)
    name = "tiny" if options.tiny else "Stable Diffusion 1.4"
    parts = build(SIZES[name], dtype)
    plain_backbone = Backbone.of(copy.deepcopy(parts), device, dtype, name, fast=False)
    backbone = Backbone.of(parts, device, dtype, name)
    picture = (
        torch.rand(3, backbone.native_size, backbone.native_size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    )
    style = Style(backbone.token_table[:8], backbone.fingerprint, paintings=(encode_painting(picture),))
    batches = tuple(map(int, (options.batches or ("1,2" if options.tiny else "1,2,8,32")).split(",")))
    bench = Bench(parts, backbone, plain_backbone, style, picture, batches, options.repeats)
    begin = time.perf_counter()
    for part in options.only.split(","):
        PARTS[part](bench)
    report = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "torch": torch.__version__,
        "dtype": str(dtype).removeprefix("torch."),
        "sizes": name,
        "million_parameters": {
            kind: round(sum(weight.numel() for weight in part.parameters()) / 1e6, 1)
            for kind, part in vars(parts).items()
            if isinstance(part, nn.Module)
        },
        "seconds": round(time.perf_counter() - begin),
        "figures": bench.figures,
    }
    write_bytes_atomically(options.out, json.dumps(report, indent=2).encode())


if __name__ == "__main__":
    main()
