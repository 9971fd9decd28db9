from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inst.study.creation import create_study
from study_server import write_comparison


@pytest.fixture(scope="session")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two photos, two paintings, and the results of inst, adain and gatys. Read only."""
    return write_comparison(tmp_path_factory.mktemp("comparison"))


@pytest.fixture(scope="session")
def made_studies() -> dict[str, bytes]:
    """Files of studies by the options they were made with."""
    return {}


@pytest.fixture
def make_study(comparison: Path, tmp_path: Path, made_studies: dict[str, bytes]) -> Callable[..., Path]:
    """Makes a study of the comparison, with the options of `create_study`."""

    def make(**options: Any) -> Path:
        path = tmp_path / "study.db"
        if path.exists() or repr(options) not in made_studies:
            list(create_study(comparison, path, **options))
            made_studies[repr(options)] = path.read_bytes()
        path.write_bytes(made_studies[repr(options)])
        return path

    return make
