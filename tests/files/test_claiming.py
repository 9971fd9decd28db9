"""Names and outputs are claimed once, by one process, and what killed processes left is found and deleted."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from inst import InstError
from inst.files import holding
from inst.files.claiming import held, reserve_name, reserve_path
from inst.files.holding import lock, sweep, sweep_below, sweep_once, temporary_folder
from inst.files.writing import replace_when_finished, write_bytes_atomically

posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def in_another_process(program: str, *arguments: object) -> subprocess.Popen[str]:
    """Run a program that prints a line when it is ready, and wait for that."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def refused(*arguments: object) -> list[str]:
    raise PermissionError(13, "Permission denied")


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


# Free names


def test_free_names_are_numbered_upwards_for_each_ending(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "for us"
    with ExitStack() as stack:
        found = [stack.enter_context(reserve_path(folder, "castle", ".png")).name for _ in range(3)]
        found.append(stack.enter_context(reserve_path(folder, "castle", ".safetensors")).name)
    assert found == ["castle.png", "castle-2.png", "castle-3.png", "castle.safetensors"]


def test_a_name_that_is_taken_is_never_given_as_free(tmp_path: Path) -> None:
    (tmp_path / "castle.png").write_bytes(b"mine")
    (tmp_path / "castle-2.png").mkdir()
    (tmp_path / "castle-3.png").symlink_to("nowhere")
    with reserve_path(tmp_path, "castle", ".png") as path:
        assert path.name == "castle-4.png"
    assert (tmp_path / "castle.png").read_bytes() == b"mine"


def test_a_folder_that_cannot_be_listed_gives_a_free_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "castle.png").write_bytes(b"mine")
    monkeypatch.setattr(os, "listdir", refused)
    with reserve_path(tmp_path, "castle", ".png") as path:
        assert path.name == "castle-2.png"


def test_a_command_looks_at_a_thousand_leftovers_and_no_more(tmp_path: Path) -> None:
    for number in range(1010):
        (tmp_path / f".inst-{number}.lock").touch()
    sweep_once(tmp_path)
    assert len(names(tmp_path)) == 10
    assert len(sweep(tmp_path)) == 10


def test_two_processes_never_get_the_same_name(tmp_path: Path) -> None:
    program = """
import sys
from inst.files.claiming import reserve_path
sys.stdin.read(1)
for _ in range(40):
    with reserve_path(sys.argv[1], "castle", ".png") as path:
        path.write_bytes(b"picture")
    print(path.name)
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    racers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        found = [
            name for output, _ in pool.map(lambda racer: racer.communicate("!"), racers) for name in output.split()
        ]
    assert len(found) == len(set(found)) == 120
    assert set(found) == set(names(tmp_path))


@pytest.mark.parametrize(
    ("stem", "expected"),
    [
        ("../../etc/passwd", "_.._etc_passwd.png"),
        ("C:\\Users\\me", "C__Users_me.png"),
        ('what? "this"\n', "what_ _this__.png"),
        ("睡莲", "睡莲.png"),
        ("", "picture.png"),
        ("..", "picture.png"),
        ("n" * 500, "n" * 200 + ".png"),
        ("é" * 500, "é" * 100 + ".png"),
    ],
)
def test_any_text_becomes_a_safe_file_name(tmp_path: Path, stem: str, expected: str) -> None:
    with reserve_path(tmp_path, stem, ".png") as path:
        assert path.parent == tmp_path
        assert path.name == expected


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "outputs").write_bytes(b"mine")
    with pytest.raises(InstError, match="outputs is a file"), reserve_path(tmp_path / "outputs", "castle", ".png"):
        pass
    with pytest.raises(InstError, match="more cannot be created"):  # noqa: SIM117
        with reserve_path(tmp_path / "outputs" / "more", "castle", ".png"):
            pass


def test_a_reserved_name_is_freed_if_nothing_is_written(tmp_path: Path) -> None:
    with reserve_path(tmp_path, "castle", ".png") as path:
        assert path.exists()
    assert names(tmp_path) == []
    with pytest.raises(KeyboardInterrupt), reserve_path(tmp_path, "castle", ".png"):
        raise KeyboardInterrupt
    assert names(tmp_path) == []
    with reserve_path(tmp_path, "castle", ".png") as path:
        write_bytes_atomically(path, b"picture")
    assert path.read_bytes() == b"picture"


def test_a_name_that_is_not_valid_unicode_gives_a_usable_file_name(tmp_path: Path) -> None:
    with reserve_path(tmp_path, "bad\udcff-style", ".png") as path:
        assert path.is_file()
        assert path.name == "bad_-style.png"


# Outputs that one process writes


def test_an_output_is_held_by_one_process_and_by_one_thread(tmp_path: Path) -> None:
    out = tmp_path / "style.safetensors"
    program = """
import sys
from inst.files.claiming import held
with held(sys.argv[1]):
    print("ready", flush=True)
    sys.stdin.read(1)
