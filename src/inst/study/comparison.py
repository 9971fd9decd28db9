"""What a folder of compared pictures holds: photos, paintings, and each method's result for photo and painting.

FOLDER/photos/PHOTO.*     FOLDER/paintings/PAINTING.*     FOLDER/METHOD/PHOTO__PAINTING.*
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from inst.errors import InstError, UsageError
from inst.evaluation.collection import NOT_METHODS, PAINTINGS, PHOTOS, SEPARATOR
from inst.files import PICTURE_ENDINGS, has_picture_ending


@dataclass
class Comparison:
    """The pictures of a comparison, by name.

    Attributes:
        photos, paintings: file by name.
        results: by (photo, painting), the file of each method.
        left_out: what is missing or belongs to nothing, one line each.
    """

    photos: dict[str, Path]
    paintings: dict[str, Path]
    results: dict[tuple[str, str], dict[str, Path]]
    left_out: list[str] = field(default_factory=list)


def read_comparison(folder: str | Path, ours: str, methods: Sequence[str] | None = None) -> Comparison:
    """Look through a folder of compared pictures; none is opened.

    Args:
        folder: see above.
        ours: the method that the others are compared with.
        methods: the others; by default all that there are.

    Raises:
        InstError: the folder, its photos or its paintings are missing.
        UsageError: a method that is not there, or none beside ours.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InstError(f"{folder} is no folder: give the folder of inst compare.")
    there = [
        one.name
        for one in sorted(folder.iterdir())
        if one.is_dir() and one.name not in NOT_METHODS and not one.name.startswith(".")
    ]
    for method in (ours, *(methods or ())):
        if method not in there:
            raise UsageError(f"{folder} holds no method {method}: it has {', '.join(there) or 'none'}.")
    chosen = [ours, *(one for one in (there if methods is None else methods) if one != ours)]
    if len(chosen) == 1:
        raise UsageError(f"{folder} holds no method beside {ours}: there is nothing to compare it with.")
    left_out: list[str] = []
    found = Comparison(_pictures(folder / PHOTOS, left_out), _pictures(folder / PAINTINGS, left_out), {}, left_out)
    names = _result_names(found)
    for method in chosen:
        files = _pictures(folder / method, left_out)
        strangers = [file for name, file in files.items() if name not in names]
        if len(strangers) == len(files):
            left_out.append(f"{folder / method} holds no picture PHOTO__PAINTING.png of these photos and paintings")
            continue
        left_out += [f"{file} has the name of no photo__painting" for file in strangers]
        for name, file in files.items():
            if name in names:
                found.results.setdefault(names[name], {})[method] = file
    _note_missing(found, folder, chosen)
    return found


def _pictures(folder: Path, left_out: list[str]) -> dict[str, Path]:
    """Files by name without ending. Of two that differ in the ending only, the first is taken."""
    if not folder.is_dir():
        raise InstError(
            f"{folder} is missing: a comparison has the folders photos, paintings, and one for each method."
        )
    files: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        if not has_picture_ending(file) or file.name.startswith("."):
            continue
        if file.stem in files:
            left_out.append(f"{file} has the name of {files[file.stem].name}")
        else:
            files[file.stem] = file
    if not files and folder.name in (PHOTOS, PAINTINGS):
        raise InstError(f"{folder} holds no picture ({', '.join(sorted(PICTURE_ENDINGS))}).")
    return files


def _result_names(found: Comparison) -> dict[str, tuple[str, str]]:
    names: dict[str, tuple[str, str]] = {}
    twice = set()
    for photo in found.photos:
        for painting in found.paintings:
            name = f"{photo}{SEPARATOR}{painting}"
            if name in names:
                twice.add(name)
            names[name] = (photo, painting)
    for name in sorted(twice):
        del names[name]
        found.left_out.append(f"{name} can be read as two different pairs of photo and painting: rename one of them")
    return names


def _note_missing(found: Comparison, folder: Path, methods: Sequence[str]) -> None:
    made = {method for files in found.results.values() for method in files}
    for (photo, painting), files in sorted(found.results.items()):
        found.left_out += [
            f"{folder / method / f'{photo}{SEPARATOR}{painting}.png'} is missing"
            for method in methods
            if method in made and method not in files
        ]
    for index, pictures in enumerate((found.photos, found.paintings)):
        used = {pair[index] for pair in found.results}
        found.left_out += [
            f"{file}: no method has a picture of it" for name, file in pictures.items() if name not in used
        ]
