"""Measure the studio on this computer: until the page is there, and from dropping a photo to its picture.

    python benchmarks/studio.py [--repeats 3] [--size 512] [--out studio.json]

A real Chromium is driven (chromium, chromedriver, selenium), with mini. Beside it stands `inst transfer` with the same
painting, photo and size as a whole command. Absolute times count for one machine only, with nothing else running.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from inst.demo import PAINTINGS, PHOTOS
from inst.files.writing import write_bytes_atomically

INST = [sys.executable, "-c", "from inst.cli import main; main()"]
# The page itself notes the times: a driver that asks again and again would take a tenth of the computer's time.
_WATCH = """
const seen = window.seen = {}, note = name => { seen[name] ??= performance.now() / 1000 };
document.querySelector("#transfer-photo input[type=file]").addEventListener("change", () => note("drop"), true);
new MutationObserver(() => {
  if (document.querySelector("#transfer-preview img")) note("preview");
  if (document.querySelector("#transfer-status .inst-done")) note("picture");
}).observe(document.body, {subtree: true, childList: true, attributes: true});
"""
_ASK_SECONDS = 0.5


def measure_command(size: int, folder: Path) -> float:
    """Return the seconds of the whole command `inst transfer`."""
    begin = time.perf_counter()
    subprocess.run(
        [*INST, "transfer", PHOTOS[0], "-s", PAINTINGS[0], "--size", str(size), "-o", folder / "x.png", "-q"],
        check=True,
    )
    seconds = time.perf_counter() - begin
    (folder / "x.png").unlink()
    return seconds


def measure_studio(size: int, folder: Path) -> dict[str, float]:
    """Start a studio, open its page, drop a painting and a photo twice, and return the seconds of each part."""
    begin = time.perf_counter()
    server = subprocess.Popen(
        [*INST, "studio", "--data", str(folder / "data"), "--port", "0", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert server.stdout is not None
        page = json.loads(server.stdout.readline())["page"]
        found = {"command to page": time.perf_counter() - begin}
        driver = _browser(folder / "profile")
        try:
            for visit in ("first", "second"):
                driver.get(f"{page}en/?size={size}&seed={1 if visit == 'second' else 0}")
                _wait(driver, "return document.querySelector('#transfer-photo input[type=file]') !== null")
                _upload(driver, "#transfer-painting", PAINTINGS[0])
                driver.execute_script(_WATCH)
                driver.find_element("css selector", "#transfer-photo input[type=file]").send_keys(str(PHOTOS[0]))
                _wait(driver, "return window.seen.picture !== undefined")
                seen = driver.execute_script("return window.seen")
                for what in ("preview", "picture"):
                    found[f"{visit} drop to {what}"] = seen[what] - seen["drop"]
        finally:
            driver.quit()
    finally:
        server.terminate()
        server.wait()
    shutil.rmtree(folder / "data")
    return found


def _browser(profile: Path) -> Any:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"):
        options.add_argument(argument)
    options.binary_location = shutil.which("chromium") or ""
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))


def _upload(driver: Any, selector: str, picture: Path) -> None:
    driver.find_element("css selector", f"{selector} input[type=file]").send_keys(str(picture))
    _wait(driver, f"return document.querySelector(\"{selector} img[src*='/file=']\") !== null")


def _wait(driver: Any, condition: str) -> None:
    while not driver.execute_script(condition):
        time.sleep(_ASK_SECONDS)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--size", type=int, default=512, help="short side of the pictures in pixels")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    rows: dict[str, list[float]] = {}
    for _ in range(options.repeats):
        with tempfile.TemporaryDirectory() as folder:
            found = {"inst transfer": measure_command(options.size, Path(folder))}
            for name, seconds in (found | measure_studio(options.size, Path(folder))).items():
                rows.setdefault(name, []).append(seconds)
    medians = {name: round(statistics.median(values), 2) for name, values in rows.items()}
    for name, seconds in medians.items():
        print(f"{name:26} {seconds:7.2f} s")
    if options.out is not None:
        write_bytes_atomically(options.out, json.dumps({"size": options.size, "seconds": medians}, indent=2).encode())


if __name__ == "__main__":
    main()
