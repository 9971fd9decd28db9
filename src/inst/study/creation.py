"""Making a study of a folder of compared pictures: copies of the pictures and the pairs to choose from, in one file."""

from __future__ import annotations

import contextlib
import io
import random
import secrets
import sqlite3
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from inst.arguments import check_at_least
from inst.errors import InstError, UsageError
from inst.evaluation.collection import PAINTINGS, PHOTOS, Collection, Pair, collect
from inst.study.database import Database, Settings

_QUALITY = 92


@dataclass
class Creation:
    """How far a study is made.

    Attributes:
        done, total: pictures.
        left_out: what is not in the study, one line each.
        pairs: to choose from, by method; known when all is done.
        checks: attention checks to choose from.
        bytes: of the pictures in the file.
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
    """Make the file of a study; it is there when all is done, and not before.

    Every picture is stored as WebP of one quality, without what its file says about its making: neither its format nor
    its size in bytes tells one method from another.

    Args:
        folder: photos/, paintings/ and one folder for each method, as `inst compare` makes it.
        path: the file to make; must not exist.
        ours: the method that each of the others is compared with.
        methods: the others; by default all in the folder.
        trials: pairs that a participant is shown; the paper's study showed 26.
        checks: attention checks that a participant is shown besides: one result is of the photo and painting, the other
            of a different photo and painting.
        combinations: use so many (photo, painting) only, chosen at random: fewer pairs get more votes each.
        side: longest side in pixels of the stored pictures; larger ones are reduced, smaller ones kept.
        title, question, contact, consent: texts of the pages; empty for the usual ones.
        seed: of every random choice in the study.

    Yields:
        After each picture, how far it is; the last one says what the study holds.

    Raises:
        InstError: nothing to compare, or the file cannot be written.
        UsageError: the file exists, a method that is not there, or a number out of range.
    """
    path = Path(path)
    check_at_least(1, trials=trials, combinations=1 if combinations is None else combinations)
    check_at_least(0, checks=checks)
    check_at_least(64, pixels_of_a_side=side)
    if path.exists():
        raise UsageError(f"{path} exists", "give another name, or its votes would be lost")
    if not path.parent.is_dir():
        raise InstError(f"{path} cannot be written: the folder {path.parent} does not exist", "make it first")
    found = _collect(Path(folder), ours, methods)
    rng = random.Random(seed)
    # Only what can be compared is drawn from: else 20 combinations could give fewer.
    chosen = [pair for pair in found.pairs if ours in pair.results and len(pair.results) > 1]
    if combinations is not None and combinations < len(chosen):
        chosen = rng.sample(chosen, combinations)
    unfinished = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with Database(unfinished, create=True) as database:
            with database.transaction() as connection:
                state = yield from _fill(connection, found, chosen, side)
                state.pairs = _add_pairs(connection, chosen, ours)
                if not state.pairs:
                    raise InstError(
                        f"{folder} holds nothing to compare: no photo and painting has a picture of {ours} and of "
                        f"another method."
                    )
                state.checks = _add_checks(connection, chosen, rng) if checks else 0
                if checks and not state.checks:
                    photos, paintings = ({getattr(pair, kind) for pair in chosen} for kind in ("photo", "painting"))
                    raise UsageError(
                        f"Attention checks need two photos and two paintings at least that have pictures of {ours} "
                        f"and of another method: there are {len(photos)} and {len(paintings)}."
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
        unfinished.rename(path)
    except sqlite3.OperationalError as error:
        raise InstError(f"{path} cannot be written ({error})", "choose another place") from None
    finally:
        with contextlib.suppress(OSError):  # a file system that is read-only says so even of what is not there
            unfinished.unlink(missing_ok=True)
    yield state


def _collect(folder: Path, ours: str, methods: Sequence[str] | None) -> Collection:
    """Find what is compared. Raises as `create_study`."""
    for needed in (PHOTOS, PAINTINGS):
        if not (folder / needed).is_dir():
            raise InstError(
                f"{folder / needed} is missing",
                f"give the folder of a comparison, or one with the folders {PHOTOS}, "
                f"{PAINTINGS}, and one for each method",
            )
    found = collect(folder, methods=None if methods is None else [ours, *methods])
    left_out = "".join(f" {one}." for one in found.problems if "is left out" in one)
    if ours not in found.methods:
        raise UsageError(f"{folder} holds no method {ours}: it has {', '.join(found.methods)}.{left_out}")
    if len(found.methods) == 1:
        raise UsageError(f"{folder} holds no method beside {ours}: there is nothing to compare it with.{left_out}")
    return found


def _sources(pair: Pair) -> tuple[tuple[str, str], tuple[str, str]]:
    """Folder and name of the pair's photo and painting in the study's file."""
    assert pair.photo is not None
    return (PHOTOS, pair.photo.stem), (PAINTINGS, pair.painting.stem)


def _fill(
    connection: sqlite3.Connection, found: Collection, chosen: Sequence[Pair], side: int
) -> Generator[Creation, None, Creation]:
    """Copy the pictures of the chosen pairs."""
    wanted: dict[tuple[str, str], Path] = {}
    for pair in chosen:
        assert pair.photo is not None
        wanted |= dict(zip(_sources(pair), (pair.photo, pair.painting), strict=True))
        wanted |= {(method, pair.name): file for method, file in pair.results.items()}
    state = Creation(0, len(wanted), list(found.problems))
    for (folder, name), file in wanted.items():
        try:
            data, width, height = _reduced(file, side)
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


def _reduced(file: Path, side: int) -> tuple[bytes, int, int]:
    from PIL import Image

    from inst.pictures.io import open_picture

    image = open_picture(file)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    image.info.clear()  # nothing of what the file said goes into the copy
    encoded = io.BytesIO()
    image.save(encoded, format="WEBP", quality=_QUALITY)
    return encoded.getvalue(), image.width, image.height


def _ids(connection: sqlite3.Connection) -> dict[tuple[str, str], int]:
    return {(row["folder"], row["name"]): row["id"] for row in connection.execute("SELECT * FROM pictures")}


def _add_pairs(connection: sqlite3.Connection, chosen: Sequence[Pair], ours: str) -> dict[str, int]:
    """Pair ours with every other method for each photo and painting, where all pictures are there; count by method."""
    ids = _ids(connection)
    methods = sorted({folder for folder, _ in ids} - {PHOTOS, PAINTINGS, ours})
    count: dict[str, int] = {}
    for pair in chosen:
        for method in methods:
            needed = [*_sources(pair), (ours, pair.name), (method, pair.name)]
            if all(one in ids for one in needed):
                connection.execute(
                    "INSERT INTO pairs (photo, painting, ours, other, method, is_check) VALUES (?, ?, ?, ?, ?, 0)",
                    (*(ids[one] for one in needed), method),
                )
                count[method] = count.get(method, 0) + 1
    return count


def _add_checks(connection: sqlite3.Connection, chosen: Sequence[Pair], rng: random.Random) -> int:
    """Pair a result with one of the same method for another photo and painting, once for each photo and painting."""
    ids = _ids(connection)
    methods = sorted({folder for folder, _ in ids} - {PHOTOS, PAINTINGS})
    count = 0
    for pair in chosen:
        shown = [ids.get(one) for one in _sources(pair)]
        if None in shown:
            continue
        others = [one.name for one in chosen if one.photo != pair.photo and one.painting != pair.painting]
        for method in rng.sample(methods, len(methods)):
            right = ids.get((method, pair.name))
            wrong = [ids[method, other] for other in others if (method, other) in ids]
            if right and wrong:
                connection.execute(
                    "INSERT INTO pairs (photo, painting, ours, other, method, is_check) VALUES (?, ?, ?, ?, ?, 1)",
                    (*shown, right, rng.choice(wrong), method),
                )
                count += 1
                break
    return count
