"""The public functions take what people have: paths, PIL pictures, arrays, tensors and photos, alike."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import inst
from inst import demo


@pytest.fixture(scope="module")
def mini() -> inst.Backbone:
    return inst.Backbone.load("mini", "cpu", "float32")


@pytest.fixture(scope="module")
def painting() -> Path:
    return demo.PAINTINGS[0]


def forms(file: Path) -> list[object]:
    """A picture in each form that has its pixels exactly."""
    photo, image = inst.read_painting(file), Image.open(file)
    return [str(file), file, image, np.asarray(image.convert("RGB")), photo.picture, photo]


def test_a_painting_in_any_form_gives_the_same_instant_style(mini: inst.Backbone, painting: Path) -> None:
    expected = inst.instant_style(mini, painting)
    for form in forms(painting):
        for given in (form, [form]):
            style = inst.instant_style(mini, given)  # type: ignore[arg-type]
            torch.testing.assert_close(style.vectors, expected.vectors, rtol=0, atol=1e-5)
        read = inst.read_style(mini, form)  # type: ignore[arg-type]
        torch.testing.assert_close(read.vectors, expected.vectors, rtol=0, atol=1e-5)


def test_a_painting_in_any_form_is_learned_alike(tiny_backbone: inst.Backbone, painting: Path) -> None:
    learned = [
        inst.complete(inst.learn(tiny_backbone, form, steps=2, crops=2)).vectors  # type: ignore[arg-type]
        for form in forms(painting)
    ]
    for vectors in learned[1:]:
        torch.testing.assert_close(vectors, learned[0], rtol=0, atol=1e-5)


def test_a_photo_in_any_form_is_transferred_alike(tiny_backbone: inst.Backbone, painting: Path) -> None:
    style = inst.complete(inst.learn(tiny_backbone, painting, steps=1, crops=2))
    made = [
        inst.complete(inst.transfer(tiny_backbone, form, style, steps=2))  # type: ignore[arg-type]
        for form in forms(demo.PHOTOS[0])
    ]
    for picture in made[1:]:
        torch.testing.assert_close(picture, made[0], rtol=0, atol=1e-4)
    both = inst.complete(inst.transfer(tiny_backbone, [demo.PHOTOS[0], demo.PHOTOS[0]], style, steps=2))
    torch.testing.assert_close(both, made[0].expand(2, -1, -1, -1), rtol=0, atol=1e-4)


def test_a_style_is_read_from_a_file_a_folder_or_a_style(mini: inst.Backbone, painting: Path, tmp_path: Path) -> None:
    style = inst.instant_style(mini, painting)
    assert inst.read_style(mini, style) is style
    style.save(tmp_path / "style.safetensors")
    assert torch.equal(inst.read_style(mini, tmp_path / "style.safetensors").vectors, style.vectors)
    folder = tmp_path / "several"
    folder.mkdir()
    for file in demo.PAINTINGS[:2]:
        (folder / file.name).write_bytes(file.read_bytes())
    read = inst.read_style(mini, folder)
    assert read.name == "several"
    assert [one["name"] for one in read.about["paintings"]] == sorted(file.name for file in demo.PAINTINGS[:2])


def test_the_example_of_the_readme_runs_as_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    example = readme.split("## In Python\n\n```python\n")[1].split("```")[0]
    assert sum(bool(line.strip()) for line in example.splitlines()) <= 6  # the import, and five lines
    for name, source in (("painting.jpg", demo.PAINTINGS[0]), ("photo.jpg", demo.PHOTOS[0])):
        Image.open(source).convert("RGB").save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    exec(compile(example.replace('load("mini")', 'load("mini", "cpu")'), "README.md", "exec"), {})
    assert Image.open(tmp_path / "result.png").size[1] >= 256
