"""A state that is damaged in any way is refused in one line before anything is computed, or it changes nothing."""

import hashlib
import json
import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor

import inst
from inst import InstError, LearningState
from inst.learning.state import Progress
from inst.runs import complete
from inst.styles.style import Style

SETTINGS: dict[str, Any] = {"steps": 5, "validate_every": 2, "crops": 2, "batch_size": 1, "variant": "attention"}


def painting() -> Tensor:
    return torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture(scope="module")
def state(tiny_backbone: inst.Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a real state after three of five steps."""
    run = inst.learn(tiny_backbone, painting(), **SETTINGS)
    for step in run:
        if step.step == 3:
            return step.state().save(tmp_path_factory.mktemp("state") / "state.safetensors")
    raise AssertionError


@pytest.fixture(scope="module")
def straight(tiny_backbone: inst.Backbone) -> bytes:
    """The style of the same learning without interruption."""
    return complete(inst.learn(tiny_backbone, painting(), **SETTINGS)).vectors.numpy().tobytes()


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["inst_learning"]), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def digest(content: str, tensors: dict[str, Tensor]) -> str:
    """The digest of a state, as somebody would compute it who makes one up."""
    found = hashlib.sha256(content.encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"\0{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        found.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def write(path: Path, content: Any, tensors: dict[str, Tensor], *, sealed: bool) -> Path:
    text = json.dumps(content, sort_keys=True)
    metadata = {"inst_learning": text, "sha256": digest(text, tensors)}
    if not sealed:
        with safe_open(path, "pt") as file:
            metadata["sha256"] = file.metadata()["sha256"]
    path.write_bytes(safetensors.torch.save(tensors, metadata))
    return path


def check_one_line(message: str) -> None:
    assert "\n" not in message
    assert len(message) < 1_500


def resume(backbone: inst.Backbone, path: Path) -> Style:
    return complete(inst.learn(backbone, painting(), **SETTINGS, resume=LearningState.load(path)))


ODD: list[Any] = [
    None,
    True,
    "x",
    [],
    {},
    -5,
    -1,
    0,
    1,
    2,
    4,
    10**30,
    -0.5,
    0.5,
    1.5,
    1e30,
    math.nan,
    math.inf,
    -math.inf,
]
ODD += ["\u001b[31m", "a\nb", "x" * 100_000, [[]] * 3]
DTYPES = [torch.float16, torch.float64, torch.int64, torch.uint8, torch.bool, torch.bfloat16, torch.float8_e4m3fn]


@st.composite
def damages(draw: st.DrawFn) -> tuple[Any, ...]:
    """Ways to damage a state: what, where (a number from which the entry is chosen), and how."""
    where = draw(st.integers(0, 10_000))
    kind = draw(
        st.sampled_from(["entry", "no entry", "tensor", "no tensor", "shape", "dtype", "number", "new", "part"])
    )
    how: Any = draw(st.integers(0, 10**6))
    if kind in ("entry", "part"):
        how = draw(st.sampled_from(ODD))
    elif kind == "dtype":
        how = draw(st.sampled_from(DTYPES))
    elif kind in ("number", "tensor"):
        how = draw(st.sampled_from([math.nan, math.inf, -math.inf, -1.0, 0.0, 1e-3, 1.0, 3.4e38, 255.0]))
    return kind, where, how


def damaged(content: Any, tensors: dict[str, Tensor], damage: tuple[Any, ...]) -> None:
    kind, where, how = damage
    entries = [(part, key) for part in ("progress", "settings", "about") for key in sorted(content[part])]
    part, key = entries[where % len(entries)]
    name = sorted(tensors)[where % len(tensors)]
    if kind == "entry":
        content[part][key] = how
    elif kind == "no entry":
        del content[part][key]
    elif kind == "part":
        content[part] = how
    elif kind == "no tensor":
        del tensors[name]
    elif kind == "new":
        tensors[f"{name}.{how}"] = torch.zeros(how % 5)
    elif kind == "shape":
        tensors[name] = [torch.zeros(0), tensors[name][None], torch.zeros(7, 3)][how % 3].contiguous()
    elif kind == "dtype":
        tensors[name] = tensors[name].to(how)
    else:
        tensor = tensors[name].clone().reshape(-1)
        value = int(how) % 256 if tensor.dtype == torch.uint8 and math.isfinite(how) else how
        value = 7 if tensor.dtype == torch.uint8 and not math.isfinite(how) else value
        tensor[slice(None) if kind == "tensor" else where % len(tensor)] = value
        tensors[name] = tensor.reshape(tensors[name].shape)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(damage=damages())
def test_any_damage_is_refused_or_changes_nothing(
    tiny_backbone: inst.Backbone, state: Path, straight: bytes, tmp_path: Path, damage: tuple[Any, ...]
) -> None:
    path = tmp_path / "state.safetensors"
    path.write_bytes(state.read_bytes())
    content, tensors = read(path)
    damaged(content, tensors, damage)
    before = write(path, content, tensors, sealed=False).read_bytes()
    try:
        assert resume(tiny_backbone, path).vectors.numpy().tobytes() == straight
    except InstError as error:
        check_one_line(str(error))
    assert path.read_bytes() == before


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(damage=damages())
def test_a_state_that_somebody_made_up_gives_one_line_or_another_learning(
    tiny_backbone: inst.Backbone, state: Path, tmp_path: Path, damage: tuple[Any, ...]
) -> None:
    """With a digest that fits. Nothing else than an InstError may come, and only possible numbers are learned from."""
    path = tmp_path / "state.safetensors"
    content, tensors = read(state)
    damaged(content, tensors, damage)
    before = write(path, content, tensors, sealed=True).read_bytes()
    try:
        style = resume(tiny_backbone, path)
    except InstError as error:
        check_one_line(str(error))
    else:
        assert style.vectors.isfinite().all()
    assert path.read_bytes() == before


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(where=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255), cut=st.booleans())
def test_a_changed_byte_or_a_missing_end_is_refused_or_changes_nothing(
    tiny_backbone: inst.Backbone, state: Path, straight: bytes, tmp_path: Path, where: float, flip: int, cut: bool
) -> None:
    data = bytearray(state.read_bytes())
    place = int(where * len(data)) if flip % 2 else int(where * 6000)  # as often in the header as behind it
    data[place] ^= flip
    path = tmp_path / "state.safetensors"
    path.write_bytes(data[:place] if cut else data)
    try:
        assert resume(tiny_backbone, path).vectors.numpy().tobytes() == straight
    except InstError as error:
        check_one_line(str(error))


NUMBERS: list[tuple[str, Any, str]] = [
    ("step", -5, "step -5"),
    ("step", 10**30, "step 1000000"),
    ("step", 6, "step 6"),
    ("step", True, "step True"),
    ("step", 1.0, "step 1.0"),
    ("loss_scale", math.nan, "loss scale nan"),
    ("loss_scale", 3.0, "loss scale 3.0"),
    ("loss_scale", 2.0, "loss scale 2.0"),
    ("average", math.inf, "average inf"),
    ("seconds", -1.0, "seconds -1.0"),
    ("best_loss", None, "best loss None"),
    ("best_loss", 5.0, "best loss 5.0"),
    ("best_step", 4, "best step 4"),
    ("stale", 9, "stale 9"),
    ("first", -1, "first -1"),
    ("steady", 50, "steady 50"),
    ("start_loss", "low", "start loss 'low'"),
]


@pytest.mark.parametrize(("name", "value", "said"), NUMBERS)
def test_a_state_with_impossible_progress_is_refused(
    tiny_backbone: inst.Backbone, state: Path, name: str, value: Any, said: str
) -> None:
    loaded = LearningState.load(state)
    assert name in {number.name for number in fields(Progress)}
    wrong = replace(loaded, progress=replace(loaded.progress, **{name: value}))
    with pytest.raises(InstError, match="The learning to resume is damaged") as caught:
        inst.learn(tiny_backbone, painting(), **SETTINGS, resume=wrong)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("break_", "said"),
    [
        (lambda one: {key: value for key, value in one.items() if not key.startswith("adam.")}, "adam.0.exp_avg is"),
        (lambda one: {key: value for key, value in one.items() if not key.startswith("module.")}, "module."),
        (lambda one: {key: value for key, value in one.items() if not key.startswith("best.")}, "best."),
        (lambda one: one | {"adam.999.step": torch.ones(())}, "adam.999.step is unknown"),
        (lambda one: one | {"adam.0.step": torch.tensor(99.0)}, "adam.0.step does not fit the number of steps"),
        (lambda one: one | {"adam.0.exp_avg_sq": -1 - one["adam.0.exp_avg_sq"]}, "negative squares"),
        (lambda one: one | {"best.moved": one["best.moved"] * math.nan}, "best.moved has numbers that are not finite"),
        (lambda one: one | {"module.moved": one["module.moved"].double()}, "module.moved has another shape or type"),
        (lambda one: one | {"module.moved": one["module.moved"][:1]}, "module.moved has another shape or type"),
        (lambda one: one | {"module.moved": "no tensor"}, "module.moved has another shape or type"),
        (lambda one: one | {"generator": torch.full_like(one["generator"], 255)}, "state of the random numbers"),
        (lambda one: one | {"generator": one["generator"][:-1]}, "generator has another shape or type"),
    ],
)
def test_a_state_with_wrong_tensors_is_refused(
    tiny_backbone: inst.Backbone, state: Path, break_: Any, said: str
) -> None:
    loaded = LearningState.load(state)
    wrong = replace(loaded, tensors=break_(dict(loaded.tensors)))
    with pytest.raises(InstError, match="The learning to resume is damaged") as caught:
        inst.learn(tiny_backbone, painting(), **SETTINGS, resume=wrong)
    assert said in str(caught.value)
