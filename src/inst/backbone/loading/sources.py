"""Find a model by its name, folder or file, and read its parts."""

from __future__ import annotations

from pathlib import Path

import torch

from inst import models
from inst.backbone.devices import autoencoder_dtype
from inst.backbone.loading.folder import read_folder
from inst.backbone.loading.hub import find_model, is_hub_name
from inst.backbone.loading.single_file import read_single_file
from inst.backbone.parts import Parts
from inst.errors import Argument, InstError, UsageError, first_line
from inst.files.listing import readable_name

BUNDLED = {"mini": models.FOLDER / "mini"}
"""The models that are part of the package, by name."""

_GIVE_A_MODEL = f"give the path of a model, a bundled model ({', '.join(BUNDLED)}), or a model on the hub (owner/model)"


def find_source(name: str | Path, *, download: bool = False) -> Path:
    """Find the folder or file of a model.

    Args:
        name: the name of a bundled model; a folder or a file; or the name of a model on the hub, "owner/model" or
            "owner/model@revision". An existing path comes before a name on the hub.
        download: download a model from the hub if it is not in the cache.

    Raises:
        InstError: the model is not found.
    """
    if str(name) in BUNDLED:
        folder = BUNDLED[str(name)]
        if not folder.is_dir():
            raise InstError(
                f"The bundled model {name} is missing from this installation ({folder})", "install inst again"
            )
        return folder
    try:
        path = Path(name).expanduser()
        exists = path.exists()
    except (OSError, RuntimeError) as error:  # the name is too long, or the user of a `~user` does not exist
        reason = getattr(error, "strerror", None) or first_line(error)
        raise InstError(f"{name} is not a usable path ({reason})", _GIVE_A_MODEL) from None
    if exists:
        if readable_name(str(path)) != str(path):  # the libraries that read models refuse it
            raise InstError(f"{path} has a name that is not UTF-8", "rename it")
        return path
    # The name of a missing file is a mistake of the user, not the name of a model on the hub.
    if is_hub_name(str(name)) and path.suffix.lower() not in (".safetensors", ".ckpt"):
        return find_model(str(name), download)
    raise InstError(f"{name}: no such folder or file, and no bundled model has this name", _GIVE_A_MODEL)


def display_name(name: str | Path, source: Path) -> str:
    """Return the model's name for the user: `name` for a bundled model or one on the hub, otherwise the base name."""
    if str(name) in BUNDLED or not Path(name).expanduser().exists():
        return str(name)
    return source.resolve().name if source.is_dir() else source.stem


def read_parts(source: Path, dtype: torch.dtype, config: str | Path | None = None) -> Parts:
    """Read a model's parts, from a folder in the diffusers layout or from a single file.

    Args:
        source: the folder or file.
        dtype: the precision; for the autoencoder, see `inst.backbone.devices.autoencoder_dtype`.
        config: see `Backbone.load`.

    Raises:
        UsageError: a configuration is given for a folder, which has its own.
        InstError: the parts are incomplete or broken, or belong to another kind of model.
    """
    vae_dtype = autoencoder_dtype(dtype)
    if source.is_dir():
        if config is not None:
            raise UsageError(f"{source} is a folder with a configuration of its own", "leave out ", Argument("config"))
        return read_folder(source, dtype, vae_dtype)
    return read_single_file(source, dtype, vae_dtype, config)
