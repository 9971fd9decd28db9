"""Names, folders and files -> Backbone: where a model is found, whether its parts fit, and how they are frozen."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal

import torch

from inst.arguments import check_path
from inst.backbone import Backbone
from inst.devices import autoencoder_dtype, choose_device, choose_dtype
from inst.errors import InstError, UsageError, first_line
from inst.folders import read_folder
from inst.image_encoders import find_image_encoder, find_matching_image_encoder, read_image_encoder
from inst.memory import Offload
from inst.model_files import AGAIN
from inst.parts import Parts

BUNDLED = {"mini": Path(__file__).parent / "models" / "mini"}
"""The models that ship with the package, by name."""

_CHANGES_THE_CALL = ("class_embed_type", "encoder_hid_dim_type", "time_cond_proj_dim")


def load_backbone(
    name: str | Path,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    *,
    config: str | Path | None = None,
    image_encoder: str | Path | Literal[False] | None = None,
    download: bool = False,
    low_memory: bool = False,
) -> Backbone:
    """Load a backbone; see `inst.Backbone.load`, which is this function's public name."""
    check_path("A model", name)
    if config is not None:
        check_path("A configuration", config)
    if image_encoder is not None and image_encoder is not False:
        check_path("An image encoder", image_encoder)
    device = choose_device(device)
    dtype = choose_dtype(device, dtype)
    source = find_source(name, download=download)
    # What is mistyped shows before the model is read, which takes its time.
    encoder = find_image_encoder(image_encoder, download) if isinstance(image_encoder, str | Path) else None
    parts = read_parts(source, dtype, config)
    if image_encoder is None and parts.image_encoder is None:
        encoder = find_matching_image_encoder(parts.text_encoder.config, download)
    if encoder is not None:
        seeing, extractor = read_image_encoder(encoder, dtype)
        # A pretrained inversion module understands the image encoder that it was trained with only.
        parts = replace(
            parts,
            image_encoder=seeing,
            feature_extractor=extractor,
            image_encoder_replaced=image_encoder is not None,
            inversion=None,
        )
    return assemble(parts, device, dtype, _name_of(name, source), source, low_memory=low_memory)


def find_source(name: str | Path, *, download: bool = False) -> Path:
    """Find the folder or file of a model.

    Args:
        name: that of a bundled model; a folder or a file; or a model's on the hub, "owner/model" or
            "owner/model@revision". What is on the disk comes first.
        download: fetch a model of the hub that is not in the cache.

    Raises:
        InstError: there is none.
    """
    if str(name) in BUNDLED:
        folder = BUNDLED[str(name)]
        if not folder.is_dir():
            raise InstError(
                f"{folder}: the bundled model {name} is missing from this installation: install inst again."
            )
        return folder
    try:
        path = Path(name).expanduser()
        is_there = path.exists()
    except (OSError, RuntimeError) as error:  # a name that is too long, the home of a user who is not there
        reason = getattr(error, "strerror", None) or first_line(error)
        raise InstError(f"{name} is no usable path ({reason}). Bundled: {', '.join(BUNDLED)}.") from None
    if is_there:
        return path
    from inst.hub import find_model, is_hub_name

    # A file that is not there is a slip, and no name to ask the hub for.
    if is_hub_name(str(name)) and path.suffix.lower() not in (".safetensors", ".ckpt"):
        return find_model(str(name), download)
    raise InstError(
        f"{name}: no such folder or file, and no bundled model of that name. Bundled: {', '.join(BUNDLED)}; "
        f"on the model hub: owner/model."
    )


def _name_of(name: str | Path, source: Path) -> str:
    """What to call a backbone: by the name that was given, or by the folder or file."""
    if str(name) in BUNDLED or not Path(name).expanduser().exists():
        return str(name)
    return source.resolve().name if source.is_dir() else source.stem


def read_parts(source: Path, dtype: torch.dtype, config: str | Path | None = None) -> Parts:
    """Read a model's parts, from a folder in the diffusers layout or from a single file.

    Args:
        source: the folder or file.
        dtype: the precision; the autoencoder's is `inst.devices.autoencoder_dtype`.
        config: see `Backbone.load`.

    Raises:
        UsageError: a configuration for a folder, which has its own.
        InstError: the parts are incomplete or broken, or of a model of another kind.
    """
    vae_dtype = autoencoder_dtype(dtype)
    if source.is_dir():
        if config is not None:
            raise UsageError(f"{source} is a folder with a configuration of its own: leave the other one out.")
        return read_folder(source, dtype, vae_dtype)
    from inst.single_file import read_single_file

    return read_single_file(source, dtype, vae_dtype, config)


