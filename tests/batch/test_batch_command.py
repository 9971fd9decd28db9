"""`inst batch`: each mistake is one clear line, and a bad input costs nothing but itself."""

import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from batch_runs import QUICK, results, rows, write_pictures
from inst.backbone.model import Backbone
from inst.batch.painting import TransferOrder
from inst.cli import batch as command
from inst.styles.style import Style
from s3_server import serving_s3

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def transfer(tmp_path: Path, common: list[object]) -> list[object]:
    """A command in the current folder of `run`, but for its folder."""
    write_pictures(tmp_path / "photos", "a.png", "b.png")
    write_pictures(tmp_path / "styles", "s.png", seed=1)
    return ["batch", "transfer", "--photos", "photos", "--styles", "styles", *QUICK, *common]


def refused(answer: tuple[int, str, str], code: int) -> str:
    """Check that a command ended with a code and one line, and return the line without "Error: "."""
    assert (answer[0], answer[1]) == (code, ""), answer
    (line,) = answer[2].splitlines()
    assert line.startswith("Error: ")
    return line.removeprefix("Error: ")


# Nothing is done


@pytest.mark.parametrize("shape", [(), ("--json",)])
@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (["--photos", "empty"], 1, "empty contains no picture ("),
        (["--photos", "missing"], 1, "missing: no such file: check the path."),
        (["--photos", "photos/a.png", "--styles", "empty"], 1, "empty contains no style (.safetensors, "),
        (["--photos", "bare.parquet"], 1, "bare.parquet has no column of pictures: name the column with --column; "),
        (["photos/a.png"], 2, 'photos/a.png is without an option: put a glob in quotes, such as "photos/*.jpg"; or '),
        (["a", "b", "c"], 2, 'a and 2 more are without an option: put a glob in quotes, such as "photos/*.jpg"; or '),
        (["--pairs", "bare.parquet", "--photos", "photos"], 2, "The pictures to repaint are not clear: "),
        (["--steps", 0], 2, ""),
        (["--strength", 1.5], 2, ""),
        (["--size", 0], 2, ""),
        (["--tone", "grey"], 2, ""),
        (["--seed", -1], 2, "The seed -1 cannot be used: give 0 or more."),
        (["--format", "bmp"], 2, 'The format "bmp" cannot be used: use one of png, jpg, '),
        (["-o", "a-file"], 1, "a-file is a file: choose a folder."),
        (["--num-gpus", 1], 2, "--num-gpus is for a Ray cluster: add --address auto, or leave it out."),
        (["--devices", "cpu,"], 2, ""),
        (["--address", "local", "--concurrency", 10**9], 2, "1,000,000,000 actors cannot be used: give 10,000 or "),
        (["--device", "cpu", "--devices", "cpu,cpu"], 2, "--device and --devices exclude each other: leave out one"),
        (["--devices", "cpu", "--address", "local"], 2, "--devices and --address exclude each other: leave out one"),
        (["--address", "127.0.0.1:1"], 1, "No Ray cluster answers at 127.0.0.1:1 (Connection refused): start one, or "),
        (["--address", "ray://127.0.0.1:1"], 1, "No Ray cluster answers at ray://127.0.0.1:1 (Connection refused): "),
        (["--address", "local", "--num-cpus", 0], 2, "0.0 cores for an actor cannot be used: give a positive number."),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_written(
    tmp_path: Path,
    transfer: list[object],
    run: Run,
    options: list[object],
    code: int,
    says: str,
    shape: tuple[str, ...],
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a-file").write_text("mine")
    pq.write_table(pa.table({"number": [1, 2]}), tmp_path / "bare.parquet")
    for name in ("--photos", "--styles"):
        if name in options:
            del transfer[(at := transfer.index(name)) : at + 2]
    line = refused(run(*transfer, "-o", "out", *options, *shape), code)
    assert line.startswith(says)
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "a-file").read_text() == "mine"


