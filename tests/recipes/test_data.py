"""Reading shards, and crops checked against Pillow and against plain slicing."""

import hashlib
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data import Pictures, cut, exact_crops, load_shards, random_squares
from inst.errors import InstError

Write = Callable[[Path, Sequence[tuple[str, bytes]]], Path]
Members = Callable[[int], list[tuple[str, bytes]]]


def test_pictures_captions_and_sizes_are_read_from_shards(shards: Path) -> None:
    pictures = load_shards(shards)
    assert len(pictures) == 24
    assert pictures.native.tolist() == [256, 224] * 12
    assert pictures.kinds[:4] == ["photo", "photo", "art", "art"]
    assert pictures.captions[3][0] == "a painting of thing 3"
    assert pictures.pixels[1, :, 224:].sum() == 0


def test_the_holdout_is_chosen_by_the_hash_of_the_bytes(
    shards: Path, members: Members, tmp_path: Path, write_tar: Write
) -> None:
    files = members(24)
    digests = sorted((hashlib.sha256(content).hexdigest(), name) for name, content in files if name.endswith("png"))
    expected = {f"a painting of thing {int(name[:6])}" for _, name in digests[:2]}  # a tenth of a small set
    assert {captions[0] for captions in load_shards(shards).held_out().captions} == expected
    # The order and the division into shards do not matter, and each half alone is the same as both together.
    pairs = [files[i : i + 2] for i in range(0, 48, 2)][::-1]
    write_tar(tmp_path / "all.tar", [file for pair in pairs for file in pair])
    assert {captions[0] for captions in load_shards(tmp_path, only="holdout").captions} == expected
    assert not {captions[0] for captions in load_shards(tmp_path, only="train").captions} & expected


@pytest.mark.parametrize("keep", [0.5, 0.98])
def test_a_truncated_shard_is_reported_by_name(shards: Path, tmp_path: Path, keep: float) -> None:
    whole = (shards / "train-0.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(InstError, match=r"cut\.tar: .*(truncated|cannot be read).*copy it again"):
        load_shards(tmp_path)


def test_a_shard_cut_between_two_files_is_reported_as_truncated(shards: Path, tmp_path: Path) -> None:
    with tarfile.open(shards / "train-0.tar") as archive:
        at = archive.getmembers()[6].offset
    (tmp_path / "cut.tar").write_bytes((shards / "train-0.tar").read_bytes()[:at])
    with pytest.raises(InstError, match=r"cut\.tar: the shard is truncated"):
        load_shards(tmp_path)


@pytest.mark.parametrize("damage", ["header", "zeros"])
def test_a_shard_damaged_in_the_middle_is_reported_with_the_position(shards: Path, tmp_path: Path, damage: str) -> None:
    """tarfile takes either for the end of the archive, and would silently give half of the pictures."""
    whole = bytearray((shards / "train-0.tar").read_bytes())
    with tarfile.open(shards / "train-0.tar") as archive:
        at = archive.getmembers()[6].offset
    if damage == "header":
        whole[at] ^= 0xFF
    else:
        whole[at:] = bytes(len(whole) - at)
    (tmp_path / "a.tar").write_bytes(whole)
    with pytest.raises(InstError, match=rf"a\.tar: the shard is damaged at byte {at}; copy it again"):
        load_shards(tmp_path)


def test_other_files_in_a_shard_are_ignored(members: Members, tmp_path: Path, write_tar: Write) -> None:
    files = members(2)
    files[0] = ("000000.PNG", files[0][1])
    write_tar(tmp_path / "a.tar", [*files, ("000000.txt", b"a dog"), ("README.md", b"hello")])
    assert len(load_shards(tmp_path)) == 2


@pytest.mark.parametrize(("kept", "reason"), [(100, "truncated|broken"), (4, "no known format"), (0, "no known")])
def test_a_picture_that_cannot_be_decoded_is_reported_by_name(
    members: Members, tmp_path: Path, write_tar: Write, kept: int, reason: str
) -> None:
    files = members(3)
    files[2] = (files[2][0], files[2][1][:kept])
    write_tar(tmp_path / "a.tar", files)
    with pytest.raises(InstError, match=rf"a\.tar:000001\.png: the picture does not decode \([^<]*({reason})"):
        load_shards(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"captions": []}', "has no captions"),
        (b'{"captions": ["  "]}', "has no captions"),
        (b'{"captions": "a dog"}', "not a caption file"),
        (b'{"kind": "art"}', "not a caption file"),
        (b"[]", "not a caption file"),
        (b"{", "not a caption file"),
    ],
)
def test_a_caption_file_without_captions_is_reported_by_name(
    members: Members, tmp_path: Path, write_tar: Write, content: bytes, message: str
) -> None:
    files = members(2)
    files[3] = (files[3][0], content)
    write_tar(tmp_path / "a.tar", files)
    with pytest.raises(InstError, match=rf"a\.tar:000001\.json: {message}"):
        load_shards(tmp_path)