def assemble(
    parts: Parts,
    device: torch.device,
    dtype: torch.dtype,
    name: str,
    source: str | Path | None = None,
    *,
    low_memory: bool = False,
) -> Backbone:
    """Check that parts fit together, freeze them, and make a backbone of them.

    Args:
        parts: wherever they come from.
        device: where to compute.
        dtype: their precision.
        name: what to call the backbone.
        source: what to call it in messages; None is the name.
        low_memory: see `Backbone.load`.

    Raises:
        InstError: they do not fit together.
    """
    check_fit(parts, name if source is None else source)
    models = {
        field.name: part for field in fields(parts) if isinstance(part := getattr(parts, field.name), torch.nn.Module)
    }
    for model in models.values():
        model.requires_grad_(False).eval()
    if low_memory:
        parts.vae.enable_slicing()
        parts.unet.enable_gradient_checkpointing()
    if device.type != "cpu":
        # What looks at paintings is not needed for painting: it comes when one is looked at (see `look_at`).
        waiting = set(models) - {"inversion"} if low_memory else {"image_encoder"}
        Offload([model for kind, model in models.items() if kind in waiting], device)
        for kind in models.keys() - waiting:
            models[kind].to(device)
    given: dict[str, Any] = {field.name: getattr(parts, field.name) for field in fields(parts)}
    return Backbone(**given, device=device, dtype=dtype, name=name, low_memory=low_memory)


def check_fit(parts: Parts, source: str | Path) -> None:
    """Raise InstError, which calls the model `source`, where one part's output is not the next part's input."""
    vae, unet, text, text_2 = parts.vae.config, parts.unet.config, parts.text_encoder.config, parts.text_encoder_2
    special = [name for name in _CHANGES_THE_CALL if unet.get(name) is not None]
    if unet.get("addition_embed_type") != (None if text_2 is None else "text_time"):
        special.append(f"addition_embed_type: {unet.get('addition_embed_type')}")
    if special:
        raise InstError(
            f"{source}: the UNet needs other inputs than InST gives to a model with "
            f"{'one text encoder' if text_2 is None else 'two text encoders'} ({', '.join(special)}): "
            f"use another model."
        )
    match unet.sample_size:
        case None | int() | [int(), int()] | (int(), int()):
            pass
        case other:
            raise InstError(f"{source}: the UNet has the sample_size {other!r}, not a number of latents; {AGAIN}.")
    width, needs = text.hidden_size, "the text encoder's width"
    sizes = []
    if text_2 is not None:
        assert parts.tokenizer_2 is not None
        width, needs = width + text_2.config.hidden_size, "the text encoders' width together"
        length, length_2 = parts.tokenizer.model_max_length, parts.tokenizer_2.model_max_length
        added = text_2.config.projection_dim + 6 * (unet.addition_time_embed_dim or 0)
        sizes = [
            ("the first tokenizer's length", length, "the second one's", length_2),
            ("the UNet's added inputs", unet.projection_class_embeddings_input_dim, "pooled text and six sizes", added),
        ]
    sizes += [
        ("the UNet's input channels", unet.in_channels, "the autoencoder's latent channels", vae.latent_channels),
        ("the UNet's output channels", unet.out_channels, "the autoencoder's latent channels", vae.latent_channels),
        ("the UNet's cross-attention width", unet.cross_attention_dim, needs, width),
    ]
    if parts.inversion is not None:
        words = parts.inversion.config
        if parts.image_encoder is None:
            raise InstError(f"{source} has an inversion module but no image encoder; {AGAIN}.")
        picture = parts.image_encoder.config
        seen, pooled = "the image encoder's width", "the image encoder's projection"
        sizes += [
            ("the inversion's text width", words.text_width, needs, width),
            ("the inversion's picture width", words.picture_width, seen, picture.hidden_size),
            ("the inversion's pooled width", words.pooled_width, pooled, picture.projection_dim),
        ]
    for this, found, that, needed in sizes:
        if found != needed:
            raise InstError(
                f"{source}: parts that do not belong together: {this} ({found}) and {that} ({needed}) differ."
            )
