"""The page of the studio in a real Chromium, with mini: what an artist does, on desktop and phone."""

from __future__ import annotations

import io
import os
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from contrast import low_contrast
from inst.studio.page.texts import CHINESE
from inst.synthesis.record import read_record
from studio_page import DEMO, Guest, Served, guest, served_studio
from study_browser import needs_chromium

pytestmark = pytest.mark.skipif(os.name != "posix", reason="is driven on POSIX only")

PAINTING, PHOTO = DEMO / "night-cafe.webp", DEMO / "ducks.webp"
FAST = "?size=256&steps=3"


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    needs_chromium()
    with served_studio(tmp_path_factory.mktemp("studio") / "data", "--queue", "20") as served:
        yield served


def fetch(visitor: Guest, address: str) -> bytes:
    """Download an address as the browser would, with its cookies."""
    cookies = "; ".join(f"{one['name']}={one['value']}" for one in visitor.driver.get_cookies())
    with urllib.request.urlopen(urllib.request.Request(address, headers={"Cookie": cookies})) as answer:
        return bytes(answer.read())


def pixels(data: bytes, size: tuple[int, int] = (96, 64)) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB").resize(size), dtype=float)


def test_a_painting_and_a_photo_become_a_picture_which_gives_its_settings_back(studio: Served, tmp_path: Path) -> None:
    with guest(tmp_path / "profile") as visitor:
        visitor.visit(f"{studio.page}{FAST}&strength=0.5&seed=3")
        visitor.upload("#transfer-painting", PAINTING)
        visitor.upload("#transfer-photo", PHOTO)  # the picture is made without another click
        visitor.wait_for_status("transfer", "Done")
        visitor.wait(lambda: len(visitor.find_all("#transfer-compare img")) == 2, "photo and picture")
        link = visitor.find("#transfer-download a").get_property("href")
        made = fetch(visitor, link)
        difference = np.abs(pixels(made) - pixels(PHOTO.read_bytes())).mean()
        assert difference > 12, "the picture is hardly changed"
        (tmp_path / "made.png").write_bytes(made)
        record = read_record(tmp_path / "made.png")
        assert record.settings["strength"] == 0.5
        assert record.settings["seed"] == 3
        assert record.photo is not None
        assert record.photo.name == PHOTO.name

        # A changed setting is in the address, and a link to it opens the same state.
        number = visitor.find("#transfer-strength input[type=number]")
        number.clear()
        number.send_keys("0.8\t")
        visitor.wait(lambda: "strength=0.8" in visitor.driver.current_url, "the setting in the address")
        visitor.visit(visitor.driver.current_url)
        visitor.wait(
            lambda: visitor.find("#transfer-strength input[type=number]").get_property("value") == "0.8", "the setting"
        )
        # After a reload the last picture is shown again.
        visitor.wait(lambda: len(visitor.find_all("#transfer-compare img")) == 2, "the last picture")

        # The picture, dropped back, brings its settings, its style and its photo.
        visitor.click("#restore-part > button")
        visitor.upload("#restore", tmp_path / "made.png")
        visitor.wait(
            lambda: visitor.find("#transfer-strength input[type=number]").get_property("value") == "0.5", "the setting"
        )
        visitor.wait(lambda: visitor.find_all("#transfer-photo img"), "the photo")
        visitor.click("#transfer-paint")
        visitor.wait(lambda: visitor.find("#transfer-download a").get_property("href") != link, "another picture")
        again = fetch(visitor, visitor.find("#transfer-download a").get_property("href"))
        assert np.abs(pixels(again) - pixels(made)).max() <= 1, "the same settings give the same picture"
        assert [line for line in visitor.errors() if "manifest.json" not in line and "SEVERE" in line] == []


def test_the_style_goes_only_where_the_mask_is_painted(studio: Served, tmp_path: Path) -> None:
    from selenium.webdriver import ActionChains

    with guest(tmp_path / "profile") as visitor:
        visitor.visit(f"{studio.page}{FAST}&strength=0.9&style_attention=0")
        visitor.upload("#transfer-photo", PHOTO)
        visitor.click("#transfer-mask-part > button")
        visitor.wait(lambda: visitor.find_all("#transfer-mask canvas"), "the canvas")
        canvas = visitor.find("#transfer-mask canvas")
        visitor.script("arguments[0].scrollIntoView({block: 'center'})", canvas)
        visitor.wait(lambda: canvas.size["height"] > 100, "the canvas is drawn")
        stroke = ActionChains(visitor.driver, 30).move_to_element_with_offset(canvas, -60, 0).click_and_hold()
        for _ in range(8):
            stroke = stroke.move_by_offset(15, 0)
        visitor.wait(lambda: visitor.find("#transfer-mask img, #transfer-mask canvas"), "the photo below the brush")
        stroke.release().perform()
        visitor.wait(lambda: visitor.find("#transfer-mask button[aria-label=Undo]").is_enabled(), "the stroke is taken")
        visitor.upload("#transfer-painting", PAINTING)
        visitor.wait_for_status("transfer", "Done")
        made = fetch(visitor, visitor.find("#transfer-download a").get_property("href"))
        change = np.abs(pixels(made) - pixels(PHOTO.read_bytes())).mean(axis=2)
        assert change[28:36, 40:56].mean() > 4 * change[:8].mean() + 5, "the middle changes, the top stays"


