"""Errors carry what is wrong and the remedy as data, and are read in the words of whoever shows them."""

import ast
import copy
import pickle
import re
import warnings
from pathlib import Path

import pytest
import torch

import inst
from inst import InstError, InstWarning, UsageError
from inst.cli.wording import command_line_wording
from inst.diffusers.inputs import pipeline_wording
from inst.errors import Argument, Call, use_wording


def an_error() -> UsageError:
    return UsageError("mini is blind", "give ", Argument("image_encoder", "a/b"), " or use ", Call("import_style"))


def test_an_error_has_problem_and_remedy_as_data() -> None:
    error = an_error()
    assert error.problem == "mini is blind"
    assert error.remedy == ("give ", Argument("image_encoder", "a/b"), " or use ", Call("import_style"))
    assert InstError("all is said.").remedy == ()


def test_an_error_is_read_in_the_words_of_python_by_default() -> None:
    assert str(an_error()) == 'mini is blind: give image_encoder="a/b" or use inst.import_style.'
    assert str(InstError("all is said.")) == "all is said."
    assert str(InstError("bad", "leave ", Argument("tone"), " out")) == "bad: leave `tone` out."
    assert str(InstError("bad", "add ", Argument("download", True))) == "bad: add download=True."


def test_the_command_line_reads_options_and_commands() -> None:
    with use_wording(command_line_wording):
        assert str(an_error()) == "mini is blind: give --image-encoder a/b or use `inst style import`."
        assert str(InstError("bad", "add ", Argument("download", True))) == "bad: add --download."
        assert str(InstError("bad", "give ", Argument("config", "a b"))) == "bad: give --config 'a b'."
    assert "--image-encoder" not in str(an_error())


def test_an_error_keeps_the_words_of_the_block_that_it_leaves() -> None:
    with pytest.raises(UsageError) as caught, use_wording(pipeline_wording):
        raise UsageError("bad", "give fewer ", Argument("steps"))
    assert str(caught.value) == "bad: give fewer `num_inference_steps`."


def test_a_warning_is_read_in_the_words_of_whoever_shows_it() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.warn(InstWarning("odd", "give ", Argument("variant", "direct")), stacklevel=1)
    with use_wording(command_line_wording):
        assert str(caught[0].message) == "odd: give --variant direct."


@pytest.mark.parametrize("again", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))])
def test_an_error_survives_copying_and_pickling(again: object) -> None:
    error = again(an_error())  # type: ignore[operator]
    assert type(error) is UsageError
    assert str(error) == str(an_error())


def test_an_error_said_of_something_keeps_its_remedy() -> None:
    about = an_error().with_prefix("file.png: ")
    assert str(about).startswith("file.png: mini is blind: give image_encoder")
    assert about.remedy == an_error().remedy


def test_no_message_of_the_library_names_an_option_of_the_command_line() -> None:
    """Strings outside of docstrings, in every room below the command line."""
    package = Path(inst.__file__).parent
    named = re.compile(r"(?<![\w-])--[a-z]|`inst [a-z]")
    pip = package / "evaluation" / "networks" / "package_index.py"  # whose strings are pip's options
    server = package / "study" / "simulation.py"  # which starts the command
    for path in package.rglob("*.py"):
        if path.is_relative_to(package / "cli") or path in (pip, server):
            continue
        for number, line in strings(path.read_text(encoding="utf-8")):
            assert not named.search(line), f"{path}:{number} {line}"


def strings(source: str) -> list[tuple[int, str]]:
    """The string constants of a module that are no docstrings, with their lines."""
    tree = ast.parse(source)
    documentation = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    return [
        (node.lineno, node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation
    ]


def test_an_error_with_more_attributes_survives_copying_too(tiny_backbone: inst.Backbone) -> None:
    style = inst.Style(vectors=tiny_backbone.token_table[:2], fingerprint="text space")
    error = inst.LearningDiverged("bad", "use ", Argument("dtype", "float32"), step=3, last_good=style)
    for again in (copy.copy(error), error.with_prefix(""), pickle.loads(pickle.dumps(error))):
        assert (str(again), again.step) == ('bad: use dtype="float32".', 3)
        assert torch.equal(again.last_good.vectors, style.vectors)
