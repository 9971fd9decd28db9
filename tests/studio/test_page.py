"""The parts of the page that need no browser: its words, the values in its address, and what it says of a job."""

from __future__ import annotations

import re
import string
import time
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from PIL import Image

from inst.errors import InstError, UsageError
from inst.studio.job_store import Job, JobState, Progress
from inst.studio.limits import Limits
from inst.studio.page.address import fitting, read_address
from inst.studio.page.follow import duration, status
from inst.studio.page.inputs import keep, keep_mask
from inst.studio.page.latest import Latest
from inst.studio.page.restore import _others
from inst.studio.page.texts import CHINESE, ENGLISH, TEXTS, Texts
from inst.studio.uploads import Uploads


def holes(text: object) -> set[str | None]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name} if isinstance(text, str) else set()


@pytest.mark.parametrize("name", [one.name for one in fields(Texts)])
def test_both_languages_have_the_same_holes_and_choices(name: str) -> None:
    english, chinese = getattr(ENGLISH, name), getattr(CHINESE, name)
    assert english
    assert chinese
    assert holes(english) == holes(chinese)
    if isinstance(english, tuple) and isinstance(english[0], tuple):
        assert [value for _, value in english] == [value for _, value in chinese]


@pytest.mark.parametrize(
    ("component", "value", "expected"),
    [
        (gr.Slider(0, 1, 0.3), "0.55", 0.55),
        (gr.Slider(0, 1, 0.3), 1, 1),
        (gr.Slider(0, 1, 0.3), "7", None),
        (gr.Slider(0, 1, 0.3), "nan", None),
        (gr.Slider(0, 1, 0.3), "<script>", None),
        (gr.Slider(0, 1, 0.3), [1], None),
        (gr.Number(0, minimum=0, maximum=2**53), "12", 12),
        (gr.Number(0, minimum=0, maximum=2**53), "-1", None),
        (gr.Dropdown([("small", 256), ("large", 512)], value=512), "256", 256),
        (gr.Dropdown([("small", 256), ("large", 512)], value=512), 512, 512),
        (gr.Dropdown([("small", 256), ("large", 512)], value=512), "300", None),
        (gr.Dropdown(["a"], multiselect=True), "a", None),
        (gr.Textbox(""), "x" * 5000, "x" * 2000),
        (gr.Textbox(""), None, None),
    ],
)
def test_a_value_from_outside_is_taken_only_if_the_component_can_hold_it(
    component: Any, value: object, expected: object
) -> None:
    assert fitting(component, value) == expected


def test_only_known_names_of_the_address_are_read() -> None:
    strength, seed = gr.Slider(0, 1, 0.3), gr.Number(0, minimum=0, maximum=9)
    request: Any = SimpleNamespace(query_params={"strength": "0.5", "seed": "99", "x": "1"})
    assert read_address(request, {"strength": strength, "seed": seed}) == {strength: 0.5}


def job(state: JobState, **values: Any) -> Job:
    return Job("0" * 32, "ann", "learn", {}, created=0.0, state=state, **values)


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("progress", [None, Progress(3, 10), Progress(3, 10, remaining=200.0)])
@pytest.mark.parametrize("state", list(JobState))
def test_every_state_of_a_job_is_a_sentence_without_markup_from_outside(
    language: Any, state: JobState, progress: Progress | None
) -> None:
    studio: Any = SimpleNamespace(jobs=SimpleNamespace(ahead=lambda id: 2), is_ready=True)
    text = status(studio, TEXTS[language], job(state, progress=progress, error="<b>no</b>", seconds=3.21))
    assert f"inst-{state.value}" in text
    assert "<b>" not in text
    assert "{" not in text


@pytest.mark.parametrize(
    ("wish", "sentence"), [("cancel", ENGLISH.stopping), ("finish", ENGLISH.stopping), ("pause", ENGLISH.pausing)]
)
def test_what_somebody_wants_of_a_job_is_told_during_its_step(wish: str, sentence: str) -> None:
    text = status(Any, ENGLISH, job(JobState.RUNNING, progress=Progress(3, 10), wish=wish))  # type: ignore[arg-type]
    assert sentence in text


def test_times_are_said_as_people_say_them() -> None:
    assert [duration(ENGLISH, one) for one in (0.04, 3.21, 42.3, 300)] == ["0.0 s", "3.2 s", "42 s", "5 min"]


