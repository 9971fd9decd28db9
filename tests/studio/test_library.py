"""The library of styles: the files are the truth, the index follows them, and nothing that is kept is ever damaged."""

import io
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import inst
from inst import Backbone, InstError, Style, UsageError
from inst.pictures.stored import encode_painting
from inst.studio.entry import LONGEST_NAME, LONGEST_TAG, MOST_TAGS
from inst.studio.library import Library, UnknownStyle
from inst.styles.exporting import FORMATS
from tiny import WIDTH

DEMO = Path(inst.__file__).parent / "demo"
DAY = 24 * 60 * 60


def make_style(name: str = "Waves", seed: int = 0, **changes: Any) -> Style:
    about = {"name": name, "backbone": "tiny", "variant": "attention", "steps": 7, **changes.pop("about", {})}
    vectors = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(seed))
    return Style(vectors, changes.pop("fingerprint", "f" * 16), about=about, **changes)


def painted(name: str = "Waves", red: float = 1.0, **changes: Any) -> Style:
    picture = torch.full((3, 40, 60), -1.0)
    picture[0] = red
    return make_style(name, paintings=(encode_painting(picture),), **changes)


@pytest.fixture
def library(tmp_path: Path) -> Iterator[Library]:
    with Library(tmp_path / "library") as opened:
        yield opened


def files(library: Library) -> dict[str, bytes]:
    """The content of all style files of a library, also of those in the trash."""
    return {str(path.relative_to(library.folder)): path.read_bytes() for path in library.folder.rglob("*.safetensors")}


def names(library: Library, *arguments: Any, **more: Any) -> list[str]:
    return [entry.name for entry in library.styles(*arguments, **more)]


def same(first: Style, second: Style) -> bool:
    """Whether two styles are the same but for their `about`."""
    return (
        torch.equal(first.vectors, second.vectors)
        and first.paintings == second.paintings
        and first.fingerprint == second.fingerprint
    )


def save_absurd_numbers(path: Path) -> None:
    content = {"format": 2, "fingerprint": "", "denoiser": "", "about": {}, "module_config": None, "shares": [10**400]}
    tensors = {"vectors": torch.zeros(1, 4), "painting.0": torch.zeros(3, dtype=torch.uint8)}
    save_file(tensors, path, {"inst_style": json.dumps(content)})


# --- what is in the library -------------------------------------------------------------------------------------------


def test_an_added_style_is_listed_with_what_its_file_says(library: Library) -> None:
    before = time.time()
    style = painted("睡莲", about={"tags": ["oil"], "paintings": [{"name": "lilies.jpg", "sha256": "0" * 64}]})
    entry = library.add(style)
    (file,) = files(library)
    assert file == f"{entry.id}.safetensors"
    assert int(entry.id, 16) >= 0
    assert len(entry.id) == 16
    assert (entry.name, entry.tags, entry.backbone, entry.variant) == ("睡莲", ("oil",), "tiny", "attention")
    assert (entry.steps, entry.fingerprint, entry.has_word, entry.vectors) == (7, "f" * 16, True, 3)
    assert (entry.paintings, entry.bytes) == (("lilies.jpg",), (library.folder / file).stat().st_size)
    assert before <= entry.added <= time.time()
    assert library.styles() == [entry] == [library.entry(entry.id)]
    assert same(library.style(entry.id), style)
    assert library.problems() == []


def test_a_style_added_again_under_its_id_is_replaced(library: Library) -> None:
    id = "0123456789abcdef"
    assert library.add(make_style("One"), id).id == id
    style = make_style("Two", seed=1)
    assert library.add(style, id).name == "Two"
    assert names(library) == ["Two"]
    assert same(library.style(id), style)
    for wrong in ("../x", "0123456789ABCDEF", ""):
        with pytest.raises(UsageError, match="id of a style"):
            library.add(style, wrong)
    assert [*files(library)] == [f"{id}.safetensors"]


