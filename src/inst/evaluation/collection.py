"""What is to be judged: pictures named after their photo and painting, found in folders and matched by name."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from inst.errors import Argument, InstError, UsageError
from inst.files.listing import PICTURE_ENDINGS, picture_names, pictures_in

SEPARATOR = "__"
"""Between the photo's and the painting's name in a picture's: `PHOTO__PAINTING.png`."""
PHOTOS, PAINTINGS = "photos", "paintings"
NOT_METHODS = frozenset({PHOTOS, PAINTINGS, "styles", "sheets", "figures"})
"""The folders of a comparison's folder that hold no method's pictures."""
CURVES = "curves.json"
"""What makes a folder that of learning curves."""
_COMPLETE = 0.5
"""From this share of all photos x paintings on, the other combinations count as missing rather than not wanted."""


def check_names(what: str, named: Sequence[Path] | Sequence[str]) -> None:
    """Check what results are named by: photos' and paintings' files, whose names without endings count, or methods.

    Raises:
        UsageError: there are none, two of one name, or a photo or painting with `SEPARATOR` in its name.
    """
    if not named:
        raise UsageError(f"No {what} are given", "give at least one")
    names = [one.stem if isinstance(one, Path) else one for one in named]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"Two {what} are called {twice[0]}: results are named by them, so rename one.")
    for one in named:
        if isinstance(one, Path) and SEPARATOR in one.stem:
            raise UsageError(
                f"{one.name} has {SEPARATOR} in its name, which parts photo and painting in results' names", "rename it"
            )


@dataclass(frozen=True, slots=True)
class Pair:
    """A photo and a painting, and what the methods made of them.

    Attributes:
        name: `PHOTO__PAINTING`.
        photo: its file; None where pictures have none because they were generated from text.
        painting: its file.
        results: each method's picture.
        prompt: what the picture was asked to show, or None.
    """

    name: str
    photo: Path | None
    painting: Path
    results: Mapping[str, Path]
    prompt: str | None = None


@dataclass(frozen=True)
class Collection:
    """Pairs ordered by painting and then by photo, the methods in the order of their names, and what is amiss.

    Attributes:
        problems: what had to be left out, one line each, that names the file.
    """

    methods: tuple[str, ...]
    pairs: tuple[Pair, ...]
    problems: tuple[str, ...] = ()


class _Place(NamedTuple):
    """Where a method's pictures are, and how they end; `stem` is None for pictures that are called as their pair is."""

    folder: Path
    ending: str
    stem: str | None = None


