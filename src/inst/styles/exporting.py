"""Export styles as embeddings for other programs (textual inversion, Gal et al. 2022).

`inst.styles.importing` reads these files.

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

from inst.arguments import check_path, check_type, checked
from inst.errors import Call, UsageError
from inst.files.provenance import describe
from inst.files.writing import write_bytes_atomically
from inst.pictures.resizing import resize
from inst.pictures.writing import save_png
from inst.styles.style import Style
from inst.texts import cut

FORMATS = {"diffusers": ".safetensors", "a1111": ".safetensors", "comfyui": ".safetensors", "a1111-png": ".png"}
"""The formats that `export_style` writes, with their file extensions. a1111 and comfyui give the same file."""

ENCODERS = ("clip_l", "clip_g")
"""Keys of the vectors of the two text encoders of Stable Diffusion XL, in order; the same in all programs."""
EMBEDDING = "emb_params"
"""Key of the vectors in a safetensors file of A1111."""
PNG_TEXT = "sd-ti-embedding"
"""Keyword of the text chunk in the pictures of A1111."""
PNG_TENSOR = "TORCHTENSOR"
"""Key that marks a tensor in the JSON of that text chunk."""
_SIDE = 256
"""Longest side in pixels of the picture of a1111-png."""
_ASTERISK = 265
"""Token id of `*` in the vocabulary of CLIP. A1111 writes it, but no program reads it."""


def export_style(style: Style, path: str | Path, to: str, token: str | None = None) -> str:
    """Write a style as an embedding file of another program. The file is written completely or not at all.

    Args:
        style: the style. Its vectors are written; its module and provenance are not. The picture of a1111-png is its
            first painting, with sides of at most 256 pixels.
        path: the file to write; `FORMATS` gives the file extension.
        to: one of `FORMATS`.
        token: the word that stands for the style in a prompt, `<name>`; for diffusers only. The default is made from
            the name of the style. The other programs use the file name.

    Returns:
        The text to write in the prompt of that program.

    Raises:
        UsageError: an unknown format, a name or a token that the program cannot read, or a style without a pseudo-word.
        InstError: the folder does not exist or is not writable, or the disk is full.
    """
    check_type("A style", style, Style, "read one with inst.Style.load")
    check_path("An embedding", path)
    checked("format", to, "str")
    path = Path(path)
    check_export(path, to, token)
    if not style.has_word:
        raise UsageError(f'The style "{style.name}" has no pseudo-word to export', "learn it with ", Call("learn"))
    word = token_of(style.name if token is None else token)
    tensors = _columns(style, word if to == "diffusers" else EMBEDDING)
    if to != "a1111-png":
        write_bytes_atomically(path, safetensors.torch.save(tensors))
    else:
        picture = _reduce(style.painting()) if style.paintings else torch.zeros(3, _SIDE, _SIDE)
        provenance = {"about": style.about, "fingerprint": style.fingerprint, "denoiser": style.denoiser}
        texts = {PNG_TEXT: _png_text(tensors, path.stem, style.about.get("steps"))}
        save_png(picture, path, texts=texts | describe("picture of a style", "inst style export", **provenance))
    return {"diffusers": word, "comfyui": f"embedding:{path.stem}"}.get(to, path.stem)


def check_export(path: Path | None, to: str, token: str | None = None) -> None:
    """Raise UsageError if `export_style` cannot use these arguments. A path of None is not checked."""
    if to not in FORMATS:
        raise UsageError(f'The format "{cut(to, 60)}" is unknown', f"use one of {', '.join(FORMATS)}")
    if token is not None:
        if to != "diffusers":
            raise UsageError(
                f"A token is for diffusers only; {to} uses the file name", "change the name of the file instead"
            )
        if f"<{token.strip('<>')}>" != token_of(token):
            raise UsageError(
                f'The token "{cut(token, 60)}" cannot be used, because CLIP reads lower-case letters only',
                f'use lower-case letters, digits and hyphens, such as "{token_of(token)}"',
            )
    if path is None:
        return
    if path.suffix.lower() != FORMATS[to]:
        raise UsageError(f"{path} cannot be written for {to}", f"give a name that ends in {FORMATS[to]}")
    if to != "diffusers" and not re.fullmatch(r"[\w.-]+", path.stem):
        raise UsageError(
            f'The name "{cut(path.stem, 60)}" cannot be written in a prompt of {to}',
            f"use letters, digits, hyphens and dots in the file name, such as {slug(path.stem)}{FORMATS[to]}",
        )


def token_of(name: str) -> str:
    """Make a token from the name of a style: "Große Welle" -> "<große-welle>".

    The token has no capital letters: the tokenizer of CLIP turns all text into lower case. With capital letters,
    diffusers would find only the first of several vectors, and give no warning.
    """
    return f"<{slug(name)}>"


def slug(name: str) -> str:
    """Reduce a name to at most 60 lower-case letters, digits and single hyphens; return "style" if nothing is left."""
    small = unicodedata.normalize("NFC", name.lower())
    words = "".join(letter if letter.isalnum() else " " for letter in small).split()
    return "-".join(words)[:60].strip("-") or "style"


def _reduce(picture: Tensor) -> Tensor:
    """Reduce [3, H, W] to sides of at most `_SIDE` pixels; a smaller picture keeps its size."""
    height, width = picture.shape[1:]
    scale = min(1.0, _SIDE / max(height, width))
    return resize(picture, (max(1, round(height * scale)), max(1, round(width * scale))))


def _columns(style: Style, key: str) -> dict[str, Tensor]:
    if len(style.widths) == 1:
        return {key: style.vectors}
    if len(style.widths) != len(ENCODERS):
        raise UsageError(
            f"Other programs have no format for a style for {len(style.widths)} text encoders",
            "export a style for one or two text encoders",
        )
    parts = style.vectors.split(list(style.widths), dim=1)
    return {name: part.contiguous() for name, part in zip(ENCODERS, parts, strict=True)}


def _png_text(tensors: Mapping[str, Tensor], name: str, steps: Any) -> str:
    listed = {key: {PNG_TENSOR: tensor.tolist()} for key, tensor in tensors.items()}
    # In an embedding for Stable Diffusion XL, A1111 reads every entry as a tensor, so there must be no other entries.
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
