"""Parts: what a model consists of, wherever it was read from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer, CLIPVisionModelWithProjection

    from inst.backbone import FeatureExtractor
    from inst.inversion import AttentionInversion


@dataclass(frozen=True, eq=False)
class Parts:
    """The parts of a latent diffusion model, on the CPU and in evaluation mode, before they are checked to fit.

    Attributes:
        vae: the autoencoder.
        unet: predicts noise, or v.
        text_encoder: CLIP's text transformer, with a projection where the weights have one.
        tokenizer: the text encoder's; `model_max_length` is set.
        scheduler: holds the noise schedule and the kind of prediction.
        fingerprint: of the token-embedding table, or of both (`inst.fingerprints.fingerprint_of`).
        denoiser_fingerprint: of the UNet's weights (`inst.fingerprints.denoiser_fingerprint_of`).
        text_encoder_2: the second text transformer, of models like Stable Diffusion XL, or None.
        tokenizer_2: its tokenizer, or None.
        force_zeros_for_empty_prompt: with a second text encoder, whether the UNet has learned that zeros are no prompt;
            diffusers' name and default.
        image_encoder: CLIP's image encoder, or None.
        feature_extractor: what the image encoder wants to see, or None.
        image_encoder_replaced: whether the image encoder was chosen by the user, and not for the text encoder.
        inversion: the pretrained inversion module, or None.
    """

    vae: AutoencoderKL
    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel | CLIPTextModelWithProjection
    tokenizer: CLIPTokenizer
    scheduler: DDIMScheduler
    fingerprint: str
    denoiser_fingerprint: str
    text_encoder_2: CLIPTextModelWithProjection | None = None
    tokenizer_2: CLIPTokenizer | None = None
    force_zeros_for_empty_prompt: bool = True
    image_encoder: CLIPVisionModelWithProjection | None = None
    feature_extractor: FeatureExtractor | None = None
    image_encoder_replaced: bool = False
    inversion: AttentionInversion | None = None