def test_a_folder_of_another_command_or_another_program_is_left_alone(
    tmp_path: Path, transfer: list[object], run: Run, common: list[object]
) -> None:
    assert run(*transfer, "-o", "out")[0] == 0
    learn = ["batch", "learn", "--paintings", "styles", "--steps", 1, "--validate-every", 0, *common]
    before = (tmp_path / "out" / "manifest.parquet").read_bytes()
    assert refused(run(*learn, "-o", "out"), 2) == (
        "out holds the results of inst batch transfer: give another folder for these results."
    )
    assert (tmp_path / "out" / "manifest.parquet").read_bytes() == before
    for name, data in {"manifest.jsonl": b'{"file": "a.png"}\n', "manifest.parquet": b"PAR1 of others"}.items():
        (tmp_path / name[-5:]).mkdir()
        (tmp_path / name[-5:] / name).write_bytes(data)
        assert refused(run(*learn, "-o", name[-5:]), 2) == (
            f"{name[-5:]}/{name} is not the manifest of a batch: give another folder for the results."
        )
        assert (tmp_path / name[-5:] / name).read_bytes() == data
        assert os.listdir(tmp_path / name[-5:]) == [name]


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path, transfer: list[object], run: Run) -> None:
    assert refused(run(*transfer, "-o", "/proc/out"), 1).startswith("/proc/out cannot be created (")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "s").write_text("a file where a folder must be")
    assert refused(run(*transfer, "-o", "out"), 1) == "out/s is a file: choose a folder."


def test_two_runs_in_one_folder_do_not_mix(tmp_path: Path, transfer: list[object], run: Run) -> None:
    fcntl = pytest.importorskip("fcntl")
    (tmp_path / "out").mkdir()
    with (tmp_path / "out" / "manifest.jsonl").open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        line = refused(run(*transfer, "-o", "out"), 1)
        assert line == "Another run is writing to out: wait until it has ended, or give another folder."
        assert os.listdir(tmp_path / "out") == ["manifest.jsonl"]
    assert run(*transfer, "-o", "out")[0] == 0


def test_a_number_of_styles_without_a_bound_is_refused(tmp_path: Path, transfer: list[object], run: Run) -> None:
    line = refused(run("batch", "learn", "--paintings", "styles", "--together", 10**9, "-o", "out", *transfer[-6:]), 2)
    assert line == "1,000,000,000 styles cannot learn together: give a number from 1 to 1,000."


# Some inputs are bad


def test_a_bad_row_of_a_table_is_recorded_and_the_rest_goes_on(
    tmp_path: Path, transfer: list[object], run: Run, common: list[object]
) -> None:
    (tmp_path / "pairs.csv").write_text(
        "photo,style\nphotos/a.png,styles/s.png\n,styles/s.png\nphotos/b.png,styles/s.png\n"
    )
    code, out, err = run("batch", "transfer", "--pairs", "pairs.csv", *QUICK, *common, "-o", "out")
    assert (code, err) == (1, "Failed: pairs.csv line 3 has no photo: fill the row, or leave it out.\n")
    assert out.startswith("2 made, 1 failed in ")
    (failed,) = [row for row in rows(tmp_path / "out") if row["status"] == "failed"]
    assert failed["input"] == "pairs.csv line 3"


def test_a_bad_input_is_recorded_and_the_rest_goes_on(tmp_path: Path, transfer: list[object], run: Run) -> None:
    photos = tmp_path / "photos"
    (photos / "broken.png").write_bytes((photos / "a.png").read_bytes()[:200])
    (photos / "empty.jpg").touch()
    (photos / "folder.jpg").mkdir()
    (photos / "gone.jpg").symlink_to("nowhere")
    (photos / "no\x1b[31m\npicture.png").write_text("text")
    (tmp_path / "styles" / "bad.safetensors").write_bytes(b"{")
    code, out, err = run(*transfer, "-o", "out")
    assert code == 1
    assert out.startswith("2 made, 10 failed in ")
    assert "\x1b" not in err
    lines = err.splitlines()
    assert len(lines) == 5  # the bad style, which fails six times, is one
    assert sum("styles/bad.safetensors is not a safetensors file: give a style file" in line for line in lines) == 1
    assert all(line.startswith("Failed: ") for line in lines)
    table = {(row["input"], row["style"]): row for row in rows(tmp_path / "out")}
    assert len(table) == 12
    assert {row["output"] for row in table.values() if row["status"] == "made"} == set(results(tmp_path / "out"))
    bad = table["photos/a.png", "styles/bad.safetensors"]
    assert (bad["status"], bad["seconds"]) == ("failed", None)
    assert "styles/bad.safetensors" in bad["error"]
    assert table["photos/empty.jpg", "styles/s.png"]["error"].startswith("photos/empty.jpg is empty (0 bytes): ")
    again = run(*transfer, "-o", "out", "--json")
    assert again[0] == 1
    totals = json.loads(again[1])
    assert {name: totals[name] for name in ("made", "kept", "failed", "manifest")} == {
        "made": 0,
        "kept": 2,
        "failed": 10,
        "manifest": "out/manifest.parquet",
    }
    assert len(rows(tmp_path / "out")) == 12
    (photos / "empty.jpg").unlink()  # mended
    assert len([row for row in rows(tmp_path / "out") if row["status"] == "failed"]) == 10
    assert run(*transfer, "-o", "out")[0] == 1
    assert len([row for row in rows(tmp_path / "out") if row["status"] == "failed"]) == 8


