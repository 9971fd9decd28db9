"""The job runner: order, fairness, wishes between two steps, limits, and what survives a stop or a crash."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from inst.errors import InstError, UsageError
from inst.studio.job_store import ENDED, Job, JobState, Progress
from inst.studio.jobs import Interrupted, JobRunner, Refused, Steps, Task, UnknownJob, Wish
from inst.studio.limits import Limits


class Works:
    """Work that can be watched: a picture takes the steps that it is told; a learning counts in a file."""

    def __init__(self) -> None:
        self.error: Exception = ValueError()
        self.order: list[tuple[str, int]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def picture(self, task: Task) -> Steps:
        for step in range(task.request.get("steps", 2)):
            self.gate.wait(20)
            self.order.append((task.request["name"], step))
            time.sleep(task.request.get("seconds", 0.0))
            if task.request.get("fails"):
                raise self.error
            yield Progress(step + 1, task.request.get("steps", 2), preview=b"webp")
        (task.folder / "picture.txt").write_text(task.request["name"])
        return {"files": ["picture.txt"]}

    def learn(self, task: Task) -> Steps:
        kept = task.folder / "count"
        first = int(kept.read_text()) if kept.exists() else 0
        step = first
        try:
            for step in range(first + 1, task.request.get("steps", 5) + 1):
                self.entered.set()
                self.gate.wait(20)
                self.order.append((task.request["name"], step))
                time.sleep(task.request.get("seconds", 0.0))
                yield Progress(step, task.request.get("steps", 5))
        except Interrupted as interruption:
            if interruption.wish in (Wish.PAUSE, Wish.STOP):
                kept.write_text(str(step))
                raise
        return {"files": [], "steps": step}


@pytest.fixture
def works() -> Works:
    return Works()


@pytest.fixture
def make(tmp_path: Path, works: Works) -> Iterator[Callable[..., JobRunner]]:
    made: list[JobRunner] = []

    def make_runner(*, start: bool = True, **limits: Any) -> JobRunner:
        runner = JobRunner(tmp_path, {"picture": works.picture, "learn": works.learn}, Limits(**limits))
        made.append(runner)
        if start:
            runner.start()
        return runner

    yield make_runner
    works.gate.set()
    for runner in made:
        runner.close()


def end_of(runner: JobRunner, job: Job, *states: JobState) -> Job:
    """Wait until a job has ended, or is in one of these states."""
    end = time.monotonic() + 20
    while (now := runner.job(job.id)).state not in (states or ENDED):
        assert time.monotonic() < end, now
        time.sleep(0.005)
    return now


def test_a_job_runs_to_its_end_and_its_result_and_files_are_there(make: Callable[..., JobRunner]) -> None:
    runner = make()
    seen: list[str] = []
    runner.listeners.append(lambda job: seen.append(job.state.value))
    job = end_of(runner, runner.submit("ann", "picture", {"name": "a"}))
    assert job.state is JobState.DONE
    assert job.result == {"files": ["picture.txt"]}
    assert (runner.folder(job.id) / "picture.txt").read_text() == "a"
    assert job.progress == Progress(2, 2)
    assert seen == ["queued", "running", "done"]
    assert runner.preview(job.id) is None
    assert runner.jobs("ann") == [job]
    assert runner.jobs("bob") == []


def test_people_take_turns_however_many_jobs_one_of_them_has(make: Callable[..., JobRunner], works: Works) -> None:
    runner = make(start=False)
    for name in ("a1", "a2", "a3"):
        runner.submit("ann", "picture", {"name": name, "steps": 1})
    jobs = [
        runner.submit(person, "picture", {"name": name, "steps": 1}) for person, name in (("bob", "b1"), ("cy", "c1"))
    ]
    assert [runner.ahead(job.id) for job in jobs] == [1, 2]
    runner.start()
    for job in runner.jobs():
        end_of(runner, job)
    assert [name for name, _ in works.order] == ["a1", "b1", "c1", "a2", "a3"]


def test_a_job_of_many_pictures_lets_other_people_go_first_between_two_of_them(
    make: Callable[..., JobRunner], works: Works
) -> None:
    order: list[str] = []

    def pictures(task: Task) -> Steps:
        files: tuple[str, ...] = ()
        for k in range(task.request["count"]):
            for step in range(2):
                works.gate.wait(20)
                order.append(f"{task.request['name']}{k + 1}.{step + 1}")
                yield Progress(step, 2, files=files)
            files = (*files, f"{k}.png")
            yield Progress(2, 2, files=files)
        return {"files": [*files]}

    runner = make(start=False)
    runner._works = {"picture": pictures}
    jobs = [
        runner.submit(person, "picture", {"name": name, "count": count})
        for person, name, count in (("ann", "a", 3), ("ann", "x", 1), ("bob", "b", 2), ("cy", "c", 1))
    ]
    runner.start()
    for job in jobs:
        assert end_of(runner, job).state is JobState.DONE
    assert order[::2] == [f"{name}.1" for name in ("a1", "b1", "c1", "a2", "b2", "a3", "x1")]
    assert order[1::2] == [one.replace(".1", ".2") for one in order[::2]]  # each picture is made in one go
    assert not runner._between


def test_a_picture_does_not_wait_for_a_learning_to_end_and_both_go_on(
    make: Callable[..., JobRunner], works: Works
) -> None:
    runner = make()
    learning = runner.submit("ann", "learn", {"name": "l", "steps": 400, "seconds": 0.005})
    end_of(runner, learning, JobState.RUNNING)
    pictures = [runner.submit("bob", "picture", {"name": f"p{k}", "steps": 3, "seconds": 0.01}) for k in range(3)]
    for picture in pictures:
        assert end_of(runner, picture).state is JobState.DONE
    assert runner.job(learning.id).state is JobState.RUNNING
    names = [name for name, _ in works.order]
    # Each picture is made in one go, and the learning has steps between two pictures.
    for k in range(3):
        first = names.index(f"p{k}")
        assert names[first : first + 3] == [f"p{k}"] * 3
    assert "l" in names[names.index("p0") : names.index("p2")]


@pytest.mark.parametrize("kind", ["picture", "learn"])
def test_cancel_ends_a_job_before_its_next_step(make: Callable[..., JobRunner], works: Works, kind: str) -> None:
    runner = make()
    works.gate.clear()
    job = runner.submit("ann", kind, {"name": "x", "steps": 100})
    end_of(runner, job, JobState.RUNNING)
    runner.wish(job.id, Wish.CANCEL)
    works.gate.set()
    assert end_of(runner, job).state is JobState.CANCELLED
    assert len(works.order) <= 1


def test_a_waiting_job_is_cancelled_at_once_and_never_begins(make: Callable[..., JobRunner], works: Works) -> None:
    runner = make(start=False)
    job = runner.submit("ann", "picture", {"name": "x"})
    assert runner.wish(job.id, Wish.CANCEL).state is JobState.CANCELLED
    runner.start()
    end_of(runner, runner.submit("ann", "picture", {"name": "y"}))
    assert {name for name, _ in works.order} == {"y"}


def test_a_paused_learning_frees_the_device_and_goes_on_where_it_was(
    make: Callable[..., JobRunner], works: Works
) -> None:
    runner = make()
    job = runner.submit("ann", "learn", {"name": "l", "steps": 60, "seconds": 0.005})
    end_of(runner, job, JobState.RUNNING)
    while not works.order:
        time.sleep(0.001)
    runner.wish(job.id, Wish.PAUSE)
    paused = end_of(runner, job, JobState.PAUSED)
    assert paused.progress is not None
    end_of(runner, runner.submit("bob", "learn", {"name": "other", "steps": 2}))
    runner.resume(job.id)
    assert end_of(runner, job).result["steps"] == 60
    assert [step for name, step in works.order if name == "l"] == list(range(1, 61))  # no step twice, none left out


@pytest.mark.parametrize("paused", [False, True])
def test_stop_and_keep_the_best_ends_a_learning_with_what_it_has(
    make: Callable[..., JobRunner], works: Works, paused: bool
) -> None:
    runner = make()
    job = runner.submit("ann", "learn", {"name": "l", "steps": 1000, "seconds": 0.002})
    while not works.order:
        time.sleep(0.001)
    if paused:
        runner.wish(job.id, Wish.PAUSE)
        end_of(runner, job, JobState.PAUSED)
    runner.wish(job.id, Wish.FINISH)
    done = end_of(runner, job)
    assert done.state is JobState.DONE
    assert 1 <= done.result["steps"] < 1000


def test_a_picture_has_nothing_to_keep_so_to_finish_it_is_to_cancel_it(
    make: Callable[..., JobRunner], works: Works
) -> None:
    runner = make()
    job = runner.submit("ann", "picture", {"name": "x", "steps": 1000, "seconds": 0.002})
    while not works.order:
        time.sleep(0.001)
    runner.wish(job.id, Wish.FINISH)
    assert end_of(runner, job).state is JobState.CANCELLED


def test_a_job_that_takes_too_long_fails_but_a_learning_keeps_what_it_has(make: Callable[..., JobRunner]) -> None:
    runner = make(job_seconds=0.1)
    picture = end_of(runner, runner.submit("ann", "picture", {"name": "p", "steps": 100, "seconds": 0.02}))
    assert picture.state is JobState.FAILED
    assert "longer than" in (picture.error or "")
    learning = end_of(runner, runner.submit("ann", "learn", {"name": "l", "steps": 100, "seconds": 0.02}))
    assert learning.state is JobState.DONE
    assert 1 <= learning.result["steps"] < 100


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (UsageError("This is wrong", "do that"), "This is wrong: do that."),
        (MemoryError(), "not enough memory"),
        (ZeroDivisionError("x"), "ZeroDivisionError"),
    ],
)
def test_a_failed_job_has_one_line_and_the_next_one_runs(
    make: Callable[..., JobRunner], works: Works, error: Exception, words: str
) -> None:
    runner = make()
    works.error = error
    failed = end_of(runner, runner.submit("ann", "picture", {"name": "x", "fails": True}))
    assert failed.state is JobState.FAILED
    assert words in (failed.error or "")
    assert "\n" not in (failed.error or "")
    assert end_of(runner, runner.submit("ann", "picture", {"name": "y"})).state is JobState.DONE


def test_the_queue_and_the_jobs_of_one_person_are_limited(make: Callable[..., JobRunner]) -> None:
    runner = make(start=False, queue=3, jobs_per_person=2)
    for _ in range(2):
        runner.submit("ann", "picture", {"name": "a"})
    with pytest.raises(Refused, match="2 unfinished jobs") as refused:
        runner.submit("ann", "picture", {"name": "a"})
    assert refused.value.retry_after >= 1
    runner.submit("bob", "picture", {"name": "b"})
    with pytest.raises(Refused, match="queue is full"):
        runner.submit("cy", "picture", {"name": "c"})
    runner.start()
    for job in runner.jobs():
        end_of(runner, job)
    runner.submit("ann", "picture", {"name": "a"})


def test_nobody_finds_the_job_of_another_person(make: Callable[..., JobRunner]) -> None:
    runner = make()
    job = runner.submit("ann", "picture", {"name": "a"})
    assert runner.job(job.id, "ann").id == job.id
    for id, person in ((job.id, "bob"), ("0" * 32, "ann"), ("../x", "ann"), ("' OR 1=1 --", None)):
        with pytest.raises(UnknownJob):
            runner.job(id, person)


def test_a_stopped_runner_goes_on_with_all_its_jobs_in_their_order(
    make: Callable[..., JobRunner], works: Works
) -> None:
    runner = make()
    job = runner.submit("ann", "learn", {"name": "l", "steps": 80, "seconds": 0.005})
    while len(works.order) < 5:
        time.sleep(0.001)
    works.gate.clear()
    waiting = [runner.submit("bob", "learn", {"name": f"w{k}", "steps": 1}) for k in range(2)]
    works.gate.set()
    runner.close()
    with pytest.raises(Refused, match="stopping"):
        runner.submit("ann", "picture", {"name": "x"})
    again = make()
    assert end_of(again, job).result["steps"] == 80
    for one in waiting:
        assert end_of(again, one).state is JobState.DONE
    assert [step for name, step in works.order if name == "l"] == list(range(1, 81))


def test_two_runners_cannot_use_one_folder(make: Callable[..., JobRunner], tmp_path: Path) -> None:
    first = make()
    with pytest.raises(InstError, match="Another studio uses"):
        make(start=False)
    first.close()
    make(start=False)


def test_another_file_in_the_place_of_the_jobs_is_refused_and_left_as_it_is(
    make: Callable[..., JobRunner], tmp_path: Path
) -> None:
    (tmp_path / "jobs.sqlite").write_bytes(b"not a database, but somebody's notes" * 40)
    before = (tmp_path / "jobs.sqlite").read_bytes()
    with pytest.raises(InstError, match="cannot be used"):
        make(start=False)
    assert (tmp_path / "jobs.sqlite").read_bytes() == before


def test_old_jobs_and_their_files_go_and_new_ones_stay(make: Callable[..., JobRunner], tmp_path: Path) -> None:
    runner = make(keep_days=0.0)
    old = end_of(runner, runner.submit("ann", "picture", {"name": "a"}))
    assert runner.folder(old.id).exists()
    runner.close()
    time.sleep(0.01)
    runner = make(keep_days=0.0)
    new = end_of(runner, runner.submit("ann", "picture", {"name": "b"}))
    assert not runner.folder(old.id).exists()
    assert runner.folder(new.id).exists()
    with pytest.raises(UnknownJob):
        runner.job(old.id)


def test_the_time_that_a_learning_still_takes_does_not_count_the_pictures_before_it(
    make: Callable[..., JobRunner], works: Works
) -> None:
    runner = make(start=False)
    told: list[float | None] = []

    def learn(task: Task) -> Steps:
        for step in range(1, 5):
            time.sleep(0.01)
            yield Progress(step, 4, remaining=1000.0)
            told.append(getattr(runner.job(task.id).progress, "remaining", None))
        return {}

    runner._works = {**runner._works, "learn": learn}
    job = runner.submit("ann", "learn", {})
    runner.submit("bob", "picture", {"name": "p", "steps": 2, "seconds": 0.3})
    runner.start()
    end_of(runner, job)
    assert told[0] == 1000.0
    assert all(one is not None and one < 0.3 for one in told[1:])
    assert told[-1] == 0


def test_paused_jobs_are_limited_and_to_finish_one_needs_a_place_in_the_queue(make: Callable[..., JobRunner]) -> None:
    runner = make(start=False, queue=2)
    for k in range(8):
        runner.wish(runner.submit(f"person {k}", "picture", {"name": "a"}).id, Wish.PAUSE)
    waiting = [runner.submit(f"other {k}", "picture", {"name": "a"}) for k in range(2)]
    with pytest.raises(Refused, match="8 jobs are paused") as refused:
        runner.wish(waiting[0].id, Wish.PAUSE)
    assert refused.value.retry_after >= 1
    paused = runner.jobs("person 3")[0]
    runner._jobs[paused.id] = replace(paused, progress=Progress(1, 2))  # it has something to keep
    for call in (runner.resume, lambda id: runner.wish(id, Wish.FINISH)):
        with pytest.raises(Refused, match="queue is full"):
            call(paused.id)
    runner.limits = Limits(queue=1)
    runner.wish(waiting[0].id, Wish.CANCEL)
    runner.wish(waiting[1].id, Wish.CANCEL)
    with pytest.raises(Refused, match="8 unfinished jobs"):
        runner.submit("new", "picture", {"name": "a"})
    assert runner.wish(paused.id, Wish.FINISH).state is JobState.QUEUED


@pytest.mark.parametrize("later", [Wish.PAUSE, Wish.FINISH, None])
def test_a_cancel_stays_whatever_comes_after_it(
    make: Callable[..., JobRunner], works: Works, later: Wish | None
) -> None:
    runner = make()
    works.gate.clear()
    job = runner.submit("ann", "learn", {"name": "l", "steps": 100})
    assert works.entered.wait(10)
    runner.wish(job.id, Wish.PAUSE)
    assert runner.wish(job.id, Wish.CANCEL).wish == "cancel"
    if later is None:
        runner.resume(job.id)
    else:
        runner.wish(job.id, later)
    works.gate.set()
    assert end_of(runner, job).state is JobState.CANCELLED


def test_a_wish_that_comes_while_a_learning_saves_where_it_is_holds(make: Callable[..., JobRunner]) -> None:
    entered, leave = threading.Event(), threading.Event()

    def slow(task: Task) -> Steps:
        try:
            while True:
                time.sleep(0.005)
                yield Progress(1, 2)
        except Interrupted:
            entered.set()
            leave.wait(10)
            raise

    runner = make(start=False)
    runner._works = {"learn": slow}
    runner.start()
    job = runner.submit("ann", "learn", {})
    while runner.job(job.id).progress is None:
        time.sleep(0.001)
    runner.wish(job.id, Wish.PAUSE)
    assert entered.wait(10)
    runner.wish(job.id, Wish.CANCEL)
    leave.set()
    assert end_of(runner, job, JobState.PAUSED, *ENDED).state is JobState.CANCELLED


@pytest.mark.parametrize(
    ("wish", "state"),
    [(Wish.CANCEL, JobState.CANCELLED), (Wish.FINISH, JobState.DONE), (Wish.PAUSE, JobState.PAUSED)],
)
def test_an_accepted_wish_survives_a_crash(
    make: Callable[..., JobRunner], works: Works, tmp_path: Path, wish: Wish, state: JobState
) -> None:
    runner = make()
    job = runner.submit("ann", "learn", {"name": "l", "steps": 1000, "seconds": 0.002})
    while runner.job(job.id).progress is None:
        time.sleep(0.001)
    works.gate.clear()
    time.sleep(0.05)
    runner.wish(job.id, wish)
    crashed = tmp_path / "crashed"  # the disk as a crash would leave it now
    shutil.copytree(tmp_path, crashed, ignore=lambda *_: ["crashed"])
    works.gate.set()
    runner.close()
    again = JobRunner(crashed, {"learn": works.learn}, Limits())
    again.start()
    try:
        assert end_of(again, job, state).state is state
        assert again.job(job.id).wish is None
    finally:
        again.close()


def test_errors_of_the_disk_and_of_listeners_end_one_job_at_most(
    make: Callable[..., JobRunner], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = make(start=False)
    assert runner.is_alive
    runner.listeners.append(lambda job: 1 / 0)

    def broken(before: float) -> list[str]:
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(runner._store, "remove_older", broken)
    shutil.rmtree(tmp_path / "jobs")
    (tmp_path / "jobs").write_text("")
    failed = runner.submit("ann", "picture", {"name": "a"})
    unknown = runner.submit("bob", "film", {"name": "a"})
    runner.start()
    assert "folder cannot be made" in (end_of(runner, failed).error or "")
    assert "kind of job" in (end_of(runner, unknown).error or "")
    (tmp_path / "jobs").unlink()
    assert end_of(runner, runner.submit("ann", "picture", {"name": "b"})).state is JobState.DONE
    assert runner.is_alive
    runner.close()
    assert not runner.is_alive


def test_work_that_fails_while_it_is_closed_is_cancelled(make: Callable[..., JobRunner], works: Works) -> None:
    def stubborn(task: Task) -> Steps:
        try:
            while True:
                time.sleep(0.005)
                yield Progress(1, 2)
        finally:
            raise OSError("disk full")

    runner = make(start=False)
    runner._works = {**runner._works, "stubborn": stubborn}
    runner.start()
    job = runner.submit("ann", "stubborn", {})
    end_of(runner, job, JobState.RUNNING)
    while runner.job(job.id).progress is None:
        time.sleep(0.001)
    runner.wish(job.id, Wish.CANCEL)
    assert end_of(runner, job).state is JobState.CANCELLED
    assert end_of(runner, runner.submit("ann", "picture", {"name": "b"})).state is JobState.DONE


def test_an_error_of_the_runner_itself_does_not_end_its_thread(
    make: Callable[..., JobRunner], monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = make(start=False)
    following, errors = runner._next, [KeyError(), ValueError()]

    def failing() -> Job | None:
        if errors:
            raise errors.pop()
        return following()

    monkeypatch.setattr(runner, "_next", failing)
    runner.start()
    assert end_of(runner, runner.submit("ann", "picture", {"name": "b"})).state is JobState.DONE
    assert runner.is_alive


def test_a_job_that_ended_while_the_disk_was_full_stays_ended_and_is_saved_later(
    make: Callable[..., JobRunner], works: Works, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = make()
    works.gate.clear()
    job, other = (runner.submit(person, "picture", {"name": person}) for person in ("ann", "bob"))
    end_of(runner, job, JobState.RUNNING)
    save, attempts = runner._store.save, []

    def full(job: Job) -> None:
        attempts.append(job.id)
        raise InstError("The job cannot be saved (database or disk is full)")

    with monkeypatch.context() as patch:
        patch.setattr(runner._store, "save", full)
        works.gate.set()
        for one in (job, other):
            assert end_of(runner, one).state is JobState.DONE
        assert [one.state for one in runner.jobs("ann")] == [JobState.DONE]
        assert len(attempts) < 20
    assert runner._store.find(job.id) != runner.job(job.id)
    monkeypatch.setattr("inst.studio.jobs._SAVE_EVERY", 0.05)
    end = time.monotonic() + 10
    while any(runner._store.find(one.id) != runner.job(one.id) for one in (job, other)):
        assert time.monotonic() < end
        time.sleep(0.01)
    assert runner._store.save == save
    assert not runner._unsaved
    assert [one.state for one in runner.jobs("ann")] == [JobState.DONE]


def test_other_old_things_are_removed_at_the_start_and_every_hour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[float] = []

    def tidy() -> None:
        calls.append(time.monotonic())
        raise OSError("disk")

    monkeypatch.setattr("inst.studio.jobs._TIDY_EVERY", 0.2)
    runner = JobRunner(tmp_path, {}, Limits(), tidy=tidy)
    runner.start()
    end = time.monotonic() + 10
    while len(calls) < 3 and time.monotonic() < end:
        time.sleep(0.01)
    runner.close()
    assert len(calls) >= 3
    assert calls[1] - calls[0] >= 0.2


KILLED = """
import sys, time
from pathlib import Path
from inst.studio.job_store import Progress
from inst.studio.jobs import JobRunner
from inst.studio.limits import Limits