def test_a_file_put_in_changed_or_removed_by_hand_shows_up(library: Library) -> None:
    path = make_style("One").save(library.folder / "by hand.safetensors")
    (entry,) = library.styles()
    assert entry.name == "One"
    assert library.style(entry.id).name == "One"
    assert entry.added == pytest.approx(path.stat().st_mtime)
    make_style("Two", seed=1).save(path)
    assert library.style(entry.id).name == "Two"  # also without a listing in between
    assert library.entry(entry.id).name == "Two"
    assert library.styles()[0].id == entry.id
    path.unlink()
    with pytest.raises(UnknownStyle):
        library.style(entry.id)
    assert library.styles() == []


def test_broken_files_are_passed_over_and_listed_as_problems(library: Library, tmp_path: Path) -> None:
    good = library.add(painted("Good"))
    data = (library.folder / f"{good.id}.safetensors").read_bytes()
    (library.folder / "cut.safetensors").write_bytes(data[:-10])
    (library.folder / "empty.safetensors").write_bytes(b"")
    (library.folder / "noise.safetensors").write_bytes(os.urandom(3000))
    save_file({"weight": torch.zeros(2)}, library.folder / "model.safetensors")
    save_absurd_numbers(library.folder / "numbers.safetensors")
    (library.folder / "notes.txt").write_text("not a style")
    (library.folder / "run.state.safetensors").write_bytes(b"an interrupted learning")
    assert library.styles() == [good]
    problems = library.problems()
    assert [line.split(".safetensors")[0] for line in problems] == ["cut", "empty", "model", "noise", "numbers"]
    assert all("\n" not in line and str(tmp_path) not in line for line in problems)
    (library.folder / "cut.safetensors").write_bytes(data)
    assert len(library.styles()) == 2
    assert len(library.problems()) == 4


def test_links_are_not_followed_out_of_the_folder(library: Library, tmp_path: Path) -> None:
    outside = make_style().save(tmp_path / "outside.safetensors")
    content = outside.read_bytes()
    (library.folder / "link.safetensors").symlink_to(outside)
    (library.folder / f"{'a' * 16}.safetensors").symlink_to(outside)
    assert library.styles() == []
    assert len(library.problems()) == 2
    with pytest.raises(UnknownStyle):
        library.rename("a" * 16, "Mine")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (library.folder / "trash").symlink_to(elsewhere)
    entry = library.add(make_style())
    with pytest.raises(InstError, match="is a link"):
        library.delete(entry.id)
    assert library.styles() == [entry]
    assert list(elsewhere.iterdir()) == []
    assert outside.read_bytes() == content


def test_whatever_a_file_says_the_entry_is_plain_text(library: Library) -> None:
    about = {
        "tags": ["oil", "OIL", 7, None, "a\nb", "x" * 500, *map(str, range(100))],
        "paintings": [{"name": 5}, {}, {"name": "<b>.jpg"}],
        "steps": "many",
        "added": float(10**300),
        "backbone": ["mini"],
        "variant": None,
    }
    style = make_style("line\nbreak \u202eexe" + "x" * 500, about=about)
    style.save(library.folder / "hostile.safetensors")
    entry = library.styles()[0]
    assert entry.name.startswith("line break  exe")
    assert len(entry.name) <= LONGEST_NAME
    assert entry.tags[:3] == ("oil", "a b", "x" * LONGEST_TAG)
    assert len(entry.tags) == MOST_TAGS
    assert (entry.paintings, entry.steps, entry.backbone, entry.variant) == (("<b>.jpg",), 0, "", "")
    assert time.time() - 60 < entry.added < time.time() + 60
    assert library.add(style).name == entry.name


def test_a_thousand_styles_are_listed(library: Library) -> None:
    data = make_style("Wave 0000").to_bytes()
    for number in range(1000):
        (library.folder / f"{number:016x}.safetensors").write_bytes(
            data.replace(b"Wave 0000", f"Wave {number:04}".encode())
        )
    assert sorted(names(library)) == [f"Wave {number:04}" for number in range(1000)]
    assert names(library, "0042") == ["Wave 0042"]
    with Library(library.folder) as again:
        assert again.styles() == library.styles()


# --- search -----------------------------------------------------------------------------------------------------------


