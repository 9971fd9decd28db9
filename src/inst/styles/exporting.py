"""Styles as the embeddings of other programs (textual inversion, Gal et al. 2022); `inst.styles.importing` reads them.

Sources of the formats: diffusers' `TextualInversionLoaderMixin`, AUTOMATIC1111's `modules/textual_inversion`, and
ComfyUI's `comfy/sd1_clip.py`.
"""

from __future__ import annotations

import base64
import json
import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from inst.errors import UsageError
from inst.files.provenance import describe
from inst.files.writing import write_bytes_atomically
from inst.pictures.io import save_png
from inst.styles.style import Style

FORMATS = {"diffusers": ".safetensors", "a1111": ".safetensors", "comfyui": ".safetensors", "a1111-png": ".png"}
"""What `export_style` writes, with the ending of the file's name. a1111 and comfyui are the same file."""

ENCODERS = ("clip_l", "clip_g")
"""What all programs call the columns of the two text encoders of Stable Diffusion XL, in order."""
EMBEDDING = "emb_params"
"""What A1111 calls the vectors in a safetensors file."""
PNG_TEXT = "sd-ti-embedding"
"""The keyword of the text chunk of A1111's pictures."""
PNG_TENSOR = "TORCHTENSOR"
"""What marks a tensor in its JSON."""
_ASTERISK = 265
"""The token id of `*` in CLIP's vocabulary, which A1111 writes and nobody reads."""


def export_style(style: Style, path: str | Path, to: str, token: str | None = None) -> str:
    """Write a style as another program's embedding, complete or not at all.

    Args:
        style: whose vectors are written. Its module and provenance are not; its thumbnail is the picture of a1111-png.
        path: the file to write; see `FORMATS` for its ending.
        to: one of `FORMATS`.
        token: for diffusers, the word that stands for the style, `<name>`; by default made of the style's name. The
            other programs go by the file's name.

    Returns:
        What to write in that program's prompt.

    Raises:
        UsageError: an unknown format, a name or a token that the program could not read.
        InstError: the folder does not exist or may not be written to, or the disk is full.
    """
    path = Path(path)
    check_export(path, to, token)
    word = token_of(style.name if token is None else token)
    tensors = _columns(style, word if to == "diffusers" else EMBEDDING)
    if to != "a1111-png":
        write_bytes_atomically(path, safetensors.torch.save(tensors))
    else:
        painting = style.painting()
        picture = torch.zeros(3, 256, 256) if painting is None else painting
        made_of = {"about": style.about, "fingerprint": style.fingerprint, "denoiser": style.denoiser}
        texts = {PNG_TEXT: _png_text(tensors, path.stem, style.about.get("steps"))}
        save_png(picture, path, texts=texts | describe("picture of a style", "inst style export", **made_of))
    return {"diffusers": word, "comfyui": f"embedding:{path.stem}"}.get(to, path.stem)


def check_export(path: Path | None, to: str, token: str | None = None) -> None:
    """Check what `export_style` is asked for, the file's name too unless it is None. Raises UsageError."""
    if to not in FORMATS:
        raise UsageError(f'The format "{to}" is unknown', f"use one of {', '.join(FORMATS)}")
    if token is not None:
        if to != "diffusers":
            raise UsageError(f"A token is for diffusers; {to} goes by the file's name", "name the file instead")
        if f"<{token.strip('<>')}>" != token_of(token):
            raise UsageError(
                f'The token "{token}" cannot be used, because CLIP reads small letters only',
                f'write letters, digits and hyphens, such as "{token_of(token)}"',
            )
    if path is None:
        return
    if path.suffix.lower() != FORMATS[to]:
        raise UsageError(f"{path} cannot be written for {to}", f"give a name that ends in {FORMATS[to]}")
    if to != "diffusers" and not re.fullmatch(r"[\w.-]+", path.stem):
        raise UsageError(
            f'The name "{path.stem}" could not be written in a prompt of {to}',
            f"name the file with letters, digits, hyphens and dots, such as {slug(path.stem)}{FORMATS[to]}",
        )


def token_of(name: str) -> str:
    """Make the token of a style's name: "Große Welle" -> "<große-welle>".

    Never capital letters: CLIP's tokenizer makes all text small, and diffusers would then find the first of several
    vectors only, without a word.
    """
    return f"<{slug(name)}>"


def slug(name: str) -> str:
    """Reduce a name to small letters, digits and single hyphens, at most 60 of them; "style" where nothing is left."""
    small = unicodedata.normalize("NFC", name.lower())
    words = "".join(letter if letter.isalnum() else " " for letter in small).split()
    return "-".join(words)[:60].strip("-") or "style"


def _columns(style: Style, key: str) -> dict[str, Tensor]:
    if len(style.widths) == 1:
        return {key: style.vectors}
    if len(style.widths) != len(ENCODERS):
        raise UsageError(f"A style for {len(style.widths)} text encoders has no form in other programs.")
    parts = style.vectors.split(list(style.widths), dim=1)
    return {name: part.contiguous() for name, part in zip(ENCODERS, parts, strict=True)}


def _png_text(tensors: Mapping[str, Tensor], name: str, steps: Any) -> str:
    listed = {key: {PNG_TENSOR: tensor.tolist()} for key, tensor in tensors.items()}
    # Of Stable Diffusion XL's, A1111 takes every entry for a tensor: there may be no others.
    content: dict[str, Any] = listed
    if len(listed) == 1:
        content = {
            "string_to_token": {"*": _ASTERISK},
            "string_to_param": {"*": listed[EMBEDDING]},
            "name": name,
            "step": steps,
            "sd_checkpoint": None,
            "sd_checkpoint_name": None,
        }
    return base64.b64encode(json.dumps(content).encode()).decode()
