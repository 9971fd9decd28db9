"""Names and folders -> Backbone. With `model_files`, every file name, key and quirk of the formats lives here."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors import safe_open
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer, CLIPVisionModelWithProjection

from inst.backbone import Backbone, FeatureExtractor
from inst.devices import autoencoder_dtype, choose_device, choose_dtype
from inst.errors import InstError
from inst.fingerprints import denoiser_fingerprint_of, fingerprint_of
from inst.inversion import AttentionInversion
from inst.model_files import AGAIN, first_line, quiet, read_feature_extractor, read_json, read_keys, weight_files

BUNDLED = {"mini": Path(__file__).parent / "models" / "mini"}
"""The models that ship with the package, by name."""

_CHANGES_THE_CALL = ("class_embed_type", "addition_embed_type", "encoder_hid_dim_type", "time_cond_proj_dim")
_MOVES_LATENTS = ("shift_factor", "latents_mean", "latents_std")


def load_backbone(
    name: str | Path, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None
) -> Backbone:
    """Load a backbone; see `inst.Backbone.load`, which is this function's public name."""
    device = choose_device(device)
    dtype = choose_dtype(device, dtype)
    folder = find_folder(name)
    check_kind(folder)
    vae = _load_autoencoder(folder / "vae", autoencoder_dtype(dtype))
    unet, denoiser_fingerprint = _load_denoiser(folder / "unet", dtype)
    text_encoder, fingerprint = _load_text_encoder(folder / "text_encoder", dtype)
    tokenizer = _load_tokenizer(folder / "tokenizer", text_encoder.config)
    scheduler = _load_scheduler(folder / "scheduler")
    image_encoder, feature_extractor = _load_image_encoder(folder, dtype)
    inversion = AttentionInversion.from_pretrained(folder / "inversion") if (folder / "inversion").is_dir() else None
    _check_fit(folder, vae.config, unet.config, text_encoder.config, image_encoder, inversion)

    for part in (vae, unet, text_encoder, image_encoder, inversion):
        if part is not None:
            part.requires_grad_(False).eval().to(device)
    return Backbone(
        vae=vae,
        unet=unet,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        scheduler=scheduler,
        device=device,
        dtype=dtype,
        fingerprint=fingerprint,
        image_encoder=image_encoder,
        feature_extractor=feature_extractor,
        inversion=inversion,
        denoiser_fingerprint=denoiser_fingerprint,
        name=str(name) if str(name) in BUNDLED else folder.resolve().name,
    )


def find_folder(name: str | Path) -> Path:
    """Find the folder of a bundled model's name, or of a path. Raises InstError where there is none."""
    if str(name) in BUNDLED:
        folder = BUNDLED[str(name)]
        if not folder.is_dir():
            raise InstError(
                f"{folder}: the bundled model {name} is missing from this installation: install inst again."
            )
        return folder
    try:
        folder = Path(name).expanduser()
        is_file, is_folder = folder.is_file(), folder.is_dir()
    except (OSError, RuntimeError) as error:  # a name that is too long, the home of a user who is not there
        reason = getattr(error, "strerror", None) or first_line(error)
        raise InstError(f"{name} is no usable path ({reason}). Bundled: {_names()}.") from None
    if is_file:
        raise InstError(f"{folder} is a file: give a model's folder in the diffusers layout, or one of: {_names()}.")
    if not is_folder:
        raise InstError(f"{name}: no such folder, and no bundled model of that name. Bundled: {_names()}.")
    return folder


def check_kind(folder: Path) -> None:
    """Raise InstError unless `folder` holds the parts of a Stable Diffusion 1.x or 2.x model, all of them."""
    if not (folder / "model_index.json").is_file():
        raise InstError(f"{folder} is not a model in the diffusers layout: it has no model_index.json.")
    index = read_json(folder / "model_index.json")
    kind = index.get("_class_name", "model without a name")
    named = {name for name, entry in index.items() if isinstance(entry, list) and entry[:1] not in ([], [None])}
    needed = {"vae", "unet", "text_encoder", "tokenizer", "scheduler"}
    if not needed <= named or "text_encoder_2" in named:
        raise InstError(
            f"{folder / 'model_index.json'} describes a {kind}: "
            f"only models in the layout of Stable Diffusion 1.x and 2.x can be used."
        )
    missing = sorted(name for name in needed if not (folder / name).is_dir())
    if missing:
        raise InstError(f"{folder} is incomplete: it has no folder {', '.join(missing)}; {AGAIN}.")


def _names() -> str:
    return ", ".join(BUNDLED)