def never(task):
    while True:
        time.sleep(0.01)
        yield Progress(1, 2)

runner = JobRunner(Path(sys.argv[1]), {"picture": never}, Limits(jobs_per_person=50, queue=50))
runner.start()
for k in range(30):
    print(runner.submit("ann", "picture", {"name": str(k), "steps": 1}).id, flush=True)
"""


def test_no_accepted_job_is_lost_when_the_process_is_killed(
    make: Callable[..., JobRunner], tmp_path: Path, works: Works
) -> None:
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    accepted = [process.stdout.readline().strip() for _ in range(7)]
    process.kill()
    accepted += [line for line in process.stdout.read().split("\n") if len(line) == 32]
    process.wait()
    runner = make()
    for id in accepted:
        assert end_of(runner, runner.job(id)).state is JobState.DONE
    done = [name for name, _ in works.order]
    assert done[: len(accepted)] == [str(k) for k in range(len(accepted))]


def test_many_threads_submit_cancel_and_look_at_once(make: Callable[..., JobRunner]) -> None:
    runner = make(queue=500, jobs_per_person=500)
    errors: list[BaseException] = []
    jobs: list[Job] = []

    def visit(person: str) -> None:
        try:
            for k in range(10):
                kind = "learn" if k % 3 == 0 else "picture"
                job = runner.submit(person, kind, {"name": person, "steps": 2})
                jobs.append(job)
                runner.ahead(job.id)
                if k % 4 == 1:
                    runner.wish(job.id, Wish.CANCEL)
                runner.jobs(person)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=visit, args=(f"person {k}",)) for k in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(jobs) == 120
    for job in jobs:
        assert end_of(runner, job).state in (JobState.DONE, JobState.CANCELLED)
