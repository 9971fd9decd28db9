"""Collect the pictures to evaluate: find them in folders and match them by name with their photos and paintings."""

from __future__ import annotations

import os
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from inst.errors import Argument, InstError, UsageError
from inst.files.listing import PICTURE_ENDINGS, picture_names, pictures_in, plain_name, readable_name
from inst.files.reading import parse_json, read_text
from inst.files.writing import LONGEST_NAME
from inst.texts import cut

SEPARATOR = "__"
"""Text between the name of the photo and the name of the painting: `PHOTO__PAINTING.png`."""
PHOTOS, PAINTINGS = "photos", "paintings"
NOT_METHODS = frozenset({PHOTOS, PAINTINGS, "styles", "sheets", "figures"})
"""Subfolders of a comparison that are not folders of a method."""
CURVES = "curves.json"
"""The file that marks a folder of learning curves."""
_COMPLETE_SHARE = 0.5
"""If at least this share of all photos x paintings exists, the other combinations are reported as missing."""


def check_names(what: str, named: Sequence[Path] | Sequence[str]) -> None:
    """Check the names of photos, paintings or methods, because they become the names of results.

    Args:
        what: the word for error messages: "photos", "paintings" or "methods".
        named: files of photos or paintings, whose names count without endings; or names of methods.

    Raises:
        UsageError: there are none, two have the same name, or a photo or painting has `SEPARATOR` in its name.
    """
    if not named:
        raise UsageError(f"No {what} are given", "give at least one")
    names = [plain_name(one.name) if isinstance(one, Path) else one for one in named]
    if repeated := sorted(name for name, count in Counter(names).items() if count > 1):
        raise UsageError(
            f"Two {what} are called {cut(repeated[0], 60)}", "rename one, because results are named after them"
        )
    for one in named:
        if isinstance(one, Path) and SEPARATOR in one.stem:
            raise UsageError(
                f"{one.name} has {SEPARATOR} in its name, which separates photo and painting in names of results",
                "rename it",
            )


def check_sources(photos: Sequence[Path], paintings: Sequence[Path]) -> None:
    """Check the names of photos and paintings as `check_names` does, and that the names of their results fit the disk.

    Raises:
        UsageError: as `check_names`; or a photo and a painting have names that are too long together.
    """
    check_names("photos", photos)
    check_names("paintings", paintings)
    longest = [max(files, key=lambda file: len(readable_name(file.stem).encode())) for files in (photos, paintings)]
    if len(result_name(*longest).encode()) > LONGEST_NAME:
        raise UsageError(
            f"The names of {longest[0].name} and {longest[1].name} are too long together for the name of their result",
            "rename one",
        )


def result_name(photo: Path, painting: Path) -> str:
    """Return the name of the result for two files: `PHOTO__PAINTING.png`."""
    return f"{readable_name(photo.stem)}{SEPARATOR}{readable_name(painting.stem)}.png"


@dataclass(frozen=True, slots=True)
class Pair:
    """A photo and a painting, and the methods' results for them.

    Attributes:
        name: `PHOTO__PAINTING`.
        photo: the photo's file; None for pictures that were generated from text.
        painting: the painting's file.
        results: the picture of each method.
        prompt: the prompt of the picture, or None.
    """

    name: str
    photo: Path | None
    painting: Path
    results: Mapping[str, Path]
    prompt: str | None = None


@dataclass(frozen=True)
class Collection:
    """The pictures to evaluate.

    Attributes:
        methods: names of the methods, in order.
        pairs: pairs of photo and painting, ordered by painting and then by photo.
        problems: what was left out, one line each; each line names the file.
    """

    methods: tuple[str, ...]
    pairs: tuple[Pair, ...]
    problems: tuple[str, ...] = ()


class _Place(NamedTuple):
    """Folder and file ending of a method's pictures; `stem` is None if pictures have the name of their pair."""

    folder: Path
    ending: str
    stem: str | None = None


