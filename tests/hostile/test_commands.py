"""Every bad input of the recipes, through the command line. What must hold is in `harness.py`."""

from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from .backbones import backbones
from .commands import GOOD, commands
from .embeddings import embeddings
from .environment import environment
from .harness import Case, chosen
from .numbers import lists, numbers
from .pictures import pictures
from .records import records
from .studies import studies
from .styles import states, style_contents, style_files
from .tables import left, parquet, tars, texts_of_tables
from .texts import texts

RECIPES: list[Callable[[], Iterator[Case]]] = [
    numbers,
    lists,
    texts,
    pictures,
    style_files,
    style_contents,
    states,
    embeddings,
    backbones,
    studies,
    records,
    texts_of_tables,
    parquet,
    tars,
    left,
    environment,
]
CASES = [*chosen(case for recipe in RECIPES for case in recipe())]


@pytest.mark.timeout(120, method="thread")  # ends a process whose C code hangs; the alarm of the harness is a signal
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_bad_input(case: Case, check: Callable[[Case], None]) -> None:
    check(case)


def test_the_recipes_reach_every_command_and_every_number_by_hundreds_of_kinds() -> None:
    counts = Counter(case.id for case in CASES)
    assert not [one for one, count in counts.items() if count > 1]
    assert len(counts) >= 500
    assert GOOD.keys() == commands().keys()
    reached = {(case.command, name) for case in CASES for name in case.changes}
    for command in commands().values():
        wanted = {(command.name, one.name) for one in (*command.numbers, *command.texts)}
        assert wanted <= reached
        assert command.name in {case.command for case in CASES} or not wanted
