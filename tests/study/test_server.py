"""The real server, asked over HTTP."""

import json
import os
import re
import signal
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path
from urllib.request import urlopen

import pytest

import inst.study
from inst.study.database import Database
from inst.study.factors import FACTORS, LANGUAGES, texts
from study_server import Served, served

ANNA, BORIS = "a" * 64, "b" * 64
PAGE = Path(inst.study.__file__).parent / "page"


@pytest.fixture
def server(make_study: Callable[..., Path]) -> Iterator[Served]:
    with served(make_study(trials=4)) as found:
        yield found


def test_a_participant_can_vote_rank_and_finish_over_http(server: Served) -> None:
    status, study = server.ask("api/study")
    assert (status, study["trials"]) == (200, 4)
    assert server.ask("api/session", ANNA)[0] == 401
    session = server.begin(ANNA)
    assert session == server.ask("api/session", ANNA)[1]
    for trial in session["trials"]:
        for role in ("photo", "painting", "first", "second"):
            assert server.ask(f"pictures/{trial[role]}")[1][:4] == b"RIFF"
        assert server.vote(ANNA, trial["position"], "second", f"{trial['position']:032x}")[0] == 200
    assert server.ask("api/ranking", ANNA, {"ranking": ["material"]}) == (200, {"saved": True})
    assert server.ask("api/session", ANNA)[1]["finished"]


def test_a_request_repeated_at_once_counts_once(server: Served) -> None:
    server.begin(ANNA)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: server.vote(ANNA, 1, "first", "0" * 32), range(16)))
        begun = list(pool.map(lambda _: server.begin(BORIS), range(8)))
    assert [status for status, _ in answers] == [200] * 16
    assert sum(answer["new"] for _, answer in answers) == 1
    assert all(session == begun[0] for session in begun)
    token = server.admin.partition("#")[2]
    progress = server.ask("api/admin/progress", token)[1]
    assert (progress["started"], progress["votes"]) == (2, 1)


def test_wrong_requests_are_refused_with_the_right_status(server: Served) -> None:
    server.begin(ANNA)
    assert server.vote(BORIS, 1, "first", "0" * 32) == (401, {"error": "no participant has this token"})
    assert server.vote(ANNA, 99, "first", "0" * 32) == (404, {"error": "no such trial"})
    for body in (b"", b"[]", b'"x"', b"{", b'{"key": 1}', b"\xff", b"[" * 10000):
        assert server.ask("api/vote", ANNA, body)[0] == 400
    assert server.ask("api/vote", ANNA, b" " * 100_000)[0] == 413
    assert server.ask("pictures/1")[0] == 404
    for path in ("page/../server.py", "page/%2e%2e/server.py", "page/..%2fdatabase.py", "study.db", "api/vote/1"):
        assert server.ask(path)[0] in (404, 405)
    assert server.ask("api/vote", ANNA)[0] == 405


def test_admin_requests_need_the_admins_token(server: Served) -> None:
    token = server.admin.partition("#")[2]
    assert len(token) >= 32
    server.begin(ANNA)
    server.vote(ANNA, 1, "first", "0" * 32)
    for path in ("progress", "answers.csv", "rankings.csv"):
        for wrong in ("", ANNA, token[:-1], "ä"):
            assert server.ask(f"api/admin/{path}", wrong.encode().decode("latin-1"))[0] == 401
        assert server.ask(f"api/admin/{path}", token)[0] == 200
    assert server.ask("api/admin/other", token)[0] == 404
    progress = server.ask("api/admin/progress", token)[1]
    assert progress["votes"] == 1
    assert [row["method"] for row in progress["methods"]] == ["adain", "gatys"]
    lines = server.ask("api/admin/answers.csv", token)[1].decode().splitlines()
    assert lines[0].startswith("participant,position,photo,painting,method")
    assert len(lines) == 2


