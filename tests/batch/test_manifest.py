"""The manifest of a batch: every row once, whatever happened to the files."""

import json
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import inst
from batch_runs import rows
from inst.batch import manifest as module
from inst.batch import records
from inst.batch.items import Item
from inst.batch.manifest import Manifest
from inst.batch.orders import Chunk, Order, Row, in_chunks
from inst.batch.outputs import Outputs
from inst.batch.run import run_batch
from inst.batch.worker import ChunkWorker, Entry, LoadedChunk
from inst.errors import InstError, UsageError
from inst.runs import complete

CHOSEN = {"command": "transfer", "steps": 2, "seed": 0}


def made(name: str, **more: object) -> Row:
    return Row(input=name, style="s", output=f"s/{name}.png", seed=1, seconds=0.5, **more)  # type: ignore[arg-type]


def kept(name: str) -> Row:
    return Row(input=name, style="s", output=f"s/{name}.png", seed=1, status="kept")


def failed(name: str) -> Row:
    return Row(input=name, style="s", status="failed", error="broken")


def begin(out: Path, **more: object) -> Manifest:
    return Manifest(Outputs(str(out)), {**CHOSEN, **more})


def test_the_rows_of_several_runs_become_one_table(tmp_path: Path) -> None:
    stopped = begin(tmp_path)
    for row in (made("a"), failed("b"), failed("c")):
        stopped.add(row)
    stopped.close()
    lines = [json.loads(line) for line in (tmp_path / "manifest.jsonl").read_text().splitlines()]
    assert lines[0]["settings"] == CHOSEN
    assert [line["status"] for line in lines[1:]] == ["made", "failed", "failed"]
    second = begin(tmp_path)
    for row in (kept("a"), made("b"), failed("c"), failed("c")):
        second.add(row)
    assert second.finish() == str(tmp_path / "manifest.parquet")
    second.close()
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.parquet"]
    found = {row["input"]: (row["status"], row["seconds"]) for row in rows(tmp_path)}
    assert found == {"a": ("made", 0.5), "b": ("made", 0.5), "c": ("failed", None)}
    third = begin(tmp_path, steps=3)
    assert third.changed == {"steps": (2, 3)}
    third.add(made("d"))
    third.finish()
    table = rows(tmp_path)
    assert [row["input"] for row in table] == ["a", "b", "d"]
    assert [json.loads(row["settings"])["steps"] for row in table] == [2, 2, 3]


def test_half_a_line_costs_only_itself(tmp_path: Path) -> None:
    run = begin(tmp_path)
    run.add(made("a"))
    run.close()
    with (tmp_path / "manifest.jsonl").open("ab") as file:
        file.write(b'{"input": "b", "sty')
    run = begin(tmp_path)
    run.add(made("c"))
    run.finish()
    assert [row["input"] for row in rows(tmp_path)] == ["a", "c"]


@pytest.mark.parametrize("start", [b"", b'{"in', b'{"inst": "1.0", "format": 1, "sett'])
def test_a_first_line_that_was_not_completed_is_no_obstacle(tmp_path: Path, start: bytes) -> None:
    (tmp_path / "manifest.jsonl").write_bytes(start)
    run = begin(tmp_path)
    run.add(made("a"))
    run.finish()
    assert len(rows(tmp_path)) == 1


def test_a_run_without_a_row_leaves_no_trace(tmp_path: Path) -> None:
    begin(tmp_path).close()
    assert not list(tmp_path.iterdir())
    run = begin(tmp_path)
    run.add(made("a"))
    run.close()
    before = (tmp_path / "manifest.jsonl").read_bytes()
    begin(tmp_path, steps=9).close()
    assert (tmp_path / "manifest.jsonl").read_bytes() == before


