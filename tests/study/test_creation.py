"""The study's file holds copies of the pictures that betray nothing, and the pairs of what is there."""

import io
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from inst.errors import InstError, UsageError
from inst.study.creation import Creation, create_study
from inst.study.database import Database
from study_server import write_comparison


def create(folder: Path, path: Path, **options: object) -> Creation:
    return list(create_study(folder, path, **options))[-1]


def test_each_pair_shows_two_methods_on_the_same_photo_and_painting(comparison: Path, tmp_path: Path) -> None:
    made = create(comparison, tmp_path / "study.db")
    assert made.pairs == {"adain": 4, "gatys": 4}
    assert (made.done, made.total, made.left_out) == (16, 16, [])
    with Database(tmp_path / "study.db") as database:
        assert database.settings().trials == 8  # there are no 26
        pairs = database.rows(
            "SELECT photo.name AS photo, painting.name AS painting, ours.folder AS ours, ours.name AS result, "
            "other.folder AS other, other.name AS other_result, method FROM pairs "
            "JOIN pictures AS photo ON photo.id = photo JOIN pictures AS painting ON painting.id = painting "
            "JOIN pictures AS ours ON ours.id = ours JOIN pictures AS other ON other.id = other"
        )
        for pair in pairs:
            assert pair["result"] == pair["other_result"] == f"{pair['photo']}__{pair['painting']}"
            assert pair["ours"] == "inst"
            assert pair["other"] == pair["method"]
        keys = [row["key"] for row in database.rows("SELECT key FROM pictures")]
        assert len(set(keys)) == 16
    assert [one.name for one in tmp_path.iterdir()] == ["study.db"]


def test_stored_pictures_are_reduced_and_carry_no_metadata(comparison: Path, tmp_path: Path) -> None:
    create(comparison, tmp_path / "study.db", side=64)
    with Database(tmp_path / "study.db") as database:
        for row in database.rows("SELECT * FROM pictures"):
            original = Image.open(comparison / row["folder"] / f"{row['name']}.png").convert("RGB")
            with Image.open(io.BytesIO(row["data"])) as image:
                assert image.format == "WEBP"
                assert image.size == (row["width"], row["height"])
                assert max(image.size) == 64
                assert not {"exif", "xmp", "icc_profile"} & image.info.keys()
                assert image.convert("RGB").getpixel((9, 9)) == pytest.approx(original.getpixel((9, 9)), abs=4)
            assert b"method" not in row["data"]


def test_missing_and_broken_pictures_are_reported_and_the_rest_is_used(tmp_path: Path) -> None:
    folder = write_comparison(tmp_path / "comparison")
    (folder / "gatys" / "castle__night.png").unlink()
    (folder / "adain" / "castle__tulips.png").write_bytes(b"broken")
    (folder / "adain" / "castle_tulips.png").write_bytes(b"broken")
    (folder / "photos" / "castle.webp").write_bytes(b"broken")
    (folder / "paintings" / "unused.png").write_bytes((folder / "paintings" / "night.png").read_bytes())
    (folder / "sdm").mkdir()
    made = create(folder, tmp_path / "study.db")
    assert made.pairs == {"adain": 3, "gatys": 3}
    assert made.left_out == [
        f"{folder}/photos/castle.webp: castle.png has the same name and is used",
        f"{folder}/sdm contains no picture: the method is left out",
        f"{folder}/adain/castle_tulips.png: its name is not PHOTO__PAINTING: rename it after its photo and painting",
        "gatys: there is no picture castle__night",
        'no picture was made in the style of "unused"',
        f"{folder}/adain/castle__tulips.png is not a picture in a known format: export it as PNG or JPEG.",
    ]


def test_a_result_whose_name_fits_several_pairs_is_left_out_and_reported(tmp_path: Path) -> None:
    folder = write_comparison(tmp_path / "plain", ("old__bridge", "old"), ("bridge__night", "night"))
    # "old__bridge__night" is old__bridge + night, or old + bridge__night.
    made = create(folder, tmp_path / "study.db")
    assert made.pairs == {"adain": 2, "gatys": 2}
    assert any("old__bridge__night.png: its name stands for several pairs" in line for line in made.left_out)


def test_only_the_chosen_methods_and_number_of_combinations_are_used(comparison: Path, tmp_path: Path) -> None:
    assert create(comparison, tmp_path / "a.db", methods=["gatys"], ours="adain").pairs == {"gatys": 4}
    made = create(comparison, tmp_path / "b.db", combinations=1)
    assert made.pairs == {"adain": 1, "gatys": 1}
    assert made.total == 5


