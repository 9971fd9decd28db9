"""The files for containers say what the studio understands. Docker itself is not needed here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from inst.cli import app

ROOT = Path(__file__).parents[2]
INSTRUCTIONS = {
    *("ARG", "FROM", "ENV", "RUN", "WORKDIR", "COPY", "USER", "VOLUME", "EXPOSE", "HEALTHCHECK", "STOPSIGNAL"),
    "ENTRYPOINT",
}


def variables() -> set[str]:
    """The environment variables of `inst studio`."""
    command = get_command(app).commands["studio"]  # type: ignore[attr-defined]
    return {str(option.envvar) for option in command.params if option.envvar}


def instructions() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile, with continued lines joined and comments left out."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.M)
    lines = [line for line in re.sub(r"\\\n\s*", "", text).splitlines() if line.strip()]
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines]


def test_the_dockerfile_has_known_instructions_and_existing_files() -> None:
    found = instructions()
    assert {name for name, _ in found} <= INSTRUCTIONS
    for name, rest in found:
        if name == "COPY" and not rest.startswith("--from="):
            assert all((ROOT / source).exists() for source in rest.split()[:-1]), rest


def test_the_image_runs_as_a_user_of_its_own_with_a_check_of_its_health() -> None:
    last = dict(instructions())
    assert last["USER"] == "inst"
    assert "/healthz" in last["HEALTHCHECK"]
    assert last["ENTRYPOINT"] == '["inst", "studio"]'
    assert last["VOLUME"] == "/data"


def test_the_dockerfile_sets_variables_that_the_command_knows() -> None:
    used = set(re.findall(r"INST_STUDIO_[A-Z_]+", (ROOT / "Dockerfile").read_text()))
    assert used <= variables()


def test_what_the_dockerfile_copies_is_not_ignored() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {
        source
        for name, rest in instructions()
        if name == "COPY" and not rest.startswith("--from=")
        for source in rest.split()[:-1]
    }
    assert copied == kept


def test_compose_starts_one_studio_with_a_token_on_this_computer_only() -> None:
    yaml = pytest.importorskip("yaml")
    content: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
    assert {tuple(service["profiles"]) for service in content["services"].values()} == {("cpu",), ("gpu",)}
    for service in content["services"].values():
        assert set(service["environment"]) <= variables()
        assert service["environment"]["INST_STUDIO_TOKEN_FILE"].startswith("/run/secrets/")
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        assert all(volume.split(":")[0] in content["volumes"] for volume in service["volumes"])
        assert all(secret in content["secrets"] for secret in service["secrets"])
        assert service["build"]["context"] == "."
