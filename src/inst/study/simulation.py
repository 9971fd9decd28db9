"""Simulated participants against the real server, which is killed once in the middle: is every answer kept?"""

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

from inst.errors import InstError
from inst.study.database import Database

_PATIENCE = 60.0
_LOST_ANSWERS = 0.05
"""Share of the requests whose answer the simulated participant never sees, and sends again."""
_SECOND_THOUGHTS = 0.03
"""Share of the votes after which the simulated participant goes back and takes the other one."""


@dataclass
class Simulation:
    """What was sent, and what was found in the file afterwards.

    Attributes:
        participants, trials: how many, and of how many pairs each.
        acknowledged: answers that the server said it had.
        kept: of those, found in the file.
        votes: in the file; one for each participant and pair if none is lost and none counted twice.
        wrong: votes that are not the last choice that was acknowledged for the pair.
        kills: how often the server was killed.
        retries: requests that had to be sent again.
        seconds: in all.
        slowest: seconds that 95 of 100 answered requests stayed below.
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
        """Whether every acknowledged answer is there, and none twice."""
        return self.kept == self.acknowledged and self.votes == self.participants * self.trials and not self.wrong


@dataclass
class _Tally:
    """What the simulated participants saw, together."""

    answers: dict[str, tuple[str, int, str]] = field(default_factory=dict)
    """By the answer's key: token, position, choice; in the order of acknowledgement."""
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
        said = self._process.stdout.readline()
        if not said:
            raise InstError(f"The server of {self._path} does not start", "try to serve it")
        self.port = urlsplit(json.loads(said)["page"]).port or 0

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()  # SIGKILL, where there are signals: nothing can be tidied up
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


class _Participant:
    """One simulated person, who knows each picture's (folder, name) by its address."""

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
        seen: set[str] = set()
        for trial in session["trials"]:
            for picture in {trial[role] for role in ("photo", "painting", "first", "second")} - seen:
                self._ask("GET", f"/pictures/{picture}")  # once, as browsers keep it
                seen.add(picture)
            choice = self._choose(trial)
            self._vote(trial["position"], choice)
            if self._rng.random() < _SECOND_THOUGHTS:
                self._vote(trial["position"], "second" if choice == "first" else "first")
        factors = session["factors"]
        self._rng.shuffle(factors)
        self._ask("POST", "/api/ranking", {"ranking": factors[: self._rng.randint(1, len(factors))]})
        if self._connection:
            self._connection.close()

    def _choose(self, trial: Mapping[str, str]) -> str:
        (method, name), (other, _) = self._pictures[trial["first"]], self._pictures[trial["second"]]
        if method == other:  # an attention check
            right = "__".join(self._pictures[trial[role]][1] for role in ("photo", "painting"))
            return "first" if name == right else "second"
        return "first" if (method == self._ours) == (self._rng.random() < self._preference) else "second"

    def _vote(self, position: int, choice: str) -> None:
        key = self._rng.randbytes(16).hex()
        seconds = self._rng.lognormvariate(1.5, 0.5)
        self._ask("POST", "/api/vote", {"key": key, "position": position, "choice": choice, "seconds": seconds})
        with self._tally.lock:
            self._tally.answers[key] = (self._token, position, choice)

    def _ask(self, method: str, path: str, body: object = None) -> Any:
        """Send a request until the server has answered it, as the page does."""
        give_up = time.monotonic() + _PATIENCE
        headers = {"Authorization": f"Bearer {self._token}"}
        content = None if body is None else json.dumps(body)
        while True:
            start = time.monotonic()
            try:
                if self._connection is None:
                    self._connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_PATIENCE)
                self._connection.request(method, path, content, headers)
                if method == "POST" and self._rng.random() < _LOST_ANSWERS:
                    raise ConnectionResetError  # the request arrives, its answer does not
                answer = self._connection.getresponse()
                found = answer.read()
                if answer.status != 200:
                    raise InstError(f"The server refuses {path}: {answer.status} {found.decode(errors='replace')}")
            except (OSError, http.client.HTTPException):
                if self._connection is not None:
                    self._connection.close()
                self._connection = None
                if time.monotonic() > give_up:
                    raise InstError(f"The server does not answer within {_PATIENCE:.0f} s.") from None
                with self._tally.lock:
                    self._tally.retries += 1
                time.sleep(0.05)
                continue
            with self._tally.lock:
                self._tally.waits.append(time.monotonic() - start)
            return json.loads(found) if path.startswith("/api") else found


def simulate(
    path: str | Path,
    *,
    participants: int = 87,
    at_once: int = 20,
    kills: int = 1,
    preference: float = 0.6,
    seed: int = 0,
) -> Simulation:
    """Let simulated participants take part in a study through its server, and look whether every answer is there.

    The server runs in a process of its own, is killed without warning while participants vote, and is started again.
    Some answers are lost on the way and sent again, and some participants go back, as people do.

    Args:
        path: the study's file, without participants; theirs are written to it, so give a copy.
        participants, at_once: how many, and how many of them at a time.
        kills: how often the server is killed, evenly over the votes.
        preference: probability of a vote for ours.
        seed: of the participants' choices.

    Raises:
        InstError: the server does not start, does not answer, or refuses.
    """
    path = Path(path)
    with Database(path) as database:
        settings = database.settings()
        found = database.rows("SELECT key, folder, name FROM pictures")
        pictures = {row["key"]: (row["folder"], row["name"]) for row in found}
    result = Simulation(participants, settings.trials + settings.checks)
    tally, server, start = _Tally(), _Server(path), time.monotonic()
    server.start()
    try:
        with ThreadPoolExecutor(at_once) as pool:
            people = [
                _Participant(server.port, f"{seed} {number}", pictures, settings.ours, preference, tally)
                for number in range(participants)
            ]
            running = [pool.submit(one.take_part) for one in people]
            for number in range(1, kills + 1):
                enough = participants * result.trials * number / (kills + 1)
                while len(tally.answers) < enough and not all(one.done() for one in running):
                    time.sleep(0.005)
                server.kill()
                server.start()
                result.kills += 1
            for one in running:
                one.result()
    finally:
        server.kill()
    result.seconds = time.monotonic() - start
    result.retries = tally.retries
    result.slowest = sorted(tally.waits)[int(0.95 * (len(tally.waits) - 1))]
    _compare(path, tally, result)
    return result


def _compare(path: Path, tally: _Tally, result: Simulation) -> None:
    """Look for what was acknowledged in the file. The server was killed: SQLite recovers what it had committed."""
    with Database(path) as database:
        keys = {row["key"] for row in database.rows("SELECT key FROM answers")}
        chosen = {row["key"]: row["first"] for row in database.rows("SELECT key, first FROM votes")}
        result.votes = database.value("SELECT count(*) FROM votes")
    last = {(token, position): (key, choice) for key, (token, position, choice) in tally.answers.items()}
    result.acknowledged = len(tally.answers)
    result.kept = len(tally.answers.keys() & keys)
    result.wrong = sum(chosen.get(key) != (choice == "first") for key, choice in last.values())
