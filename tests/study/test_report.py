"""The report of answers that are known."""

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from inst.errors import InstError, UsageError
from inst.files.csv_tables import to_csv
from inst.study import tables
from inst.study.database import Database
from inst.study.exclusion import Rules, broken_rules
from inst.study.factors import FACTORS
from inst.study.plots import plot_report
from inst.study.report import make_report
from inst.study.report_files import markdown, summary, write_report
from inst.study.sessions import begin, describe_session, rank, vote

ALL = {"too_fast": 0.0, "one_side": 0.0, "failed_checks": 0, "few_answers": 0.0}


class Person:
    """Takes part in a study, knowing which result is ours."""

    def __init__(self, database: Database, number: int) -> None:
        self.database, self.token, self.answers = database, f"{number:064x}", 0
        begin(database, self.token)
        self.number = database.value("SELECT max(id) FROM participants")
        self.trials = database.rows(
            "SELECT position, ours_first, method, is_check FROM trials JOIN pairs ON pairs.id = pair "
            "WHERE participant = ? ORDER BY position",
            self.number,
        )

    def answer(self, position: int, for_ours: bool, seconds: float = 3.0) -> None:
        first = bool(self.trials[position - 1]["ours_first"]) == for_ours
        self.answers += 1
        key = f"{self.number:016x}{self.answers:016x}"
        vote(self.database, self.token, key, position, "first" if first else "second", seconds)

    def answer_all(self, for_ours: Callable[[Any], bool], seconds: float = 3.0) -> "Person":
        for trial in self.trials:
            self.answer(trial["position"], bool(for_ours(trial)), seconds)
        return self


@pytest.fixture
def database(make_study: Callable[..., Path]) -> Any:
    with Database(make_study(trials=8, checks=1)) as found:
        yield found


def test_the_report_states_votes_p_values_and_agreement_for_each_method(database: Database) -> None:
    """Three people prefer ours to adain; to gatys they prefer it in one vote of two."""
    for number in range(3):
        seen = iter(range(8))
        Person(database, number).answer_all(
            lambda trial, seen=seen: trial["is_check"] or trial["method"] == "adain" or next(seen) % 2
        )
    report = make_report(database, **ALL)
    assert (report.methods["adain"].votes, report.methods["adain"].for_ours) == (12, 12)
    assert (report.methods["gatys"].votes, report.methods["gatys"].for_ours) == (12, 6)
    assert (report.total.votes, report.total.for_ours) == (24, 18)  # the checks are no votes
    assert report.methods["adain"].p_value == pytest.approx(2 / 2**12)
    assert report.methods["adain"].p_holm == pytest.approx(4 / 2**12)
    assert report.methods["gatys"].p_holm == 1
    assert report.total.p_holm is None
    assert report.agreement["adain"].same == 1
    assert report.agreement["adain"].alpha is None
    assert report.agreement["adain"].pairs == 4
    assert report.agreement["gatys"].same < 1


def test_only_the_last_answer_to_a_pair_counts(database: Database) -> None:
    person = Person(database, 1).answer_all(lambda trial: True)
    report = make_report(database, **ALL)
    position = next(trial["position"] for trial in person.trials if not trial["is_check"])
    person.answer(position, False, seconds=30)
    again = make_report(database, **ALL)
    assert (again.total.votes, again.total.for_ours) == (report.total.votes, report.total.for_ours - 1)
    rows = list(csv.DictReader(io.StringIO(tables.answers_csv(database))))
    assert [row["counts"] for row in rows if int(row["position"]) == position] == ["0", "1"]
    assert sum(int(row["counts"]) for row in rows) == 9


def test_careless_participants_are_excluded_from_the_report(database: Database) -> None:
    good = Person(database, 1).answer_all(lambda trial: True, seconds=4)
    Person(database, 2).answer_all(lambda trial: trial["is_check"], seconds=0.4)
    Person(database, 3).answer_all(lambda trial: not trial["is_check"])
    Person(database, 4).answer_all(lambda trial: trial["ours_first"])
    Person(database, 5).answer(1, True)
    Person(database, 6)
    rank(database, good.token, ["colour"])
    rank(database, f"{2:064x}", ["shapes"])
    report = make_report(database, one_side=0.01)
    assert report.kept == 1
    assert report.excluded["too-fast"] == 1
    assert report.excluded["one-side"] == 1
    assert report.excluded["few-answers"] == 2
    assert report.excluded["failed-checks"] >= 1
    assert (report.total.votes, report.total.for_ours) == (8, 8)
    assert report.everybody.votes > 24
    assert report.scores["colour"] == 6
    assert report.scores["shapes"] == 0  # who was too fast is not counted here either
    assert report.seconds["median"] == 4
    assert make_report(database, **ALL).kept == 6