class _Results(Mapping[str, Path]):
    """The picture of each method for a pair. The paths are built on access.

    There may be a hundred thousand pairs, so pairs with the same `places` share one mapping to save memory.
    """

    __slots__ = ("_name", "_places")

    def __init__(self, name: str, places: Mapping[str, _Place]) -> None:
        self._name, self._places = name, places

    def __getitem__(self, method: str) -> Path:
        place = self._places[method]
        return place.folder / f"{place.stem or self._name}{place.ending}"

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


@dataclass
class _Finder:
    photos: dict[str, Path] | None
    paintings: dict[str, Path]
    problems: list[str]
    found: dict[tuple[str, str], Mapping[str, _Place]] = field(default_factory=dict)
    _shared: dict[tuple[tuple[str, _Place], ...], Mapping[str, _Place]] = field(default_factory=dict)

    def add(self, method: str, folder: Path, name: str) -> None:
        written, ending = os.path.splitext(name)
        stem = plain_name(name)
        places = [i for i in range(len(stem)) if stem.startswith(SEPARATOR, i)]
        splits = [(sys.intern(stem[place + len(SEPARATOR) :]), sys.intern(stem[:place])) for place in places]
        matches = [(painting, photo) for painting, photo in splits if self._exists(painting, photo)]
        results = self.found.get(matches[0], {}) if matches else {}
        if not matches:
            self.problems.append(f"{folder / name}: {self._mismatch(stem)}")
        elif len(matches) > 1 and self.photos is not None:
            self.problems.append(
                f"{folder / name}: its name stands for several pairs of photo and painting: rename one of them"
            )
        elif method in results:
            self.problems.append(f"{folder / name}: {stem}{results[method].ending} has the same name and is used")
        else:
            results = {**results, method: _Place(folder, ending, None if written == stem else written)}
            self.found[matches[0]] = self._shared.setdefault(tuple(results.items()), results)

    def add_method(self, method: str, folder: Path, names: Sequence[str]) -> bool:
        """Add a method's pictures. If none of them matches, replace their problems by one line and return False."""
        earlier = len(self.problems)
        for name in names:
            self.add(method, folder, name)
        if any(method in results for results in self.found.values()):
            return True
        self.problems[earlier:] = [
            f"{method} is left out: none of its pictures ({len(names)}) belongs to these photos and paintings; "
            f"the first, {self.problems[earlier]}"
        ]
        return False

    def _exists(self, painting: str, photo: str) -> bool:
        return painting in self.paintings and (self.photos is None or photo in self.photos)

    def _mismatch(self, stem: str) -> str:
        """Return why a file name matches no pair."""
        photo, separator, painting = stem.rpartition(SEPARATOR)
        if not separator:
            return "its name is not PHOTO__PAINTING: rename it after its photo and painting"
        if painting not in self.paintings:
            return f'no painting is named "{painting}"'
        return f'no photo is named "{photo}"'


