import warnings
from pathlib import Path

import pytest
import torch

from inst import InstWarning, UsageError
from inst.backbone.devices import (
    DTYPES,
    allow_nondeterminism,
    autoencoder_dtype,
    choose_device,
    choose_dtype,
    deterministic,
)

CPU, CUDA, MPS = map(torch.device, ("cpu", "cuda", "mps"))


def test_a_device_can_be_given_by_name_or_as_an_object() -> None:
    assert choose_device("cpu") == choose_device(CPU) == CPU


NO_GPU = pytest.mark.skipif(torch.accelerator.is_available(), reason="this machine has a GPU")


@pytest.mark.filterwarnings("ignore:'mkldnn' is no longer used")
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("tpu", "there is no such device"),
        ("gpu", "there is no such device"),
        ("cuda:x", "there is no such device"),
        ("", "there is no such device"),
        ("meta", "its tensors have no values"),
        ("vulkan", "this PyTorch cannot use vulkan"),
        ("hpu", "this PyTorch cannot use hpu"),
        ("mkldnn", "this PyTorch cannot use mkldnn"),
        pytest.param("mps", "this PyTorch cannot use mps", marks=NO_GPU),
        pytest.param("cuda", "", marks=NO_GPU),  # the reason depends on how PyTorch was built
        pytest.param("cuda:7", "", marks=NO_GPU),
        pytest.param("xpu", "", marks=NO_GPU),
        ("cuda:99", ""),
    ],
)
def test_a_device_that_is_not_available_is_refused_with_those_that_are(name: str, reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        choose_device(name)
    message = str(caught.value)
    assert message.startswith(f'The device "{name}" cannot be used ({reason}')
    assert "\n" not in message
    assert len(message) < 200
    if not torch.accelerator.is_available():
        assert message.endswith('; available: cpu): try device="cpu".')


def test_the_other_devices_are_named_if_one_number_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: CUDA)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA error: invalid device ordinal\nCUDA kernel errors might be reported asynchronously")

    monkeypatch.setattr(torch, "empty", fail)
    expected = r'\(CUDA error: invalid device ordinal; available: cuda:0, cuda:1, cpu\): try device="cuda:0"'
    with pytest.raises(UsageError, match=expected):
        choose_device("cuda:7")


def test_the_default_device_is_the_best_available_one() -> None:
    expected = CUDA if torch.cuda.is_available() else MPS if torch.backends.mps.is_available() else CPU
    assert choose_device() == expected


def test_the_precision_follows_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_dtype(MPS) == torch.float16
    for has_bfloat16, expected in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, has=has_bfloat16: has)
        assert choose_dtype(CUDA) == expected
    for capabilities, expected in (
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"avx512_bf16": False, "avx512_f": True}, torch.float32),
        ({}, torch.float32),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda has=capabilities: has, raising=False)
        assert choose_dtype(CPU) == expected
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert choose_dtype(CPU) == torch.float32


@pytest.mark.skipif(not Path("/proc/cpuinfo").is_file(), reason="Linux tells what the processor has")
def test_bfloat16_is_chosen_on_the_cpu_only_if_the_processor_has_it() -> None:
    has = "avx512_bf16" in Path("/proc/cpuinfo").read_text().split()
    assert choose_dtype(CPU) == (torch.bfloat16 if has else torch.float32)


def test_a_precision_is_taken_by_name_or_type_and_others_are_refused() -> None:
    for name, dtype in DTYPES.items():
        assert choose_dtype(CPU, name) == choose_dtype(CPU, dtype) == dtype
    for wrong in ("fp8", "int8", torch.int8, torch.float64):
        with pytest.raises(UsageError, match="use one of float32, bfloat16, float16"):
            choose_dtype(CPU, wrong)


@pytest.mark.parametrize("given", ["float16", torch.float16])
def test_float16_on_a_cpu_is_used_with_a_warning(given: str | torch.dtype) -> None:
    with pytest.warns(InstWarning, match="float16 on a CPU is 5 to 12 times slower than float32: leave out `dtype`"):
        assert choose_dtype(CPU, given) == torch.float16
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose_dtype(CUDA, given) == torch.float16
        assert choose_dtype(CPU, "bfloat16") == torch.bfloat16


def test_the_autoencoder_never_runs_in_float16() -> None:
    assert autoencoder_dtype(torch.float16) == torch.float32
    assert autoencoder_dtype(torch.bfloat16) == torch.bfloat16
    assert autoencoder_dtype(torch.float32) == torch.float32


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_attention_and_convolution_give_the_same_gradient_bits_every_time(dtype: torch.dtype) -> None:
    """Of a size at which the kernels that are in no fixed order do differ from run to run."""
    generator = torch.Generator("cuda").manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device="cuda", dtype=dtype, generator=generator)

    weight, start = draw(320, 320, 3, 3) / 50, draw(2, 320, 64, 64)
    found = []
    for _ in range(5):
        picture = start.clone().requires_grad_()
        with deterministic(torch.device("cuda")):
            seen = torch.nn.functional.conv2d(picture, weight, padding=1)
            words = seen.flatten(2).unflatten(1, (8, 40)).transpose(2, 3)
            answer = torch.nn.functional.scaled_dot_product_attention(words, words, words)
            larger = torch.nn.functional.interpolate(answer, scale_factor=2.0, mode="nearest")
            larger.square().mean().backward()
        found.append(picture.grad)
    assert all(torch.equal(one, found[0]) for one in found)
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_missing_deterministic_kernel_relaxes_determinism_once_with_a_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("inst.backbone.devices._NONDETERMINISTIC", set())
    assert not allow_nondeterminism(CUDA, RuntimeError("CUDA out of memory"))
    missing = RuntimeError("some_kernel does not have a deterministic implementation, but you set ...")
    with pytest.warns(InstWarning, match="on cuda: some_kernel has no deterministic kernel"):
        assert allow_nondeterminism(CUDA, missing)
    assert not allow_nondeterminism(CUDA, missing)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_an_operation_without_a_deterministic_kernel_runs_after_relaxing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inst.backbone.devices._NONDETERMINISTIC", set())

    def learn() -> None:
        picture = torch.zeros(1, 1, 8, 8, device="cuda", requires_grad=True)
        with deterministic(torch.device("cuda")):
            torch.nn.functional.interpolate(picture, scale_factor=2.0, mode="bicubic").sum().backward()

    with pytest.raises(RuntimeError) as raised:
        learn()
    with pytest.warns(InstWarning):
        assert allow_nondeterminism(torch.device("cuda"), raised.value)
    with pytest.warns(UserWarning, match="deterministic"):
        learn()
