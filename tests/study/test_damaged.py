"""Study files that are damaged, foreign or in use: one line says so, and the file stays as it is."""

import json
import os
import random
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inst.errors import InstError
from inst.study import checking, tables
from inst.study.database import Database
from inst.study.report import make_report
from inst.study.report_files import markdown, summary
from inst.study.sessions import begin, describe_session, rank, vote

TOKEN = "a" * 64


@pytest.fixture
def study(make_study: Callable[..., Path]) -> Path:
    """A study with the answers of one participant."""
    path = make_study(trials=4)
    with Database(path) as database:
        begin(database, TOKEN)
        for position in range(1, 5):
            vote(database, TOKEN, f"{position:032x}", position, "first", 3.0)
        rank(database, TOKEN, ["material"])
    return path


@contextmanager
def changed(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        yield connection


def use(path: Path) -> None:
    """Do everything with a study that its commands do."""
    with Database(path) as database:
        database.settings()
        report = make_report(database)
        markdown(report), summary(report), tables.answers_csv(database), tables.rankings_csv(database)
        tables.progress(database)
        with suppress(sqlite3.Error):  # the server answers that it is not saved
            begin(database, "b" * 64)
            describe_session(database, "b" * 64)


def refused(path: Path) -> str:
    before = path.read_bytes()
    with pytest.raises(InstError) as caught:
        use(path)
    assert path.read_bytes() == before
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 500
    return message


CHANGES = {
    "a missing table": ("DROP VIEW votes; DROP TABLE answers", "its table answers is missing"),
    "a missing view": ("DROP VIEW votes", "its view votes is missing"),
    "a missing column": ("DROP VIEW votes; ALTER TABLE participants DROP COLUMN ranking", "is different"),
    "a trigger": ("CREATE TRIGGER x AFTER INSERT ON trials BEGIN DELETE FROM answers; END", "has a trigger 'x'"),
    "another view": ("DROP VIEW votes; CREATE VIEW votes AS SELECT 1", "its view votes is different"),
    "another program's": ("PRAGMA application_id = 7", "is not a study"),
    "another version": ("PRAGMA user_version = 2", "has the format 2"),
    "an infinite time": ("UPDATE answers SET seconds = 9e999", "an impossible answer"),
    "a negative time": ("UPDATE answers SET seconds = -1", "an impossible answer"),
    "an answer to no trial": ("UPDATE answers SET trial = 99 WHERE id = 2", "a row of answers refers to"),
    "a pair of no pictures": ("UPDATE pairs SET other = 1234 WHERE id = 1", "a row of pairs refers to"),
    "a pair of wrong pictures": ("UPDATE pairs SET photo = painting", "a pair of pictures that are none"),
    "an unknown factor": ("""UPDATE participants SET ranking = '["x"]'""", "an impossible ranking"),
    "a factor twice": ("""UPDATE participants SET ranking = '["colour", "colour"]'""", "an impossible ranking"),
    "no ranking": ("UPDATE participants SET ranking = 'null'", "an impossible ranking"),
    "a deep ranking": (f"UPDATE participants SET ranking = '{'[' * 100_000}'", "an impossible ranking"),
    "two settings": ("INSERT INTO settings SELECT * FROM settings", "it has 2 settings"),
    "no settings": ("DELETE FROM settings", "it has 0 settings"),
    "settings of no JSON": ("UPDATE settings SET content = 'x'", "is not valid JSON"),
    "deep settings": (f"UPDATE settings SET content = '{'[' * 100_000}'", "nested too deeply"),
    "settings that are no text": ("UPDATE settings SET content = CAST(x'ff00' AS TEXT)", "is not valid JSON"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_study_that_was_changed_is_refused_in_one_line(study: Path, name: str) -> None:
    script, message = CHANGES[name]
    with changed(study) as connection:
        connection.executescript(script)
    assert message in refused(study)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("trials", value) for value in (0, -1, 1e9, 10**30, "4", True, None, [])),
        *(("title", value) for value in (None, 7, "x" * 30_000, "\ud800")),
        *(("admin_token", value) for value in ("", "short", "ä" * 20, 5)),
        *(("ours", ""), ("seed", 0.5), ("other", 1)),
    ],
)
def test_impossible_settings_are_refused(study: Path, name: str, value: Any) -> None:
    with changed(study) as connection:
        content = json.loads(connection.execute("SELECT content FROM settings").fetchone()[0])
        connection.execute("UPDATE settings SET content = ?", (json.dumps(content | {name: value}),))
    assert "setting" in refused(study)


