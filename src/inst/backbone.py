"""Backbone: the frozen parts of a text-to-image latent diffusion model, and the calls that the method makes on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from inst.errors import InstError, UsageError
from inst.prompts import check_placeholders, tokenize
from inst.text import encode_text

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer, CLIPVisionModelWithProjection

    from inst.inversion import AttentionInversion


@dataclass(frozen=True)
class FeatureExtractor:
    """What CLIP's image encoder wants to see: pixels of a side, and each colour channel's mean and std in [0, 1]."""

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, pictures: Tensor) -> Tensor:
        """[B, 3, H, W] in [-1, 1] -> [B, 3, size, size], normalised.

        The short side is resized to `size` (bicubic, antialiased), then the centre is cropped: the steps of CLIP's own
        preprocessing, on tensors, so that gradients flow.
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


@dataclass(eq=False)
class Backbone:
    """The frozen parts of a latent diffusion model in Stable Diffusion's layout. Make one with `Backbone.load`.

    Attributes:
        vae: the autoencoder between pictures and latents.
        unet: predicts noise (or v) from noisy latents, timestep and text.
        text_encoder: CLIP's text transformer; with the projection into the space of pictures where the weights have it.
        tokenizer: the text encoder's tokenizer; `model_max_length` is the number of positions L.
        scheduler: holds the noise schedule (`alphas_cumprod`) and `config.prediction_type`.
        image_encoder: CLIP's image encoder, or None.
        feature_extractor: what the image encoder wants to see, or None.
        inversion: the pretrained inversion module (fp32, whatever `dtype`), or None.
        device: where the parts are, and where results are.
        dtype: the precision of the parts; the autoencoder may differ (see `inst.devices.autoencoder_dtype`).
        fingerprint: identifies the text space: styles fit every backbone with the same fingerprint.
        denoiser_fingerprint: identifies the UNet's weights: styles fit best the UNet they were learned with.
        name: what to call it: a bundled model's name, or its folder's base name.
        latent_channels: C, channels of the latents.
        downscale: pixels of a picture's side per latent position.
        native_size: pixels of the (short) side of the pictures that the UNet was made for.
        size_multiple: sides of pictures, in pixels, that are multiples of this pass through autoencoder and UNet.

    Shapes: B pictures or prompts, H x W pixels, h x w = H / downscale x W / downscale, L text positions, d text width.
    Pictures, latents and noise are float32, whatever the precision of the parts.
    """

    vae: AutoencoderKL
    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel | CLIPTextModelWithProjection
    tokenizer: CLIPTokenizer
    scheduler: DDIMScheduler
    device: torch.device
    dtype: torch.dtype
    fingerprint: str
    image_encoder: CLIPVisionModelWithProjection | None = None
    feature_extractor: FeatureExtractor | None = None
    inversion: AttentionInversion | None = None
    denoiser_fingerprint: str = ""
    name: str = ""
    latent_channels: int = field(init=False)
    downscale: int = field(init=False)
    native_size: int = field(init=False)
    size_multiple: int = field(init=False)
    alphas_cumprod: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.latent_channels = self.vae.config["latent_channels"]
        self.downscale = 2 ** (len(self.vae.config["block_out_channels"]) - 1)
        sample_size = self.unet.config["sample_size"] or 64  # where it is not said, Stable Diffusion 1.x's
        self.native_size = self.downscale * (sample_size if isinstance(sample_size, int) else min(sample_size))
        self.size_multiple = self.downscale * 2 ** (len(self.unet.config["block_out_channels"]) - 1)
        # A schedule of zero terminal SNR (Lin et al. 2024) ends in 0, where noise says nothing about the clean latents.
        self.alphas_cumprod = self.scheduler.alphas_cumprod.to(self.device, torch.float32).clamp_min(2**-24)

    @classmethod
    def load(
        cls,
        name: str | Path = "mini",
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
    ) -> Backbone:
        """Load a backbone, never from the network and never from a pickle.

        Args:
            name: "mini" for the bundled model, or a folder in the diffusers layout of Stable Diffusion 1.x or 2.x.
            device: such as "cpu", "cuda:1" or "mps"; by default the best at hand.
            dtype: "float32", "bfloat16" or "float16"; by default what suits the device (`inst.devices.choose_dtype`).

        Raises:
            InstError: the folder is missing, incomplete, broken, of another kind, or its parts do not fit together.
        """
        from inst.loading import load_backbone

        return load_backbone(name, device, dtype)

    def encode(self, pictures: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Encode pictures into latents.

        Args:
            pictures: [B, 3, H, W] in [-1, 1]; H and W are multiples of `downscale`.
            generator: draws a sample of the posterior; without one the posterior's mean is taken. A generator on the
                CPU gives the same sample on every device.

        Returns:
            [B, C, h, w], multiplied by the autoencoder's scaling factor: about unit variance.

        Raises:
            UsageError: the pictures have another shape.
        """
        mean, std = self.encode_moments(pictures)
        if generator is None:
            return mean
        return mean + std * torch.randn(mean.shape, generator=generator, device=generator.device).to(mean)

    def encode_moments(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and the standard deviation of the posterior that `encode` takes or draws latents from.

        Both [B, C, h, w] float32, multiplied by the autoencoder's scaling factor. Arguments and errors as `encode`.
        """
        _check_pictures(pictures)
        height, width = pictures.shape[-2:]
        if height % self.downscale or width % self.downscale:
            raise UsageError(
                f"A picture of {width} x {height} pixels cannot be encoded: "
                f"crop or resize it to multiples of {self.downscale}."
            )
        posterior: Any = self.vae.encode(pictures.to(self.device, self.vae.dtype)).latent_dist
        scale = self.vae.config["scaling_factor"]
        return posterior.mean.float() * scale, posterior.std.float() * scale

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents [B, C, h, w] into pictures [B, 3, H, W], clamped to [-1, 1]."""
        latents = latents.to(self.device) / self.vae.config["scaling_factor"]
        decoded: Any = self.vae.decode(latents.to(self.vae.dtype))
        pictures: Tensor = decoded.sample
        return pictures.float().clamp(-1, 1)

    def embed_text(self, prompts: Sequence[str], styles: Mapping[str, Tensor] | None = None) -> Tensor:
        """Encode prompts, with pseudo-words in the places of their placeholders (paper sec. 3.2).

        Args:
            prompts: B texts; words in square brackets, such as `[C]`, are placeholders.
            styles: the vectors of each placeholder, `{"[C]": vectors}`: [n, d] for all prompts or [B, n, d] for each
                its own. A placeholder takes n positions. Gradients flow back to the vectors.

        Returns:
            [B, L, d] hidden states after the final layer norm, in `dtype`, as the UNet wants them.

        Raises:
            UsageError: no prompt or one that is too long, a placeholder without a style, or vectors of the wrong shape.
        """
        return self._encode_prompts(prompts, styles or {})[0]

    def embed_caption(self, prompts: Sequence[str]) -> Tensor:
        """Project prompts into the space shared with `embed_picture`'s pooled embeddings: [B, P], not normalised.

        Raises:
            InstError: this backbone's text encoder has no projection.
            UsageError: no prompt, one that is too long, or a placeholder.
        """
        if not hasattr(self.text_encoder, "text_projection"):
            raise InstError("This backbone's text encoder has no projection (text_projection.weight): use another one.")
        return self._encode_prompts(prompts, {})[1].float()

    def _encode_prompts(self, prompts: Sequence[str], styles: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        if isinstance(prompts, str):  # a string is a sequence of strings too, and would pass as many short prompts
            raise TypeError("prompts is one string; give a list of strings")
        if not prompts:
            raise UsageError("No prompt is given: give at least one text, which may be empty.")
        check_placeholders(styles)
        batch, width = len(prompts), self.text_encoder.config.hidden_size
        vectors = []
        for name, style in styles.items():
            if style.dim() not in (2, 3) or style.shape[-1] != width or (style.dim() == 3 and len(style) != batch):
                raise UsageError(
                    f"The style {name} has the shape {list(style.shape)}; this backbone takes [n, {width}] or "
                    f"[{batch}, n, {width}]: use a style that was learned with this backbone."
                )
            vectors.append(style.to(self.device).expand(batch, -1, -1))
        tokens = tokenize(self.tokenizer, prompts, {name: style.shape[-2] for name, style in styles.items()})
        return encode_text(
            self.text_encoder,
            tokens.ids.to(self.device),
            tokens.slots.to(self.device),
            torch.cat(vectors, dim=1) if vectors else None,
        )

    def embed_picture(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Run CLIP's image encoder tau (paper eq. 2).

        Args:
            pictures: [B, 3, H, W] in [-1, 1], of any size; resized and cropped to a centre square as CLIP does.

        Returns:
            The projected pooled embeddings [B, P], and the patch tokens [B, N, W]: the last hidden state without the
            class token. Both float32.

        Raises:
            InstError: this backbone has no image encoder.
            UsageError: the pictures have another shape.
        """
        _check_pictures(pictures)
        if self.image_encoder is None or self.feature_extractor is None:
            raise InstError(
                "This backbone has no image encoder (folders image_encoder and feature_extractor): use another."
            )
        pixels = self.feature_extractor(pictures.to(self.device))
        output = self.image_encoder(pixel_values=pixels.to(self.dtype))
        return output.image_embeds.float(), output.last_hidden_state[:, 1:].float()

    def predict_noise(self, latents: Tensor, timesteps: Tensor | int, text: Tensor) -> Tensor:
        """Predict the noise epsilon in noisy latents. Differentiable in `latents` and `text`.

        A model that was trained to predict v = sqrt(abar) eps - sqrt(1 - abar) z0 (Salimans and Ho 2022, arXiv
        2202.00512) is converted: eps = sqrt(abar) v + sqrt(1 - abar) z_t.

        Args:
            latents: z_t, [B, C, h, w].
            timesteps: t, an integer for all or [B] integers, each in [0, T). Their range is checked unless they are on
                an accelerator, where looking at them would stall it.
            text: [B, L, d] from `embed_text`, or [1, L, d] for all.

        Returns:
            [B, C, h, w] float32.

        Raises:
            UsageError: a timestep that is no integer in [0, T).
        """
        timesteps = torch.as_tensor(timesteps)
        self._check_timesteps(timesteps)
        latents = latents.to(self.device)
        timesteps = timesteps.to(self.device).expand(len(latents))
        predicted: Tensor = self.unet(
            latents.to(self.unet.dtype),
            timesteps,
            encoder_hidden_states=text.to(self.device, self.unet.dtype).expand(len(latents), -1, -1),
            return_dict=False,
        )[0]
        predicted = predicted.float()
        if self.scheduler.config["prediction_type"] == "epsilon":
            return predicted
        alpha = self.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        return alpha.sqrt() * predicted + (1 - alpha).sqrt() * latents.float()

    def _check_timesteps(self, timesteps: Tensor) -> None:
        if timesteps.dtype not in (torch.int64, torch.int32):
            raise UsageError(f"Timesteps of the type {timesteps.dtype} cannot be used: give integers.")
        last = len(self.alphas_cumprod) - 1
        if timesteps.device.type == "cpu" and ((timesteps < 0) | (timesteps > last)).any():
            raise UsageError(f"The timesteps {timesteps.tolist()} are not all in this model's range: 0 to {last}.")


def _check_pictures(pictures: Tensor) -> None:
    if pictures.dim() != 4 or pictures.shape[1] != 3 or 0 in pictures.shape:
        raise UsageError(
            f"Pictures of the shape {list(pictures.shape)} cannot be used: give [B, 3, H, W], in red, green and blue."
        )