def test_each_exclusion_rule_applies_exactly_at_its_bound() -> None:
    def row(chosen: str = "first", seconds: float = 3, is_check: int = 0, for_ours: int = 1) -> dict[str, Any]:
        return {"chosen": chosen, "seconds": seconds, "is_check": is_check, "for_ours": for_ours}

    rules, off = Rules(1.0, 0.001, 1, 0.5), Rules(0, 0, 0, 0)
    mixed = [row("first"), row("second")] * 13
    assert broken_rules(mixed, 26, rules) == []
    assert broken_rules([*mixed, row(is_check=1, for_ours=0)], 27, rules) == ["failed-checks"]
    assert broken_rules([*mixed, row(is_check=1)], 27, rules) == []
    assert broken_rules([row(one["chosen"], 0.9) for one in mixed], 26, rules) == ["too-fast"]
    assert broken_rules(mixed[:13], 26, rules) == []
    assert broken_rules(mixed[:12], 26, rules) == ["few-answers"]
    # Two-sided exact test of 26: 22 or more on one side has p = 0.00053, 21 has p = 0.0025.
    for first, expected in ((21, []), (22, ["one-side"]), (26, ["one-side"]), (4, ["one-side"]), (5, [])):
        assert broken_rules([row("first" if n < first else "second") for n in range(26)], 26, rules) == expected
    assert broken_rules([row(seconds=0, is_check=1, for_ours=0)] * 20, 99, off) == []
    assert broken_rules([], 26, rules) == ["few-answers"]


def test_a_report_without_votes_is_refused(database: Database) -> None:
    begin(database, "a" * 64)
    with pytest.raises(InstError, match="no votes yet"):
        make_report(database)


def test_the_report_files_agree_with_the_report_and_stay_the_same_on_a_second_run(
    database: Database, tmp_path: Path
) -> None:
    for number in range(4):
        person = Person(database, number).answer_all(lambda trial: trial["is_check"] or trial["position"] % 3)
        rank(database, person.token, None if number == 3 else list(FACTORS[number:]))
    report = make_report(database, **ALL)
    files = write_report(report, database, tmp_path)
    names = {file.name for file in files}
    assert names == {
        *("report.md", "report.json", "votes.csv", "answers.csv", "rankings.csv"),
        *(f"{name}.{kind}" for name in ("votes", "seconds", "factors") for kind in ("png", "svg")),
    }
    for file in files:
        if file.suffix == ".png":
            with Image.open(file) as image:
                assert min(image.size) > 200
                assert json.loads(image.text["inst"])["votes"] == {"adain": 16, "gatys": 16}
                assert len(image.convert("L").getcolors(1000) or range(1000)) > 10  # something is drawn
    before = {file: file.read_bytes() for file in files}
    write_report(make_report(database, **ALL), database, tmp_path)
    assert {file: file.read_bytes() for file in files} == before
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert text == markdown(report)
    assert f"| adain | 16 | {report.methods['adain'].for_ours} |" in text
    assert "Similar effect on corresponding subjects | 2.00 |" in text  # 6 of three people
    assert "for the 3 people who answered" in text
    found = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert found["methods"]["gatys"]["votes"] == 16
    assert found["scores"]["colour"] == (1 + 2 + 3) / 3
    rows = list(csv.DictReader((tmp_path / "votes.csv").open(encoding="utf-8")))
    assert [row["method"] for row in rows] == ["adain", "gatys", "all"]
    assert float(rows[2]["share"]) == report.total.share
    ranked = list(csv.DictReader((tmp_path / "rankings.csv").open(encoding="utf-8")))
    assert [row["colour"] for row in ranked] == ["6", "5", "4"]
    assert [row["subjects"] for row in ranked] == ["1", "", ""]
    assert len(summary(report)) == 3


def test_a_report_with_everybody_excluded_is_written_without_plots(database: Database, tmp_path: Path) -> None:
    Person(database, 1).answer_all(lambda trial: True, seconds=0.1)
    report = make_report(database)
    assert (report.kept, report.total.votes, report.total.share) == (0, 0, None)
    names = {file.name for file in write_report(report, database, tmp_path)}
    assert names == {"report.md", "report.json", "votes.csv", "answers.csv", "rankings.csv"}
    assert summary(report)


@pytest.mark.parametrize(
    "bound",
    [
        {"too_fast": -1},
        {"too_fast": float("nan")},
        {"too_fast": float("inf")},
        {"one_side": 1.5},
        {"failed_checks": -2},
        {"few_answers": 50},
    ],
)
def test_exclusion_bounds_out_of_range_are_refused(database: Database, bound: dict[str, Any]) -> None:
    (name,) = bound
    with pytest.raises(UsageError, match=f"{name.replace('_', '-')} cannot be used: give .*0"):
        make_report(database, **bound)


def test_csv_cells_are_never_spreadsheet_formulas() -> None:
    assert to_csv([["a"], ["=1+1"], [-2.5], [""], ["b"]]) == 'a\n\'=1+1\n-2.5\n""\nb\n'


def test_the_order_of_the_factors_differs_between_participants(database: Database) -> None:
    orders = set()
    for number in range(8):
        Person(database, number)
        found = describe_session(database, f"{number:064x}")
        assert found is not None
        orders.add(tuple(found["factors"]))
    assert len(orders) > 4


def test_plots_accept_any_method_name(database: Database) -> None:
    Person(database, 1).answer_all(lambda trial: True)
    report = make_report(database, **ALL)
    named = replace(report, ours="$\\ours$", methods={"$\\other$": report.methods["adain"]})
    assert b"<svg" in plot_report(named)["votes.svg"]
