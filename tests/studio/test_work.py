"""The work of jobs by itself: what it refuses, and what a kill in the middle leaves."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import inst
from inst.studio.job_store import ENDED, Job, JobState
from inst.studio.library import Library
from inst.studio.limits import Limits
from inst.studio.requests import KINDS
from inst.studio.studio import Studio
from inst.studio.work import _preview, read_curve
from studio_server import png


@pytest.fixture
def studio(tiny_backbone: inst.Backbone, tmp_path: Path) -> Iterator[Studio]:
    one = Studio(tmp_path / "data", lambda: tiny_backbone, Limits(side=512))
    try:
        yield one
    finally:
        one.close()


def upload(studio: Studio, data: bytes, person: str = "ann") -> str:
    with studio.uploads.receive() as receiver:
        receiver.write(data)
        return studio.uploads.keep_picture(receiver, person).key


def submit(studio: Studio, person: str, kind: str, request: dict[str, Any]) -> Job:
    return studio.submit(person, KINDS[kind].model_validate(request))


def test_a_learning_killed_while_its_style_was_added_adds_it_once_and_does_not_learn_again(
    studio: Studio, tiny_backbone: inst.Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = {"paintings": [{"upload": upload(studio, png(64, 64))}], "steps": 3, "batch_size": 1, "preview_every": 0}
    job = submit(studio, "ann", "learn", body)
    add = Library.add

    class Killed(BaseException):
        pass

    def killed(*arguments: object) -> None:
        add(*arguments)  # type: ignore[arg-type]
        raise Killed

    studio.jobs.folder(job.id).mkdir()
    steps = studio.jobs._works["learn"](studio.jobs._task(job))
    studio._backbone = tiny_backbone
    studio._loaded.set()
    with monkeypatch.context() as patch:
        patch.setattr(Library, "add", killed)
        with pytest.raises(Killed):
            list(steps)
    assert len(studio.library.styles()) == 1
    monkeypatch.setattr("inst.learning.loop.learn", None)
    studio.jobs.start()
    end = time.monotonic() + 20
    while (now := studio.jobs.job(job.id)).state is not JobState.DONE:
        assert now.error is None
        assert time.monotonic() < end
        time.sleep(0.01)
    (entry,) = studio.library.styles()
    assert now.result["style"] == entry.id
    assert now.result["files"] == ["style.safetensors", "loss.csv"]


def test_old_uploads_go_but_not_those_of_unfinished_jobs(studio: Studio) -> None:
    needed, other = upload(studio, png(64, 64)), upload(studio, png(64, 64, seed=5))
    submit(studio, "ann", "learn", {"paintings": [{"upload": needed}], "steps": 3})
    studio.jobs.submit("ann", "film", {"of": "another version"})
    for path in studio.uploads.folder.iterdir():
        os.utime(path, (1, 1))
    studio._tidy()
    assert [path.stem for path in studio.uploads.folder.iterdir() if path.is_file()] == [needed]
    assert other != needed


def ended(studio: Studio, job: Job) -> Job:
    end = time.monotonic() + 30
    while (now := studio.jobs.job(job.id)).state not in ENDED:
        assert time.monotonic() < end
        time.sleep(0.01)
    return now


@pytest.mark.parametrize("kind", ["transfer", "sheet"])
def test_a_very_long_photo_is_painted_or_refused_in_one_line(studio: Studio, kind: str) -> None:
    styles = [{"paintings": [{"upload": upload(studio, png(64, 64, seed=9))}]}]
    extra = {"steps": 2, "style_attention": 0.0} if kind == "transfer" else {"strengths": [0.3], "guidances": [2.0]}
    long, longer = ({"upload": upload(studio, png(width, 40))} for width in (1000, 3000))
    studio.start()
    painted = ended(studio, submit(studio, "ann", kind, {"photo": long, "styles": styles, "size": 32, **extra}))
    assert painted.state is JobState.DONE, painted.error
    refused = ended(studio, submit(studio, "ann", kind, {"photo": longer, "styles": styles, **extra}))
    assert refused.state is JobState.FAILED
    assert "pixels long" in (refused.error or "")
    assert "crop the photo" in (refused.error or "")
    assert refused.seconds < 5
    assert not list(studio.jobs.folder(refused.id).iterdir())


@pytest.mark.parametrize("shape", [(5, 375), (375, 5), (1, 4000), (8, 8), (64, 80)])
def test_a_preview_of_any_shape_is_small(tiny_backbone: inst.Backbone, shape: tuple[int, int]) -> None:
    latents = torch.zeros(2, tiny_backbone.unet.config["in_channels"], *shape)
    picture = _preview(tiny_backbone, latents)
    assert max(picture.shape[1:]) <= 320
    assert min(picture.shape) >= 1


def test_the_rows_of_a_damaged_curve_are_read_up_to_the_damage(tmp_path: Path) -> None:
    path = tmp_path / "loss.csv"
    assert read_curve(path) == []
    whole = b"step,loss,smoothed,validation\n1,0.5,0.4,\n2,0.25,0.3,0.2\n"
    first, second = (1, 0.5, 0.4, None), (2, 0.25, 0.3, 0.2)
    cases = {
        whole: [first, second],
        whole + b"3,0.": [first, second],
        whole + b"\xff\xfe\n4,1,1,\n": [first, second],
        b"step,loss,smoothed,validation\n1,0.5,0.4,\nx\n2,0.25,0.3,0.2\n": [first],
        b"": [],
        b"\0\0\0": [],
    }
    for data, rows in cases.items():
        path.write_bytes(data)
        assert read_curve(path) == rows
    path.unlink()
    path.mkdir()
    assert read_curve(path) == []


def test_between_two_pictures_of_a_job_another_person_gets_one(studio: Studio) -> None:
    for person in ("ann", "bob"):  # the same pictures belong to both
        photo, painting = (upload(studio, png(64, 64, seed=seed), person) for seed in (0, 9))
    request = {
        "photo": {"upload": photo},
        "styles": [{"paintings": [{"upload": painting}]}],
        "steps": 2,
        "size": 64,
        "style_attention": 0.0,
    }
    many = submit(studio, "ann", "transfer", {**request, "count": 3})
    one = submit(studio, "bob", "transfer", request)
    seen: list[tuple[str, int]] = []
    studio.jobs.listeners.append(
        lambda job: seen.append((f"{job.person} {job.state}", len(list(studio.jobs.folder(many.id).glob("*.png")))))
    )
    studio.start()
    progress = ended(studio, many).progress
    assert progress is not None
    assert progress.step == progress.total
    assert ended(studio, one).state is JobState.DONE
    assert seen == [("ann running", 0), ("bob running", 1), ("bob done", 1), ("ann done", 3)]
