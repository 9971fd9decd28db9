"""Write models in the original layout of Stable Diffusion, with a separate key mapping for the tests.

The names are those of the original programs' modules: `ldm.modules.diffusionmodules.openaimodel.UNetModel`,
`ldm.models.autoencoder.AutoencoderKL`, and the text transformers of CLIP and OpenCLIP.
"""

import re
import sys
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor

Tensors = dict[str, Tensor]

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_OPEN_CLIP = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
_RESBLOCK = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}


def original_unet(weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> Tensors:
    """Map UNet keys to one numbered list of input blocks and one of output blocks, each with its layers in order."""
    length = config["layers_per_block"] + 1
    return {f"model.diffusion_model.{_unet_key(key, length, config)}": tensor for key, tensor in weights.items()}


def _unet_key(key: str, length: int, config: Mapping[str, Any]) -> str:
    stem, _, kind = key.rpartition(".")
    if stem in _UNET_ENDS:
        return f"{_UNET_ENDS[stem]}.{kind}"
    if found := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)", key):
        layer, number, rest = found.groups()
        return f"middle_block.{1 if layer == 'attentions' else 2 * int(number)}.{_inner(layer, rest)}"
    found = re.fullmatch(r"(down|up)_blocks\.(\d)\.(resnets|attentions|downsamplers|upsamplers)\.(\d)\.(.+)", key)
    assert found, key
    way, layer, rest = found[1], found[3], found[5]
    block, number = int(found[2]), int(found[4])
    if way == "down":
        if layer == "downsamplers":
            return f"input_blocks.{(block + 1) * length}.0.op.{kind}"
        return f"input_blocks.{1 + block * length + number}.{int(layer == 'attentions')}.{_inner(layer, rest)}"
    if layer == "upsamplers":  # comes after the last layer of its block, which may be an attention
        position = 2 if "CrossAttn" in config["up_block_types"][block] else 1
        return f"output_blocks.{block * length + length - 1}.{position}.conv.{kind}"
    return f"output_blocks.{block * length + number}.{int(layer == 'attentions')}.{_inner(layer, rest)}"


def _inner(layer: str, rest: str) -> str:
    if layer == "attentions":
        return rest
    name, _, kind = rest.rpartition(".")
    return f"{_RESNET[name]}.{kind}"


def original_autoencoder(weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> Tensors:
    """Map autoencoder keys: levels count from the finest in both halves, attention is 1 x 1 convolutions."""
    levels = len(config["block_out_channels"])
    return dict(_autoencoder_entry(key, tensor, levels) for key, tensor in weights.items())


def _autoencoder_entry(key: str, tensor: Tensor, levels: int) -> tuple[str, Tensor]:
    if found := re.fullmatch(r"(.+)\.mid_block\.attentions\.0\.(.+)\.(weight|bias)", key):
        half, name, kind = found.groups()
        if name != "group_norm" and kind == "weight":
            tensor = tensor[:, :, None, None]
        return f"first_stage_model.{half}.mid.attn_1.{_ATTENTION[name]}.{kind}", tensor
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}", key)
    key = re.sub(r"encoder\.down_blocks\.(\d)", r"encoder.down.\1", key)
    key = re.sub(r"decoder\.up_blocks\.(\d)", lambda found: f"decoder.up.{levels - 1 - int(found[1])}", key)
    key = re.sub(r"\.resnets\.(\d)", r".block.\1", key)
    for new, old in (
        ("downsamplers.0", "downsample"),
        ("upsamplers.0", "upsample"),
        ("conv_shortcut", "nin_shortcut"),
        ("conv_norm_out", "norm_out"),
    ):
        key = key.replace(new, old)
    return f"first_stage_model.{key}", tensor


def original_clip(weights: Mapping[str, Tensor], prefix: str = "cond_stage_model.transformer.") -> Tensors:
    """Map keys to CLIP's text transformer as in transformers 4, with the position ids."""
    tensors = {f"{prefix}text_model.{key.removeprefix('text_model.')}": tensor for key, tensor in weights.items()}
    positions = tensors[f"{prefix}text_model.embeddings.position_embedding.weight"]
    numbers = torch.arange(len(positions), device=positions.device)[None]
    return tensors | {f"{prefix}text_model.embeddings.position_ids": numbers}