def test_a_learning_shows_previews_and_its_loss_survives_a_reload_and_ends_on_request(
    studio: Served, tmp_path: Path
) -> None:
    with guest(tmp_path / "profile") as visitor:
        visitor.visit(f"{studio.page}?tab=learn", "#learn-start")
        visitor.upload("#learn-paintings", PAINTING)
        visitor.click("#learn-more > button")
        every = visitor.find("#learn-every input[type=number]")
        every.clear()
        every.send_keys("5\t")
        visitor.click("#learn-start")
        visitor.wait_for_status("learn", "Step ")
        visitor.wait(lambda: visitor.find_all("#learn-previews img"), "a preview")
        visitor.wait(lambda: visitor.find_all("#learn-plot svg path"), "the plot")
        first = visitor.status("learn")
        visitor.visit(f"{studio.page}?tab=learn", "#learn-start")  # the tab was closed and opened again
        visitor.wait(lambda: visitor.status("learn") not in ("", first), "the job goes on and is found")
        visitor.wait(lambda: visitor.find_all("#learn-previews img"), "the previews are there again")
        visitor.click("#learn-pause")
        visitor.wait_for_status("learn", "Paused")
        visitor.click("#learn-resume")
        visitor.wait_for_status("learn", "Step ", "Waiting")
        visitor.wait(
            lambda: len(visitor.find_all("#learn-previews .thumbnail-item, #learn-previews .grid-wrap img")) >= 2,
            "another preview",
        )
        visitor.click("#learn-finish")
        visitor.wait_for_status("learn", "is learned")

        # The style can be taken away, and is in the library: another name, search, delete, undo.
        style = fetch(visitor, visitor.find("#learn-download a").get_property("href"))
        assert b"inst_style" in style[:4096]
        visitor.tab("library")
        visitor.wait(lambda: visitor.find_all("#library-styles button img"), "the style")
        visitor.click("#library-styles button:has(img)")
        visitor.wait(lambda: visitor.find("#library-name input, #library-name textarea").is_displayed(), "its details")
        name = visitor.find("#library-name input, #library-name textarea")
        name.clear()
        name.send_keys("Café at night")
        visitor.click("#library-save")
        visitor.wait(lambda: "Saved" in visitor.find("#library-message").text, "saved")
        search = visitor.find("#library-search input, #library-search textarea")
        search.send_keys("no such style")
        visitor.wait(lambda: not visitor.find_all("#library-styles button img"), "nothing is found")
        search.clear()
        search.send_keys("CAFÉ")
        visitor.wait(lambda: visitor.find_all("#library-styles button img"), "it is found")
        visitor.click("#library-delete")
        visitor.wait(lambda: "deleted" in visitor.find("#library-message").text, "deleted")
        visitor.wait(lambda: not visitor.find_all("#library-styles button img"), "it is gone")
        visitor.click("#library-undo")
        visitor.wait(lambda: "is back" in visitor.find("#library-message").text, "undone")
        visitor.wait(lambda: visitor.find_all("#library-styles button img"), "it is there again")

        # A style file that was taken away can be brought to another library; here, it is a second style.
        (tmp_path / "taken-away.safetensors").write_bytes(style)
        imports = visitor.find("input[data-testid='Import a style file-upload-button']")
        imports.send_keys(str(tmp_path / "taken-away.safetensors"))
        visitor.wait(lambda: "is in the library" in visitor.find("#library-message").text, "imported")
        search = visitor.find("#library-search input, #library-search textarea")
        search.clear()
        search.send_keys(" ")
        visitor.wait(lambda: len(visitor.find_all("#library-styles button img")) == 2, "both styles")
        (tmp_path / "no-style.safetensors").write_bytes(b"this is none")
        imports = visitor.find("input[data-testid='Import a style file-upload-button']")
        imports.send_keys(str(tmp_path / "no-style.safetensors"))
        visitor.wait(lambda: "not a style file" in visitor.text(), "refused in one line")

        # It makes pictures from a prompt, without the painting.
        visitor.tab("generate")
        visitor.click("#generate-saved input")
        visitor.click("#generate-saved ul li, ul.options li")
        visitor.click("#generate-make")
        visitor.wait_for_status("generate", "Done")
        visitor.wait(lambda: visitor.find_all("#generate-gallery img"), "the picture")