def test_tables_of_the_researcher_are_no_damage(study: Path) -> None:
    with changed(study) as connection:
        connection.executescript("CREATE TABLE notes (x); CREATE VIEW good AS SELECT * FROM votes; ANALYZE")
    use(study)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), count=st.integers(1, 40), cut=st.sampled_from([None, None, 0, 10, 100, 0.3, 0.9]))
def test_damaged_bytes_are_refused_or_change_nothing_that_is_read(
    seed: int, count: int, cut: float | None, tmp_path_factory: pytest.TempPathFactory, one_study: Path
) -> None:
    rng = random.Random(seed)
    data = bytearray(one_study.read_bytes())
    for _ in range(count):
        data[rng.randrange(len(data) if rng.random() < 0.5 else 4096)] = rng.randrange(256)
    if cut is not None:
        del data[round(cut if cut >= 1 else cut * len(data)) :]
    path = tmp_path_factory.mktemp("damaged") / "study.db"
    path.write_bytes(data)
    try:
        use(path)
    except InstError:
        assert path.read_bytes() == data


@pytest.fixture(scope="module")
def one_study(comparison: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from inst.study.creation import create_study

    path = tmp_path_factory.mktemp("one") / "study.db"
    list(create_study(comparison, path, trials=4, side=64))
    with Database(path) as database:
        begin(database, TOKEN)
        for position in range(1, 5):
            vote(database, TOKEN, f"{position:032x}", position, "first", 3.0)
    return path


def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("nothing")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero"), Path("/dev/null"), tmp_path / "link"):
        with pytest.raises(InstError):
            Database(path)


@pytest.mark.parametrize("ending", ["-wal", "-journal"])
def test_a_journal_of_another_file_does_no_harm(study: Path, tmp_path: Path, ending: str) -> None:
    other = tmp_path / "other.db"
    with closing(sqlite3.connect(other, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA journal_mode = {'WAL' if ending == '-wal' else 'PERSIST'}")
        connection.executescript("CREATE TABLE t (x); CREATE TABLE u (x);")
        connection.executemany("INSERT INTO t VALUES (?)", [("x" * 3000,)] * 40)
        if ending == "-journal":
            connection.execute("PRAGMA cache_size = 1")
            connection.executescript("BEGIN; UPDATE t SET x = x || 'y'; INSERT INTO u VALUES (1);")
        shutil.copy(f"{other}{ending}", f"{study}{ending}")
    before = study.read_bytes()
    try:
        use(study)
    except InstError:
        assert study.read_bytes() == before
    Path(f"{study}{ending}").unlink(missing_ok=True)
    use(study)


def test_answers_of_a_server_that_was_killed_are_there(study: Path, tmp_path: Path) -> None:
    """A killed server leaves a write-ahead log, which belongs to the file."""
    with Database(study) as database:
        database.write_ahead()
        begin(database, "c" * 64)
        copy = Path(shutil.copy(study, tmp_path / "copy.db"))
        shutil.copy(f"{study}-wal", f"{copy}-wal")
    with Database(copy) as database:
        assert database.value("SELECT count(*) FROM participants") == 2


def test_a_study_that_another_program_locks_is_one_line(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "LOCK_SECONDS", 0.1)
    with changed(study) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        begun = time.monotonic()
        with pytest.raises(InstError, match="is locked by another program"):
            Database(study)
        assert time.monotonic() - begun < 20
