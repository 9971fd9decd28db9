"""Check a study's file, which may come from anywhere, as a whole before anything is done with it."""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from inst.errors import Call, InstError
from inst.files.reading import check_regular, parse_json, translate_reading
from inst.study.factors import FACTORS
from inst.study.schema import APPLICATION, FORMAT, LONGEST_TEXT, MOST_SECONDS, MOST_TRIALS, SCHEMA, Settings

LOCK_SECONDS = 10.0
"""Seconds to wait until another program unlocks the file."""

_SHORTEST_TOKEN = 16
_OTHER = "give a file made by ", Call("study.creation.create_study")
_COPY = ("restore it from a copy",)

_RULES = (
    (
        "a picture without content",
        "SELECT 1 FROM pictures WHERE length(data) = 0 OR width < 1 OR height < 1 OR folder = '' OR name = ''",
    ),
    (
        "a pair of pictures that are none",
        """
        SELECT 1 FROM pairs JOIN pictures AS a ON a.id = photo JOIN pictures AS b ON b.id = painting
        JOIN pictures AS c ON c.id = other
        WHERE a.folder <> 'photos' OR b.folder <> 'paintings' OR c.folder <> method OR is_check NOT IN (0, 1)
        """,
    ),
    ("a participant without a beginning", "SELECT 1 FROM participants WHERE started_at < 0 OR finished_at < 0"),
    ("a trial without a place", "SELECT 1 FROM trials WHERE position < 1 OR ours_first NOT IN (0, 1)"),
    (
        "an impossible answer",
        f"SELECT 1 FROM answers WHERE first NOT IN (0, 1) OR NOT seconds BETWEEN 0 AND {MOST_SECONDS} "
        "OR answered_at < 0",
    ),
)
"""What types alone do not say: what is wrong, and a query that finds it."""


def check_study(path: Path) -> None:
    """Check a study without changing its file, even if a journal of another file lies beside it.

    Raises:
        InstError: the file is missing, cannot be read, is not a study, or is damaged.
    """
    if not os.path.lexists(path):
        raise InstError(f"{path}: no such study", "make one with ", Call("study.creation.create_study"))
    check_regular(path)
    journal = path.with_name(f"{path.name}-journal")
    if not journal.exists():
        _check(path, path)
        return
    # SQLite would at once undo what a killed program did: in a copy first.
    with TemporaryDirectory(prefix="inst-study-") as folder:
        copy = Path(folder) / "study.db"
        with translate_reading(path), translate_errors(path):
            shutil.copyfile(path, copy)
            shutil.copyfile(journal, copy.with_name(f"{copy.name}-journal"))
            with closing(sqlite3.connect(copy)) as connection:
                connection.execute("PRAGMA user_version").fetchall()
        _check(copy, path)


def prepare(connection: sqlite3.Connection) -> None:
    """Set up a connection to a file from an unknown source."""
    connection.row_factory = sqlite3.Row
    connection.text_factory = lambda data: data.decode(errors="replace")  # a text in the file may not be UTF-8
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA cell_size_check = ON")


@contextmanager
def translate_errors(path: Path) -> Iterator[None]:
    """Convert errors of SQLite to an InstError of one line."""
    try:
        yield
    except sqlite3.Error as error:
        code = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise InstError(f"{path} is locked by another program", "close that program") from None
        if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
            raise InstError(
                f"{path} cannot be opened ({error})", "check its permissions, or copy it to another folder"
            ) from None
        if code == sqlite3.SQLITE_NOTADB:
            raise InstError(f"{path} is not a study ({error})", *_OTHER) from None
        raise _damaged(path, str(error)) from None
    except UnicodeDecodeError:  # a name in the file; texts are read in any case
        raise _damaged(path, "a name in it is no text") from None
    except MemoryError:
        raise _damaged(path, "it asks for too much memory") from None


