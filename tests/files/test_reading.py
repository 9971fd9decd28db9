"""Files that are read whole: no device, no pipe without an end, no more bytes than said, and JSON of any kind."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from inst import InstError
from inst.files import reading
from inst.files.reading import DEEPEST, check_regular, open_file, parse_json, read_bytes, read_json, read_text

posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX")


def refusal(read: object, *arguments: object) -> str:
    assert callable(read)
    with pytest.raises(InstError) as caught:
        read(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"\xef\xbb\xbf" + "Seerosen, 睡莲".encode())
    assert read_text(path) == "Seerosen, 睡莲"
    size = path.stat().st_size
    assert len(read_bytes(path, size)) == size
    assert f"text is larger than {size - 1} bytes" in refusal(read_bytes, path, size - 1)
    with open_file(path) as file:
        assert file.read(4) == b"\xef\xbb\xbfS"
        assert file.seek(0) == 0


@posix
def test_devices_and_folders_are_refused(tmp_path: Path) -> None:
    for read in (read_bytes, read_json, check_regular):
        assert "is a folder" in refusal(read, tmp_path)
        assert "no such file" in refusal(read, tmp_path / "none")
        assert "zero is n" in refusal(read, "/dev/zero")
    (tmp_path / "file").touch()
    assert "Not a directory" in refusal(read_text, tmp_path / "file" / "more")
    check_regular(tmp_path / "file")


@posix
def test_a_pipe_is_read_whole_and_refused_where_nobody_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert "is not a regular file" in refusal(check_regular, pipe)
    content = os.urandom(3_000_000)
    for given in (content, b""):
        writer = threading.Thread(target=pipe.write_bytes, args=(given,))
        writer.start()
        assert read_bytes(pipe) == given
        writer.join()
    endless = subprocess.Popen(["sh", "-c", f"exec cat /dev/zero > {pipe}"])
    assert "is larger than 5 MB" in refusal(read_bytes, pipe, 5 * 2**20)
    endless.kill()
    endless.wait()
    monkeypatch.setattr(reading, "_PIPE_WAIT", 50)
    assert "into which no program writes" in refusal(read_bytes, pipe)


@posix
def test_a_program_that_writes_late_and_slowly_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_PIPE_WAIT", 50)
    program = "import time; time.sleep(0.5); print('a', end='', flush=True); time.sleep(0.3); print('b', end='')"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as slow:
        assert slow.stdout is not None
        assert read_text(f"/dev/fd/{slow.stdout.fileno()}") == "ab"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b"9" * 10_000, "not valid JSON"),
        (b'{"a": 1', "not valid JSON"),
        (b"", "not valid JSON"),
        (b"\xff\xfe\xfa", "not a text file in UTF-8"),
    ],
)
def test_json_of_any_kind_gives_one_line(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(content)
    assert reason in refusal(read_json, path)
    refusal(parse_json, content, "The record")


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999", "-1e400", '[1, {"a": 1e309}]'])
def test_numbers_that_are_not_finite_are_refused_where_asked(tmp_path: Path, number: str) -> None:
    parse_json(number, "The record")
    assert "is not finite" in refusal(lambda: parse_json(number, "The record", finite=True))
    (tmp_path / "file.json").write_text(number)
    assert "is not finite" in refusal(lambda: read_json(tmp_path / "file.json", finite=True))
    assert parse_json("[1.5, -2e10]", "The record", finite=True) == [1.5, -2e10]


def test_json_has_no_more_levels_and_parts_than_memory_and_functions_can_take(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse_json("[" * DEEPEST + "]" * DEEPEST, "The record")
    assert "nested too deeply" in refusal(parse_json, "[" * (DEEPEST + 1) + "]" * (DEEPEST + 1), "The record")
    monkeypatch.setattr(reading, "_MOST_PARTS", 10)
    for text in ("[[],{},[],[],[],[],[],[],[],[]]", b"[[],{},[],[],[],[],[],[],[],[]]"):
        assert "holds more than 10 lists and objects" in refusal(parse_json, text, "The record")


def test_the_name_of_a_json_text_is_cut() -> None:
    assert len(refusal(parse_json, "[", "x" * 1_000_000)) < 500


def test_a_path_that_no_system_has_is_one_line() -> None:
    for read in (read_bytes, check_regular):
        assert "cannot be a path" in refusal(read, "a\0b")


@posix
def test_a_pipe_without_an_end_is_given_up_where_no_limit_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "_PIPE_BYTES", 2**20)
    os.mkfifo(tmp_path / "pipe")
    endless = subprocess.Popen(["sh", "-c", f"exec cat /dev/zero > {tmp_path / 'pipe'}"])
    with pytest.raises(InstError, match="is larger than 1 MB"), open_file(tmp_path / "pipe"):
        pass
    endless.kill()
    endless.wait()
