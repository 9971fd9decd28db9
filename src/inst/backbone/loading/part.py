"""Read the files of one part of a model: the configuration and the safetensors weights, which are checked before use.

Pickles are never opened, so no code in a file can run.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers.utils import logging as diffusers_logging
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers.utils import logging as transformers_logging

from inst.backbone.libraries import ModelMixin
from inst.backbone.loading.configuration import check_config, without_code
from inst.backbone.parts import COPY_AGAIN
from inst.errors import InstError, InstWarning, first_line
from inst.files import reading
from inst.files.git_lfs import refuse_pointer
from inst.files.reading import check_regular
from inst.files.tensors import is_real, open_tensors
from inst.texts import cut

_SHARD = re.compile(r"[\w.-]{1,200}\.safetensors")
"""A valid file name of a shard. Paths are not allowed, because they could lead out of the model's folder."""

_VARIANT = r"(?![\w-]*-\d+-of-\d+)[\w-]+"
"""A variant in a file name, but not the number of a shard behind one."""
_PRECISIONS = ("", "fp32", "fp16", "bf16")
"""Variants by their precision, the finest first."""

_CONFIGURATION_BYTES = 4 * 2**20
_QUANTISED = ("I8", "U8", "F4", "F6", "F8_E8M0", "C")
"""How the types of numbers begin that are no weights. PyTorch would take integers for them, or fail at the others."""

FITTING_CONFIGURATION = "use the configuration that belongs to the weights"
"""The remedy of `MisfitError`."""


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises InstError if the file is missing, broken or a pointer, or is not a JSON object."""
    refuse_pointer(path)
    if not os.path.exists(path):
        raise InstError(f"{path} is missing", COPY_AGAIN)
    try:
        check_regular(path)
        content = reading.read_json(path, _CONFIGURATION_BYTES, finite=True)
    except InstError as error:
        raise InstError(error.problem, COPY_AGAIN) from None
    if not isinstance(content, dict):
        raise InstError(f"{path} is not a JSON object", COPY_AGAIN)
    return content


def find_folder(name: str | Path) -> Path | None:
    """Return the folder with this name, or None if it does not exist. `~` means the user's home folder."""
    try:
        folder = Path(name).expanduser()
        return folder if folder.is_dir() else None
    except (OSError, RuntimeError):  # the name is too long, or the user of a `~user` does not exist
        return None


def find_variants(names: Iterable[str], stem: str) -> list[str]:
    """Return the variants of a part's safetensors weights, the one to prefer first; "" is the set without a variant.

    The set without a variant has full precision, and the weights averaged over training (EMA). Of the others, whole
    precision comes first, and weights that are not averaged ("non_ema") last.

    Args:
        names: file names, as diffusers gives them: `STEM.safetensors` or `STEM.VARIANT.safetensors`; or, of weights in
            several files, `STEM.safetensors.index.json` or `STEM.safetensors.index.VARIANT.json`.
        stem: "model", or "diffusion_pytorch_model"; with a folder before it, if the names have one.
    """
    start = re.escape(stem)
    form = re.compile(rf"{start}(\.{_VARIANT})?\.safetensors|{start}\.safetensors\.index(\.{_VARIANT})?\.json")
    found = {(match[1] or match[2] or "").removeprefix(".") for match in map(form.fullmatch, names) if match}

    def rank(variant: str) -> tuple[bool, int, str]:
        known = _PRECISIONS.index(variant) if variant in _PRECISIONS else len(_PRECISIONS)
        return variant.startswith(("non_ema", "non-ema")), known, variant

    return sorted(found, key=rank)


def variant_files(stem: str, variant: str) -> tuple[str, str]:
    """Return the file name of a variant's weights, and that of their index if they are in several files."""
    dot = f".{variant}" if variant else ""
    return f"{stem}{dot}.safetensors", f"{stem}.safetensors.index{dot}.json"


