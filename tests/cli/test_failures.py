"""Every failure is one line and an exit code: wrong use of every command, and what ends a command from outside."""

import errno
import inspect
import json
import os
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Union, get_args, get_origin

import pytest
import torch
import typer
from typer.models import OptionInfo

from inst import InstError, UsageError
from inst.cli import app
from inst.cli.failures import failure_of
from inst.cli.session import json_text
from inst.styles.style import Style
from inst.texts import LONGEST_LINE
from pictures import quarters

Run = Callable[..., tuple[int, str, str]]
Command = tuple[tuple[str, ...], list[inspect.Parameter]]


def commands(app: typer.Typer, path: tuple[str, ...] = ()) -> Iterator[Command]:
    """All commands with their parameters, from the tree that typer builds its parser from."""
    for one in app.registered_commands:
        assert one.callback is not None
        parameters = inspect.signature(one.callback, eval_str=True).parameters.values()
        yield (*path, one.name or one.callback.__name__.replace("_", "-")), list(parameters)
    for group in app.registered_groups:
        assert group.typer_instance is not None
        assert isinstance(group.name, str)
        yield from commands(group.typer_instance, (*path, group.name))


COMMANDS = list(commands(app))
NAMES = [" ".join(path) for path, _ in COMMANDS]


def numeric_options(parameters: list[inspect.Parameter]) -> Iterator[tuple[str, type]]:
    """The options for one number, each with int or float."""
    for parameter in parameters:
        kind, *options = get_args(parameter.annotation) or (parameter.annotation,)
        kinds = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
        for number in (int, float):
            if number in kinds and options and isinstance(options[0], OptionInfo):
                # within `Annotated`, typer takes the first name of an option for its default
                names = [options[0].default, *(options[0].param_decls or ())]
                yield max((name for name in names if isinstance(name, str)), key=len), number


@pytest.fixture
def refuses(run: Run) -> Callable[..., str]:
    """Run a command that is used wrongly; gives its one line."""

    def call(*arguments: str) -> str:
        code, out, err = run(*arguments)
        assert (code, out, err.count("\n")) == (2, "", 1), (arguments, err)
        assert err.startswith("Error: ")
        assert len(err) < 3 * LONGEST_LINE
        return err

    return call


def test_the_tree_has_the_commands_and_their_numbers() -> None:
    assert {"transfer", "demo", "batch transfer", "style mix", "study serve", "weights get"} <= set(NAMES)
    numbers = dict(numeric_options(dict(COMMANDS)[("transfer",)]))
    assert numbers["--strength"] is float
    assert numbers["--count"] is numbers["--steps"] is int


@pytest.mark.parametrize("path", [path for path, _ in COMMANDS], ids=NAMES)
def test_an_unknown_option_is_refused(path: tuple[str, ...], refuses: Callable[..., str]) -> None:
    said = refuses(*path, "--no-such-option")
    assert "No such option: --no-such-option" in said
    assert said.endswith(f"see `inst {' '.join(path)} --help`.\n")
    said = refuses(*path, f"--{'no-such-option' * 300}")
    assert "characters)" in said


@pytest.mark.parametrize(("path", "parameters"), COMMANDS, ids=NAMES)
def test_a_missing_argument_is_named(
    path: tuple[str, ...], parameters: list[inspect.Parameter], refuses: Callable[..., str]
) -> None:
    if any(parameter.default is inspect.Parameter.empty for parameter in parameters):
        assert "Error: Missing " in refuses(*path)


@pytest.mark.parametrize(("path", "parameters"), COMMANDS, ids=NAMES)
def test_what_is_no_number_is_refused_by_every_numeric_option(
    path: tuple[str, ...], parameters: list[inspect.Parameter], refuses: Callable[..., str]
) -> None:
    for option, kind in numeric_options(parameters):
        wrong = ["abc", "", "1,5", "9" * 5_000, "\x1b[31m\n7", os.fsdecode(b"\xff")]
        for value in [*wrong, *(["1e400", "nan", "0.5"] if kind is int else [])]:
            if kind is float and value.isdigit():
                continue  # which is infinite, and refused by whatever reads it
            assert option in refuses(*path, option, value)


def test_without_a_command_the_help_is_printed(run: Run) -> None:
    for path in ((), ("style",), ("study",)):
        code, out, err = run(*path)
        assert (code, err) == (2, "")
        assert f"Usage: inst {' '.join(path)}".strip() in out


@pytest.mark.parametrize("size", ["9" * 5000, "1x" + "9" * 5000, "٣", "-1", "1x2x3", "1e400", "nan", "x"])
def test_a_size_that_is_none_is_refused(size: str, refuses: Callable[..., str]) -> None:
    said = refuses("generate", "[C]", "-s", "none.png", f"--size={size}")
    assert "cannot be used: give it in pixels" in said
    assert len(said) < 200


@pytest.mark.parametrize("numbers", ["", ",", "abc", "0.3,x", "1;2"])
def test_numbers_that_are_none_are_refused(numbers: str, refuses: Callable[..., str]) -> None:
    assert "--strengths" in refuses("sheet", "photo.png", "-s", "none.png", "--strengths", numbers)


