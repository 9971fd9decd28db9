"""A real Chromium with the study's page, and the actions of a person."""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

PHONE = {"width": 390, "height": 664, "pixelRatio": 2, "touch": True}
"""The size of the page on a common phone, without the bars of the browser, in CSS pixels."""

QUIET = (
    *("--headless=new", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--hide-scrollbars", "--window-size=1280,800"),
)


def needs_chromium() -> tuple[str, str]:
    """Return the programs chromium and chromedriver. Without them, the test is skipped, or fails in CI."""
    found = shutil.which("chromium"), shutil.which("chromedriver")
    try:
        import selenium  # noqa: F401
    except ImportError:
        found = None, None
    if found[0] is None or found[1] is None:
        reason = "needs chromium, chromedriver (on Debian: apt-get install chromium chromium-driver) and selenium"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return found[0], found[1]


class Visitor:
    """A person at a browser."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def find(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def find_all(self, selector: str) -> list[Any]:
        return list(self.driver.find_elements("css selector", selector))

    def script(self, code: str, *arguments: object) -> Any:
        return self.driver.execute_script(code, *arguments)

    def wait(self, condition: Callable[[], object], what: str) -> None:
        end = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < end, f"not within 30 s: {what}; {self.page()} {self.text()[:500]}"
            time.sleep(0.03)

    def page(self) -> str:
        """The visible part: consent, trial, ranking or thanks; empty while the page loads."""
        return str(self.script("return document.querySelector('main:not([hidden])')?.id ?? ''"))

    def text(self) -> str:
        return str(self.find("body").text)

    def open(self, address: str, page: str) -> None:
        self.driver.get(address)
        self.wait_for(page)

    def wait_for(self, page: str) -> None:
        self.wait(lambda: self.page() == page, f"the page {page}")

    def wait_for_pair(self, position: int) -> None:
        """Wait until this pair can be answered."""
        ready = (
            "return document.querySelector('main:not([hidden])')?.id === 'trial'"
            "&& document.querySelector('#progress').value === arguments[0] - 1"
            "&& document.querySelector('[data-role=first] .frame').ariaDisabled === 'false'"
        )
        self.wait(lambda: self.script(ready, position), f"pair {position}")

    def shown(self, role: str) -> str:
        """Return the key of the picture in a role, after its pixels are loaded."""
        image = self.find(f"[data-role={role}] img")
        assert self.script("return arguments[0].naturalWidth", image) > 0
        return str(image.get_property("src")).rpartition("/")[2]

    def choose(self, role: str) -> str:
        """Click a result and return the key of its picture."""
        key = self.shown(role)
        self.find(f"[data-role={role}] .frame").click()
        return key

    def ranked(self) -> list[str]:
        return [item.get_attribute("data-factor") for item in self.find_all("#ranked li")]

    def errors(self) -> list[str]:
        """Return the errors of the browser: blocked scripts, failed requests, exceptions."""
        return [entry["message"] for entry in self.driver.get_log("browser")]


@contextmanager
def visiting(profile: Path, phone: bool = False, language: str = "en-GB") -> Iterator[Visitor]:
    """Start a browser with its own profile until the end of the block."""
    chromium, chromedriver = needs_chromium()
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in (*QUIET, f"--user-data-dir={profile}", f"--lang={language}", f"--accept-lang={language}"):
        options.add_argument(argument)
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # Chromium's sandbox does not work for root
    if phone:
        options.add_experimental_option("mobileEmulation", {"deviceMetrics": PHONE})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(chromedriver))
    try:
        yield Visitor(driver)
    finally:
        driver.quit()
