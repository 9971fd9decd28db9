"""Models whose files lie: folders, single files, ControlNets, image encoders, configurations."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from .harness import Case
from .styles import CONTROLS, DEEP

_HUGE = 10**9
_CONFIGS: dict[str, dict[str, Any]] = {
    "scheduler/scheduler_config.json": {
        "num_train_timesteps": (_HUGE, -1, 0, 1e30, "x", None),
        "beta_start": (-1, 1e308, "x"),
        "beta_end": (1e308, -5),
        "beta_schedule": ("nonsense", 5, CONTROLS),
        "prediction_type": ("nonsense", CONTROLS),
        "trained_betas": ([1.0] * 1_000_000, "x"),
        "steps_offset": (_HUGE, "x"),
    },
    "unet/config.json": {
        "layers_per_block": (10_000_000, -1, "x"),
        "block_out_channels": ([_HUGE, _HUGE], [], "x", [0, 0]),
        "cross_attention_dim": (_HUGE, 0, "x"),
        "attention_head_dim": (0, -1, _HUGE),
        "norm_num_groups": (0, 7),
        "in_channels": (_HUGE, 0, 9),
        "down_block_types": (["nonsense"] * 2, ["CrossAttnDownBlock2D"] * 100_000),
        "sample_size": (_HUGE, -1),
        "act_fn": (CONTROLS,),
        "_class_name": (CONTROLS, "os.system"),
        "auto_map": ({"AutoModel": "evil.py"},),
    },
    "vae/config.json": {
        "layers_per_block": (10_000_000, -1),
        "block_out_channels": ([_HUGE] * 4, []),
        "latent_channels": (_HUGE, 0),
        "scaling_factor": (0, "x", 1e308),
    },
    "text_encoder/config.json": {
        "num_hidden_layers": (10_000_000, -1, "x"),
        "hidden_size": (_HUGE, 0, "x"),
        "vocab_size": (_HUGE, 0, -1),
        "max_position_embeddings": (_HUGE, 0),
        "num_attention_heads": (0, 7),
        "model_type": (CONTROLS, "bert"),
        "auto_map": ({"AutoConfig": "evil.Evil"},),
    },
    "inversion/config.json": {"layers": (10_000_000, -1), "vectors": (_HUGE, 0), "heads": (0, 7), "width": (_HUGE,)},
    "image_encoder/config.json": {
        "num_hidden_layers": (10_000_000,),
        "image_size": (_HUGE, 0),
        "patch_size": (0, _HUGE),
    },
    "tokenizer/tokenizer_config.json": {
        "model_max_length": (10**30, -1, 0),
        "tokenizer_class": (CONTROLS,),
        "added_tokens_decoder": ({str(_HUGE): {"content": "x"}}, {"-1": {"content": CONTROLS}}),
        "auto_map": ({"AutoTokenizer": ["evil.py", None]},),
    },
    "feature_extractor/preprocessor_config.json": {"size": ({"shortest_edge": _HUGE}, "x"), "crop_size": (_HUGE, -1)},
    "model_index.json": {
        "_class_name": (CONTROLS, "x" * 1_000_000, 5),
        "unet": ([None, None], ["os", "system"], 5),
        "_diffusers_version": ("9" * 10_000,),
    },
}

_CONTENTS: dict[str, bytes] = {
    "empty": b"",
    "text": b"no JSON",
    "deep": DEEP.encode(),
    "list": b"[1, 2]",
    "number": b"1" * 5000,
    "no-utf8": b'{"a": "\xff\xfe"}',
    "nan": b'{"a": NaN, "b": -1e400}',
    "long": b'{"a": "' + b"x" * 4_000_000 + b'"}',
}


def backbones() -> Iterator[Case]:
    for file, entries in _CONFIGS.items():
        for name, values in entries.items():
            for number, value in enumerate(values):
                made = partial(_edit, file, {name: value})
                yield _case(f"{file.split('/')[0]}-{name}-{number}", made)
        for kind, data in _CONTENTS.items():
            yield _case(f"{file.split('/')[0]}-{kind}", partial(_overwrite, file, data))
    for file in _WEIGHTS:
        for kind in ("empty", "cut", "pickle", "pipe", "missing"):
            yield _case(f"{file.split('/')[0]}-weights-{kind}", partial(_break, file, kind))
    for file in ("tokenizer/tokenizer.json",):
        for kind, data in _CONTENTS.items():
            yield _case(f"tokenizer-file-{kind}", partial(_overwrite, file, data))
    for name, value in (("conditioning_channels", _HUGE), ("layers_per_block", 10_000_000), ("down_block_types", [])):
        given = {"controlnet": "bad", "control": "depth", "control_picture": "photo.png"}
        made = partial(_edit, "config.json", {name: value}, "controlnet")
        yield Case(f"backbones/controlnet-{name}", ("generate",), given, made, refused=True)
    for kind in ("empty", "cut", "pickle", "pipe", "missing"):
        made = partial(_break, "diffusion_pytorch_model.safetensors", kind, "controlnet")
        given = {"controlnet": "bad", "control": "depth", "control_picture": "photo.png"}
        yield Case(f"backbones/controlnet-weights-{kind}", ("generate",), given, made, refused=True)
    for option in ("config", "image_encoder"):
        for place in ("photo.png", "photos", "nowhere", "tiny/unet", "/dev/zero"):
            yield Case(f"backbones/{option}={place}", ("doctor",), {option: place})


_WEIGHTS = (
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
    "image_encoder/model.safetensors",
    "inversion/model.safetensors",
)


def _case(kind: str, made: Callable[[], object]) -> Case:
    """A painting as style is the way through all parts: the image encoder and the inversion module too."""
    return Case(f"backbones/{kind}", ("transfer",), {"backbone": "bad", "style": ["painting.png"]}, made)


def _copied(model: str = "tiny") -> Path:
    return Path(shutil.copytree(Path(model).resolve(), "bad"))


def _edit(file: str, changes: dict[str, object], model: str = "tiny") -> None:
    path = _copied(model) / file
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | changes))


def _overwrite(file: str, data: bytes) -> None:
    (_copied() / file).write_bytes(data)


def _break(file: str, kind: str, model: str = "tiny") -> None:
    import os
    import pickle

    path = _copied(model) / file
    if not path.exists():
        path = next(path.parent.glob("*.safetensors"))
    data = path.read_bytes()
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "pickle":
        path.with_suffix(".bin").write_bytes(pickle.dumps(print))
    elif kind != "missing":
        path.write_bytes(b"" if kind == "empty" else data[: len(data) // 2])
