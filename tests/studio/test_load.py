"""Many people at once, and many jobs one after another."""

from __future__ import annotations

import gc
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil

import inst
from inst.studio.limits import Limits
from studio_server import serving


def test_fifty_people_at_once_lose_no_job(tiny_backbone: inst.Backbone, tmp_path: Path) -> None:
    gate = threading.Event()

    def load() -> inst.Backbone:
        gate.wait(60)
        return tiny_backbone

    with serving(tmp_path / "data", load, Limits(queue=20), wait=False) as served:
        people = [{"X-Inst-Person": f"person-{number:04}"} for number in range(50)]
        bodies = [served.transfer(one) for one in people]
        together = threading.Barrier(50)

        def submit(number: int) -> httpx.Response:
            with httpx.Client(base_url=served.address, timeout=60) as client:
                together.wait()
                return client.post("/api/jobs/transfer", json=bodies[number], headers=people[number])

        with ThreadPoolExecutor(50) as pool:
            answers = list(pool.map(submit, range(50)))
        assert Counter(answer.status_code for answer in answers) == {202: 20, 429: 30}
        assert all(int(answer.headers["Retry-After"]) >= 1 for answer in answers if answer.status_code == 429)
        gate.set()
        for number, answer in enumerate(answers):
            if answer.status_code == 202:
                served.client.headers.update(people[number])
                assert served.wait(answer.json()["id"])["state"] == "done"


def test_memory_stays_flat_over_many_jobs(tiny_backbone: inst.Backbone, tmp_path: Path) -> None:
    process = psutil.Process()
    with serving(tmp_path / "data", lambda: tiny_backbone) as served:
        body = served.transfer()

        def run(jobs: int) -> int:
            """Run jobs, and return the memory of the process in bytes."""
            for _ in range(jobs // 10):
                ids = [served.submit(body=body).json()["id"] for _ in range(10)]
                for id in ids:
                    assert served.wait(id)["state"] == "done"
                    assert served.events(id)
            gc.collect()
            return int(process.memory_info().rss)

        before = run(50)  # caches fill up
        growth = run(200) - before
        assert growth < 40 * 2**20, f"{growth / 2**20:.0f} MB more after 200 jobs"