def collect(
    results: str | Path,
    paintings: str | Path | None = None,
    photos: str | Path | None = None,
    prompts: str | Path | None = None,
    methods: Sequence[str] | None = None,
) -> Collection:
    """Find pictures and match them with their photos and paintings.

    Args:
        results: a folder of pictures `PHOTO__PAINTING.png` (any format; PHOTO and PAINTING are file names without
            endings); or a folder with one such folder for each method, and `photos` and `paintings`, as `inst compare`
            makes it; or a single picture of any name, with one photo and one painting.
        paintings: a folder, or a file; by default the folder `paintings` in `results`.
        photos: a folder, or a file; by default the folder `photos` in `results`. Without photos, pictures
            `NAME__PAINTING` are only compared with the paintings.
        prompts: see `read_prompts`.
        methods: folders of `results` to use; None uses all that contain pictures.

    Raises:
        UsageError: no paintings are given, or a method does not exist.
        InstError: a folder is missing, empty or not readable, or no picture matches a photo and a painting.
    """
    results = Path(results)
    if not (results.is_dir() or results.is_file()):
        raise InstError(f"{results}: no such folder or picture", "check the path")
    subfolders = {name: results / name for name in (PHOTOS, PAINTINGS) if (results / name).is_dir()}
    paintings, photos = paintings or subfolders.get(PAINTINGS), photos or subfolders.get(PHOTOS)
    if paintings is None:
        raise UsageError(f"{results} has no folder {PAINTINGS}", "give the paintings with ", Argument("paintings"))
    problems: list[str] = []
    finder = _Finder(
        None if photos is None else _by_name(Path(photos), problems), _by_name(Path(paintings), problems), problems
    )
    if results.is_file():
        _add_single(finder, results)
        used_methods = [plain_name(results.name)]
    else:
        found = _methods(results, methods, problems)
        used_methods = [method for method, folder, names in found if finder.add_method(method, folder, names)]
    if not finder.found:
        raise InstError(problems[-1] if problems else f"{results} contains no picture named PHOTO{SEPARATOR}PAINTING.")
    problems += _missing(finder, used_methods)
    return Collection(tuple(used_methods), _pairs(finder, prompts), tuple(problems))


def _pairs(finder: _Finder, prompts: str | Path | None) -> tuple[Pair, ...]:
    prompt_by_name = {} if prompts is None else read_prompts(prompts)
    known = {""}

    def prompt_of(name: str, photo: str, painting: str) -> str | None:
        keys = (name, photo, painting, "")
        known.update(keys)
        return next((prompt_by_name[key] for key in keys if key in prompt_by_name), None)

    pairs = []
    for (painting, photo), places in sorted(finder.found.items()):
        name = f"{photo}{SEPARATOR}{painting}" if photo else painting
        photo_file = None if finder.photos is None else finder.photos[photo]
        prompt = prompt_of(name, photo, painting)
        if prompt_by_name and prompt is None:
            finder.problems.append(f'{prompts}: it has no prompt for "{name}"')
        pairs.append(Pair(name, photo_file, finder.paintings[painting], _Results(name, places), prompt))
    finder.problems += [
        f'{prompts}: no pair, photo or painting is named "{cut(name, 60)}"'
        for name in sorted(prompt_by_name.keys() - known)
    ]
    return tuple(pairs)


def _add_single(finder: _Finder, result: Path) -> None:
    photos = [("", Path())] if finder.photos is None else list(finder.photos.items())
    paintings = list(finder.paintings)
    if len(paintings) > 1 or len(photos) > 1:  # folders: only the name tells which photo and painting
        finder.add(plain_name(result.name), result.parent, result.name)
    else:
        place = _Place(result.parent, result.suffix, result.stem)
        finder.found[paintings[0], photos[0][0]] = {plain_name(result.name): place}


