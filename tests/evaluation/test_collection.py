"""Pictures are matched with their photos and paintings by name, and what does not fit is named."""

import unicodedata
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import pytest
from PIL import Image

from inst.errors import InstError, UsageError
from inst.evaluation.collection import Collection, collect, read_prompts


def fill(folder: Path, names: Sequence[str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (4, 4)).save(folder / (name if "." in name else f"{name}.png"))
    return folder


@pytest.fixture
def sources(tmp_path: Path) -> tuple[Path, Path]:
    return fill(tmp_path / "s", ["monet", "klee__late.jpg"]), fill(tmp_path / "p", ["dog", "my__cat"])


ALL = ("dog__klee__late", "dog__monet", "my__cat__klee__late", "my__cat__monet")


def names(found: Collection) -> list[str]:
    return [pair.name for pair in found.pairs]


def test_names_with_the_separator_in_them_are_found(tmp_path: Path, sources: tuple[Path, Path]) -> None:
    found = collect(fill(tmp_path / "made", ALL), *sources)
    assert found.methods == ("made",)
    assert sorted(names(found)) == sorted(ALL)
    assert [pair.painting.stem for pair in found.pairs] == ["klee__late", "klee__late", "monet", "monet"]
    assert {pair.photo and pair.photo.stem for pair in found.pairs} == {"dog", "my__cat"}
    assert found.problems == ()


def test_pictures_that_match_no_pair_are_reported_and_the_rest_is_collected(
    tmp_path: Path, sources: tuple[Path, Path]
) -> None:
    made = fill(tmp_path / "made", [*ALL[:3], "dog__monte", "dag__monet", "note"])
    found = collect(made, *sources)
    assert len(found.pairs) == 3
    assert list(found.problems) == [
        f'{made}/dag__monet.png: no photo is named "dag"',
        f'{made}/dog__monte.png: no painting is named "monte"',
        f"{made}/note.png: its name is not PHOTO__PAINTING: rename it after its photo and painting",
        "made: there is no picture my__cat__monet",
    ]


def test_unmade_pairs_are_not_reported_where_photos_and_paintings_go_in_pairs(tmp_path: Path) -> None:
    numbers = [f"{number}" for number in range(5)]
    sources = fill(tmp_path / "s", numbers), fill(tmp_path / "p", numbers)
    assert collect(fill(tmp_path / "made", [f"{n}__{n}" for n in numbers]), *sources).problems == ()
    few = collect(fill(tmp_path / "few", ["0__0", "1__1", "2__2"]), *sources)
    assert list(few.problems) == [
        *(f'no picture was made in the style of "{number}"' for number in "34"),
        *(f'no picture was made of the photo "{number}"' for number in "34"),
    ]


def test_each_folder_with_pictures_in_a_comparison_is_a_method(tmp_path: Path) -> None:
    fill(tmp_path / "photos", ["dog"])
    fill(tmp_path / "paintings", ["monet", "klee"])
    fill(tmp_path / "inst", ["dog__monet", "dog__klee"])
    fill(tmp_path / "adain", ["dog__monet.webp"])
    fill(tmp_path / "gatys", [])
    fill(tmp_path / ".hidden", ["dog__monet"])
    fill(tmp_path / "evaluation", [])
    (tmp_path / "evaluation" / "figures.json").write_text("{}")
    fill(tmp_path, ["sheet"])
    found = collect(tmp_path)
    assert found.methods == ("adain", "inst")
    assert [sorted(pair.results) for pair in found.pairs] == [["inst"], ["adain", "inst"]]
    assert list(found.problems) == [
        f"{tmp_path}/gatys contains no picture: the method is left out",
        "adain: there is no picture dog__klee",
    ]


def test_a_method_of_other_pictures_and_an_unused_painting_are_reported_in_one_line_each(tmp_path: Path) -> None:
    fill(tmp_path / "photos", ["dog", "cat"])
    fill(tmp_path / "paintings", ["monet", "klee", "unused"])
    fill(tmp_path / "inst", ["dog__monet", "dog__klee", "cat__monet", "cat__klee"])
    fill(tmp_path / "adain", ["dog_monet", "cat_monet"])
    found = collect(tmp_path)
    assert found.methods == ("inst",)
    assert list(found.problems) == [
        "adain is left out: none of its pictures (2) belongs to these photos and paintings; the first, "
        f"{tmp_path}/adain/cat_monet.png: its name is not PHOTO__PAINTING: rename it after its photo and painting",
        'no picture was made in the style of "unused"',
    ]
    assert collect(tmp_path, methods=["inst"]).problems == found.problems[1:]
    with pytest.raises(UsageError, match="no method cast: choose from adain, inst"):
        collect(tmp_path, methods=["cast"])


def test_hidden_files_are_not_taken_for_pictures(tmp_path: Path, sources: tuple[Path, Path]) -> None:
    made = fill(tmp_path / "made", ALL)
    for folder in (made, *sources):
        for file in list(folder.iterdir()):
            (folder / f"._{file.name}").write_bytes(b"what macOS knows of the file")
    found = collect(made, *sources)
    assert sorted(names(found)) == sorted(ALL)
    assert found.problems == ()


def test_a_single_picture_needs_no_photo_or_painting_in_its_name(tmp_path: Path) -> None:
    folder = fill(tmp_path, ["result", "photo", "painting"])
    (pair,) = collect(folder / "result.png", folder / "painting.png", folder / "photo.png").pairs
    assert (pair.photo, pair.painting) == (folder / "photo.png", folder / "painting.png")
    assert dict(pair.results) == {"result": folder / "result.png"}
    (alone,) = collect(folder / "result.png", folder / "painting.png").pairs
    assert alone.photo is None


def test_pictures_made_from_text_have_no_photos(tmp_path: Path, sources: tuple[Path, Path]) -> None:
    found = collect(fill(tmp_path / "made", ["castle-1__monet", "castle-2__monet"]), sources[0])
    assert names(found) == ["castle-1__monet", "castle-2__monet"]
    assert all(pair.photo is None for pair in found.pairs)


def test_of_two_photos_with_the_same_name_one_is_used_and_the_other_reported(
    tmp_path: Path, sources: tuple[Path, Path]
) -> None:
    fill(sources[1], ["dog.jpg"])
    found = collect(fill(tmp_path / "made", ALL), *sources)
    assert list(found.problems) == [f"{sources[1]}/dog.png: dog.jpg has the same name and is used"]


def test_a_name_that_fits_several_pairs_is_left_out_and_reported(tmp_path: Path) -> None:
    photos = fill(tmp_path / "photos", ["old.png", "old__bridge.png"])
    paintings = fill(tmp_path / "paintings", ["bridge__night.png", "night.png"])
    names = ["old__bridge__night", "old__night", "old__bridge__bridge__night"]
    found = collect(fill(tmp_path / "made", [f"{name}.png" for name in names]), paintings, photos)
    assert [pair.name for pair in found.pairs] == ["old__bridge__bridge__night", "old__night"]
    assert f"{tmp_path}/made/old__bridge__night.png: its name stands for several pairs" in found.problems[0]


def test_of_two_results_with_the_same_name_one_is_used_and_the_other_reported(
    tmp_path: Path, sources: tuple[Path, Path]
) -> None:
    other = f"{Path(ALL[0]).stem}.jpg"
    made = fill(tmp_path / "made", [*ALL, other])
    found = collect(made, *sources)
    assert list(found.problems) == [f"{made / ALL[0]}.png: {other} has the same name and is used"]
    assert len(found.pairs) == len(ALL)


def test_a_collection_with_nothing_to_judge_is_refused_with_the_reason(
    tmp_path: Path, sources: tuple[Path, Path]
) -> None:
    empty = fill(tmp_path / "empty", [])
    made = fill(tmp_path / "made", ALL)
    for arguments, message in (
        ((empty, *sources), "empty contains no picture"),
        ((made, empty, sources[1]), "empty contains no picture"),
        ((made, sources[0], empty), "empty contains no picture"),
        ((made, tmp_path / "absent"), "absent: no such folder"),
        ((tmp_path / "absent", *sources), "absent: no such folder"),
        ((fill(tmp_path / "other", ["a__b"]), *sources), 'no painting is named "b"'),
    ):
        with pytest.raises(InstError, match=message):
            collect(*arguments)
    with pytest.raises(UsageError, match="`paintings`"):
        collect(made)


def test_prompts_are_found_by_pair_photo_and_painting(tmp_path: Path, sources: tuple[Path, Path]) -> None:
    made = fill(tmp_path / "made", ALL)
    prompts = tmp_path / "prompts.tsv"
    prompts.write_text("dog__monet\tthe dog by monet\ndog\ta dog\n\nklee__late\tsomething\n", encoding="utf-8")
    found = collect(made, *sources, prompts)
    assert {pair.name: pair.prompt for pair in found.pairs} == {
        "dog__monet": "the dog by monet",
        "dog__klee__late": "a dog",
        "my__cat__klee__late": "something",
        "my__cat__monet": None,
    }
    assert list(found.problems) == [f'{prompts}: it has no prompt for "my__cat__monet"']
    (tmp_path / "one.txt").write_text("a picture in the style of [C]\n")
    assert {pair.prompt for pair in collect(made, *sources, tmp_path / "one.txt").pairs} == {
        "a picture in the style of [C]"
    }
    (tmp_path / "one.json").write_text('{"dog": "a \\"dog\\""}')
    assert read_prompts(tmp_path / "one.json") == {"dog": 'a "dog"'}


def test_a_name_in_a_prompt_file_may_have_a_pictures_ending(tmp_path: Path, sources: tuple[Path, Path]) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("Monet.JPG\ta\nklee__late.jpg\tb\nv1.5\tc\nmanet\td\n", encoding="utf-8")
    assert read_prompts(prompts) == {"Monet": "a", "klee__late": "b", "v1.5": "c", "manet": "d"}
    found = collect(fill(tmp_path / "made", ALL), *sources, prompts)
    assert {pair.painting.stem: pair.prompt for pair in found.pairs} == {"monet": None, "klee__late": "b"}
    assert [problem for problem in found.problems if "named" in problem] == [
        f'{prompts}: no pair, photo or painting is named "{name}"' for name in ("Monet", "manet", "v1.5")
    ]


def test_a_line_of_prompts_ends_at_a_line_feed_only(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_bytes("dog\ta castle\u2028by a lake\x0c\x85 and so on\r\ncat\ta cat\n".encode())
    assert read_prompts(prompts) == {"dog": "a castle\u2028by a lake\x0c\x85 and so on", "cat": "a cat"}


def test_names_in_nfd_and_nfc_are_the_same(tmp_path: Path) -> None:
    """macOS writes names in NFD. The comparison does not depend on which of the folders has which form."""
    forms = {form: [unicodedata.normalize(form, name) for name in ("café", "étoile")] for form in ("NFC", "NFD")}
    for number, (a, b, c) in enumerate(product(forms, repeat=3)):
        folder = tmp_path / str(number)
        photos, paintings = fill(folder / "photos", [forms[a][0]]), fill(folder / "paintings", [forms[b][1]])
        made = fill(folder / "ours", ["__".join(forms[c])])
        (folder / "prompts.txt").write_text(f"{forms[a][1]}.jpg\ta star\n", encoding="utf-8")
        (pair,) = collect(made, paintings, photos, folder / "prompts.txt").pairs
        assert pair.name == "__".join(forms["NFC"])
        assert pair.prompt == "a star"
        assert pair.photo
        assert pair.photo.is_file()
        assert pair.painting.is_file()
        assert pair.results["ours"].is_file()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.tsv", "dog\ta dog\ncat a cat\n", "line 2 is not NAME"),
        ("a.tsv", "\n\ndog\ta dog\n\ncat a cat\n", "line 5 is not NAME"),
        ("a.tsv", "", "line 1 is not NAME"),
        ("a.json", "{", "is not valid JSON"),
        ("a.json", "[]", "is not a JSON object"),
        ("a.json", "[" * 100_000, "nested too deeply"),
        ("a.json", '{"a": -1e400}', "is not a JSON object of prompts"),
        ("a.json", '{"a": "\\ud800"}', "is not valid Unicode"),
        ("a.tsv", None, "no such file"),
    ],
)
def test_a_prompt_file_that_cannot_be_used_is_refused_with_the_reason(
    tmp_path: Path, name: str, text: str | None, message: str
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(InstError, match=message):
        read_prompts(tmp_path / name)