class _Results(Mapping[str, Path]):
    """Each method's picture of a pair. The paths are put together when they are asked for.

    There may be a hundred thousand pairs, so what they have in common, `places`, is shared by them.
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
        stem, ending = os.path.splitext(name)
        places = [i for i in range(len(stem)) if stem.startswith(SEPARATOR, i)]
        read = [(sys.intern(stem[place + len(SEPARATOR) :]), sys.intern(stem[:place])) for place in places]
        fitting = [(painting, photo) for painting, photo in read if self._knows(painting, photo)]
        made = self.found.get(fitting[0], {}) if fitting else {}
        if not fitting:
            self.problems.append(f"{folder / name}: {self._why_not(stem)}")
        elif len(fitting) > 1 and self.photos is not None:
            self.problems.append(
                f"{folder / name}: its name stands for several pairs of photo and painting: rename one of them"
            )
        elif method in made:
            self.problems.append(f"{folder / name}: {stem}{made[method].ending} has the same name; that one is taken")
        else:
            made = {**made, method: _Place(folder, ending)}
            self.found[fitting[0]] = self._shared.setdefault(tuple(made.items()), made)

    def add_method(self, method: str, folder: Path, names: Sequence[str]) -> bool:
        """Take in a method's pictures; where not one of them fits, say so in one line, and return False."""
        said = len(self.problems)
        for name in names:
            self.add(method, folder, name)
        if any(method in made for made in self.found.values()):
            return True
        self.problems[said:] = [
            f"{method} is left out: none of its pictures ({len(names)}) belongs to these photos and paintings; "
            f"the first, {self.problems[said]}"
        ]
        return False

    def _knows(self, painting: str, photo: str) -> bool:
        return painting in self.paintings and (self.photos is None or photo in self.photos)

    def _why_not(self, stem: str) -> str:
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
        results: a folder of pictures `PHOTO__PAINTING.png` (any format; the names are those of the files without their
            endings); or a folder with one such folder for each method, and `photos` and `paintings`, as `inst compare`
            makes it; or a single picture of whatever name, with one photo and one painting.
        paintings: a folder, or a file; by default the folder `paintings` in `results`.
        photos: likewise; without photos, pictures `NAME__PAINTING` are judged against the paintings alone.
        prompts: see `read_prompts`.
        methods: folders of `results` to take; None is all that hold pictures.

    Raises:
        UsageError: no paintings are given, or a method that is not there.
        InstError: a folder is missing or empty, or nothing fits together.
    """
    results = Path(results)
    if not results.exists():
        raise InstError(f"{results}: no such folder or picture.")
    inside = {name: results / name for name in (PHOTOS, PAINTINGS) if (results / name).is_dir()}
    paintings, photos = paintings or inside.get(PAINTINGS), photos or inside.get(PHOTOS)
    if paintings is None:
        raise UsageError(
            f"{results} has no folder {PAINTINGS}", "say with ", Argument("paintings"), " where the paintings are"
        )
    problems: list[str] = []
    finder = _Finder(
        None if photos is None else _by_name(Path(photos), problems), _by_name(Path(paintings), problems), problems
    )
    if results.is_file():
        _add_single(finder, results)
        there = [results.stem]
    else:
        found = _methods(results, methods, problems)
        there = [method for method, folder, names in found if finder.add_method(method, folder, names)]
    if not finder.found:
        raise InstError(problems[-1] if problems else f"{results} holds no picture named PHOTO{SEPARATOR}PAINTING.")
    problems += _missing(finder, there)
    return Collection(tuple(there), _pairs(finder, prompts), tuple(problems))


def _pairs(finder: _Finder, prompts: str | Path | None) -> tuple[Pair, ...]:
    said = {} if prompts is None else read_prompts(prompts)

    def prompt_of(name: str, photo: str, painting: str) -> str | None:
        return next((said[key] for key in (name, photo, painting, "") if key in said), None)

    pairs = []
    for (painting, photo), made in sorted(finder.found.items()):
        name = f"{photo}{SEPARATOR}{painting}" if photo else painting
        source = None if finder.photos is None else finder.photos[photo]
        prompt = prompt_of(name, photo, painting)
        if said and prompt is None:
            finder.problems.append(f'{prompts}: it has no prompt for "{name}"')
        pairs.append(Pair(name, source, finder.paintings[painting], _Results(name, made), prompt))
    return tuple(pairs)


def _add_single(finder: _Finder, result: Path) -> None:
    photos = [("", Path())] if finder.photos is None else list(finder.photos.items())
    paintings = list(finder.paintings)
    if len(paintings) > 1 or len(photos) > 1:  # folders: the name has to say which
        finder.add(result.stem, result.parent, result.name)
    else:
        place = _Place(result.parent, result.suffix, result.stem)
        finder.found[paintings[0], photos[0][0]] = {result.stem: place}


def _methods(results: Path, wanted: Sequence[str] | None, problems: list[str]) -> list[tuple[str, Path, Sequence[str]]]:
    """Each method with its folder and its pictures' names."""
    direct = picture_names(results)
    folders = [one for one in sorted(results.iterdir()) if one.is_dir() and not one.name.startswith(".")]
    folders = [one for one in folders if one.name not in NOT_METHODS]
    if any(SEPARATOR in os.path.splitext(name)[0] for name in direct) or not folders:
        if not direct:
            raise InstError(f"{results} holds no picture", f"give a folder of pictures PHOTO{SEPARATOR}PAINTING.png")
        return [(results.resolve().name, results, direct)]
    if wanted is not None:
        names = [one.name for one in folders]
        if strange := [one for one in wanted if one not in names]:
            raise UsageError(f"{results} holds no method {strange[0]}: it has {', '.join(names)}.")
        folders = [one for one in folders if one.name in wanted]
    methods: list[tuple[str, Path, Sequence[str]]] = []
    for folder in folders:
        if pictures := picture_names(folder):
            methods.append((folder.name, folder, pictures))
        elif wanted is not None or not any(folder.iterdir()):  # what holds other things, such as reports, is no method
            problems.append(f"{folder} holds no picture: the method is left out")
    return methods