def test_search_takes_every_word_literally_from_name_tags_paintings_and_backbone(library: Library) -> None:
    library.add(make_style("Große Welle", about={"tags": ["Ukiyo-e", "海"]}))
    library.add(make_style("睡莲 二", about={"paintings": [{"name": "Monet_1906.jpg", "sha256": ""}]}))
    library.add(make_style("100% Ink", about={"backbone": "owner/SD-Turbo"}))
    assert names(library) == ["100% Ink", "睡莲 二", "Große Welle"]  # the newest first
    for text, expected in {
        "GROSSE": ["Große Welle"],
        "welle ukiyo": ["Große Welle"],
        "welle monet": [],
        "海": ["Große Welle"],
        "睡莲": ["睡莲 二"],
        "monet_1": ["睡莲 二"],
        "_": ["睡莲 二"],
        "%": ["100% Ink"],
        "sd-turbo": ["100% Ink"],
        "' OR 1=1 --": [],
        "\ud800": [],
        "  ": ["100% Ink", "睡莲 二", "Große Welle"],
        " ".join(["e"] * 3000): ["Große Welle", "睡莲 二"][:2],
    }.items():
        assert sorted(names(library, text)) == sorted(expected), text


def test_styles_are_found_by_tag_and_by_text_space(library: Library) -> None:
    one = library.add(make_style("One", fingerprint="1" * 16))
    two = library.add(make_style("Two", fingerprint="2" * 16))
    library.add(Style(torch.empty(0, WIDTH), "3" * 16, about={"name": "Wordless"}))
    library.set_tags(one.id, ["oil", "19/20 c."])
    library.set_tags(two.id, ["oil"])
    assert library.tags() == [("oil", 2), ("19/20 c.", 1)]
    assert sorted(names(library, tag="oil")) == ["One", "Two"]
    assert names(library, tag="oi") == []
    assert names(library, "one", tag="oil") == ["One"]
    assert sorted(names(library, fingerprint="2" * 16)) == ["Two", "Wordless"]  # a style without a word fits all


# --- names and tags ---------------------------------------------------------------------------------------------------


def test_renaming_changes_the_file_but_not_the_style_nor_the_order(library: Library) -> None:
    style = painted(module={"weight": torch.ones(4)}, module_config={"variant": "attention"})
    by_hand = painted("By hand").save(library.folder / "by hand.safetensors")
    os.utime(by_hand, (1_000_000_000, 1_000_000_000))
    first = library.add(style)
    second = library.add(make_style("Second", seed=1))
    old = library.styles()[-1]
    for id, name in ((first.id, "Große Welle 1890/1910"), (old.id, "旧")):
        assert library.rename(id, f" {name} ").name == name
        assert library.style(id).name == name
    assert [entry.id for entry in library.styles()] == [second.id, first.id, old.id]
    assert library.entry(old.id).added == 1_000_000_000
    written = Style.load(library.folder / f"{first.id}.safetensors")
    assert same(written, style)
    assert written.module is not None
    assert torch.equal(written.module["weight"], torch.ones(4))
    assert {**written.about, "name": 0, "added": 0, "tags": 0} == {**style.about, "name": 0, "added": 0, "tags": 0}


@pytest.mark.parametrize(
    "name", ["", "  ", "x" * (LONGEST_NAME + 1), "a\nb", "a\0b", "\u202eexe", "../x", "/etc/passwd", "\ud800", 7, None]
)
def test_names_that_cannot_be_used_are_refused_in_one_line(library: Library, tmp_path: Path, name: Any) -> None:
    entry = library.add(make_style())
    before = files(library)
    with pytest.raises(UsageError) as caught:
        library.rename(entry.id, name)
    assert "\n" not in str(caught.value)
    assert files(library) == before
    assert [path.name for path in tmp_path.iterdir()] == ["library"]


def test_tags_are_tidied_or_refused(library: Library) -> None:
    entry = library.add(make_style())
    assert library.set_tags(entry.id, [" oil ", "", "Oil", "睡莲", "a/b", "~x"]).tags == ("oil", "睡莲", "a/b", "~x")
    before = files(library)
    for tags in ("oil", ["x" * (LONGEST_TAG + 1)], list(map(str, range(MOST_TAGS + 1))), ["a\tb"], [3], None):
        with pytest.raises(UsageError) as caught:
            library.set_tags(entry.id, tags)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
    assert files(library) == before
    assert library.rename(entry.id, "Other").tags == ("oil", "睡莲", "a/b", "~x")
    assert library.set_tags(entry.id, []).tags == ()