def original_open_clip(weights: Mapping[str, Tensor], prefix: str, *, last_layer: bool) -> Tensors:
    """Map keys to OpenCLIP: one matrix for queries, keys, values. `last_layer` adds the layer that SD 2 skips."""
    weights = {key.removeprefix("text_model."): tensor for key, tensor in weights.items()}
    tensors = {new: weights[old] for old, new in _OPEN_CLIP.items()}
    tensors["logit_scale"] = torch.zeros(())
    width = tensors["ln_final.weight"].shape[0]
    projection = weights.get("text_projection.weight")
    tensors["text_projection"] = (
        tensors["ln_final.weight"].new_zeros(width, width) if projection is None else projection.T
    )
    layers = sorted({int(key.split(".")[2]) for key in weights if key.startswith("encoder.layers.")})
    for layer in layers:
        own = {
            key.removeprefix(f"encoder.layers.{layer}."): tensor
            for key, tensor in weights.items()
            if key.startswith(f"encoder.layers.{layer}.")
        }
        block = {}
        for kind in ("weight", "bias"):
            block[f"attn.in_proj_{kind}"] = torch.cat([own.pop(f"self_attn.{letter}_proj.{kind}") for letter in "qkv"])
            block[f"attn.out_proj.{kind}"] = own.pop(f"self_attn.out_proj.{kind}")
        for key, tensor in own.items():
            name, _, kind = key.rpartition(".")
            block[f"{_RESBLOCK[name]}.{kind}"] = tensor
        tensors |= {f"transformer.resblocks.{layer}.{key}": tensor for key, tensor in block.items()}
    if last_layer:
        number = len(layers)
        tensors |= {f"transformer.resblocks.{number}.{key}": torch.ones_like(tensor) for key, tensor in block.items()}
    return {f"{prefix}{key}": tensor for key, tensor in tensors.items()}


def to_original(folder: Path) -> Tensors:
    """Return the tensors of a model's folder under their original names, in the folder's precision."""

    def read(part: str, name: str = "model") -> Tensors:
        return load_file(folder / part / f"{name}.safetensors")

    weights = "diffusion_pytorch_model"
    unet = UNet2DConditionModel.load_config(folder / "unet")
    tensors = original_unet(read("unet", weights), unet)
    tensors |= original_autoencoder(read("vae", weights), AutoencoderKL.load_config(folder / "vae"))
    if (folder / "text_encoder_2").is_dir():
        tensors |= original_clip(read("text_encoder"), "conditioner.embedders.0.transformer.")
        tensors |= original_open_clip(read("text_encoder_2"), "conditioner.embedders.1.model.", last_layer=False)
    elif unet.get("use_linear_projection"):
        tensors |= original_open_clip(read("text_encoder"), "cond_stage_model.model.", last_layer=True)
    else:
        tensors |= original_clip(read("text_encoder"))
    scheduler = DDIMScheduler.from_pretrained(folder / "scheduler")
    return tensors | {"betas": scheduler.betas, "alphas_cumprod": scheduler.alphas_cumprod}


def write_safetensors(path: Path, tensors: Tensors, metadata: dict[str, str] | None = None) -> Path:
    save_file({key: tensor.contiguous().clone() for key, tensor in tensors.items()}, path, metadata)
    return path


def write_lightning(path: Path, tensors: Tensors, *, legacy: bool = False) -> Path:
    """Return data as PyTorch Lightning saved it in 2022: callback states and a numpy score next to the weights."""
    with _lightning() as callback:
        content = {
            "epoch": 0,
            "global_step": 470000,
            "pytorch-lightning_version": "1.4.2",
            "state_dict": OrderedDict(tensors),
            "callbacks": {callback: {"monitor": "val/loss", "best_model_score": np.float64(0.25), "last": callback()}},
        }
        torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


@contextmanager
def _lightning() -> Iterator[type]:
    """Provide a module with Lightning's name while a file that refers to it is written."""
    name = "pytorch_lightning.callbacks.model_checkpoint"
    module = ModuleType(name)
    callback = type("ModelCheckpoint", (), {"__module__": name, "__init__": lambda self: setattr(self, "mode", "min")})
    module.ModelCheckpoint = callback  # type: ignore[attr-defined]
    names = ("pytorch_lightning", "pytorch_lightning.callbacks", name)
    assert not any(some in sys.modules for some in names)
    sys.modules |= dict.fromkeys(names[:2], ModuleType("stub")) | {name: module}
    try:
        yield callback
    finally:
        for some in names:
            del sys.modules[some]
