"""What the documentation tells people to type exists: every `inst` command in it, with its options."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import inst
from inst.cli import app
from inst.defaults import defaults_of

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("README*.md"), *ROOT.glob("docs/*.md")])
COMMANDS: Any = typer.main.get_command(app)


def block_lines(text: str) -> Iterator[str]:
    """Lines of fenced and indented blocks, continued lines joined."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    blocks += re.findall(r"(?:^ {4}\S.*\n(?:^ {4,}\S.*\n)*)", re.sub(r"(?ms)^```.*?^```", "", text), flags=re.MULTILINE)
    for block in blocks:
        yield from block.replace("\\\n", " ").splitlines()


def commands(page: Path) -> list[list[str]]:
    """The words of each command in a block, without `inst` and comments."""
    found = []
    for line in block_lines(page.read_text(encoding="utf-8")):
        if re.match(r"\s*(\$ )?inst [a-z]", line):
            words = shlex.split(line, comments=True)
            found.append(words[words.index("inst") + 1 :])
    return found


def mentions(page: Path) -> list[list[str]]:
    """The words of each command in running text: perhaps not complete."""
    text = re.sub(r"(?ms)^```.*?^```", "", page.read_text(encoding="utf-8"))
    return [shlex.split(found.replace("…", ""))[1:] for found in re.findall(r"`(inst [a-z][^`]*)`", text)]


def find_command(words: list[str]) -> tuple[Any, list[str]]:
    """The command that the first words name, and the rest."""
    command = COMMANDS
    rest = list(words)
    while hasattr(command, "commands") and rest:  # a group may be mentioned alone
        name = rest.pop(0)
        assert name in command.commands, f"inst has no command {name}: {words}"
        command = command.commands[name]
    return command, rest


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_in_the_documentation_is_accepted_by_the_parser(page: Path) -> None:
    """Parsed by the command line itself: unknown or missing arguments, and values of the wrong kind, are found."""
    for words in commands(page):
        command, rest = find_command(words)
        try:
            command.make_context(" ".join(words[:1]), rest)
        except Exception as error:
            raise AssertionError(f"{page.name}: inst {shlex.join(words)}: {error!r}") from error


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_in_running_text_exist(page: Path) -> None:
    for words in mentions(page):
        command, rest = find_command(words)
        known = {name for parameter in command.params for name in [*parameter.opts, *parameter.secondary_opts]}
        unknown = {word for word in rest if re.match(r"--?[a-z]", word)} - known - {"--help"}
        assert not unknown, f"{page.name}: inst {shlex.join(words)}"


def test_options_named_alone_in_the_migration_page_exist() -> None:
    """Every `--option` that the page for users of the paper's code names as ours."""

    def options(command: Any) -> set[str]:
        own = {name for parameter in command.params for name in [*parameter.opts, *parameter.secondary_opts]}
        return own.union(*(options(one) for one in getattr(command, "commands", {}).values()))

    known = options(COMMANDS)
    page = (ROOT / "docs" / "migrating.md").read_text(encoding="utf-8")
    here = [row.split("|")[2] for row in page.splitlines() if row.startswith("|")]
    named = {option for cell in here for option in re.findall(r"`(--[a-z-]+)", cell)}
    assert len(named) > 15
    assert named <= known


def test_defaults_quoted_in_the_migration_page_are_the_real_ones() -> None:
    page = (ROOT / "docs" / "migrating.md").read_text(encoding="utf-8")
    ours = defaults_of("inst.synthesis.from_photo", "transfer")
    assert f"ours is {ours['guidance']:g} unless you say so" in page
    assert f"ours is `{ours['solver']}`, deterministic too, unless you say so" in page
    assert f"The tone `{ours['tone']}` gives" in page
    assert f"`--inversion {ours['inversion']}`, ours too" in page
    assert f"by default ({ours['guidance']:g} instead of 10)" in page


def test_the_documentation_has_commands_for_these_tests_to_check() -> None:
    """The tests above look at something."""
    assert len(commands(ROOT / "README.md")) >= 9
    assert len(commands(ROOT / "docs" / "migrating.md")) >= 6
    assert ["repeat"] in mentions(ROOT / "docs" / "migrating.md")


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_every_link_to_a_file_of_the_project_leads_somewhere(page: Path) -> None:
    for place in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if "://" not in place:
            assert (page.parent / place).exists(), f"{page.name} links to {place}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_name_of_the_package_in_the_documentation_exists(page: Path) -> None:
    for name in re.findall(r"(?<![\w./])inst\.([A-Za-z_]+)\b(?!\.(?:py|md))", page.read_text(encoding="utf-8")):
        assert name in dir(inst) or (ROOT / "src" / "inst" / name).exists(), f"{page.name} names inst.{name}"


def test_the_map_of_the_package_names_every_room_once() -> None:
    table = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").split("##")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| [")]
    named = [name for row in rows for name in re.findall(r"\[`([a-z/]+)`\]", row)]
    inside = [place.stem for place in (ROOT / "src" / "inst").iterdir() if not place.name.startswith("_")]
    assert sorted(name for name in named if "/" not in name) == sorted({*inside} - {"version", "py"})
