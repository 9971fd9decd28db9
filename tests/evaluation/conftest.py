import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from inst.errors import InstError
from inst.registry import RegistryError
from inst.weights import cache_folder, fetch


@pytest.fixture(scope="session")
def weights_file() -> Callable[[str], Path]:
    """The file of real weights, if it is in the cache; continuous integration downloads it.

    Where no index can be reached, the test is skipped; wrong bytes or other tensors than expected fail it.
    """

    def get(name: str) -> Path:
        if not (cache_folder() / f"{name}.safetensors").is_file() and not os.environ.get("CI"):
            pytest.skip(f'not in the cache: python -c "import inst.weights as w; w.fetch({name!r})"')
        try:
            return fetch(name)
        except InstError as error:
            reason = error.__cause__  # of all that fetch can meet, only the download's failure has this one
            if not isinstance(reason, RegistryError) or "has sha256" in str(reason):
                raise
            pytest.skip(str(error))

    return get


@pytest.fixture(scope="session")
def waves() -> Callable[[int], Tensor]:
    """A smooth colour pattern [1, 3, size, size] in [-1, 1]."""

    def make(size: int) -> Tensor:
        line = torch.arange(size, dtype=torch.float64)
        y, x = torch.meshgrid(line, line, indexing="ij")
        return torch.stack([torch.sin(x / (5 + k)) * torch.cos(y / (9 - 2 * k)) for k in range(3)]).float()[None]

    return make
