"""`--controlnet` and its options: what a user types, what the picture remembers, and `inst repeat`."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from inst import Backbone
from inst.files.provenance import SourceFile
from inst.pictures.opening import read_text_in
from inst.synthesis.record import read_record
from tiny import tiny_controlnet

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def controlnet(tiny_backbone: Backbone, run: Run) -> Path:
    """In the working folder, with a photo, a painting and a map of depth beside it."""
    for name, seed in (("photo.png", 0), ("painting.png", 1), ("depth.png", 2)):
        small = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
        Image.fromarray(small).resize((96, 64), Image.Resampling.BICUBIC).save(name)
    tiny_controlnet(tiny_backbone.unet).save_pretrained("nets/depth-net")
    return Path("nets/depth-net")


def pixels(path: str | Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_control_is_recorded_and_repeated_to_the_bit(run: Run, common: list[object], controlnet: Path) -> None:
    given = ["transfer", "photo.png", "--style", "painting.png", "--steps", "2", *common]
    control = ["--controlnet", controlnet, "--control", "depth", "--control-picture", "depth.png"]
    assert run(*given, "-o", "plain.png")[0] == 0
    code, _, err = run(*given, *control, "--control-scale", "0.6", "-o", "made.png")
    assert (code, err) == (0, "")
    assert run(*given, *control, "--control-scale", "0", "-o", "off.png")[0] == 0
    assert (pixels("off.png") == pixels("plain.png")).all()
    assert (pixels("made.png") != pixels("plain.png")).any()

    record = read_record("made.png").control
    assert record is not None
    assert (record.model, record.kind, record.scale) == ("depth-net", "depth", 0.6)
    assert record.picture == SourceFile.of("depth.png")
    assert "nets" not in (read_text_in("made.png", "inst") or "")
    assert read_record("plain.png").control is None

    again = ["repeat", "made.png", "--backbone", common[1], "-o", "again.png"]
    code, _, err = run(*again)
    assert (code, err) == (
        1,
        'Error: made.png was made with the ControlNet "depth-net": give its folder with --controlnet.\n',
    )
    code, _, err = run(*again, "--controlnet", controlnet)
    assert (code, err) == (0, "")
    assert (pixels("again.png") == pixels("made.png")).all()
    assert read_record("again.png").control == record


def test_repeat_refuses_another_controlnet_or_control_picture(
    run: Run, common: list[object], controlnet: Path, tiny_backbone: Backbone
) -> None:
    control = ["--controlnet", controlnet, "--control", "depth", "--control-picture", "depth.png"]
    made = ["generate", "[C]", "--style", "painting.png", "--steps", "1", "-o", "made.png", *control, *common]
    assert run(*made)[0] == 0
    assert pixels("made.png").shape == (64, 96, 3)  # the control picture's proportions
    again = ["repeat", "made.png", "--backbone", common[1], "-o", "again.png", "--controlnet"]
    other = tiny_controlnet(tiny_backbone.unet)
    with torch.no_grad():
        other.conv_in.weight.mul_(1.5)
    other.save_pretrained("other-net")
    code, _, err = run(*again, "other-net")
    assert code == 1
    assert "other-net is not the ControlNet that the picture was made with" in err
    assert '"depth-net"' in err

    Path("depth.png").rename("moved.png")
    code, _, err = run(*again, controlnet)
    assert code == 1
    assert "give the control-picture depth.png with --control-picture" in err
    code, _, err = run(*again, controlnet, "--control-picture", "photo.png")
    assert code == 1
    assert "photo.png is not the control-picture that made.png was made from" in err
    assert not Path("again.png").exists()
    assert run(*again, controlnet, "--control-picture", "moved.png")[0] == 0
    assert (pixels("again.png") == pixels("made.png")).all()


def test_without_a_control_picture_the_edges_of_the_photo_are_used(
    run: Run, common: list[object], controlnet: Path
) -> None:
    pytest.importorskip("cv2")
    given = ["transfer", "photo.png", "--style", "painting.png", "--steps", "1", "--json", *common]
    code, out, err = run(*given, "--controlnet", controlnet)
    assert code == 0, err
    [made] = json.loads(out)["pictures"]
    record = read_record(made).control
    assert record is not None
    assert (record.kind, record.scale, record.picture) == ("canny", 1.0, None)
    assert run("repeat", made, "--photo", "photo.png", "--backbone", common[1], "--controlnet", controlnet)[0] == 0


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--control", "depth"], 2, "--control needs a ControlNet: give its folder with --controlnet."),
        (["--control-picture", "depth.png"], 2, "--control-picture needs a ControlNet"),
        (["--control-scale", "1"], 2, "--control-scale needs a ControlNet"),
        (["--controlnet", "nets/depth-net", "--control", "depth"], 2, "cannot compute a control picture of the kind"),
        (["--controlnet", "nowhere", "--control-picture", "depth.png"], 1, "nowhere: no such folder"),
        (["--controlnet", "nets/depth-net", "--control-picture", "none.png"], 1, "none.png: no such file"),
        (["--controlnet", "nets/depth-net", "--control-picture", "high.png"], 2, "does not fit 96 x 64"),
        (
            ["--controlnet", "nets/depth-net", "--control-picture", "depth.png", "--control-scale", "-1"],
            2,
            "control scale of -1.0",
        ),
        (
            ["--controlnet", "nets/depth-net", "--control-picture", "depth.png", "-o", "depth.png"],
            2,
            "depth.png is an input file",
        ),
    ],
)
def test_wrong_control_options_are_refused_in_one_line(
    run: Run, common: list[object], controlnet: Path, options: list[str], code: int, message: str
) -> None:
    Image.new("RGB", (64, 96)).save("high.png")
    before = SourceFile.of("depth.png")
    found, out, err = run("transfer", "photo.png", "--style", "painting.png", *options, *common)
    assert (found, out) == (code, "")
    assert err.startswith("Error: ")
    assert err.count("\n") == 1
    assert message in err
    assert SourceFile.of("depth.png") == before


def test_generating_without_a_control_picture_is_refused(run: Run, common: list[object], controlnet: Path) -> None:
    code, _, err = run("generate", "[C]", "--style", "painting.png", "--controlnet", controlnet, *common)
    assert code == 2
    assert "no photo to find edges in" in err
