"""A running studio with mini, and the actions of a person on its page."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from study_browser import Visitor, visiting

DEMO = Path(__file__).parents[2] / "src" / "inst" / "demo"
COMMAND = (sys.executable, "-c", "from inst.cli import main; main()")


class Served:
    """A studio in its own process.

    Attributes:
        page: its address, which ends in a slash.
        process: the process.
    """

    def __init__(self, data: Path, *options: str) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, "studio", "--data", str(data), "--port", "0", "--json", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the studio ended with {self.process.wait()}"
        self.page = str(json.loads(line)["page"])

    def kill(self) -> None:
        """End it at once, as a crash does."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """Ask it to stop, and return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.kill()
            raise


@contextmanager
def served_studio(data: Path, *options: str) -> Iterator[Served]:
    """Run a studio until the end of the block."""
    served = Served(data, *options)
    try:
        yield served
    finally:
        if served.process.poll() is None:
            served.stop()


class Guest(Visitor):
    """A person on the page of the studio."""

    def wait(self, condition: Callable[[], object], what: str, seconds: float = 120) -> None:
        """Wait until a condition holds. The page may replace an element while it is looked at."""
        from selenium.common.exceptions import WebDriverException

        end = time.monotonic() + seconds
        while True:
            try:
                if condition():
                    return
            except WebDriverException:
                pass
            assert time.monotonic() < end, f"not within {seconds:.0f} s: {what}; {self.text()[:1500]}"
            time.sleep(0.1)

    def visit(self, address: str, selector: str = "#transfer-paint") -> None:
        """Open an address, and wait until a part of the page is shown."""
        self.driver.get(address)
        self.wait(lambda: self.find(selector).is_displayed(), selector)
        self.wait(lambda: not self.find_all(".loading, .pending"), "the page is loaded")

    def upload(self, selector: str, *pictures: Path) -> None:
        """Choose files in an input of the page."""
        self.wait(lambda: self.find_all(f"{selector} input[type=file]"), f"the input of {selector}")
        self.find(f"{selector} input[type=file]").send_keys("\n".join(map(str, pictures)))
        self.wait(lambda: self.find_all(f"{selector} img[src*='/file=']"), f"the picture in {selector}, uploaded")

    def click(self, selector: str) -> None:
        """Click a part of the page, which is scrolled into sight first."""
        self.wait(lambda: self.find(selector).is_displayed(), selector)
        self.script("arguments[0].scrollIntoView({block: 'center'})", self.find(selector))
        self.find(selector).click()

    def tab(self, name: str) -> None:
        """Open a tab of the page: transfer, learn, generate or library."""
        self.click(f"#tab-{name}-button")

    def status(self, tab: str) -> str:
        """Return the sentence about the job of a tab."""
        return str(self.find(f"#{tab}-status").text)

    def wait_for_status(self, tab: str, *words: str) -> None:
        """Wait until the sentence about the job of a tab has one of these words."""
        self.wait(lambda: any(word in self.status(tab) for word in words), f"{words} in the status of {tab}")

    def result(self) -> str:
        """Return the address of the picture that the tab for transfer shows beside the photo."""
        return str(self.find_all("#transfer-compare img")[-1].get_property("src"))

    def fits(self) -> bool:
        """Whether nothing is cut off at the sides."""
        return bool(self.script("return document.documentElement.scrollWidth <= window.innerWidth"))


@contextmanager
def guest(profile: Path, **options: Any) -> Iterator[Guest]:
    """Start a browser for the studio until the end of the block; options as for `visiting`."""
    with visiting(profile, **options) as visitor:
        yield Guest(visitor.driver)
