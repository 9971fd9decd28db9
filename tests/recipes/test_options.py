"""Options that no stage can work with (wrong use, said in one line before any data is read), and too little data."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import pytest

import autoencoder
import pair
import tokenizer
import unet
from inst.errors import InstError, UsageError


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer for prompts of 24 tokens."""
    folder = tmp_path_factory.mktemp("pair") / "tokenizer"
    folder.mkdir()
    tokenizer.save(tokenizer.learn(["a painting in the style of a river"] * 3, 600, 24), folder)
    return folder


@pytest.mark.parametrize(
    ("stage", "option", "value", "said"),
    [
        (autoencoder, "--minutes", "-1", "-1 is not a number above 0"),
        (autoencoder, "--minutes", "nan", "nan is not a number above 0"),
        (autoencoder, "--steps", "0", "0 is not a whole number of at least 1"),
        (autoencoder, "--seed", str(2**63), "is not a whole number from 0 to 9223372036854775807"),
        (autoencoder, "--save-every", "-1", "-1 is not a number of at least 0"),
        (autoencoder, "--log-every", "0", "0 is not a whole number of at least 1"),
        (autoencoder, "--batch", "1", "1 is not a whole number of at least 2"),
        (autoencoder, "--crop", "512", "512 is not a multiple of 16 from 32 to 256"),
        (autoencoder, "--crop", "60", "60 is not a multiple of 16 from 32 to 256"),
        (autoencoder, "--rate", "-1", "-1 is not a number of at least 0"),
        (autoencoder, "--widths", "10", "10 is not a multiple of 16 of at least 16"),
        (autoencoder, "--lpips-weight", "inf", "inf is not a number of at least 0"),
        (autoencoder, "--adversarial-from", "2", "2 is not a number from 0 to 1"),
        (pair, "--batch", "3", "3 is not a whole number of at least 4"),
        (pair, "--width", "48", "48 is not a multiple of 32 of at least 32"),
        (pair, "--text-layers", "0", "0 is not a whole number of at least 1"),
        (pair, "--image-layers", "x", "x is not a whole number of at least 1"),
        (tokenizer, "--size", "513", "513 is not a whole number of at least 514"),
        (tokenizer, "--length", "2", "2 is not a whole number of at least 3"),
        (unet, "--batch", "0", "0 is not a whole number of at least 1"),
        (unet, "--repeats", "0", "0 is not a whole number of at least 1"),
        (unet, "--widths", "12", "12 is not a multiple of 8 of at least 8"),
        (unet, "--sheet-steps", "1001", "1001 is not a whole number from 1 to 1000"),
        (unet, "--vectors", "0", "0 is not a whole number of at least 1"),
        (unet, "--reference-share", "0", "0 is not a number above 0 and at most 1"),
        (unet, "--reference-share", "1.5", "1.5 is not a number above 0 and at most 1"),
    ],
)
def test_a_number_out_of_range_is_refused_with_the_allowed_range(
    stage: ModuleType, option: str, value: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    count = 4 if stage is autoencoder and option == "--widths" else 1
    line = wrong_use(stage, ["--data", "absent", "--out", "absent", option, *[value] * count], capsys)
    assert f"argument {option}: {value} is not" in line
    assert line.endswith(said)


def wrong_use(stage: ModuleType, given: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a stage says last before it exits with 2."""
    with pytest.raises((SystemExit, UsageError)) as left:
        stage.main(given)
    if isinstance(left.value, UsageError):  # a stage run as a command says it so, see below
        return f"error: {left.value}"
    assert left.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_the_smallest_allowed_tokenizer_size_and_length_work(shards: Path, tmp_path: Path) -> None:
    given = ["--data", str(shards), "--out", str(tmp_path), "--size", str(tokenizer.SMALLEST), "--length", "3"]
    tokenizer.main(given)
    assert len(tokenizer.load(tmp_path / "tokenizer")) == tokenizer.SMALLEST


PAIR = ["--data", "absent", "--out", "absent", "--steps", "1", "--tokenizer"]
UNET = ["--autoencoder", "absent", "--pair", "absent", *PAIR]


def test_more_vectors_than_a_prompt_holds_are_refused(words: Path, capsys: pytest.CaptureFixture[str]) -> None:
    after = len(tokenizer.load(words)(" style", add_special_tokens=False)["input_ids"])
    most = 24 - 2 - after
    line = wrong_use(unet, [*UNET, str(words), "--pair", str(words.parent), "--vectors", str(most + 1)], capsys)
    assert line == f"error: --vectors {most + 1}: a prompt of this tokenizer has room for {most} at most; give fewer"


@pytest.mark.parametrize(("stage", "given"), [(pair, PAIR), (unet, UNET)])
def test_a_folder_without_a_tokenizer_is_refused(
    stage: ModuleType, given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = wrong_use(stage, [*given, str(tmp_path)], capsys)
    assert line == f"error: {tmp_path}: contains no tokenizer.json; give the folder tokenizer/ that tokenizer.py wrote"


def test_a_stage_without_minutes_or_steps_is_refused() -> None:
    command = [sys.executable, autoencoder.__file__, "--data", "absent", "--out", "absent"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    # Before it may stand warnings of libraries that diffusers imports if they are installed.
    assert answer.stderr.splitlines()[-1] == "error: the stage has no end: give --minutes or --steps"
    assert "Traceback" not in answer.stderr
    assert answer.returncode == 2


def test_a_broken_tokenizer_is_refused_with_what_to_do(words: Path, tmp_path: Path) -> None:
    for path in words.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes()[:100])
    with pytest.raises(InstError, match=r"the tokenizer is broken \(.*\); make it again"):
        tokenizer.load(tmp_path)


@pytest.mark.parametrize("stage", [tokenizer, autoencoder, pair, unet])
def test_a_single_picture_is_refused_as_too_little_data(
    stage: ModuleType,
    words: Path,
    members: Callable[[int], list[tuple[str, bytes]]],
    write_tar: Callable[[Path, Sequence[tuple[str, bytes]]], Path],
    tmp_path: Path,
) -> None:
    write_tar(tmp_path / "one.tar", members(1))
    more = {tokenizer: [], autoencoder: ["--steps", "1"], pair: [*PAIR, str(words)], unet: [*UNET, str(words)]}[stage]
    if stage is unet:
        more += ["--pair", str(words.parent)]
    with pytest.raises(InstError, match="there is too little data: all of it is held out"):
        stage.main([*more, "--data", str(tmp_path), "--out", str(tmp_path / "out")])
    assert [path.name for path in tmp_path.iterdir()] == ["one.tar"]


def test_pictures_that_are_all_smaller_than_the_crop_are_refused(
    members: Callable[[int], list[tuple[str, bytes]]],
    write_tar: Callable[[Path, Sequence[tuple[str, bytes]]], Path],
    tmp_path: Path,
) -> None:
    """Every other of the generated pictures has 224 px."""
    files_of_shard = members(8)
    write_tar(tmp_path / "small.tar", [file for i, file in enumerate(files_of_shard) if i // 2 % 2])
    given = ["--data", str(tmp_path), "--out", str(tmp_path / "out"), "--steps", "1", "--crop", "240"]
    with pytest.raises(InstError, match="no picture is as large as a crop of 240 px"):
        autoencoder.main(given)
