"""Where a model is found by its name, folder or file, and which reader reads it."""

from __future__ import annotations

from pathlib import Path

import torch

from inst import models
from inst.backbone.devices import autoencoder_dtype
from inst.backbone.loading.folder import read_folder
from inst.backbone.parts import Parts
from inst.errors import InstError, UsageError, first_line

BUNDLED = {"mini": models.FOLDER / "mini"}
"""The models that ship with the package, by name."""


def find_source(name: str | Path, *, download: bool = False) -> Path:
    """Find the folder or file of a model.

    Args:
        name: that of a bundled model; a folder or a file; or a model's on the hub, "owner/model" or
            "owner/model@revision". What is on the disk comes first.
        download: fetch a model of the hub that is not in the cache.

    Raises:
        InstError: there is none.
    """
    if str(name) in BUNDLED:
        folder = BUNDLED[str(name)]
        if not folder.is_dir():
            raise InstError(
                f"{folder}: the bundled model {name} is missing from this installation", "install inst again"
            )
        return folder
    try:
        path = Path(name).expanduser()
        is_there = path.exists()
    except (OSError, RuntimeError) as error:  # a name that is too long, the home of a user who is not there
        reason = getattr(error, "strerror", None) or first_line(error)
        raise InstError(f"{name} is no usable path ({reason}). Bundled: {', '.join(BUNDLED)}.") from None
    if is_there:
        return path
    from inst.backbone.loading.hub import find_model, is_hub_name

    # A file that is not there is a slip, and no name to ask the hub for.
    if is_hub_name(str(name)) and path.suffix.lower() not in (".safetensors", ".ckpt"):
        return find_model(str(name), download)
    raise InstError(
        f"{name}: no such folder or file, and no bundled model of that name. Bundled: {', '.join(BUNDLED)}; "
        f"on the model hub: owner/model."
    )


def known_as(name: str | Path, source: Path) -> str:
    """What to call the model that `name` led to: by the name that was given, or by its folder's or file's."""
    if str(name) in BUNDLED or not Path(name).expanduser().exists():
        return str(name)
    return source.resolve().name if source.is_dir() else source.stem


def read_parts(source: Path, dtype: torch.dtype, config: str | Path | None = None) -> Parts:
    """Read a model's parts, from a folder in the diffusers layout or from a single file.

    Args:
        source: the folder or file.
        dtype: the precision; the autoencoder's is `inst.backbone.devices.autoencoder_dtype`.
        config: see `Backbone.load`.

    Raises:
        UsageError: a configuration for a folder, which has its own.
        InstError: the parts are incomplete or broken, or of a model of another kind.
    """
    vae_dtype = autoencoder_dtype(dtype)
    if source.is_dir():
        if config is not None:
            raise UsageError(f"{source} is a folder with a configuration of its own", "leave the other one out")
        return read_folder(source, dtype, vae_dtype)
    from inst.backbone.loading.single_file import read_single_file

    return read_single_file(source, dtype, vae_dtype, config)