def _by_name(place: Path, problems: list[str]) -> dict[str, Path]:
    """The pictures of a folder, or the one file, by their names without endings."""
    if place.is_file():
        return {place.stem: place}
    if not place.is_dir():
        raise InstError(f"{place}: no such folder or picture.")
    named: dict[str, Path] = {}
    for path in pictures_in(place):
        if path.stem in named:
            problems.append(f"{path}: {named[path.stem].name} has the same name; that one is taken")
        else:
            named[path.stem] = path
    if not named:
        raise InstError(f"{place} holds no picture ({', '.join(sorted(PICTURE_ENDINGS))})", "give another folder")
    return named


def _missing(finder: _Finder, methods: Sequence[str]) -> list[str]:
    """Combinations that should be there: those another method has, and where most are there, all of them.

    A photo or painting that no method has a picture of is named once, instead of its combinations.
    """
    used = {photo for _, photo in finder.found}
    paintings = {painting for painting, _ in finder.found}
    photos = used if finder.photos is None else finder.photos.keys()
    expected = sorted(finder.found)
    if len(finder.found) >= _COMPLETE * len(photos) * len(finder.paintings):
        expected = [(painting, photo) for painting in sorted(paintings) for photo in sorted(used)]
    return [
        *(
            f"{method}: there is no picture {photo}{SEPARATOR}{painting}"
            for method in methods
            for painting, photo in expected
            if method not in finder.found.get((painting, photo), {})
        ),
        *(f'no picture was made in the style of "{one}"' for one in sorted(finder.paintings.keys() - paintings)),
        *(f'no picture was made of the photo "{one}"' for one in sorted(photos - used)),
    ]


def read_prompts(path: str | Path) -> dict[str, str]:
    """Read prompts by the name of a pair, a photo or a painting (which is looked for in this order).

    The file is a JSON object {"NAME": "prompt"}; or lines `NAME<tab>prompt`; or one line without a tab, which is the
    prompt of all pictures and comes back under the name "".

    Raises:
        InstError: the file cannot be read or is none of these.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InstError(f"{path} cannot be read ({getattr(error, 'strerror', None) or 'no UTF-8 text'}).") from None
    if path.suffix.lower() == ".json":
        try:
            said = json.loads(text)
        except ValueError as error:
            raise InstError(f"{path} is no JSON ({error}).") from None
        if not isinstance(said, dict) or not all(isinstance(one, str) for one in said.values()):
            raise InstError(f'{path} is no object of prompts by name, such as {{"castle": "a castle"}}.')
        return said
    lines = [row for row in csv.reader(text.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE) if any(row)]
    if len(lines) == 1 and len(lines[0]) == 1:
        return {"": lines[0][0].strip()}
    wrong = next((number for number, row in enumerate(lines, 1) if len(row) != 2), None)
    if wrong is not None or not lines:
        raise InstError(f"{path}: line {wrong or 1} is not NAME, a tab, and a prompt.")
    return {name.strip(): prompt.strip() for name, prompt in lines}
