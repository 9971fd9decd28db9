"""Manifests that are damaged, of strangers or of other programs: one line, or they are left out. Nothing is lost."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batch_runs import rows
from inst.batch.manifest import Manifest
from inst.batch.orders import LONGEST_TEXT, Row
from inst.batch.outputs import Outputs
from inst.batch.places import without_secrets
from inst.batch.records import checked_row, part_names
from inst.errors import InstError, UsageError
from inst.files.holding import part_name

CHOSEN = {"command": "transfer", "seed": 0}
HEADER = json.dumps({"inst": "1.0", "format": 1, "settings": CHOSEN}).encode() + b"\n"
GOOD: dict[str, Any] = {
    "input": "x",
    "input_sha256": "1",
    "style": "y",
    "style_sha256": "2",
    "output": "y/x.png",
    "seed": 1,
    "seconds": 1.0,
    "status": "made",
    "error": "",
    "finished": "now",
}


def finish(out: Path) -> list[dict[str, Any]]:
    """Make a run with one row, and return all rows."""
    run = Manifest(Outputs(str(out)), CHOSEN)
    try:
        run.add(Row(input="new", style="s", output="s/new.png", seed=1))
        run.finish()
    finally:
        run.close()
    return rows(out)


@pytest.mark.parametrize(
    "changed",
    [
        {"input": 7},
        {"input": {"a": [1]}},
        {"seconds": float("nan")},
        {"seconds": "x"},
        {"seconds": -1},
        {"seed": 10**30},
        {"seed": 1.5},
        {"seed": True},
        {"status": "unknown"},
        {"status": None},
    ],
)
def test_a_line_with_a_wrong_value_is_left_out(tmp_path: Path, changed: dict[str, Any]) -> None:
    (tmp_path / "manifest.jsonl").write_bytes(HEADER + json.dumps(GOOD | changed).encode() + b"\n")
    assert [row["input"] for row in finish(tmp_path)] == ["new"]


def test_lines_that_are_no_rows_are_left_out_and_those_between_stay(tmp_path: Path) -> None:
    lines = [b"[" * 100_000, b"x" * (3 << 20), b"7", b"{}", b'{"status": "made"', b"\0" * 50, b"\xff"]
    good = [json.dumps(GOOD | {"input": f"{k}"}).encode() for k in range(len(lines))]
    mixed = b"\n".join(line for pair in zip(lines, good, strict=True) for line in pair)
    (tmp_path / "manifest.jsonl").write_bytes(HEADER + mixed)
    assert [row["input"] for row in finish(tmp_path)] == [*(f"{k}" for k in range(len(lines))), "new"]


def test_names_lead_nowhere_and_long_texts_are_cut(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("mine")
    content = GOOD | {"input": "../../victim", "output": "../victim", "style": "\udcff", "error": "e" * 100_000}
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "manifest.jsonl").write_bytes(HEADER + json.dumps(content).encode() + b"\n")
    first = finish(tmp_path / "out")[0]
    assert (first["output"], first["style"]) == ("../victim", "%FF")
    assert len(first["error"]) <= LONGEST_TEXT + 40
    assert (tmp_path / "victim").read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == ["out", "victim"]


def test_what_a_table_may_hold_is_checked() -> None:
    assert checked_row(GOOD) is not None
    assert checked_row(GOOD | {"more": 1}) == checked_row(GOOD)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
@pytest.mark.parametrize("name", ["manifest.jsonl", "manifest.parquet"])
def test_what_is_no_file_is_one_line(tmp_path: Path, make: Callable[[Path], None], name: str) -> None:
    make(tmp_path / name)
    with pytest.raises(InstError):
        finish(tmp_path)
    assert os.path.lexists(tmp_path / name)


@pytest.mark.parametrize(
    ("header", "columns"),
    [
        (json.dumps(CHOSEN), {"x": [1]}),
        ("[" * 100_000, {"x": [1]}),
        ("[1]", {"x": [1]}),
        (b"\xff\xfe", {"x": [1]}),
    ],
)
def test_a_table_of_another_program_is_refused_and_stays(tmp_path: Path, header: Any, columns: dict[str, Any]) -> None:
    table = tmp_path / "manifest.parquet"
    pq.write_table(pa.table(columns).replace_schema_metadata({"inst": header}), table)
    before = table.read_bytes()
    with pytest.raises(UsageError, match="is not the manifest of a batch"):
        finish(tmp_path)
    assert table.read_bytes() == before


def test_a_table_with_a_wrong_value_is_one_line_and_stays(tmp_path: Path) -> None:
    table = tmp_path / "manifest.parquet"
    columns = {name: [value] for name, value in (GOOD | {"settings": "{}", "seconds": -1.0}).items()}
    pq.write_table(pa.table(columns).replace_schema_metadata({"inst": json.dumps(CHOSEN)}), table)
    before = table.read_bytes()
    with pytest.raises(InstError, match="has a damaged row: move it away"):
        finish(tmp_path)
    assert table.read_bytes() == before


@pytest.mark.parametrize("number", [99, "x" * 10_000, None])
def test_a_manifest_of_another_version_is_refused(tmp_path: Path, number: object) -> None:
    line = json.dumps({"inst": "9.0", "format": number, "settings": CHOSEN}).encode() + b"\n"
    (tmp_path / "manifest.jsonl").write_bytes(line)
    with pytest.raises(UsageError, match="was written by another version of inst") as caught:
        finish(tmp_path)
    assert len(str(caught.value)) < 500
    assert (tmp_path / "manifest.jsonl").read_bytes() == line


def test_the_name_of_another_command_is_cut_and_harmless(tmp_path: Path) -> None:
    other = {"inst": "1", "format": 1, "settings": {"command": "\x1b[2J" * 10_000}}
    (tmp_path / "manifest.jsonl").write_text(json.dumps(other) + "\n")
    with pytest.raises(UsageError) as caught:
        finish(tmp_path)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_folder_that_is_deleted_during_the_run_is_one_line(tmp_path: Path) -> None:
    run = Manifest(Outputs(str(tmp_path / "out")), CHOSEN)
    run.add(Row(input="a"))
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(InstError, match="was deleted or replaced during the run"):
        run.add(Row(input="b"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "manifest.jsonl").write_text("of another run")
    run.close()
    assert (tmp_path / "out" / "manifest.jsonl").read_text() == "of another run"


def test_working_files_of_a_killed_run_are_deleted_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    left = tmp_path / "temporary" / part_name()
    for ending in ("", "-journal"):
        left.with_name(left.name + ending).write_bytes(b"rows")
    os.utime(left, (0, 0))
    finish(tmp_path / "out")
    assert os.listdir(tmp_path / "temporary") == []


def test_files_of_others_beside_the_lines_on_a_store_stay() -> None:
    import fsspec

    system = fsspec.filesystem("memory")
    for name in ("000000.jsonl", "000007.jsonl", "mine.jsonl"):
        system.pipe(f"/hostile/manifest/{name}", HEADER)
    outputs = Outputs("memory://hostile")
    assert part_names(outputs) == ["000000.jsonl", "000007.jsonl"]
    run = Manifest(outputs, CHOSEN)
    run.add(Row(input="a"))
    run.finish()
    assert outputs.names("manifest", ".jsonl") == ["mine.jsonl"]
    system.rm("/hostile", recursive=True)


@pytest.mark.parametrize(
    "url",
    [
        "https://host/a?token=se:cret",
        "https://host/a?x=1&sig=se:cret: no such file",
        "s3://key:se/cret@bucket/x",
        "s3://key:secret@bucket/x",
        "zip://a::https://u:secret@host/a.zip?x=secret",
    ],
)
def test_secrets_are_cut_out_of_urls(url: str) -> None:
    assert "cret" not in without_secrets(url)


def test_what_is_no_secret_stays() -> None:
    for text in ("s3://bucket/photo@2x.png", "https://host:8080/photo@2x.png", "https://host/a: no such file"):
        assert without_secrets(text) == text
