"""The command `inst doctor`, which checks that this installation works and how fast it is."""

from __future__ import annotations

import platform
import time
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import typer

from inst.cli.session import Session, with_session
from inst.errors import InstError
from inst.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from inst.backbone.model import Backbone

_LIBRARIES = ("torch", "diffusers", "transformers", "safetensors", "pillow")
_PIXELS = 256


@with_session
def doctor(session: Session) -> None:
    """Check this installation: versions, device, memory, the backbone and its speed."""
    import torch

    from inst.backbone.devices import choose_device, choose_dtype

    chosen = choose_device(session.device)
    report: dict[str, Any] = {
        "inst": __version__,
        "python": f"{platform.python_version()} on {platform.platform()}",
        "libraries": {name: version(name) for name in _LIBRARIES},
        "device": _describe_device(chosen),
        "dtype": str(choose_dtype(chosen, session.dtype)).removeprefix("torch."),
        "memory": _measure_memory(chosen),
    }
    failure: InstError | None = None
    try:
        with torch.inference_mode():
            start = time.perf_counter()
            backbone = session.load(find_image_encoder=False)
            report["backbone"] = {"load_seconds": time.perf_counter() - start, **_describe_backbone(backbone)}
            with session.waiting("measuring the speed"):
                report["speed"] = _measure_speed(backbone)
            if backbone.fast:
                report["fast"] = _describe_fast(backbone)
    except InstError as error:
        failure = error
        report["error"] = str(error)

    session.report(_lines(report), **report)
    if failure is not None:
        if not session.as_json:
            raise failure
        raise typer.Exit(failure.exit_code)


def _describe_device(device: torch.device) -> str:
    import torch

    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({torch.get_num_threads()} threads)" if device.type == "cpu" else str(device)


def _measure_memory(device: torch.device) -> dict[str, dict[str, int]]:
    """Return the free and the total memory of the computer and of the GPU, in bytes."""
    import psutil
    import torch

    system = psutil.virtual_memory()
    memory = {"computer": {"free": system.available, "total": system.total}}
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        memory["gpu"] = {"free": free, "total": total}
    return memory


def _describe_backbone(backbone: Backbone) -> dict[str, Any]:
    parts = {
        name: sum(weight.numel() for weight in getattr(backbone, name).parameters())
        for name in ("vae", "unet", "text_encoder", "text_encoder_2", "image_encoder", "inversion")
        if getattr(backbone, name) is not None
    }
    return {"fingerprint": backbone.fingerprint, "parameters": parts}


def _describe_fast(backbone: Backbone) -> str:
    """Say what makes the backbone fast on a GPU, or why that is not possible. The speed was measured before."""
    from inst.backbone.fused import kernels

    if backbone.graphs is None:
        graphs = "no CUDA graphs (not with low memory)"
    elif backbone.graphs.problem is not None:
        graphs = f"no CUDA graphs ({backbone.graphs.problem})"
    else:
        graphs = "CUDA graphs"
    return f"{graphs}, {'no fused kernels (Triton is not installed)' if kernels() is None else 'fused kernels'}"


def _measure_speed(backbone: Backbone) -> dict[str, float]:
    """Return the seconds of one call at 256 px, batch size 1: the best of three calls after a warm-up."""
    import torch

    def best(call: Callable[[], torch.Tensor]) -> float:
        seconds = []
        for _ in range(4):
            start = time.perf_counter()
            call()
            if backbone.device.type != "cpu":
                torch.accelerator.synchronize(backbone.device)
            seconds.append(time.perf_counter() - start)
        return min(seconds[1:])

    picture = torch.zeros(1, 3, _PIXELS, _PIXELS, device=backbone.device)
    latents = backbone.encode(picture)
    text = backbone.embed_text([""])
    return {
        "encode": best(lambda: backbone.encode(picture)),
        "predict_noise": best(lambda: backbone.predict_noise(latents, 500, text)),
        "decode": best(lambda: backbone.decode(latents)),
    }


def _lines(report: dict[str, Any]) -> list[str]:
    memory = ", ".join(
        f"{place} {size['free'] / 1e9:.1f} GB free of {size['total'] / 1e9:.1f}"
        for place, size in report["memory"].items()
    )
    lines = [
        ("inst", report["inst"]),
        ("python", report["python"]),
        ("libraries", ", ".join(f"{name} {number}" for name, number in report["libraries"].items())),
        ("device", f"{report['device']}, {report['dtype']}"),
        ("memory", memory),
    ]
    if "speed" in report:
        backbone, speed = report["backbone"], report["speed"]
        millions = sum(backbone["parameters"].values()) / 1e6
        lines += [
            (
                "backbone",
                f"{millions:.1f} M parameters, fingerprint {backbone['fingerprint']}, "
                f"loaded in {backbone['load_seconds']:.1f} s",
            ),
            (
                "speed",
                f"at {_PIXELS} px: UNet call {speed['predict_noise'] * 1e3:.1f} ms, "
                f"encode {speed['encode'] * 1e3:.1f} ms, decode {speed['decode'] * 1e3:.1f} ms",
            ),
        ]
    if "fast" in report:
        lines.append(("fast", report["fast"]))
    return [f"{label:<10} {text}" for label, text in lines]