def test_a_visit_follows_the_job_that_it_asked_for_last_and_no_visit_follows_another_ones() -> None:
    latest = Latest()
    ann, bob = (SimpleNamespace(session_hash=name) for name in ("a", "b"))
    latest.follow(ann, "1")  # type: ignore[arg-type]
    latest.follow(ann, "2")  # type: ignore[arg-type]
    assert latest.of(ann) == "2"  # type: ignore[arg-type]
    assert latest.of(bob) == ""  # type: ignore[arg-type]


def test_the_painted_part_becomes_a_mask_that_is_white_where_there_is_paint(tmp_path: Path) -> None:
    studio: Any = SimpleNamespace(uploads=Uploads(tmp_path / "uploads", Limits()))
    layer = Image.new("RGBA", (8, 4), (0, 0, 0, 0))
    assert keep_mask(studio, "ann", {"layers": [layer]}) is None
    assert keep_mask(studio, "ann", None) is None
    layer.paste((228, 87, 46, 255), (0, 0, 4, 4))
    ref = keep_mask(studio, "ann", {"layers": [layer]})
    assert ref is not None
    with Image.open(studio.uploads.find(ref["upload"])) as mask:
        assert [mask.convert("L").getpixel((x, 2)) for x in range(8)] == [255] * 4 + [0] * 4


def test_a_picture_of_the_page_is_kept_once_under_its_own_name(tmp_path: Path) -> None:
    studio: Any = SimpleNamespace(uploads=Uploads(tmp_path / "uploads", Limits()))
    Image.new("RGB", (4, 4), "red").save(tmp_path / "x.png")
    first = keep(studio, "ann", (str(tmp_path / "x.png"), "rose.png"))
    assert first is not None
    assert first["name"] == "rose.png"
    again = keep(studio, "ann", (str(studio.uploads.find(first["upload"])), "rose.png"))
    assert again == first
    (tmp_path / "page.png").write_text("<html>", encoding="utf-8")
    with pytest.raises(InstError, match="not a picture"):
        keep(studio, "ann", (str(tmp_path / "page.png"), "page.png"))


def test_a_picture_that_browsers_cannot_show_is_kept_as_png_with_the_same_pixels(tmp_path: Path) -> None:
    uploads = Uploads(tmp_path / "uploads", Limits())
    picture = Image.linear_gradient("L").convert("RGB")
    picture.save(tmp_path / "x.tif")
    with uploads.receive() as receiver:
        receiver.write((tmp_path / "x.tif").read_bytes())
        kept = uploads.keep_shown(receiver, "ann")
    assert kept.path.suffix == ".png"
    with Image.open(kept.path) as shown:
        assert shown.convert("RGB").tobytes() == picture.tobytes()


def test_the_page_keeps_the_uploads_of_two_people_apart(tmp_path: Path) -> None:
    studio: Any = SimpleNamespace(uploads=Uploads(tmp_path / "uploads", Limits()))
    Image.new("RGB", (4, 4), "red").save(tmp_path / "x.png")
    ref = keep(studio, "ann", (str(tmp_path / "x.png"), "rose.png"))
    assert ref is not None
    gone = re.escape("not here any more")
    with pytest.raises(UsageError, match=gone):
        studio.uploads.find(ref["upload"], "bob")
    with pytest.raises(UsageError, match=gone):  # a path that only has the right name
        keep(studio, "bob", (str(tmp_path / f"{ref['upload']}.png"), "rose.png"))
    # Who has the file itself has uploaded it.
    assert keep(studio, "bob", (str(tmp_path / "x.png"), "red.png")) == {**ref, "name": "red.png"}
    for person in ("ann", "bob"):
        assert studio.uploads.find(ref["upload"], person).exists()
    # It is remembered in another run, and forgotten with the upload.
    again = Uploads(tmp_path / "uploads", Limits())
    assert again.find(ref["upload"], "ann").exists()
    again.remove_older(time.time() + 10)
    assert list((tmp_path / "uploads" / "owners").iterdir()) == []


def test_a_sheet_brings_its_strengths_back_and_a_picture_what_only_it_has() -> None:
    settings = {"strengths": [0.2, 0.9], "guidances": [3.0], "seed": 4, "query_preservation": 0.5, "paintings": ["x"]}
    record: Any = SimpleNamespace(settings=settings)
    shown = {"seed": None}
    assert _others(record, "transfer", shown) == {
        "strengths": [0.2, 0.9],
        "guidances": [3.0],
        "query_preservation": 0.5,
    }
    assert _others(record, "generate", shown) == {}
