"""The files of a model's part: configuration and safetensors weights, checked before they are used.

Pickles are never opened: nothing here can execute what a file says.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError, safe_open
from transformers.utils import logging as transformers_logging

from inst.backbone import FeatureExtractor
from inst.errors import InstError

AGAIN = "copy or download the model again"
"""The remedy for every file that is missing or broken."""

_SHARD = re.compile(r"[\w.-]{1,200}\.safetensors")
"""What a shard may be called: never a path, which could lead out of the model's folder."""


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises InstError where the file is missing, broken, or holds something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InstError(f"{path} is missing; {AGAIN}.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InstError(f"{path} cannot be read ({error}); {AGAIN}.") from None
    if not isinstance(content, dict):
        raise InstError(f"{path} holds no JSON object; {AGAIN}.")
    return content


def find_folder(name: str | Path) -> Path | None:
    """Return the folder of a name, `~` being the user's own; None where there is none, whatever the name."""
    try:
        folder = Path(name).expanduser()
        return folder if folder.is_dir() else None
    except (OSError, RuntimeError):  # a name that is too long, the home of a user who is not there
        return None


def weight_files(folder: Path, stem: str) -> tuple[list[Path], str | None]:
    """Find the safetensors files of a part: one or several shards, and the variant in their names ("fp16" or None).

    Args:
        folder: the part's folder.
        stem: the file name without variant and ending: "model", or "diffusion_pytorch_model".

    Raises:
        InstError: a file is missing, or there are pickles only.
    """
    for variant in (None, "fp16"):
        dot = f".{variant}" if variant else ""
        single = folder / f"{stem}{dot}.safetensors"
        index = folder / f"{stem}.safetensors.index{dot}.json"
        if index.is_file():
            shards = _read_index(index)
            missing = [shard.name for shard in shards if not shard.is_file()]
            if missing or not shards:
                raise InstError(
                    f"{folder} is incomplete: {index.name} names {', '.join(missing) or 'no file'}; {AGAIN}."
                )
            return shards, variant
        if single.is_file():
            return [single], variant
    pickles = sorted(path.name for ending in ("bin", "pt", "pth", "ckpt") for path in folder.glob(f"*.{ending}"))
    if pickles:
        raise InstError(
            f"{folder} holds weights as a pickle only ({', '.join(pickles)}), which can run code and is never opened: "
            f"get the model's safetensors files."
        )
    raise InstError(f"{folder} is incomplete: it has no {stem}.safetensors; {AGAIN}.")


def _read_index(path: Path) -> list[Path]:
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict):
        raise InstError(f"{path} is no index of safetensors files (it has no usable weight_map); {AGAIN}.")
    for name in weight_map.values():
        if not isinstance(name, str) or not _SHARD.fullmatch(name):
            raise InstError(f"{path} names {name!r}, which is no safetensors file of its folder; {AGAIN}.")
    return sorted({path.parent / name for name in weight_map.values()})


def read_keys(files: list[Path]) -> dict[str, Path]:
    """Read the headers: which file holds which tensor.

    Raises:
        InstError: a file is truncated, foreign or quantised: the libraries would take integers for the weights.
    """
    keys: dict[str, Path] = {}
    for path in files:
        try:
            with safe_open(path, "pt") as weights:
                kinds = {key: weights.get_slice(key).get_dtype() for key in weights.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise InstError(f"{path} is damaged or no safetensors file ({error}); {AGAIN}.") from None
        for key, kind in kinds.items():
            if kind in ("I8", "U8"):
                raise InstError(f"{path} is quantised ({key} is {kind}): use the model's ordinary weights.")
        keys |= dict.fromkeys(kinds, path)
    return keys


def read_feature_extractor(path: Path, side: int) -> FeatureExtractor:
    """Read what an image encoder that takes `side` x `side` pixels wants to see.

    Raises:
        InstError: a value is missing, makes no sense, or is another side.
    """
    config = read_json(path)
    try:
        crop = config["crop_size"]
        size = crop if isinstance(crop, int) else crop["height"]
    except (KeyError, TypeError):
        raise InstError(f"{path} has no usable crop_size; {AGAIN}.") from None
    if size != side:
        raise InstError(f"{path} makes pictures of {size} px, but the image encoder takes {side} px.")
    mean, std = _read_channels(path, config, "image_mean"), _read_channels(path, config, "image_std")
    if min(std) <= 0:
        raise InstError(f"{path} has the image_std {list(std)}, which is not positive; {AGAIN}.")
    return FeatureExtractor(size, mean, std)


def _read_channels(path: Path, config: dict[str, Any], name: str) -> tuple[float, float, float]:
    match config.get(name):
        case [int() | float() as red, int() | float() as green, int() | float() as blue] if all(
            map(math.isfinite, (red, green, blue))
        ):
            return red, green, blue
        case other:
            raise InstError(f"{path} has the {name} {other!r}, not a number for each of three colours; {AGAIN}.")


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the libraries' progress bars and their remarks on unused keys; what matters is checked below."""
    libraries = (diffusers_logging, transformers_logging)
    levels = [library.get_verbosity() for library in libraries]
    bars = [library.is_progress_bar_enabled() for library in libraries]
    for library in libraries:
        library.set_verbosity(library.CRITICAL)
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, level, bar in zip(libraries, levels, bars, strict=True):
            library.set_verbosity(level)
            if bar:
                library.enable_progress_bar()