@pytest.mark.parametrize("id", ["../x", "", "0" * 16, "A" * 16, "trash", "%", "' OR 1=1 --", "\0", "\ud800", 7, None])
def test_unknown_ids_are_refused_by_every_method(library: Library, tmp_path: Path, id: Any) -> None:
    library.add(make_style())
    make_style().save(tmp_path / "x.safetensors")
    before = files(library)
    for call in (
        lambda: library.entry(id),
        lambda: library.style(id),
        lambda: library.rename(id, "name"),
        lambda: library.set_tags(id, []),
        lambda: library.delete(id),
        lambda: library.restore(id),
        lambda: library.thumbnail(id),
        lambda: library.export(id, "inst"),
    ):
        with pytest.raises(LookupError) as caught:
            call()
        assert isinstance(caught.value, InstError)
        assert "\n" not in str(caught.value)
    assert files(library) == before
    assert (tmp_path / "x.safetensors").exists()


# --- the trash --------------------------------------------------------------------------------------------------------


def test_a_deleted_style_comes_back_as_it_was(library: Library) -> None:
    kept, gone = library.add(make_style("Kept")), library.add(painted("Gone"))
    (data,) = (data for name, data in files(library).items() if gone.id in name)
    library.delete(gone.id)
    assert library.styles() == [kept]
    assert library.deleted() == [gone]
    with pytest.raises(UnknownStyle):
        library.style(gone.id)
    with pytest.raises(UnknownStyle):
        library.delete(gone.id)
    with Library(library.folder) as again:  # also for another process, and later
        assert again.deleted() == [gone]
    assert library.restore(gone.id) == gone
    assert library.deleted() == []
    assert names(library) == ["Gone", "Kept"]
    assert files(library)[f"{gone.id}.safetensors"] == data
    with pytest.raises(UnknownStyle):
        library.restore(gone.id)


def test_no_style_is_lost_when_two_have_had_the_same_file_name(library: Library) -> None:
    ids = []
    for name in ("First", "Second", "Third"):
        make_style(name).save(library.folder / "by hand.safetensors")
        (entry,) = library.styles()
        ids.append(entry.id)
        if name != "Third":
            library.delete(entry.id)
    assert len(set(ids)) == 1
    assert [entry.name for entry in library.deleted()] == ["Second", "First"]
    restored = [library.restore(ids[0]) for _ in range(2)]
    assert [entry.name for entry in restored] == ["Second", "First"]
    assert sorted(names(library)) == ["First", "Second", "Third"]
    assert len({entry.id for entry in library.styles()}) == 3


def test_purging_ends_only_what_was_deleted_long_enough_ago(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new, kept = (library.add(make_style(name)) for name in ("Old", "New", "Kept"))
    now = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now - 10 * DAY * 10**9)
    library.delete(old.id)
    monkeypatch.undo()
    library.delete(new.id)
    (library.folder / "trash" / "notes.safetensors").write_text("not of the library")
    assert library.purge(20) == 0
    assert library.purge(5) == 1
    assert library.deleted() == [new]
    with pytest.raises(UsageError):
        library.purge(-1)
    assert library.purge(0) == 1
    assert library.styles() == [kept]
    assert (library.folder / "trash" / "notes.safetensors").exists()


# --- the index --------------------------------------------------------------------------------------------------------


def remove(path: Path) -> None:
    path.unlink()


def fill_with_noise(path: Path) -> None:
    path.write_bytes(os.urandom(20_000))


