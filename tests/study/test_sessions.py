"""What participants can do, and what they cannot."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inst.study.database import Database
from inst.study.factors import FACTORS
from inst.study.sessions import Refused, begin, describe_session, describe_study, rank, vote

ANNA, BORIS = "a" * 64, "b" * 64


def key(number: int) -> str:
    return f"{number:032x}"


@pytest.fixture
def database(make_study: Callable[..., Path]) -> Any:
    with Database(make_study(trials=6, checks=1)) as found:
        yield found


def chosen(database: Database, token: str) -> list[str | None]:
    found = describe_session(database, token)
    assert found is not None
    return [trial["chosen"] for trial in found["trials"]]


def refused(status: int, act: Callable[..., object], *arguments: object) -> None:
    with pytest.raises(Refused) as caught:
        act(*arguments)
    assert caught.value.status == status


def test_beginning_twice_gives_one_participant_with_the_same_trials(database: Database) -> None:
    begin(database, ANNA)
    before = describe_session(database, ANNA)
    begin(database, ANNA)
    assert describe_session(database, ANNA) == before
    assert database.value("SELECT count(*) FROM participants") == 1
    assert before is not None
    assert [trial["position"] for trial in before["trials"]] == [1, 2, 3, 4, 5, 6, 7]
    assert sorted(before["factors"]) == sorted(FACTORS)


def test_the_database_waits_for_the_disk_at_each_commit(database: Database) -> None:
    database.write_ahead()
    assert database.value("PRAGMA journal_mode") == "wal"
    assert database.value("PRAGMA synchronous") == 2  # FULL: each commit waits for the disk


def test_the_file_holds_only_the_hash_of_a_participants_token(database: Database) -> None:
    begin(database, ANNA)
    assert database.value("SELECT token_sha256 FROM participants") == hashlib.sha256(ANNA.encode()).hexdigest()
    assert ANNA not in str([tuple(row) for row in database.rows("SELECT * FROM participants")])


def test_a_participant_is_told_no_names_of_methods_or_pictures(database: Database) -> None:
    begin(database, ANNA)
    texts = str(describe_session(database, ANNA)) + str(describe_study(database))
    assert not [word for word in ("inst", "adain", "gatys", "castle", "night", "check") if word in texts]


def test_studies_with_the_same_seed_give_participants_the_same_trials(
    make_study: Callable[..., Path], tmp_path: Path
) -> None:
    found = []
    for seed in (1, 1, 2):
        path = make_study(seed=seed, trials=5)
        with Database(path) as database:
            for token in (ANNA, BORIS):
                begin(database, token)
            found.append([tuple(row) for row in database.rows("SELECT participant, pair, ours_first FROM trials")])
        path.unlink()
    assert found[0] == found[1] != found[2]


def test_an_answer_sent_again_counts_once(database: Database) -> None:
    begin(database, ANNA)
    assert vote(database, ANNA, key(1), 3, "first", 2.0)
    assert not vote(database, ANNA, key(1), 3, "first", 2.0)
    assert not vote(database, ANNA, key(1), 3, "first", 9.0)
    assert database.value("SELECT count(*) FROM answers") == 1
    refused(409, vote, database, ANNA, key(1), 3, "second", 2.0)
    refused(409, vote, database, ANNA, key(1), 4, "first", 2.0)


def test_going_back_keeps_the_history_and_the_last_answer_counts(database: Database) -> None:
    begin(database, ANNA)
    vote(database, ANNA, key(1), 1, "first", 2.0)
    vote(database, ANNA, key(2), 2, "first", 2.0)
    vote(database, ANNA, key(3), 1, "second", 1.5)
    assert chosen(database, ANNA)[:3] == ["second", "first", None]
    assert database.value("SELECT count(*) FROM answers") == 3
    assert [(row["position"], row["first"]) for row in database.rows("SELECT * FROM votes ORDER BY position")] == [
        (1, 0),
        (2, 1),
    ]
    assert not vote(database, ANNA, key(1), 1, "first", 2.0)  # a late repetition of the first answer changes nothing
    assert chosen(database, ANNA)[0] == "second"


def test_a_participant_cannot_change_the_answers_of_another(database: Database) -> None:
    begin(database, ANNA)
    begin(database, BORIS)
    vote(database, ANNA, key(1), 1, "first", 2.0)
    vote(database, BORIS, key(2), 1, "second", 2.0)
    refused(409, vote, database, BORIS, key(1), 1, "first", 2.0)  # Anna's key
    assert chosen(database, ANNA)[0] == "first"
    assert chosen(database, BORIS)[0] == "second"
    refused(401, vote, database, "c" * 64, key(3), 1, "first", 2.0)
    refused(401, rank, database, "c" * 64, None)
    assert describe_session(database, "c" * 64) is None


def test_after_the_ranking_no_answer_and_no_ranking_can_be_changed(database: Database) -> None:
    begin(database, ANNA)
    for position in range(1, 7):
        vote(database, ANNA, key(position), position, "first", 2.0)
    refused(409, rank, database, ANNA, ["colour"])  # one pair has no answer
    vote(database, ANNA, key(7), 7, "first", 2.0)
    rank(database, ANNA, ["colour", "shapes"])
    rank(database, ANNA, ["colour", "shapes"])
    refused(409, rank, database, ANNA, ["shapes", "colour"])
    refused(409, rank, database, ANNA, None)
    refused(409, vote, database, ANNA, key(8), 1, "second", 2.0)
    assert not vote(database, ANNA, key(7), 7, "first", 2.0)
    found = describe_session(database, ANNA)
    assert found is not None
    assert found["finished"]


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (("short", 1, "first", 2.0), 400),
        ((None, 1, "first", 2.0), 400),
        ((key(1).upper().replace("0", "G"), 1, "first", 2.0), 400),
        ((key(1), 0, "first", 2.0), 404),
        ((key(1), 8, "first", 2.0), 404),
        ((key(1), True, "first", 2.0), 400),
        ((key(1), "1", "first", 2.0), 400),
        ((key(1), 2**80, "first", 2.0), 404),
        ((key(1), 1, "left", 2.0), 400),
        ((key(1), 1, ["first"], 2.0), 400),
        ((key(1), 1, "first", -1), 400),
        ((key(1), 1, "first", float("nan")), 400),
        ((key(1), 1, "first", float("inf")), 400),
        ((key(1), 1, "first", 10**400), 400),  # no float holds it
        ((key(1), 1, "first", "2"), 400),
        ((key(1), 1, "first", None), 400),
    ],
)
def test_malformed_answers_are_refused_and_not_stored(
    database: Database, arguments: tuple[object, ...], status: int
) -> None:
    begin(database, ANNA)
    refused(status, vote, database, ANNA, *arguments)
    assert database.value("SELECT count(*) FROM answers") == 0


@pytest.mark.parametrize(
    "ranking", [[], ["beauty"], ["colour", "colour"], "colour", {"colour": 1}, [1], [["colour"]], [*FACTORS, "colour"]]
)
def test_malformed_rankings_are_refused(database: Database, ranking: object) -> None:
    begin(database, ANNA)
    refused(400, rank, database, ANNA, ranking)


@pytest.mark.parametrize("token", ["", "a" * 63, "a" * 65, "A" * 64, "ä" * 64, "a" * 64 + "\n"])
def test_malformed_tokens_are_refused_and_create_no_participant(database: Database, token: str) -> None:
    refused(400, begin, database, token)
    assert database.value("SELECT count(*) FROM participants") == 0


def test_pairs_of_participants_who_left_are_shown_to_others(make_study: Callable[..., Path]) -> None:
    with Database(make_study(trials=4)) as database:
        begin(database, ANNA)
        with database.transaction() as connection:
            connection.execute("UPDATE participants SET started_at = started_at - 7200")
        # Anna answered nothing: her pairs count as not shown, and after two more people all eight are shown once.
        begin(database, BORIS)
        begin(database, "c" * 64)
        shown = database.rows("SELECT pair FROM trials WHERE participant > 1")
        assert sorted(row["pair"] for row in shown) == list(range(1, 9))