def test_a_folder_of_inst_compare_is_used_with_nothing_left_out(tmp_path: Path) -> None:
    folder = write_comparison(tmp_path / "comparison")
    for name in ("sheets", "styles", "figures"):  # what inst compare puts beside the methods
        (folder / name).mkdir()
    (folder / "sheets" / "night.png").write_bytes((folder / "paintings" / "night.png").read_bytes())
    (folder / "styles" / "night-learned-1f2e3d4c.safetensors").write_bytes(b"")
    made = create(folder, tmp_path / "study.db")
    assert made.pairs == {"adain": 4, "gatys": 4}
    assert made.left_out == []


def test_a_method_whose_pictures_have_wrong_names_is_refused_with_the_reason(comparison: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(comparison, tmp_path / "comparison"))
    for file in (folder / "adain").iterdir():
        file.rename(file.with_name(file.name.replace("__", "-")))
    for options in ({"ours": "adain"}, {"methods": ["adain"]}):
        with pytest.raises(UsageError, match=r"adain is left out: none of its pictures .* is not PHOTO__PAINTING"):
            create(folder, tmp_path / "study.db", **options)


def test_combinations_are_chosen_only_among_those_that_can_be_compared(tmp_path: Path) -> None:
    folder = write_comparison(tmp_path / "comparison")
    for file in sorted((folder / "inst").iterdir())[1:]:
        file.unlink()
    for seed in range(4):
        made = create(folder, tmp_path / f"{seed}.db", combinations=1, seed=seed)
        assert made.pairs == {"adain": 1, "gatys": 1}


def test_the_wrong_side_of_an_attention_check_shows_another_photo_and_painting(
    comparison: Path, tmp_path: Path
) -> None:
    assert create(comparison, tmp_path / "study.db", checks=2).checks == 4
    with Database(tmp_path / "study.db") as database:
        checks = database.rows(
            "SELECT photo.name AS photo, painting.name AS painting, ours.name AS right, other.name AS wrong, "
            "ours.folder AS method, other.folder AS other FROM pairs "
            "JOIN pictures AS photo ON photo.id = photo JOIN pictures AS painting ON painting.id = painting "
            "JOIN pictures AS ours ON ours.id = ours JOIN pictures AS other ON other.id = other WHERE is_check"
        )
    for check in checks:
        assert check["method"] == check["other"]
        assert check["right"] == f"{check['photo']}__{check['painting']}"
        photo, painting = check["wrong"].split("__")
        assert photo != check["photo"]
        assert painting != check["painting"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"ours": "cast"}, "no method cast: choose from adain, gatys, inst"),
        ({"methods": ["cast"]}, "no method cast"),
        ({"methods": ["inst"]}, "no other method than inst"),
        ({"trials": 0}, "0 trials"),
        ({"checks": -1}, "-1 checks"),
        ({"side": 1}, "1 pixels of a side"),
        ({"combinations": 0}, "0 combinations"),
        ({"checks": 1, "combinations": 1}, "need two photos and two paintings"),
    ],
)
def test_wrong_options_are_refused_and_leave_no_file(
    make_study: Callable[..., Path], tmp_path: Path, options: dict[str, object], reason: str
) -> None:
    with pytest.raises(UsageError, match=reason):
        make_study(**options)
    assert not list(tmp_path.iterdir())


def test_missing_empty_and_broken_folders_are_refused_and_leave_no_file(tmp_path: Path) -> None:
    for name in ("nowhere", "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(InstError, match=name):
            create(tmp_path / name, tmp_path / "study.db")
    folder = write_comparison(tmp_path / "comparison")
    for file in (folder / "inst").iterdir():
        file.write_bytes(b"broken")
    with pytest.raises(InstError, match="nothing to compare"):
        create(folder, tmp_path / "study.db")
    with pytest.raises(InstError, match=r"folder .*away does not exist"):
        create(folder, tmp_path / "away" / "study.db")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["comparison", "empty"]


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="a folder that nobody can write to")
def test_a_folder_that_cannot_be_written_to_is_reported(comparison: Path) -> None:
    with pytest.raises(InstError) as caught:
        create(comparison, Path("/proc/self/study.db"))
    assert str(caught.value).startswith("/proc/self/study.db cannot be written")


def test_an_existing_study_is_never_overwritten(make_study: Callable[..., Path]) -> None:
    path = make_study()
    before = path.read_bytes()
    with pytest.raises(UsageError, match="exists"):
        make_study()
    assert path.read_bytes() == before


def test_files_that_are_no_study_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("text " * 1000)
    sqlite3.connect(tmp_path / "other.db").execute("CREATE TABLE t (a)").connection.close()
    (tmp_path / "empty.db").touch()
    for name, reason in (
        ("text", "is not a study"),
        ("other", "is not a study"),
        ("empty", "is not a study"),
        ("no", "no such"),
    ):
        with pytest.raises(InstError, match=reason):
            Database(tmp_path / f"{name}.db")
