from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inst.study.creation import create_study
from study_server import write_comparison


@pytest.fixture(scope="session")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with two photos, two paintings, and results of inst, adain and gatys. Read only."""
    return write_comparison(tmp_path_factory.mktemp("comparison"))


@pytest.fixture(scope="session")
def made_studies() -> dict[str, bytes]:
    """Study files by their options."""
    return {}


@pytest.fixture
def make_study(comparison: Path, tmp_path: Path, made_studies: dict[str, bytes]) -> Callable[..., Path]:
    """Return a function that creates a study of the comparison, with the options of `create_study`."""

    def make(**options: Any) -> Path:
        path = tmp_path / "study.db"
        if path.exists() or repr(options) not in made_studies:
            list(create_study(comparison, path, **options))
            made_studies[repr(options)] = path.read_bytes()
        path.write_bytes(made_studies[repr(options)])
        return path

    return make
