"""The page in a real Chromium: desktop and phone, mouse, touch and keyboard."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from contrast import low_contrast
from inst.study import tables
from inst.study.database import Database
from inst.study.factors import FACTORS, texts
from study_browser import Visitor, needs_chromium, visiting
from study_server import Served, served

pytestmark = pytest.mark.skipif(os.name != "posix", reason="is driven on POSIX only")


@pytest.fixture
def study(make_study: Callable[..., Path]) -> Path:
    needs_chromium()
    return make_study(trials=3, contact="study@example.org")


@pytest.fixture
def server(study: Path) -> Iterator[Served]:
    with served(study) as found:
        yield found


def votes(study: Path) -> list[str]:
    """The keys of the pictures that were chosen, by position, of the only participant."""
    with Database(study) as database:
        found = database.rows(
            "SELECT CASE WHEN for_ours THEN ours.key ELSE other.key END AS chosen FROM votes "
            "JOIN pairs ON pairs.id = pair JOIN pictures AS ours ON ours.id = ours JOIN pictures AS other "
            "ON other.id = other ORDER BY participant, position"
        )
    return [row["chosen"] for row in found]


def ranking(study: Path) -> list[str]:
    with Database(study) as database:
        (found,) = tables.rankings(database).values()
    return found


def answer_all(visitor: Visitor) -> list[str]:
    chosen = []
    for position, role in enumerate(("first", "second", "second"), 1):
        visitor.wait_for_pair(position)
        chosen.append(visitor.choose(role))
    visitor.wait_for("ranking")
    return chosen


def fits(visitor: Visitor) -> bool:
    """Whether nothing is cut off at the sides."""
    return bool(visitor.script("return document.documentElement.scrollWidth <= window.innerWidth"))


def test_an_answer_that_came_too_slowly_is_sent_again(study: Path, server: Served, tmp_path: Path) -> None:
    with visiting(tmp_path / "profile") as visitor:
        visitor.open(server.page, "consent")
        visitor.find("#agree").click()
        visitor.wait_for_pair(1)
        visitor.script(
            "const real = window.fetch; let slow = 1;"
            "window.fetch = (path, ...more) => path === 'api/vote' && slow-- > 0"
            " ? Promise.resolve(Response.json({error: 'slow'}, {status: 408})) : real(path, ...more);"
        )
        chosen = answer_all(visitor)
    assert votes(study) == chosen


def test_a_participant_can_finish_the_study_on_a_desktop_with_the_mouse(
    study: Path, server: Served, tmp_path: Path
) -> None:
    from selenium.webdriver import ActionChains

    with visiting(tmp_path / "profile") as visitor:
        visitor.open(server.page, "consent")
        assert texts("en")["agree"] in visitor.text()
        assert "study@example.org" in visitor.text()
        assert visitor.script("return localStorage.length") == 0  # nothing is kept before consent
        visitor.find("#agree").click()
        visitor.wait_for_pair(1)
        assert visitor.script("return document.documentElement.scrollHeight <= window.innerHeight")
        boxes = {
            role: visitor.find(f"[data-role={role}] .frame").rect for role in ("photo", "painting", "first", "second")
        }
        assert boxes["photo"]["x"] < boxes["first"]["x"] < boxes["second"]["x"]
        assert (boxes["first"]["width"], boxes["first"]["height"]) == (
            boxes["second"]["width"],
            boxes["second"]["height"],
        )
        # A double click is one answer, not that of the next pair too.
        ActionChains(visitor.driver, 10).double_click(visitor.find("[data-role=first] .frame")).perform()
        visitor.wait_for_pair(2)
        assert len(votes(study)) == 1
        visitor.find("#back").click()
        visitor.wait_for_pair(1)
        assert visitor.find("[data-role=first] .frame").get_attribute("aria-pressed") == "true"
        visitor.find("#keep").click()
        visitor.wait_for_pair(2)
        visitor.find("#back").click()
        chosen = answer_all(visitor)
        assert not visitor.find("#send").is_enabled()
        items = [item.get_attribute("data-factor") for item in visitor.find_all("#unranked li")]
        assert sorted(items) == sorted(FACTORS)
        for factor in ("colour", "shapes", "material"):  # each is dragged to the top
            grip = visitor.find(f"[data-factor={factor}] .grip")
            top = visitor.find("#ranked")
            ActionChains(visitor.driver, 50).click_and_hold(grip).move_to_element_with_offset(
                top, 0, -top.rect["height"] // 2 + 6
            ).release().perform()
        assert visitor.ranked() == ["material", "shapes", "colour"]
        visitor.find("[data-factor=colour] .ranked-only").click()  # up
        assert visitor.ranked() == ["material", "colour", "shapes"]
        grip = visitor.find("[data-factor=material] .grip")
        ActionChains(visitor.driver, 50).click_and_hold(grip).move_to_element(
            visitor.find("#unranked")
        ).release().perform()
        assert visitor.ranked() == ["colour", "shapes"]
        visitor.find("#send").click()
        visitor.wait_for("thanks")
        visitor.open(server.page, "thanks")
        assert visitor.errors() == []
    assert votes(study) == chosen
    assert ranking(study) == ["colour", "shapes"]


def test_a_participant_can_finish_the_study_in_chinese_on_a_phone_by_touch(
    study: Path, server: Served, tmp_path: Path
) -> None:
    with visiting(tmp_path / "profile", phone=True, language="zh-CN") as visitor:
        visitor.open(server.page, "consent")
        assert visitor.script("return document.documentElement.lang") == "zh-CN"
        assert texts("zh")["agree"] in visitor.text()
        assert fits(visitor)
        visitor.find("#agree").click()
        visitor.wait_for_pair(1)
        assert visitor.script("return document.documentElement.scrollHeight <= window.innerHeight")
        assert fits(visitor)
        first, second = (visitor.find(f"[data-role={role}] .frame").rect for role in ("first", "second"))
        assert first["y"] + first["height"] <= second["y"]
        assert first["width"] > 300
        assert first["height"] > 150
        visitor.find("[data-role=second] .enlarge").click()
        assert visitor.find("#enlarged").is_displayed()
        visitor.find("#close").click()
        chosen = answer_all(visitor)
        assert fits(visitor)
        swipe(visitor, "[data-factor=material] .grip", "#ranked")
        assert visitor.ranked() == ["material"]
        visitor.find("[data-factor=subjects] .unranked-only").click()
        assert visitor.ranked() == ["material", "subjects"]
        small = [one.size for one in visitor.find_all("button") if one.is_displayed()]
        assert all(size["width"] >= 36 and size["height"] >= 32 for size in small)
        visitor.script("arguments[0].scrollIntoView()", visitor.find("#send"))
        visitor.find("#send").click()
        visitor.wait_for("thanks")
        assert visitor.errors() == []
    assert votes(study) == chosen
    assert ranking(study) == ["material", "subjects"]


def swipe(visitor: Visitor, source: str, target: str) -> None:
    """Drag with a finger, by the events that a touch screen sends."""
    visitor.script("arguments[0].scrollIntoView({block: 'center'})", visitor.find(source))
    centre = "const r = arguments[0].getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]"
    (x, y), (to_x, to_y) = (visitor.script(centre, visitor.find(one)) for one in (source, target))
    steps = [(x + (to_x - x) * step / 5, y + (to_y - y) * step / 5) for step in range(6)]
    for number, (at_x, at_y) in enumerate(steps):
        kind = "touchMove" if number else "touchStart"
        visitor.driver.execute_cdp_cmd(
            "Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": at_x, "y": at_y}]}
        )
    visitor.driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})


def test_a_participant_can_finish_the_study_with_the_keyboard_alone(
    study: Path, server: Served, tmp_path: Path
) -> None:
    from selenium.webdriver import ActionChains, Keys

    with visiting(tmp_path / "profile") as visitor:

        def press(*keys: str) -> None:
            for key in keys:
                ActionChains(visitor.driver, 20).send_keys(key).perform()

        def focus_on(selector: str) -> None:
            for _ in range(40):
                if visitor.script("return document.activeElement.matches(arguments[0])", selector):
                    assert visitor.script("return getComputedStyle(document.activeElement).outlineStyle") == "solid"
                    return
                press(Keys.TAB)
            raise AssertionError(f"{selector} cannot be reached")

        visitor.open(server.page, "consent")
        focus_on("#agree")
        press(Keys.ENTER)
        visitor.wait_for_pair(1)
        assert visitor.script("return document.activeElement.id") == "question"
        chosen = [visitor.shown("second")]
        press(Keys.ARROW_RIGHT)
        visitor.wait_for_pair(2)
        press(Keys.BACKSPACE)
        visitor.wait_for_pair(1)
        chosen = [visitor.shown("first")]
        press("1")
        visitor.wait_for_pair(2)
        chosen.append(visitor.shown("second"))
        # A key that is held down repeats; it is one choice.
        held = {"key": "2", "text": "2", "windowsVirtualKeyCode": 50}
        visitor.driver.execute_cdp_cmd("Input.dispatchKeyEvent", {"type": "keyDown", **held})
        for _ in range(30):
            visitor.driver.execute_cdp_cmd("Input.dispatchKeyEvent", {"type": "keyDown", "autoRepeat": True, **held})
        visitor.wait_for_pair(3)
        visitor.driver.execute_cdp_cmd("Input.dispatchKeyEvent", {"type": "keyDown", "autoRepeat": True, **held})
        visitor.driver.execute_cdp_cmd("Input.dispatchKeyEvent", {"type": "keyUp", **held})
        focus_on("[data-role=first] .enlarge")
        press(Keys.ENTER)
        assert visitor.find("#enlarged").is_displayed()
        press(Keys.ARROW_LEFT, Keys.ESCAPE)  # while a picture is enlarged, arrows choose nothing
        visitor.wait(lambda: not visitor.find("#enlarged").is_displayed(), "the enlarged picture is closed")
        visitor.wait_for_pair(3)
        focus_on("[data-role=second] .frame")
        chosen.append(visitor.shown("second"))
        press(Keys.ENTER)
        visitor.wait_for("ranking")
        for factor in ("brushstroke", "ornament", "subjects"):
            focus_on(f"[data-factor={factor}]")
            press(Keys.ENTER)
        assert visitor.ranked() == ["brushstroke", "ornament", "subjects"]
        press(Keys.ARROW_UP, Keys.ARROW_UP, Keys.ARROW_DOWN)
        assert visitor.ranked() == ["brushstroke", "subjects", "ornament"]
        name = texts("en")["factors"]["subjects"]["name"]
        assert visitor.script("return document.querySelector('#moved').textContent") == f"{name}: place 2 of 3"
        focus_on("[data-factor=ornament]")
        press(" ")
        assert visitor.ranked() == ["brushstroke", "subjects"]
        focus_on("#send")
        press(Keys.ENTER)
        visitor.wait_for("thanks")
        assert visitor.errors() == []
    assert votes(study) == chosen
    assert ranking(study) == ["brushstroke", "subjects"]


def test_after_closing_the_tab_a_participant_goes_on_and_another_starts_anew(
    study: Path, server: Served, tmp_path: Path
) -> None:
    with visiting(tmp_path / "profile") as visitor:
        visitor.open(server.page, "consent")
        visitor.script("localStorage.setItem('inst-study-ranking', '[\"colour\"]')")  # begun in another study
        visitor.find("#agree").click()
        visitor.wait_for_pair(1)
        assert visitor.script("return localStorage.getItem('inst-study-ranking')") == "[]"
        chosen = [visitor.choose("first")]
        visitor.wait_for_pair(2)
        second = visitor.shown("photo"), visitor.shown("first"), visitor.shown("second")
        old = visitor.driver.current_window_handle
        visitor.driver.switch_to.new_window("tab")
        new = visitor.driver.current_window_handle
        visitor.driver.switch_to.window(old)
        visitor.driver.close()
        visitor.driver.switch_to.window(new)
        visitor.driver.get(server.page)
        visitor.wait_for_pair(2)
        assert (visitor.shown("photo"), visitor.shown("first"), visitor.shown("second")) == second
        with visiting(tmp_path / "other", language="fr-FR") as other:  # neither English nor Chinese: it can be chosen
            other.open(server.page, "consent")
            assert texts("en")["agree"] in other.text()
            other.find("#language option[value=zh]").click()
            other.wait(lambda: texts("zh")["agree"] in other.text(), "Chinese")
            other.open(server.page, "consent")
            assert texts("zh")["agree"] in other.text()
        chosen += [visitor.choose("second")]
        visitor.wait_for_pair(3)
        visitor.driver.refresh()
        visitor.wait_for_pair(3)
    assert votes(study) == chosen


def test_an_answer_given_while_the_server_is_down_is_sent_when_it_is_back(study: Path, tmp_path: Path) -> None:
    with visiting(tmp_path / "profile") as visitor:
        with served(study) as server:
            visitor.open(server.page, "consent")
            visitor.find("#agree").click()
            visitor.wait_for_pair(1)
            page = server.page
        chosen = [visitor.choose("second")]  # the server is gone
        visitor.wait(lambda: visitor.find("#offline").is_displayed(), "the notice that there is no connection")
        assert texts("en")["offline"] in visitor.text()
        visitor.find("[data-role=first] .frame").click()  # is not another answer
        with served(study, urlsplit(page).port or 0):
            visitor.wait_for_pair(2)
            assert not visitor.find("#offline").is_displayed()
            chosen += [visitor.choose("first")]
            visitor.wait_for_pair(3)
    assert votes(study) == chosen
    with Database(study) as database:
        assert len(tables.answers(database)) == 2


def test_the_admin_page_shows_progress_only_with_the_right_token(study: Path, server: Served, tmp_path: Path) -> None:
    server.begin("a" * 64)
    server.vote("a" * 64, 1, "first", "0" * 32)
    with visiting(tmp_path / "profile") as visitor:
        visitor.driver.get(server.admin)
        visitor.wait(lambda: "1 started, 0 finished" in visitor.text(), "the summary")
        assert [row.text.split()[0] for row in visitor.find_all("#methods tr")] == ["adain", "gatys"]
        assert visitor.errors() == []
        visitor.driver.get("about:blank")
        visitor.driver.get(server.page + "admin")
        visitor.wait(lambda: visitor.find("#ask").is_displayed(), "the question for the token")
        assert not visitor.find("#found").is_displayed()
        visitor.find("#token").send_keys("wrong\n")
        visitor.wait(lambda: "not the admin token" in visitor.text(), "the refusal")
        visitor.find("#token").clear()
        visitor.find("#token").send_keys(server.admin.partition("#")[2] + "\n")
        visitor.wait(lambda: "1 started, 0 finished" in visitor.text(), "the summary")


def test_every_page_has_enough_contrast_accessible_names_and_focus_on_its_heading(
    study: Path, server: Served, tmp_path: Path
) -> None:
    """Text has the contrast of WCAG 2 AA, everything that acts has a name, and pages begin at their heading."""
    with visiting(tmp_path / "profile") as visitor:

        def check(page: str, heading: str) -> None:
            assert visitor.script("return document.activeElement.tagName") == "H1"
            assert heading in visitor.script("return document.activeElement.textContent")
            assert low_contrast(visitor, "main:not([hidden])") == []
            for one in visitor.find_all(f"#{page} :is(button, select, progress, img)"):
                if one.is_displayed():
                    assert one.accessible_name, one.get_attribute("outerHTML")

        english = texts("en")
        visitor.open(server.page, "consent")
        check("consent", english["title"])
        visitor.find("#agree").click()
        visitor.wait_for_pair(1)
        check("trial", english["question"])
        names = [one.accessible_name for one in visitor.find_all(".result .frame")]
        assert names == [english["first"], english["second"]]
        answer_all(visitor)
        check("ranking", english["rankTitle"])
        visitor.find("#skip").click()
        visitor.wait_for("thanks")
        check("thanks", english["thanksTitle"])
    with Database(study) as database:
        assert tables.rankings(database) == {}
        assert database.value("SELECT count(finished_at) FROM participants") == 1
