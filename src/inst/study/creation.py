"""Create a study from the folder of a comparison: one file with copies of the pictures and the pairs to compare."""

from __future__ import annotations

import io
import random
import secrets
import sqlite3
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from inst.arguments import check_at_least, check_between, checked
from inst.errors import Argument, InstError, UsageError
from inst.evaluation.collection import PAINTINGS, PHOTOS, Collection, Pair, collect
from inst.files.listing import plain_name
from inst.files.writing import replace_when_finished
from inst.study.database import Database
from inst.study.schema import LONGEST_TEXT, MOST_TRIALS, Settings

_QUALITY = 92
_LONGEST_SIDE = 8192
"""Pixels; WebP has at most 16383."""


@dataclass
class Creation:
    """The progress of creating a study.

    Attributes:
        done, total: number of stored pictures, and of all pictures.
        left_out: what is not in the study, one line each.
        pairs: number of available pairs by method; known at the end.
        checks: number of available attention checks.
        bytes: size of the pictures in the file.
    """

    done: int
    total: int
    left_out: list[str]
    pairs: dict[str, int] = field(default_factory=dict)
    checks: int = 0
    bytes: int = 0


def create_study(
    folder: str | Path,
    path: str | Path,
    *,
    ours: str = "inst",
    methods: Sequence[str] | None = None,
    trials: int = 26,
    checks: int = 0,
    combinations: int | None = None,
    side: int = 1024,
    title: str = "",
    question: str = "",
    contact: str = "",
    consent: str = "",
    seed: int = 0,
) -> Iterator[Creation]:
    """Create the file of a study. The file appears only when it is complete.

    Every picture is stored as WebP with the same quality and without metadata, so that neither format nor size in bytes
    tells which method made it.

    Args:
        folder: a folder with photos/, paintings/ and one folder for each method, as `inst compare` makes it.
        path: the file to create; must not exist.
        ours: the method that each of the others is compared with.
        methods: the other methods; None uses all in the folder.
        trials: pairs for each participant; the paper's study had 26.
        checks: additional attention checks for each participant: one result is of the photo and painting, the other of
            a different photo and painting.
        combinations: number of (photo, painting) to use, chosen at random; fewer pairs get more votes each. None uses
            all.
        side: longest side of the stored pictures in pixels; larger pictures are reduced, smaller ones are not changed.
        title, question, contact, consent: texts of the pages; empty texts are replaced by the default texts.
        seed: random seed of every random choice in the study.

    Yields:
        The progress after each picture; the last item has the counts of the study.

    Raises:
        InstError: there is nothing to compare, the file cannot be written, or another file came under this name
            meanwhile.
        UsageError: the file exists, a method does not exist, or a number is out of range.
    """
    path = Path(path)
    check_at_least(1, combinations=1 if combinations is None else combinations)
    check_between(1, MOST_TRIALS, trials=trials)
    check_between(0, MOST_TRIALS, checks=checks)
    check_between(64, _LONGEST_SIDE, pixels_of_a_side=side)
    for name, text in (("title", title), ("question", question), ("contact", contact), ("consent", consent)):
        if len(checked(name, text, "str")) > LONGEST_TEXT:
            raise UsageError(f"The {name} has {len(text):,} characters", f"give at most {LONGEST_TEXT:,}")
    if path.exists():
        raise UsageError(f"{path} exists", "give another name, so that its votes are not lost")
    if not path.parent.is_dir():
        raise InstError(f"{path} cannot be written: the folder {path.parent} does not exist", "create it first")
    collection = _collect(Path(folder), ours, methods)
    rng = random.Random(seed)
    # Only from pairs that can be compared; otherwise 20 combinations could give fewer than 20.
    chosen = [pair for pair in collection.pairs if ours in pair.results and len(pair.results) > 1]
    if combinations is not None and combinations < len(chosen):
        chosen = rng.sample(chosen, combinations)
    try:
        # Exclusively: another study may have come under this name meanwhile.
        with replace_when_finished(path, exclusive=True) as unfinished, Database(unfinished, create=True) as database:
            with database.transaction() as connection:
                state = yield from _fill(connection, collection, chosen, side)
                state.pairs = _add_pairs(connection, chosen, ours)
                if not state.pairs:
                    raise InstError(
                        f"{folder} contains nothing to compare",
                        f"add pictures of {ours} and of another method for the same photo and painting",
                    )
                state.checks = _add_checks(connection, chosen, rng) if checks else 0
                if checks and not state.checks:
                    photos, paintings = ({getattr(pair, kind) for pair in chosen} for kind in ("photo", "painting"))
                    raise UsageError(
                        f"Attention checks need two photos and two paintings with pictures of {ours} and of another "
                        f"method; there are {len(photos)} and {len(paintings)}",
                        "leave out ",
                        Argument("checks"),
                    )
            settings = Settings(
                ours=ours,
                trials=min(trials, sum(state.pairs.values())),
                checks=min(checks, state.checks),
                title=title,
                question=question,
                contact=contact,
                consent=consent,
                seed=seed,
                admin_token=secrets.token_urlsafe(24),
            )
            database.write_settings(settings)
    except sqlite3.Error as error:
        raise InstError(f"{path} cannot be written ({error})", "choose another place") from None
    yield state