def test_a_second_run_is_refused_until_the_first_has_ended(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    first = begin(tmp_path)
    first.add(made("a"))
    with pytest.raises(InstError, match="Another run is writing to "):
        begin(tmp_path)
    first.finish()
    second = begin(tmp_path)
    second.add(made("b"))
    second.finish()
    assert [row["input"] for row in rows(tmp_path)] == ["a", "b"]


def test_a_run_that_begins_while_another_ends_writes_to_its_own_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = begin(tmp_path)
    first.add(made("a"))
    lock = module._lock

    def wait_and_lock(*arguments: object) -> None:
        monkeypatch.setattr(module, "_lock", lock)
        first.finish()  # after the second run has opened the file, and before it locks it
        lock(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_lock", wait_and_lock)
    second = begin(tmp_path)
    second.add(made("b"))
    second.finish()
    assert [row["input"] for row in rows(tmp_path)] == ["a", "b"]


def test_a_damaged_table_is_named_and_stays(tmp_path: Path) -> None:
    run = begin(tmp_path)
    for k in range(100):
        run.add(made(f"{k}"))
    run.finish()
    table = tmp_path / "manifest.parquet"
    data = bytearray(table.read_bytes())
    data[4:200] = bytes(196)  # the footer, which is at the end, can still be read
    table.write_bytes(data)
    run = begin(tmp_path)
    run.add(made("new"))
    with pytest.raises(InstError, match=r"manifest\.parquet cannot be brought up to date") as caught:
        run.finish()
    run.close()
    assert "\n" not in str(caught.value)
    assert table.read_bytes() == data
    table.unlink()
    run = begin(tmp_path)
    run.add(kept("new"))
    run.finish()
    assert [(row["input"], row["seconds"]) for row in rows(tmp_path)] == [("new", 0.5)]


def test_the_results_of_another_command_are_refused(tmp_path: Path) -> None:
    run = begin(tmp_path)
    run.add(made("a"))
    run.close()
    with pytest.raises(UsageError, match="holds the results of inst batch transfer"):
        begin(tmp_path, command="learn")


def test_without_pyarrow_the_lines_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in (module, records):
        monkeypatch.setattr(place, "find_spec", lambda name: None)
    for name in ("a", "b"):
        run = begin(tmp_path)
        run.add(made(name))
        assert run.finish() == str(tmp_path / "manifest.jsonl")
    monkeypatch.undo()
    run = begin(tmp_path)
    run.add(made("c"))
    run.finish()
    assert [row["input"] for row in rows(tmp_path)] == ["a", "b", "c"]


def test_the_table_says_what_the_run_was(tmp_path: Path) -> None:
    run = begin(tmp_path)
    run.add(made("a"))
    run.finish()
    schema = pq.read_schema(tmp_path / "manifest.parquet")
    assert json.loads(schema.metadata[b"inst"]) == CHOSEN
    assert schema.names[:8] == ["input", "input_sha256", "style", "style_sha256", "output", "seed", "seconds", "status"]


# Memory


@dataclass(frozen=True, kw_only=True)
class Copies(Order):
    """Writes every input as its output."""

    inputs: int

    @property
    def command(self) -> str:
        return "copy"

    def count(self) -> int:
        return self.inputs

    def chunks(self) -> Iterator[Chunk]:
        return in_chunks(Item(f"{k % 100}/{k}", f"{k}", b"%09d" % k * 50) for k in range(self.inputs))

    def worker(self, backbone: inst.Backbone) -> "Copier":
        return Copier(self, backbone, ".txt", 8)


class Copier(ChunkWorker[bytes, bytes]):
    def decode(self, item: Item, data: bytes) -> bytes:
        return data

    def prepare(self, loaded: LoadedChunk[bytes]) -> None:
        pass

    def compute(self, prepared: None, entries: list[Entry[bytes]]) -> list[bytes]:  # type: ignore[override]
        return [entry.content or b"" for entry in entries]

    def encode(self, result: bytes, name: str) -> bytes:
        return result


def peak_of(out: Path, inputs: int, backbone: inst.Backbone) -> int:
    tracemalloc.start()
    try:
        totals = complete(run_batch(Copies(out=str(out), inputs=inputs), backbone=backbone))
        assert totals.made == inputs
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_ten_times_the_inputs_need_no_more_memory(
    tmp_path: Path, tiny_backbone: inst.Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.fsync", lambda file: None)  # it makes the test slow, and no difference
    monkeypatch.setattr("inst.batch.records._BATCH", 100)
    peak_of(tmp_path / "first", 100, tiny_backbone)  # imports
    few, many = peak_of(tmp_path / "few", 500, tiny_backbone), peak_of(tmp_path / "many", 5_000, tiny_backbone)
    assert many < few + 500_000  # bytes; a row in memory has more than 500 bytes
    assert len(list((tmp_path / "many").rglob("*.txt"))) == 5_000
    assert pq.read_metadata(tmp_path / "many" / "manifest.parquet").num_rows == 5_000