@quiet()
def load_weights(model_class: Any, folder: Path, dtype: torch.dtype) -> Any:
    """Load one part of a model, from safetensors files only and complete: no weight is ever made up.

    Args:
        model_class: diffusers' `AutoencoderKL` or `UNet2DConditionModel`, or a model class of transformers.
        folder: holds `config.json` and the weights: one file or several, with or without "fp16" in their names.
        dtype: the precision to load with, whatever that of the files.

    Returns:
        The model, on the CPU, in evaluation mode.

    Raises:
        InstError: a file is missing or broken, is of another class, or does not fit the configuration.
    """
    config = read_json(folder / "config.json")
    from_diffusers = issubclass(model_class, (AutoencoderKL, UNet2DConditionModel))
    expected = model_class.__name__ if from_diffusers else model_class.config_class.model_type
    found = config.get("_class_name" if from_diffusers else "model_type")
    if found != expected:
        raise InstError(f"{folder / 'config.json'} describes {found or 'nothing'}, not the {expected} that is needed.")

    files, variant = weight_files(folder, "diffusion_pytorch_model" if from_diffusers else "model")
    read_keys(files)
    try:
        model, report = model_class.from_pretrained(
            folder,
            dtype=dtype,
            variant=variant,
            use_safetensors=True,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # reported below, in our words
            output_loading_info=True,
        )
    except MemoryError:
        raise
    except Exception as error:  # the libraries raise anything at all over a configuration that makes no sense
        raise InstError(
            f"{folder}: config.json and the weights make no {expected} ({first_line(error)}); {AGAIN}."
        ) from error
    for key, in_file, in_config in report["mismatched_keys"]:
        raise InstError(
            f"{folder}: {key} has the shape {list(in_file)}, but config.json says {list(in_config)}; {AGAIN}."
        )
    if report["missing_keys"]:
        first, *others = sorted(report["missing_keys"])
        more = f" and {len(others)} more" if others else ""
        raise InstError(f"{files[0]} is incomplete: it has no {first}{more}; {AGAIN}.")
    return model


def _load_autoencoder(folder: Path, dtype: torch.dtype) -> Any:
    vae = load_weights(AutoencoderKL, folder, dtype)
    scale = vae.config.get("scaling_factor")
    if not isinstance(scale, int | float) or not (math.isfinite(scale) and scale > 0):
        raise InstError(f"{folder / 'config.json'} has the scaling_factor {scale!r}, not a positive number; {AGAIN}.")
    moved = [name for name in _MOVES_LATENTS if vae.config.get(name)]
    if moved:
        raise InstError(
            f"{folder / 'config.json'} moves the latents in a way that InST does not know ({', '.join(moved)}): "
            f"use another model."
        )
    return vae


def _load_denoiser(folder: Path, dtype: torch.dtype) -> tuple[Any, str]:
    """Load the UNet and fingerprint it, from the files, because `dtype` may have rounded the loaded weights."""
    model = load_weights(UNet2DConditionModel, folder, dtype)
    first_rows: dict[str, Tensor] = {}
    for path in weight_files(folder, "diffusion_pytorch_model")[0]:
        with safe_open(path, "pt") as weights:
            slices = {key: weights.get_slice(key) for key in weights.keys()}  # noqa: SIM118
            first_rows |= {key: slices[key][:1] for key in slices if slices[key].get_shape()}  # no lone numbers
    return model, denoiser_fingerprint_of(first_rows)


def _load_text_encoder(folder: Path, dtype: torch.dtype) -> tuple[Any, str]:
    """Load the text encoder, with its projection where the weights have one, and fingerprint its table.

    The table is read from the file, because `dtype` may have rounded the loaded one.
    """
    keys = read_keys(weight_files(folder, "model")[0])
    # model_index.json names CLIPTextModel either way, for the sake of diffusers' pipeline.
    projected = "text_projection.weight" in keys
    model = load_weights(CLIPTextModelWithProjection if projected else CLIPTextModel, folder, dtype)
    table = next(key for key in keys if key.endswith("embeddings.token_embedding.weight"))
    with safe_open(keys[table], "pt") as weights:
        return model, fingerprint_of(weights.get_tensor(table))