def _collect(folder: Path, ours: str, methods: Sequence[str] | None) -> Collection:
    """Collect the pictures to compare. Raises the errors of `create_study`."""
    for needed in (PHOTOS, PAINTINGS):
        if not (folder / needed).is_dir():
            raise InstError(
                f"{folder / needed} is missing",
                f"give the folder of a comparison, or a folder with {PHOTOS}, {PAINTINGS}, and one folder for each "
                "method",
            )
    collection = collect(folder, methods=None if methods is None else [ours, *methods])
    reasons = "; ".join(problem for problem in collection.problems if "is left out" in problem)
    reasons = f" ({reasons})" if reasons else ""
    if ours not in collection.methods:
        raise UsageError(f"{folder} has no method {ours}{reasons}", f"choose from {', '.join(collection.methods)}")
    if len(collection.methods) == 1:
        raise UsageError(f"{folder} has no other method than {ours}{reasons}", "add the results of another method")
    return collection


def _sources(pair: Pair) -> tuple[tuple[str, str], tuple[str, str]]:
    """Return (folder, name) of the pair's photo and of its painting in the study's file."""
    assert pair.photo is not None
    return (PHOTOS, plain_name(pair.photo.name)), (PAINTINGS, plain_name(pair.painting.name))


def _fill(
    connection: sqlite3.Connection, collection: Collection, chosen: Sequence[Pair], side: int
) -> Generator[Creation, None, Creation]:
    """Store copies of the pictures of the chosen pairs."""
    wanted: dict[tuple[str, str], Path] = {}
    for pair in chosen:
        assert pair.photo is not None
        wanted |= dict(zip(_sources(pair), (pair.photo, pair.painting), strict=True))
        wanted |= {(method, pair.name): file for method, file in pair.results.items()}
    state = Creation(0, len(wanted), list(collection.problems))
    for (folder, name), file in wanted.items():
        try:
            data, width, height = _encode(file, side)
        except InstError as error:
            state.left_out.append(str(error))
        else:
            connection.execute(
                "INSERT INTO pictures (key, folder, name, width, height, data) VALUES (?, ?, ?, ?, ?, ?)",
                (secrets.token_hex(12), folder, name, width, height, data),
            )
            state.bytes += len(data)
        state.done += 1
        yield state
    return state


def _encode(file: Path, side: int) -> tuple[bytes, int, int]:
    from PIL import Image

    from inst.pictures.reading import open_picture

    image = open_picture(file, reduce_to=side)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    image.info.clear()  # no metadata in the copy
    encoded = io.BytesIO()
    image.save(encoded, format="WEBP", quality=_QUALITY)
    return encoded.getvalue(), image.width, image.height


def _ids(connection: sqlite3.Connection) -> dict[tuple[str, str], int]:
    return {(row["folder"], row["name"]): row["id"] for row in connection.execute("SELECT * FROM pictures")}


def _add_pairs(connection: sqlite3.Connection, chosen: Sequence[Pair], ours: str) -> dict[str, int]:
    """Pair ours with every other method for each photo and painting with all pictures, and return counts by method."""
    ids = _ids(connection)
    methods = sorted({folder for folder, _ in ids} - {PHOTOS, PAINTINGS, ours})
    count: dict[str, int] = {}
    for pair in chosen:
        for method in methods:
            needed = [*_sources(pair), (ours, pair.name), (method, pair.name)]
            if all(picture in ids for picture in needed):
                connection.execute(
                    "INSERT INTO pairs (photo, painting, ours, other, method, is_check) VALUES (?, ?, ?, ?, ?, 0)",
                    (*(ids[picture] for picture in needed), method),
                )
                count[method] = count.get(method, 0) + 1
    return count


def _add_checks(connection: sqlite3.Connection, chosen: Sequence[Pair], rng: random.Random) -> int:
    """Add attention checks, one for each photo and painting, and return their number.

    A check pairs a result with a result of the same method for another photo and painting.
    """
    ids = _ids(connection)
    methods = sorted({folder for folder, _ in ids} - {PHOTOS, PAINTINGS})
    count = 0
    for pair in chosen:
        sources = [ids.get(source) for source in _sources(pair)]
        if None in sources:
            continue
        others = [other.name for other in chosen if other.photo != pair.photo and other.painting != pair.painting]
        for method in rng.sample(methods, len(methods)):
            correct = ids.get((method, pair.name))
            wrong = [ids[method, other] for other in others if (method, other) in ids]
            if correct and wrong:
                connection.execute(
                    "INSERT INTO pairs (photo, painting, ours, other, method, is_check) VALUES (?, ?, ?, ?, ?, 1)",
                    (*sources, correct, rng.choice(wrong), method),
                )
                count += 1
                break
    return count
