"""Test whether every answer is stored: simulated participants use the real server, which is killed in between."""

from __future__ import annotations

import http.client
import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from inst.arguments import check_between
from inst.errors import InstError, UsageError
from inst.study.database import Database

_MOST_PARTICIPANTS, _MOST_AT_ONCE, _MOST_KILLS = 10_000, 200, 1000
_TIMEOUT = 60.0
_LOST_ANSWERS = 0.05
"""Share of requests whose answer is lost, so that the simulated participant sends the request again."""
_CHANGED_VOTES = 0.03
"""Share of votes that the simulated participant changes afterwards."""


@dataclass
class Simulation:
    """The answers that were sent, and the answers found in the file afterwards.

    Attributes:
        participants, trials: number of participants, and of pairs for each.
        acknowledged: number of answers that the server confirmed.
        kept: number of confirmed answers found in the file.
        votes: number of votes in the file; one for each participant and pair if none is lost or counted twice.
        wrong: number of votes that differ from the last confirmed choice for the pair.
        kills: number of times the server was killed.
        retries: number of requests that were sent again.
        seconds: total time.
        slowest: 95th percentile of the time until an answer, in seconds.
    """

    participants: int
    trials: int
    acknowledged: int = 0
    kept: int = 0
    votes: int = 0
    wrong: int = 0
    kills: int = 0
    retries: int = 0
    seconds: float = 0.0
    slowest: float = 0.0

    @property
    def complete(self) -> bool:
        """Return whether every confirmed answer is stored, and none twice."""
        return self.kept == self.acknowledged and self.votes == self.participants * self.trials and not self.wrong


@dataclass
class _Tally:
    """The confirmed answers and the waiting times of all simulated participants."""

    answers: dict[str, tuple[str, int, str]] = field(default_factory=dict)
    """Token, position and choice by the key of the answer, in the order of confirmation."""
    waits: list[float] = field(default_factory=list)
    retries: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


