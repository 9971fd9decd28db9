"""Files of the data folder that are damaged, or another program's: the studio says what it does, and loses nothing."""

import json
import logging
import os
import random
import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from inst import Style
from inst.errors import InstError
from inst.studio.disk import NotKept
from inst.studio.job_store import Job, JobState, JobStore, Progress
from inst.studio.jobs import JobRunner
from inst.studio.library import Library
from inst.studio.limits import Limits
from inst.studio.studio import Studio
from inst.studio.uploads import Uploads

ID = "0123456789abcdef" * 2
JOB = Job(ID, "anna", "transfer", {"steps": 2}, created=1e9, state=JobState.DONE, result={"files": ["picture-1.png"]})


def filled(folder: Path) -> Path:
    """A file with some jobs."""
    store = JobStore(folder / "jobs.sqlite")
    for number in range(30):
        store.save(replace(JOB, id=f"{number:032x}", progress=Progress(1, 2, files=("a.png",))))
    store.save(JOB)
    store.close()
    return folder / "jobs.sqlite"


def test_a_damaged_file_of_jobs_is_kept_and_a_new_one_begun(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = filled(tmp_path)
    folder = tmp_path / "jobs" / ID
    folder.mkdir(parents=True)
    (folder / "picture-1.png").write_bytes(b"picture")
    damaged = path.read_bytes()[:5000]
    path.write_bytes(damaged)
    runner = JobRunner(tmp_path, {}, Limits())
    assert runner.jobs("anna") == []
    runner.close()
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert line.isprintable()
    kept = min(tmp_path.glob("jobs.sqlite.damaged-*"))  # SQLite's own files beside it have longer names
    assert kept.name in line
    assert kept.read_bytes() == damaged
    assert (folder / "picture-1.png").read_bytes() == b"picture"


@pytest.mark.parametrize("ending", ["", "-wal"])
def test_no_job_is_accepted_when_the_file_of_jobs_is_not_there_any_more(tmp_path: Path, ending: str) -> None:
    path = filled(tmp_path)
    runner = JobRunner(tmp_path, {"transfer": lambda *_: iter(())}, Limits())
    runner.submit("anna", "transfer", {})
    path.with_name(path.name + ending).unlink()
    for _ in range(2):
        with pytest.raises(NotKept, match="removed, replaced or cut"):
            runner.submit("anna", "transfer", {})
    assert len([job for job in runner.jobs("anna") if job.state is JobState.QUEUED]) == 1
    runner.close()


def test_a_log_of_another_file_does_no_harm(tmp_path: Path) -> None:
    path, other = filled(tmp_path), tmp_path / "other.db"
    before = path.read_bytes()
    with closing(sqlite3.connect(other, isolation_level=None)) as connection:
        connection.executescript("PRAGMA journal_mode = WAL; CREATE TABLE t (x);")
        connection.executemany("INSERT INTO t VALUES (?)", [("x" * 3000,)] * 20)
        shutil.copy(f"{other}-wal", f"{path}-wal")
    try:
        JobStore(path).close()
    except InstError:
        assert path.read_bytes() == before
    kept = [path, *tmp_path.glob("jobs.sqlite.damaged-*")]
    assert before in [one.read_bytes() for one in kept]


@pytest.mark.parametrize("script", ["PRAGMA application_id = 5", "PRAGMA user_version = 9"])
def test_the_jobs_of_another_program_or_version_are_left_alone(tmp_path: Path, script: str) -> None:
    path = filled(tmp_path)
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(script)
    before = path.read_bytes()
    with pytest.raises(InstError, match="choose another data folder"):
        JobStore(path)
    assert path.read_bytes() == before


def test_a_database_without_a_name_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript("CREATE TABLE letters (x)")
    with pytest.raises(InstError, match="it is not a file of jobs"):
        JobStore(path)


@pytest.mark.parametrize("seed", range(40))
def test_damaged_bytes_stop_no_studio(tmp_path: Path, seed: int) -> None:
    path, rng = filled(tmp_path), random.Random(seed)
    data = bytearray(path.read_bytes())
    for _ in range(rng.choice([1, 5, 50])):
        data[rng.randrange(len(data) if rng.random() < 0.5 else 4096)] = rng.randrange(256)
    path.write_bytes(data)
    try:
        store = JobStore(path)
    except InstError:
        return
    for job in (*store.unfinished(), *store.ended("anna"), store.find(ID)):
        assert job is None or isinstance(job, Job)
    store.close()


@pytest.mark.parametrize(
    "change",
    [
        {"progress": 7},
        {"progress": {"step": "x", "total": 2}},
        {"result": {"files": ["../../secret.txt"]}},
        {"progress": {"step": 1, "total": 2, "files": ["/etc/passwd"]}},
        {"result": []},
        {"request": "x"},
        {"created": float("nan")},
        {"seconds": "soon"},
        {"wish": "fly"},
        {"kind": ["transfer"]},
        {"error": {"a": 1}},
        {"request": {"prompt": "\ud800"}},
        "not JSON",
        "[" * 100_000,
        None,
    ],
)
def test_a_job_that_cannot_be_read_is_left_out(tmp_path: Path, change: Any, caplog: pytest.LogCaptureFixture) -> None:
    path = filled(tmp_path)
    with closing(sqlite3.connect(path)) as connection, connection:
        (content,) = connection.execute("SELECT content FROM jobs WHERE id = ?", (ID,)).fetchone()
        changed = json.dumps(json.loads(content) | change) if isinstance(change, dict) else change or "null"
        connection.execute("UPDATE jobs SET content = ? WHERE id = ?", (changed, ID))
    store = JobStore(path)
    assert store.find(ID) is None
    assert len(store.ended("anna")) == 30
    store.close()
    assert "cannot be read" in caplog.text


def test_a_forged_id_removes_no_folder(tmp_path: Path) -> None:
    path = filled(tmp_path)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE jobs SET id = '../precious', changed = 5 WHERE id = ?", (ID,))
    store = JobStore(path)
    assert store.find("../precious") is None
    assert store.remove_older(10) == []
    store.close()


def test_what_is_no_file_is_one_line(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "jobs.sqlite")
    with pytest.raises(InstError):
        JobStore(tmp_path / "jobs.sqlite")
    for name in ("jobs", "uploads", "styles"):
        data = tmp_path / f"data of {name}"
        data.mkdir()
        (data / name).write_text("a file")
        with pytest.raises(InstError):
            Studio(data, lambda: pytest.fail("loaded"), Limits())


def test_interrupted_uploads_are_removed_at_the_start(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path / "uploads", Limits())
    (uploads.folder / f".inst-999999999-{'0' * 16}.part").write_bytes(b"half")
    folder = uploads.folder / "styles" / f".inst-999999999-{'1' * 16}.part"
    folder.mkdir()
    (folder / "a.pt").write_bytes(b"style")
    kept = uploads.folder / f"{'a' * 64}.png"
    kept.write_bytes(b"picture")
    studio = Studio(tmp_path, lambda: pytest.fail("loaded"), Limits())
    assert [path.name for path in uploads.folder.rglob("*") if path.is_file()] == [kept.name]
    with pytest.raises(InstError, match="Another studio uses the folder"):
        Studio(tmp_path, lambda: pytest.fail("loaded"), Limits())
    studio.close()


@pytest.mark.parametrize(
    "script",
    [
        "UPDATE files SET entry = 'x'",
        "UPDATE files SET entry = '{}'",
        "UPDATE files SET entry = '[]'",
        """UPDATE files SET entry = json_set(entry, '$.tags', 7)""",
        """UPDATE files SET entry = json_set(entry, '$.name', 7)""",
        """UPDATE files SET entry = json_set(entry, '$.name', json('"\\ud800"'))""",
        """UPDATE files SET entry = json_set(entry, '$.added', json('1e999'))""",
        "INSERT INTO embeddings VALUES ('a', 'e', x'00'), ('b', 'e', x'0000')",
        "DROP TABLE thumbnails",
        "PRAGMA user_version = 99",
    ],
)
def test_an_index_of_nonsense_is_made_again(tmp_path: Path, script: str) -> None:
    with Library(tmp_path / "styles") as library:
        before = library.add(Style(torch.ones(1, 8), "f" * 16, about={"name": "Night"}))
    with closing(sqlite3.connect(tmp_path / "styles" / "index.sqlite")) as connection, connection:
        connection.executescript(script)
    with Library(tmp_path / "styles") as library:
        assert library.styles() == [before]
        assert library.missing("e") == 0