def _methods(results: Path, wanted: Sequence[str] | None, problems: list[str]) -> list[tuple[str, Path, Sequence[str]]]:
    """Return each method with its folder and the names of its pictures."""
    direct = picture_names(results)
    folders = [path for path in sorted(results.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    folders = [folder for folder in folders if folder.name not in NOT_METHODS]
    if any(SEPARATOR in os.path.splitext(name)[0] for name in direct) or not folders:
        if not direct:
            raise InstError(f"{results} contains no picture", f"give a folder of pictures PHOTO{SEPARATOR}PAINTING.png")
        return [(readable_name(results.resolve().name), results, direct)]
    if wanted is not None:
        names = [readable_name(folder.name) for folder in folders]
        if unknown := [name for name in wanted if name not in names]:
            raise UsageError(f"{results} has no method {cut(unknown[0], 60)}", f"choose from {', '.join(names)}")
        folders = [folder for folder in folders if readable_name(folder.name) in wanted]
    methods: list[tuple[str, Path, Sequence[str]]] = []
    for folder in folders:
        if pictures := picture_names(folder):
            methods.append((readable_name(folder.name), folder, pictures))
        elif wanted is not None or not any(folder.iterdir()):  # skip folders of other files, such as reports
            problems.append(f"{folder} contains no picture: the method is left out")
    return methods


def _by_name(place: Path, problems: list[str]) -> dict[str, Path]:
    """Return the pictures of a folder, or the single file, by names without endings."""
    if place.is_file():
        return {plain_name(place.name): place}
    if not place.is_dir():
        raise InstError(f"{place}: no such folder or picture", "check the path")
    named: dict[str, Path] = {}
    for path in pictures_in(place):
        if (name := plain_name(path.name)) in named:
            problems.append(f"{path}: {named[name].name} has the same name and is used")
        else:
            named[name] = path
    if not named:
        raise InstError(f"{place} contains no picture ({', '.join(sorted(PICTURE_ENDINGS))})", "give another folder")
    return named


def _missing(finder: _Finder, methods: Sequence[str]) -> list[str]:
    """Report missing combinations: those that another method has; if most combinations exist, all of them.

    A photo or painting without any picture is reported once, not in each combination.
    """
    used = {photo for _, photo in finder.found}
    paintings = {painting for painting, _ in finder.found}
    photos = used if finder.photos is None else finder.photos.keys()
    expected = sorted(finder.found)
    if len(finder.found) >= _COMPLETE_SHARE * len(photos) * len(finder.paintings):
        expected = [(painting, photo) for painting in sorted(paintings) for photo in sorted(used)]
    return [
        *(
            f"{method}: there is no picture {photo}{SEPARATOR}{painting}"
            for method in methods
            for painting, photo in expected
            if method not in finder.found.get((painting, photo), {})
        ),
        *(f'no picture was made in the style of "{name}"' for name in sorted(finder.paintings.keys() - paintings)),
        *(f'no picture was made of the photo "{name}"' for name in sorted(photos - used)),
    ]


def read_prompts(path: str | Path) -> dict[str, str]:
    """Read prompts by the name of a pair, a photo or a painting (`collect` looks them up in this order).

    The file is a JSON object {"NAME": "prompt"}; or lines `NAME<tab>prompt`; or one line without a tab. The single line
    is the prompt of all pictures; its key is "".

    Raises:
        InstError: the file cannot be read, is larger than 64 MB, or has another format.
    """
    path = Path(path)
    text = read_text(path)
    if path.suffix.lower() == ".json":
        prompts = parse_json(text, str(path))
        if not isinstance(prompts, dict) or not all(isinstance(prompt, str) for prompt in prompts.values()):
            raise InstError(f"{path} is not a JSON object of prompts by name", 'write it like {"castle": "a castle"}')
        for name, prompt in prompts.items():
            if readable_name(name + prompt) != name + prompt:
                raise InstError(
                    f'{path}: the prompt of "{cut(readable_name(name), 60)}" is not valid Unicode', "correct it"
                )
        return {_name_of(name): prompt for name, prompt in prompts.items()}
    # Not `splitlines`: a line separator of Unicode may stand in a prompt.
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if len(lines) == 1 and "\t" not in lines[0][1]:
        return {"": lines[0][1].strip()}
    named = {}
    for number, line in lines or [(1, "")]:
        name, tab, prompt = line.partition("\t")
        if not tab or "\t" in prompt:
            raise InstError(f"{path}: line {number} is not NAME, a tab, and a prompt", "correct the line")
        named[_name_of(name.strip())] = prompt.strip()
    return named


def _name_of(name: str) -> str:
    """Return a name of a file of prompts as `collect` compares it: a picture's ending does not count."""
    is_file = os.path.splitext(name)[1].lower() in PICTURE_ENDINGS
    return plain_name(name) if is_file else unicodedata.normalize("NFC", name)