@pytest.mark.parametrize("count", ["1000000000", "10001", "-1"])
@pytest.mark.parametrize("command", [["transfer", "photo.png"], ["generate", "[C]"]], ids=["transfer", "generate"])
def test_no_command_begins_a_number_of_pictures_that_never_ends(
    command: list[str], count: str, refuses: Callable[..., str]
) -> None:
    assert "--count" in refuses(*command, "-s", "none.png", "--count", count, "-o", "made.png")


# Words of strangers


def test_what_a_file_or_a_path_says_cannot_forge_a_line(run: Run, tmp_path: Path) -> None:
    name = "one\x1b[31m\nError: all is lost\u202e"
    Style(torch.ones(3, 32), fingerprint="0123456789abcdef", about={"name": name}).save(tmp_path / "one.safetensors")
    code, out, err = run("style", "info", "one.safetensors")
    assert (code, err) == (0, "")
    assert "one\\x1b[31m\\nError: all is lost\\u202e" in out
    assert not any(line.startswith("Error") for line in out.splitlines())
    code, out, err = run("style", "info", "no\x1b[2J\nError: :cat: [red]file[/red]")
    assert (code, out) == (1, "")
    assert err == "Error: no\\x1b[2J\\nError: :cat: [red]file[/red]: no such file: check the path.\n"
    code, out, _ = run("style", "mix", "one.safetensors", "-o", "a\nb:cat:.safetensors")
    assert (code, out) == (0, "a\\nb:cat:.safetensors\n")
    assert (tmp_path / "a\nb:cat:.safetensors").exists()


def test_json_is_valid_and_of_one_line_whatever_the_facts_are() -> None:
    facts = {
        "nan": float("nan"),
        "all": [float("inf"), (1.5, True, None)],
        "name": "a\n\x7f\x1b é\udcff",
        "path": Path("x"),
    }
    text = json_text(facts)
    assert text.isascii()
    assert text.isprintable()
    read = json.loads(text, parse_constant=lambda name: pytest.fail(name))
    assert read == {"nan": None, "all": [None, [1.5, True, None]], "name": facts["name"], "path": "x"}
    assert os.fsencode(read["name"]).endswith(b"\xff")


# What ends a command from outside


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "No space"), "the output cannot be printed (No space): free space on the disk"),
        (OSError(errno.EBADF, "Bad"), "the output cannot be printed (Bad): give the command an output"),
        (OSError(errno.ENAMETOOLONG, "Too long", "x" * 9000), "(9,000 characters)"),
        (OSError(errno.EACCES, "No", b"a\xff"), "a\udcff cannot be used (No): give another path."),
        (MemoryError(), "there is not enough memory: use smaller pictures"),
        (RuntimeError("DefaultCPUAllocator: can't"), "there is not enough memory"),
        (UsageError("bad", "do good"), "bad: do good."),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_an_end_from_outside_is_said_in_one_line(error: Exception, line: str) -> None:
    failure = failure_of(error)
    assert isinstance(failure, InstError)
    assert line in str(failure)
    assert len(str(failure)) < LONGEST_LINE


def test_a_bug_stays_a_bug() -> None:
    for error in (ValueError("x"), RuntimeError("x"), OSError("x"), OSError(errno.EINVAL, "x")):
        assert failure_of(error) is None


# Checked before anything is made


def test_a_last_seed_that_is_too_large_is_refused_before_the_first_picture(
    run: Run, common: list[object], tmp_path: Path
) -> None:
    quarters().save(tmp_path / "photo.png")
    last = str(2**64 - 1)
    code, out, err = run("transfer", "photo.png", "-s", "photo.png", "--seed", last, "--count", 2, *common)
    assert (code, out) == (2, "")
    assert err == f"Error: The seed {2**64} cannot be used: give 0 to {last}.\n"
    assert [path.name for path in tmp_path.iterdir()] == ["photo.png"]


def test_the_demo_needs_a_folder(run: Run, common: list[object], tmp_path: Path) -> None:
    (tmp_path / "there").write_text("a file")
    assert run("demo", "-o", "there", *common) == (1, "", "Error: there is a file: choose a folder.\n")


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--prompt", "[C] " + "dog " * 20_000, "The prompt has 80,004 characters: shorten it; 10,000 are the limit."),
        ("--size", "1000000000", "is too large: give a smaller size; the limit is 100 million pixels."),
        ("--steps", "1000000000", "1000000000 sampling steps cannot be taken: give 1 to 1000."),
        ("--guidance", "-1e400", "A guidance of -inf cannot be used"),
        ("--style-scale", "nan", "A style scale of nan cannot be used"),
        ("--solver", "x" * 100_000, "(100,000 characters)"),
    ],
)
def test_an_absurd_value_is_refused_in_a_short_line(
    option: str, value: str, message: str, run: Run, common: list[object], tmp_path: Path
) -> None:
    quarters().save(tmp_path / "photo.png")
    code, out, err = run("transfer", "photo.png", "-s", "photo.png", f"{option}={value}", *common)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert len(err) < 300
