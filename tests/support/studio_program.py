"""`inst studio` in its own process, with the tiny random model."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

_PROGRAM = """
import sys
import inst.studio.service
import inst.studio.work
from studio_server import stand_in

inst.studio.work._CHECKPOINT_SECONDS = 0.05
make_app = inst.studio.service.make_app
inst.studio.service.make_app = lambda studio, **more: make_app(studio, page=stand_in, **more)
from inst.cli import main
sys.argv[0] = "inst"
main()
"""
"""The command, with the small page of the tests, and with a checkpoint after almost every step of a learning."""


@dataclass
class Program:
    """The running command."""

    process: subprocess.Popen[str]
    address: str
    client: httpx.Client

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal; return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(60)

    def wait(self, id: str, until: Any = None) -> dict[str, Any]:
        end = time.monotonic() + 100
        while time.monotonic() < end:
            job: dict[str, Any] = self.client.get(f"/api/jobs/{id}").json()
            if until(job) if until else job["state"] in ("done", "failed", "cancelled"):
                return job
            time.sleep(0.02)
        raise AssertionError(f"the job does not come to this: {job}")


def start(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    """Start the command."""
    paths = os.pathsep.join([str(Path(__file__).parent), *(one for one in sys.path if one)])
    return subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, "studio", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"} | environment,
    )


@contextmanager
def running(backbone: Path, data: Path, *arguments: object) -> Iterator[Program]:
    """Run the command until the end of the block."""
    common = ("--backbone", backbone, "--device", "cpu", "--dtype", "float32", "--port", 0, "--json")
    process = start("--data", data, *common, *arguments)
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        line = process.stdout.readline()
        assert line, process.stderr.read()
        address = json.loads(line)["page"]
        with httpx.Client(base_url=address, timeout=60, headers={"X-Inst-Person": "a-test-person"}) as client:
            yield Program(process, address, client)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()
