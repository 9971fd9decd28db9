"""A Ray cluster does the same work: the same files, one line for an error, and nothing lost when a part of it dies."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import inst
from batch_runs import QUICK, facts, results, wait_for_results, write_pictures

Run = Callable[..., tuple[int, str, str]]

PROMPTS = "a river in the style of [C]\na dog by [C]\n"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster of two nodes on this machine, each with one core."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 80_000_000}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", str(Path(inst.__file__).parents[1]))
        cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
        cluster.other = cluster.add_node(**node)
        try:
            yield cluster
        finally:
            ray.shutdown()
            cluster.shutdown()


@pytest.fixture
def transfer(tmp_path: Path, common: list[object]) -> list[object]:
    write_pictures(tmp_path / "photos", *(f"p{k}.png" for k in range(3)))
    write_pictures(tmp_path / "styles", *(f"s{k}.png" for k in range(4)), seed=1)
    return ["batch", "transfer", "--photos", "photos", "--styles", "styles", *QUICK, *common]


def run_alone(folder: Path, *given: object) -> subprocess.CompletedProcess[str]:
    """Run a command in a process that has not imported Ray before, as a user does."""
    command = [sys.executable, "-c", "from inst.cli import main; main()", *map(str, given)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240)


def test_ray_writes_the_same_files_as_one_process(
    tmp_path: Path, transfer: list[object], run: Run, cluster: Any
) -> None:
    """A command of its own, which shows what a user sees."""
    (tmp_path / "photos" / "bad.png").write_text("no picture")
    assert run(*transfer, "-o", "peace")[0] == 1
    answer = run_alone(tmp_path, *transfer, "-o", "out", "--address", cluster.address)
    assert answer.returncode == 1, answer.stderr
    assert answer.stdout.startswith("12 made, 4 failed in ")
    lines = answer.stderr.splitlines()
    assert len(lines) == 1, answer.stderr  # one for all styles
    assert all(line.startswith("Failed: photos/bad.png ") for line in lines)
    assert results(tmp_path / "out") == results(tmp_path / "peace")
    assert facts(tmp_path / "out") == facts(tmp_path / "peace")


def test_there_is_an_actor_for_every_core_from_the_start(cluster: Any) -> None:
    """Ray Data does not make a pool larger whose actors have as many calls as they may have."""
    import ray

    from inst.batch.ray_cluster import RayOptions, _connected, _pool

    with _connected(cluster.address):
        assert ray.cluster_resources()["CPU"] == 2
        assert [_pool(RayOptions(concurrency=count))["compute"].min_size for count in (None, 1, 3)] == [2, 1, 3]


def test_an_error_of_an_actor_is_one_line(tmp_path: Path, transfer: list[object], cluster: Any) -> None:
    """The other actor is stopped in the middle of its work, of which Ray would tell on the standard output."""
    answer = run_alone(tmp_path, *transfer, "--steps", 0, "-o", "out", "--address", cluster.address)
    assert (answer.returncode, answer.stdout) == (2, "")
    (line,) = answer.stderr.splitlines()
    assert line.startswith("Error: ")
    assert not (tmp_path / "out" / "manifest.jsonl").exists()


def test_learning_and_prompts_use_the_cluster_too(
    tmp_path: Path, transfer: list[object], run: Run, common: list[object], cluster: Any
) -> None:
    learn = ["batch", "learn", "--paintings", "styles", "--steps", 2, "--validate-every", 0, "--vectors", 2, *common]
    (tmp_path / "prompts.txt").write_text(PROMPTS)
    paint = ["batch", "generate", "--prompts", "prompts.txt", "--styles", "styles/s0.png", *QUICK, *common]
    for command in (learn, paint):
        assert run(*command, "-o", f"peace-{command[1]}")[0] == 0
        code, _, err = run(*command, "-o", f"out-{command[1]}", "--address", cluster.address)
        assert (code, err) == (0, "")
        assert results(tmp_path / f"out-{command[1]}") == results(tmp_path / f"peace-{command[1]}")


@pytest.mark.parametrize("what", ["actor", "node"])
def test_what_a_dead_part_of_the_cluster_had_is_done_by_another(
    tmp_path: Path, transfer: list[object], run: Run, cluster: Any, what: str
) -> None:
    assert run(*transfer, "-o", "peace")[0] == 0
    done: list[str] = []

    def kill() -> None:
        wait_for_results(tmp_path / "out", 2)
        if what == "node":
            cluster.remove_node(cluster.other, allow_graceful=False)
        else:
            for one in ray_workers():
                os.kill(one, 9)
        done.append(what)

    thread = threading.Thread(target=kill)
    thread.start()
    code, _, err = run(*transfer, "-o", "out", "--address", cluster.address)
    thread.join()
    assert (code, err, done) == (0, "", [what])
    assert results(tmp_path / "out") == results(tmp_path / "peace")
    assert {row[0] for row in facts(tmp_path / "out")} == {row[0] for row in facts(tmp_path / "peace")}


def ray_workers() -> list[int]:
    """The processes of actors that work."""
    import psutil

    found = (one for one in psutil.process_iter(["cmdline"]) if (one.info["cmdline"] or [""])[0].startswith("ray::Map"))
    mine = {child.pid for child in psutil.Process().children(recursive=True)}
    return [one.pid for one in found if one.pid in mine][:1]


def test_without_ray_it_says_how_to_install_it(
    tmp_path: Path, transfer: list[object], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inst.batch.ray_cluster.find_spec", lambda name: None)
    code, out, err = run(*transfer, "-o", "out", "--address", "local")
    assert (code, out) == (1, "")
    assert err == 'Error: Ray is not installed: install it with pip install "inst[ray]".\n'
