"""The one job runner under the studio's page and API: a queue that is fair between people and survives restarts.

One thread works, because there is one device. A job's work is a generator of `Progress`; between two of its steps the
runner can cancel it, pause it, or let another job go first. Accepted jobs are in a SQLite file before `submit` returns,
so a killed server goes on with them when it is started again.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import secrets
import shutil
import sqlite3
import statistics
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from inst.errors import InstError, UsageError
from inst.files.writing import make_folder
from inst.studio.job_store import ENDED, Job, JobState, JobStore, Progress
from inst.studio.limits import Limits

_log = logging.getLogger(__name__)

_POLL = 0.1
"""Seconds between two looks of a watcher at its job."""
_AFTER_ERROR = 1.0
"""Seconds until the jobs go on after an error that should not be: so that the log is not filled."""
_PAUSED = 4
_UNFINISHED = 5
"""How many jobs may be paused, and not have ended, as a multiple of those that may wait."""
_LONGEST_TURN = 3.0
"""Seconds of learning at most between two pictures that people wait for."""
_TIDY_EVERY = 3600.0
_SAVE_EVERY = 2.0
"""Seconds between two attempts to save the jobs that could not be saved."""


class UnknownJob(InstError, LookupError):
    """No job has this id, or it belongs to another person."""

    def __init__(self) -> None:
        super().__init__("There is no such job", "list your jobs; finished ones are removed after some days")


class Refused(InstError):
    """A job is not accepted now.

    Attributes:
        retry_after: seconds after which a place may be free.
        reason: "queue", "person" or "stopping".
    """

    def __init__(self, problem: str, remedy: str, retry_after: int, reason: str = "queue") -> None:
        super().__init__(problem, remedy)
        self.retry_after = retry_after
        self.reason = reason


class Wish(StrEnum):
    """What a person, or the runner, wants of a running job."""

    CANCEL = "cancel"
    PAUSE = "pause"
    FINISH = "finish"  # stop and keep the best so far
    TIME = "time"  # the job's time is up
    STOP = "stop"  # the server stops; the job goes on when it is started again


_RANK = (Wish.PAUSE, Wish.TIME, Wish.FINISH, Wish.CANCEL)
"""Of two wishes, the later one in this list holds."""


class Interrupted(Exception):
    """Thrown into a job's work between two steps, for every wish but `CANCEL`, for which the work is closed.

    Work that can keep something catches it: it saves where it is and raises it again (pause, stop), or returns what it
    has (finish, time).
    """

    def __init__(self, wish: Wish) -> None:
        super().__init__(wish.value)
        self.wish = wish


@dataclass(frozen=True)
class Task:
    """What the work of a job gets.

    Attributes:
        id: the job's id.
        folder: the job's own folder, which exists. It may hold what an earlier, interrupted run of the job saved.
        request: the request as plain JSON values.
        created: when the job was accepted, a Unix time in seconds. With the id, it tells the job from all others: a key
            of a person may give the same id again when the first job was removed.
    """

    id: str
    folder: Path
    request: Mapping[str, Any]
    created: float


Steps = Generator[Progress, None, Mapping[str, Any]]
"""The work of a job: yields after every step, and returns the result as plain JSON values; "files" are names of files
in the job's folder."""

Work = Callable[[Task], Steps]