def test_a_style_of_another_model_is_one_line_with_its_file(
    tmp_path: Path, transfer: list[object], run: Run, tiny_backbone: Backbone
) -> None:
    other = Style(torch.zeros(1, tiny_backbone.text_width), "of-another-model", widths=tiny_backbone.text_widths)
    other.save(tmp_path / "styles" / "other.safetensors")
    code, out, err = run(*transfer, "-o", "out")
    assert code == 1
    assert out.startswith("2 made, 2 failed in ")
    assert err.startswith("Failed: styles/other.safetensors: The style ")
    assert err.count("\n") == 1


def test_an_empty_file_is_no_result(tmp_path: Path, transfer: list[object], run: Run) -> None:
    assert run(*transfer, "-o", "out")[0] == 0
    (made,) = (tmp_path / "out" / "s").glob("a-*.png")
    before = made.read_bytes()
    made.write_bytes(b"")
    assert run(*transfer, "-o", "out")[1].startswith("1 made, 1 there already in ")
    assert made.read_bytes() == before


def test_it_stops_early_on_request(tmp_path: Path, transfer: list[object], run: Run) -> None:
    for k in range(4):
        (tmp_path / "photos" / f"0{k}.png").write_text("no picture")
    code, out, err = run(*transfer, "-o", "out", "--max-failures", 2)
    assert (code, out) == (1, "")
    *failed, last = err.splitlines()
    assert len(failed) == 3
    assert last.startswith("Error: 3 inputs failed, the last one with: photos/0")
    assert last.endswith(
        ": mend them, or allow more with --max-failures; what is done stays, and the same command goes on."
    )
    code, out, _ = run(*transfer, "-o", "out", "--max-failures", 4)
    assert code == 1
    assert "2 made" in out or "there already" in out
    assert len(rows(tmp_path / "out")) == 6


def test_missing_files_of_a_list_and_of_pairs_are_recorded(
    tmp_path: Path, transfer: list[object], run: Run, common: list[object]
) -> None:
    (tmp_path / "list.txt").write_text("photos/a.png\nphotos/gone.png\nphotos/a.png\n")
    transfer[transfer.index("photos")] = "list.txt"
    code, out, err = run(*transfer, "-o", "out")
    assert code == 1
    assert out.startswith("2 made, 1 failed in ")
    assert err == "Failed: photos/gone.png: no such file: check the path.\n"
    (tmp_path / "pairs.csv").write_text(
        "photo,style\nphotos/a.png,styles/s.png\nphotos/a.png,styles/none.png\nphotos/b.png,styles/s.png\n"
    )
    code, out, _ = run("batch", "transfer", "--pairs", "pairs.csv", *QUICK, *common, "-o", "pairs")
    assert code == 1
    assert out.startswith("2 made, 1 failed in ")


