"""The command `inst doctor`, which checks this installation and its speed, or deletes what killed processes left."""

from __future__ import annotations

import platform
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inst.cli.places import OUTPUTS
from inst.cli.session import Session, with_session
from inst.errors import InstError, UsageError
from inst.files.holding import Leftover, sweep, sweep_below
from inst.texts import one_line
from inst.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from inst.backbone.model import Backbone

_LIBRARIES = ("torch", "diffusers", "transformers", "safetensors", "pillow")
_PIXELS = 256


@with_session
def doctor(
    session: Session,
    folders: Annotated[
        list[Path] | None,
        typer.Argument(
            help="With --clean: folders to look through, with those in them. By default outputs/, the cache folder and "
            "the folder for temporary files.",
            show_default=False,
        ),
    ] = None,
    clean: Annotated[
        bool,
        typer.Option(
            "--clean",
            help="Delete the unfinished files, temporary folders and locks that killed processes left, and check "
            "nothing. What a running process writes stays.",
        ),
    ] = False,
) -> None:
    """Check this installation, the backbone and its speed; or, with --clean, delete what killed processes left."""
    if clean:
        _clean(session, folders or [])
    elif folders:
        raise UsageError(f"{folders[0]} is not checked", "add --clean, or leave it out")
    else:
        _check(session)


def _clean(session: Session, folders: list[Path]) -> None:
    """Delete what killed processes left, and report it."""
    for folder in folders:
        if not folder.is_dir():
            raise InstError(f"{folder} is no folder", "give a folder")
    deleted: list[Leftover] = []
    places, incomplete = folders, []
    if not folders:
        from inst.evaluation.networks.weights import cache_folder

        # Only the top of the last one: what is below belongs to other programs, which may be many.
        temporary = Path(tempfile.gettempdir())
        deleted += sweep(temporary)
        folders, places = [OUTPUTS, cache_folder()], [OUTPUTS, cache_folder(), temporary]
    with session.waiting("looking for what killed processes left"):
        for folder in folders:
            found, whole = sweep_below(folder)
            deleted += found
            incomplete += [] if whole else [folder]
    for folder in incomplete:
        session.note(f"{folder} is too large to look through as a whole: give the folders in it that you want cleaned.")
    size, count = sum(one.size for one in deleted), len(deleted)
    where = ", ".join(str(place) for place in places)
    summary = (
        f"{count} deleted, {_bytes(size)} in all" if count else f"No killed process left anything in {one_line(where)}"
    )
    session.report(
        [*(f"{one_line(str(one.path))}   {_bytes(one.size)}" for one in deleted), summary],
        deleted=[{"path": str(one.path), "bytes": one.size} for one in deleted],
        bytes=size,
        folders=[str(place) for place in places],
        complete=not incomplete,
    )


def _bytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 100_000 else f"{size:,} bytes"


def _check(session: Session) -> None:
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
