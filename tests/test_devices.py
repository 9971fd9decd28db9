from pathlib import Path

import pytest
import torch

from inst import UsageError
from inst.devices import DTYPES, autoencoder_dtype, choose_device, choose_dtype

CPU, CUDA, MPS = map(torch.device, ("cpu", "cuda", "mps"))


def test_a_device_by_name() -> None:
    assert choose_device("cpu") == choose_device(CPU) == CPU


@pytest.mark.parametrize("name", ["cuda:99", "tpu", "", "gpu"])
def test_a_device_that_is_not_there(name: str) -> None:
    with pytest.raises(UsageError, match=f'"{name}" cannot be used.*try "cpu"') as caught:
        choose_device(name)
    assert "\n" not in str(caught.value)


def test_the_best_device_at_hand() -> None:
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
def test_the_precision_follows_the_processor() -> None:
    has = "avx512_bf16" in Path("/proc/cpuinfo").read_text().split()
    assert choose_dtype(CPU) == (torch.bfloat16 if has else torch.float32)


def test_a_precision_by_name_or_type() -> None:
    for name, dtype in DTYPES.items():
        assert choose_dtype(CPU, name) == choose_dtype(CPU, dtype) == dtype
    for wrong in ("fp8", "int8", torch.int8, torch.float64):
        with pytest.raises(UsageError, match="use one of float32, bfloat16, float16"):
            choose_dtype(CPU, wrong)


def test_the_autoencoder_never_runs_in_float16() -> None:
    assert autoencoder_dtype(torch.float16) == torch.float32
    assert autoencoder_dtype(torch.bfloat16) == torch.bfloat16
    assert autoencoder_dtype(torch.float32) == torch.float32
