"""The files of a model's part: configuration and safetensors weights, checked before they are used.

Pickles are never opened: nothing here can execute what a file says.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import ModelMixin
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers.utils import logging as transformers_logging

from inst.backbone.parts import AGAIN
from inst.errors import InstError, InstWarning, first_line

_SHARD = re.compile(r"[\w.-]{1,200}\.safetensors")
"""What a shard may be called: never a path, which could lead out of the model's folder."""


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises InstError where the file is missing, broken, or holds something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InstError(f"{path} is missing", AGAIN) from None
    except (OSError, ValueError, RecursionError) as error:
        raise InstError(f"{path} cannot be read ({error})", AGAIN) from None
    if not isinstance(content, dict):
        raise InstError(f"{path} holds no JSON object", AGAIN)
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
                raise InstError(f"{folder} is incomplete: {index.name} names {', '.join(missing) or 'no file'}", AGAIN)
            return shards, variant
        if single.is_file():
            return [single], variant
    pickles = sorted(path.name for ending in ("bin", "pt", "pth", "ckpt") for path in folder.glob(f"*.{ending}"))
    if pickles:
        raise InstError(
            f"{folder} holds weights as a pickle only ({', '.join(pickles)}), which can run code and is never opened",
            "get the model's safetensors files",
        )
    raise InstError(f"{folder} is incomplete: it has no {stem}.safetensors", AGAIN)


def _read_index(path: Path) -> list[Path]:
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict):
        raise InstError(f"{path} is no index of safetensors files (it has no usable weight_map)", AGAIN)
    for name in weight_map.values():
        if not isinstance(name, str) or not _SHARD.fullmatch(name):
            raise InstError(f"{path} names {name!r}, which is no safetensors file of its folder", AGAIN)
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
            raise InstError(f"{path} is damaged or no safetensors file ({error})", AGAIN) from None
        for key, kind in kinds.items():
            if kind in ("I8", "U8"):
                raise InstError(f"{path} is quantised ({key} is {kind})", "use the model's ordinary weights")
        keys |= dict.fromkeys(kinds, path)
    return keys


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


class MisfitError(InstError):
    """Weights and a configuration that do not belong together: a weight is missing, or has another shape."""


@quiet()
def build_model(
    model_class: Any, config: Mapping[str, Any], tensors: Mapping[str, Tensor], dtype: torch.dtype, source: str
) -> Any:
    """Build one part of a model around its weights: none is ever made up, and none is copied without need.

    Args:
        model_class: a model class of diffusers or of transformers.
        config: what its `config.json` holds.
        tensors: the weights in the layout of diffusers and transformers, of any precision; others are left alone.
        dtype: the precision of the model.
        source: what to call the file in messages.

    Returns:
        The model, on the CPU, in evaluation mode. Weights that have `dtype` already are those of `tensors`.

    Raises:
        MisfitError: a weight is missing, or has another shape than the configuration says.
        InstError: the configuration makes no sense, or the weights are quantised.
    """
    name = model_class.__name__
    try:
        with init_empty_weights():
            if issubclass(model_class, ModelMixin):
                model = model_class.from_config(dict(config))
            else:
                model = model_class(model_class.config_class.from_dict(dict(config)))
    except MemoryError:
        raise
    except Exception as error:  # the libraries raise anything at all over a configuration that makes no sense
        raise InstError(f"{source}: the configuration makes no {name} ({first_line(error)}).") from error

    given = {_without_prefix(key): tensor for key, tensor in tensors.items()}
    wanted: dict[str, Tensor] = model.state_dict()
    missing = sorted(key for key in wanted if _without_prefix(key) not in given)
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise MisfitError(f"{source} does not fit its configuration: the {name} would need {missing[0]}{more}.")
    weights = {}
    for key, parameter in wanted.items():
        tensor = given[_without_prefix(key)]
        if tensor.shape != parameter.shape:
            raise MisfitError(
                f"{source} does not fit its configuration: {key} of the {name} has the shape {list(tensor.shape)}, "
                f"not {list(parameter.shape)}."
            )
        if not tensor.is_floating_point():
            raise InstError(f"{source} is quantised ({key} is {tensor.dtype})", "use the model's ordinary weights")
        weights[key] = tensor.to(dtype)
    model.load_state_dict(weights, assign=True)
    return model.eval()