def test_cancel_ends_a_learning_and_frees_the_queue(studio: Served, tmp_path: Path) -> None:
    with guest(tmp_path / "profile") as visitor:
        visitor.visit(f"{studio.page}?tab=learn", "#learn-start")
        visitor.upload("#learn-paintings", PAINTING)
        visitor.click("#learn-start")
        visitor.wait_for_status("learn", "Step ")
        visitor.click("#learn-cancel")
        visitor.wait_for_status("learn", "Stopped")


def test_the_page_fits_a_phone_and_speaks_chinese(studio: Served, tmp_path: Path) -> None:
    with guest(tmp_path / "profile", phone=True, language="zh-CN") as visitor:
        visitor.visit(studio.page)
        assert visitor.driver.current_url.endswith("/zh/")
        assert visitor.script("return document.documentElement.lang") == "zh-CN"
        for tab in ("transfer", "learn", "generate", "library"):
            visitor.visit(f"{studio.page}zh/?tab={tab}", f"#tab-{tab}-button")
            assert visitor.fits(), tab
        text = visitor.text()
        assert CHINESE.search in text
        assert "Drop Image Here" not in text
        visitor.visit(f"{studio.page}zh/{FAST}")
        visitor.upload("#transfer-painting", PAINTING)
        visitor.upload("#transfer-photo", PHOTO)
        visitor.wait_for_status("transfer", "完成")
        visitor.wait(lambda: len(visitor.find_all("#transfer-compare img")) == 2, "photo and picture")
        assert visitor.fits()


def test_a_picture_can_be_made_with_the_keyboard_alone(studio: Served, tmp_path: Path) -> None:
    from selenium.webdriver import ActionChains, Keys

    with guest(tmp_path / "profile") as visitor:
        visitor.visit(f"{studio.page}{FAST}")

        def press(*keys: str) -> None:
            for key in keys:
                ActionChains(visitor.driver, 20).send_keys(key).perform()

        def focus_on(selector: str) -> None:
            for _ in range(80):
                if visitor.script("return document.activeElement.closest(arguments[0]) !== null", selector):
                    outline = visitor.script("return getComputedStyle(document.activeElement).outlineStyle")
                    assert outline == "solid", f"no focus ring on {selector}"
                    return
                press(Keys.TAB)
            raise AssertionError(f"{selector} cannot be reached")

        focus_on("#transfer-examples")
        press(Keys.ENTER)
        visitor.wait_for_status("transfer", "Done")
        for name in ("painting", "photo"):
            shown = visitor.find(f"#transfer-{name} img")
            visitor.wait(lambda shown=shown: visitor.script("return arguments[0].naturalWidth", shown) > 0, name)
        first = visitor.find("#transfer-download a").get_property("href")
        visitor.script("document.activeElement.blur()")
        focus_on("#transfer-strength")
        press(Keys.ARROW_RIGHT)
        focus_on("#transfer-paint")
        press(Keys.ENTER)
        visitor.wait(lambda: visitor.find("#transfer-download a").get_property("href") != first, "another picture")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_control_has_a_name_and_every_text_has_enough_contrast(
    studio: Served, tmp_path: Path, theme: str
) -> None:
    controls = "button, select, textarea, input:not([type=file]):not([type=hidden]), a[href]"
    with guest(tmp_path / "profile") as visitor:
        for tab in ("transfer", "learn", "generate", "library"):
            visitor.visit(f"{studio.page}en/?tab={tab}&__theme={theme}", f"#tab-{tab}-button")
            for closed in visitor.find_all("button.label-wrap:not(.open)"):
                if closed.is_displayed():
                    visitor.script("arguments[0].click()", closed)
            visitor.wait(lambda: not low_contrast(visitor, ".gradio-container"), "enough contrast", 5)
            for one in visitor.find_all(controls):
                if one.is_displayed() and not visitor.script("return arguments[0].closest('[aria-hidden=true]')", one):
                    assert one.accessible_name, f"{tab}: {one.get_attribute('outerHTML')[:300]}"


def test_nothing_comes_from_another_host(studio: Served, tmp_path: Path) -> None:
    with guest(tmp_path / "profile") as visitor:
        for tab in ("transfer", "learn", "generate", "library"):
            visitor.visit(f"{studio.page}?tab={tab}", f"#tab-{tab}-button")
            hosts = visitor.script(
                "return [...new Set(performance.getEntriesByType('resource').map(one => new URL(one.name).host))]"
            )
            assert hosts == [studio.page.split("/")[2]]
            assert not [line for line in visitor.errors() if "Content Security Policy" in line or "https://" in line]