def _check(path: Path, shown: Path) -> None:
    address = f"{path.absolute().as_uri()}?mode=ro"
    with (
        translate_errors(shown),
        closing(sqlite3.connect(address, uri=True, timeout=LOCK_SECONDS, isolation_level=None)) as connection,
    ):
        prepare(connection)
        _check_kind(connection, shown)
        _check_tables(connection, shown)
        connection.execute("BEGIN")  # one state of the file, although it may be served meanwhile
        found = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
        if found != "ok":
            raise _damaged(shown, found)
        if broken := connection.execute("PRAGMA foreign_key_check").fetchone():
            raise _damaged(shown, f"a row of {broken[0]} refers to a row of {broken[2]} that does not exist")
        for problem, query in _RULES:
            if connection.execute(f"{query} LIMIT 1").fetchone():
                raise _damaged(shown, f"it has {problem}")
        read_settings(connection.execute("SELECT content FROM settings").fetchall(), shown)
        check_rankings(connection.execute("SELECT ranking FROM participants WHERE ranking IS NOT NULL"), shown)


def _check_kind(connection: sqlite3.Connection, path: Path) -> None:
    if connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION:
        raise InstError(f"{path} is not a study", *_OTHER)
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version != FORMAT:
        raise InstError(
            f"{path} has the format {version}, but this version of inst reads only the format {FORMAT}",
            "use the version of inst that made the study",
        )


def _check_tables(connection: sqlite3.Connection, path: Path) -> None:
    """Check that all tables are those of a study. Others may be there, but nothing that acts on its own."""
    with closing(sqlite3.connect(":memory:")) as model:
        model.executescript(SCHEMA)
        wanted = _objects(model)
    found = _objects(connection)
    for one, words in wanted.items():
        if found.get(one) != words:
            raise _damaged(path, f"its {one[0]} {one[1]} is {'different' if one in found else 'missing'}")
    for kind, name in found.keys() - wanted.keys():
        if kind not in ("table", "view"):
            raise _damaged(path, f"it has a {kind} {name!a:.40}, which studies do not have")


def _objects(connection: sqlite3.Connection) -> dict[tuple[str, str], list[str]]:
    """Return the words of the definition of each table, index, view and trigger, without its comments."""
    rows = connection.execute("SELECT type, name, sql FROM sqlite_schema WHERE sql IS NOT NULL").fetchall()
    return {(kind, name): re.sub("--.*", "", sql).split() for kind, name, sql in rows}


def read_settings(rows: Sequence[Sequence[str]], path: Path) -> Settings:
    """Return the settings in the rows of their table. Raises InstError if they are not those of a study."""
    if len(rows) != 1:
        raise _damaged(path, f"it has {len(rows)} settings, not 1")
    content = parse_json(rows[0][0], f"{path}: the text of its settings")
    kinds = {one.name: {"str": str, "int": int}[str(one.type)] for one in fields(Settings)}
    if not isinstance(content, dict) or content.keys() != kinds.keys():
        raise _damaged(path, f"its settings are not {', '.join(kinds)}")
    for name, kind in kinds.items():
        if type(content[name]) is not kind or not _is_possible(name, content[name]):
            raise _damaged(path, f'its setting "{name}" is impossible')
    return Settings(**content)


def _is_possible(name: str, value: Any) -> bool:
    match name:
        case "trials":
            return 1 <= value <= MOST_TRIALS
        case "checks":
            return 0 <= value <= MOST_TRIALS
        case "seed":
            return True
        case "admin_token":
            return len(value) >= _SHORTEST_TOKEN and value.isascii() and value.isprintable()
    is_text = len(value) <= LONGEST_TEXT and not re.search("[\ud800-\udfff]", value)
    return is_text and (name != "ours" or bool(value))


def check_rankings(rows: Iterable[Sequence[str]], path: Path) -> None:
    """Raise InstError unless each row has a ranking: a JSON list of different factors."""
    for (text,) in rows:
        try:
            ranking = json.loads(text)
        except (ValueError, RecursionError):
            ranking = None
        if not isinstance(ranking, list) or not is_ranking(ranking):
            raise _damaged(path, "it has an impossible ranking")


def is_ranking(ranking: Sequence[Any]) -> bool:
    """Whether a list has one or more factors, each once."""
    known = all(isinstance(factor, str) and factor in FACTORS for factor in ranking)
    return known and 0 < len(ranking) == len(set(ranking))


def _damaged(path: Path, reason: str) -> InstError:
    return InstError(f"{path} is damaged, or was made by another program ({reason})", *_COPY)