def weight_files(folder: Path, stem: str) -> tuple[list[Path], str | None]:
    """Find the safetensors files of a part: one or several shards, and the variant ("fp16" or None) in their names.

    Of several variants, the first one of `find_variants` is taken.

    Args:
        folder: the part's folder.
        stem: the file name without variant and ending: "model", or "diffusion_pytorch_model".

    Raises:
        InstError: a file is missing, or the only weights are pickles.
    """
    variants = find_variants((path.name for path in folder.glob(f"{stem}.*") if path.is_file()), stem)
    if variants:
        single, index = (folder / name for name in variant_files(stem, variants[0]))
        shards = read_index(index) if index.is_file() else [single]
        if missing := [shard.name for shard in shards if not shard.is_file()]:
            raise InstError(f"{folder} is incomplete ({index.name} names {', '.join(missing)})", COPY_AGAIN)
        return shards, variants[0] or None
    pickles = sorted(path.name for ending in ("bin", "pt", "pth", "ckpt") for path in folder.glob(f"*.{ending}"))
    if pickles:
        raise InstError(
            f"{folder} has weights only as a pickle ({', '.join(pickles)}), which can run code and is never opened",
            "use the model's safetensors files",
        )
    raise InstError(f"{folder} is incomplete (it has no {stem}.safetensors)", COPY_AGAIN)


def warn_of_variants(folder: Path, stem: str) -> None:
    """Warn if a part has weights in several variants, and none of them is the one without a variant."""
    chosen, *others = find_variants((path.name for path in folder.iterdir()), stem) or [""]
    if chosen and others:
        warnings.warn(
            InstWarning(
                f"{folder} has weights in the variants {', '.join([chosen, *others])}, and {chosen} is used",
                "to use another one, move the files of the others away",
            ),
            stacklevel=3,
        )


def read_index(path: Path) -> list[Path]:
    """Read the names of the shards from an index of safetensors files. The shards are in the folder of the index.

    Raises:
        InstError: the index is broken or names no shard.
    """
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict):
        raise InstError(f"{path} is not an index of safetensors files (it has no usable weight_map)", COPY_AGAIN)
    for name in weight_map.values():
        if not isinstance(name, str) or not _SHARD.fullmatch(name):
            raise InstError(
                f"{path} names {cut(repr(name), 60)}, which is not a safetensors file in its folder", COPY_AGAIN
            )
    if not weight_map:
        raise InstError(f"{path} names no file", COPY_AGAIN)
    return sorted({path.parent / name for name in weight_map.values()})


def read_keys(files: list[Path]) -> dict[str, Path]:
    """Read the headers of safetensors files, and return the file of each tensor by the tensor's name.

    Raises:
        InstError: a file is truncated, not a safetensors file, a pointer of git LFS, or quantised; the libraries would
            use the integers as weights.
    """
    keys: dict[str, Path] = {}
    for path in files:
        refuse_pointer(path)
        with open_tensors(path, COPY_AGAIN) as weights:
            keys |= dict.fromkeys(check_kinds(path, weights), path)
    return keys


def check_kinds(path: Path, weights: Any) -> list[str]:
    """Return the names of the tensors in an open safetensors file. Raises InstError if one is quantised."""
    names: list[str] = list(weights.keys())
    for name in names:
        kind: str = weights.get_slice(name).get_dtype()
        if kind.startswith(_QUANTISED):
            raise InstError(f"{path} is quantised ({cut(name, 200)} is {kind})", "use the model's ordinary weights")
    return names


@contextmanager
def silence_libraries() -> Iterator[None]:
    """Silence the progress bars of diffusers and transformers, and their warnings of unused keys (checked here)."""
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


@contextmanager
def _translate_library_errors(problem: str, remedy: str) -> Iterator[None]:
    """Turn every exception of a library into an InstError with the library's reason; a MemoryError stays.

    The libraries raise anything at all for a damaged file or for a configuration that makes no sense.
    """
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        raise InstError(f"{problem} ({first_line(error)})", remedy) from error


class MisfitError(InstError):
    """Weights and a configuration do not fit together: a weight is missing, or has another shape."""