def damage_the_pages(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4096:] = os.urandom(len(data) - 4096)
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def make_older(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TABLE files")
        connection.execute("PRAGMA user_version = 0")
    connection.close()


def make_empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("harm", [remove, fill_with_noise, damage_the_pages, cut, make_older, make_empty])
@pytest.mark.parametrize("opened", [False, True])
def test_the_index_is_made_again_from_the_files(tmp_path: Path, harm: Callable[[Path], None], opened: bool) -> None:
    library = Library(tmp_path)
    expected = [library.add(painted(name)) for name in ("One", "Two")][::-1]
    gone = library.add(make_style("Gone"))
    library.delete(gone.id)
    thumbnail = library.thumbnail(expected[0].id)
    before = files(library)
    if not opened:
        library.close()
    harm(tmp_path / "index.sqlite")
    if not opened:
        library = Library(tmp_path)
    with library:
        renamed = library.rename(expected[0].id, "Two again")
        assert library.styles() == [renamed, expected[1]]
        assert library.deleted() == [gone]
        assert library.thumbnail(renamed.id) == thumbnail
        library.rename(expected[0].id, "Two")
        assert files(library) == before
    with Library(tmp_path) as again:
        assert [entry.name for entry in again.styles()] == ["Two", "One"]


def test_changes_while_the_library_is_closed_show_up(tmp_path: Path) -> None:
    with Library(tmp_path) as library:
        one, two = library.add(make_style("One")), library.add(make_style("Two"))
    make_style("Changed", seed=1).save(tmp_path / f"{one.id}.safetensors")
    (tmp_path / f"{two.id}.safetensors").unlink()
    make_style("Three").save(tmp_path / "three.safetensors")
    with Library(tmp_path) as library:
        assert sorted(names(library)) == ["Changed", "Three"]


def test_a_database_of_another_program_is_left_alone(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "index.sqlite") as connection:
        connection.execute("CREATE TABLE diary (entry TEXT)")
    connection.close()
    before = (tmp_path / "index.sqlite").read_bytes()
    with pytest.raises(InstError, match="another program"):
        Library(tmp_path)
    assert (tmp_path / "index.sqlite").read_bytes() == before


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InstError):
        Library(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


# --- threads, processes, and their end --------------------------------------------------------------------------------


def test_threads_and_two_open_libraries_change_styles_without_losing_any(tmp_path: Path) -> None:
    errors: list[BaseException] = []
    with Library(tmp_path) as first, Library(tmp_path) as second:
        shared = first.add(make_style("Shared"))

        def work(number: int) -> None:
            library = (first, second)[number % 2]
            try:
                for turn in range(5):
                    entry = library.add(painted(f"{number}-{turn}"))
                    library.set_tags(shared.id, [f"tag {number}"])
                    library.rename(entry.id, f"{number}-{turn} renamed")
                    library.thumbnail(entry.id)
                    library.styles(str(turn))
                    library.delete(entry.id)
                    library.restore(entry.id)
                    assert library.style(entry.id).name == f"{number}-{turn} renamed"
                library.rename(shared.id, f"Shared {number}")
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        expected = {f"{number}-{turn} renamed" for number in range(4) for turn in range(5)}
        for library in (first, second):
            assert {*names(library)} - expected == {library.entry(shared.id).name}
            assert len(library.styles()) == 21
            assert library.problems() == []
        assert first.entry(shared.id).tags  # the last rename kept the tags that another thread had just set


KILLED = """
import os, signal, sys
from pathlib import Path
from inst.studio.library import Library

folder, action, moment = sys.argv[1:]
(entry,) = (library := Library(folder)).styles()
name = "rename" if action == "delete" else "replace"
original = getattr(Path, name)

def stop():
    os.kill(os.getpid(), signal.SIGKILL)

def killed(self, target):
    if moment == "before":
        stop()
    original(self, target)
    stop()

if moment == "writing":
    os.fsync = lambda file: (os.ftruncate(file, 100), stop())
setattr(Path, name, killed)
library.delete(entry.id) if action == "delete" else library.rename(entry.id, "Renamed")
"""


@pytest.mark.parametrize(
    ("action", "moment", "expected"),
    [
        ("rename", "writing", "Old"),
        ("rename", "before", "Old"),
        ("rename", "after", "Renamed"),
        ("delete", "before", "Old"),
        ("delete", "after", None),
    ],
)
def test_a_process_killed_in_the_middle_leaves_a_whole_file(
    tmp_path: Path, action: str, moment: str, expected: str | None
) -> None:
    style = painted("Old")
    with Library(tmp_path) as library:
        library.add(style)
    process = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), action, moment], check=False)
    assert process.returncode == -signal.SIGKILL
    with Library(tmp_path) as library:
        assert names(library) == ([expected] if expected else [])
        assert library.problems() == []
        entry = library.styles()[0] if expected else library.restore(library.deleted()[0].id)
        assert same(library.style(entry.id), style)
        assert library.rename(entry.id, "Works again").name == "Works again"
    for path in tmp_path.glob(".*"):  # what is left of the file that was being written
        os.utime(path, (0, 0))
    Library(tmp_path).close()
    assert list(tmp_path.glob(".*")) == []


