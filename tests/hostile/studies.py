"""Study files that are damaged, strange or malicious, for every command that reads one."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from .commands import Name
from .harness import Case
from .pictures import special
from .styles import CONTROLS, DEEP

BAD = "bad.db"
_NAN = float("nan")

FILES: dict[str, bytes] = {
    "empty": b"",
    "text": b"this is no study",
    "head-only": b"SQLite format 3\0",
    "controls": b"\x1b]0;owned\x07" * 200,
}

_TABLES = ("settings", "pictures", "pairs", "participants", "trials", "answers")
STATEMENTS: dict[str, str] = {
    **{f"no-{name}": f"DROP TABLE {name}" for name in _TABLES},
    "no-view": "DROP VIEW votes",
    "no-settings-row": "DELETE FROM settings",
    "two-settings": "INSERT INTO settings SELECT * FROM settings",
    "no-pairs": "PRAGMA foreign_keys=OFF; DELETE FROM pairs",
    "no-pictures": "PRAGMA foreign_keys=OFF; DELETE FROM pictures",
    "other-program": "PRAGMA application_id = 5",
    "newer": "PRAGMA user_version = 99",
    "negative-version": "PRAGMA user_version = -1",
    "endless-view": "DROP VIEW votes; CREATE VIEW votes AS "
    "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c) SELECT n AS participant, 1 AS position, 1 AS pair,"
    " 'x' AS key, 1 AS first, 1 AS for_ours, 1.0 AS seconds FROM c",
    "trigger": "CREATE TRIGGER t AFTER INSERT ON participants BEGIN DELETE FROM answers; END",
    "seconds-infinite": "UPDATE answers SET seconds = 9e999",
    "seconds-negative": "UPDATE answers SET seconds = -1e308",
    "first-5": "UPDATE answers SET first = 5",
    "time-huge": "UPDATE answers SET answered_at = 9223372036854775807; UPDATE participants SET started_at = 9e18",
    "time-negative": "UPDATE participants SET started_at = -9223372036854775807, finished_at = -1",
    "key-controls": f"UPDATE answers SET key = '{CONTROLS}' || id",
    "method-controls": f"UPDATE pairs SET method = '{CONTROLS}'",
    "method-long": "UPDATE pairs SET method = hex(zeroblob(2000000))",
    "method-formula": "UPDATE pairs SET method = '=cmd|'' /C calc''!A0'",
    "method-markup": "UPDATE pairs SET method = '<script>alert(1)</script>|**x**'",
    "folder-controls": f"UPDATE pictures SET folder = '{CONTROLS}' || id, name = '{CONTROLS}' || id",
    "picture-garbage": "UPDATE pictures SET data = x'00', width = -1, height = 9223372036854775807",
    "position-huge": "UPDATE trials SET position = position + 9223372036854775000",
    "foreign-trial": "PRAGMA foreign_keys=OFF; UPDATE answers SET trial = 999999",
    "foreign-pair": "PRAGMA foreign_keys=OFF; UPDATE trials SET pair = 999999",
    "foreign-pictures": "PRAGMA foreign_keys=OFF; UPDATE pairs SET other = 99999 WHERE id = 1",
    "finished": "UPDATE participants SET finished_at = 1",
}
_RANKINGS = (
    "",
    "x",
    "[]",
    "{}",
    "5",
    "null",
    '["strokes", "strokes"]',
    '["nonsense"]',
    DEEP,
    f'["{CONTROLS.encode("unicode_escape").decode()}"]',
    "[1e400]",
)

SETTINGS: dict[str, tuple[Any, ...]] = {
    "ours": (5, "", "nonsense", CONTROLS, None, "x" * 1_000_000),
    "trials": (-1, 0, 10**9, 10**30, 1.5, "x", None, _NAN),
    "checks": (-1, 10**9, "x"),
    "title": (5, CONTROLS, "x" * 4_000_000, None),
    "consent": (["x"], CONTROLS),
    "seed": ("x", -1, 10**400, None),
    "admin_token": (5, "", None, CONTROLS, "ü"),
    "stranger": ("x",),
}
_CONTENTS = {
    "list": "[]",
    "null": "null",
    "number": "5",
    "deep": DEEP,
    "text": "no JSON",
    "nothing": "{}",
    "overflow": '{"trials": -1e400}',
}

USES: dict[str, tuple[Name, dict[str, Any]]] = {
    "report": (("study", "report"), {"study": BAD}),
    "serve": (("study", "serve"), {"study": BAD}),
    "simulate": (("study", "simulate"), {"study": BAD, "participants": 1, "at_once": 1, "kills": 0}),
}


def studies() -> Iterator[Case]:
    kinds: dict[str, Callable[[str], object]] = {kind: partial(_write, data) for kind, data in FILES.items()}
    kinds |= {"cut": _cut, "pages": _pages}
    for use in USES:
        for kind, write in (kinds | special(use)).items():
            yield _case(kind, use, partial(write, BAD), refused=kind != "pages")
    for kind, statement in STATEMENTS.items():
        for use in ("report", "serve") if "endless" not in kind else ("report",):
            yield _case(kind, use, partial(_run, statement))
    for number, ranking in enumerate(_RANKINGS):
        yield _case(f"ranking-{number}", "report", partial(_run, "UPDATE participants SET ranking = ?", ranking))
    for name, values in SETTINGS.items():
        for number, value in enumerate(values):
            for use in ("report", "serve"):
                yield _case(f"settings-{name}-{number}", use, partial(_set, {name: value}))
    for kind, content in _CONTENTS.items():
        for use in ("report", "serve"):
            yield _case(
                f"settings-{kind}", use, partial(_run, "UPDATE settings SET content = ?", content), refused=True
            )


def _case(kind: str, use: str, prepare: Callable[[], object], refused: bool = False) -> Case:
    command, changes = USES[use]
    return Case(f"studies/{kind}/{use}", command, changes, prepare, refused=refused)


def _write(data: bytes, name: str) -> None:
    Path(name).write_bytes(data)


def _cut(name: str) -> None:
    data = Path("voted.db").read_bytes()
    Path(name).write_bytes(data[: len(data) // 2])


def _pages(name: str) -> None:
    """Garbage in every page but the first."""
    data = bytearray(Path("voted.db").read_bytes())
    for start in range(4096, len(data), 4096):
        data[start + 100 : start + 300] = b"\xff" * 200
    Path(name).write_bytes(data)


def _run(statement: str, *values: object) -> None:
    Path(BAD).write_bytes(Path("voted.db").read_bytes())
    with closing(sqlite3.connect(BAD)) as connection:
        connection.execute("PRAGMA ignore_check_constraints = ON")
        if values:
            connection.execute(statement, values)
        else:
            connection.executescript(statement)
        connection.commit()


def _set(changes: dict[str, Any]) -> None:
    with closing(sqlite3.connect("voted.db")) as connection:
        content = json.loads(connection.execute("SELECT content FROM settings").fetchone()[0])
    _run("UPDATE settings SET content = ?", json.dumps(content | changes))