def test_a_picture_without_its_caption_file_is_reported(members: Members, tmp_path: Path, write_tar: Write) -> None:
    write_tar(tmp_path / "a.tar", members(3)[:-1])
    with pytest.raises(InstError, match=r"a\.tar:000002: a picture without its \.json"):
        load_shards(tmp_path)


def test_a_missing_folder_and_a_folder_without_shards_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InstError, match="no such folder"):
        load_shards(tmp_path / "absent")
    with pytest.raises(InstError, match="holds no shard"):
        load_shards(tmp_path)


def one_picture(side: int) -> Pictures:
    pixels = torch.zeros(1, 3, 256, 256, dtype=torch.uint8)
    pixels[:, :, :side, :side] = torch.randint(256, (1, 3, side, side), dtype=torch.uint8)
    return Pictures(pixels, torch.tensor([side]), [["a"]], ["art"], ["here"], torch.zeros(1, dtype=torch.bool))


def test_exact_crops_are_slices_of_the_picture() -> None:
    picture = one_picture(140)
    crops = exact_crops(picture, torch.zeros(6, dtype=torch.long), 128, torch.Generator().manual_seed(0))
    own = picture.pixels[0, :, :140, :140].float() / 127.5 - 1
    slices = own.unfold(1, 128, 1).unfold(2, 128, 1).permute(1, 2, 0, 3, 4).flatten(0, 1)  # every 128 px window
    for crop in crops:
        nearest = min((slices - variant).abs().amax((1, 2, 3)).min().item() for variant in (crop, crop.flip(-1)))
        assert nearest < 1e-4


def test_cutting_and_resizing_agrees_with_pillow() -> None:
    picture = one_picture(224)
    smooth = torch.nn.functional.avg_pool2d(picture.pixels.float(), 15, 1, 7)
    picture.pixels.copy_(smooth.round().byte())
    box = torch.tensor([[20.0, 36.0, 112.0]])
    got = cut(picture, torch.tensor([0]), box, torch.tensor([False]), 224)
    with Image.fromarray(picture.pixels[0].permute(1, 2, 0).numpy()) as whole:
        expected = whole.resize((224, 224), Image.Resampling.BILINEAR, box=(20, 36, 132, 148))
    difference = (got[0] * 127.5 + 127.5) - torch.tensor(np.array(expected)).permute(2, 0, 1)
    assert difference[:, 4:-4, 4:-4].abs().max() < 2  # Pillow rounds; at the edge of the box it looks beyond it
    flipped = cut(picture, torch.tensor([0]), box, torch.tensor([True]), 224)
    torch.testing.assert_close(flipped.flip(-1), got)


def test_random_squares_stay_inside_the_picture() -> None:
    picture = one_picture(100)
    boxes, _ = random_squares(picture, torch.zeros(500, dtype=torch.long), (0.3, 1.0), torch.Generator().manual_seed(0))
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= 100 + 1e-3).all()
    # The canvas beyond a small picture is black, and must not be seen.
    picture.pixels[:, :, :100, :100] = 255
    assert cut(picture, torch.zeros(500, dtype=torch.long), boxes, boxes[:, 0] > 20, 32).min() > 0.99


def test_a_caption_file_without_kind_or_source_gets_defaults(
    tmp_path: Path, members: Members, write_tar: Write
) -> None:
    files = members(1)
    files[1] = (files[1][0], json.dumps({"captions": ["a dog"]}).encode())
    write_tar(tmp_path / "a.tar", files)
    pictures = load_shards(tmp_path)
    assert (pictures.kinds, pictures.sources) == (["photo"], ["unknown"])
