"""The frozen parts of mini that the stage of the denoiser needs."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from transformers import CLIPImageProcessorPil, CLIPTextModelWithProjection, CLIPVisionModelWithProjection

from files import require_folder
from inst.backbone.loading.part import load_weights
from pair import Normalise
from training import channels_last

PICTURE_CROP = (0.88, 1.0)
"""Side of the crop that is denoised or repainted, as a share of the picture's side."""
WORD_CROP = (0.45, 1.0)
"""Side of the crop for `[C]`, as a share of the picture's side (20-100 % of its area)."""


class Encoders(nn.Module):
    """The frozen parts, in evaluation mode."""

    def __init__(self, autoencoder: Path, pair: Path, device: torch.device) -> None:
        super().__init__()
        self.vae = load_weights(AutoencoderKL, require_folder(autoencoder), torch.float32)
        self.text = load_weights(CLIPTextModelWithProjection, require_folder(pair / "text_encoder"), torch.float32)
        self.vision = load_weights(CLIPVisionModelWithProjection, require_folder(pair / "image_encoder"), torch.float32)
        self.prepare = Normalise(CLIPImageProcessorPil.from_pretrained(require_folder(pair / "feature_extractor")))
        channels_last(self.vae)
        self.to(device).eval().requires_grad_(False)

    def latents(self, pictures: Tensor, generator: torch.Generator) -> Tensor:
        """Return a scaled sample of the posterior, [B, C, S/8, S/8], for pictures [B, 3, S, S] in [-1, 1]."""
        mean, log_variance = self.vae.quant_conv(self.vae.encoder(pictures)).float().chunk(2, dim=1)
        noise = torch.randn(mean.shape, generator=generator, device=mean.device)
        return (mean + torch.exp(0.5 * log_variance.clamp(-30, 20)) * noise) * self.vae.config.scaling_factor

    def tokens(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Return pooled [B, P] and patch tokens [B, 196, W] for pictures [B, 3, 224, 224]."""
        output = self.vision(pixel_values=self.prepare(pictures))
        return output.image_embeds, output.last_hidden_state[:, 1:]