def test_an_error_names_the_option_and_the_input(
    tmp_path: Path, run: Run, transfer: list[object], common: list[object]
) -> None:
    """Also if it comes from one of a batch's threads, and concerns one prompt only."""
    (tmp_path / "prompts.txt").write_text("a dog by [C]\na dog by [other]\n" + "a dog " * 900 + "by [C]\n")
    paint = ["batch", "generate", "--prompts", "prompts.txt", "--styles", "styles", *QUICK, *common]
    code, out, err = run(*paint, "-o", "out", "--batch-size", 3)
    assert code == 1
    assert out.startswith("1 made, 2 failed in ")
    first, second = err.splitlines()
    assert first.startswith('Failed: The prompt "a dog by [other]" has the placeholder [other], which has no style ')
    assert second.startswith("Failed: a dog a dog")
    assert second.endswith(" does not fit: shorten the prompt.")
    assert len(second) < 700


# Names, formats and shapes


def test_inputs_of_one_name_have_an_output_each(tmp_path: Path, transfer: list[object], run: Run) -> None:
    write_pictures(tmp_path / "more", "a.png", seed=5)
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "a.png").write_bytes((tmp_path / "photos" / "a.png").read_bytes())
    code, out, _ = run(*transfer, "--photos", "more", "--photos", "copy", "-o", "out")
    assert code == 0
    assert out.startswith("4 made in ")
    table = {row["input"]: row["output"] for row in rows(tmp_path / "out")}
    assert set(table) == {"photos/a.png", "photos/b.png", "more/a.png", "copy/a.png"}
    assert table["copy/a.png"] == table["photos/a.png"]  # the same photo
    assert set(table.values()) == set(results(tmp_path / "out"))
    assert len(results(tmp_path / "out")) == 3


