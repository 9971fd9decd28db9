"""Compare methods: photos x paintings x methods, one file for each result (`inst compare`)."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from inst.errors import InstError, UsageError
from inst.evaluation.collection import (
    CURVES,
    NOT_METHODS,
    PAINTINGS,
    PHOTOS,
    SEPARATOR,
    check_names,
    check_sources,
    result_name,
)
from inst.evaluation.methods.method import PICTURES, Method, OnStep, Repaint
from inst.files.listing import pictures_in, plain_name, readable_name
from inst.files.provenance import SourceFile, describe
from inst.files.reading import check_regular, open_file, read_json
from inst.files.writing import LONGEST_NAME, make_folder, write_bytes_atomically
from inst.pictures.reading import open_picture, read_photo, reading_size
from inst.pictures.resizing import resize_short_side
from inst.pictures.sheets import make_sheet
from inst.pictures.tensors import to_tensor
from inst.pictures.writing import save_picture
from inst.texts import cut, one_line

SETTINGS = "compare.json"
MOST_STORED = 2**28
"""Largest file in bytes that a comparison or a learning curve continues from: room for a million pictures."""
PAINTING_SIDE = 2048
"""Short side in pixels to which large paintings are reduced: twice the native size of the largest backbones."""
_PIECE = 2**20
_CELL_SIDE = 160  # short side of a picture on a sheet, in pixels

_Origin = tuple[Mapping[str, Mapping[str, Any]], Sequence[SourceFile], Sequence[SourceFile]]
"""Settings by method, photos, paintings."""


@dataclass(frozen=True)
class ComparisonResult:
    """One result of a comparison.

    Attributes:
        index: index of the result, from 0.
        total: number of results.
        method: name of the method.
        photo: name of the photo without ending.
        painting: name of the painting without ending.
        path: file of the result.
        made: True if it was made now; False if the file existed before.
        problem: why the result is missing, one line; None if it was made.
    """

    index: int
    total: int
    method: str
    photo: str
    painting: str
    path: Path
    made: bool
    problem: str | None = None


Comparison = Generator[ComparisonResult, None, list[ComparisonResult]]
"""Yields every result and returns the results with a problem."""


def compare(
    methods: Sequence[Method],
    photos: Sequence[Path],
    paintings: Sequence[Path],
    out: Path,
    on_step: OnStep = lambda step, total: None,
) -> Comparison:
    """Repaint every photo in the style of every painting by every method.

    Existing results are not made again, so an interrupted comparison continues. If a method fails for one pair, this is
    reported, and the other results are made.

    Args:
        methods: methods with different names.
        photos: files; results are named after them, so their names without endings must differ.
        paintings: files; their names without endings must differ too.
        out: a folder, created if it is missing. Results go to `out/METHOD/PHOTO__PAINTING.png`, copies of the sources
            to `out/photos` and `out/paintings`, styles to `out/styles`.
        on_step: called with the progress of a method's preparation for a painting, or of a slow picture.

    Raises:
        UsageError: two sources or two methods have the same name, a name cannot be a folder name, or the results in the
            folder were made with other settings or other pictures; raised before anything is made. A copy of another
            picture without a result, such as a copy of a broken file, is replaced.
        InstError: a source cannot be read, or `out` cannot be written to.
    """
    names = [method.name for method in methods]
    check_names("methods", names)
    check_sources(photos, paintings)
    for name in names:
        usable = one_line(readable_name(name)) == name and len(name.encode()) <= LONGEST_NAME
        if not usable or name in NOT_METHODS or Path(name).name != name or name.startswith("."):
            raise UsageError(
                f'"{cut(name, 60)}" cannot be a method\'s name, because it would be that of a folder in {out}',
                "rename the method",
            )
    return _compare(methods, photos, paintings, out, on_step)


def _compare(
    methods: Sequence[Method], photos: Sequence[Path], paintings: Sequence[Path], out: Path, on_step: OnStep
) -> Comparison:
    # Everything is checked before anything is written, so that an error leaves no files behind.
    copies = {**_plan_copies(photos, out, PHOTOS), **_plan_copies(paintings, out, PAINTINGS)}
    settings = _merge_settings(out, methods)
    for folder in (out, out / PHOTOS, out / PAINTINGS):
        make_folder(folder)
    for place, (source, former) in copies.items():
        if former is not None and former != place:  # otherwise two sources would have the same name
            former.unlink(missing_ok=True)  # before writing: names that differ only in case may be the same file
        write_bytes_atomically(place, _pieces(source))
    write_bytes_atomically(out / SETTINGS, json.dumps(settings, indent=2, sort_keys=True).encode())
    styles = make_folder(out / "styles")
    sources = {path: SourceFile.of(path) for path in (*photos, *paintings)}

    total, index, problems = len(methods) * len(photos) * len(paintings), 0, []
    for method in methods:
        make_folder(out / method.name)
        for painting in paintings:
            repaint: Repaint | InstError | None = None
            for photo in photos:
                path = out / method.name / result_name(photo, painting)
                missing, problem = not path.is_file(), None
                if missing:
                    if repaint is None:
                        repaint = _start(method, painting, styles, on_step)
                    origin = {method.name: settings[method.name]}, [sources[photo]], [sources[painting]]
                    problem = _make(repaint, photo, path, origin)
                result = ComparisonResult(
                    index,
                    total,
                    method.name,
                    plain_name(photo.name),
                    plain_name(painting.name),
                    path,
                    made=missing,
                    problem=problem,
                )
                if problem:
                    problems.append(result)
                index += 1
                yield result
    return problems


def _start(method: Method, painting: Path, styles: Path, on_step: OnStep) -> Repaint | InstError:
    """Prepare a method for a painting. If that fails, return the error, so that it is not tried for each photo."""
    try:
        return method.start(read_photo(painting, flattened=True, reduce_to=PAINTING_SIDE), styles, on_step)
    except InstError as error:
        return error


def _make(repaint: Repaint | InstError, photo: Path, path: Path, origin: _Origin) -> str | None:
    """Make one result; if that fails, return the reason in one line."""
    if isinstance(repaint, InstError):
        return str(repaint)
    try:
        result = repaint(read_photo(photo, flattened=True, reduce_to=reading_size(None)))
        texts = result.texts or _provenance_texts("result of a comparison", *origin)
        save_picture(result.picture, path, None, texts)
    except InstError as error:
        return str(error)
    return None


def _merge_settings(out: Path, methods: Sequence[Method]) -> dict[str, Any]:
    """Return the settings of all methods: those stored in the folder, and the new ones.

    Raises UsageError if results in the folder were made with other settings.
    """
    if os.path.lexists(out / CURVES):
        raise UsageError(f"{out} holds learning curves and cannot hold a comparison too", "give another folder")
    place = out / SETTINGS
    stored = read_settings(place) if os.path.lexists(place) else {}
    if not all(isinstance(own, dict) and isinstance(own.get(PICTURES, {}), dict) for own in stored.values()):
        raise InstError(f"{place} cannot be used (it does not hold the settings of each method)", "give another folder")
    for method in methods:
        # Through JSON, so that new settings compare equal to settings read from the file.
        settings: Mapping[str, Any] = json.loads(json.dumps(method.settings, sort_keys=True))
        if not _settings_match(stored.get(method.name, settings), settings):
            raise UsageError(
                f"The results in {out / method.name} were made with other settings",
                f"give another folder, or delete {out / method.name} and its entry in {place}",
            )
        stored[method.name] = settings
    return stored


def read_settings(place: Path) -> dict[str, Any]:
    """Return the JSON object in a file of an earlier run. Raises InstError if the file holds something else."""
    try:
        stored = read_json(place, MOST_STORED)
        if not isinstance(stored, dict):
            raise InstError("it is no JSON object")
        json.dumps(stored, indent=1)  # writing takes more of the stack than reading
    except RecursionError:
        why = "it is nested too deeply"
    except InstError as error:
        why = error.problem.replace(str(place), "it")
    else:
        return stored
    raise InstError(f"{place} cannot be used ({why})", "give another folder")


def _settings_match(stored: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    """Return whether the settings equal the stored ones. Pictures of another system may be added, but not changed."""
    before, now = stored.get(PICTURES, {}), settings.get(PICTURES, {})
    same = {**stored, PICTURES: None} == {**settings, PICTURES: None}
    return same and all(now.get(name) == mark for name, mark in before.items())


def _plan_copies(sources: Sequence[Path], out: Path, kind: str) -> dict[Path, tuple[Path, Path | None]]:
    """Return the copies to make in `out/kind`, by path: the source, and the copy of another picture to replace or None.

    Such a copy is replaced if `out` is the folder of a comparison without a result of it; otherwise it is an error.
    """
    folder = out / kind
    present = {path.stem: path for path in folder.iterdir() if path.name[0] != "."} if folder.is_dir() else {}
    copies: dict[Path, tuple[Path, Path | None]] = {}
    for source in sources:
        if not source.is_file():
            if source.exists():
                raise InstError(f"{source} is not a regular file", "results are named after files: save it as one")
            raise InstError(f"{source}: no such file", "check the path")
        digest = SourceFile.of(source).sha256  # raises InstError if the file cannot be read
        former = present.get(source.stem)
        if former is not None:
            check_regular(former)
            if SourceFile.of(former).sha256 == digest:
                continue
            problem = f"{former} is another picture than {source}"
            if not (out / SETTINGS).is_file():  # no comparison made this file
                raise UsageError(problem, f"give another folder for the results, or delete {former}")
            stem = readable_name(source.stem)
            part = f"{stem}{SEPARATOR}" if kind == PHOTOS else f"{SEPARATOR}{stem}"
            if results := _results_named(out, part, at_start=kind == PHOTOS):
                raise UsageError(
                    f"{problem}, and {results[0]}{' and others were' if results[1:] else ' was'} made of it",
                    f"give another folder for the results, or delete the results of {source.stem} and try again",
                )
        copies[folder / source.name] = source, former
    return copies


def _pieces(source: Path) -> Iterator[bytes]:
    with open_file(source) as file:
        while piece := file.read(_PIECE):
            yield piece


def _results_named(out: Path, part: str, *, at_start: bool) -> list[Path]:
    """Return the pictures of all methods in `out` whose names without endings start (or end) with `part`."""
    folders = [folder for folder in sorted(out.iterdir()) if folder.is_dir() and folder.name not in NOT_METHODS]
    pictures = (path for folder in folders for path in pictures_in(folder))
    return [path for path in pictures if (path.stem.startswith(part) if at_start else path.stem.endswith(part))]


def write_sheets(
    out: Path, methods: Mapping[str, Mapping[str, Any]], photos: Sequence[Path], paintings: Sequence[Path]
) -> list[Path]:
    """Write a sheet for each painting into `out/sheets`: a row for each photo, with the painting at the top left.

    `methods` maps names of methods to their settings. The places of missing results stay empty. Returns the files.

    Raises:
        InstError: the folder cannot be written to.
    """
    folder = make_folder(out / "sheets")
    contents = _sources(photos)
    written = []
    for painting in paintings:
        rows: list[list[tuple[str, Tensor] | None]] = []
        for photo in photos:
            name = result_name(photo, painting)
            painting_cell = None if rows else _cell(painting.stem, painting)
            results = (_cell(method, out / method / name) for method in methods)
            rows.append([painting_cell, _cell(photo.stem, photo), *results])
        texts = _provenance_texts("sheet of a comparison", methods, contents, _sources([painting]))
        sheet = make_sheet(rows, _CELL_SIDE * 3 // 2)
        written.append(save_picture(sheet, folder / f"{painting.stem}.png", texts=texts))
    return written


def _provenance_texts(
    kind: str,
    settings: Mapping[str, Mapping[str, Any]],
    photos: Sequence[SourceFile],
    paintings: Sequence[SourceFile],
) -> Mapping[str, str]:
    """Return the texts to store in a picture of a comparison: the settings by method, and the sources."""
    methods = {name: {key: own[key] for key in own if key != PICTURES} for name, own in settings.items()}
    return describe(
        kind,
        "inst compare or inst ablate",
        methods=methods,
        photos=[asdict(photo) for photo in photos],
        paintings=[asdict(painting) for painting in paintings],
    )


def _sources(files: Sequence[Path]) -> list[SourceFile]:
    """Return names and hashes of the readable files; the problems of the others were reported before."""
    found = []
    for file in files:
        with contextlib.suppress(InstError):
            found.append(SourceFile.of(file))
    return found


def _cell(label: str, path: Path) -> tuple[str, Tensor] | None:
    """Return a picture of a sheet; None for a missing or unreadable file, which was reported before."""
    try:
        picture = to_tensor(open_picture(path, reduce_to=4 * _CELL_SIDE))
    except InstError:
        return None
    return one_line(readable_name(label)), resize_short_side(picture, _CELL_SIDE)