class JobRunner:
    """Runs jobs one after another. All methods may be called from any thread.

    Jobs of the kinds `long` (learning) give way to the others between two steps, and get as much time as those took in
    turn. Within each of the two groups, people take turns: who was served longest ago is next. A job of several
    pictures can lose its turn after each of them, which is when `Progress.files` grows.

    Args:
        folder: the data folder; it gets jobs.sqlite and jobs/, with one folder a job.
        works: the work by kind of job.
        limits: see `Limits`.
        long: the kinds that give way.
        tidy: called at the start and every hour, in the thread of the jobs.

    Raises:
        InstError: another process uses the folder, or it cannot be written to.
    """

    def __init__(
        self,
        folder: Path,
        works: Mapping[str, Work],
        limits: Limits,
        *,
        long: Iterable[str] = ("learn",),
        tidy: Callable[[], None] | None = None,
    ) -> None:
        self.limits = limits
        self.listeners: list[Callable[[Job], None]] = []
        """Called with a job after its state has changed, in any thread."""
        self._works = works
        self._long = frozenset(long)
        self._also_tidy = tidy
        self._folder = folder / "jobs"
        make_folder(self._folder)
        self._store = JobStore(folder / "jobs.sqlite")
        self._changed = threading.Condition(threading.RLock())
        # Jobs that have not ended, in the order in which they came. Ended ones are in the store only.
        self._jobs = {job.id: job for job in self._store.unfinished()}
        self._steps: dict[str, Steps] = {}
        # Those whose work has taken a step since it was begun or resumed: seconds and steps after that step.
        self._stepped: dict[str, tuple[float, int]] = {}
        self._wishes = {job.id: Wish(job.wish) for job in self._jobs.values() if job.wish}
        self._between: set[str] = set()  # those that have begun, and give way to other people before their next picture
        self._previews: dict[str, bytes] = {}
        self._served: dict[str, int] = {}  # person -> number of the turn in which they were served last
        self._turns = 0
        self._owed = 0.0  # seconds that learning may use before the next picture
        self._durations: deque[float] = deque([10.0], maxlen=20)
        self._closing = False
        self._tidied = -math.inf
        self._unsaved: dict[str, Job] = {}  # those that are older on the disk, ended ones too
        self._tried = 0.0  # when they were tried last
        self._thread = threading.Thread(target=self._run, name="inst-studio-jobs", daemon=True)
        for job in list(self._jobs.values()):
            if job.state is JobState.RUNNING:
                self._settle(job)

    @property
    def is_alive(self) -> bool:
        """Whether jobs are worked on, or will be after `start`. False if the thread has come to an end."""
        return self._thread.ident is None or self._thread.is_alive()

    def start(self) -> None:
        """Begin to work, first on the jobs that an earlier run of the server left."""
        self._thread.start()

    def submit(self, person: str, kind: str, request: Mapping[str, Any], key: str | None = None) -> Job:
        """Accept a job. It is on the disk when this returns.

        Args:
            person: who asks for it.
            kind: the kind of job.
            request: the request as plain JSON values.
            key: any text; a second request of the person with the same key gets the same job, as long as it is kept.

        Raises:
            Refused: the queue is full, the person has too many jobs, or the server stops.
            UsageError: the key belongs to another request.
            InstError: the disk is full.
        """
        id = secrets.token_hex(16) if key is None else _id_of(person, key)
        with self._changed:
            if self._closing:
                raise Refused("The studio is stopping", "try again in a minute", 60, "stopping")
            known = self._find(id)
            if known is not None:
                if (known.kind, known.request) != (kind, dict(request)):
                    raise UsageError("Another request had this key", "give every request its own")
                return known
            mine = sum(job.person == person for job in self._jobs.values())
            if mine >= self.limits.jobs_per_person:
                raise Refused(
                    f"You have {mine} unfinished jobs, as many as one person may have",
                    "wait for one of them, or cancel it",
                    self._estimate(1),
                    "person",
                )
            self._check_queue("try again later")
            if len(self._jobs) >= _UNFINISHED * self.limits.queue:
                raise Refused(f"There are {len(self._jobs)} unfinished jobs", "try again later", self._estimate(1))
            job = Job(id, person, kind, dict(request), created=time.time())
            self._store.save(job)
            self._jobs[job.id] = job
            self._tell(job)
            self._changed.notify_all()
            return job

    def job(self, id: str, person: str | None = None) -> Job:
        """Return a job. Raises UnknownJob; also for a job of somebody else, if a person is given."""
        with self._changed:
            job = self._find(id)
        if job is None or (person is not None and job.person != person):
            raise UnknownJob
        return job

    def jobs(self, person: str | None = None) -> list[Job]:
        """Return the jobs of a person, or all jobs that have not ended; the newest first."""
        with self._changed:
            unfinished = list(self._jobs.values())
            if person is None:
                return unfinished[::-1]
            unsaved = [job for job in self._unsaved.values() if job.id not in self._jobs and job.person == person]
            known = self._jobs.keys() | self._unsaved.keys()
            ended = [*unsaved, *(job for job in self._store.ended(person) if job.id not in known)]
        mine = [job for job in unfinished if job.person == person]
        return sorted([*mine, *ended], key=lambda job: -job.created)

    def ahead(self, id: str) -> int:
        """Return how many jobs will begin or end before this one begins; 0 if it does not wait."""
        with self._changed:
            job = self._jobs.get(id)
            if job is None or job.state is not JobState.QUEUED:
                return 0
            running = sum(self._is_long(one) == self._is_long(job) for one in map(self._jobs.get, self._steps) if one)
            return running + [one.id for one in self._order(self._is_long(job))].index(id)

    def preview(self, id: str) -> bytes | None:
        """Return the newest preview of an unfinished job, a WebP file; None if there is none."""
        return self._previews.get(id)

    def folder(self, id: str) -> Path:
        """Return the folder of a job. The id must be that of a job (`Job.id`), not text from outside."""
        return self._folder / id

    def wish(self, id: str, wish: Wish) -> Job:
        """Cancel, pause or finish a job: before its next step if it runs, at once if it waits. Ended jobs stay.

        To cancel goes before to finish, and that before to pause. The wish is on the disk when this returns.

        Raises:
            UnknownJob: there is no such job.
            Refused: too many jobs are paused; or the job is paused, and to finish it must wait, but the queue is full.
        """
        with self._changed:
            job = self.job(id)
            before = self._wishes.get(id)
            waits, keeps = job.state in (JobState.QUEUED, JobState.PAUSED), job.progress is not None
            if wish is Wish.PAUSE and before is None and job.state in (JobState.QUEUED, JobState.RUNNING):
                self._check_paused()
            if job.state is JobState.RUNNING or (waits and wish is Wish.FINISH and keeps):
                if job.state is JobState.PAUSED:
                    self._check_queue("finish it later")
                self._wishes[id] = wish if before is None else max(before, wish, key=_RANK.index)
                if job.state is JobState.PAUSED:
                    self._set(replace(job, state=JobState.QUEUED))
                else:
                    self._keep(job)
            elif waits and wish in (Wish.CANCEL, Wish.FINISH):
                self._end(job, JobState.CANCELLED)
            elif wish is Wish.PAUSE and job.state is JobState.QUEUED and before is None:
                self._set(replace(job, state=JobState.PAUSED))
            self._changed.notify_all()
            return self.job(id)

    def resume(self, id: str) -> Job:
        """Queue a paused job again. Raises UnknownJob, or Refused if the queue is full."""
        with self._changed:
            job = self.job(id)
            if job.state is JobState.PAUSED:
                self._check_queue("resume it later")
                self._set(replace(job, state=JobState.QUEUED))
                self._changed.notify_all()
            elif self._wishes.get(id) is Wish.PAUSE:  # it has not come into effect
                del self._wishes[id]
                self._keep(job)
            return self.job(id)

    def _check_queue(self, remedy: str) -> None:
        waiting = sum(job.state is JobState.QUEUED for job in self._jobs.values())
        if waiting >= self.limits.queue:
            raise Refused(f"{waiting} jobs are waiting, and the queue is full", remedy, self._estimate(1))

    def _check_paused(self) -> None:
        paused = sum(job.state is JobState.PAUSED for job in self._jobs.values())
        paused += sum(wish is Wish.PAUSE for wish in self._wishes.values())
        if paused >= _PAUSED * self.limits.queue:
            raise Refused(f"{paused} jobs are paused, and there may be no more", "let it run", self._estimate(1))

    async def watch(self, id: str, *, places: bool = False) -> AsyncGenerator[Job, None]:
        """Yield a job now and after each change, until it has ended or the server stops. Raises UnknownJob.

        Args:
            id: the job.
            places: yield it also when its place in the queue has changed (`ahead`).
        """
        last: tuple[Job, int] | None = None
        while last is None or (last[0].state not in ENDED and not self._closing):
            job = self.job(id)
            now = job, self.ahead(id) if places else 0
            if now != last:
                yield job
            last = now
            if job.state not in ENDED:
                await asyncio.sleep(_POLL)

    def stop(self) -> None:
        """Stop working after the step that is under way, and accept no jobs. Watchers come to their end."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    def close(self, seconds: float = 30.0) -> None:
        """Stop working: a running job saves where it is and goes on when the server starts again.

        Args:
            seconds: how long to wait for the step that is under way.
        """
        self.stop()
        if self._thread.is_alive():
            self._thread.join(seconds)
        if not self._thread.is_alive():
            with self._changed:
                self._save_again()
            self._store.close()

    # The worker.

    def _run(self) -> None:
        while True:
            try:
                if not self._turn():
                    break
            except Exception:  # nothing may end the thread: all jobs would wait for ever
                _log.exception("the jobs go on after an error")
                time.sleep(_AFTER_ERROR)
        for id in list(self._steps):
            try:
                wish = self._wishes.get(id)
                self._interrupt(self._jobs[id], Wish.CANCEL if wish is Wish.CANCEL else Wish.STOP)
            except Exception:
                _log.exception("job could not be stopped", extra={"job": id})

    def _turn(self) -> bool:
        """Take one step of the job whose turn it is, or wait for one. False when the runner stops."""
        self._tidy()
        with self._changed:
            if self._closing:
                return False
            if self._unsaved and time.monotonic() - self._tried > _SAVE_EVERY:
                self._save_again()
            job = self._next()
            if job is None:
                self._changed.wait(_SAVE_EVERY if self._unsaved else _TIDY_EVERY)
                return True
            try:
                if job.id not in self._steps:
                    job = self._begin(job)
                elif job.id in self._between:
                    self._between.discard(job.id)
                    self._serve(job.person)
            except Exception as error:
                self._fail(job, error)
                return True
        try:
            self._advance(job)
        except Exception as error:  # not one of its work, which are expected
            self._fail(job, error)
        return True

    def _next(self) -> Job | None:
        """Return the job whose turn it is, or None if none waits."""
        lanes = {}
        for long in (False, True):
            active = [job for id in self._steps if self._is_long(job := self._jobs[id]) == long]
            wished = [job for job in active if job.id in self._wishes]  # nobody waits for a cancel
            going = wished or [job for job in active if job.id not in self._between]
            best = going[:1] or [*active, *self._order(long)[:1]]
            lanes[long] = min(best, key=lambda job: self._served.get(job.person, -1), default=None)
        short, long_job = lanes[False], lanes[True]
        if short is None or long_job is None:
            return short or long_job
        return long_job if self._owed > 0 and short.id not in self._steps else short

    def _order(self, long: bool) -> list[Job]:
        """Return the waiting jobs of a lane in the order in which they will be begun."""
        waiting = [job for job in self._jobs.values() if job.state is JobState.QUEUED and self._is_long(job) == long]
        served, order = dict(self._served), []
        while waiting:
            job = min(waiting, key=lambda one: served.get(one.person, -1))  # the earliest job of that person
            waiting.remove(job)
            order.append(job)
            served[job.person] = self._turns + len(order)
        return order

    def _begin(self, job: Job) -> Job:
        self._serve(job.person)
        work = self._works.get(job.kind)
        if work is None:
            raise InstError("This version of the studio does not do this kind of job", "send it again")
        try:
            self.folder(job.id).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InstError(
                f"The job's folder cannot be made ({error.strerror or error})", "look after the disk, and try again"
            ) from None
        self._steps[job.id] = work(self._task(job))
        return self._set(replace(job, state=JobState.RUNNING, started=job.started or time.time(), error=None))

    def _serve(self, person: str) -> None:
        """Count a turn of a person."""
        self._turns += 1
        self._served[person] = self._turns
        if len(self._served) > 1000:
            del self._served[min(self._served, key=lambda one: self._served[one])]

    def _task(self, job: Job) -> Task:
        return Task(job.id, self.folder(job.id), job.request, job.created)

    def _advance(self, job: Job) -> None:
        """Take one step of a job."""
        begin = time.monotonic()
        with self._changed:
            wish = self._wishes.get(job.id)
        if job.seconds > self.limits.job_seconds and wish in (None, Wish.PAUSE):
            wish = Wish.TIME
        # The work must read what it has before it can keep it.
        reads = wish in (Wish.FINISH, Wish.TIME) and job.progress is not None and job.id not in self._stepped
        if wish is not None and not reads:
            self._interrupt(job, wish)
            return
        try:
            progress = next(self._steps[job.id])
        except StopIteration as end:
            self._end(self._timed(job, begin), JobState.DONE, result=end.value)
        except Exception as error:
            self._fail(self._timed(job, begin), error)
        else:
            with self._changed:
                job = self._timed(job, begin)
                if progress.preview is not None:
                    self._previews[job.id] = progress.preview
                before = () if job.progress is None else job.progress.files
                if not self._is_long(job) and len(progress.files) > len(before):
                    self._between.add(job.id)
                progress = replace(progress, remaining=self._remaining(job, progress), preview=None)
                self._jobs[job.id] = replace(job, progress=progress, wish=self._wishes.get(job.id))

    def _remaining(self, job: Job, progress: Progress) -> float | None:
        """Return the seconds until a job's end. Work of long kinds takes waiting for other jobs for its own time."""
        seconds, steps = self._stepped.setdefault(job.id, (job.seconds, progress.step))
        if progress.remaining is None or not self._is_long(job) or progress.step <= steps:
            return progress.remaining
        return (job.seconds - seconds) / (progress.step - steps) * (progress.total - progress.step)

    def _interrupt(self, job: Job, wish: Wish) -> None:
        begin = time.monotonic()
        steps = self._steps[job.id]
        if wish is Wish.CANCEL:
            try:
                steps.close()
            except Exception:
                _log.exception("job did not close", extra={"job": job.id})
            self._end(self._timed(job, begin), JobState.CANCELLED)
            return
        try:
            steps.throw(Interrupted(wish))
        except StopIteration as end:
            self._end(self._timed(job, begin), JobState.DONE, result=end.value)
        except Interrupted:
            job = self._timed(job, begin)
            match wish:
                case Wish.PAUSE | Wish.STOP:
                    with self._changed:
                        self._forget_steps(job.id)
                        self._settle(job)
                case Wish.TIME:
                    minutes = self.limits.job_seconds / 60
                    self._end(
                        job, JobState.FAILED, error=f"The job took longer than {minutes:g} minutes and was stopped."
                    )
                case _:
                    self._end(job, JobState.CANCELLED)
        except Exception as error:
            self._fail(self._timed(job, begin), error)
        else:
            raise AssertionError(f"the work of {job.kind} goes on after an interruption")

    def _timed(self, job: Job, begin: float) -> Job:
        """Count the seconds of a step to its job, and to learning if it was learning's turn."""
        seconds = time.monotonic() - begin
        if self._is_long(job):
            self._owed -= seconds
        return replace(job, seconds=job.seconds + seconds)

    def _fail(self, job: Job, error: Exception) -> None:
        if isinstance(error, InstError):
            line = str(error)
        elif isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            line = "There is not enough memory for this: choose a smaller size."
        else:
            _log.exception("job failed", extra={"job": job.id, "kind": job.kind})
            line = f"Something went wrong that should not ({type(error).__name__}). The server's log has more."
        self._end(job, JobState.FAILED, error=line)

    def _end(
        self, job: Job, state: JobState, *, error: str | None = None, result: Mapping[str, Any] | None = None
    ) -> None:
        with self._changed:
            self._forget_run(job.id)
            self._previews.pop(job.id, None)
            if not self._is_long(job):
                self._owed = min(job.seconds, _LONGEST_TURN)
                if state is JobState.DONE:
                    self._durations.append(job.seconds)
            self._set(replace(job, state=state, ended=time.time(), error=error, result=dict(result or {})))
            self._jobs.pop(job.id, None)

    def _settle(self, job: Job) -> None:
        """Let a job wait that has left off, as it is wished: another wish may have come meanwhile."""
        match self._wishes.get(job.id):
            case Wish.CANCEL:
                self._end(job, JobState.CANCELLED)
            case Wish.PAUSE:
                del self._wishes[job.id]
                self._set(replace(job, state=JobState.PAUSED))
            case _:
                self._set(replace(job, state=JobState.QUEUED))

    def _forget_run(self, id: str) -> None:
        self._forget_steps(id)
        self._wishes.pop(id, None)

    def _forget_steps(self, id: str) -> None:
        self._steps.pop(id, None)
        self._stepped.pop(id, None)
        self._between.discard(id)

    def _set(self, job: Job) -> Job:
        """Keep a job with a new state, here and on the disk."""
        job = self._keep(job)
        self._tell(job)
        return job

    def _keep(self, job: Job) -> Job:
        """Keep a job with the wish that it has now, here and on the disk."""
        job = self._jobs[job.id] = replace(job, wish=self._wishes.get(job.id))
        if self._save(job) and self._unsaved:
            self._save_again()
        return job

    def _save(self, job: Job) -> bool:
        """Write a job to the disk. If that fails, it is tried again later, and work goes on."""
        try:
            self._store.save(job)
        except InstError as error:
            if job.id not in self._unsaved:
                _log.error("%s", error, extra={"job": job.id})
            self._unsaved[job.id] = job
            return False
        self._unsaved.pop(job.id, None)
        return True

    def _save_again(self) -> None:
        """Try to write the jobs that could not be written."""
        self._tried = time.monotonic()
        for id, job in list(self._unsaved.items()):
            if not self._save(self._jobs.get(id, job)):
                break

    def _find(self, id: str) -> Job | None:
        return self._jobs.get(id) or self._unsaved.get(id) or self._store.find(id)

    def _tell(self, job: Job) -> None:
        for listener in self.listeners:
            try:
                listener(job)
            except Exception:
                _log.exception("a listener failed", extra={"job": job.id})

    def _is_long(self, job: Job) -> bool:
        return job.kind in self._long

    def _estimate(self, jobs: int) -> int:
        return max(1, round(jobs * statistics.median(self._durations)))

    def _tidy(self) -> None:
        """Remove the jobs, with their files, that ended or were paused long ago."""
        if time.monotonic() - self._tidied < _TIDY_EVERY:
            return
        self._tidied = time.monotonic()
        try:
            with self._changed:
                self._save_again()
                removed = self._store.remove_older(time.time() - self.limits.keep_days * 86400)
                gone = [id for id in removed if id not in self._unsaved]  # these are older on the disk than here
                for id in gone:
                    self._jobs.pop(id, None)
        except sqlite3.Error:
            _log.exception("old jobs are not removed")
        else:
            for id in gone:
                shutil.rmtree(self.folder(id), ignore_errors=True)
        if self._also_tidy is not None:
            try:
                self._also_tidy()
            except Exception:
                _log.exception("old files are not removed")


def _id_of(person: str, key: str) -> str:
    """Return the id of the job that a person asks for with a key: always the same."""
    return hashlib.sha256(f"{person}\0{key}".encode()).hexdigest()[:32]