def test_the_import_of_the_module_does_not_import_pytorch() -> None:
    code = "import sys, inst.studio.library; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_a_thumbnail_is_the_small_first_painting_and_follows_the_file(library: Library) -> None:
    entry = library.add(painted(red=1.0))
    data = library.thumbnail(entry.id, 64)
    assert data is not None
    image = Image.open(io.BytesIO(data))
    assert (image.format, image.size) == ("WEBP", (60, 40))  # not enlarged
    assert image.convert("RGB").getpixel((30, 20))[0] > 240  # type: ignore[index]
    library.rename(entry.id, "Renamed")
    assert library.thumbnail(entry.id, 64) == data
    painted(red=-1.0).save(library.folder / f"{entry.id}.safetensors")
    black = library.thumbnail(entry.id, 64)
    assert black is not None
    assert Image.open(io.BytesIO(black)).convert("RGB").getpixel((30, 20))[0] < 15  # type: ignore[index]
    large = make_style(paintings=(encode_painting(torch.zeros(3, 300, 600)),))
    thumbnail = library.thumbnail(library.add(large).id)
    assert thumbnail is not None
    assert Image.open(io.BytesIO(thumbnail)).size == (256, 128)
    assert library.thumbnail(library.add(make_style()).id) is None
    with pytest.raises(UsageError):
        library.thumbnail(entry.id, 100)


def test_a_damaged_painting_gives_one_line_and_leaves_the_rest_usable(
    library: Library, tiny_backbone: Backbone
) -> None:
    entry = library.add(make_style(paintings=(b"no picture",)))
    good = library.add(painted())
    with pytest.raises(InstError):
        library.thumbnail(entry.id)
    assert list(library.embed_missing(tiny_backbone)) == [good]


@pytest.fixture(scope="module")
def mini() -> Backbone:
    return Backbone.load("mini", device="cpu", dtype="float32")