@silence_libraries()
def build_model(
    model_class: Any, config: Mapping[str, Any], tensors: Mapping[str, Tensor], dtype: torch.dtype, source: str
) -> Any:
    """Build one part of a model from its weights. Missing weights are never initialised.

    Args:
        model_class: a model class of diffusers or transformers.
        config: the content of its `config.json`.
        tensors: the weights in the layout of diffusers and transformers, in any precision; unknown ones are ignored.
        dtype: the precision of the model.
        source: the file's name in messages.

    Returns:
        The model, on the CPU, in evaluation mode. Weights that already have `dtype` are not copied.

    Raises:
        MisfitError: a weight is missing, or its shape does not fit the configuration.
        InstError: the configuration is invalid, or the weights are quantised.
    """
    name = model_class.__name__
    check_config(config, model_class, f"The configuration of {source}", len(tensors))
    problem = f"{source} has a configuration that is not valid for {name}"
    with _translate_library_errors(problem, FITTING_CONFIGURATION):
        model = _empty_model(model_class, config)

    available = {_without_prefix(key): tensor for key, tensor in tensors.items()}
    wanted: dict[str, Tensor] = model.state_dict()
    missing = sorted(key for key in wanted if _without_prefix(key) not in available)
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise MisfitError(
            f"{source} does not fit its configuration (the {name} needs {missing[0]}{more})", FITTING_CONFIGURATION
        )
    weights = {}
    for key, parameter in wanted.items():
        tensor = available[_without_prefix(key)]
        if tensor.shape != parameter.shape:
            raise MisfitError(
                f"{source} does not fit its configuration ({key} of the {name} has the shape {list(tensor.shape)}, "
                f"not {list(parameter.shape)})",
                FITTING_CONFIGURATION,
            )
        if not is_real(tensor):
            raise InstError(f"{source} is quantised ({key} is {tensor.dtype})", "use the model's ordinary weights")
        weights[key] = tensor.to(dtype)
    model.load_state_dict(weights, assign=True)
    return model.eval()


