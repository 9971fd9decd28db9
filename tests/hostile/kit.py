"""The good files that every case finds in its folder."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

import inst
from inst.learning.loop import learn
from inst.pictures.reading import read_photo
from inst.runs import complete
from inst.study.creation import create_study
from inst.study.database import Database
from inst.study.sessions import begin, vote
from inst.styles.exporting import export_style
from inst.synthesis.painter import paint
from study_server import write_comparison
from tiny import tiny_controlnet


def write_kit(folder: Path, backbone: inst.Backbone, model: Path) -> Path:
    """Write the good files, which must not be changed: `copy_kit` copies them."""
    folder.mkdir(parents=True)
    (folder / "tiny").symlink_to(model, target_is_directory=True)
    for number, name in enumerate(("photo", "painting", "mask", "photos/one", "photos/two")):
        path = folder / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).convert("L" if name == "mask" else "RGB").save(path)
    run = learn(backbone, folder / "painting.png", steps=3, crops=1, validate_every=0, batch_size=1)
    step = next(run)
    step.state().save(folder / "half.state.safetensors")
    style = step.style().save(folder / "half.safetensors")
    run.close()
    shutil.copy(style, folder / "style.safetensors")
    (folder / "styles").mkdir()
    shutil.copy(style, folder / "styles" / "other.safetensors")
    export_style(inst.Style.load(style), folder / "embedding.safetensors", "comfyui")
    settings = {"steps": 1, "size": 64, "seed": 0}
    photo = read_photo(folder / "photo.png")
    complete(paint(backbone, {"[C]": inst.Style.load(style)}, settings, photo=photo)).save(folder / "before.png")
    write_comparison(folder / "comparison", ("bridge",), ("night", "tulips"))
    list(create_study(folder / "comparison", folder / "study.db", trials=1))
    shutil.copy(folder / "study.db", folder / "voted.db")
    with Database(folder / "voted.db") as votes:
        for number in range(2):
            token = f"{number:064x}"
            begin(votes, token)
            vote(votes, token, f"{number:032x}", 1, "first", 2.5)
    (folder / "prompts.txt").write_text("a river by [C]\na dog by [C]\n")
    (folder / "prompts.json").write_text(json.dumps({"bridge__night": "a bridge"}))
    (folder / "pairs.csv").write_text("photo,style\nphotos/one.png,style.safetensors\n")
    (folder / "consent.txt").write_text("You may stop at any time.")
    tiny_controlnet(backbone.unet).save_pretrained(folder / "controlnet")
    return folder


def copy_kit(kit: Path, folder: Path) -> Path:
    """Copy the good files into a new folder."""
    return Path(shutil.copytree(kit, folder, symlinks=True, copy_function=_copy))


def _copy(source: str, target: str) -> None:
    """Link a file, which is faster than a copy. Databases are written in their place, but nothing else may be."""
    if source.endswith(".db"):
        shutil.copyfile(source, target)
    else:
        os.link(source, target, follow_symlinks=False)