def test_results_in_the_folder_of_the_photos_are_no_photos(tmp_path: Path, transfer: list[object], run: Run) -> None:
    write_pictures(tmp_path / "photos" / "deep", "c.png", seed=7)
    for out in ("photos/out", "photos"):
        for words in ("3 made in ", "0 made, 3 there already in "):
            code, printed, err = run(*transfer, "--recursive", "-o", out, "--styles", "styles")
            assert (code, err) == (0, "")
            assert printed.replace("6 made", "3 made").replace("6 there", "3 there").startswith(words)
        for path in (tmp_path / "photos" / "out").rglob("*"):
            assert path.name.count("-") <= 1
        if out == "photos/out":
            for path in sorted((tmp_path / "photos" / "out").rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
    transfer[transfer.index("photos")] = "photos/s"
    assert refused(run(*transfer, "-o", "photos"), 2) == (
        "All inputs are results of earlier runs in photos: give another folder for these results."
    )


def test_long_and_strange_names_become_names_of_files(tmp_path: Path, transfer: list[object], run: Run) -> None:
    for name in ("é" * 120, "a\tb:c*?", "..dots..", "-o", " "):
        write_pictures(tmp_path / "photos", f"{name}.png", seed=len(name))
    (tmp_path / "styles" / "s.png").rename(tmp_path / "styles" / ("s" * 251 + ".png"))
    code, _, err = run(*transfer, "-o", "out")
    assert (code, err) == (0, "")
    assert len(results(tmp_path / "out")) == 6  # a name that starts with a dot is hidden
    assert all(name.isprintable() and not set(name) & set(':*?"') for name in results(tmp_path / "out"))


@pytest.mark.parametrize(("ending", "mode"), [("png", "RGBA"), ("webp", "RGBA"), ("jpg", "RGB")])
def test_transparency_and_the_format_are_kept(
    tmp_path: Path, transfer: list[object], run: Run, ending: str, mode: str
) -> None:
    image = Image.open(tmp_path / "photos" / "a.png")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    image.save(tmp_path / "photos" / "a.png")
    assert run(*transfer, "-o", "out", "--format", ending)[0] == 0
    (made,) = (tmp_path / "out" / "s").glob(f"a-*.{ending}")
    with Image.open(made) as picture:
        assert picture.mode == mode
    assert run(*transfer, "-o", "out", "--format", f".{ending}")[1].startswith("0 made, 2 there already")
    assert run(*transfer, "-o", "out", "--format", ending, "--flatten")[1].startswith("2 made in ")


def test_a_chunk_of_large_transparent_photos_does_not_lie_in_memory(
    tmp_path: Path, transfer: list[object], run: Run, tiny_backbone: Backbone
) -> None:
    image = Image.new("RGBA", (1000, 800), "red")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    for k in range(24):
        image.save(tmp_path / "photos" / f"{k}.tif")  # 77 MB together, not compressed
    settings = {"size": 64, "steps": 2}
    order = TransferOrder(out=str(tmp_path / "out"), settings=settings, photos=["photos/*.tif"], styles=["styles"])
    (chunk,) = order.chunks()
    worker = order.worker(tiny_backbone)
    tracemalloc.start()
    try:
        loaded = worker.load(chunk)
        assert tracemalloc.get_traced_memory()[1] < 60_000_000
    finally:
        tracemalloc.stop()
    photos = [entry.content for entry in loaded.entries]
    assert all(photo is not None and photo.alpha is not None and photo.alpha.shape == (64, 80) for photo in photos)
    # The opacity is still that of `inst transfer`.
    transfer[transfer.index("photos")] = "photos/0.tif"
    assert run(*transfer, "-o", "out")[0] == 0
    (made,) = (tmp_path / "out" / "s").glob("0-*.png")
    options = transfer[transfer.index("styles") + 1 :]
    assert run("transfer", "photos/0.tif", "--style", "styles/s.png", *options, "-o", "one.png")[0] == 0
    with Image.open(made) as one, Image.open("one.png") as other:
        assert one.getchannel("A").tobytes() == other.getchannel("A").tobytes()


def test_photos_of_very_different_sizes_are_done_together(tmp_path: Path, transfer: list[object], run: Run) -> None:
    for k, size in enumerate([(1, 1), (3, 200), (640, 48), (64, 64), (65, 64)]):
        write_pictures(tmp_path / "photos", f"size{k}.png", size=size)
    code, _, err = run(*transfer, "-o", "out", "--batch-size", 8)
    assert "Traceback" not in err
    assert code == (1 if err else 0)
    table = rows(tmp_path / "out")
    assert len(table) == 7
    for row in table:
        assert (row["status"] == "made") == (row["error"] == "")


def test_an_output_on_s3_is_as_one_on_disk(
    tmp_path: Path, transfer: list[object], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fsspec

    assert run(*transfer, "-o", "out")[0] == 0
    with serving_s3(monkeypatch, {}):
        code, out, err = run(*transfer, "-o", "s3://pictures/runs/one")
        assert (code, err) == (0, "")
        assert out.splitlines()[1] == "s3://pictures/runs/one/manifest.parquet"
        store = fsspec.filesystem("s3", skip_instance_cache=True)
        found = {name.removeprefix("pictures/runs/one/"): store.cat_file(name) for name in store.find("pictures/runs")}
        (tmp_path / "manifest.parquet").write_bytes(found.pop("manifest.parquet"))
        assert found == results(tmp_path / "out")
        assert len(rows(tmp_path)) == 2
        store.rm_file(f"pictures/runs/one/{min(found)}")
        assert run(*transfer, "-o", "s3://pictures/runs/one")[1].startswith("1 made, 1 there already in ")
        line = refused(run(*transfer, "-o", "s3://no-such-bucket/runs"), 1)
        assert line.startswith("s3://no-such-bucket/runs cannot be used (")
    refused(run(*transfer, "-o", "s3://pictures/runs/two"), 1)


# What is printed


def test_progress_is_printed_where_there_is_no_terminal(
    tmp_path: Path, transfer: list[object], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "_NOTES_EVERY", 0)
    code, out, err = run(*transfer, "-o", "out")
    assert code == 0
    lines = err.splitlines()
    assert lines[0].startswith("1 of 2: 1 made in ") or lines[0].startswith("1 made in ")
    assert len(lines) == 2
    assert out.splitlines()[0].startswith("2 made in ")
    assert out.splitlines()[0].endswith(" a second).")
    assert out.splitlines()[1:] == ["out/manifest.parquet"]
    assert run(*transfer, "-o", "out", "--quiet") == (0, "", "")
    code, out, err = run(*transfer, "-o", "out2", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["made"] == 2


@pytest.mark.parametrize("name", ["transfer", "learn", "generate"])
def test_the_help_names_the_sources_and_the_ways_to_spread_the_work(run: Run, name: str) -> None:
    code, out, _ = run("batch", name, "--help")
    assert code == 0
    for text in ("--out", "--devices", "--address", "--max-failures", "Ray cluster", "Parquet"):
        assert text in out