def test_every_answer_has_security_headers_and_no_cookies(server: Served) -> None:
    for path in ("", "admin", "page/study.js", "api/study"):
        with urlopen(server.page + path, timeout=30) as answer:
            policy = answer.headers["Content-Security-Policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert "http" not in policy
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert answer.headers["Referrer-Policy"] == "no-referrer"
            assert "Set-Cookie" not in answer.headers
            assert "Server" not in answer.headers
    with urlopen(server.page + "api/study", timeout=30) as answer:
        assert answer.headers["Cache-Control"] == "no-store"


def test_the_pages_load_nothing_from_elsewhere_and_have_no_inline_code() -> None:
    class Reader(HTMLParser):
        found: list[str]

        def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
            self.found += [f"{tag} {name}={value}" for name, value in attributes]
            if tag == "script":
                assert dict(attributes)["src"]
            assert tag != "style"

    for file in PAGE.glob("*.html"):
        reader = Reader()
        reader.found = []
        reader.feed(file.read_text(encoding="utf-8"))
        assert not [one for one in reader.found if re.search(r" on\w+=| style=|//", one)]
    for file in PAGE.glob("*.[jc]s*"):
        content = file.read_text(encoding="utf-8")
        assert "http:" not in content
        assert "https:" not in content
        assert "innerHTML" not in content


def test_both_languages_have_every_text_that_the_pages_use() -> None:
    def shape(value: object) -> object:
        if isinstance(value, dict):
            return {name: shape(one) for name, one in value.items()}
        return sorted(re.findall(r"\{\w+\}", str(value)))

    assert shape(texts("en")) == shape(texts("zh"))
    used = set()
    for file in PAGE.glob("*.js"):
        used |= set(re.findall(r'say\("(\w+)"', file.read_text(encoding="utf-8")))
    used |= set(re.findall(r'data-text="(\w+)"', (PAGE / "index.html").read_text(encoding="utf-8")))
    for language in LANGUAGES:
        assert used <= texts(language).keys()
        assert set(texts(language)["factors"]) == set(FACTORS)


def test_a_clean_stop_leaves_only_the_study_file(make_study: Callable[..., Path], tmp_path: Path) -> None:
    path = make_study()
    for number, code in ((signal.SIGINT, 0), (signal.SIGTERM, -signal.SIGTERM)):
        with served(path) as server:
            server.begin(ANNA)
            assert (tmp_path / "study.db-wal").exists()
            assert server.stop(number) == code
        assert [one.name for one in tmp_path.iterdir()] == ["study.db"]
    assert sqlite3.connect(path).execute("SELECT count(*) FROM participants").fetchone() == (1,)


def test_a_vote_that_cannot_be_saved_is_not_acknowledged(make_study: Callable[..., Path], server: Served) -> None:
    """Another process holds the file for longer than SQLite waits, or nothing can be written: no vote is promised."""
    server.begin(ANNA)
    path = Path(server.process.args[5])  # type: ignore[index]
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("CREATE TRIGGER full BEFORE INSERT ON answers BEGIN SELECT raise(ABORT, 'disk is full'); END")
    status, answer = server.vote(ANNA, 1, "first", "0" * 32)
    assert (status, "not saved" in answer["error"]) == (503, True)
    other.execute("DROP TRIGGER full")
    assert server.vote(ANNA, 1, "first", "0" * 32) == (200, {"saved": True, "new": True})
    other.close()


def _replace(path: Path) -> None:
    other = path.with_name("other.db")
    other.write_bytes(path.read_bytes())
    os.replace(other, path)


@pytest.mark.parametrize(
    ("damage", "kept"),
    [
        pytest.param(Path.unlink, True, id="removed"),
        pytest.param(_replace, True, id="replaced"),
        pytest.param(lambda path: path.with_name("study.db-wal").unlink(), True, id="no log"),
        pytest.param(lambda path: os.truncate(path, 4096), False, id="cut"),
        pytest.param(lambda path: os.truncate(path.with_name("study.db-wal"), 0), False, id="log cut"),
    ],
)
def test_nothing_is_acknowledged_when_the_file_is_not_there_any_more(
    damage: Callable[[Path], None], kept: bool, make_study: Callable[..., Path], tmp_path: Path
) -> None:
    path = make_study(trials=4)
    with served(path) as server:
        server.begin(ANNA)
        assert server.vote(ANNA, 1, "first", "0" * 32)[0] == 200
        damage(path)
        for position in (2, 3):
            status, answer = server.vote(ANNA, position, "first", f"{position}" * 32)
            assert (status, "the study's file was" in answer["error"]) == (503, True)
        assert server.ask("")[0] == 200
        server.stop(signal.SIGTERM)
    copies = list(tmp_path.glob("study-kept-*.db"))
    assert len(copies) == kept
    for copy in copies:
        with Database(copy) as database:
            assert database.value("SELECT count(*) FROM votes") == 1


def test_the_researchers_texts_are_served_unchanged_and_the_admin_token_is_not(make_study: Callable[..., Path]) -> None:
    given = {"title": "<b>T</b>", "question": "Q?", "contact": "C", "consent": "One.\n\nTwo."}
    with served(make_study(**given)) as server:
        found = server.ask("api/study")[1]
        assert {name: found[name] for name in given} == given
        assert "admin_token" not in json.dumps(found)


def test_the_study_file_can_be_read_while_the_study_is_served(make_study: Callable[..., Path]) -> None:
    path = make_study()
    with served(path) as server, Database(path) as database:
        server.begin(ANNA)
        server.vote(ANNA, 1, "first", "0" * 32)
        assert database.value("SELECT count(*) FROM votes") == 1
        database.close()
        assert server.vote(ANNA, 2, "first", "1" * 32)[0] == 200
