"""Stage 5: put the trained parts together as one model in the diffusers folder layout, fp16, and check that it loads.

    python recipes/mini/export.py --tokenizer runs/tokenizer/tokenizer --autoencoder runs/autoencoder/vae \
        --pair runs/pair --unet runs/unet --out src/inst/models/mini

--out, a new folder or that of an earlier export, is replaced as a whole; its model card and figures stay.
"""

from __future__ import annotations

if __name__ == "__main__":
    from files import guarded

    guarded("export")

import argparse
import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import diffusers
import torch
from safetensors.torch import load_file, save_file

from files import need, write_folder
from inst import Backbone
from inst.errors import InstError, UsageError
from tokenizer import load_as_in

LIMIT = 92_000_000
"""Bytes in all: with code and demo pictures the wheel must stay under the 100 MB that package indexes accept."""

KEPT = ("MODEL_CARD.md", "figures.json")
"""Files of the model's folder that no stage writes."""

INDEX_NAME = "model_index.json"
INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": diffusers.__version__,
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
    "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DDIMScheduler"],
    # The weights keep text_projection, which this class ignores and our own loader reads.
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def export(parts: dict[str, Path], out: Path) -> int:
    """Write the model into `out` and return its size in bytes.

    Args:
        parts: the folder of each part, by its name in the layout.
        out: the model's folder.

    Raises:
        InstError: a part is missing or does not fit the others, or the whole is over `LIMIT`. Nothing is replaced.
        UsageError: `out` is there and holds something else than a model. Nothing is replaced.
    """
    for folder in parts.values():
        need(folder)
    out = out.resolve()  # a link stays one, and "." has a name
    _check_replaceable(out, parts)
    size = 0

    def fill(made: Path) -> None:
        nonlocal size
        for name, folder in parts.items():
            shutil.copytree(folder, made / name)
        for name in KEPT:
            if (out / name).is_file():
                shutil.copy2(out / name, made)
        for file in made.rglob("*.safetensors"):
            _to_half(file)
        for config in made.glob("*/config.json"):
            content = json.loads(config.read_text())
            content.pop("_name_or_path", None)  # where a warm start began: a place on the machine that trained it
            if config.parent.name in ("text_encoder", "image_encoder"):
                # With "float16" here transformers would load these parts in fp16 beside others in fp32.
                content["dtype"] = "float32"
            _write_json(config, content)
        _write_json(made / INDEX_NAME, INDEX)
        for file in made.rglob("*"):
            file.chmod(0o755 if file.is_dir() else 0o644)
        size = sum(file.stat().st_size for file in made.rglob("*") if file.is_file())
        if size > LIMIT:
            raise InstError(f"the model takes {size} bytes, more than {LIMIT}: make a part smaller")
        Backbone.load(made, device="cpu")

    write_folder(out, fill)
    return size


def _check_replaceable(out: Path, parts: Iterable[str]) -> None:
    """Raise UsageError where `out` holds what no export writes: it would be lost."""
    if not out.exists():
        return
    if not out.is_dir():
        raise UsageError(f"{out}: is a file; give --out a new folder")
    for path in sorted(out.rglob("*")):
        within = path.relative_to(out).parts
        if path.is_dir():
            known = len(within) == 1 and within[0] in parts
        elif len(within) == 1:
            known = path.name in (INDEX_NAME, *KEPT)
        else:
            known = path.suffix in (".json", ".safetensors") or path.name == "merges.txt"
        if not known:
            raise UsageError(f"{path}: is not of a model and would be lost; move it away, or give --out another folder")
    if any(out.iterdir()) and not (out / INDEX_NAME).is_file():
        raise UsageError(f"{out}: holds no model ({INDEX_NAME}) that could be replaced; give --out another folder")


def _to_half(file: Path) -> None:
    tensors = load_file(file)
    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    lost = [name for name, tensor in half.items() if not bool(torch.isfinite(tensor).all())]
    if lost:
        raise InstError(f"{file.parent.name}: {lost[0]} does not fit fp16; train again with more weight decay")
    save_file(half, file, metadata={"format": "pt"})


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Put mini's parts together.")
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--autoencoder", type=Path, required=True)
    parser.add_argument("--pair", type=Path, required=True, help="folder with tokenizer/, text_encoder/ ...")
    parser.add_argument("--unet", type=Path, required=True, help="folder with unet/, scheduler/ and inversion/")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(given)
    load_as_in(options.pair, options.tokenizer)
    parts = {"tokenizer": options.tokenizer, "vae": options.autoencoder}
    parts |= {name: options.pair / name for name in ("text_encoder", "image_encoder", "feature_extractor")}
    parts |= {name: options.unet / name for name in ("unet", "scheduler", "inversion")}
    size = export(parts, options.out)
    print(f"{options.out}: {size / 1e6:.1f} MB")