"""
    other = in_another_process(program, out)
    with pytest.raises(InstError, match=f"is being written by process {other.pid} on ") as caught, held(out):
        pass
    assert "wait until it ends" in str(caught.value)
    with held(tmp_path / "another.safetensors"):
        other.communicate("!")
    assert names(tmp_path) == []
    with held(out):
        with pytest.raises(InstError, match=f"by process {os.getpid()} on "), held(out):
            pass
        with ThreadPoolExecutor(1) as pool, pytest.raises(InstError, match="is being written"):
            pool.submit(held(out).__enter__).result()
    assert names(tmp_path) == []


@posix
def test_the_lock_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    program = """
import sys, time
from inst.files.claiming import held
with held(sys.argv[1]):
    print("ready", flush=True)
    time.sleep(60)
"""
    kill(in_another_process(program, tmp_path / "out"))
    assert names(tmp_path) == [".inst-out.lock"]
    with held(tmp_path / "out"):
        assert (tmp_path / ".inst-out.lock").read_text().startswith(f"{os.getpid()} ")
    assert names(tmp_path) == []


def test_many_threads_hold_one_output_one_after_another(tmp_path: Path) -> None:
    """The lock file is deleted and made again all the time: no two threads may believe that they have it."""
    inside: list[int] = []
    most: list[int] = []

    def work(number: int) -> None:
        for _ in range(30):
            try:
                with held(tmp_path / "out"):
                    inside.append(number)
                    most.append(len(inside))
                    inside.remove(number)
            except InstError:
                pass

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert max(most) == 1
    assert len(most) > 100
    assert names(tmp_path) == []


# What killed processes leave


@posix
def test_the_next_write_deletes_what_killed_processes_left_and_nothing_else(tmp_path: Path) -> None:
    program = """
import contextlib, sqlite3, sys, time
from pathlib import Path
from inst.files.claiming import held, reserve_path
from inst.files.writing import replace_when_finished
folder = Path(sys.argv[1])
with contextlib.ExitStack() as stack:
    part = stack.enter_context(replace_when_finished(folder / "study.db"))
    database = sqlite3.connect(part, isolation_level=None)
    database.execute("CREATE TABLE answers (number)")
    database.execute("PRAGMA cache_spill = 1")
    database.execute("BEGIN")
    database.execute("INSERT INTO answers VALUES (zeroblob(8000000))")
    stack.enter_context(held(folder / "comparison"))
    stack.enter_context(reserve_path(folder, "castle", ".safetensors"))
    print("ready", flush=True)
    time.sleep(60)
"""
    mine = [".inst-notes.txt", "comparison", "empty.png", f".inst-{os.getpid()}.part"]
    for name in mine:
        (tmp_path / name).touch()
    dying = in_another_process(program, tmp_path)
    assert len(names(tmp_path)) == len(mine) + 5  # the part, its journal, two locks, an empty style
    assert sweep(tmp_path) == []
    kill(dying)
    with replace_when_finished(tmp_path / "living") as unfinished:
        assert sweep(tmp_path) == []  # it was done before the file was made
        assert names(tmp_path) == sorted([*mine, unfinished.name])
    assert names(tmp_path) == sorted([*mine, "living"])


@posix
def test_a_young_file_of_a_living_process_stays_although_it_is_not_locked_yet(tmp_path: Path) -> None:
    part = tmp_path / f".inst-{os.getpid()}-{'0' * 16}.part"
    part.touch()
    assert sweep(tmp_path) == []
    long_ago = time.time() - 3600
    os.utime(part, (long_ago, long_ago))
    assert sweep(tmp_path) == [(part, 0)]


def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "study.db"

    def write() -> None:
        with replace_when_finished(path, exclusive=True) as unfinished:
            unfinished.write_bytes(b"ours")
            path.write_bytes(b"theirs")

    for _ in range(2):  # it appears meanwhile, and it is there from the start
        with pytest.raises(InstError, match="is there already"):
            write()
    assert path.read_bytes() == b"theirs"
    assert names(tmp_path) == ["study.db"]
    with replace_when_finished(tmp_path / "new.db", exclusive=True) as unfinished:
        unfinished.write_bytes(b"ours")
    assert (tmp_path / "new.db").read_bytes() == b"ours"
    assert names(tmp_path) == ["new.db", "study.db"]


def test_exactly_one_name_is_reserved_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "castle-1.png"
    with reserve_name(path):
        with pytest.raises(InstError, match="is there already"), reserve_name(path):
            pass
        write_bytes_atomically(path, b"mine")
    with pytest.raises(InstError, match="is there already and would be overwritten"), reserve_name(path):
        pass
    assert path.read_bytes() == b"mine"
    assert names(tmp_path) == ["castle-1.png"]
    with pytest.raises(InstError, match="cannot be written"), reserve_name(tmp_path / "nowhere" / "castle.png"):
        pass


def test_a_name_is_in_use_if_a_file_that_belongs_to_it_exists(tmp_path: Path) -> None:
    (tmp_path / "castle.state").touch()
    with reserve_path(tmp_path, "castle", ".png", beside=[".state"]) as path:
        assert path.name == "castle-2.png"


@posix
def test_a_sweep_that_opened_the_lock_of_the_process_before_deletes_nothing_of_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "castle.png"
    with ExitStack() as before, ExitStack() as after:
        before.enter_context(reserve_name(out))

        def lock_late(file: int) -> bool | None:
            before.close()  # between the opening of the file and its locking, one process ends and the next begins
            after.enter_context(reserve_name(out))
            return lock(file)

        monkeypatch.setattr(holding, "lock", lock_late)
        found = names(tmp_path)
        assert sweep(tmp_path) == []
        monkeypatch.undo()
        assert names(tmp_path) == found == [".inst-castle.png.lock", "castle.png"]
        with pytest.raises(InstError, match=f"process {os.getpid()}"), held(out):
            pass


@posix
def test_the_lock_of_another_user_does_not_choose_what_is_deleted(tmp_path: Path) -> None:
    for name in ("mine", "link"):
        (tmp_path / f".inst-{name}.lock").write_bytes(b"1 here reserved")
    (tmp_path / "mine").touch()
    (tmp_path / "link").symlink_to("mine")
    if os.geteuid() == 0:
        os.chown(tmp_path / ".inst-mine.lock", 65534, 65534)
    else:
        (tmp_path / ".inst-mine.lock").unlink()
    sweep(tmp_path)
    assert names(tmp_path) == ["link", "mine"]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may open every file")
def test_a_lock_that_cannot_be_written_is_taken_over_and_one_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    out, left = tmp_path / "castle.png", tmp_path / ".inst-castle.png.lock"
    left.touch(0o444)
    with held(out):
        assert left.read_bytes().startswith(str(os.getpid()).encode())
    left.touch(0)
    with pytest.raises(InstError, match=r"\.inst-castle\.png\.lock is the lock of another user"), held(out):
        pass
    left.unlink()
    with held(out), pytest.raises(InstError, match="is being written by process"), held(out):
        pass


@posix
def test_a_disk_without_room_for_a_lock_keeps_none(tmp_path: Path) -> None:
    program = """
