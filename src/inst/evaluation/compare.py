"""Comparing methods: photos x paintings x methods, each result a file (`inst compare`)."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from inst.errors import InstError, UsageError
from inst.evaluation.collection import CURVES, NOT_METHODS, PAINTINGS, PHOTOS, SEPARATOR, check_names
from inst.evaluation.methods.method import PICTURES, Method, OnStep, Repaint
from inst.files.listing import pictures_in
from inst.files.provenance import SourceFile, describe
from inst.files.writing import make_folder, write_bytes_atomically
from inst.pictures.io import read_photo, read_picture, resize_short_side, save_picture
from inst.pictures.sheets import make_sheet

SETTINGS = "compare.json"
_CELL = 160  # pixels of a picture's short side on a sheet

_MadeOf = tuple[Mapping[str, Mapping[str, Any]], Sequence[SourceFile], Sequence[SourceFile]]
"""Settings by method, photos, paintings."""


@dataclass(frozen=True)
class Compared:
    """One result of a comparison.

    Attributes:
        index: how many came before it.
        total: how many there are in all.
        method: the method's name.
        photo: the photo's name without ending.
        painting: the painting's name without ending.
        path: the result's file.
        made: whether it was made now; False for one that was there.
        problem: why there is none, one line; None where all went well.
    """

    index: int
    total: int
    method: str
    photo: str
    painting: str
    path: Path
    made: bool
    problem: str | None = None


Comparison = Generator[Compared, None, list[Compared]]
"""Yields every result and returns those with a problem."""


def compare(
    methods: Sequence[Method],
    photos: Sequence[Path],
    paintings: Sequence[Path],
    out: Path,
    on_step: OnStep = lambda step, total: None,
) -> Comparison:
    """Repaint every photo in the style of every painting by every method.

    Results that exist are not made again, so that an interrupted comparison goes on where it was. What one method
    cannot do with one pair is reported, and the rest is done.

    Args:
        methods: with names that differ.
        photos: files; their names without endings name the results, so they must differ.
        paintings: files, as the photos.
        out: a folder, made if it is not there. Results go to `out/METHOD/PHOTO__PAINTING.png`, copies of the sources
            to `out/photos` and `out/paintings`, styles to `out/styles`.
        on_step: is told how far a method's preparation for a painting is, or a picture that takes long.

    Raises:
        UsageError: two sources or two methods of one name, a name that cannot be a folder's, or a folder whose results
            were made with other settings or of other pictures; before anything is made. A copy of another picture that
            no result was made of, such as one of a broken file, is replaced.
        InstError: a source cannot be read, or `out` cannot be written to.
    """
    names = [method.name for method in methods]
    check_names("methods", names)
    check_names("photos", photos)
    check_names("paintings", paintings)
    for name in names:
        if name in NOT_METHODS or Path(name).name != name or name.startswith("."):
            raise UsageError(f'"{name}" cannot be a method\'s name: it would be the folder {out / name}.')
    return _compare(methods, photos, paintings, out, on_step)


def _compare(
    methods: Sequence[Method], photos: Sequence[Path], paintings: Sequence[Path], out: Path, on_step: OnStep
) -> Comparison:
    # All is checked before anything is written, so that what is refused leaves no trace.
    copies = {**_copies(photos, out, PHOTOS), **_copies(paintings, out, PAINTINGS)}
    settings = _join_settings(out, methods)
    for folder in (out, out / PHOTOS, out / PAINTINGS):
        make_folder(folder)
    for place, (source, former) in copies.items():
        if former is not None and former != place:  # beside the new one it would be a second source of the name
            former.unlink(missing_ok=True)  # first, because names that differ in case may be one file
        write_bytes_atomically(place, source.read_bytes())
    write_bytes_atomically(out / SETTINGS, json.dumps(settings, indent=2, sort_keys=True).encode())
    styles = make_folder(out / "styles")
    sources = {path: SourceFile.of(path) for path in (*photos, *paintings)}

    total, index, problems = len(methods) * len(photos) * len(paintings), 0, []
    for method in methods:
        make_folder(out / method.name)
        for painting in paintings:
            started: Repaint | InstError | None = None
            for photo in photos:
                path = out / method.name / f"{photo.stem}{SEPARATOR}{painting.stem}.png"
                made, problem = not path.is_file(), None
                if made:
                    if started is None:
                        started = _start(method, painting, styles, on_step)
                    made_of = {method.name: settings[method.name]}, [sources[photo]], [sources[painting]]
                    problem = _make(started, photo, path, made_of)
                done = Compared(index, total, method.name, photo.stem, painting.stem, path, made, problem)
                if problem:
                    problems.append(done)
                index += 1
                yield done
    return problems


def _start(method: Method, painting: Path, styles: Path, on_step: OnStep) -> Repaint | InstError:
    """Prepare a method for a painting; the error where that fails, so that it is not tried again for every photo."""
    try:
        return method.start(read_photo(painting, flattened=True), styles, on_step)
    except InstError as error:
        return error


def _make(started: Repaint | InstError, photo: Path, path: Path, made_of: _MadeOf) -> str | None:
    """Make one result, or say in one line why there is none."""
    if isinstance(started, InstError):
        return str(started)
    try:
        result = started(read_photo(photo, flattened=True))
        texts = result.texts or _described("result of a comparison", *made_of)
        save_picture(result.picture, path, None, texts)
    except InstError as error:
        return str(error)
    return None


def _join_settings(out: Path, methods: Sequence[Method]) -> dict[str, Any]:
    """What the results of all methods are made with; refuse a folder whose results were made with something else."""
    if (out / CURVES).exists():
        raise UsageError(f"{out} holds learning curves, whose starts the methods would join", "give another folder")
    place = out / SETTINGS
    noted: dict[str, Any] = {}
    try:
        if place.is_file():
            noted = json.loads(place.read_text())
            if not isinstance(noted, dict) or not all(isinstance(one, dict) for one in noted.values()):
                raise ValueError("it does not hold the settings of each method")
    except (OSError, ValueError) as error:
        raise InstError(f"{place} cannot be used ({error})", "give another folder") from None
    for method in methods:
        # Through JSON, so that what is read again compares equal.
        settings: Mapping[str, Any] = json.loads(json.dumps(method.settings, sort_keys=True))
        if not _goes_on(noted.get(method.name, settings), settings):
            raise UsageError(
                f"The results in {out / method.name} were made with other settings",
                f"give another folder, or delete {out / method.name} and its entry in {place}",
            )
        noted[method.name] = settings
    return noted


def _goes_on(noted: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    """Whether the settings are those noted; pictures of another system may have been added, but none changed."""
    before, now = noted.get(PICTURES, {}), settings.get(PICTURES, {})
    same = {**noted, PICTURES: None} == {**settings, PICTURES: None}
    return same and all(now.get(name) == mark for name, mark in before.items())


def _copies(sources: Sequence[Path], out: Path, kind: str) -> dict[Path, tuple[Path, Path | None]]:
    """The copies to make in `out/kind`, by place: of which file, and the copy of another picture that it replaces.

    Such a copy is replaced where `out` is the folder of a comparison that has no result of it; else refused.
    """
    folder = out / kind
    present = {path.stem: path for path in folder.iterdir()} if folder.is_dir() else {}
    copies: dict[Path, tuple[Path, Path | None]] = {}
    for source in sources:
        if not source.is_file():
            raise InstError(f"{source}: no such file.")
        same = SourceFile.of(source).sha256  # or an error, for one that cannot be read
        former = present.get(source.stem)
        if former is not None:
            if SourceFile.of(former).sha256 == same:
                continue
            another = f"{former} is another picture than {source}"
            if not (out / SETTINGS).is_file():  # then it is no copy of ours
                raise UsageError(f"{another}", f"give another folder for the results, or delete {former}")
            named = f"{source.stem}{SEPARATOR}" if kind == PHOTOS else f"{SEPARATOR}{source.stem}"
            if made := _results(out, named, first=kind == PHOTOS):
                raise UsageError(
                    f"{another}, and {made[0]}{' and others were' if made[1:] else ' was'} made of it",
                    f"give another "
                    f"folder for the results, or delete those of {source.stem} and give the same command again",
                )
        copies[folder / source.name] = source, former
    return copies


def _results(out: Path, named: str, *, first: bool) -> list[Path]:
    """The pictures of all methods in `out` whose names without endings begin, or else end, with `named`."""
    methods = [one for one in sorted(out.iterdir()) if one.is_dir() and one.name not in NOT_METHODS]
    pictures = (path for method in methods for path in pictures_in(method))
    return [path for path in pictures if (path.stem.startswith(named) if first else path.stem.endswith(named))]


def write_sheets(
    out: Path, methods: Mapping[str, Mapping[str, Any]], photos: Sequence[Path], paintings: Sequence[Path]
) -> list[Path]:
    """Write a sheet for each painting into `out/sheets`: a row for each photo, with the painting at the top left.

    `methods` are their settings by name. Results that are not there leave their places empty. Returns the files.

    Raises:
        InstError: the folder cannot be written to.
    """
    folder = make_folder(out / "sheets")
    contents = _sources(photos)
    written = []
    for painting in paintings:
        rows: list[list[tuple[str, Tensor] | None]] = []
        for photo in photos:
            name = f"{photo.stem}{SEPARATOR}{painting.stem}.png"
            head = None if rows else _cell(painting.stem, painting)
            results = (_cell(method, out / method / name) for method in methods)
            rows.append([head, _cell(photo.stem, photo), *results])
        texts = _described("sheet of a comparison", methods, contents, _sources([painting]))
        sheet = make_sheet(rows, _CELL * 3 // 2)
        written.append(save_picture(sheet, folder / f"{painting.stem}.png", texts=texts))
    return written


def _described(
    kind: str,
    settings: Mapping[str, Mapping[str, Any]],
    photos: Sequence[SourceFile],
    paintings: Sequence[SourceFile],
) -> Mapping[str, str]:
    """What a picture of a comparison carries: what was compared, and with which settings, by method."""
    methods = {name: {key: one[key] for key in one if key != PICTURES} for name, one in settings.items()}
    return describe(
        kind,
        "inst compare or inst ablate",
        methods=methods,
        photos=[asdict(one) for one in photos],
        paintings=[asdict(one) for one in paintings],
    )


def _sources(files: Sequence[Path]) -> list[SourceFile]:
    """Names and hashes of the files that can be read; of the others was said before what is wrong."""
    found = []
    for file in files:
        with contextlib.suppress(InstError):
            found.append(SourceFile.of(file))
    return found


def _cell(label: str, path: Path) -> tuple[str, Tensor] | None:
    """A picture of a sheet; None for a file that is not there or cannot be read, which was said before."""
    try:
        picture = read_picture(path)
    except InstError:
        return None
    return label, resize_short_side(picture, _CELL)
