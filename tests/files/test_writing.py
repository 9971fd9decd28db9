"""Files are written whole or not at all, and free names are claimed once: with full disks and killed processes."""

import errno
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from inst import InstError
from inst.files.writing import free_path, make_folder, reserve_path, write_bytes_atomically

posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def refuse(path: Path, reason: str) -> None:
    with pytest.raises(InstError) as caught:
        write_bytes_atomically(path, b"new")
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    assert reason in message


def test_a_file_is_written_and_replaced_with_nothing_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    assert write_bytes_atomically(path, b"old") == path
    assert write_bytes_atomically(str(path), memoryview(b"new content")) == path
    assert path.read_bytes() == b"new content"
    assert names(tmp_path) == ["file.bin"]


def test_the_longest_allowed_file_name_is_written_and_a_longer_one_refused(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 251 + ".bin")
    assert write_bytes_atomically(path, b"x").read_bytes() == b"x"
    refuse(tmp_path / ("n" * 300), "too long): choose a shorter name")


def test_places_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    refuse(tmp_path / "nowhere" / "file", "nowhere does not exist")
    refuse(tmp_path, "it is a folder")
    (tmp_path / "file").write_bytes(b"old")
    refuse(tmp_path / "file" / "inner", "cannot be written")
    assert (tmp_path / "file").read_bytes() == b"old"


@posix
def test_a_device_is_never_replaced() -> None:
    refuse(Path("/dev/null"), "not a regular file")
    assert Path("/dev/null").is_char_device()


@posix
def test_links_and_permissions_are_kept(tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.write_bytes(b"old")
    real.chmod(0o640)
    link = tmp_path / "link"
    link.symlink_to("real")
    write_bytes_atomically(link, b"new")
    assert link.is_symlink()
    assert real.read_bytes() == b"new"
    assert real.stat().st_mode & 0o777 == 0o640
    dangling = tmp_path / "dangling"
    dangling.symlink_to("later")
    write_bytes_atomically(dangling, b"new")
    assert (tmp_path / "later").read_bytes() == b"new"


@posix
def test_a_protected_file_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(0o444)
    if os.geteuid() == 0:  # whom no permission binds
        monkeypatch.setattr(os, "access", lambda path, mode: False)
    refuse(path, "write-protected: choose another name")
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_a_full_or_broken_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(descriptor: int) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "fsync", fail)
    refuse(path, "free space on the disk" if error == errno.ENOSPC else "choose another folder")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


@posix
def test_a_file_size_limit_of_the_system_leaves_the_old_file(tmp_path: Path) -> None:
    """The operating system itself stops the write in the middle, as it does where a quota ends."""
    path = tmp_path / "file"
    path.write_bytes(b"old")
    program = f"""
import resource
from inst.errors import InstError
from inst.files.writing import write_bytes_atomically
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    write_bytes_atomically({str(path)!r}, bytes(1_000_000))
except InstError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert "cannot be written (File too large)" in run.stdout
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


@posix
def test_a_killed_process_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    whole = [bytes([i]) * 3_000_000 for i in range(2)]
    path.write_bytes(whole[0])
    program = f"""
from inst.files.writing import write_bytes_atomically
print("ready", flush=True)
while True:
    for i in range(2):
        write_bytes_atomically({str(path)!r}, bytes([i]) * 3_000_000)
"""
    for delay in (0.005, 0.02, 0.05):
        writer = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
        time.sleep(delay)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        assert path.read_bytes() in whole


def test_an_interrupt_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_bytes_atomically(tmp_path / "file", b"new")
    assert names(tmp_path) == []


# Free names


def test_free_names_are_numbered_upwards_for_each_ending(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "for us"
    found = [free_path(folder, "castle", ".png").name for _ in range(3)]
    assert found == ["castle.png", "castle-2.png", "castle-3.png"]
    assert free_path(folder, "castle", ".safetensors").name == "castle.safetensors"


def test_a_name_that_is_taken_is_never_given_as_free(tmp_path: Path) -> None:
    (tmp_path / "castle.png").write_bytes(b"mine")
    (tmp_path / "castle-2.png").mkdir()
    (tmp_path / "castle-3.png").symlink_to("nowhere")
    assert free_path(tmp_path, "castle", ".png").name == "castle-4.png"
    assert (tmp_path / "castle.png").read_bytes() == b"mine"


def test_two_processes_never_get_the_same_name(tmp_path: Path) -> None:
    program = """
import sys
from inst.files.writing import free_path
sys.stdin.read(1)
for _ in range(40):
    print(free_path(sys.argv[1], "castle", ".png").name)
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
    path = free_path(tmp_path, stem, ".png")
    assert path.parent == tmp_path
    assert path.name == expected


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "outputs").write_bytes(b"mine")
    with pytest.raises(InstError, match="outputs is a file"):
        free_path(tmp_path / "outputs", "castle", ".png")
    with pytest.raises(InstError, match="cannot be written"):
        free_path(tmp_path / "outputs" / "more", "castle", ".png")


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
    path = free_path(tmp_path, "bad\udcff-style", ".png")
    assert path.is_file()
    assert path.name == "bad_-style.png"


def test_a_file_where_a_folder_is_wanted_is_named_as_one(tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(b"kept")
    with pytest.raises(InstError, match=r"photo\.png is a file: choose a folder"):
        make_folder(tmp_path / "photo.png")
    assert (tmp_path / "photo.png").read_bytes() == b"kept"