def _without_prefix(key: str) -> str:
    # transformers 5 has these prefixes in some of its classes, and took them out of others.
    return key.removeprefix("text_model.").removeprefix("vision_model.")


@quiet()
def load_weights(model_class: Any, folder: Path, dtype: torch.dtype) -> Any:
    """Load one part of a model, from safetensors files only and complete: no weight is ever made up.

    Args:
        model_class: a model class of diffusers, such as `AutoencoderKL`, or of transformers.
        folder: holds `config.json` and the weights: one file or several, with or without "fp16" in their names.
        dtype: the precision to load with, whatever that of the files.

    Returns:
        The model, on the CPU, in evaluation mode.

    Raises:
        InstError: a file is missing or broken, is of another class, or does not fit the configuration; or the files
            hold more than the model: then it is another.

    Warns:
        InstWarning: the files of a model of transformers hold more, which often is a head that is of no use.
    """
    config = read_json(folder / "config.json")
    from_diffusers = issubclass(model_class, ModelMixin)
    expected = model_class.__name__ if from_diffusers else model_class.config_class.model_type
    found = config.get("_class_name" if from_diffusers else "model_type")
    if found != expected:
        raise InstError(f"{folder / 'config.json'} describes {found or 'nothing'}, not the {expected} that is needed.")

    refuse_adapter(folder)
    files, variant = weight_files(folder, "diffusion_pytorch_model" if from_diffusers else "model")
    keys = read_keys(files)
    try:
        model, report = model_class.from_pretrained(
            folder,
            dtype=dtype,
            variant=variant,
            use_safetensors=True,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # reported below, in our words
            output_loading_info=True,
        )
    except MemoryError:
        raise
    except Exception as error:  # the libraries raise anything at all over a configuration that makes no sense
        raise InstError(
            f"{folder}: config.json and the weights make no {expected} ({first_line(error)})", AGAIN
        ) from error
    for key, in_file, in_config in report["mismatched_keys"]:
        raise InstError(f"{folder}: {key} has the shape {list(in_file)}, but config.json says {list(in_config)}", AGAIN)
    surplus = sorted(key for key in report["unexpected_keys"] if key in keys and _is_weight(keys[key], key))
    if surplus:
        found = f"{folder} has weights that the {expected} of its config.json has not ({_some(surplus)})"
        if from_diffusers:
            raise InstError(f"{found}: it is another model, or changed by another program", "use another")
        warnings.warn(f"{found}: they are left out.", InstWarning, stacklevel=2)
    if report["missing_keys"]:
        raise InstError(f"{files[0]} is incomplete: it has no {_some(sorted(report['missing_keys']))}", AGAIN)
    return model


def refuse_adapter(folder: Path) -> None:
    """Raise InstError for a part with an adapter beside it, which leads to other weights beside these, or elsewhere."""
    if (folder / "adapter_config.json").exists():  # transformers, with peft installed, would follow it
        raise InstError(
            f"{folder} holds an adapter beside the model (adapter_config.json)",
            "merge it into the weights, or take it out of the folder",
        )


def _some(keys: list[str]) -> str:
    return f"{keys[0]} and {len(keys) - 1} more" if len(keys) > 1 else keys[0]


def _is_weight(path: Path, key: str) -> bool:
    """Whether a tensor holds floating point numbers; counters and positions are integers."""
    with safe_open(path, "pt") as tensors:
        kind: str = tensors.get_slice(key).get_dtype()
        return kind.startswith(("F", "BF"))