import resource, sys
from inst import InstError
from inst.files.claiming import held, reserve_name
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
for claim in (held, reserve_name):
    try:
        with claim(sys.argv[1]):
            pass
    except InstError as error:
        print(error)
"""
    command = [sys.executable, "-c", program, str(tmp_path / "castle.png")]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert told.count("cannot be written") == 2
    assert names(tmp_path) == []


def test_a_link_in_the_place_of_a_lock_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "letter").write_bytes(b"mine")
    (tmp_path / ".inst-out.lock").symlink_to("letter")
    with pytest.raises(InstError, match="out cannot be written"), held(tmp_path / "out"):
        pass
    assert sweep(tmp_path) == []
    assert (tmp_path / "letter").read_bytes() == b"mine"


def test_long_names_that_begin_alike_are_held_by_different_processes(tmp_path: Path) -> None:
    with held(tmp_path / ("n" * 250 + "1")), held(tmp_path / ("n" * 250 + "2")):
        pass


@posix
def test_a_forked_child_that_ends_frees_nothing(tmp_path: Path) -> None:
    """Workers of batches and of data loaders are such children."""
    out = tmp_path / "out"
    with held(out), temporary_folder(tmp_path) as folder:
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        with pytest.raises(InstError, match="is being written by process"), held(out):
            pass
        assert folder.is_dir()
        assert sweep(tmp_path) == []
    assert names(tmp_path) == []


@posix
def test_a_temporary_folder_is_deleted_at_the_end_and_after_a_kill(tmp_path: Path) -> None:
    with temporary_folder(tmp_path) as folder:
        (folder / "rows.db").write_bytes(bytes(1000))
        os.utime(folder, (0, 0))
        assert sweep(tmp_path) == []
    assert names(tmp_path) == []
    program = """
import sys, time
from inst.files.holding import temporary_folder
with temporary_folder(sys.argv[1]) as folder:
    (folder / "below").mkdir()
    (folder / "below" / "rows.db").write_bytes(bytes(1000))
    (folder / "link").symlink_to(sys.argv[2])
    print("ready", flush=True)
    time.sleep(60)
"""
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "letter").touch()
    process = in_another_process(program, tmp_path, tmp_path / "kept")
    assert sweep(tmp_path) == []
    kill(process)
    ((path, size),) = sweep(tmp_path)
    assert path.name.startswith(f".inst-{process.pid}-")
    assert size >= 1000
    assert names(tmp_path) == ["kept"]
    assert names(tmp_path / "kept") == ["letter"]


@posix
def test_folders_below_are_swept_without_following_links(tmp_path: Path) -> None:
    def left(folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f".inst-{2**22 + 1}-{'0' * 16}.part"
        path.write_bytes(b"part")
        os.utime(path, (0, 0))
        return path

    elsewhere = left(tmp_path / "elsewhere")
    top = tmp_path / "top"
    inside = [left(top), left(top / "a" / "b")]
    (top / "link").symlink_to(tmp_path / "elsewhere")
    deep = left(top / Path(*"d" * 40))
    deleted, whole = sweep_below(top)
    assert sorted(deleted) == sorted((path, 4) for path in inside)
    assert not whole
    assert elsewhere.exists()
    assert deep.exists()
    assert sweep_below(top / "a") == ([], True)