@quiet()
def _load_tokenizer(folder: Path, text: Any) -> Any:
    kind = read_json(folder / "tokenizer_config.json").get("tokenizer_class")
    if kind not in ("CLIPTokenizer", "CLIPTokenizerFast"):
        raise InstError(
            f"{folder / 'tokenizer_config.json'} describes {kind or 'nothing'}, not the CLIPTokenizer needed."
        )
    names = {path.name for path in folder.iterdir()}
    if "tokenizer.json" not in names and not {"vocab.json", "merges.txt"} <= names:
        # transformers would make up an empty vocabulary
        raise InstError(f"{folder} is incomplete: it has no tokenizer.json, nor vocab.json and merges.txt; {AGAIN}.")
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the tokenizers library raises bare Exception
        raise InstError(f"{folder} holds no usable tokenizer ({first_line(error)}); {AGAIN}.") from error
    largest = max(tokenizer.get_vocab().values())
    if largest >= text.vocab_size:
        raise InstError(
            f"{folder} has token {largest}, but the text encoder knows {text.vocab_size} tokens only; {AGAIN}."
        )
    # Stable Diffusion 1.x's text configuration says 2, an old mistake that CLIP's pooling knows about.
    if text.eos_token_id not in (2, tokenizer.eos_token_id):
        raise InstError(
            f"{folder} ends prompts with token {tokenizer.eos_token_id}, but the text encoder expects "
            f"{text.eos_token_id}; {AGAIN}."
        )
    length = tokenizer.model_max_length
    if not isinstance(length, int) or length < 3:  # the start token, one more, and the end token
        raise InstError(
            f"{folder / 'tokenizer_config.json'} has the model_max_length {length!r}, not a number of tokens; {AGAIN}."
        )
    tokenizer.model_max_length = min(length, text.max_position_embeddings)
    return tokenizer


@quiet()
def _load_scheduler(folder: Path) -> DDIMScheduler:
    path = folder / "scheduler_config.json"
    config = read_json(path)
    prediction = config.get("prediction_type", "epsilon")  # Stable Diffusion 1.x's files do not say it
    if "beta_schedule" not in config or prediction not in ("epsilon", "v_prediction"):
        raise InstError(
            f"{path} describes {config.get('_class_name', 'nothing')} with the prediction "
            f'"{prediction}": only diffusion schedules with "epsilon" or "v_prediction" can be used.'
        )
    # Whatever sampler the folder names, only the noise schedule is used, which DDIM's class holds for all of them.
    try:
        scheduler: DDIMScheduler = DDIMScheduler.from_config(config)
    except Exception as error:
        raise InstError(f"{path} makes no noise schedule ({first_line(error)}); {AGAIN}.") from error
    alphas = scheduler.alphas_cumprod
    if len(alphas) == 0 or not ((alphas >= 0) & (alphas <= 1)).all():  # neither holds for NaN
        raise InstError(f"{path} makes no noise schedule (alphas_cumprod is not within 0 and 1); {AGAIN}.")
    return scheduler


def _load_image_encoder(folder: Path, dtype: torch.dtype) -> tuple[Any, FeatureExtractor | None]:
    if not (folder / "image_encoder").is_dir():
        return None, None
    encoder = load_weights(CLIPVisionModelWithProjection, folder / "image_encoder", dtype)
    path = folder / "feature_extractor" / "preprocessor_config.json"
    extractor = read_feature_extractor(path)
    if extractor.size != encoder.config.image_size:
        raise InstError(
            f"{path} makes pictures of {extractor.size} px, but the image encoder takes {encoder.config.image_size} px."
        )
    return encoder, extractor


def _check_fit(folder: Path, vae: Any, unet: Any, text: Any, image_encoder: Any, inversion: Any) -> None:
    """Raise InstError where one part's output is not the next part's input."""
    special = [name for name in _CHANGES_THE_CALL if unet.get(name) is not None]
    if special:
        raise InstError(
            f"{folder / 'unet'} needs inputs that InST does not give ({', '.join(special)}): use another model."
        )
    sizes = [
        ("the UNet's input channels", unet.in_channels, "the autoencoder's latent channels", vae.latent_channels),
        ("the UNet's output channels", unet.out_channels, "the autoencoder's latent channels", vae.latent_channels),
        ("the UNet's cross-attention width", unet.cross_attention_dim, "the text encoder's width", text.hidden_size),
    ]
    if inversion is not None:
        words = inversion.config
        if image_encoder is None:
            raise InstError(f"{folder} has an inversion module but no image encoder; {AGAIN}.")
        picture = image_encoder.config
        sizes += [
            ("the inversion's text width", words.text_width, "the text encoder's width", text.hidden_size),
            ("the inversion's picture width", words.picture_width, "the image encoder's width", picture.hidden_size),
            (
                "the inversion's pooled width",
                words.pooled_width,
                "the image encoder's projection",
                picture.projection_dim,
            ),
        ]
    for this, found, that, needed in sizes:
        if found != needed:
            raise InstError(
                f"{folder}: parts that do not belong together: {this} ({found}) and {that} ({needed}) differ."
            )
