"""The parts of a model, from any source, and the check that they fit together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor

from inst.errors import InstError
from inst.texts import cut

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer, CLIPVisionModelWithProjection

    from inst.backbone.inversion import AttentionInversion

COPY_AGAIN = "copy or download the model again"
"""The remedy for a missing or broken file."""

USE_A_MODEL = "use a Stable Diffusion 1.x, 2.x or XL model that makes pictures from text"
"""The remedy for a model of another kind."""

COLOURS = 3
"""Channels of the pictures that every part takes and gives: red, green and blue."""

OTHER_INPUTS = {
    5: "a depth-to-image model",
    7: "an upscaler",
    8: "a model that edits pictures by instruction (InstructPix2Pix), upscales latents, or makes videos",
    9: "an in-painting model",
}
"""The kind of model, by the input channels of the UNet's first layer; Stable Diffusion has 4, those of the latents."""

_SMALLEST_SCALE = 1e-6  # of latents; that of a real model is near 0.2

_LATENT_SHIFTS = ("shift_factor", "latents_mean", "latents_std")
_UNSUPPORTED_INPUTS = (
    *("class_embed_type", "num_class_embeds", "class_embeddings_concat", "time_cond_proj_dim"),
    *("encoder_hid_dim_type", "encoder_hid_dim", "dual_cross_attention"),
)


