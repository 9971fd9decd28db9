"""`import inst` and the command line's help must not pay for the heavy libraries."""

import subprocess
import sys

import pytest

HEAVY = ["torch", "diffusers", "transformers", "safetensors", "numpy", "PIL", "psutil", "scipy", "matplotlib"]


def loaded_after(program: str) -> list[str]:
    code = f"import sys\n{program}\nprint('loaded:', *(name for name in {HEAVY} if name in sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()[-1].split()[1:]


def test_importing_inst_imports_no_heavy_library() -> None:
    assert loaded_after("import inst; inst.InstError; inst.__version__; dir(inst)") == []


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["doctor", "--help"], ["no-such-command"]])
def test_help_version_and_wrong_commands_import_no_heavy_library(arguments: list[str]) -> None:
    program = f"""
import inst.cli
sys.argv = ["inst", *{arguments}]
try:
    inst.cli.main()
except SystemExit:
    pass
"""
    assert loaded_after(program) == []


def test_public_names_are_imported_on_first_use() -> None:
    assert loaded_after("import inst; inst.Backbone; from inst import Backbone")[:1] == ["torch"]


def test_every_public_name_exists() -> None:
    import inst

    assert set(inst.__all__) <= set(dir(inst))
    assert all(getattr(inst, name) is not None for name in inst.__all__)
    with pytest.raises(AttributeError, match="attribute Backbones"):
        _ = inst.Backbones  # type: ignore[attr-defined]


def test_the_package_ships_a_py_typed_file() -> None:
    from importlib.resources import files

    assert (files("inst") / "py.typed").is_file()
