"""Check the configuration of a part of a model, before a library builds what it says."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from inst.backbone.libraries import ModelMixin
from inst.backbone.parts import COPY_AGAIN
from inst.errors import InstError
from inst.texts import cut

LARGEST_NUMBER = 1_000_000
"""Largest width, length or vocabulary in a configuration. The libraries make tables of some of them at once."""

LARGEST_SIDE = 4096
"""Largest picture in a configuration, in pixels or latent positions of a side. It is also the size of results."""

_LAYERS = ("num_hidden_layers", "layers_per_block", "transformer_layers_per_block", "block_out_channels")
"""Entries that say how many modules there are, as a number, numbers or (channels) a list of one entry for each."""
_SIDES = ("image_size", "sample_size")
_TOKEN = ("_token_id", "_token_index")

_QUANTISED = ("quantization_config", "quantization")
_CODE = ("attn_implementation", "experts_implementation", "auto_map", "trust_remote_code", "custom_pipelines")


def without_code(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration without the entries that name code to load. transformers gets some of it from the hub."""
    return {key: value for key, value in config.items() if not key.startswith("_attn") and key not in _CODE}


def check_config(config: Mapping[str, Any], model_class: Any, path: Path | str, weights: int) -> None:
    """Check the values that a model class of diffusers or transformers takes from a configuration.

    A wrong type, a negative width or a number that is not finite gives no error in the libraries, or one after minutes:
    they first build every layer that a configuration names.

    Args:
        config: the content of `config.json`.
        model_class: the class that it is for.
        path: its file, in messages.
        weights: number of tensors in the weights. Every layer has some, so there cannot be more layers.

    Raises:
        InstError: a value has the wrong type or is out of range.
    """
    for key in _QUANTISED:
        if config.get(key):
            raise InstError(f"{path} is for quantised weights ({key})", "use the model's ordinary weights")
    for key in (*_CODE, *(key for key in config if key.startswith("_attn"))):
        value = config.get(key)
        if isinstance(value, str) and "/" in value:
            raise InstError(f"{path} asks for code from another place ({key} is {_shown(value)})", "use another model")
    defaults = _defaults(model_class)
    for key, value in config.items():
        if key in defaults:
            for entry in _entries(value):
                _check_entry(path, key, entry, defaults[key])
    layers = 1
    for key in _LAYERS:
        layers *= _most(config.get(key), count=key == "block_out_channels")
    if max(layers, _most([value for key, value in config.items() if "layers" in key])) > weights:
        raise InstError(f"{path} describes more layers than there are weights ({', '.join(_LAYERS)})", COPY_AGAIN)


def _defaults(model_class: Any) -> dict[str, Any]:
    """Return the names of the entries that a class knows, with an example of each value, or None."""
    if issubclass(model_class, ModelMixin):
        parameters = inspect.signature(model_class.__init__).parameters
        return {key: next(_entries(one.default), None) for key, one in parameters.items()}
    return {key: next(_entries(value), None) for key, value in model_class.config_class().to_dict().items()}


def _check_entry(path: Path | str, key: str, value: Any, example: Any) -> None:
    if isinstance(value, bool):
        # Where a number or a text belongs, True would count as 1.
        if isinstance(example, int | float | str) and not isinstance(example, bool):
            raise _refusal(path, key, value, "a number" if not isinstance(example, str) else "a text")
    elif isinstance(value, int | float):
        may_be_negative = key.endswith(_TOKEN) or (isinstance(value, float) and not key.endswith("eps"))
        lowest = 1 if key in _LAYERS else -LARGEST_NUMBER if may_be_negative else 0
        most = LARGEST_SIDE if key in _SIDES else LARGEST_NUMBER
        if not lowest <= value <= most:  # also for NaN
            raise _refusal(path, key, value, f"a number from {lowest:,} to {most:,}")
    elif isinstance(value, str) and isinstance(example, int | float):
        raise _refusal(path, key, value, "a number")


def _entries(value: Any) -> Iterator[Any]:
    """Yield the entries of lists in lists, or the value itself. Objects are left out: they hold names of labels."""
    if isinstance(value, list | tuple):
        for entry in value:
            yield from _entries(entry)
    elif not isinstance(value, dict):
        yield value


def _most(value: Any, *, count: bool = False) -> int:
    """Return how many layers an entry stands for: the largest number in it, or with `count` the length of the list."""
    if count:
        return max(1, len(value)) if isinstance(value, list | tuple) else 1
    return max((entry for entry in _entries(value) if isinstance(entry, int)), default=1)


def _refusal(path: Path | str, key: str, value: Any, wanted: str) -> InstError:
    return InstError(f"{path} has the {key} {_shown(value)}, not {wanted}", COPY_AGAIN)


def _shown(value: Any) -> str:
    return cut(str(value), 60)
