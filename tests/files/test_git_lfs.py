"""Pointers of git LFS, wherever a file is read."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

import inst
from git_lfs import write_pointer
from inst import Backbone, InstError
from inst.backbone.loading.image_encoder import read_clip
from inst.backbone.loading.single_file import read_single_file
from inst.files.git_lfs import refuse_pointer
from inst.learning.state import LearningState
from inst.pictures.masks import read_mask
from inst.pictures.reading import open_picture, read_photo
from inst.styles.importing import read_embedding
from inst.styles.style import Style


def refuse(read: Callable[[Path], object], path: Path) -> None:
    with pytest.raises(InstError) as caught:
        read(path)
    expected = f"{path} is only a pointer of git-lfs to the file, which was not downloaded: run `git lfs pull` "
    assert str(caught.value).startswith(expected)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("model.safetensors", lambda path: read_single_file(path, None, None)),
        ("model.ckpt", lambda path: read_single_file(path, None, None)),
        ("style.safetensors", Style.load),
        ("style.safetensors", read_embedding),
        ("embeddings.pt", read_embedding),
        ("learned_embeds.bin", read_embedding),
        ("embedding.png", read_embedding),
        ("learning.safetensors", LearningState.load),
        ("photo.jpg", read_photo),
        ("painting.png", open_picture),
        ("mask.png", read_mask),
    ],
)
def test_a_pointer_in_place_of_a_file_is_called_one(tmp_path: Path, name: str, read: Callable[[Path], object]) -> None:
    refuse(read, write_pointer(tmp_path / name))


def test_a_pointer_in_place_of_any_file_of_a_model_is_called_one(tiny_copy: Path) -> None:
    for path in sorted(tiny_copy.rglob("*.*")):
        whole = path.read_bytes()
        write_pointer(path)
        with pytest.raises(InstError, match=r"is only a pointer of git-lfs") as caught:
            Backbone.load(tiny_copy, "cpu")
        assert str(path) in str(caught.value)
        path.write_bytes(whole)


def test_a_pointer_in_a_folder_of_paintings_or_of_clip_is_called_one(tiny_backbone: Backbone, tmp_path: Path) -> None:
    painting = write_pointer(tmp_path / "painting.jpg")
    with pytest.raises(InstError, match=r"painting\.jpg is only a pointer of git-lfs"):
        inst.read_style(tiny_backbone, painting)
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "config.json").write_text("{}")
    pointer = write_pointer(tmp_path / "clip" / "model.safetensors")
    refuse(lambda path: read_clip(path.parent), pointer)


def test_other_texts_and_missing_files_are_left_to_their_readers(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("version 2 of the painting")
    for name in ("notes.txt", "missing", "."):
        refuse_pointer(tmp_path / name)


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX")
def test_a_pipe_or_a_device_is_left_to_its_reader(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path / "none"):
        refuse_pointer(path)