class _Server:
    """`inst study serve` in a process of its own."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._process: subprocess.Popen[str] | None = None
        self.port = 0

    def start(self) -> None:
        program = "import sys; from inst.cli import main; sys.argv[0] = 'inst'; main()"
        arguments = ["study", "serve", str(self._path), "--port", str(self.port), "--json"]
        self._process = subprocess.Popen([sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise InstError(f"The server of {self._path} does not start", "serve the study to see the error")
        self.port = urlsplit(json.loads(line)["page"]).port or 0

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()  # SIGKILL on systems with signals, so that the server cannot clean up
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


class _Participant:
    """A simulated participant, who knows (folder, name) of each picture by its address."""

    def __init__(
        self, port: int, seed: str, pictures: Mapping[str, tuple[str, str]], ours: str, preference: float, tally: _Tally
    ) -> None:
        self._rng = random.Random(seed)
        self._pictures, self._ours, self._preference, self._tally = pictures, ours, preference, tally
        self._token = self._rng.randbytes(32).hex()
        self._port = port
        self._connection: http.client.HTTPConnection | None = None

    def take_part(self) -> None:
        session = self._ask("POST", "/api/begin", {})
        cached: set[str] = set()
        for trial in session["trials"]:
            for picture in {trial[role] for role in ("photo", "painting", "first", "second")} - cached:
                self._ask("GET", f"/pictures/{picture}")  # only once, because browsers cache it
                cached.add(picture)
            choice = self._choose(trial)
            self._vote(trial["position"], choice)
            if self._rng.random() < _CHANGED_VOTES:
                self._vote(trial["position"], "second" if choice == "first" else "first")
        factors = session["factors"]
        self._rng.shuffle(factors)
        self._ask("POST", "/api/ranking", {"ranking": factors[: self._rng.randint(1, len(factors))]})
        if self._connection:
            self._connection.close()

    def _choose(self, trial: Mapping[str, str]) -> str:
        (method, name), (other, _) = self._pictures[trial["first"]], self._pictures[trial["second"]]
        if method == other:  # an attention check
            correct = "__".join(self._pictures[trial[role]][1] for role in ("photo", "painting"))
            return "first" if name == correct else "second"
        return "first" if (method == self._ours) == (self._rng.random() < self._preference) else "second"

    def _vote(self, position: int, choice: str) -> None:
        key = self._rng.randbytes(16).hex()
        seconds = self._rng.lognormvariate(1.5, 0.5)
        self._ask("POST", "/api/vote", {"key": key, "position": position, "choice": choice, "seconds": seconds})
        with self._tally.lock:
            self._tally.answers[key] = (self._token, position, choice)

    def _ask(self, method: str, path: str, body: object = None) -> Any:
        """Send a request again and again until the server answers, as the page does."""
        deadline = time.monotonic() + _TIMEOUT
        headers = {"Authorization": f"Bearer {self._token}"}
        content = None if body is None else json.dumps(body)
        while True:
            start = time.monotonic()
            try:
                if self._connection is None:
                    self._connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_TIMEOUT)
                self._connection.request(method, path, content, headers)
                if method == "POST" and self._rng.random() < _LOST_ANSWERS:
                    raise ConnectionResetError  # the request arrives, but its answer is lost
                answer = self._connection.getresponse()
                received = answer.read()
                if answer.status != 200:
                    text = received.decode(errors="replace")
                    raise InstError(f"The server refuses {path}: {answer.status} {text}", "report this as a bug")
            except (OSError, http.client.HTTPException):
                if self._connection is not None:
                    self._connection.close()
                self._connection = None
                if time.monotonic() > deadline:
                    raise InstError(
                        f"The server does not answer within {_TIMEOUT:.0f} s", "use fewer participants at a time"
                    ) from None
                with self._tally.lock:
                    self._tally.retries += 1
                time.sleep(0.05)
                continue
            with self._tally.lock:
                self._tally.waits.append(time.monotonic() - start)
            return json.loads(received) if path.startswith("/api") else received


def simulate(
    path: str | Path,
    *,
    participants: int = 87,
    at_once: int = 20,
    kills: int = 1,
    preference: float = 0.6,
    seed: int = 0,
) -> Simulation:
    """Let simulated participants take part in a study through its server, and check that every answer is stored.

    The server runs in its own process, is killed without warning while participants vote, and is started again. Some
    answers are lost and sent again, and some participants go back and change a vote, as people do.

    Args:
        path: the study's file, without participants. Give a copy, because simulated answers are written to it.
        participants, at_once: number of participants, in total and at a time; at most 10,000 and 200.
        kills: number of times the server is killed, evenly over the votes; at most 1000.
        preference: probability of a vote for ours, 0 to 1.
        seed: random seed of the participants' choices.

    Raises:
        UsageError: a number is out of range.
        InstError: the server does not start, does not answer, or refuses a request.
    """
    check_between(1, _MOST_PARTICIPANTS, participants=participants)
    check_between(1, _MOST_AT_ONCE, participants_at_once=at_once)
    check_between(0, _MOST_KILLS, kills=kills)
    if not 0 <= preference <= 1:
        raise UsageError(f"A preference of {preference:g} cannot be used", "give a number from 0 to 1")
    path = Path(path)
    with Database(path) as database:
        settings = database.settings()
        rows = database.rows("SELECT key, folder, name FROM pictures")
        pictures = {row["key"]: (row["folder"], row["name"]) for row in rows}
    result = Simulation(participants, settings.trials + settings.checks)
    tally, server, start = _Tally(), _Server(path), time.monotonic()
    server.start()
    try:
        with ThreadPoolExecutor(at_once) as pool:
            people = [
                _Participant(server.port, f"{seed} {number}", pictures, settings.ours, preference, tally)
                for number in range(participants)
            ]
            running = [pool.submit(person.take_part) for person in people]
            for number in range(1, kills + 1):
                enough = participants * result.trials * number / (kills + 1)
                while len(tally.answers) < enough and not all(future.done() for future in running):
                    time.sleep(0.005)
                server.kill()
                server.start()
                result.kills += 1
            for future in running:
                future.result()
    finally:
        server.kill()
    result.seconds = time.monotonic() - start
    result.retries = tally.retries
    result.slowest = sorted(tally.waits)[int(0.95 * (len(tally.waits) - 1))]
    _compare(path, tally, result)
    return result


def _compare(path: Path, tally: _Tally, result: Simulation) -> None:
    """Look for the confirmed answers in the file. The server was killed, so SQLite first recovers committed answers."""
    with Database(path) as database:
        keys = {row["key"] for row in database.rows("SELECT key FROM answers")}
        chosen = {row["key"]: row["first"] for row in database.rows("SELECT key, first FROM votes")}
        result.votes = database.value("SELECT count(*) FROM votes")
    last = {(token, position): (key, choice) for key, (token, position, choice) in tally.answers.items()}
    result.acknowledged = len(tally.answers)
    result.kept = len(tally.answers.keys() & keys)
    result.wrong = sum(chosen.get(key) != (choice == "first") for key, choice in last.values())
