"""Stage 5: combine the trained parts into one fp16 model in the diffusers folder layout, and check that it loads.

    python recipes/mini/export.py --tokenizer runs/tokenizer/tokenizer --autoencoder runs/autoencoder/vae \
        --pair runs/pair --unet runs/unet --out src/inst/models/mini

--out is a new folder or the folder of an earlier export, which is replaced. Its model card and figures stay.
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

from files import require_folder, write_folder
from inst import Backbone
from inst.errors import InstError, UsageError
from tokenizer import load_matching

LIMIT = 92_000_000
"""Largest total size in bytes. With code and pictures, the wheel must be under the 100 MB limit of package indexes."""

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
    # The weights contain text_projection. This class ignores it, but the loader of inst reads it.
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
        InstError: a part is missing or does not fit the others, or the size is over `LIMIT`. Nothing is replaced.
        UsageError: `out` exists and contains something other than a model. Nothing is replaced.
    """
    for folder in parts.values():
        require_folder(folder)
    out = out.resolve()  # a link stays a link, and "." gets a name
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
            content.pop("_name_or_path", None)  # after a warm start: a path on the machine that trained it
            if config.parent.name in ("text_encoder", "image_encoder"):
                # With "float16", transformers would load these parts in fp16 and the others in fp32.
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
    """Raise UsageError if `out` contains files that no export writes, because they would be lost."""
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
            raise UsageError(f"{path}: is no part of a model and would be lost; move it, or give --out another folder")
    if any(out.iterdir()) and not (out / INDEX_NAME).is_file():
        raise UsageError(f"{out}: contains no model ({INDEX_NAME}) to replace; give --out another folder")


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
    parser = argparse.ArgumentParser(description="Combine mini's parts into one model.")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder tokenizer/ of stage 1")
    parser.add_argument("--autoencoder", type=Path, required=True, help="folder vae/ of stage 2")
    parser.add_argument("--pair", type=Path, required=True, help="folder of stage 3 (tokenizer/, text_encoder/ ...)")
    parser.add_argument("--unet", type=Path, required=True, help="folder of stage 4 (unet/, scheduler/, inversion/)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the model")
    options = parser.parse_args(given)
    load_matching(options.pair, options.tokenizer)
    parts = {"tokenizer": options.tokenizer, "vae": options.autoencoder}
    parts |= {name: options.pair / name for name in ("text_encoder", "image_encoder", "feature_extractor")}
    parts |= {name: options.unet / name for name in ("unet", "scheduler", "inversion")}
    size = export(parts, options.out)
    print(f"{options.out}: {size / 1e6:.1f} MB")