def copies(image: Image.Image) -> dict[str, Image.Image]:
    width, height = image.size
    return {
        "same": image,
        "turned": image.rotate(90, expand=True),
        "mirrored": image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        "left": image.crop((0, 0, int(0.6 * width), height)),
        "right": image.crop((int(0.4 * width), int(0.2 * height), width, height)),
        "small": image.resize((width // 4, height // 4)),
    }


def test_a_changed_copy_of_a_painting_finds_its_style_first(library: Library, mini: Backbone) -> None:
    paths = sorted(DEMO.glob("*.webp"))
    ids = {path.stem: library.add(inst.instant_style(mini, path)).id for path in paths}
    library.add(make_style("Without a painting"))
    encoder = library.encoder(mini)
    assert library.nearest(library.embed_picture(mini, paths[0]), encoder) == []
    assert library.missing(encoder) == 5
    assert {entry.id for entry in library.embed_missing(mini)} == {*ids.values()}
    assert library.missing(encoder) == 0
    assert list(library.embed_missing(mini)) == []
    for path in paths:
        for kind, copy in copies(Image.open(path).convert("RGB")).items():
            found = library.nearest(library.embed_picture(mini, copy), encoder)
            assert len(found) == 5
            assert found[0][0].id == ids[path.stem], (path.stem, kind)
            assert found == sorted(found, key=lambda pair: -pair[1])
            assert all(-1 <= cosine <= 1 for _, cosine in found)
    assert found[0][1] > 0.5


def test_embeddings_belong_to_an_encoder_and_to_a_painting(
    library: Library, tiny_backbone: Backbone, mini: Backbone
) -> None:
    one, copy = library.add(painted("One")), library.add(painted("Copy"))
    steps = library.embed_missing(tiny_backbone)
    assert next(steps) == copy
    steps.close()  # type: ignore[attr-defined]
    encoder = library.encoder(tiny_backbone)
    assert library.missing(encoder) == 0  # the same painting
    assert library.missing(library.encoder(mini)) == 2
    vector = library.embed_picture(tiny_backbone, torch.zeros(3, 40, 60))
    assert len(library.nearest(vector, encoder)) == 2
    assert len(library.nearest(vector, encoder, 1)) == 1
    assert library.nearest(vector, library.encoder(mini)) == []
    library.rename(one.id, "Renamed")
    library.delete(copy.id)
    assert [entry.name for entry, _ in library.nearest(vector, encoder)] == ["Renamed"]
    library.restore(copy.id)
    assert len(library.nearest(vector, encoder)) == 2
    for wrong in (vector[:3], vector[None], vector * float("nan")):
        with pytest.raises(UsageError):
            library.nearest(wrong, encoder)
    with pytest.raises(UsageError):
        library.nearest(vector, encoder, 0)


# --- files of other programs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", ["inst", *FORMATS])
def test_an_exported_style_can_be_imported_again(
    library: Library, tiny_backbone: Backbone, tmp_path: Path, to: str
) -> None:
    entry = library.add(painted("Große 睡莲", fingerprint=tiny_backbone.fingerprint))
    data, name = library.export(entry.id, to)
    assert name == f"große-睡莲{FORMATS.get(to, '.safetensors')}"
    path = tmp_path / name
    path.write_bytes(data)
    if to == "inst":
        assert same(Style.load(path), library.style(entry.id))
    elif to != "a1111-png":
        (vectors,) = load_file(path).values()
        assert torch.equal(vectors, library.style(entry.id).vectors)
    imported = library.import_file(path, tiny_backbone)
    assert imported.id != entry.id
    assert imported.name == ("Große 睡莲" if to == "inst" else "große-睡莲")
    assert imported.variant == ("attention" if to == "inst" else "imported")
    assert torch.equal(library.style(imported.id).vectors, library.style(entry.id).vectors)
    assert library.import_file(path, tiny_backbone, "Chosen").name == "Chosen"
    assert names(library) == ["Chosen", imported.name, "Große 睡莲"]
    assert [path.name for path in library.folder.iterdir() if path.is_dir()] == []


def test_files_that_cannot_be_imported_leave_the_library_as_it_is(
    library: Library, tiny_backbone: Backbone, tmp_path: Path
) -> None:
    good = make_style().save(tmp_path / "good.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(good.read_bytes()[:-5])
    torch.save({"string_to_param": {"*": torch.nn.Linear(1, 1)}}, tmp_path / "unsafe.pt")
    save_file({"emb_params": torch.zeros(2, WIDTH + 1)}, tmp_path / "wide.safetensors")
    Image.new("RGB", (8, 8)).save(tmp_path / "picture.png")
    save_absurd_numbers(tmp_path / "numbers.safetensors")
    for name in (
        *("cut.safetensors", "numbers.safetensors", "wide.safetensors"),
        *("unsafe.pt", "picture.png", "missing.pt"),
    ):
        with pytest.raises(InstError) as caught:
            library.import_file(tmp_path / name, tiny_backbone)
        assert "\n" not in str(caught.value)
    with pytest.raises(UsageError):
        library.import_file(good, tiny_backbone, "../x")
    assert files(library) == {}


def test_an_export_that_is_not_possible_gives_one_line(library: Library) -> None:
    entry = library.add(Style(torch.empty(0, WIDTH), "", about={"name": "Wordless"}))
    for to in ("a1111", "diffusers", "../x", "", None):
        with pytest.raises(UsageError) as caught:
            library.export(entry.id, to)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
    assert Style.from_bytes(library.export(entry.id, "inst")[0]).name == "Wordless"
    assert [path.name for path in library.folder.iterdir() if path.is_dir()] == []
