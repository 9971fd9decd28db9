"""Weights of the UNet in 8 bits: half the memory of half precision, for a slightly different picture.

torchao quantises the weights of linear layers and convolutions, each row (the weights of one output channel) with a
scale of its own, and stores them as its tensors. A layer computes in the backbone's precision, with weights that it
makes from the stored ones in every call. They are gone after the call: the backward pass makes them again.

torchao's own product of such tensors is for linear layers alone. It multiplies with the integers and scales the result,
which overflows float16, and its backward pass would keep the weights of all layers in full.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

from inst.errors import Argument, InstError, UsageError

Quantization = Literal["int8", "fp8"]
"""How weights are stored: as integers, or as floating-point numbers with 4 bits of exponent and 3 of mantissa."""

_FP8 = torch.float8_e4m3fn

_KEPT = ("conv_in", "conv_out")
"""Layers that keep their precision: they are tiny, and all that the UNet sees and says goes through them."""


def check_quantization(kind: object, device: torch.device) -> None:
    """Check that weights can be quantised. None, for no quantisation, always can.

    Raises:
        UsageError: the kind is unknown, or the device cannot compute with it.
        InstError: torchao is missing.
    """
    if kind is None:
        return
    if kind not in get_args(Quantization):
        raise UsageError(f'The quantisation "{kind}" is unknown', f"use one of {', '.join(get_args(Quantization))}")
    _torchao()
    if kind == "fp8":
        try:
            torch.ones(1).to(device, _FP8).float().cpu()
        except (RuntimeError, TypeError):  # MPS raises either
            raise UsageError(
                f'The device "{device}" has no numbers of the type fp8', "use ", Argument("quantize", "int8")
            ) from None


@torch.no_grad()
def quantize_weights(unet: nn.Module, kind: Quantization, device: torch.device) -> None:
    """Quantise the weights of a frozen UNet in place, each on `device`, where it stays.

    Raises:
        UsageError, InstError: as `check_quantization`; or the UNet has LoRA layers.
    """
    check_quantization(kind, device)
    modules: dict[str, Any] = dict(unet.named_modules())
    if any(type(module).__module__.partition(".")[0] == "peft" for module in modules.values()):
        raise InstError(
            "A UNet with LoRA layers cannot be quantised",
            "merge them first, with fuse_lora() and unload_lora_weights(), or leave out ",
            Argument("quantize"),
        )
    for name, layer in modules.items():
        if name in _KEPT:
            continue
        if type(layer) is nn.Linear:
            layer.__class__, rows = _Linear, layer.weight
        elif type(layer) is nn.Conv2d and layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
            last: Any = layer.weight.is_contiguous(memory_format=torch.channels_last)
            layer.__class__, layer.channels_last = _Conv2d, last
            rows = (layer.weight.movedim(1, -1) if last else layer.weight).flatten(1)
        else:
            continue
        layer.weight = _quantized(rows.to(device), kind)


def _quantized(rows: Tensor, kind: Quantization) -> nn.Parameter:
    """Return a matrix as a tensor of torchao, with the dtype of the matrix."""
    library = _torchao()
    config = library.Int8WeightOnlyConfig if kind == "int8" else library.Float8WeightOnlyConfig
    holder = nn.Linear(1, 1, bias=False, device="meta")
    holder.weight = nn.Parameter(rows.float(), requires_grad=False)  # the scales may be too small for float16
    library.quantize_(holder, config(set_inductor_config=False))  # the settings are those of the whole process
    stored: Any = holder.weight
    if kind == "fp8":  # torchao divides a row of zeros by zero
        stored.qdata.view(torch.uint8).masked_fill_(~rows.any(1, keepdim=True), 0)
    return nn.Parameter(stored.to(rows.dtype), requires_grad=False)


def _in_full(weight: Any, dtype: torch.dtype) -> Tensor:
    """Return the matrix that a tensor of torchao stores. `dequantize` gives the same in several times the time."""
    stored, scale = weight.qdata, weight.scale
    if stored.dtype == torch.int8:
        return torch.mul(stored, scale, out=torch.empty_like(stored, dtype=dtype))
    exact = stored.to(dtype)  # PyTorch does not multiply numbers of 8 bits
    return torch.mul(exact, scale, out=exact)


class _Layer(nn.Module):
    """A layer with quantised weights."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            result: Tensor = _Function.apply(x, self)
            return result
        return self.compute(x)

    def compute(self, x: Tensor) -> Tensor:
        """Return the output for the input x."""
        raise NotImplementedError

    def gradient(self, shape: torch.Size, dy: Tensor) -> Tensor:
        """Return the gradient of an input of this shape, from that of the output."""
        raise NotImplementedError


class _Linear(_Layer, nn.Linear):
    def compute(self, x: Tensor) -> Tensor:
        return F.linear(x, _in_full(self.weight, x.dtype), self.bias)

    def gradient(self, shape: torch.Size, dy: Tensor) -> Tensor:
        return dy @ _in_full(self.weight, dy.dtype)


class _Conv2d(_Layer, nn.Conv2d):
    """Its weight is a matrix: [out, in * height * width], or with `channels_last` [out, height * width * in]."""

    channels_last: bool

    def compute(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self._kernel(x.dtype), self.bias)

    def gradient(self, shape: torch.Size, dy: Tensor) -> Tensor:
        settings: Any = (self.stride, self.padding, self.dilation, self.groups)
        return conv2d_input(shape, self._kernel(dy.dtype), dy, *settings)

    def _kernel(self, dtype: torch.dtype) -> Tensor:
        rows = _in_full(self.weight, dtype)
        if self.channels_last:
            return rows.unflatten(1, (*self.kernel_size, -1)).movedim(-1, 1)
        return rows.unflatten(1, (-1, *self.kernel_size))


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: _Layer) -> Tensor:
        ctx.shape, ctx.layer = x.shape, layer
        return layer.compute(x)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        return ctx.layer.gradient(ctx.shape, dy), None


def _torchao() -> Any:
    """Import torchao's quantisation, which takes 1.5 s. Raises InstError if it is not installed, or too old."""
    try:
        with _quiet():
            from torchao import quantization

            if quantization.Int8WeightOnlyConfig().version < 2:
                raise InstError("This torchao is older than 0.18", "install torchao 0.18 or newer")
    except ImportError:
        raise InstError(
            "Quantised weights need torchao, which is not installed",
            "run pip install 'inst[quantize]', or leave out ",
            Argument("quantize"),
        ) from None
    return quantization


@contextmanager
def _quiet() -> Iterator[None]:
    """Log no warnings inside the block: torchao's are about its compiled kernels, which are not used here."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