class _WithoutRandomNumbers(TorchFunctionMode):
    """Initialises no weight at random: the weights are read from files. On the device "meta", random numbers also
    import PyTorch's compiler, which takes half a second."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        if getattr(func, "__name__", "").endswith(("normal_", "uniform_")):
            return args[0] if args else named["tensor"]
        return func(*args, **named)


def _empty_model(model_class: Any, config: Mapping[str, Any]) -> Any:
    """Return a model without weights, from the content of its `config.json`."""
    with init_empty_weights(), _WithoutRandomNumbers():
        if issubclass(model_class, ModelMixin):
            return model_class.from_config(dict(config))
        return model_class(model_class.config_class.from_dict(without_code(config)))


def _without_prefix(key: str) -> str:
    # transformers 5 uses these prefixes in some classes and removed them from others.
    return key.removeprefix("text_model.").removeprefix("vision_model.")


@silence_libraries()
def load_weights(model_class: Any, folder: Path, dtype: torch.dtype) -> Any:
    """Load one part of a model, only from safetensors files. Missing weights are never initialised.

    Args:
        model_class: a model class of diffusers, such as `AutoencoderKL`, or of transformers.
        folder: the folder with `config.json` and the weights: one file or several, of any variant.
        dtype: the precision of the loaded model; the files may have another one.

    Returns:
        The model, on the CPU, in evaluation mode.

    Raises:
        InstError: a file is missing or broken, belongs to another class, or does not fit the configuration; or the
            files of a diffusers model have weights that the model does not have.

    Warns:
        InstWarning: the weights are there in several variants only (`warn_of_variants`); or the files of a transformers
            model have more weights, often those of a head that is not needed.
    """
    config = read_json(folder / "config.json")
    from_diffusers = issubclass(model_class, ModelMixin)
    expected = model_class.__name__ if from_diffusers else model_class.config_class.model_type
    found = config.get("_class_name" if from_diffusers else "model_type")
    if found != expected:
        raise InstError(
            f"{folder / 'config.json'} describes {cut(str(found or 'nothing'), 60)}, not the {expected} that is needed",
            "use another model",
        )

    refuse_adapter(folder)
    stem = "diffusion_pytorch_model" if from_diffusers else "model"
    files, variant = weight_files(folder, stem)
    warn_of_variants(folder, stem)
    keys = read_keys(files)
    check_config(config, model_class, folder / "config.json", len(keys))
    with _translate_library_errors(f"{folder}: config.json or the weights are not valid for {expected}", COPY_AGAIN):
        if from_diffusers:
            model, report = model_class.from_pretrained(
                folder,
                dtype=dtype,
                variant=variant,
                use_safetensors=True,
                local_files_only=True,
                ignore_mismatched_sizes=True,  # reported below
                output_loading_info=True,
            )
        else:
            model, report = _load_transformers_model(model_class, config, keys, dtype)
            model.config.name_or_path = str(folder)
    for key, in_file, in_config in report["mismatched_keys"]:
        raise InstError(
            f"{folder}: {key} has the shape {list(in_file)}, but config.json says {list(in_config)}", COPY_AGAIN
        )
    surplus = sorted(key for key in report["unexpected_keys"] if key in keys and _is_weight(keys[key], key))
    if surplus:
        problem = f"{folder} has weights that the {expected} of its config.json does not have ({_some(surplus)})"
        if from_diffusers:
            raise InstError(f"{problem}, so it is another model or was changed by another program", "use another model")
        warnings.warn(f"{problem}; they are ignored.", InstWarning, stacklevel=2)
    if report["missing_keys"]:
        raise InstError(f"{files[0]} is incomplete (it has no {_some(sorted(report['missing_keys']))})", COPY_AGAIN)
    return model


def _load_transformers_model(
    model_class: Any, config: Mapping[str, Any], keys: Mapping[str, Path], dtype: torch.dtype
) -> tuple[Any, dict[str, list[Any]]]:
    """Do what `from_pretrained` does for a model of transformers, which imports distributed checkpoints and peft.

    Returns the model, and the report that diffusers' `from_pretrained` gives.
    """
    tensors: dict[str, Tensor] = {}
    for path in set(keys.values()):
        with open_tensors(path) as weights:
            tensors |= {key: weights.get_tensor(key) for key in weights.keys()}  # noqa: SIM118
    model = _empty_model(model_class, config)
    names = {_without_prefix(key): key for key in model.state_dict()}
    shapes = {key: tensor.shape for key, tensor in model.state_dict().items()}
    found = {names[_without_prefix(key)]: tensor for key, tensor in tensors.items() if _without_prefix(key) in names}
    report: dict[str, list[Any]] = {
        "missing_keys": [key for key in shapes if key not in found],
        "unexpected_keys": [key for key in tensors if _without_prefix(key) not in names],
        "mismatched_keys": [(k, found[k].shape, shapes[k]) for k in found if found[k].shape != shapes[k]],
    }
    if not report["missing_keys"] and not report["mismatched_keys"]:
        model.load_state_dict({key: tensor.to(dtype) for key, tensor in found.items()}, assign=True)
    return model.eval(), report


def refuse_adapter(folder: Path) -> None:
    """Raise InstError if a part's folder contains an adapter, because an adapter loads other weights."""
    if (folder / "adapter_config.json").exists():  # with peft installed, transformers would load the adapter
        raise InstError(
            f"{folder} contains an adapter in addition to the model (adapter_config.json)",
            "merge it into the weights, or remove it from the folder",
        )


def _some(keys: list[str]) -> str:
    return f"{keys[0]} and {len(keys) - 1} more" if len(keys) > 1 else keys[0]


def _is_weight(path: Path, key: str) -> bool:
    """Return whether a tensor has floating point numbers; counters and positions are integers."""
    with open_tensors(path) as tensors:
        kind: str = tensors.get_slice(key).get_dtype()
        return kind.startswith(("F", "BF"))
