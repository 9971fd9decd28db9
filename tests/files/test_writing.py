"""Files are written whole or not at all, and free names are claimed once: with full disks and killed processes."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

import pytest

from inst import InstError
from inst.files import holding
from inst.files.holding import lock
from inst.files.writing import make_folder, replace_when_finished, write_bytes_atomically

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


def test_an_unfinished_file_that_somebody_deletes_replaces_nothing(tmp_path: Path) -> None:
    path = tmp_path / "castle.png"
    path.write_bytes(b"old")
    with pytest.raises(InstError, match="cannot be written"), replace_when_finished(path) as unfinished:
        unfinished.unlink()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_is_deleted_and_locked_too_late_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deleted: list[Path] = []

    def lock_late(file: IO[bytes], *, wait: bool = False) -> bool | None:
        if not deleted:  # as a computer does that shares the disk and knows nothing of this process
            deleted.extend(tmp_path.iterdir())
            deleted[0].unlink()
        return lock(file, wait=wait)

    monkeypatch.setattr(holding, "lock", lock_late)
    path = write_bytes_atomically(tmp_path / "castle.png", b"new")
    assert path.read_bytes() == b"new"
    assert len(deleted) == 1


def test_a_file_where_a_folder_is_wanted_is_named_as_one(tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(b"kept")
    with pytest.raises(InstError, match=r"photo\.png is a file: choose a folder"):
        make_folder(tmp_path / "photo.png")
    assert (tmp_path / "photo.png").read_bytes() == b"kept"