@dataclass(frozen=True)
class FeatureExtractor:
    """Prepares pictures for CLIP's image encoder.

    Attributes:
        size: side of the square picture, in pixels.
        mean, std: mean and standard deviation of each colour channel, in [0, 1].
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, pictures: Tensor) -> Tensor:
        """Convert pictures [B, 3, H, W] in [-1, 1] to [B, 3, size, size], normalised.

        The short side is resized to `size` (bicubic, antialiased), then the centre is cropped. These are the steps of
        CLIP's own preprocessing, but on tensors, so that gradients flow.
        """
        height, width = pictures.shape[-2:]
        # The long side is truncated, not rounded, as CLIP's processor does.
        resized = [self.size * side // min(height, width) for side in (height, width)]
        pictures = F.interpolate(pictures.float(), resized, mode="bicubic", antialias=True).clamp(-1, 1)
        top, left = (resized[0] - self.size) // 2, (resized[1] - self.size) // 2
        pictures = pictures[..., top : top + self.size, left : left + self.size]
        mean = pictures.new_tensor(self.mean).view(3, 1, 1)
        std = pictures.new_tensor(self.std).view(3, 1, 1)
        return ((pictures + 1) / 2 - mean) / std


@dataclass(eq=False, kw_only=True)
class Parts:
    """The parts of a latent diffusion model in Stable Diffusion's layout. `inst.Backbone` is made from them.

    Attributes:
        vae: the autoencoder between pictures and latents.
        unet: predicts noise (or v) from noisy latents, timestep and text.
        text_encoder: CLIP's text transformer, with the projection into the shared picture space if the weights have it.
        tokenizer: the text encoder's tokenizer; `model_max_length` is the number of positions L.
        scheduler: holds the noise schedule (`alphas_cumprod`) and `config.prediction_type`.
        fingerprint: identifies the text space: a style fits every backbone with the same fingerprint. It is computed
            from one or both token-embedding tables (`inst.backbone.fingerprints.fingerprint_of`).
        denoiser_fingerprint: identifies the UNet's weights: a style works best with the UNet that it was learned with
            (`inst.backbone.fingerprints.denoiser_fingerprint_of`). "" if it is not known.
        text_encoder_2: the second text transformer of models like Stable Diffusion XL, or None. With two text encoders,
            prompts run through both, and a pseudo-word has a part for each.
        tokenizer_2: the second text encoder's tokenizer, or None.
        force_zeros_for_empty_prompt: with a second text encoder, whether the UNet was trained with zeros for an empty
            prompt; diffusers' name and default.
        image_encoder: CLIP's image encoder, or None.
        feature_extractor: prepares pictures for the image encoder, or None.
        image_encoder_replaced: whether the user chose the image encoder. Then text encoder and image encoder may not
            share a space.
        inversion: the pretrained inversion module (float32, whatever the precision of the other parts), or None.
    """

    vae: AutoencoderKL
    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel | CLIPTextModelWithProjection
    tokenizer: CLIPTokenizer
    scheduler: DDIMScheduler
    fingerprint: str
    denoiser_fingerprint: str = ""
    text_encoder_2: CLIPTextModelWithProjection | None = None
    tokenizer_2: CLIPTokenizer | None = None
    force_zeros_for_empty_prompt: bool = True
    image_encoder: CLIPVisionModelWithProjection | None = None
    feature_extractor: FeatureExtractor | None = None
    image_encoder_replaced: bool = False
    inversion: AttentionInversion | None = None


def check_autoencoder(config: Any, name: str | Path) -> None:
    """Raise InstError unless an autoencoder is for colour pictures and scales latents as in Stable Diffusion.

    `name` is the path of its configuration, or another name for messages.
    """
    for side in ("in_channels", "out_channels"):
        if (channels := config.get(side, COLOURS)) != COLOURS:
            raise InstError(
                f"{name} is for pictures of {cut(str(channels), 60)} channels, not {COLOURS} ({side})",
                "use another model",
            )
    scale = config.get("scaling_factor")
    if type(scale) not in (int, float) or not _SMALLEST_SCALE <= scale <= 1 / _SMALLEST_SCALE:  # also for NaN
        raise InstError(f"{name} has the scaling_factor {cut(repr(scale), 60)}, not a positive number", COPY_AGAIN)
    shifts = [shift for shift in _LATENT_SHIFTS if config.get(shift)]
    if shifts:
        raise InstError(
            f"{name} shifts the latents in a way that InST does not support ({', '.join(shifts)})", "use another model"
        )


def unsupported_inputs(config: Any) -> list[str]:
    """Return the entries in the configuration of a UNet or ControlNet that ask for inputs which InST does not have."""
    return [name for name in _UNSUPPORTED_INPUTS if config.get(name) not in (None, False)]


def check_fit(parts: Parts, source: str | Path) -> None:
    """Raise InstError if the output of a part does not fit the input of the next. `source` is the model's name."""
    vae, unet, text, text_2 = parts.vae.config, parts.unet.config, parts.text_encoder.config, parts.text_encoder_2
    if unet.in_channels != vae.latent_channels and vae.latent_channels == 4 and unet.in_channels in OTHER_INPUTS:
        raise InstError(
            f"{source} is {OTHER_INPUTS[unet.in_channels]} (its UNet takes {unet.in_channels} channels, not 4)",
            USE_A_MODEL,
        )
    special = unsupported_inputs(unet)
    if unet.get("addition_embed_type") != (None if text_2 is None else "text_time"):
        special.append(f"addition_embed_type: {unet.get('addition_embed_type')}")
    if special:
        raise InstError(
            f"{source}: the UNet needs inputs that InST does not support in a model with "
            f"{'one text encoder' if text_2 is None else 'two text encoders'} ({', '.join(special)})",
            "use another model",
        )
    match unet.sample_size:
        case None | int() | [int(), int()] | (int(), int()):
            pass
        case other:
            raise InstError(
                f"{source}: the UNet has the sample_size {cut(repr(other), 60)}, not one or two whole numbers",
                COPY_AGAIN,
            )
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
        inversion = parts.inversion.config
        if parts.image_encoder is None:
            raise InstError(f"{source} has an inversion module but no image encoder", COPY_AGAIN)
        image_encoder = parts.image_encoder.config
        hidden, pooled = "the image encoder's width", "the image encoder's projection"
        sizes += [
            ("the inversion's text width", inversion.text_width, needs, width),
            ("the inversion's picture width", inversion.picture_width, hidden, image_encoder.hidden_size),
            ("the inversion's pooled width", inversion.pooled_width, pooled, image_encoder.projection_dim),
        ]
    for this, found, that, needed in sizes:
        if found != needed:
            raise InstError(
                f"{source} has parts that do not fit together, because {this} ({found}) and {that} ({needed}) differ",
                "use the parts of one model",
            )
